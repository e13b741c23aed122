"""Tasks on torch's own threads.

These wait for the next operation for a while, and would take the processor from others that waited
as well. Torch has them from an implementation of OpenMP that lies in its folder, and is called here
as its compiler would. Where there is none, and in a child of a fork, which OpenMP does not survive,
the threads of the NumPy backend do the work.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..numpy.tasks import TEAM, THREAD, Task, in_team
from ..numpy.threads import run_parallel

_has_forked = False


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
    """Run all parts of a task, several at once."""
    address, _ = words.buffer_info()
    if _library is not None and not _has_forked:
        words[THREAD], words[TEAM] = _thread, _team
        _parallel(_in_team, address, parts, 0)
    else:
        run_parallel(address, parts)


def _after_fork() -> None:
    # A team of threads does not survive a fork, and torch may have had one.
    global _has_forked
    _has_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
