"""Power norm with signed square roots (exponent 0.5, the default), for every dtype.

The squares of the roots are magnitudes, so the norm is sqrt(sum(abs(x)) + epsilon): the first pass
over a row takes no root. Sums are in float64, compensated for float64 data. Rows are processed in
blocks that fit in L1, and each lane of a vector holds a statistic of one row.
"""

from __future__ import annotations

import math

from numba import njit

from .compile import CALLED, INLINE
from .doubles import accumulate, from_float64, sum_in_float64, zeros_float64
from .row_passes import PREFETCH_BYTES
from .rows_forward import LANES, MAX_BLOCK_BYTES, PREFETCH_MIN_ROW_BYTES
from .simd import (
    absolute,
    all_at_most,
    at_least,
    at_most,
    broadcast,
    dtype_limits,
    first_lane,
    fma,
    lanes,
    negative,
    ones,
    reduce_add,
    reduce_add_rows,
    scalar_like,
    square_root,
    where_not_zero,
    with_sign_of,
    zero_tail,
    zeros,
)
from .tasks import arguments
from .vector_memory import (
    data_pointer,
    elements_to_alignment,
    fence,
    load,
    load_broadcast,
    load_masked,
    prefetch,
    stack_alloc,
    store,
    store_masked,
    store_non_temporal,
)

#: Factor that brings an overflowing float64 sum back into range, and its square root.
DOWNSCALE, SQRT_DOWNSCALE = 2.0**-128, 2.0**-64
#: Numbers in as many float64 vectors as such a vector has lanes.
SUMS = 64


@njit(**INLINE)
def sum_of_magnitudes(x, x_offset, n, ones_vec, scale, prefetch_distance):
    """Return float64 lane sums of abs(x) over n elements, times scale unless that is None."""
    sum_, rest = zeros_float64(ones_vec), zeros_float64(ones_vec)
    width = lanes(ones_vec)
    j = 0
    while j + width <= n:
        if prefetch_distance:
            prefetch(x, x_offset + j + prefetch_distance)
        sum_, rest = accumulate(
            sum_, rest, scaled(absolute(load(x, x_offset + j, ones_vec)), scale)
        )
        j += width
    if j < n:
        values = absolute(load_masked(x, x_offset + j, n - j, ones_vec))
        sum_, rest = accumulate(sum_, rest, scaled(values, scale))
    return sum_in_float64(sum_, rest, ones_vec)


@njit(**INLINE)
def scaled(values, scale):
    """Multiply values by a scale, unless that is None."""
    return values if scale is None else values * scale


@njit(**INLINE)
def scaled_norm(x, x_offset, n, ones_vec, epsilon):
    """Return the norm of a row whose sum of magnitudes overflows float64."""
    downscale = broadcast(scalar_like(DOWNSCALE, ones_vec))
    downscaled_sum = reduce_add(sum_of_magnitudes(x, x_offset, n, ones_vec, downscale, 0))
    return math.sqrt(downscaled_sum + epsilon * DOWNSCALE) / SQRT_DOWNSCALE


@njit(**INLINE)
def signed_roots(x, inv_norm):
    """Return sign(x) * sqrt(abs(x)) * inv_norm; the sign of 0 is +."""
    return with_sign_of(square_root(absolute(x)) * inv_norm, x + zeros(x))


@njit(**INLINE)
def normalise_row(x, y, x_offset, n, inv_norm, non_temporal):
    """Write y for n elements."""
    width = lanes(inv_norm)
    j = 0
    if non_temporal:
        j = min(elements_to_alignment(y, x_offset, inv_norm), n)
        if j:
            store_masked(
                y, x_offset, signed_roots(load_masked(x, x_offset, j, inv_norm), inv_norm), j
            )
        while j + width <= n:
            store_non_temporal(
                y, x_offset + j, signed_roots(load(x, x_offset + j, inv_norm), inv_norm)
            )
            j += width
    else:
        while j + width <= n:
            store(y, x_offset + j, signed_roots(load(x, x_offset + j, inv_norm), inv_norm))
            j += width
    if j < n:
        values = signed_roots(load_masked(x, x_offset + j, n - j, inv_norm), inv_norm)
        store_masked(y, x_offset + j, values, n - j)


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
    prefetch_distance = (
        PREFETCH_BYTES // size if non_temporal or n * size >= PREFETCH_MIN_ROW_BYTES else 0
    )
    rows_per_block = choose_rows_per_block(n, size, lanes64)
    sums, inv_norms = stack_alloc(zero, SUMS), stack_alloc(ones_vec, LANES)
    for begin in range(start, stop, rows_per_block):
        count = min(rows_per_block, stop - begin)
        for k in range(count):
            lane_sums = sum_of_magnitudes(
                x_ptr, (begin + k) * n, n, ones_vec, None, prefetch_distance
            )
            store(sums, k * lanes64, lane_sums)
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
            normalise_row(
                x_ptr, y_ptr, (begin + k) * n, n, load_broadcast(inv_norms, k, ones_vec),
                non_temporal,
            )  # fmt: skip
    if non_temporal:
        fence()


