"""Going parallel: on how many threads, and whether it is safe to.

Numba runs its threads on one of three layers, for the whole process. OpenMP and TBB can be called
by many threads at once, its own work queue cannot. TBB and the work queue survive a fork, GNU's
OpenMP does not: a child of a process that has used it stays on one thread here. OpenMP's threads
wait for more work before they go to sleep, so it comes first: at 512x768, where a call takes 80 µs,
two of TBB's threads are no faster than one, since the second wakes when all is done. Where
children must go parallel, ``NUMBA_THREADING_LAYER=tbb`` has Numba use that.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

from ln_array_api import _forks

_THREAD_SAFE = ("omp", "tbb")
_TURNS = "20000"  # that a thread of OpenMP waits for more work before it sleeps: 0.1 ms or so

_lock = threading.Lock()
_layer = ""  # not known before something has run in parallel
_may_go_parallel = True


def number() -> int:
    """How many threads may be used; ``NUMBA_NUM_THREADS`` or ``numba.set_num_threads`` tell."""
    return numba.get_num_threads() if _may_go_parallel else 1


def run(kernel: Callable[..., None], *args: Any) -> bool:
    """Call a parallel kernel, one thread at a time where the threads' layer wants that.

    Gives False, and has done nothing, in a process that may not go parallel.
    """
    global _layer
    if _layer in _THREAD_SAFE and _may_go_parallel:
        kernel(*args)
    elif not _may_go_parallel:
        return False
    else:
        with _lock:
            kernel(*args)
            _layer = numba.threading_layer()
    return True


def _set_up() -> None:
    """Put OpenMP first, unless somebody has asked for something else."""
    config = numba.config
    asked_for = "NUMBA_THREADING_LAYER_PRIORITY" in os.environ
    if (
        config.THREADING_LAYER == "default"
        and not asked_for
        and config.THREADING_LAYER_PRIORITY == ["tbb", "omp", "workqueue"]
    ):
        config.THREADING_LAYER_PRIORITY = [*_THREAD_SAFE, "workqueue"]
    # The library of the tbb wheel is where Numba does not look.
    library = Path(sys.prefix) / "lib" / "libtbb.so.12"
    if config.THREADING_LAYER != "default" and library.exists():
        with suppress(OSError):  # then Numba says that it has no TBB
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _load_openmp() -> None:
    """Load GNU's OpenMP, whose threads would wait for milliseconds, so that they wait for less.

    It reads its settings once, when it is loaded. In a program whose other parts have threads too,
    NumPy's matrix products for one, threads that wait take the processor from these: the layer
    norms of a sentence encoder slowed it down from 150 ms to 250.
    """
    settings = os.environ
    if "GOMP_SPINCOUNT" in settings or "OMP_WAIT_POLICY" in settings:
        return
    settings["GOMP_SPINCOUNT"] = _TURNS
    try:
        with suppress(OSError):  # then Numba takes another layer, or another OpenMP
            ctypes.CDLL("libgomp.so.1")
    finally:
        del settings["GOMP_SPINCOUNT"]


def _after_fork() -> None:
    global _lock, _may_go_parallel
    _lock = threading.Lock()
    with suppress(ValueError):  # if nothing has run in parallel in the parent, here or elsewhere
        _may_go_parallel = _may_go_parallel and numba.threading_layer() != "omp"


_set_up()
_forks.locks.append(global_compiler_lock)
if sys.platform == "linux":
    _load_openmp()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
