"""Passes over columns, some of which beside each other are normalised together, for every dtype.

X is (M, K), row after row in memory. Channels are n columns each, over all rows, in batch norm, or
over those of one sample: `first` is the first of `count` rows that are normalised together. A
parameter is that of `per` columns.

Sums are taken of blocks of rows, whose number depends on the shape alone, and of any columns at a
time: a column's sums do not depend on threads. They are in float64; those of float64 have another
table for what their rounding has lost, which is None for others. What there is to know of each
column lies in tables of as many numbers as columns, padded to whole vectors, one after the other.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .access import (
    data_pointer,
    elements_to_alignment,
    fence,
    load,
    load_broadcast,
    load_masked,
    store,
    store_masked,
    store_non_temporal,
)
from .atomics import increment
from .channels import keep
from .column_sums import add_to, clear, gather, lost_of, sum_of
from .compile import CALLED, INLINE
from .gradient_sums import add_up, put_first
from .moments import judged, root_of
from .simd import broadcast, first_lane, fma, lanes, ones, range_scale, scalar_like
from .sweeps import RUN, RUN_OF_SQUARES
from .tasks import COUNT, FINISHED, arguments

#: Rows that the mean of a channel is guessed from.
SAMPLE = 64
#: Tables of a pass that normalises, and of one that takes gradients.
FORWARD_TABLES, BACKWARD_TABLES = 5, 6


@njit(**INLINE)
def some(elements, i, count, like):
    """`count` elements from i on, or a vector full if they are more."""
    if count >= lanes(like):
        return load(elements, i, like)
    return load_masked(elements, i, count, like)


@njit(**INLINE)
def put(elements, i, values, streams):
    """Put a vector of elements past the cache, or into it."""
    if streams:
        store_non_temporal(elements, i, values)
    else:
        store(elements, i, values)


@njit(**INLINE)
def put_some(elements, i, values, count, streams):
    """Put `count` of some values to the elements from i on, or all if that is more."""
    if count < lanes(values):
        store_masked(elements, i, values, count)
    else:
        put(elements, i, values, streams)


@njit(**CALLED)
def guess(x, table, n, first, count):
    """The first table: a guess at each channel's mean, from its first column.

    It is exact if that is constant.
    """
    columns, padded = x.shape[1], table.size // FORWARD_TABLES
    x_, table_, one = data_pointer(x), data_pointer(table), ones(table)
    some_rows = min(count, SAMPLE)
    share = broadcast(scalar_like(1.0 / some_rows, one))
    for j in range(0, padded, lanes(one)):
        top = some(x_, first * columns + j, columns - j, one)
        rest = one - one
        for k in range(1, some_rows):
            row = first + count * k // some_rows
            rest = rest + (some(x_, row * columns + j, columns - j, one) - top)
        store(table_, j, top + rest * share)
    if n > 1:
        for column in range(columns):
            table[column] = table[column // n * n]


@njit(**INLINE)
def bounds(task, parts, padded, width):
    """The block of a task, and its columns: each block is cut into so many parts."""
    block, part, vectors = task // parts, task % parts, padded // width
    return block, vectors * part // parts * width, vectors * (part + 1) // parts * width


@njit(**CALLED)
def forward_sums(x, table, sums, lost, first, count, rows, parts, start, stop):
    """Sums of d and d², where d is x without the guess, in tasks start to stop."""
    columns, padded = x.shape[1], table.size // FORWARD_TABLES
    x_, table_, one = data_pointer(x), data_pointer(table), ones(table)
    sums_, lost_ = data_pointer(sums), data_pointer(lost)
    for task in range(start, stop):
        block, left, right = bounds(task, parts, padded, lanes(one))
        q = block * 2 * padded
        last = first + min(count, (block + 1) * rows)
        for begin in range(first + block * rows, last, RUN_OF_SQUARES):
            end = min(begin + RUN_OF_SQUARES, last)
            for j in range(left, right, lanes(one)):
                rough = load(table_, j, one)
                deviation, square = one - one, one - one
                for row in range(begin, end):
                    d = some(x_, row * columns + j, columns - j, one) - rough
                    deviation, square = deviation + d, fma(d, d, square)
                add_to(sums_, lost_, q + j, deviation)
                add_to(sums_, lost_, q + padded + j, square)


@njit(**CALLED)
def settle_forward(
    x, gamma, beta, mean, var, rstd, table, sums, lost, epsilon, n, per, first, count
):
    """The statistics of all channels, and the tables: scale, offset, missed, weight, shift."""
    columns, padded = x.shape[1], table.size // FORWARD_TABLES
    channels = columns // n
    before = first // count * channels  # of statistics, those of the samples before
    gather(sums, lost, 2 * padded)
    x_, gamma_, beta_, one = data_pointer(x), data_pointer(gamma), data_pointer(beta), ones(table)
    share = 1.0 / (count * n)
    for channel in range(channels):
        start = channel * n
        rough = table[start]
        deviation = sum_of(sums, start, n)
        square = sum_of(sums, padded + start, n)
        where = (first * columns + start, n, count, columns)
        factor, rough, missed, variance, root = judged(
            x_, where, share, one, data_pointer(mean), epsilon, rough, deviation, square
        )
        keep(mean, var, rstd, before + channel, factor, rough, missed, variance, root)
        for column in range(start, start + n):
            weight, shift = weight_and_shift(gamma_, beta_, column // per, root, one)
            fill(table, padded, column, (factor, -rough, missed, weight, shift))


@njit(**INLINE)
def weight_and_shift(gamma, beta, place, root, one):
    """Root times gamma, and beta, from their place."""
    weight, shift = root, scalar_like(0.0, one)
    if gamma is not None:
        weight = root * first_lane(load_broadcast(gamma, place, one))
    if beta is not None:
        shift = first_lane(load_broadcast(beta, place, one))
    return weight, shift


@njit(**INLINE)
def fill(table, padded, column, numbers):
    """Put a column's numbers into the tables."""
    for k in range(len(numbers)):
        table[k * padded + column] = numbers[k]


