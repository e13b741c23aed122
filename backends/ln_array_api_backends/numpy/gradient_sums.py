"""Sums over rows for dgamma and dbeta: over runs of rows, over the runs of a block, over blocks.

A run has few rows: if their terms are equal, as gradients of a mean are, all are rounded in one
direction. The sum of two or four equal terms is exact. The sums of the blocks are added in float64;
those of float64 are compensated.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from .compile import CALLED, INLINE
from .doubles import accumulate, sum_in_dtype, zeros_float64
from .simd import fma, lanes, ones
from .vector_memory import (
    data_pointer,
    load,
    load_partial,
    load_vector,
    store,
    store_masked,
    store_partial,
    store_vector,
)


@njit(**INLINE)
def accumulate_params(d, x_hat, dgamma, dbeta, grad_offset, count):
    """Add the terms of one row to dgamma and dbeta, unless these are None."""
    if dgamma is not None:
        dgamma_acc = fma(d, x_hat, load_vector(dgamma, grad_offset, count, d))
        store_vector(dgamma, grad_offset, dgamma_acc, count, False)
    if dbeta is not None:
        dbeta_acc = load_vector(dbeta, grad_offset, count, d) + d
        store_vector(dbeta, grad_offset, dbeta_acc, count, False)


@njit(**INLINE)
def accumulate_params2(d0, x_hat0, d1, x_hat1, dgamma, dbeta, grad_offset):
    """Add the terms of two rows; they are added to each other first, which is exact if equal."""
    if dgamma is not None:
        store(dgamma, grad_offset, load(dgamma, grad_offset, d0) + fma(d1, x_hat1, d0 * x_hat0))
    if dbeta is not None:
        store(dbeta, grad_offset, load(dbeta, grad_offset, d0) + (d0 + d1))


@njit(**INLINE)
def accumulate_params4(d0, x_hat0, d1, x_hat1, d2, x_hat2, d3, x_hat3, dgamma, dbeta, grad_offset):
    """Add the terms of four rows; they are added to each other first."""
    if dgamma is not None:
        terms = fma(d1, x_hat1, d0 * x_hat0) + fma(d3, x_hat3, d2 * x_hat2)
        store(dgamma, grad_offset, load(dgamma, grad_offset, d0) + terms)
    if dbeta is not None:
        store(dbeta, grad_offset, load(dbeta, grad_offset, d0) + ((d0 + d1) + (d2 + d3)))


def empty_or_none(present, length, like):
    """Allocate `length` numbers of the dtype of `like`, or return None if `present` is None."""


@overload(empty_or_none)
def _empty_or_none(present, length, like):
    if isinstance(present, types.NoneType):
        return lambda present, length, like: None
    return lambda present, length, like: np.empty(length, like.dtype)


@njit(**INLINE)
def add_to(sums, grad_offset, value):
    """Add a number to one sum."""
    if sums is not None:
        sums[grad_offset] += value


@njit(**INLINE)
def clear(sums, grad_offset, n):
    """Set n sums from grad_offset on to 0."""
    if sums is not None:
        sums[grad_offset : grad_offset + n] = 0


@njit(**INLINE)
def add_run(sums, grad_offset, run, acc_like):
    """Add the sums of a run of rows to those from grad_offset on."""
    if sums is not None:
        ones_vec = ones(acc_like)
        sums_ptr, run_ptr, n = data_pointer(sums), data_pointer(run), run.size
        for j in range(0, n, lanes(ones_vec)):
            both = load_partial(sums_ptr, grad_offset + j, n - j, ones_vec) + load_partial(
                run_ptr, j, n - j, ones_vec
            )
            store_partial(sums_ptr, grad_offset + j, both, n - j, False)


@njit(**CALLED)
def reduce_partials(partial, blocks):
    """Add the partial sums of all blocks, in order, into those of the first; round once."""
    if partial is not None:
        ones_vec = ones(partial)
        zero, width = zeros_float64(ones_vec), lanes(ones_vec)
        n = partial.size // blocks
        sums = data_pointer(partial)
        j = 0
        while j + 4 * width <= n:
            a, b, c, d = zero, zero, zero, zero
            rest_a, rest_b, rest_c, rest_d = zero, zero, zero, zero
            for i in range(j, j + blocks * n, n):
                a, rest_a = accumulate(a, rest_a, load(sums, i, ones_vec))
                b, rest_b = accumulate(b, rest_b, load(sums, i + width, ones_vec))
                c, rest_c = accumulate(c, rest_c, load(sums, i + 2 * width, ones_vec))
                d, rest_d = accumulate(d, rest_d, load(sums, i + 3 * width, ones_vec))
            store(sums, j, sum_in_dtype(a, rest_a, ones_vec))
            store(sums, j + width, sum_in_dtype(b, rest_b, ones_vec))
            store(sums, j + 2 * width, sum_in_dtype(c, rest_c, ones_vec))
            store(sums, j + 3 * width, sum_in_dtype(d, rest_d, ones_vec))
            j += 4 * width
        while j < n:
            count = min(width, n - j)
            a, rest_a = zero, zero
            for i in range(j, j + blocks * n, n):
                a, rest_a = accumulate(a, rest_a, load_vector(sums, i, count, ones_vec))
            store_masked(sums, j, sum_in_dtype(a, rest_a, ones_vec), count)
            j += width


@njit(**INLINE)
def put_first(sums, into):
    """Copy the sums of the first block to the array `into`, if that is not None."""
    if into is not None:
        for i in range(into.size):
            into[i] = sums[i]


@njit(**INLINE)
def reduce_into(sums, blocks, into):
    """Call `reduce_partials`, and copy the result to the array `into`; both may be None."""
    reduce_partials(sums, blocks)
    put_first(sums, into)
