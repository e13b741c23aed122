"""Power norm with signed square roots (exponent 0.5, the default), for every dtype.

The squares of the roots are magnitudes, so the norm is sqrt(sum(abs(x)) + epsilon): the first pass
over a row takes no root. Sums are in float64, compensated for float64 data. Rows are processed in
blocks that fit in L1, and each lane of a vector holds a statistic of one row.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import njit

from .compile import CALLED, INLINE
from .doubles import from_float64, zeros_float64
from .row_passes import accumulate_row, prefetch_distance_of, write_row
from .rows_forward import LANES, MAX_BLOCK_BYTES
from .simd import (
    absolute,
    all_at_most,
    at_least,
    at_most,
    broadcast,
    broadcast_like,
    dtype_limits,
    first_lane,
    fma,
    lanes,
    negative,
    ones,
    reduce_add,
    reduce_add_rows,
    square_root,
    where_not_zero,
    with_sign_of,
    zero_tail,
    zeros,
)
from .tasks import task_of
from .vector_memory import (
    data_pointer,
    fence,
    load,
    load_broadcast,
    load_vector,
    prefetch,
    stack_alloc,
    store,
    store_masked,
)

#: Factor that brings an overflowing float64 sum back into range, and its square root.
DOWNSCALE, SQRT_DOWNSCALE = 2.0**-128, 2.0**-64
#: Numbers in eight float64 vectors, as many as such a vector has lanes.
SUMS = 64


class Row(NamedTuple):
    """Pointers to x and to dy (or None) from element `offset` on, and the constants."""

    x: Any
    dy: Any
    offset: Any
    constants: Any
    """The constants of the function that gets the row."""
    prefetch_distance: Any


@njit(**INLINE)
def magnitudes(row, j, count):
    """Return abs(x) * scale of a vector from element j on, or of `count` elements.

    The constants are a vector of ones and the scale, which may be None.
    """
    ones_vec, scale = row.constants
    if row.prefetch_distance:
        prefetch(row.x, row.offset + j + row.prefetch_distance)
    return scaled(absolute(load_vector(row.x, row.offset + j, count, ones_vec)), scale)


@njit(**INLINE)
def scaled(values, scale):
    """Multiply values by a scale, unless that is None."""
    return values if scale is None else values * scale


@njit(**INLINE)
def scaled_norm(x, x_offset, n, ones_vec, epsilon):
    """Return the norm of a row whose sum of magnitudes overflows float64."""
    downscale = broadcast_like(DOWNSCALE, ones_vec)
    row = Row(x, None, x_offset, (ones_vec, downscale), 0)
    downscaled_sum = reduce_add(accumulate_row(magnitudes, row, n, ones_vec))
    return math.sqrt(downscaled_sum + epsilon * DOWNSCALE) / SQRT_DOWNSCALE


@njit(**INLINE)
def signed_roots(x, inv_norm):
    """Return sign(x) * sqrt(abs(x)) * inv_norm; the sign of 0 is +."""
    return with_sign_of(square_root(absolute(x)) * inv_norm, x + zeros(x))


@njit(**INLINE)
def y_vector(row, j, count):
    """Return y of a vector from element j on, or of `count` elements; the constant is 1 / norm."""
    return signed_roots(load_vector(row.x, row.offset + j, count, row.constants), row.constants)


@njit(**INLINE)
def choose_rows_per_block(n, size, lanes64):
    """Return how many rows of n elements a block has; at most as many as a vector has lanes."""
    return max(1, min(lanes64, MAX_BLOCK_BYTES // (n * size)))


@njit(**CALLED)
def forward(x, y, norm, epsilon, non_temporal, start, stop):
    """Normalise rows start to stop."""
    n, size = x.shape[1], x.itemsize
    x_ptr, y_ptr, norm_ptr = data_pointer(x), data_pointer(y), data_pointer(norm)
    ones_vec = ones(norm)
    zero = zeros_float64(ones_vec)
    lanes64 = lanes(zero)
    (_, _, max_float64), (_, _, max_number) = dtype_limits(zero), dtype_limits(ones_vec)
    prefetch_distance = prefetch_distance_of(n, size, non_temporal)
    rows_per_block = choose_rows_per_block(n, size, lanes64)
    sums, inv_norms = stack_alloc(zero, SUMS), stack_alloc(ones_vec, LANES)
    for begin in range(start, stop, rows_per_block):
        count = min(rows_per_block, stop - begin)
        for k in range(count):
            row = Row(x_ptr, None, (begin + k) * n, (ones_vec, None), prefetch_distance)
            store(sums, k * lanes64, accumulate_row(magnitudes, row, n, ones_vec))
        squared_norm = reduce_add_rows(sums, 0, zero) + broadcast(epsilon)
        norm_vec = square_root(squared_norm)
        store_masked(norm_ptr, begin, from_float64(norm_vec, norm_vec, ones_vec), count)
        # For zeros and a tiny epsilon, y must be 0 although 1 / norm overflows in the dtype.
        # Without epsilon, 1 / norm is infinite in float64 too, and y is NaN.
        inv_norm = broadcast(1.0) / norm_vec
        inv_norm = at_most(inv_norm, broadcast(max_number)) + (inv_norm - inv_norm)
        store(inv_norms, 0, from_float64(inv_norm, inv_norm, ones_vec))
        if not all_at_most(squared_norm, broadcast(max_float64), count):
            for k in range(count):
                if reduce_add(load(sums, k * lanes64, zero)) + epsilon == math.inf:
                    row_norm = scaled_norm(x_ptr, (begin + k) * n, n, ones_vec, epsilon)
                    norm[begin + k] = row_norm
                    inv_norms[k] = 1.0 / row_norm
        for k in range(count):
            x_offset, inv_norm = (begin + k) * n, load_broadcast(inv_norms, k, ones_vec)
            row = Row(x_ptr, None, x_offset, inv_norm, 0)
            write_row(y_vector, row, y_ptr, x_offset, n, ones_vec, non_temporal)
    if non_temporal:
        fence()


@njit(**INLINE)
def products(row, j, count):
    """Return dy * y of a vector from element j on, or of `count` elements, and 0 beyond these."""
    if row.prefetch_distance:
        prefetch(row.x, row.offset + j + row.prefetch_distance)
        prefetch(row.dy, row.offset + j + row.prefetch_distance)
    y = y_vector(row, j, count)
    return zero_beyond(load_vector(row.dy, row.offset + j, count, row.constants) * y, count)


@njit(**INLINE)
def zero_beyond(values, count):
    """Set the lanes from `count` on to 0, unless that is None."""
    return values if count is None else zero_tail(values, count)


@njit(**INLINE)
def dx_constants(inv_norm, neg_projection):
    """Return the constants of `dx_vector`, among them the bounds of two factors.

    A gradient is a number times inv_norm, times half of 1 / sqrt(abs(x)), which is at least
    inv_norm. Either product may be out of range. If inv_norm is at least 1, they can be
    multiplied one after the other: neither result is further from 1 than the last. If it is less,
    the two inverses are multiplied first if one is less and the other greater than 1.
    """
    ones_vec = broadcast_like(1.0, inv_norm)
    infinite = broadcast_like(math.inf, inv_norm)
    is_small = first_lane(inv_norm) < 1
    first = infinite if is_small else ones_vec
    second = ones_vec if is_small else infinite
    return inv_norm, neg_projection, inv_norm * broadcast_like(0.5, inv_norm), first, second


@njit(**INLINE)
def dx_vector(row, j, count):
    """Return dx of a vector from element j on, or of `count` elements."""
    inv_norm, neg_projection, half, first, second = row.constants
    x = load_vector(row.x, row.offset + j, count, inv_norm)
    sqrt_abs_x = square_root(absolute(x))
    y = with_sign_of(sqrt_abs_x * inv_norm, x)
    inv_sqrt_abs_x = broadcast_like(1.0, sqrt_abs_x) / sqrt_abs_x
    clamped = at_least(at_most(inv_sqrt_abs_x, first), broadcast_like(1.0, sqrt_abs_x))
    dy = load_vector(row.dy, row.offset + j, count, inv_norm)
    dx = fma(y, neg_projection, dy) * (half * clamped) * at_most(inv_sqrt_abs_x, second)
    return where_not_zero(x, dx)


@njit(**CALLED)
def backward(dy, x, norm, dx, non_temporal, start, stop):
    """Write dx for rows start to stop."""
    n, size = x.shape[1], x.itemsize
    dy_ptr, x_ptr = data_pointer(dy), data_pointer(x)
    norm_ptr, dx_ptr = data_pointer(norm), data_pointer(dx)
    ones_vec = ones(norm)
    zero = zeros_float64(ones_vec)
    lanes64 = lanes(zero)
    prefetch_distance = prefetch_distance_of(n, size, non_temporal)
    rows_per_block = choose_rows_per_block(n, 2 * size, lanes64)
    sums, inv_norms = stack_alloc(zero, SUMS), stack_alloc(ones_vec, LANES)
    projections = stack_alloc(ones_vec, LANES)
    for begin in range(start, stop, rows_per_block):
        count = min(rows_per_block, stop - begin)
        inv_norm = broadcast(1.0) / load_vector(norm_ptr, begin, count, zero)
        store(inv_norms, 0, from_float64(inv_norm, inv_norm, ones_vec))
        for k in range(count):
            inv_norm_vec = load_broadcast(inv_norms, k, ones_vec)
            row = Row(x_ptr, dy_ptr, (begin + k) * n, inv_norm_vec, prefetch_distance)
            store(sums, k * lanes64, accumulate_row(products, row, n, ones_vec))
        projection = negative(reduce_add_rows(sums, 0, zero))
        store(projections, 0, from_float64(projection, projection, ones_vec))
        for k in range(count):
            constants = dx_constants(
                load_broadcast(inv_norms, k, ones_vec), load_broadcast(projections, k, ones_vec)
            )
            row = Row(x_ptr, dy_ptr, (begin + k) * n, constants, 0)
            write_row(dx_vector, row, dx_ptr, (begin + k) * n, n, ones_vec, non_temporal)
    if non_temporal:
        fence()


forward_task = task_of(forward)
backward_task = task_of(backward)