@njit(**CALLED)
def settle_inference(mean, var, gamma, beta, table, epsilon, n):
    """The tables of `settle_forward` for statistics that are given, of channels of n columns."""
    padded = table.size // FORWARD_TABLES
    gamma_, beta_, one = data_pointer(gamma), data_pointer(beta), ones(table)
    unit, zero = scalar_like(1.0, one), scalar_like(0.0, one)
    for channel in range(mean.size):
        root = root_of(var[channel], epsilon, one)
        weight, shift = weight_and_shift(gamma_, beta_, channel, root, one)
        for column in range(channel * n, (channel + 1) * n):
            fill(table, padded, column, (unit, -mean[channel], zero, weight, shift))


@njit(**INLINE)
def streamable(y, columns, streams, one):
    """Whether every row can be streamed to from its first element on."""
    return streams and columns % lanes(one) == 0 and elements_to_alignment(y, 0, one) == 0


@njit(**CALLED)
def write(x, y, table, streams, start, stop):
    """Y for rows start to stop."""
    columns, padded = x.shape[1], table.size // FORWARD_TABLES
    x_, y_, table_, one = data_pointer(x), data_pointer(y), data_pointer(table), ones(table)
    streams = streamable(y_, columns, streams, one)
    for row in range(start, stop):
        o = row * columns
        for j in range(0, columns, lanes(one)):
            count = columns - j
            d = fma(
                some(x_, o + j, count, one), load(table_, j, one), load(table_, padded + j, one)
            )
            d = d - load(table_, 2 * padded + j, one)
            weight, shift = load(table_, 3 * padded + j, one), load(table_, 4 * padded + j, one)
            put_some(y_, o + j, fma(d, weight, shift), count, streams)
    if streams:
        fence()


@njit(**CALLED)
def know(x, mean, rstd, table, n, first, count):
    """The first two tables of a pass that takes gradients: mean and rstd of each column."""
    columns, padded = x.shape[1], table.size // BACKWARD_TABLES
    before = first // count * (columns // n)
    for column in range(columns):
        channel = before + column // n
        table[column], table[padded + column] = mean[channel], rstd[channel]


