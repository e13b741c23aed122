"""Tasks that are called with NumPy arrays.

The addresses of elements are read from the array objects, which is faster than asking for them in
Python. Their places are part of the binary interfaces of CPython and NumPy: the items of a tuple
follow its header, and the address of the elements follows the header of an array.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import njit, types

from ln_array_api.errors import BackendError

from . import threads
from .atomics import address_of, stack_words, words_at
from .claims import share
from .compile import OPTIONS, WITH_GIL, compiled
from .tasks import Task, call_task

#: Offsets in words.
_ITEMS, _ELEMENTS = tuple.__basicsize__ // 8, object.__basicsize__ // 8
#: Most words of a task.
_MAX_WORDS = 64
#: Smallest x for which several threads may be faster than one.
PARALLEL_MIN_BYTES = 128 << 10
#: Smallest part of x.
PART_MIN_BYTES = 64 << 10


def _check_layout() -> None:
    values = (np.zeros(3), np.ones(3))
    address = ctypes.c_int64.from_address(id(values) + 8 * (_ITEMS + 1)).value
    elements = ctypes.c_int64.from_address(address + 8 * _ELEMENTS).value
    if elements != values[1].ctypes.data:
        raise BackendError(
            "this Python does not have CPython's layout of tuples and arrays; use CPython"
        )


_check_layout()


@njit(forceinline=True, **OPTIONS)
def _fill(words: Any, record: int, arrays: int) -> None:
    """Copy a task's words, and put in the addresses of arrays.

    The record has the number of words, the number of arrays, the index of the word of each array,
    and the words. `arrays` is the address of a tuple.
    """
    known = words_at(record)
    num_words, num_arrays = known[0], known[1]
    for i in range(num_words):
        words[i] = known[2 + num_arrays + i]
    for i in range(num_arrays):
        place = known[2 + i]
        if place >= 0:
            words[place] = words_at(words_at(arrays)[_ITEMS + i])[_ELEMENTS]


@njit(**WITH_GIL)
def _run_small(record: int, arrays: int) -> None:
    words = stack_words(_MAX_WORDS)
    _fill(words, record, arrays)
    call_task(words, 0, 1)


@njit(**OPTIONS)
def _run(record: int, arrays: int, pool: int, max_parts: int, num_helpers: int) -> Any:
    words = stack_words(_MAX_WORDS)
    _fill(words, record, arrays)
    return share(pool, address_of(words), max_parts, num_helpers)


def use_threads(size: int) -> bool:
    """Return whether several threads may be faster than one for x of `size` bytes."""
    return size >= PARALLEL_MIN_BYTES and numba.config.NUMBA_NUM_THREADS > 1


def max_parts_of(count: int, size: int) -> int:
    """Return the largest number of parts for `count` rows or blocks, where x has `size` bytes."""
    return min(count, size // PART_MIN_BYTES) if use_threads(size) else 1


def bind(task: Task, num_arrays: int, max_parts: int, size: int) -> Callable[..., None]:
    """Return a function that runs a task, given its array arguments, which are the first.

    Absent arrays are None. For small x, the interpreter's lock is kept.
    """
    if len(task.words) > _MAX_WORDS:
        raise ValueError(f"a task has at most {_MAX_WORDS} words, not {len(task.words)}")
    places = task.places[:num_arrays]
    record = array("q", [len(task.words), num_arrays, *places, *task.words])
    address, _ = record.buffer_info()

    if size < PARALLEL_MIN_BYTES:
        run_small = compiled(_run_small, types.int64, types.int64)

        def call_small(*arrays: Any, record: Any = record) -> None:  # the default keeps it alive
            run_small(address, id(arrays))

        return call_small

    run = compiled(_run, *[types.int64] * 5)

    def call(*arrays: Any, record: Any = record) -> None:
        num_helpers = threads.helpers(max_parts) if max_parts > 1 else 0
        if run(address, id(arrays), threads.address(), max_parts, num_helpers):
            threads.work_alone()

    return call
