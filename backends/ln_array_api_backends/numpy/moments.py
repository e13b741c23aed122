"""From the sums over a row to its mean and variance, as good as its dtype can hold them.

What is normalised together lies in so many pieces of n elements, each `apart` elements from the one
before: in one, for rows. `where` is the first element, n, the number of pieces and `apart`.
"""

from __future__ import annotations

import math

from numba import njit

from .access import load_first
from .simd import all_at_most, lanes, largest, limits, magnitude, number, peak, splat, total
from .sweeps import INLINE, OPTIONS, plus, rough_mean, sums


@njit(**INLINE)
def moments(deviation, square, share, centered):
    """What a rough mean has missed, and the variance, or the mean square if `centered` is None."""
    missed = deviation * share
    if centered is None:
        return missed, square * share
    return missed, square * share - missed * missed


@njit(**INLINE)
def sums_of_pieces(x, where, scale, offset, ahead):
    """Sums of d and of d², where d is x * scale + offset."""
    o, n, pieces, apart = where
    deviation, square = sums(x, o, n, scale, offset, ahead, None)
    lost_deviation, lost_square = deviation - deviation, square - square
    for piece in range(1, pieces):
        one_more, square_more = sums(x, o + piece * apart, n, scale, offset, ahead, None)
        deviation, lost_deviation = plus(deviation, lost_deviation, one_more)
        square, lost_square = plus(square, lost_square, square_more)
    return deviation + lost_deviation, square + lost_square


@njit(**INLINE)
def remainder(x, where, share, scale, rough, centered):
    """The moments of x times scale about a rough mean."""
    deviation, square = sums_of_pieces(x, where, scale, splat(-rough), 0)
    return moments(deviation, square, share, centered)


@njit(**OPTIONS)
def power_of_two(x, where, one, epsilon):
    """What brings a row, or the root of epsilon, close to 1, as far as the dtype holds it."""
    smallest, _, _ = limits(one)
    reach = -math.frexp(smallest)[1] - 22
    width = lanes(one)
    top = one - one
    start, n, pieces, apart = where
    for piece in range(pieces):
        o, j = start + piece * apart, 0
        while j < n:
            top = largest(top, magnitude(load_first(x, o + j, min(width, n - j), one)))
            j += width
    size = max(float(peak(top)), math.sqrt(epsilon))
    if not 0.0 < size < math.inf:
        return 1.0
    return math.ldexp(1.0, min(max(-math.frexp(size)[1], -reach), reach))


@njit(**INLINE)
def added(epsilon, factor, one):
    """What to add to the variance of x times factor.

    An epsilon that underflows is far below the variance, unless the row is constant: then it is
    what keeps 0 / 0 away.
    """
    smallest, _, _ = limits(one)
    floor = smallest if epsilon > 0 else 0.0
    return number(max(epsilon * factor * factor, floor), one)


@njit(**INLINE)
def spread(variance, epsilon, factor, one):
    """The variance of x times factor, plus epsilon."""
    return variance + added(epsilon, factor, one)


@njit(**OPTIONS)
def rescaled(x, where, share, one, centered, epsilon):
    """Factor; and of x times factor: rough mean, what that missed, variance, that plus epsilon."""
    factor = power_of_two(x, where, one, epsilon)
    scale = splat(number(factor, one))
    rough = total(one - one)
    if centered is not None:
        rough = rough_mean(x, where[0], where[1], scale)
    missed, variance = remainder(x, where, share, scale, rough, centered)
    if centered is not None:
        rough += missed
        missed, variance = remainder(x, where, share, scale, rough, centered)
    return number(factor, one), rough, missed, variance, spread(variance, epsilon, factor, one)


@njit(**INLINE)
def judged(x, where, share, one, centered, epsilon, rough, deviation, square):
    """As `rescaled`, from the sums about a rough mean, as far as these are good enough."""
    missed, variance = moments(deviation, square, share, centered)
    if centered is not None and missed * missed > number(0.5, one) * variance:
        # The guess was far off, and the difference of the two would lose digits.
        rough += missed
        missed, variance = remainder(x, where, share, one, rough, centered)
    factor, above = number(1.0, one), spread(variance, epsilon, 1.0, one)
    _, least, most = limits(one)
    if not least <= above <= most:
        return rescaled(x, where, share, one, centered, epsilon)
    return factor, rough, missed, variance, above


@njit(**INLINE)
def judged_together(deviation, square, share, one, centered, epsilon, count):
    """The same for `count` lanes, of a row each, if the sums of all are good enough: else False.

    Gives what rough means have missed, variances plus epsilon, and whether they can be used.
    """
    missed, variance = moments(deviation, square, splat(share), centered)
    above = variance + splat(added(epsilon, 1.0, one))
    _, least, most = limits(one)
    good = all_at_most(splat(number(least, one)), above, count)
    good = good and all_at_most(above, splat(number(most, one)), count)
    if centered is not None:
        half = splat(number(0.5, one)) * variance
        good = good and all_at_most(missed * missed, half, count)
    return missed, above, good


@njit(**INLINE)
def mean_of(factor, rough, missed):
    """The mean of x, from that of x times factor."""
    return rough + missed if factor == 1 else (rough + missed) / factor