@njit(**INLINE)
def sum_of_products(dy, x, x_offset, n, inv_norm, prefetch_distance):
    """Return float64 lane sums of dy * y over n elements."""
    sum_, rest = zeros_float64(inv_norm), zeros_float64(inv_norm)
    width = lanes(inv_norm)
    j = 0
    while j + width <= n:
        if prefetch_distance:
            prefetch(x, x_offset + j + prefetch_distance)
            prefetch(dy, x_offset + j + prefetch_distance)
        y = signed_roots(load(x, x_offset + j, inv_norm), inv_norm)
        sum_, rest = accumulate(sum_, rest, load(dy, x_offset + j, inv_norm) * y)
        j += width
    if j < n:
        y = signed_roots(load_masked(x, x_offset + j, n - j, inv_norm), inv_norm)
        product = zero_tail(load_masked(dy, x_offset + j, n - j, inv_norm) * y, n - j)
        sum_, rest = accumulate(sum_, rest, product)
    return sum_in_float64(sum_, rest, inv_norm)


@njit(**INLINE)
def dx_constants(inv_norm, neg_projection):
    """Return the constants of `dx_vector`, among them the bounds of two factors.

    A gradient is a number times inv_norm, times half of 1 / sqrt(abs(x)), which is at least
    inv_norm. Either product alone may be out of range. If inv_norm is at least 1, they can be
    multiplied one after the other: neither result is further from 1 than the last. If it is less,
    the two inverses are multiplied first if one is less and the other greater than 1.
    """
    ones_vec = ones_like(inv_norm)
    infinite = broadcast(scalar_like(math.inf, inv_norm))
    is_small = first_lane(inv_norm) < 1
    first = infinite if is_small else ones_vec
    second = ones_vec if is_small else infinite
    return inv_norm, neg_projection, inv_norm * broadcast(scalar_like(0.5, inv_norm)), first, second


@njit(**INLINE)
def ones_like(vector):
    """Return a vector of ones like another."""
    return broadcast(scalar_like(1.0, vector))


@njit(**INLINE)
def dx_vector(dy, x, constants):
    """Return dx of a vector of elements."""
    inv_norm, neg_projection, half, first, second = constants
    sqrt_abs_x = square_root(absolute(x))
    y = with_sign_of(sqrt_abs_x * inv_norm, x)
    inv_sqrt_abs_x = ones_like(sqrt_abs_x) / sqrt_abs_x
    clamped = at_least(at_most(inv_sqrt_abs_x, first), ones_like(sqrt_abs_x))
    dx = fma(y, neg_projection, dy) * (half * clamped) * at_most(inv_sqrt_abs_x, second)
    return where_not_zero(x, dx)


@njit(**INLINE)
def write_dx(dy, x, dx, x_offset, n, constants, non_temporal):
    """Write dx for n elements."""
    ones_vec = constants[0]
    width = lanes(ones_vec)
    j = 0
    if non_temporal:
        j = min(elements_to_alignment(dx, x_offset, ones_vec), n)
        if j:
            values = dx_vector(
                load_masked(dy, x_offset, j, ones_vec),
                load_masked(x, x_offset, j, ones_vec),
                constants,
            )
            store_masked(dx, x_offset, values, j)
        while j + width <= n:
            store_non_temporal(
                dx,
                x_offset + j,
                dx_vector(
                    load(dy, x_offset + j, ones_vec), load(x, x_offset + j, ones_vec), constants
                ),
            )
            j += width
    else:
        while j + width <= n:
            store(
                dx,
                x_offset + j,
                dx_vector(
                    load(dy, x_offset + j, ones_vec), load(x, x_offset + j, ones_vec), constants
                ),
            )
            j += width
    if j < n:
        values = dx_vector(
            load_masked(dy, x_offset + j, n - j, ones_vec),
            load_masked(x, x_offset + j, n - j, ones_vec),
            constants,
        )
        store_masked(dx, x_offset + j, values, n - j)


@njit(**CALLED)
def backward(dy, x, norm, dx, non_temporal, start, stop):
    """Write dx for rows start to stop."""
    n, size = x.shape[1], x.itemsize
    dy_ptr, x_ptr = data_pointer(dy), data_pointer(x)
    norm_ptr, dx_ptr = data_pointer(norm), data_pointer(dx)
    ones_vec = ones(norm)
    zero = zeros_float64(ones_vec)
    lanes64 = lanes(zero)
    prefetch_distance = (
        PREFETCH_BYTES // size if non_temporal or n * size >= PREFETCH_MIN_ROW_BYTES else 0
    )
    rows_per_block = choose_rows_per_block(n, 2 * size, lanes64)
    sums, inv_norms = stack_alloc(zero, SUMS), stack_alloc(ones_vec, LANES)
    projections = stack_alloc(ones_vec, LANES)
    for begin in range(start, stop, rows_per_block):
        count = min(rows_per_block, stop - begin)
        inv_norm = broadcast(1.0) / load_masked(norm_ptr, begin, count, zero)
        store(inv_norms, 0, from_float64(inv_norm, inv_norm, ones_vec))
        for k in range(count):
            lane_sums = sum_of_products(
                dy_ptr, x_ptr, (begin + k) * n, n, load_broadcast(inv_norms, k, ones_vec),
                prefetch_distance,
            )  # fmt: skip
            store(sums, k * lanes64, lane_sums)
        projection = negative(reduce_add_rows(sums, 0, zero))
        store(projections, 0, from_float64(projection, projection, ones_vec))
        for k in range(count):
            constants = dx_constants(
                load_broadcast(inv_norms, k, ones_vec), load_broadcast(projections, k, ones_vec)
            )
            write_dx(dy_ptr, x_ptr, dx_ptr, (begin + k) * n, n, constants, non_temporal)
    if non_temporal:
        fence()


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task


def backward_task(kinds):
    """`backward` as a task."""

    def task(words, part, num_parts):
        backward(*arguments(words, kinds, part, num_parts))

    return task
