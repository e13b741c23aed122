"""The forward pass over rows, for every dtype, with and without mean, gamma and beta.

Compiled anew for each combination of dtypes. An argument that is None is left out at compile time.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit, prange

from .simd import (
    beside,
    element,
    elements_to_alignment,
    fence,
    fma,
    keep_first,
    lanes,
    largest,
    limits,
    load,
    load_first,
    magnitude,
    number,
    ones,
    peak,
    prefetch,
    scratch,
    splat,
    store,
    store_first,
    stream,
    total,
)

OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
INLINE: dict[str, Any] = {**OPTIONS, "forceinline": True}

#: Vectors that a lane adds up before its sum is put aside. A sum of n terms, one after the other,
#: is off by sqrt(n) / 8 ulp or so.
RUN = 64
#: Bytes that a long row is fetched ahead of its use.
AHEAD = 4096
#: Rows that are taken at once, and bytes of x that these may be.
AT_ONCE, AT_ONCE_BYTES = 16, 8192


@njit(**INLINE)
def plus(sum_, lost, values):
    """A sum and what its rounding has lost, with values added to them.

    By Knuth, The Art of Computer Programming 2, 4.2.2, theorem B.
    """
    new = sum_ + values
    added = new - sum_
    return new, lost + ((sum_ - (new - added)) + (values - added))


@njit(**INLINE)
def sums(x, o, n, scale, offset, ahead):
    """Sums of d and of d² over n elements of x from o on, where d is x * scale + offset."""
    zero = scale - scale
    width = lanes(scale)
    step = 4 * width
    first_order, first_lost, second_order, second_lost = zero, zero, zero, zero
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
            a, b, c, d = a + e, b + f, c + g, d + h
            aa, bb, cc, dd = fma(e, e, aa), fma(f, f, bb), fma(g, g, cc), fma(h, h, dd)
            j += step
        first_order, first_lost = plus(first_order, first_lost, (a + b) + (c + d))
        second_order, second_lost = plus(second_order, second_lost, (aa + bb) + (cc + dd))
    while j + width <= n:
        e = fma(load(x, o + j, scale), scale, offset)
        first_order, second_order = first_order + e, fma(e, e, second_order)
        j += width
    if j < n:
        e = keep_first(fma(load_first(x, o + j, n - j, scale), scale, offset), n - j)
        first_order, second_order = first_order + e, fma(e, e, second_order)
    return total(first_order + first_lost), total(second_order + second_lost)


@njit(**INLINE)
def rough_mean(x, o, n, scale, ahead):
    """Mean of a row times scale, as the dtype holds it.

    The first element is taken off before summing, so the mean of a constant row is exact.
    """
    first = peak(element(x, o, scale) * scale)
    return first + sums(x, o, n, scale, splat(-first), ahead)[0] / number(n, scale)


@njit(**INLINE)
def remainder(x, o, n, scale, mean, centered, ahead):
    """What the rough mean of a row times scale has missed, and the variance.

    The latter is the mean square where `centered` is None.
    """
    deviation, square = sums(x, o, n, scale, splat(-mean), ahead)
    count = number(n, scale)
    missed = deviation / count
    if centered is None:
        return missed, square / count
    return missed, square / count - missed * missed


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
def normalise(x, y, o, n, scale, offset, missed, rstd, gamma, beta, p, streams, following):
    """Y for n elements from o on, whose parameters are from p on."""
    width = lanes(scale)
    j = 0
    if streams:
        count = min(elements_to_alignment(y, o), n)
        if count:
            values = x_hat(load_first(x, o, count, scale), scale, offset, missed, rstd)
            values = scaled_and_shifted(values, gamma, beta, p, count)
            store_first(y, o, values, count)
            j = count
        while j + width <= n:
            if following:
                prefetch(x, o + j + following)
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


@njit(**OPTIONS)
def rescaled(x, o, n, one, centered, epsilon):
    """Factor, rough mean, what that missed, and variance plus epsilon of a row times factor."""
    factor = power_of_two(x, o, n, one, epsilon)
    scale = splat(number(factor, one))
    rough = total(one - one)
    if centered is not None:
        rough = rough_mean(x, o, n, scale, 0)
    missed, variance = remainder(x, o, n, scale, rough, centered, 0)
    # An epsilon that underflows is far below the variance, unless the row is constant: then it is
    # what keeps 0 / 0 away.
    smallest, _, _ = limits(one)
    floor = smallest if epsilon > 0 else 0.0
    spread = variance + number(max(epsilon * factor * factor, floor), one)
    return number(factor, one), rough, missed, spread


@njit(**OPTIONS)
def forward(
    x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams,
    start, stop,
):  # fmt: skip
    """Rows start to stop. A row whose squares leave the range least to most is scaled first.

    Short rows are taken several at a time, one step for all of them after the other: the chain of
    sums, root and quotients is long, but those of several rows overlap.
    """
    n = x.shape[1]
    one = ones(rstd)
    unit = number(1.0, one)
    size = x.itemsize
    long = n * size > 2 * AHEAD
    ahead = AHEAD // size if streams and long else 0
    following = n if streams and not long else 0
    per_row = n if repeat is None else n // repeat
    at_once = max(1, min(AT_ONCE, AT_ONCE_BYTES // (n * size)))
    _, least, most = limits(one)
    roughs, misses = scratch(one, AT_ONCE), scratch(one, AT_ONCE)
    roots, factors = scratch(one, AT_ONCE), scratch(one, AT_ONCE)
    for begin in range(start, stop, at_once):
        end = min(begin + at_once, stop)
        for row in range(begin, end):
            roughs[row - begin] = total(one - one)
            if mean is not None:
                roughs[row - begin] = rough_mean(x, row * n, n, one, ahead)
        for row in range(begin, end):
            rough = roughs[row - begin]
            missed, variance = remainder(
                x, row * n, n, one, rough, mean, 0 if mean is not None else ahead
            )
            spread = variance + number(epsilon, one)
            factor = unit
            if not least <= spread <= most:
                factor, rough, missed, spread = rescaled(x, row * n, n, one, mean, epsilon)
            root = unit / math.sqrt(spread)
            rstd[row, 0] = root * factor
            if mean is not None:
                mean[row, 0] = (rough + missed) / factor
            roughs[row - begin] = rough
            misses[row - begin] = missed
            roots[row - begin] = root
            factors[row - begin] = factor
        for row in range(begin, end):
            o, p = row * n, (row % groups) * per_row
            offset, rest = splat(-roughs[row - begin]), beside(mean, splat(misses[row - begin]))
            root, scale = splat(roots[row - begin]), splat(factors[row - begin])
            if repeat is None:
                normalise(x, y, o, n, scale, offset, rest, root, gamma, beta, p, streams, following)
            else:
                for k in range(per_row):
                    g, b = element(gamma, p + k, one), element(beta, p + k, one)
                    normalise(
                        x, y, o + k * repeat, repeat, scale, offset, rest, root, g, b, 0,
                        streams, following,
                    )  # fmt: skip
    if streams:
        fence()


@njit(parallel=True, **OPTIONS)
def forward_in_parallel(
    x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams,
    parts,
):  # fmt: skip
    """All rows, in parts, which may run at the same time."""
    m = x.shape[0]
    for part in prange(parts):
        forward(
            x, gamma, beta, y, mean, rstd, epsilon, groups, repeat,
            streams, m * part // parts, m * (part + 1) // parts,
        )  # fmt: skip
