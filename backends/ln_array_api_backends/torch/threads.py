"""Run tasks on torch's own threads.

After an operation, these threads spin for a while, and would compete with a second team of threads
that spins. They belong to the OpenMP library in torch's folder, which is called here as compiled
code calls it. Without such a library, and in a forked child, which OpenMP does not support, the
threads of the NumPy backend run the tasks.
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
    """Return torch's OpenMP library, or None."""
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted([*folder.glob("libgomp*"), *folder.glob("libiomp5*")]):
        with suppress(OSError, AttributeError):  # for another platform, or another library
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
    """Run all parts of a task, in parallel."""
    address, _ = words.buffer_info()
    if _library is not None and not _has_forked:
        words[THREAD], words[TEAM] = _thread, _team
        _parallel(_in_team, address, parts, 0)
    else:
        run_parallel(address, parts)


def _after_fork() -> None:
    # The threads of OpenMP do not exist in the child.
    global _has_forked
    _has_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
