"""Contiguous copies of arrays of other layouts, in blocks that stay in the cache.

NumPy copies a transposed array along one of its axes, so each access along the other axis misses
the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .compile import OPTIONS
from .memory import memory_pool
from .vector_memory import data_pointer

_BLOCK = 16  # elements of 4 bytes in a cache line
_SMALLEST = 512 << 10  # bytes of a transposed matrix that does not fit in the cache
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@njit(**OPTIONS)
def _copy(source, target):
    """Copy (K, M, N) block by block of the last two axes."""
    k, m, n = source.shape
    size = source.itemsize
    along_k, along_m = source.strides[0] // size, source.strides[1] // size
    along_n = source.strides[2] // size
    here, there = data_pointer(source), data_pointer(target)
    for outer in range(k):
        for top in range(0, m, _BLOCK):
            for left in range(0, n, _BLOCK):
                for i in range(top, min(top + _BLOCK, m)):
                    first = outer * along_k + i * along_m
                    row = (outer * m + i) * n
                    for j in range(left, min(left + _BLOCK, n)):
                        there[row + j] = here[first + j * along_n]


def ascontiguous(x: np.ndarray) -> np.ndarray:
    """Return an aligned, C-contiguous copy in native byte order, or x if it has that layout."""
    merged = _merged(x)
    if merged is None:
        return np.require(x, x.dtype.newbyteorder("="), ("C", "A", "E"))
    result = memory_pool.empty(x.shape, x.dtype)
    word = _WORDS[x.itemsize]
    _copy(merged.view(word), result.view(word).reshape(merged.shape))
    return result


def _merged(x: np.ndarray) -> Any:
    """Return x as (K, M, N) if only its last two axes are out of order, else None."""
    plain = type(x) is np.ndarray and x.flags.aligned and x.dtype.isnative
    if not plain or x.itemsize not in _WORDS:
        return None
    if 0 in x.strides or x.strides[-1] == x.itemsize:
        return None
    axes = list(zip(x.shape, x.strides, strict=True))
    groups = [axes[0]]
    for length, step in axes[1:]:
        before, before_step = groups[-1]
        if before_step == length * step:
            groups[-1] = (before * length, step)
        else:
            groups.append((length, step))
    if not 2 <= len(groups) <= 3:
        return None
    if groups[-2][0] * groups[-1][0] * x.itemsize < _SMALLEST:
        return None
    shape, strides = zip(*[(1, 0)] * (3 - len(groups)) + groups, strict=True)
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)
