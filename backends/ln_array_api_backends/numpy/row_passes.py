"""Passes over the elements of a row, or of a piece of one: sums, and normalised elements.

Each combination of dtypes is compiled. Code for an argument that is None is left out at compile
time; Numba does that only if a function tests its own argument, not a field of a tuple. `x_offset`
is the index of the first element of x and of y, `param_offset` that of gamma and beta, and
`prefetch_distance` counts elements; 0 means no prefetch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from .compile import INLINE, MAP, ONCE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .simd import absolute, first_lane, fma, fmax, lanes, reduce_add, scalar_like, zero_tail, zeros
from .vector_memory import (
    elements_to_alignment,
    load,
    load_broadcast,
    load_vector,
    prefetch,
    prefetch_to_write,
    store,
    store_masked,
    store_non_temporal,
)

#: Terms that a lane adds up before its sum is added to that in float64. The more terms, the larger
#: the sum compared with each term, and the more is rounded off: in one direction, if the terms are
#: squares of multiples of a coarse step, as they are where the mean is large.
TERMS_PER_FLUSH = 16
#: The same for squares: fewer, since all squares are rounded off after the square of an outlier,
#: and in one direction if they are equal.
SQUARES_PER_FLUSH = 8
#: Prefetch distance in bytes.
PREFETCH_BYTES = 8192
#: Smallest row from which on the next rows are prefetched, also without non-temporal stores.
PREFETCH_MIN_ROW_BYTES = 1024


class RowConstants(NamedTuple):
    """Vectors by which elements are normalised; the same number in all lanes."""

    scale: Any
    offset: Any
    rstd: Any
    x_hat_correction: Any
    """-mean_residual * rstd, or None."""


class Row(NamedTuple):
    """A row of x, or a piece of one, and the constants and parameters that normalise it."""

    x: Any
    x_offset: Any
    constants: RowConstants
    gamma: Any
    """A pointer, or a vector if all elements have the same parameter, or None; so is beta."""
    beta: Any
    param_offset: Any


class PendingRow(NamedTuple):
    """A row whose y is still to be written with non-temporal stores."""

    row: Row
    y: Any
    row_tail: Any
    """Memory for the last elements of a row, which share a vector with the next row."""
    is_first: Any
    """Whether there is no row before it whose tail has to be stored."""


@njit(**INLINE)
def compensated_add(sum_, compensation, values):
    """Add values to a sum and its compensation (two-sum).

    Knuth, The Art of Computer Programming 2, 4.2.2, theorem B.
    """
    new = sum_ + values
    added = new - sum_
    return new, compensation + ((sum_ - (new - added)) + (values - added))


@njit(**INLINE)
def with_compensation(sum_, compensation):
    """Add the compensation to a sum, unless it is NaN, as it is for an infinite sum."""
    return sum_ + compensation if compensation == compensation else sum_


@njit(**INLINE)
def deviation_sums(x, x_offset, n, scale, offset, prefetch_distance):
    """Return the horizontal `deviation_lane_sums`; few elements are summed in their own dtype."""
    if n <= 4 * lanes(scale):
        few, few_squares = short_deviation_sums(x, x_offset, n, scale, offset)
        return float(reduce_add(few)), float(reduce_add(few_squares))
    first_order, second_order = deviation_lane_sums(
        x, x_offset, n, scale, offset, prefetch_distance, None
    )
    return reduce_add(first_order), reduce_add(second_order)


@njit(**INLINE)
def deviation_lane_sums(x, x_offset, n, scale, offset, prefetch_distance, pending_row):
    """Return the sums of d and of d² over n elements of x, where d is x * scale + offset.

    Each lane of the two float64 vectors holds a partial sum.

    If `pending_row` is not None, it is a `PendingRow` that is written meanwhile, so that memory is
    read and written at the same time.
    """
    zero, zero64 = zeros(scale), zeros_float64(scale)
    width = lanes(scale)
    step = 4 * width
    first_order, first_rest, second_order, second_rest = zero64, zero64, zero64, zero64
    written = 0 if pending_row is None else start_row(n, pending_row)
    j = 0
    while j + step <= n:
        end = min(n - step, j + (SQUARES_PER_FLUSH - 1) * step)
        a, b, c, d = zero, zero, zero, zero
        aa, bb, cc, dd = zero, zero, zero, zero
        while j <= end:
            if prefetch_distance:
                prefetch(x, x_offset + j + prefetch_distance)
                prefetch(x, x_offset + j + prefetch_distance + width)
                prefetch(x, x_offset + j + prefetch_distance + 2 * width)
                prefetch(x, x_offset + j + prefetch_distance + 3 * width)
            e = fma(load(x, x_offset + j, scale), scale, offset)
            f = fma(load(x, x_offset + j + width, scale), scale, offset)
            g = fma(load(x, x_offset + j + 2 * width, scale), scale, offset)
            h = fma(load(x, x_offset + j + 3 * width, scale), scale, offset)
            if pending_row is not None:
                written = write_four_vectors(written, n, pending_row)
            a, b, c, d = a + e, b + f, c + g, d + h
            aa, bb, cc, dd = fma(e, e, aa), fma(f, f, bb), fma(g, g, cc), fma(h, h, dd)
            j += step
        first_order, first_rest = accumulate(first_order, first_rest, (a + b) + (c + d))
        second_order, second_rest = accumulate(second_order, second_rest, (aa + bb) + (cc + dd))
    if j < n:
        a, aa = short_deviation_sums(x, x_offset + j, n - j, scale, offset)
        first_order, first_rest = accumulate(first_order, first_rest, a)
        second_order, second_rest = accumulate(second_order, second_rest, aa)
    if pending_row is not None:
        finish_row(written, n, pending_row)
    return (
        sum_in_float64(first_order, first_rest, scale),
        sum_in_float64(second_order, second_rest, scale),
    )


@njit(**INLINE)
def short_deviation_sums(x, x_offset, n, scale, offset):
    """Return `deviation_lane_sums` of at most four vectors of elements, in their own dtype."""
    width = lanes(scale)
    a, aa = zeros(scale), zeros(scale)
    j = 0
    while j + width <= n:
        d = fma(load(x, x_offset + j, scale), scale, offset)
        a, aa = a + d, fma(d, d, aa)
        j += width
    if j < n:
        d = zero_tail(fma(load_vector(x, x_offset + j, n - j, scale), scale, offset), n - j)
        a, aa = a + d, fma(d, d, aa)
    return a, aa


@njit(**INLINE)
def compute_approx_mean(x, x_offset, n, scale):
    """Return the approximate mean of x * scale: the mean of a sample of four vectors of the row.

    The first element is subtracted before summing, so the mean of a constant row is exact.
    """
    first = load_broadcast(x, x_offset, scale) * scale
    sum_ = reduce_add(sample_sum(x, x_offset, n, scale, first))
    return first_lane(first) + sum_ * scalar_like(1.0 / sample_size(n, scale), scale)


@njit(**INLINE)
def approx_mean_or_zero(mean, x, x_offset, n, scale):
    """Return the approximate mean of a row, or 0 for RMS norm, where `mean` is None."""
    if mean is None:
        return scalar_like(0.0, scale)
    return compute_approx_mean(x, x_offset, n, scale)


@njit(**INLINE)
def largest_magnitudes(max_abs, x, x_offset, n):
    """Return the larger of each lane and the magnitudes of n elements in it; NaN does not count."""
    width = lanes(max_abs)
    j = 0
    while j < n:
        values = load_vector(x, x_offset + j, min(width, n - j), max_abs)
        max_abs = fmax(max_abs, absolute(values))
        j += width
    return max_abs


@njit(**INLINE)
def prefetch_distance_of(n, size, non_temporal):
    """Return how many elements of `size` bytes ahead the next rows of n elements are prefetched."""
    return PREFETCH_BYTES // size if non_temporal or n * size >= PREFETCH_MIN_ROW_BYTES else 0


@njit(**INLINE)
def sample_size(n, scale):
    """Return how many elements of a row `compute_approx_mean` reads."""
    width = lanes(scale)
    return min(n, width) if n < 4 * width else 4 * width


@njit(**INLINE)
def sample_sum(x, x_offset, n, scale, first):
    """Return the lane sums of x * scale - first over the sample of a row."""
    width = lanes(scale)
    if n < 4 * width:
        count = min(n, width)
        return zero_tail(load_vector(x, x_offset, count, scale) * scale - first, count)
    a = load(x, x_offset, scale) * scale - first
    b = load(x, x_offset + n // 4, scale) * scale - first
    c = load(x, x_offset + n // 2, scale) * scale - first
    d = load(x, x_offset + n // 4 * 3, scale) * scale - first
    return (a + b) + (c + d)


@njit(**INLINE)
def x_hat(x, constants):
    """Normalise a vector of elements."""
    deviation = fma(x, constants.scale, constants.offset)
    return corrected(deviation, constants.rstd, constants.x_hat_correction)


@njit(**INLINE)
def corrected(deviation, rstd, x_hat_correction):
    """Return deviation * rstd + x_hat_correction, which may be None."""
    return deviation * rstd if x_hat_correction is None else fma(deviation, rstd, x_hat_correction)


@njit(**INLINE)
def param_row(affine, row):
    """Return which row of parameters a row has."""
    return row // affine.span % affine.groups


@njit(**INLINE)
def apply_affine(values, gamma, beta, param_offset, count):
    """Return values * gamma + beta for `count` values, or for a whole vector if it is None."""
    if gamma is None:
        if beta is None:
            return values
        return values + load_vector(beta, param_offset, count, values)
    if beta is None:
        return values * load_vector(gamma, param_offset, count, values)
    return fma(
        values,
        load_vector(gamma, param_offset, count, values),
        load_vector(beta, param_offset, count, values),
    )


@njit(**INLINE)
def normalised(row, j, count):
    """Return y of a vector from element j of a `Row` on, or of `count` elements."""
    values = x_hat(load_vector(row.x, row.x_offset + j, count, row.constants.scale), row.constants)
    return apply_affine(values, row.gamma, row.beta, row.param_offset + j, count)


@njit(**MAP)
def write_row(vector_at, row, y, y_offset, n, like, non_temporal):
    """Write n elements: `vector_at(row, j, count)` is the vector from element j on.

    `count` is None for a whole vector, else the number of elements.
    """
    width = lanes(like)
    j = 0
    if non_temporal:
        j = min(elements_to_alignment(y, y_offset, like), n)
        if j:
            prefetch_shared_line(y, y_offset, n)
            store_masked(y, y_offset, vector_at(row, 0, j), j)
        while j + width <= n:
            store_non_temporal(y, y_offset + j, vector_at(row, j, None))
            j += width
    else:
        while j + width <= n:
            store(y, y_offset + j, vector_at(row, j, None))
            j += width
    if j < n:
        store_masked(y, y_offset + j, vector_at(row, j, n - j), n - j)


@njit(**MAP)
def accumulate_row(terms_at, row, n, like):
    """Return the float64 lane sums of `terms_at(row, j, count)`, as in `write_row`."""
    sum_, rest = zeros_float64(like), zeros_float64(like)
    width = lanes(like)
    j = 0
    while j + width <= n:
        sum_, rest = accumulate(sum_, rest, terms_at(row, j, None))
        j += width
    if j < n:
        sum_, rest = accumulate(sum_, rest, terms_at(row, j, n - j))
    return sum_in_float64(sum_, rest, like)


@njit(**ONCE)
def normalise_two_rows(first, second, y, n):
    """Normalise two consecutive rows with the same parameters."""
    like = first.constants.scale
    width = lanes(like)
    j = 0
    while j + width <= n:
        a, b = normalised(first, j, None), normalised(second, j, None)
        store(y, first.x_offset + j, a)
        store(y, second.x_offset + j, b)
        j += width
    if j < n:
        count = n - j
        a, b = normalised(first, j, count), normalised(second, j, count)
        store_masked(y, first.x_offset + j, a, count)
        store_masked(y, second.x_offset + j, b, count)


@njit(**INLINE)
def start_row(n, pending_row):
    """Write the elements of a row before the first aligned address, and return their number.

    Together with the last elements of the row before, which are in `row_tail`, they fill a vector.
    """
    (row, y, row_tail, is_first), like = pending_row, pending_row.row.constants.scale
    count = elements_to_alignment(y, row.x_offset, like)
    if count:
        values = normalised(row, 0, count)
        if is_first:
            store_masked(y, row.x_offset, values, count)
        else:
            tail_count = lanes(like) - count
            store_masked(row_tail, tail_count, values, count)
            store_non_temporal(y, row.x_offset - tail_count, load(row_tail, 0, like))
    return count


@njit(**INLINE)
def prefetch_shared_line(y, x_offset, n):
    """Prefetch the cache line that the next row of n elements shares with the row after it.

    Partial stores to it go through the cache. While they miss, all later stores wait, also the
    non-temporal ones.
    """
    prefetch_to_write(y, x_offset + 2 * n)


@njit(**ONCE)
def write_four_vectors(i, n, pending_row):
    """Write four vectors of a row from element i on, if it is that long, and return the next i."""
    row, y = pending_row.row, pending_row.y
    width = lanes(row.constants.scale)
    if i + 4 * width <= n:
        for k in range(4):
            j = i + k * width
            store_non_temporal(y, row.x_offset + j, normalised(row, j, None))
        return i + 4 * width
    return i


@njit(**INLINE)
def finish_row(i, n, pending_row):
    """Write whole vectors of a row from element i on; put the rest into `row_tail`, and count it.

    Non-temporal stores wait for partial stores, which go through the cache.
    """
    row, y = pending_row.row, pending_row.y
    width = lanes(row.constants.scale)
    while i + width <= n:
        store_non_temporal(y, row.x_offset + i, normalised(row, i, None))
        i += width
    if i < n:
        store_masked(pending_row.row_tail, 0, normalised(row, i, n - i), n - i)
    return n - i
