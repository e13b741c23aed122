"""Passes over the elements of a row, or of a piece of one: sums, and normalised elements.

Each combination of dtypes is compiled. Code for an argument that is None is left out at compile
time. `x_offset` is the index of the first element of x and of y, `param_offset` that of gamma and
beta, and `prefetch_distance` counts elements; 0 means no prefetch.
"""

from __future__ import annotations

from numba import njit

from .compile import INLINE, ONCE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .simd import first_lane, fma, lanes, reduce_add, scalar_like, zero_tail, zeros
from .vector_memory import (
    elements_to_alignment,
    load,
    load_broadcast,
    load_masked,
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

    If `pending_row` is not None, that row is written meanwhile, so that memory is read and written
    at the same time. It is the tuple that `start_row` unpacks.
    """
    zero, zero64 = zeros(scale), zeros_float64(scale)
    width = lanes(scale)
    step = 4 * width
    first_order, first_rest, second_order, second_rest = zero64, zero64, zero64, zero64
    written = 0 if pending_row is None else start_row(x, n, pending_row)
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
                written = write_four_vectors(x, written, n, pending_row)
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
        finish_row(x, written, n, pending_row)
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
        d = zero_tail(fma(load_masked(x, x_offset + j, n - j, scale), scale, offset), n - j)
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
        return zero_tail(load_masked(x, x_offset, count, scale) * scale - first, count)
    a = load(x, x_offset, scale) * scale - first
    b = load(x, x_offset + n // 4, scale) * scale - first
    c = load(x, x_offset + n // 2, scale) * scale - first
    d = load(x, x_offset + n // 4 * 3, scale) * scale - first
    return (a + b) + (c + d)


@njit(**INLINE)
def x_hat(x, scale, offset, rstd, x_hat_correction):
    """Normalise a vector of elements. The correction is -mean_residual * rstd, or None."""
    deviation = fma(x, scale, offset)
    return deviation * rstd if x_hat_correction is None else fma(deviation, rstd, x_hat_correction)


@njit(**INLINE)
def apply_affine(values, gamma, beta, param_offset, count):
    """Return values * gamma + beta for `count` values, or for a whole vector if it is None."""
    if gamma is None:
        if beta is None:
            return values
        if count is None:
            return values + load(beta, param_offset, values)
        return values + load_masked(beta, param_offset, count, values)
    if beta is None:
        if count is None:
            return values * load(gamma, param_offset, values)
        return values * load_masked(gamma, param_offset, count, values)
    if count is None:
        return fma(values, load(gamma, param_offset, values), load(beta, param_offset, values))
    return fma(
        values,
        load_masked(gamma, param_offset, count, values),
        load_masked(beta, param_offset, count, values),
    )


@njit(**INLINE)
def normalise(
    x, y, x_offset, n, scale, offset, rstd, x_hat_correction, gamma, beta, param_offset,
    non_temporal,
):  # fmt: skip
    """Write y for n elements; x_hat is (x * scale + offset) * rstd + x_hat_correction."""
    width = lanes(scale)
    j = 0
    if non_temporal:
        count = min(elements_to_alignment(y, x_offset, scale), n)
        if count:
            prefetch_shared_line(y, x_offset, n)
            values = x_hat(
                load_masked(x, x_offset, count, scale), scale, offset, rstd, x_hat_correction
            )
            values = apply_affine(values, gamma, beta, param_offset, count)
            store_masked(y, x_offset, values, count)
            j = count
        while j + width <= n:
            values = x_hat(load(x, x_offset + j, scale), scale, offset, rstd, x_hat_correction)
            store_non_temporal(
                y, x_offset + j, apply_affine(values, gamma, beta, param_offset + j, None)
            )
            j += width
    else:
        while j + width <= n:
            values = x_hat(load(x, x_offset + j, scale), scale, offset, rstd, x_hat_correction)
            store(y, x_offset + j, apply_affine(values, gamma, beta, param_offset + j, None))
            j += width
    if j < n:
        values = x_hat(
            load_masked(x, x_offset + j, n - j, scale), scale, offset, rstd, x_hat_correction
        )
        values = apply_affine(values, gamma, beta, param_offset + j, n - j)
        store_masked(y, x_offset + j, values, n - j)


@njit(**ONCE)
def normalise_two_rows(x, y, x_offset, n, scale, first, second, gamma, beta):
    """Normalise two consecutive rows with the same parameters.

    `first` and `second` are the offset, rstd and x_hat_correction of each row.
    """
    width = lanes(scale)
    j = 0
    while j + width <= n:
        a = x_hat(load(x, x_offset + j, scale), scale, first[0], first[1], first[2])
        b = x_hat(load(x, x_offset + n + j, scale), scale, second[0], second[1], second[2])
        a = apply_affine(a, gamma, beta, j, None)
        b = apply_affine(b, gamma, beta, j, None)
        store(y, x_offset + j, a)
        store(y, x_offset + n + j, b)
        j += width
    if j < n:
        count = n - j
        a = x_hat(load_masked(x, x_offset + j, count, scale), scale, first[0], first[1], first[2])
        b = x_hat(
            load_masked(x, x_offset + n + j, count, scale), scale, second[0], second[1], second[2]
        )
        a = apply_affine(a, gamma, beta, j, count)
        b = apply_affine(b, gamma, beta, j, count)
        store_masked(y, x_offset + j, a, count)
        store_masked(y, x_offset + n + j, b, count)


@njit(**INLINE)
def start_row(x, n, pending_row):
    """Write the elements of a row before the first aligned address, and return their number.

    Together with the last elements of the row before, which are in `row_tail`, they fill a vector.
    """
    (
        y,
        x_offset,
        scale,
        offset,
        rstd,
        x_hat_correction,
        gamma,
        beta,
        param_offset,
        row_tail,
        is_first,
    ) = pending_row
    count = elements_to_alignment(y, x_offset, scale)
    if count:
        values = x_hat(
            load_masked(x, x_offset, count, scale), scale, offset, rstd, x_hat_correction
        )
        values = apply_affine(values, gamma, beta, param_offset, count)
        if is_first:
            store_masked(y, x_offset, values, count)
        else:
            tail_count = lanes(scale) - count
            store_masked(row_tail, tail_count, values, count)
            store_non_temporal(y, x_offset - tail_count, load(row_tail, 0, scale))
    return count


@njit(**INLINE)
def prefetch_shared_line(y, x_offset, n):
    """Prefetch the cache line that the next row of n elements shares with the row after it.

    Partial stores to it go through the cache. While they miss, all later stores wait, also the
    non-temporal ones.
    """
    prefetch_to_write(y, x_offset + 2 * n)


@njit(**ONCE)
def write_four_vectors(x, i, n, pending_row):
    """Write four vectors of a row from element i on, if it is that long, and return the next i."""
    y, x_offset, scale, offset, rstd, x_hat_correction, gamma, beta, param_offset, _, _ = (
        pending_row
    )
    width = lanes(scale)
    if i + 4 * width <= n:
        for k in range(4):
            j = i + k * width
            values = x_hat(load(x, x_offset + j, scale), scale, offset, rstd, x_hat_correction)
            store_non_temporal(
                y, x_offset + j, apply_affine(values, gamma, beta, param_offset + j, None)
            )
        return i + 4 * width
    return i


@njit(**INLINE)
def finish_row(x, i, n, pending_row):
    """Write whole vectors of a row from element i on; put the rest into `row_tail`, and count it.

    Non-temporal stores wait for partial stores, which go through the cache.
    """
    y, x_offset, scale, offset, rstd, x_hat_correction, gamma, beta, param_offset, row_tail, _ = (
        pending_row
    )
    width = lanes(scale)
    while i + width <= n:
        values = x_hat(load(x, x_offset + i, scale), scale, offset, rstd, x_hat_correction)
        store_non_temporal(
            y, x_offset + i, apply_affine(values, gamma, beta, param_offset + i, None)
        )
        i += width
    if i < n:
        values = x_hat(
            load_masked(x, x_offset + i, n - i, scale), scale, offset, rstd, x_hat_correction
        )
        store_masked(row_tail, 0, apply_affine(values, gamma, beta, param_offset + i, n - i), n - i)
    return n - i
