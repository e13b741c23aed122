"""The threads that help callers with their tasks: their number, and when they start and sleep.

A thread without work looks for more for about 0.1 ms, then sleeps.
"""

from __future__ import annotations

import atexit
import os
import threading
from array import array
from contextlib import suppress
from time import perf_counter
from typing import Any

import numba
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

from ln_array_api import _forks

from .atomics import new_lock
from .claims import (
    CACHE_LINE_BYTES,
    CLAIMS,
    LOCK,
    STOPPED,
    THREAD,
    help_callers,
    share,
    wake,
)
from .compile import compiled

#: Most threads that share a task.
_MAX_THREADS = 256
#: Seconds for which callers have no helpers after a long wait for a thread.
_PAUSE_SECONDS = 0.05


class _Pool:
    """Threads, which are started when needed, and the words through which they get work."""

    def __init__(self) -> None:
        line = CACHE_LINE_BYTES
        self._memory = array("q", [0]) * (CLAIMS + (_MAX_THREADS + 1) * line // 8)
        self.address: int = -(-self._memory.buffer_info()[0] // line) * line
        self._first = (self.address - self._memory.buffer_info()[0]) // 8
        self._threads: list[threading.Thread] = []
        self._num_threads = 0
        self._starting = threading.Lock()
        self._stopped = False

    def start(self, count: int) -> int:
        """Start threads until there are `count`; return how many of these there are."""
        if self._num_threads < count:
            help_ = compiled(help_callers, *[types.int64] * 2)
            with self._starting, suppress(RuntimeError):  # none starts while Python shuts down
                while len(self._threads) < count and not self._stopped:
                    self._add_thread(help_)
        return min(count, self._num_threads)

    def _add_thread(self, help_: Any) -> None:
        helper = len(self._threads)
        region = self._first + CLAIMS + 8 * (helper + 1)
        self._memory[region + LOCK] = new_lock()
        name = f"ln_array_api-{helper}"
        thread = threading.Thread(target=help_, args=(self.address, helper), name=name, daemon=True)
        thread.start()
        self._memory[region + THREAD] = thread.native_id or 0
        self._threads.append(thread)
        self._num_threads += 1

    def stop(self) -> None:
        """End all threads, so that none runs a part while Python ends."""
        self._stopped = True
        self._memory[self._first + STOPPED] = 1
        with self._starting:
            if self._threads:
                compiled(wake, *[types.int64] * 2)(self.address, len(self._threads))
            for thread in self._threads:
                thread.join(1)
            self._num_threads = 0


_pool = _Pool()
_alone_until = 0.0


def thread_count() -> int:
    """Return the number of threads: ``NUMBA_NUM_THREADS``, or ``numba.set_num_threads`` if less."""
    # numba.get_num_threads() starts Numba's own threads, so call it only if these run.
    known = parallel._is_initialized
    count: int = numba.get_num_threads() if known else numba.config.NUMBA_NUM_THREADS
    return count


def helpers(max_parts: int) -> int:
    """Start the helpers of a task of at most `max_parts` parts; return their number."""
    count = min(thread_count(), max_parts, _MAX_THREADS)
    if count <= 1 or (_alone_until and perf_counter() < _alone_until):
        return 0
    return _pool.start(count - 1)


def address() -> int:
    """Return the address of the words of the pool."""
    return _pool.address


def work_alone() -> None:
    """Use no helpers for a while, after a caller waited for one that was not running."""
    global _alone_until
    _alone_until = perf_counter() + _PAUSE_SECONDS


def run_parallel(words: int, max_parts: int) -> None:
    """Run the task whose words are at an address, in at most `max_parts` parts."""
    run = compiled(share, *[types.int64] * 4)
    if run(_pool.address, words, max_parts, helpers(max_parts)):
        work_alone()


def _after_fork() -> None:
    global _pool, _alone_until
    _pool, _alone_until = _Pool(), 0.0


def _stop() -> None:
    _pool.stop()


_forks.locks.append(global_compiler_lock)
atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
