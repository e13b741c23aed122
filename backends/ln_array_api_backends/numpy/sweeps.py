"""Sweeps over the elements of a row, or of a piece of one: sums, and what is written.

Compiled anew for each combination of dtypes. An argument that is None is left out at compile time.
"""

from __future__ import annotations

from numba import njit

from .access import (
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
from .compile import INLINE, ONCE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .simd import first_lane, fma, lanes, reduce_add, scalar_like, zero_tail, zeros

#: Terms that a lane adds up before its sum is put aside. The longer, the larger the sum is beside
#: its terms, and the more of each is rounded off: in one direction, if the terms are squares of
#: multiples of a coarse step, as they are where the mean is large.
RUN = 16
#: The same for squares of a row: fewer, since beside the square of an outlier all others are
#: rounded off, and if they are alike, in one direction.
RUN_OF_SQUARES = 8
#: Bytes that are fetched ahead where memory is swept.
AHEAD = 8192


@njit(**INLINE)
def plus(sum_, lost, values):
    """A sum and what its rounding has lost, with values added to them.

    By Knuth, The Art of Computer Programming 2, 4.2.2, theorem B.
    """
    new = sum_ + values
    added = new - sum_
    return new, lost + ((sum_ - (new - added)) + (values - added))


@njit(**INLINE)
def with_lost(sum_, lost):
    """A sum with what its rounding has lost, unless that is NaN, as it is beside an infinity."""
    return sum_ + lost if lost == lost else sum_


@njit(**INLINE)
def sums(x, o, n, scale, offset, ahead):
    """As `sums_in_lanes`, added up; of few elements in the dtype of these."""
    if n <= 4 * lanes(scale):
        few, few_squares = sums_of_few(x, o, n, scale, offset)
        return float(reduce_add(few)), float(reduce_add(few_squares))
    first_order, second_order = sums_in_lanes(x, o, n, scale, offset, ahead, None)
    return reduce_add(first_order), reduce_add(second_order)


@njit(**INLINE)
def sums_in_lanes(x, o, n, scale, offset, ahead, other):
    """Sums of d and of d² over n elements of x from o on, where d is x * scale + offset.

    One in each lane of float64, which are to be added up.

    If `other` is not None but what `start_row` gives, that row is written meanwhile, so that memory
    is read and written at the same time.
    """
    zero, wide = zeros(scale), zeros_float64(scale)
    width = lanes(scale)
    step = 4 * width
    first_order, first_rest, second_order, second_rest = wide, wide, wide, wide
    written = 0 if other is None else start_row(x, n, other)
    j = 0
    while j + step <= n:
        end = min(n - step, j + (RUN_OF_SQUARES - 1) * step)
        a, b, c, d = zero, zero, zero, zero
        aa, bb, cc, dd = zero, zero, zero, zero
        while j <= end:
            if ahead:
                prefetch(x, o + j + ahead)
                prefetch(x, o + j + ahead + width)
                prefetch(x, o + j + ahead + 2 * width)
                prefetch(x, o + j + ahead + 3 * width)
            e = fma(load(x, o + j, scale), scale, offset)
            f = fma(load(x, o + j + width, scale), scale, offset)
            g = fma(load(x, o + j + 2 * width, scale), scale, offset)
            h = fma(load(x, o + j + 3 * width, scale), scale, offset)
            if other is not None:
                written = write_four(x, written, n, other)
            a, b, c, d = a + e, b + f, c + g, d + h
            aa, bb, cc, dd = fma(e, e, aa), fma(f, f, bb), fma(g, g, cc), fma(h, h, dd)
            j += step
        first_order, first_rest = accumulate(first_order, first_rest, (a + b) + (c + d))
        second_order, second_rest = accumulate(second_order, second_rest, (aa + bb) + (cc + dd))
    if j < n:
        a, aa = sums_of_few(x, o + j, n - j, scale, offset)
        first_order, first_rest = accumulate(first_order, first_rest, a)
        second_order, second_rest = accumulate(second_order, second_rest, aa)
    if other is not None:
        finish_row(x, written, n, other)
    return (
        sum_in_float64(first_order, first_rest, scale),
        sum_in_float64(second_order, second_rest, scale),
    )


@njit(**INLINE)
def sums_of_few(x, o, n, scale, offset):
    """As `sums_in_lanes` over at most four vectors of elements, and in lanes of their kind."""
    width = lanes(scale)
    a, aa = zeros(scale), zeros(scale)
    j = 0
    while j + width <= n:
        d = fma(load(x, o + j, scale), scale, offset)
        a, aa = a + d, fma(d, d, aa)
        j += width
    if j < n:
        d = zero_tail(fma(load_masked(x, o + j, n - j, scale), scale, offset), n - j)
        a, aa = a + d, fma(d, d, aa)
    return a, aa


@njit(**INLINE)
def rough_mean(x, o, n, scale):
    """A guess at the mean of a row times scale: the mean of some of it, from four places.

    An element is taken off before summing, so the mean of a constant row is exact.
    """
    first = load_broadcast(x, o, scale) * scale
    sum_ = reduce_add(sample(x, o, n, scale, first))
    return first_lane(first) + sum_ * scalar_like(1.0 / sampled(n, scale), scale)


@njit(**INLINE)
def sampled(n, scale):
    """How many elements of a row `rough_mean` looks at."""
    width = lanes(scale)
    return min(n, width) if n < 4 * width else 4 * width


@njit(**INLINE)
def sample(x, o, n, scale, first):
    """The sum of these elements times scale, less the first of them; in lanes."""
    width = lanes(scale)
    if n < 4 * width:
        count = min(n, width)
        return zero_tail(load_masked(x, o, count, scale) * scale - first, count)
    a = load(x, o, scale) * scale - first
    b = load(x, o + n // 4, scale) * scale - first
    c = load(x, o + n // 2, scale) * scale - first
    d = load(x, o + n // 4 * 3, scale) * scale - first
    return (a + b) + (c + d)


@njit(**INLINE)
def x_hat(x, scale, offset, rstd, minus_missed):
    """A vector of normalised elements. The last is what the mean has missed, times minus rstd."""
    deviation = fma(x, scale, offset)
    return deviation * rstd if minus_missed is None else fma(deviation, rstd, minus_missed)


@njit(**INLINE)
def scaled_and_shifted(values, gamma, beta, p, count):
    """Values times gamma plus beta, from their element p on; `count` of them, or a vector full."""
    if gamma is None:
        if beta is None:
            return values
        if count is None:
            return values + load(beta, p, values)
        return values + load_masked(beta, p, count, values)
    if beta is None:
        if count is None:
            return values * load(gamma, p, values)
        return values * load_masked(gamma, p, count, values)
    if count is None:
        return fma(values, load(gamma, p, values), load(beta, p, values))
    return fma(values, load_masked(gamma, p, count, values), load_masked(beta, p, count, values))


@njit(**INLINE)
def normalise(x, y, o, n, scale, offset, rstd, minus_missed, gamma, beta, p, streams):
    """Y for n elements from o on, whose parameters are from p on."""
    width = lanes(scale)
    j = 0
    if streams:
        count = min(elements_to_alignment(y, o, scale), n)
        if count:
            prefetch_shared_line(y, o, n)
            values = x_hat(load_masked(x, o, count, scale), scale, offset, rstd, minus_missed)
            values = scaled_and_shifted(values, gamma, beta, p, count)
            store_masked(y, o, values, count)
            j = count
        while j + width <= n:
            values = x_hat(load(x, o + j, scale), scale, offset, rstd, minus_missed)
            store_non_temporal(y, o + j, scaled_and_shifted(values, gamma, beta, p + j, None))
            j += width
    else:
        while j + width <= n:
            values = x_hat(load(x, o + j, scale), scale, offset, rstd, minus_missed)
            store(y, o + j, scaled_and_shifted(values, gamma, beta, p + j, None))
            j += width
    if j < n:
        values = x_hat(load_masked(x, o + j, n - j, scale), scale, offset, rstd, minus_missed)
        values = scaled_and_shifted(values, gamma, beta, p + j, n - j)
        store_masked(y, o + j, values, n - j)


@njit(**ONCE)
def normalise_both(x, y, o, n, scale, first, second, gamma, beta):
    """As `normalise`, for two rows one after the other that have the same parameters.

    Of each row: offset, rstd, and what the mean has missed, times minus rstd.
    """
    width = lanes(scale)
    j = 0
    while j + width <= n:
        a = x_hat(load(x, o + j, scale), scale, first[0], first[1], first[2])
        b = x_hat(load(x, o + n + j, scale), scale, second[0], second[1], second[2])
        a = scaled_and_shifted(a, gamma, beta, j, None)
        b = scaled_and_shifted(b, gamma, beta, j, None)
        store(y, o + j, a)
        store(y, o + n + j, b)
        j += width
    if j < n:
        rest = n - j
        a = x_hat(load_masked(x, o + j, rest, scale), scale, first[0], first[1], first[2])
        b = x_hat(load_masked(x, o + n + j, rest, scale), scale, second[0], second[1], second[2])
        a = scaled_and_shifted(a, gamma, beta, j, rest)
        b = scaled_and_shifted(b, gamma, beta, j, rest)
        store_masked(y, o + j, a, rest)
        store_masked(y, o + n + j, b, rest)


@njit(**INLINE)
def start_row(x, n, other):
    """Write a row up to where its memory is aligned. Gives how many elements these are.

    They fill a vector with the rest of the row before, which is in `line`.
    """
    y, o, scale, offset, rstd, minus_missed, gamma, beta, p, line, is_first = other
    count = elements_to_alignment(y, o, scale)
    if count:
        values = x_hat(load_masked(x, o, count, scale), scale, offset, rstd, minus_missed)
        values = scaled_and_shifted(values, gamma, beta, p, count)
        if is_first:
            store_masked(y, o, values, count)
        else:
            rest = lanes(scale) - count
            store_masked(line, rest, values, count)
            store_non_temporal(y, o - rest, load(line, 0, scale))
    return count


@njit(**INLINE)
def prefetch_shared_line(y, o, n):
    """Have the line fetched that the next row of n elements, after that at o, shares with another.

    It is stored to in parts, which go through the cache: until it is there, all stores that follow
    would wait, those past the cache too.
    """
    prefetch_to_write(y, o + 2 * n)


@njit(**ONCE)
def write_four(x, i, n, other):
    """Write four vectors of a row from its element i on, if it is that long. Gives the next i."""
    y, o, scale, offset, rstd, minus_missed, gamma, beta, p, _, _ = other
    width = lanes(scale)
    if i + 4 * width <= n:
        for k in range(4):
            j = i + k * width
            values = x_hat(load(x, o + j, scale), scale, offset, rstd, minus_missed)
            store_non_temporal(y, o + j, scaled_and_shifted(values, gamma, beta, p + j, None))
        return i + 4 * width
    return i


@njit(**INLINE)
def finish_row(x, i, n, other):
    """Write whole vectors of a row from its element i on. Gives how many more go to `line`.

    Memory that is stored to in part goes through the cache, and what is stored past it waits.
    """
    y, o, scale, offset, rstd, minus_missed, gamma, beta, p, line, _ = other
    width = lanes(scale)
    while i + width <= n:
        values = x_hat(load(x, o + i, scale), scale, offset, rstd, minus_missed)
        store_non_temporal(y, o + i, scaled_and_shifted(values, gamma, beta, p + i, None))
        i += width
    if i < n:
        values = x_hat(load_masked(x, o + i, n - i, scale), scale, offset, rstd, minus_missed)
        store_masked(line, 0, scaled_and_shifted(values, gamma, beta, p + i, n - i), n - i)
    return n - i
