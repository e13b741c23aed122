"""Sums of columns in float64, and what those of float64 lose: None beside all others."""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from .access import load, store
from .compile import INLINE
from .doubles import accumulate, zeros_float64
from .gradient_sums import add_up
from .simd import lanes
from .sweeps import plus, with_lost


@njit(**INLINE)
def add_to(sums, lost, i, values):
    """Add values to sums in float64 from i on; of float64, what that rounds off to what is lost."""
    zero = zeros_float64(values)
    if lost is None:  # of float32
        last = i + lanes(zero)
        new, rest = accumulate(load(sums, i, zero), load(sums, last, zero), values)
        store(sums, last, rest)
    else:
        new, rest = accumulate(load(sums, i, zero), load(lost, i, zero), values)
        store(lost, i, rest)
    store(sums, i, new)


@njit(**INLINE)
def gather(sums, lost, length):
    """Add what was lost, unless that is NaN, and the sums of all blocks into those of the first."""
    if lost is not None:
        for i in range(sums.size):
            if lost[i] == lost[i]:  # as it is not beside an infinity
                sums[i] += lost[i]
    add_up(sums, sums.size // length)


@njit(**INLINE)
def sum_of(sums, start, count):
    """The sum of `count` numbers in float64 from a place on."""
    sum_, lost = 0.0, 0.0
    for i in range(start, start + count):
        sum_, lost = plus(sum_, lost, sums[i])
    return with_lost(sum_, lost)


@njit(**INLINE)
def clear(sums, lost):
    """Set sums and what they have lost to 0."""
    sums[:] = 0
    if lost is not None:
        lost[:] = 0


def lost_of(sums, single):
    """Memory for what sums lose, or None for those of float32; `single` is an array of a dtype."""


@overload(lost_of)
def _lost_of(sums, single):
    if single.dtype == types.float64:
        return lambda sums, single: np.empty_like(sums)
    return lambda sums, single: None
