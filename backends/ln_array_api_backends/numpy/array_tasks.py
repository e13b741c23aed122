"""Tasks that are called with NumPy arrays.

Their addresses are read from the arrays themselves, which costs less than to ask for them in
Python. CPython and NumPy promise where they are to everything that was compiled for them: the items
of a tuple come after its header, and the address of an array's elements after its own.
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
#: Words of a task, at most.
_MAX_WORDS = 64
#: Bytes of x from which several threads may be faster than one.
PARALLEL_MIN_BYTES = 128 << 10
#: Bytes of x that a part has at least.
PART_MIN_BYTES = 64 << 10


def _check_layout() -> None:
    values = (np.zeros(3), np.ones(3))
    address = ctypes.c_int64.from_address(id(values) + 8 * (_ITEMS + 1)).value
    elements = ctypes.c_int64.from_address(address + 8 * _ELEMENTS).value
    if elements != values[1].ctypes.data:
        raise BackendError("this Python keeps arrays and tuples in another way than CPython")


_check_layout()


@njit(forceinline=True, **OPTIONS)
def _fill(words: Any, record: int, arrays: int) -> None:
    """Put a task's words, and the addresses of arrays, where they belong.

    The record is how many words there are, how many arrays, where each of these belongs, and the
    words. `arrays` is the address of a tuple.
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
    """Whether several threads may be faster than one for x of so many bytes."""
    return size >= PARALLEL_MIN_BYTES and numba.config.NUMBA_NUM_THREADS > 1


def max_parts_of(count: int, size: int) -> int:
    """How many parts there may be of so many rows or blocks of them, whose x has so many bytes."""
    return min(count, size // PART_MIN_BYTES) if use_threads(size) else 1


def bind(task: Task, num_arrays: int, max_parts: int, size: int) -> Callable[..., None]:
    """A function that runs a task, given the arrays that are the first of its arguments.

    Arrays that are absent are None. Where x has few bytes, the interpreter's lock is kept.
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
