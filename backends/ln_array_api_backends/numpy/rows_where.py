"""Passes over rows of which only the elements count where a mask is true.

A mask has one byte for each element of x, 0 or 1. Whatever x and dy hold elsewhere is replaced
before it is used. The passes of `row_passes` and `row_gradients` then give the sums, since what is
left out adds 0 to them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .compile import CALLED, INLINE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .gradient_sums import add_to, clear, empty_or_none
from .moments import finalize_moments, moments
from .row_gradients import (
    Gradients,
    Source,
    gradient_lane_sums,
    gradient_sums_of_segments,
    horizontal_sums,
    load_dx_constants,
    write_dx,
)
from .row_passes import SQUARES_PER_FLUSH, Row, RowConstants, normalised, param_row, write_row
from .simd import (
    BYTES,
    broadcast,
    broadcast_like,
    dtype_limits,
    first_lane,
    fma,
    if_present,
    lanes,
    ones,
    reduce_add,
    scalar_like,
    zeros,
)
from .vector_memory import (
    data_pointer,
    load_broadcast,
    load_vector,
    lowest_bit,
    number_of_bits,
    prefetch,
    stack_alloc,
    store,
    store_masked,
    true_bits,
    where_true,
)


class MaskedRow(NamedTuple):
    """A row, or a piece of one, and its mask from element `offset` on."""

    row: Row
    mask: Any
    offset: Any


@njit(**INLINE)
def masked_normalised(masked_row, j, count):
    """Return y of a vector from element j on, or of `count` elements; 0 where the mask is false."""
    values = normalised(masked_row.row, j, count)
    return where_true(masked_row.mask, masked_row.offset + j, count, values)


@njit(**INLINE)
def bits_of(mask, offset, left):
    """Return the bits of the next elements of a row, of which so many are left."""
    return true_bits(mask, offset, None) if left >= BYTES else true_bits(mask, offset, left)


@njit(**CALLED)
def first_of(mask, offset, n):
    """Return the index of the first element that a mask has of a row; -1 if it has none."""
    for j in range(0, n, BYTES):
        bits = bits_of(mask, offset + j, n - j)
        if bits:
            return offset + j + lowest_bit(bits)
    return -1


@njit(**CALLED)
def count_of(mask, offset, n):
    """Return how many elements of a row its mask has."""
    count = 0
    for j in range(0, n, BYTES):
        count += number_of_bits(bits_of(mask, offset + j, n - j))
    return count


@njit(**INLINE)
def approx_mean_of(mean, x, mask, offset, n, first, ones_vec):
    """Return the approximate mean of a row, from four vectors that begin with an element of it.

    For RMS norm, where `mean` is None, return 0. The first element is subtracted before summing, so
    the mean of a constant row is exact.
    """
    if mean is None:
        return scalar_like(0.0, ones_vec)
    start = load_broadcast(x, first, ones_vec)
    total, number = zeros(ones_vec), zeros(ones_vec)
    i, stop = first, min(offset + n, first + 4 * lanes(ones_vec))
    while i < stop:
        count = min(lanes(ones_vec), stop - i)
        total = total + where_true(mask, i, count, load_vector(x, i, count, ones_vec) - start)
        number = number + where_true(mask, i, count, ones_vec)
        i += count
    return first_lane(start) + scalar_like(reduce_add(total) / reduce_add(number), ones_vec)


@njit(**CALLED)
def masked_sums(x, mask, x_offset, n, offset, prefetch_distance):
    """Return the sums of d and of d² over a row, in float64, where d is x + offset."""
    zero, width = zeros(offset), lanes(offset)
    first_order, first_rest = zeros_float64(offset), zeros_float64(offset)
    second_order, second_rest = zeros_float64(offset), zeros_float64(offset)
    j = 0
    while j < n:
        end = min(n, j + SQUARES_PER_FLUSH * 2 * width)
        a, b, aa, bb = zero, zero, zero, zero
        while j + 2 * width <= end:
            i = x_offset + j
            if prefetch_distance:
                prefetch(x, i + prefetch_distance)
                prefetch(x, i + prefetch_distance + width)
            d = where_true(mask, i, None, load_vector(x, i, None, offset) + offset)
            i += width
            e = where_true(mask, i, None, load_vector(x, i, None, offset) + offset)
            a, b, aa, bb = a + d, b + e, fma(d, d, aa), fma(e, e, bb)
            j += 2 * width
        while j < end:
            i, count = x_offset + j, min(width, n - j)
            d = where_true(mask, i, count, load_vector(x, i, count, offset) + offset)
            a, aa = a + d, fma(d, d, aa)
            j += count
        first_order, first_rest = accumulate(first_order, first_rest, a + b)
        second_order, second_rest = accumulate(second_order, second_rest, aa + bb)
    return (
        reduce_add(sum_in_float64(first_order, first_rest, offset)),
        reduce_add(sum_in_float64(second_order, second_rest, offset)),
    )


@njit(**INLINE)
def is_accurate(deviation, square, inv_count, mean, epsilon, ones_vec):
    """Return whether `finalize_moments` needs no more than these sums."""
    mean_residual, variance = moments(deviation, square, inv_count, mean)
    _, least, most = dtype_limits(ones_vec)
    if not least <= variance + epsilon <= most:
        return False
    if mean is None:
        return True
    return not mean_residual * mean_residual > 0.5 * variance


@njit(**CALLED)
def pack(x, mask, offset, n, packed, ones_vec):
    """Copy the elements of a row next to each other, in the dtype in which they are computed."""
    place = 0
    for j in range(offset, offset + n):
        if mask[j]:
            packed[place] = first_lane(load_broadcast(x, j, ones_vec))
            place += 1


@njit(**INLINE)
def masked_moments(x, mask, offset, n, first, mean, epsilon, packed, ones_vec, prefetch_distance):
    """Return what `finalize_moments` does, for the elements that a mask has, from the first on."""
    count = count_of(mask, offset, n)
    approx_mean = approx_mean_of(mean, x, mask, offset, n, first, ones_vec)
    deviation, square = masked_sums(x, mask, offset, n, broadcast(-approx_mean), prefetch_distance)
    inv_count = 1.0 / count
    if not is_accurate(deviation, square, inv_count, mean, epsilon, ones_vec):
        pack(x, mask, offset, n, packed, ones_vec)
    return finalize_moments(
        data_pointer(packed), (0, count, 1, count), inv_count, ones_vec, mean, epsilon, approx_mean,
        deviation, square,
    )  # fmt: skip


@njit(**INLINE)
def masked_constants(x, mask, row, n, out, epsilon, packed, prefetch_distance):
    """Store the statistics of a row, 0 for one without elements; return its `RowConstants`."""
    ones_vec, offset = ones(out.rstd), row * n
    first = first_of(mask, offset, n)
    factor = approx_mean = mean_residual = scaled_rstd = scalar_like(0.0, ones_vec)
    if first >= 0:
        factor, approx_mean, mean_residual, _, scaled_rstd = masked_moments(
            x, mask, offset, n, first, out.mean, epsilon, packed, ones_vec, prefetch_distance
        )
    out.rstd[row] = scaled_rstd * factor
    store_masked_mean(out.mean, row, factor, approx_mean, mean_residual)
    return RowConstants(
        broadcast(factor),
        broadcast(-approx_mean),
        broadcast(scaled_rstd),
        if_present(out.mean, broadcast(-mean_residual * scaled_rstd)),
    )


@njit(**INLINE)
def store_masked_mean(mean, row, factor, approx_mean, mean_residual):
    """Store the mean of a row, 0 for one without elements, unless `mean` is None."""
    if mean is not None:
        if factor == 0:
            mean[row] = 0
        else:
            mean[row] = (approx_mean + mean_residual) / factor


@njit(**CALLED)
def normalise_where(x, n, mask, affine, out, epsilon, start, stop, rstd, prefetch_distance):
    """Normalise the elements of rows that a mask has; y is 0 elsewhere."""
    packed = np.empty(n, rstd.dtype)
    for row in range(start, stop):
        constants = masked_constants(x, mask, row, n, out, epsilon, packed, prefetch_distance)
        write_masked_row(affine.repeat, x, n, mask, affine, out, row, constants)


@njit(**INLINE)
def write_masked_row(repeat, x, n, mask, affine, out, row, constants):
    """Write y of a row; each parameter belongs to `repeat` elements if that is not None."""
    like, offset = constants.scale, row * n
    params = param_row(affine, row)
    if repeat is None:
        current = Row(x, offset, constants, affine.gamma, affine.beta, params * n)
        masked_row = MaskedRow(current, mask, offset)
        write_row(masked_normalised, masked_row, out.y, offset, n, like, out.non_temporal)
    else:
        segments = n // repeat
        for segment in range(segments):
            g = load_broadcast(affine.gamma, params * segments + segment, like)
            b = load_broadcast(affine.beta, params * segments + segment, like)
            i = offset + segment * repeat
            masked_row = MaskedRow(Row(x, i, constants, g, b, 0), mask, i)
            write_row(masked_normalised, masked_row, out.y, i, repeat, like, out.non_temporal)


class Masked(NamedTuple):
    """A mask, and memory for a row of dy, of x and of dx in the accumulation dtype."""

    mask: Any
    dy: Any
    x: Any
    dx: Any


@njit(**INLINE)
def kept(x, mean, mask, offset, count, like):
    """Return a vector of x; where the mask is false, what has a deviation of 0."""
    values = load_vector(x, offset, count, like)
    if mean is None:
        return where_true(mask, offset, count, values)
    return mean + where_true(mask, offset, count, values - mean)


@njit(**CALLED)
def fill(dy, x, offset, n, mean, memory, like):
    """Copy a row of dy and x; what does not count is 0 in dy, and has no deviation in x."""
    width = lanes(like)
    j = 0
    while j + width <= n:
        i = offset + j
        values = where_true(memory.mask, i, None, load_vector(dy, i, None, like))
        store(memory.dy, j, values)
        store(memory.x, j, kept(x, mean, memory.mask, i, None, like))
        j += width
    while j < n:
        count = min(lanes(like), n - j)
        values = load_vector(dy, offset + j, count, like)
        store_masked(memory.dy, j, where_true(memory.mask, offset + j, count, values), count)
        values = kept(x, mean, memory.mask, offset + j, count, like)
        store_masked(memory.x, j, values, count)
        j += count


@njit(**INLINE)
def masked_copy(memory, j, count):
    """Return dx of a vector from element j of a row on; 0 where the mask is false."""
    values, (mask, offset) = load_vector(memory[0], j, count, memory[2]), memory[1]
    return where_true(mask, offset + j, count, values)


@njit(**INLINE)
def store_masked_dx(dx, offset, n, memory, like, non_temporal):
    """Store dx of a row, 0 where the mask is false, unless it is None."""
    if dx is not None:
        row = (memory.dx, (memory.mask, offset), like)
        write_row(masked_copy, row, dx, offset, n, like, non_temporal)


@njit(**CALLED)
def backward_where(
    dy, x, mean, rstd, gamma, mask, dx, dgamma, dbeta, groups, repeat, non_temporal, start, stop,
    grad_offset, gamma_offset,
):  # fmt: skip
    """Do what `rows_backward.backward` does, for the elements that a mask has."""
    n, ones_vec = x.shape[1], ones(rstd)
    dy_ptr, x_ptr, dx_ptr = data_pointer(dy), data_pointer(x), data_pointer(dx)
    mean_ptr, rstd_ptr = data_pointer(mean), data_pointer(rstd)
    row_dy, row_x, row_dx = (
        np.empty(n, rstd.dtype),
        np.empty(n, rstd.dtype),
        empty_or_none(dx, n, rstd),
    )
    memory = Masked(
        data_pointer(mask), data_pointer(row_dy), data_pointer(row_x), data_pointer(row_dx)
    )
    params_per_row = n if repeat is None else n // repeat
    clear(dgamma, grad_offset, groups * params_per_row)
    clear(dbeta, grad_offset, groups * params_per_row)
    means = stack_alloc(ones_vec, 16), stack_alloc(ones_vec, 16), stack_alloc(ones_vec, 16)
    for row in range(start, stop):
        offset, param_offset = row * n, (row % groups) * params_per_row
        mu = load_broadcast(mean_ptr, row, ones_vec)
        r = load_broadcast(rstd_ptr, row, ones_vec)
        count = max(count_of(memory.mask, offset, n), 1)
        fill(dy_ptr, x_ptr, offset, n, mu, memory, ones_vec)
        source = Source(memory.dy, memory.x, 0, data_pointer(gamma), gamma_offset + param_offset)
        store_means(repeat, source, n, mu, r, means, broadcast_like(1.0 / count, ones_vec))
        constants = load_dx_constants(mean_ptr, rstd_ptr, row, *means, 0, ones_vec)
        write_terms(
            repeat, source, n, constants, memory.dx, dgamma, dbeta, grad_offset + param_offset
        )
        store_masked_dx(dx_ptr, offset, n, memory, ones_vec, non_temporal)


@njit(**INLINE)
def store_means(repeat, source, n, mean, rstd, means, inv_count):
    """Store the means of d, g and g * x_hat of a row."""
    if repeat is None:
        sums = horizontal_sums(gradient_lane_sums(source, n, mean, rstd, 0))
    else:
        sums = gradient_sums_of_segments(source, repeat, n // repeat, mean, rstd)
    store(means[0], 0, sums[0] * inv_count)
    store(means[1], 0, sums[1] * inv_count)
    store(means[2], 0, sums[2] * inv_count)


@njit(**INLINE)
def write_terms(repeat, source, n, constants, dx, dgamma, dbeta, grad_offset):
    """Write dx of a row, and add its terms to the sums of dgamma and dbeta."""
    if repeat is None:
        gradients = Gradients(dx, data_pointer(dgamma), data_pointer(dbeta), grad_offset)
        write_dx(source, n, constants, gradients, False, 0)
    else:
        for segment in range(n // repeat):
            g = load_broadcast(source.gamma, source.param_offset + segment, constants.rstd)
            piece = Source(source.dy, source.x, segment * repeat, g, 0)
            a, b = write_dx(piece, repeat, constants, Gradients(dx, None, None, 0), False, 0)
            add_to(dgamma, grad_offset + segment, a)
            add_to(dbeta, grad_offset + segment, b)
