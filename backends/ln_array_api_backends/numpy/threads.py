"""Going parallel: on how many threads, and whether it is safe to.

Numba has three layers to run threads on. TBB and OpenMP can be called by many threads at once,
its own work queue cannot. TBB and the work queue survive a fork, GNU's OpenMP does not.
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

_lock = threading.Lock()
_layer = ""  # not known before something has run in parallel
_may_go_parallel = True


def load_tbb() -> None:
    """Load the library of the tbb wheel, which Numba would look for in the system's places only."""
    for name in ("libtbb.so.12", "libtbb.12.dylib"):
        library = Path(sys.prefix) / "lib" / name
        if library.exists():
            with suppress(OSError):  # then Numba takes the next layer
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def number() -> int:
    """How many threads may be used; ``NUMBA_NUM_THREADS`` or ``numba.set_num_threads`` tell."""
    return numba.get_num_threads() if _may_go_parallel else 1


def run(kernel: Callable[..., None], *args: Any) -> None:
    """Call a parallel kernel, one thread at a time where the threads' layer wants that."""
    global _layer
    if _layer in ("tbb", "omp"):
        kernel(*args)
        return
    with _lock:
        kernel(*args)
        _layer = numba.threading_layer()


def _after_fork() -> None:
    global _lock, _may_go_parallel
    _lock = threading.Lock()
    _may_go_parallel = _may_go_parallel and _layer != "omp"


load_tbb()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
