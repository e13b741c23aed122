"""Passes over instances, which lie as rows, for every dtype: statistics, sums, and what is written.

Batch-instance and switchable norm mix the statistics of instances in between. Each row is swept by
one thread, so its results are the same whatever the others are.
"""

from __future__ import annotations

from numba import njit

from .access import data_pointer, fence, load_broadcast
from .backward import differentiate, sums
from .compile import CALLED, INLINE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .moments import judged, sums_of_pieces
from .simd import broadcast, first_lane, ones, range_scale, reduce_add, scalar_like
from .sweeps import AHEAD, normalise, plus, rough_mean
from .tasks import arguments


@njit(**CALLED)
def statistics(x, mean, missed, var, rstd, epsilon, is_large, start, stop):
    """Rows start to stop. One whose squares leave the range of the dtype is scaled first."""
    n, x_, one, centered = x.shape[1], data_pointer(x), ones(rstd), data_pointer(mean)
    share, ahead = 1.0 / n, AHEAD // x.itemsize if is_large else 0
    zero = reduce_add(one - one)
    for row in range(start, stop):
        where = (row * n, n, 1, n)
        rough = rough_mean(x_, row * n, n, one)
        deviation, square = sums_of_pieces(x_, where, one, broadcast(-rough), ahead)
        factor, rough, rest, variance, root = judged(
            x_, where, share, one, centered, epsilon, rough, deviation, square
        )
        rounded_mean, rest = plus(rough, zero, rest)
        mean[row, 0], missed[row, 0] = rounded_mean / factor, rest / factor
        var[row, 0] = variance / factor / factor
        rstd[row, 0] = root * factor


@njit(**CALLED)
def affine(x, mean, missed, rstd, scale, shift, y, streams, start, stop):
    """Rows start to stop of x̂ * scale + shift."""
    n, x_, y_, one = x.shape[1], data_pointer(x), data_pointer(y), ones(rstd)
    mean_, missed_, rstd_ = data_pointer(mean), data_pointer(missed), data_pointer(rstd)
    scale_, shift_ = data_pointer(scale), data_pointer(shift)
    for row in range(start, stop):
        root = load_broadcast(rstd_, row, one)
        in_range, unscale = range_scale(root)
        normalise(
            x_, y_, row * n, n, in_range, (one - one) - load_broadcast(mean_, row, one) * in_range,
            root * unscale, (one - one) - load_broadcast(missed_, row, one) * root,
            load_broadcast(scale_, row, one), load_broadcast(shift_, row, one), 0, streams,
        )  # fmt: skip
    if streams:
        fence()


@njit(**INLINE)
def total_in_double(values, one):
    """The sum of the lanes, in float64."""
    sum_, rest = accumulate(zeros_float64(one), zeros_float64(one), values)
    return reduce_add(sum_in_float64(sum_, rest, one))


@njit(**CALLED)
def sums_of_rows(dy, x, mean, rstd, missed, of_dy, of_product, is_large, start, stop):
    """What the rounded means of rows have missed, sums of dy, and of dy * x̂."""
    n, dy_, x_, one = x.shape[1], data_pointer(dy), data_pointer(x), ones(rstd)
    mean_, rstd_ = data_pointer(mean), data_pointer(rstd)
    share, ahead = 1.0 / n, AHEAD // x.itemsize if is_large else 0
    for row in range(start, stop):
        root = load_broadcast(rstd_, row, one)
        a, b, c = sums(dy_, x_, row * n, n, load_broadcast(mean_, row, one), root, None, 0, ahead)
        _, unscale = range_scale(root)
        rest, of_row = total_in_double(a, one) * share, total_in_double(b, one)
        missed[row, 0] = scalar_like(rest, one) * first_lane(unscale)
        of_dy[row, 0] = of_row
        of_product[row, 0] = total_in_double(c, one) - rest * first_lane(root * unscale) * of_row


@njit(**CALLED)
def gradient(dy, x, mean, missed, rstd, weight, scale, shift, dx, streams, start, stop):
    """Rows start to stop of rstd * (dy * weight + x̂ * scale + shift)."""
    n, dy_, x_ = x.shape[1], data_pointer(dy), data_pointer(x)
    dx_, one = data_pointer(dx), ones(rstd)
    mean_, missed_, rstd_ = data_pointer(mean), data_pointer(missed), data_pointer(rstd)
    weight_, scale_, shift_ = data_pointer(weight), data_pointer(scale), data_pointer(shift)
    for row in range(start, stop):
        root = load_broadcast(rstd_, row, one)
        this = (
            load_broadcast(mean_, row, one), root,
            (one - one) - load_broadcast(missed_, row, one) * root,
            load_broadcast(shift_, row, one), load_broadcast(scale_, row, one),
        )  # fmt: skip
        g = load_broadcast(weight_, row, one)
        differentiate(dy_, x_, row * n, n, this, g, 0, dx_, None, None, 0, streams, 0)
    if streams:
        fence()


def statistics_task(kinds):
    """`statistics` as a task."""

    def task(words, part, num_parts):
        statistics(*arguments(words, kinds, part, num_parts))

    return task


def affine_task(kinds):
    """`affine` as a task."""

    def task(words, part, num_parts):
        affine(*arguments(words, kinds, part, num_parts))

    return task


def sums_task(kinds):
    """`sums_of_rows` as a task."""

    def task(words, part, num_parts):
        sums_of_rows(*arguments(words, kinds, part, num_parts))

    return task


def gradient_task(kinds):
    """`gradient` as a task."""

    def task(words, part, num_parts):
        gradient(*arguments(words, kinds, part, num_parts))

    return task
