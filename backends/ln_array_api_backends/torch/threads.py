"""Tasks on torch's own threads.

These wait for the next operation for a while, and would take the processor from others that waited
as well. Torch has them from an implementation of OpenMP that lies in its folder, and is called here
as its compiler would. Where there is none, Numba's threads do the work.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from numba import types

from ..numpy import calls, threads
from ..numpy.tasks import TEAM, THREAD, Task, in_team, on_threads_of_numba

_may_go_parallel = True


def _openmp() -> Any:
    """Torch's OpenMP, or None."""
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted([*folder.glob("libgomp*"), *folder.glob("libiomp5*")]):
        with suppress(OSError, AttributeError):  # of another platform, or of another kind
            library = ctypes.CDLL(str(path))
            library.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p) + 2 * (
                ctypes.c_uint,
            )
            library.GOMP_parallel.restype = None
            return library
    return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


_library = _openmp()
if _library is not None:
    _parallel, _in_team = _library.GOMP_parallel, in_team.address
    _thread, _team = map(_address, (_library.omp_get_thread_num, _library.omp_get_num_threads))


def run(task: Task, words: Any, parts: int) -> None:
    """Run all parts of a task at once, or one after the other in a child of a fork."""
    address, _ = words.buffer_info()
    if not _may_go_parallel:
        task.call(address, 0, 1)
    elif _library is not None:
        words[THREAD], words[TEAM] = _thread, _team
        _parallel(_in_team, address, parts, 0)
    else:
        everywhere = calls.compiled(on_threads_of_numba, types.int64, types.int64)
        if not threads.run(everywhere, address, parts):
            task.call(address, 0, 1)


def _after_fork() -> None:
    # A team of threads does not survive a fork, and torch may have had one.
    global _may_go_parallel
    _may_go_parallel = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
