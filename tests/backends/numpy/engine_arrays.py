"""Arrays, their bits, and settings that the tests of the NumPy engine share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ml_dtypes
import numba
import numpy as np
import pytest
from ln_array_api_backends.numpy import array_tasks, config, memory
from ln_array_api_backends.numpy.compile import STORAGE_DTYPES

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
#: Of each dtype: bits of the significand, and the least exponent of a normal number.
FORMATS = {
    "float16": (11, -14),
    "bfloat16": (8, -126),
    "float32": (24, -126),
    "float64": (53, -1022),
}
EXACT = np.longdouble
#: A threshold that no array reaches.
NEVER = 1 << 60


def viewed(array: np.ndarray | None) -> Any:
    """Return an array as kernels get it: a view of integers if it has 16 bits."""
    view = None if array is None else STORAGE_DTYPES.get(array.dtype.name)
    return array if view is None else array.view(view)


def bits(array: np.ndarray) -> np.ndarray:
    """Return the elements of an array as unsigned integers."""
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.dtype.itemsize}")


def at(offset: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return ones, at `offset` bytes after a multiple of 64."""
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    buffer = np.zeros(nbytes + 192, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    array = buffer[start : start + nbytes].view(dtype).reshape(shape)
    array[...] = 1
    return array


def moved(array: np.ndarray, offset: int) -> np.ndarray:
    """Return a copy of an array, at `offset` bytes after a multiple of 64."""
    copy = at(offset, array.shape, array.dtype)
    copy[...] = array
    return copy


def some_rows(m: int) -> list[Any]:
    """Return numbers of some of m rows: single ones, consecutive ones, and all in another order."""
    ranges = ((0, 3), (1, m), (3, 20), (m - 2, m))
    return [
        *([row] for row in {*range(7), m - 1}),
        *(np.arange(m)[first:last] for first, last in ranges),
        np.random.default_rng(m).permutation(m),
    ]


def same(actual: Iterable[Any], expected: Iterable[Any]) -> None:
    """Check that arrays have the same bits, dtypes and shapes, or are both None."""
    for own, right in zip(actual, expected, strict=True):
        assert (own is None) == (right is None)
        if right is not None:
            assert own.dtype == right.dtype
            assert own.shape == right.shape
            np.testing.assert_array_equal(bits(own), bits(right))


@contextmanager
def threads_set_to(count: int) -> Iterator[None]:
    """Use so many threads for a while."""
    before = numba.get_num_threads()
    numba.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def set_thresholds(
    monkeypatch: pytest.MonkeyPatch,
    *,
    parallel: int = NEVER,
    non_temporal: int = NEVER,
    pooled: int = NEVER,
    threads: int = 0,
) -> None:
    """Set the sizes in bytes from which arrays are handled so; in parts of any size."""
    monkeypatch.setattr(array_tasks, "PARALLEL_MIN_BYTES", parallel)
    monkeypatch.setattr(array_tasks, "PART_MIN_BYTES", 1)
    monkeypatch.setattr(config, "NON_TEMPORAL_MIN_BYTES", non_temporal)
    monkeypatch.setattr(config, "NON_TEMPORAL_MIN_ROW_BYTES", (0, 0))
    monkeypatch.setattr(memory, "POOLED_MIN_BYTES", pooled)
    if threads:
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", threads)


#: Settings of tests that the results of a call depend on none of them.
SETTINGS = [
    {"parallel": 1, "non_temporal": 1, "pooled": 1, "threads": 2},
    {"parallel": 1, "pooled": 1, "threads": 3},
    {"non_temporal": 1, "pooled": 1, "threads": 2},
    {"parallel": 1, "non_temporal": 1, "pooled": 1, "threads": 7},
]

_BEFORE_A_HOLE = """
import ctypes, mmap
import numpy as np

def before_a_hole(dtype):
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None).mprotect
    assert protect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 0) == 0
    return np.frombuffer(memory, dtype, page // np.dtype(dtype).itemsize)
"""
needs_mprotect = pytest.mark.skipif(sys.platform == "win32", reason="mprotect is of POSIX")


def run_before_a_hole(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with `before_a_hole`, which makes an array with a page behind it that faults."""
    command = [sys.executable, "-c", _BEFORE_A_HOLE + script]
    return subprocess.run(command, capture_output=True, text=True)


PARAMETERS = {"none": (False, False), "gamma": (True, False), "both": (True, True)}


class Forward(NamedTuple):
    """Results of a forward pass over rows."""

    y: np.ndarray
    mean: np.ndarray | None
    rstd: np.ndarray


def parameters(dtype: str, n: int, kind: str = "both") -> list[np.ndarray | None]:
    """Return gamma and beta of n elements; None for those that a kind lacks."""
    rng = np.random.default_rng(n)
    both = rng.standard_normal((2, n)).astype(DTYPES[dtype])
    return [each if wanted else None for each, wanted in zip(both, PARAMETERS[kind], strict=True)]


def unit(values: np.ndarray, dtype: str) -> np.ndarray:
    """What the last place of each number of a dtype is worth."""
    bits, least = FORMATS[dtype]
    _, exponent = np.frexp(values)
    return np.ldexp(EXACT(1), np.maximum(exponent - 1, least) - bits + 1)


def slope_of_tanh(u: np.ndarray) -> np.ndarray:
    """1 - tanh², without cancellation."""
    small = np.exp(-2 * np.abs(u))
    return 4 * small / (1 + small) ** 2
