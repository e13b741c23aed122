"""Sums of columns in float64. For float64 data they are compensated; else compensation is None."""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from .compile import INLINE
from .doubles import accumulate, zeros_float64
from .gradient_sums import reduce_partials
from .row_passes import compensated_add, with_compensation
from .simd import lanes
from .vector_memory import load, store


@njit(**INLINE)
def flush_sums(sums, compensation, i, values):
    """Add a vector to the float64 sums from i on; for float64 data, with compensation."""
    zero = zeros_float64(values)
    if compensation is None:  # of float32
        last = i + lanes(zero)
        new, rest = accumulate(load(sums, i, zero), load(sums, last, zero), values)
        store(sums, last, rest)
    else:
        new, rest = accumulate(load(sums, i, zero), load(compensation, i, zero), values)
        store(compensation, i, rest)
    store(sums, i, new)


@njit(**INLINE)
def reduce_blocks(sums, compensation, length):
    """Add the compensation, unless it is NaN, and add the sums of all blocks into the first."""
    if compensation is not None:
        for i in range(sums.size):
            if compensation[i] == compensation[i]:  # not NaN, as for an infinite sum
                sums[i] += compensation[i]
    reduce_partials(sums, sums.size // length)


@njit(**INLINE)
def sum_of(sums, start, count):
    """Return the compensated sum of `count` float64 numbers from `start` on."""
    sum_, compensation = 0.0, 0.0
    for i in range(start, start + count):
        sum_, compensation = compensated_add(sum_, compensation, sums[i])
    return with_compensation(sum_, compensation)


@njit(**INLINE)
def clear(sums, compensation):
    """Set sums and their compensation to 0."""
    sums[:] = 0
    if compensation is not None:
        compensation[:] = 0


def compensation_for(sums, acc_like):
    """Allocate the compensation of sums for float64 data, else None; `acc_like` has that dtype."""


@overload(compensation_for)
def _compensation_for(sums, acc_like):
    if acc_like.dtype == types.float64:
        return lambda sums, acc_like: np.empty_like(sums)
    return lambda sums, acc_like: None
