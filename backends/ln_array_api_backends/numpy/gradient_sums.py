"""Sums over rows for dgamma and dbeta: of a run of rows, of the runs of a block, of the blocks.

Each sum of a run is of few terms, since all may be rounded in one direction if they are alike, as
gradients of a mean are; that of two or four alike is exact. The sums of the blocks are added up in
float64, or with what their rounding loses.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from .access import data_pointer, load, load_masked, store, store_masked
from .compile import CALLED, INLINE
from .doubles import accumulate, sum_in_dtype, zeros_float64
from .simd import fma, lanes, ones


@njit(**INLINE)
def add(d, h, dgamma, dbeta, q, count):
    """Add the terms of dgamma and dbeta to their elements from q on, as far as they are wanted."""
    if count is None:
        if dgamma is not None:
            store(dgamma, q, fma(d, h, load(dgamma, q, d)))
        if dbeta is not None:
            store(dbeta, q, load(dbeta, q, d) + d)
    else:
        if dgamma is not None:
            store_masked(dgamma, q, fma(d, h, load_masked(dgamma, q, count, d)), count)
        if dbeta is not None:
            store_masked(dbeta, q, load_masked(dbeta, q, count, d) + d, count)


@njit(**INLINE)
def add_both(d0, h0, d1, h1, dgamma, dbeta, q):
    """As `add`, for two rows one after the other: their sum is exact where they are alike."""
    if dgamma is not None:
        store(dgamma, q, load(dgamma, q, d0) + fma(d1, h1, d0 * h0))
    if dbeta is not None:
        store(dbeta, q, load(dbeta, q, d0) + (d0 + d1))


@njit(**INLINE)
def add_four(d0, h0, d1, h1, d2, h2, d3, h3, dgamma, dbeta, q):
    """As `add_both`, for four rows."""
    if dgamma is not None:
        terms = fma(d1, h1, d0 * h0) + fma(d3, h3, d2 * h2)
        store(dgamma, q, load(dgamma, q, d0) + terms)
    if dbeta is not None:
        store(dbeta, q, load(dbeta, q, d0) + ((d0 + d1) + (d2 + d3)))


def room_for(sums, n):
    """Memory for n more numbers like some sums, or None for none."""


@overload(room_for)
def _room_for(sums, n):
    if isinstance(sums, types.NoneType):
        return lambda sums, n: None
    return lambda sums, n: np.empty(n, sums.dtype)


@njit(**INLINE)
def add_to(sums, q, value):
    """Add a number to the sum at place q."""
    if sums is not None:
        sums[q] += value


@njit(**INLINE)
def clear(sums, q, n):
    """Set n sums from q on to 0."""
    if sums is not None:
        sums[q : q + n] = 0


@njit(**INLINE)
def add_run(sums, q, run, single):
    """Add the sums of a run of rows to those from q on."""
    if sums is not None:
        one = ones(single)
        sums_, run_, width, n = data_pointer(sums), data_pointer(run), lanes(one), run.size
        j = 0
        while j + width <= n:
            store(sums_, q + j, load(sums_, q + j, one) + load(run_, j, one))
            j += width
        if j < n:
            both = load_masked(sums_, q + j, n - j, one) + load_masked(run_, j, n - j, one)
            store_masked(sums_, q + j, both, n - j)


@njit(**CALLED)
def add_up(partial, blocks):
    """The sums of the blocks into those of the first, in order, and rounded once at the end."""
    if partial is not None:
        one = ones(partial)
        zero, width = zeros_float64(one), lanes(one)
        n = partial.size // blocks
        sums = data_pointer(partial)
        j = 0
        while j + 4 * width <= n:
            a, b, c, d = zero, zero, zero, zero
            rest_a, rest_b, rest_c, rest_d = zero, zero, zero, zero
            for i in range(j, j + blocks * n, n):
                a, rest_a = accumulate(a, rest_a, load(sums, i, one))
                b, rest_b = accumulate(b, rest_b, load(sums, i + width, one))
                c, rest_c = accumulate(c, rest_c, load(sums, i + 2 * width, one))
                d, rest_d = accumulate(d, rest_d, load(sums, i + 3 * width, one))
            store(sums, j, sum_in_dtype(a, rest_a, one))
            store(sums, j + width, sum_in_dtype(b, rest_b, one))
            store(sums, j + 2 * width, sum_in_dtype(c, rest_c, one))
            store(sums, j + 3 * width, sum_in_dtype(d, rest_d, one))
            j += 4 * width
        while j < n:
            count = min(width, n - j)
            a, rest_a = zero, zero
            for i in range(j, j + blocks * n, n):
                a, rest_a = accumulate(a, rest_a, load_masked(sums, i, count, one))
            store_masked(sums, j, sum_in_dtype(a, rest_a, one), count)
            j += width


@njit(**INLINE)
def put_first(sums, into):
    """The sums of the first block into an array of their own, if there is one."""
    if into is not None:
        for i in range(into.size):
            into[i] = sums[i]