@njit(**CALLED)
def backward_sums(dy, x, table, sums, lost, first, count, rows, parts, start, stop):
    """Sums of d, dy and dy * d * rstd, in tasks start to stop; d as in `backward.sums`."""
    columns, padded = x.shape[1], table.size // BACKWARD_TABLES
    dy_, x_, table_, one = data_pointer(dy), data_pointer(x), data_pointer(table), ones(table)
    sums_, lost_ = data_pointer(sums), data_pointer(lost)
    for task in range(start, stop):
        block, left, right = bounds(task, parts, padded, lanes(one))
        q = block * 3 * padded
        last = first + min(count, (block + 1) * rows)
        for begin in range(first + block * rows, last, RUN):
            end = min(begin + RUN, last)
            for j in range(left, right, lanes(one)):
                mean, rstd = load(table_, j, one), load(table_, padded + j, one)
                scale, _ = range_scale(rstd)
                of_d, of_dy, of_product = one - one, one - one, one - one
                for row in range(begin, end):
                    i = row * columns + j
                    d = some(x_, i, columns - j, one) - mean
                    g = some(dy_, i, columns - j, one)
                    of_d, of_dy = fma(d, scale, of_d), of_dy + g
                    of_product = fma(g, d * rstd, of_product)
                add_to(sums_, lost_, q + j, of_d)
                add_to(sums_, lost_, q + padded + j, of_dy)
                add_to(sums_, lost_, q + 2 * padded + j, of_product)


