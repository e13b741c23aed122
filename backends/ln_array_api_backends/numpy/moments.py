"""From the sums over a row to its mean and variance, as good as its dtype can hold them.

What is normalised together lies in so many pieces of n elements, each `apart` elements from the one
before: in one, for rows. `where` is the first element, n, the number of pieces and `apart`.
"""

from __future__ import annotations

import math

from numba import njit

from .access import load_masked, store
from .compile import CALLED, INLINE
from .doubles import from_float64, reciprocal_sqrt, zeros_float64
from .simd import (
    absolute,
    all_at_most,
    broadcast,
    dtype_limits,
    first_lane,
    fmax,
    lanes,
    reduce_add,
    reduce_add_rows,
    reduce_max,
    scalar_like,
)
from .sweeps import plus, rough_mean, sums, with_lost


@njit(**INLINE)
def moments(deviation, square, share, centered):
    """What a rough mean has missed, and the variance, or the mean square if `centered` is None.

    Of numbers in float64, or of vectors of these.
    """
    missed = deviation * share
    if centered is None:
        return missed, square * share
    return missed, square * share - missed * missed


@njit(**INLINE)
def sums_of_pieces(x, where, scale, offset, ahead):
    """Sums of d and of d², where d is x * scale + offset."""
    o, n, pieces, apart = where
    deviation, square = sums(x, o, n, scale, offset, ahead)
    lost_deviation, lost_square = 0.0, 0.0
    for piece in range(1, pieces):
        one_more, square_more = sums(x, o + piece * apart, n, scale, offset, ahead)
        deviation, lost_deviation = plus(deviation, lost_deviation, one_more)
        square, lost_square = plus(square, lost_square, square_more)
    return with_lost(deviation, lost_deviation), with_lost(square, lost_square)


@njit(**CALLED)
def remainder(x, where, share, scale, rough, centered):
    """The moments of x times scale about a rough mean."""
    deviation, square = sums_of_pieces(x, where, scale, broadcast(-rough), 0)
    return moments(deviation, square, share, centered)


@njit(**CALLED)
def power_of_two(x, where, one, epsilon):
    """What brings a row, or the root of epsilon, close to 1, as far as the dtype holds it."""
    smallest, _, _ = dtype_limits(one)
    reach = -math.frexp(smallest)[1] - 22
    width = lanes(one)
    top = one - one
    start, n, pieces, apart = where
    for piece in range(pieces):
        o, j = start + piece * apart, 0
        while j < n:
            top = fmax(top, absolute(load_masked(x, o + j, min(width, n - j), one)))
            j += width
    size = max(float(reduce_max(top)), math.sqrt(epsilon))
    if not 0.0 < size < math.inf:
        return 1.0
    return math.ldexp(1.0, min(max(-math.frexp(size)[1], -reach), reach))


@njit(**INLINE)
def root_of(variance, epsilon, one):
    """1 / sqrt(variance + epsilon)."""
    above = variance + epsilon
    _, least, most = dtype_limits(one)
    if least <= above <= most:  # as for lanes, bit for bit
        return scalar_like(first_lane(reciprocal_sqrt(broadcast(above), one)), one)
    return scalar_like(1.0 / math.sqrt(above), one)


@njit(**CALLED)
def rescaled(x, where, share, one, centered, epsilon):
    """Factor; and of x times factor: rough mean, what that missed, variance, rstd."""
    factor = power_of_two(x, where, one, epsilon)
    unit, scale = scalar_like(1.0, one), broadcast(scalar_like(factor, one))
    rough = reduce_add(one - one)
    if centered is not None:
        rough = rough_mean(x, where[0], where[1], scale)
    missed, variance = remainder(x, where, share, scale, rough, centered)
    if centered is not None:
        rough = scalar_like(rough + missed, one)
        missed, variance = remainder(x, where, share, scale, rough, centered)
    if variance == 0 and epsilon > 0:
        # Epsilon alone makes rstd. That of x times factor may be out of range if x is constant.
        _, _, most = dtype_limits(one)
        alone = min(1.0 / math.sqrt(epsilon), most)
        if alone > most * factor:
            return (
                unit,
                scalar_like(rough / factor, one),
                scalar_like(0.0, one),
                0.0,
                scalar_like(alone, one),
            )
        return (
            scalar_like(factor, one),
            rough,
            scalar_like(missed, one),
            0.0,
            scalar_like(alone / factor, one),
        )
    root = root_of(variance, epsilon * factor * factor, one)
    return scalar_like(factor, one), rough, scalar_like(missed, one), variance, root


@njit(**INLINE)
def judged(x, where, share, one, centered, epsilon, rough, deviation, square):
    """As `rescaled`, from the sums about a rough mean, as far as these are good enough."""
    missed, variance = moments(deviation, square, share, centered)
    if centered is not None and missed * missed > 0.5 * variance:
        # The guess was far off, and the difference of the two would lose digits.
        rough = scalar_like(rough + missed, one)
        missed, variance = remainder(x, where, share, one, rough, centered)
    _, least, most = dtype_limits(one)
    if not least <= variance + epsilon <= most:
        return rescaled(x, where, share, one, centered, epsilon)
    root = root_of(variance, epsilon, one)
    return scalar_like(1.0, one), rough, scalar_like(missed, one), variance, root


@njit(**INLINE)
def judged_lanes(deviation, square, share, one, centered, epsilon, count):
    """What rough means have missed, rstd, and whether both can be used in `count` lanes."""
    _, least, most = dtype_limits(one)
    missed, variance = moments(deviation, square, broadcast(share), centered)
    above = variance + broadcast(epsilon)
    good = all_at_most(broadcast(least), above, count) and all_at_most(
        above, broadcast(most), count
    )
    if centered is not None:
        good = good and all_at_most(missed * missed, broadcast(0.5) * variance, count)
    return missed, reciprocal_sqrt(above, one), good


@njit(**INLINE)
def judged_together(deviation, square, deviations, squares, share, one, centered, epsilon, count):
    """As `judged` for `count` rows, whose sums are the lanes of two vectors of float64 each.

    Gives what rough means have missed and rstd, of a row in each lane, and whether all can be used.
    Puts the sums of the lanes into memory if not.
    """
    some = lanes(deviation[0])
    missed, root, good = judged_lanes(deviation[0], square[0], share, one, centered, epsilon, count)
    more_missed, more_root = missed, root
    if count > some:
        more_missed, more_root, more_good = judged_lanes(
            deviation[1], square[1], share, one, centered, epsilon, count - some
        )
        good = good and more_good
    if not good:
        for half in range(2):
            store(deviations, half * some, deviation[half])
            store(squares, half * some, square[half])
    return from_float64(missed, more_missed, one), from_float64(root, more_root, one), good


@njit(**INLINE)
def totals_in_doubles(numbers, count, one):
    """The totals of vectors of float64 in memory, of `count` rows, in two vectors of float64."""
    zero = zeros_float64(one)
    some = lanes(zero)
    first = reduce_add_rows(numbers, 0, zero)
    return first, reduce_add_rows(numbers, some * some, zero) if count > some else first


@njit(**INLINE)
def mean_of(factor, rough, missed):
    """The mean of x, from that of x times factor."""
    return rough + missed if factor == 1 else (rough + missed) / factor
