"""The pool on several threads and after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ln_array_api_backends.numpy.memory import MemoryPool

KIB = 1 << 10
SIZES = (1, 100, 4000, 4096, 5000, 70_000, 100_000)


def test_the_limit_holds_while_threads_return_memory() -> None:
    pool = MemoryPool(100 * KIB)

    def work(_: int) -> None:
        for _ in range(300):
            pool.empty((5000,), np.float32)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    pool.stats()
    held = sum(each.nbytes for each in (*pool._free, *pool._returned))
    assert held <= pool.limit
    assert held == pool._free_bytes


def test_memory_that_comes_back_while_the_lock_is_held_is_not_lost() -> None:
    """As if an array died inside the pool, by a cycle that the collector finds there."""
    pool = MemoryPool()
    arrays = [pool.empty((10_000,), np.float32)]
    used = pool.stats().used_bytes

    def drop() -> None:
        with pool._lock:
            arrays.clear()

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for itself"
    assert pool.stats()[:2] == (0, used)
    y = pool.empty((10_000,), np.float32)
    assert pool.stats().hits == 1
    del y


FORKED = """
import os, sys, threading
import numpy as np
from ln_array_api_backends.numpy import memory_pool

x = memory_pool.empty((100_000,), np.float32)
x[...] = 7
held, release = threading.Event(), threading.Event()

def hold():
    with memory_pool._lock:
        held.set()
        release.wait(30)

thread = threading.Thread(target=hold)
thread.start()
assert held.wait(10)
child = os.fork()
if child == 0:
    import faulthandler
    faulthandler.dump_traceback_later(10, exit=True)
    y = memory_pool.empty((100_000,), np.float32)
    y[...] = 8
    right = (x == 7).all() and not np.shares_memory(x, y)
    del y
    right = right and memory_pool.stats().free_bytes > 0
    os._exit(0 if right else 3)
_, status = os.waitpid(child, 0)
release.set()
thread.join()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_can_allocate_though_a_thread_held_the_lock() -> None:
    result = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert result.stdout == "0\n", result.stderr