@njit(**CALLED)
def settle_backward(x, gamma, dgamma, dbeta, table, sums, lost, n, per, first, count):
    """The gradients of parameters, and the tables.

    After mean and rstd, these are minus missed, minus the projection and minus the mean of g, which
    is dy times gamma, and gamma. Missed is told in units of x_hat, and is no part of it.
    """
    columns, padded = x.shape[1], table.size // BACKWARD_TABLES
    before = first // count * (columns // per)
    gather(sums, lost, 3 * padded)
    gamma_, table_, one = data_pointer(gamma), data_pointer(table), ones(table)
    share, unit = 1.0 / (count * n), scalar_like(1.0, one)
    for start in range(0, columns, n):
        r = load_broadcast(table_, padded + start, one)
        _, unscale = range_scale(r)
        missed = sum_of(sums, start, n) * share * first_lane(r * unscale)
        for column in range(start, start + n):
            sums[2 * padded + column] -= missed * sums[padded + column]
        of_g, of_product = 0.0, 0.0
        for first_of_q in range(start, start + n, per):
            q = first_of_q // per
            of_dy = sum_of(sums, padded + first_of_q, per)
            of_x_hat_dy = sum_of(sums, 2 * padded + first_of_q, per)
            if dgamma is not None:
                dgamma[before + q] = of_x_hat_dy
            if dbeta is not None:
                dbeta[before + q] = of_dy
            g, _ = weight_and_shift(gamma_, None, q, unit, one)
            of_g, of_product = of_g + g * of_dy, of_product + g * of_x_hat_dy
        mean_g, projection = scalar_like(of_g * share, one), scalar_like(of_product * share, one)
        missed = scalar_like(missed, one)
        for column in range(start, start + n):
            g, _ = weight_and_shift(gamma_, None, column // per, unit, one)
            known = (table[column], table[padded + column])
            fill(table, padded, column, (*known, -missed, -projection, -mean_g, g))


@njit(**CALLED)
def differentiate(dy, x, dx, table, streams, start, stop):
    """Dx for rows start to stop."""
    columns, padded = x.shape[1], table.size // BACKWARD_TABLES
    dy_, x_, dx_ = data_pointer(dy), data_pointer(x), data_pointer(dx)
    table_, one = data_pointer(table), ones(table)
    streams = streamable(dx_, columns, streams, one)
    for row in range(start, stop):
        o = row * columns
        for j in range(0, columns, lanes(one)):
            count = columns - j
            mean, rstd = load(table_, j, one), load(table_, padded + j, one)
            missed = load(table_, 2 * padded + j, one)
            projection = load(table_, 3 * padded + j, one)
            mean_dy, g = load(table_, 4 * padded + j, one), load(table_, 5 * padded + j, one)
            h = fma(some(x_, o + j, count, one) - mean, rstd, missed)
            d = fma(some(dy_, o + j, count, one), g, mean_dy)
            put_some(dx_, o + j, fma(h, projection, d) * rstd, count, streams)
    if streams:
        fence()


@njit(**CALLED)
def forward_of_samples(
    x, gamma, beta, y, mean, rstd, epsilon, n, per, count, padded, streams, start, stop
):
    """Samples start to stop, of so many rows, each by itself."""
    table, sums = np.empty(FORWARD_TABLES * padded, rstd.dtype), np.empty(2 * padded, np.float64)
    lost = lost_of(sums, rstd)
    for sample in range(start, stop):
        first = sample * count
        clear(sums, lost)
        guess(x, table, n, first, count)
        forward_sums(x, table, sums, lost, first, count, count, 1, 0, 1)
        settle_forward(
            x, gamma, beta, mean, None, rstd, table, sums, lost, epsilon, n, per, first, count
        )
        write(x, y, table, streams, first, first + count)


@njit(**CALLED)
def backward_of_samples(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, n, per, count, padded, streams, start, stop
):
    """Samples start to stop, of so many rows, each with gradients of parameters of its own."""
    table, sums = np.empty(BACKWARD_TABLES * padded, rstd.dtype), np.empty(3 * padded, np.float64)
    lost = lost_of(sums, rstd)
    for sample in range(start, stop):
        first = sample * count
        clear(sums, lost)
        know(x, mean, rstd, table, n, first, count)
        backward_sums(dy, x, table, sums, lost, first, count, count, 1, 0, 1)
        settle_backward(x, gamma, dgamma, dbeta, table, sums, lost, n, per, first, count)
        if dx is not None:
            differentiate(dy, x, dx, table, streams, first, first + count)


def guess_task(kinds):
    """`guess` as a task of one part."""

    def task(words, part, num_parts):
        guess(*(arguments(words, kinds, part, num_parts)[:-2]))

    return task


def know_task(kinds):
    """`know` as a task of one part."""

    def task(words, part, num_parts):
        know(*(arguments(words, kinds, part, num_parts)[:-2]))

    return task


def settle_inference_task(kinds):
    """`settle_inference` as a task of one part."""

    def task(words, part, num_parts):
        settle_inference(*(arguments(words, kinds, part, num_parts)[:-2]))

    return task


def forward_sums_task(kinds):
    """`forward_sums` as a task; who finishes the last part goes on with `settle_forward`."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        tables, n = given[6:9], given[10]
        forward_sums(*(given[:1] + tables + (0,) + given[11:]))
        if increment(words, FINISHED) == num_parts - 1:
            settle_forward(*(given[:11] + (n, 0) + given[11:12]))  # noqa: RUF005 # as Numba can

    return task


def write_task(kinds):
    """`write` as a task."""

    def task(words, part, num_parts):
        write(*arguments(words, kinds, part, num_parts))

    return task


def backward_sums_task(kinds):
    """`backward_sums` as a task; who finishes the last part goes on with `settle_backward`."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        tables, (n, count) = given[5:8], given[8:10]
        backward_sums(*(given[:2] + tables + (0,) + given[9:]))
        if increment(words, FINISHED) == num_parts - 1:
            settle_backward(*(given[1:5] + tables + (n, n, 0, count)))

    return task


def differentiate_task(kinds):
    """`differentiate` as a task."""

    def task(words, part, num_parts):
        differentiate(*arguments(words, kinds, part, num_parts))

    return task


def forward_of_samples_task(kinds):
    """`forward_of_samples` as a task."""

    def task(words, part, num_parts):
        forward_of_samples(*arguments(words, kinds, part, num_parts))

    return task


def backward_of_samples_task(kinds):
    """`backward_of_samples` as a task; who finishes the last part adds up their sums.

    Where the sums of parameters go in the end is behind dgamma and dbeta.
    """

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        backward_of_samples(*(given[:8] + given[10:]))
        if increment(words, FINISHED) == num_parts - 1:
            samples = words[COUNT]
            add_up(given[6], samples)
            add_up(given[7], samples)
            put_first(given[6], given[8])
            put_first(given[7], given[9])

    return task
