"""The forward pass over rows, for every dtype, with and without mean, gamma and beta.

Compiled anew for each combination of dtypes. An argument that is None is left out at compile time.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit, prange

from .access import (
    element,
    elements_to_alignment,
    fence,
    invert_roots,
    load,
    load_first,
    memory,
    prefetch,
    scratch,
    store,
    store_first,
    stream,
)
from .simd import (
    beside,
    fma,
    keep_first,
    lanes,
    largest,
    limits,
    magnitude,
    number,
    ones,
    peak,
    splat,
    total,
)

OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
INLINE: dict[str, Any] = {**OPTIONS, "forceinline": True}

#: Terms that a lane adds up before its sum is put aside. The longer, the larger the sum is beside
#: its terms, and the more of each is rounded off: in one direction, if the terms are squares of
#: multiples of a coarse step, as they are where the mean is large.
RUN = 16
#: Bytes of a row up to which the cache holds it and the next; and bytes that are fetched ahead.
LONG, AHEAD = 128 << 10, 8192
#: Rows that are taken at once, and bytes that these may be, so that they stay in the first cache.
AT_ONCE, AT_ONCE_BYTES = 16, 6144


@njit(**INLINE)
def plus(sum_, lost, values):
    """A sum and what its rounding has lost, with values added to them.

    By Knuth, The Art of Computer Programming 2, 4.2.2, theorem B.
    """
    new = sum_ + values
    added = new - sum_
    return new, lost + ((sum_ - (new - added)) + (values - added))


@njit(**INLINE)
def sums(x, o, n, scale, offset, ahead, other):
    """Sums of d and of d² over n elements of x from o on, where d is x * scale + offset.

    If `other` is not None but what `start_row` gives, that row is written meanwhile, so that memory
    is read and written at the same time.
    """
    zero = scale - scale
    width = lanes(scale)
    step = 4 * width
    first_order, first_lost, second_order, second_lost = zero, zero, zero, zero
    written = 0 if other is None else start_row(x, n, other)
    j = 0
    while j + step <= n:
        end = min(n - step, j + (RUN - 1) * step)
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
        if j <= RUN * step:
            first_order, second_order = (a + b) + (c + d), (aa + bb) + (cc + dd)
        else:
            first_order, first_lost = plus(first_order, first_lost, (a + b) + (c + d))
            second_order, second_lost = plus(second_order, second_lost, (aa + bb) + (cc + dd))
    while j + width <= n:
        e = fma(load(x, o + j, scale), scale, offset)
        first_order, second_order = first_order + e, fma(e, e, second_order)
        j += width
    if j < n:
        e = keep_first(fma(load_first(x, o + j, n - j, scale), scale, offset), n - j)
        first_order, second_order = first_order + e, fma(e, e, second_order)
    if other is not None:
        finish_row(x, written, n, other)
    return total(first_order + first_lost), total(second_order + second_lost)


@njit(**INLINE)
def rough_mean(x, o, n, scale):
    """A guess at the mean of a row times scale: the mean of some of it, from four places.

    An element is taken off before summing, so the mean of a constant row is exact.
    """
    width = lanes(scale)
    first = element(x, o, scale) * scale
    if n < 4 * width:
        count = min(n, width)
        sum_ = keep_first(load_first(x, o, count, scale) * scale - first, count)
        return peak(first) + total(sum_) * number(1.0 / count, scale)
    a = load(x, o, scale) * scale - first
    b = load(x, o + n // 4, scale) * scale - first
    c = load(x, o + n // 2, scale) * scale - first
    d = load(x, o + n // 4 * 3, scale) * scale - first
    return peak(first) + total((a + b) + (c + d)) * number(0.25 / width, scale)


@njit(**INLINE)
def moments(deviation, square, share, centered):
    """What a rough mean has missed, and the variance, or the mean square if `centered` is None."""
    missed = deviation * share
    if centered is None:
        return missed, square * share
    return missed, square * share - missed * missed


@njit(**INLINE)
def remainder(x, o, n, share, scale, rough, centered):
    """The moments of a row times scale about a rough mean."""
    deviation, square = sums(x, o, n, scale, splat(-rough), 0, None)
    return moments(deviation, square, share, centered)


@njit(**OPTIONS)
def power_of_two(x, o, n, one, epsilon):
    """What brings a row, or the root of epsilon, close to 1, as far as the dtype holds it."""
    smallest, _, _ = limits(one)
    reach = -math.frexp(smallest)[1] - 22
    width = lanes(one)
    top = one - one
    j = 0
    while j < n:
        top = largest(top, magnitude(load_first(x, o + j, min(width, n - j), one)))
        j += width
    size = max(float(peak(top)), math.sqrt(epsilon))
    if not 0.0 < size < math.inf:
        return 1.0
    return math.ldexp(1.0, min(max(-math.frexp(size)[1], -reach), reach))


@njit(**INLINE)
def x_hat(x, scale, offset, missed, rstd):
    """A vector of normalised elements."""
    deviation = fma(x, scale, offset)
    if missed is not None:
        deviation = deviation - missed
    return deviation * rstd


@njit(**INLINE)
def scaled_and_shifted(values, gamma, beta, p, count):
    """Values times gamma plus beta, from their element p on; `count` of them, or a vector full."""
    if gamma is None:
        if beta is None:
            return values
        if count is None:
            return values + load(beta, p, values)
        return values + load_first(beta, p, count, values)
    if beta is None:
        if count is None:
            return values * load(gamma, p, values)
        return values * load_first(gamma, p, count, values)
    if count is None:
        return fma(values, load(gamma, p, values), load(beta, p, values))
    return fma(values, load_first(gamma, p, count, values), load_first(beta, p, count, values))


@njit(**INLINE)
def normalise(x, y, o, n, scale, offset, missed, rstd, gamma, beta, p, streams):
    """Y for n elements from o on, whose parameters are from p on."""
    width = lanes(scale)
    j = 0
    if streams:
        count = min(elements_to_alignment(y, o, scale), n)
        if count:
            values = x_hat(load_first(x, o, count, scale), scale, offset, missed, rstd)
            values = scaled_and_shifted(values, gamma, beta, p, count)
            store_first(y, o, values, count)
            j = count
        while j + width <= n:
            values = x_hat(load(x, o + j, scale), scale, offset, missed, rstd)
            stream(y, o + j, scaled_and_shifted(values, gamma, beta, p + j, None))
            j += width
    else:
        while j + width <= n:
            values = x_hat(load(x, o + j, scale), scale, offset, missed, rstd)
            store(y, o + j, scaled_and_shifted(values, gamma, beta, p + j, None))
            j += width
    if j < n:
        values = x_hat(load_first(x, o + j, n - j, scale), scale, offset, missed, rstd)
        values = scaled_and_shifted(values, gamma, beta, p + j, n - j)
        store_first(y, o + j, values, n - j)


@njit(**INLINE)
def start_row(x, n, other):
    """Write a row up to where its memory is aligned. Gives how many elements these are."""
    y, o, scale, offset, missed, rstd, gamma, beta, p = other
    count = min(elements_to_alignment(y, o, scale), n)
    if count:
        values = x_hat(load_first(x, o, count, scale), scale, offset, missed, rstd)
        store_first(y, o, scaled_and_shifted(values, gamma, beta, p, count), count)
    return count


@njit(**INLINE)
def write_four(x, i, n, other):
    """Write four vectors of a row from its element i on, if it is that long. Gives the next i."""
    y, o, scale, offset, missed, rstd, gamma, beta, p = other
    width = lanes(scale)
    if i + 4 * width <= n:
        for k in range(4):
            j = i + k * width
            values = x_hat(load(x, o + j, scale), scale, offset, missed, rstd)
            stream(y, o + j, scaled_and_shifted(values, gamma, beta, p + j, None))
        return i + 4 * width
    return i


@njit(**INLINE)
def finish_row(x, i, n, other):
    """Write a row from its element i on."""
    y, o, scale, offset, missed, rstd, gamma, beta, p = other
    normalise(x, y, o + i, n - i, scale, offset, missed, rstd, gamma, beta, p + i, True)


@njit(**OPTIONS)
def rescaled(x, o, n, share, one, centered, epsilon):
    """Factor, rough mean, what that missed, and variance plus epsilon of a row times factor."""
    factor = power_of_two(x, o, n, one, epsilon)
    scale = splat(number(factor, one))
    rough = total(one - one)
    if centered is not None:
        rough = rough_mean(x, o, n, scale)
    missed, variance = remainder(x, o, n, share, scale, rough, centered)
    if centered is not None:
        rough += missed
        missed, variance = remainder(x, o, n, share, scale, rough, centered)
    # An epsilon that underflows is far below the variance, unless the row is constant: then it is
    # what keeps 0 / 0 away.
    smallest, _, _ = limits(one)
    floor = smallest if epsilon > 0 else 0.0
    spread = variance + number(max(epsilon * factor * factor, floor), one)
    return number(factor, one), rough, missed, spread


@njit(**INLINE)
def judged(x, o, n, share, one, centered, epsilon, rough, deviation, square):
    """As `rescaled`, from the sums about a rough mean, as far as these are good enough."""
    missed, variance = moments(deviation, square, share, centered)
    if centered is not None and missed * missed > number(0.5, one) * variance:
        # The guess was far off, and the difference of the two would lose digits.
        rough += missed
        missed, variance = remainder(x, o, n, share, one, rough, centered)
    spread = variance + number(epsilon, one)
    factor = number(1.0, one)
    _, least, most = limits(one)
    if not least <= spread <= most:
        factor, rough, missed, spread = rescaled(x, o, n, share, one, centered, epsilon)
    return factor, rough, missed, spread


@njit(**INLINE)
def keep(mean, rstd, row, factor, rough, missed, root):
    """Put the statistics of a row where they belong."""
    rstd[row, 0] = root * factor
    if mean is not None:
        mean[row, 0] = rough + missed if factor == 1 else (rough + missed) / factor


@njit(**OPTIONS)
def forward(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams, start, stop):
    """Rows start to stop. A row whose squares leave the range of the dtype is scaled first."""
    n, size = x.shape[1], x.itemsize
    per_row = n if repeat is None else n // repeat
    x_, y_ = memory(x), memory(y)
    gamma_, beta_ = memory(gamma), memory(beta)
    ahead = AHEAD // size if streams else 0
    if streams and repeat is None and n * size <= LONG:
        one_by_one(x_, gamma_, beta_, y_, mean, rstd, n, epsilon, groups, ahead, start, stop)
    else:
        several_at_once(
            x_, gamma_, beta_, y_, mean, rstd, n, epsilon, groups, repeat, per_row, streams,
            ahead, max(1, min(AT_ONCE, AT_ONCE_BYTES // (n * size))),
            start, stop,
        )  # fmt: skip


@njit(**OPTIONS)
def one_by_one(x, gamma, beta, y, mean, rstd, n, epsilon, groups, ahead, start, stop):
    """Rows whose results leave the cache: one is written while the next is read."""
    one = ones(rstd)
    unit, share = number(1.0, one), number(1.0 / n, one)
    centered = memory(mean)
    o = start * n
    rough = total(one - one) if mean is None else rough_mean(x, o, n, one)
    deviation, square = sums(x, o, n, one, splat(-rough), 0, None)
    for row in range(start, stop):
        o, p = row * n, (row % groups) * n
        factor, rough, missed, spread = judged(
            x, o, n, share, one, centered, epsilon, rough, deviation, square
        )
        root = unit / math.sqrt(spread)
        keep(mean, rstd, row, factor, rough, missed, root)
        this = (
            y, o, splat(factor), splat(-rough), beside(centered, splat(missed)), splat(root),
            gamma, beta, p,
        )  # fmt: skip
        if row + 1 < stop:
            rough = total(one - one) if mean is None else rough_mean(x, o + n, n, one)
            deviation, square = sums(x, o + n, n, one, splat(-rough), ahead, this)
        else:
            finish_row(x, 0, n, this)
    fence()


@njit(**OPTIONS)
def several_at_once(
    x, gamma, beta, y, mean, rstd, n, epsilon, groups, repeat, per_row, streams, ahead, at_once,
    start, stop,
):  # fmt: skip
    """Rows, a step for several of them after the other.

    The chain of sums, root and quotient is long beside a short row, but those of several overlap.
    """
    one = ones(rstd)
    unit, zero, share = number(1.0, one), number(0.0, one), number(1.0 / n, one)
    centered = memory(mean)
    roughs, misses = scratch(one, AT_ONCE), scratch(one, AT_ONCE)
    roots, factors = scratch(one, AT_ONCE), scratch(one, AT_ONCE)
    for k in range(AT_ONCE):
        roughs[k], roots[k] = zero, unit
    for begin in range(start, stop, at_once):
        count = min(at_once, stop - begin)
        for k in range(count):
            roughs[k] = zero if mean is None else rough_mean(x, (begin + k) * n, n, one)
        for k in range(count):
            o = (begin + k) * n
            deviation, square = sums(x, o, n, one, splat(-roughs[k]), ahead, None)
            factors[k], roughs[k], misses[k], roots[k] = judged(
                x, o, n, share, one, centered, epsilon, roughs[k], deviation, square
            )
        invert_roots(roots, one, AT_ONCE)
        for k in range(count):
            row = begin + k
            rough, missed, root, factor = roughs[k], misses[k], roots[k], factors[k]
            keep(mean, rstd, row, factor, rough, missed, root)
            o, p = row * n, (row % groups) * per_row
            offset, rest = splat(-rough), beside(centered, splat(missed))
            if repeat is None:
                normalise(
                    x, y, o, n, splat(factor), offset, rest, splat(root), gamma, beta, p,
                    streams,
                )  # fmt: skip
            else:
                for segment in range(per_row):
                    g, b = element(gamma, p + segment, one), element(beta, p + segment, one)
                    normalise(
                        x, y, o + segment * repeat, repeat, splat(factor), offset, rest,
                        splat(root), g, b, 0, streams,
                    )  # fmt: skip
    if streams:
        fence()


@njit(parallel=True, **OPTIONS)
def forward_in_parallel(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams, parts):
    """All rows, in parts, which may run at the same time."""
    m = x.shape[0]
    for part in prange(parts):
        start, stop = m * part // parts, m * (part + 1) // parts
        forward(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams, start, stop)
