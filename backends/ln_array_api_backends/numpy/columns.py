"""Passes over channels that are columns, or a few columns each, for every dtype.

X is (B, K), row after row in memory. Sums are taken of blocks of rows, whose number depends on the
shape alone, and of any columns at a time: a column's sums do not depend on threads. What there is
to know of each column lies in tables of as many numbers as columns, padded to whole vectors, one
table after the other.
"""

from __future__ import annotations

import math

from numba import njit, prange

from .access import (
    element,
    elements_to_alignment,
    fence,
    load,
    load_first,
    memory,
    store,
    store_first,
    stream,
)
from .backward import add_up
from .channels import keep, settled
from .moments import judged, spread
from .simd import fma, lanes, number, ones, peak, splat
from .sweeps import INLINE, OPTIONS, RUN, plus

#: Rows that the mean of a channel is guessed from.
SAMPLE = 64
#: Tables of a pass that normalises, and of one that takes gradients.
FORWARD_TABLES, BACKWARD_TABLES = 5, 6


@njit(**INLINE)
def some(elements, i, count, like):
    """`count` elements from i on, or a vector full if they are more."""
    if count >= lanes(like):
        return load(elements, i, like)
    return load_first(elements, i, count, like)


@njit(**INLINE)
def put_some(elements, i, values, count, streams):
    """Put `count` of some values to the elements from i on, or all if that is more."""
    if count < lanes(values):
        store_first(elements, i, values, count)
    elif streams:
        stream(elements, i, values)
    else:
        store(elements, i, values)


@njit(**INLINE)
def put_aside(sums, lost, i, values):
    """Add values to sums from i on, and what that rounds off to what they have lost."""
    new, rest = plus(load(sums, i, values), load(lost, i, values), values)
    store(sums, i, new)
    store(lost, i, rest)


@njit(**OPTIONS)
def guess(x, table):
    """The first table: a guess at each channel's mean, from its first column.

    It is exact if that is constant.
    """
    samples, channels, n = x.shape
    columns, padded = channels * n, table.size // FORWARD_TABLES
    x_, table_, one = memory(x), memory(table), ones(table)
    count = min(samples, SAMPLE)
    share = splat(number(1.0 / count, one))
    for j in range(0, padded, lanes(one)):
        first = some(x_, j, columns - j, one)
        rest = one - one
        for k in range(1, count):
            rest = rest + (some(x_, samples * k // count * columns + j, columns - j, one) - first)
        store(table_, j, first + rest * share)
    if n > 1:
        for column in range(columns):
            table[column] = table[column // n * n]


@njit(**INLINE)
def bounds(task, parts, padded, width):
    """The block of a task, and its columns: each block is cut into so many parts."""
    block, part, vectors = task // parts, task % parts, padded // width
    return block, vectors * part // parts * width, vectors * (part + 1) // parts * width


@njit(**OPTIONS)
def forward_sums(x, table, sums, lost, rows, parts, start, stop):
    """Sums of d and d², where d is x without the guess, in tasks start to stop."""
    samples, columns, padded = x.shape[0], x.size // x.shape[0], table.size // FORWARD_TABLES
    x_, table_, one = memory(x), memory(table), ones(table)
    sums_, lost_ = memory(sums), memory(lost)
    for task in range(start, stop):
        block, left, right = bounds(task, parts, padded, lanes(one))
        q = block * 2 * padded
        last = min(samples, (block + 1) * rows)
        for begin in range(block * rows, last, RUN):
            end = min(begin + RUN, last)
            for j in range(left, right, lanes(one)):
                rough = load(table_, j, one)
                deviation, square = one - one, one - one
                for row in range(begin, end):
                    d = some(x_, row * columns + j, columns - j, one) - rough
                    deviation, square = deviation + d, fma(d, d, square)
                put_aside(sums_, lost_, q + j, deviation)
                put_aside(sums_, lost_, q + padded + j, square)


@njit(**INLINE)
def gather(sums, lost, length):
    """Add what was lost, and the sums of all blocks into those of the first."""
    for i in range(sums.size):
        sums[i] += lost[i]
    add_up(sums, sums.size // length)


@njit(**OPTIONS)
def settle_forward(x, gamma, beta, mean, var, rstd, epsilon, table, sums, lost):
    """The statistics of all channels, and the tables: scale, offset, missed, weight, shift."""
    samples, channels, n = x.shape
    columns, padded = channels * n, table.size // FORWARD_TABLES
    gather(sums, lost, 2 * padded)
    x_, gamma_, beta_, one = memory(x), memory(gamma), memory(beta), ones(table)
    unit, share = number(1.0, one), number(1.0 / (samples * n), one)
    for channel in range(channels):
        start = channel * n
        rough, deviation, square = table[start], sums[start], sums[padded + start]
        for column in range(start + 1, start + n):
            deviation += sums[column]
            square += sums[padded + column]
        where = (start, n, samples, columns)
        factor, rough, missed, variance, above = judged(
            x_, where, share, one, memory(mean), epsilon, rough, deviation, square
        )
        root = unit / math.sqrt(above)
        keep(mean, var, rstd, channel, factor, rough, missed, variance, root)
        weight, shift = weight_and_shift(gamma_, beta_, channel, root, one)
        for column in range(start, start + n):
            fill(table, padded, column, (factor, -rough, missed, weight, shift))


@njit(**INLINE)
def weight_and_shift(gamma, beta, channel, root, one):
    """Root times gamma, and beta."""
    weight, shift = root, root - root
    if gamma is not None:
        weight = root * peak(element(gamma, channel, one))
    if beta is not None:
        shift = peak(element(beta, channel, one))
    return weight, shift


@njit(**INLINE)
def fill(table, padded, column, numbers):
    """Put a column's numbers into the tables."""
    for k in range(len(numbers)):
        table[k * padded + column] = numbers[k]


@njit(**OPTIONS)
def settle_inference(mean, var, gamma, beta, epsilon, table, n):
    """The tables of `settle_forward` for statistics that are given, of channels of n columns."""
    padded = table.size // FORWARD_TABLES
    gamma_, beta_, one = memory(gamma), memory(beta), ones(table)
    unit, zero = number(1.0, one), number(0.0, one)
    for channel in range(mean.size):
        root = unit / math.sqrt(spread(var[channel], epsilon, 1.0, one))
        weight, shift = weight_and_shift(gamma_, beta_, channel, root, one)
        for column in range(channel * n, (channel + 1) * n):
            fill(table, padded, column, (unit, -mean[channel], zero, weight, shift))


@njit(**INLINE)
def streamable(y, columns, streams, one):
    """Whether every row can be streamed to from its first element on."""
    return streams and columns % lanes(one) == 0 and elements_to_alignment(y, 0, one) == 0


@njit(**OPTIONS)
def write(x, y, table, streams, start, stop):
    """Y for rows start to stop."""
    columns, padded = x.size // x.shape[0], table.size // FORWARD_TABLES
    x_, y_, table_, one = memory(x), memory(y), memory(table), ones(table)
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


@njit(**OPTIONS)
def know(mean, rstd, table, n):
    """The first two tables of a pass that takes gradients: mean and rstd of each column."""
    padded = table.size // BACKWARD_TABLES
    for column in range(mean.size * n):
        table[column], table[padded + column] = mean[column // n], rstd[column // n]


@njit(**OPTIONS)
def backward_sums(dy, x, table, sums, lost, rows, parts, start, stop):
    """Sums of x_hat, dy and their product, in tasks start to stop."""
    samples, columns, padded = x.shape[0], x.size // x.shape[0], table.size // BACKWARD_TABLES
    dy_, x_, table_, one = memory(dy), memory(x), memory(table), ones(table)
    sums_, lost_ = memory(sums), memory(lost)
    for task in range(start, stop):
        block, left, right = bounds(task, parts, padded, lanes(one))
        q = block * 3 * padded
        last = min(samples, (block + 1) * rows)
        for begin in range(block * rows, last, RUN):
            end = min(begin + RUN, last)
            for j in range(left, right, lanes(one)):
                mean, rstd = load(table_, j, one), load(table_, padded + j, one)
                of_x_hat, of_dy, of_product = one - one, one - one, one - one
                for row in range(begin, end):
                    i = row * columns + j
                    h = (some(x_, i, columns - j, one) - mean) * rstd
                    d = some(dy_, i, columns - j, one)
                    of_x_hat, of_dy, of_product = of_x_hat + h, of_dy + d, fma(d, h, of_product)
                put_aside(sums_, lost_, q + j, of_x_hat)
                put_aside(sums_, lost_, q + padded + j, of_dy)
                put_aside(sums_, lost_, q + 2 * padded + j, of_product)


@njit(**OPTIONS)
def settle_backward(x, gamma, dgamma, dbeta, table, sums, lost):
    """The gradients of parameters, and the tables.

    After mean and rstd, these are minus missed, minus the projection and minus the mean of dy, the
    latter two times gamma, and gamma.
    """
    samples, channels, n = x.shape
    padded = table.size // BACKWARD_TABLES
    gather(sums, lost, 3 * padded)
    gamma_, one = memory(gamma), ones(table)
    share, unit = number(1.0 / (samples * n), one), number(1.0, one)
    for channel in range(channels):
        start = channel * n
        a, b, c = sums[start], sums[padded + start], sums[2 * padded + start]
        for column in range(start + 1, start + n):
            a += sums[column]
            b += sums[padded + column]
            c += sums[2 * padded + column]
        of_x_hat_dy, missed, mean_dy, projection = settled(a, b, c, share)
        if dgamma is not None:
            dgamma[channel] = of_x_hat_dy
        if dbeta is not None:
            dbeta[channel] = b
        g, _ = weight_and_shift(gamma_, None, channel, unit, one)
        for column in range(start, start + n):
            known = (table[column], table[padded + column])
            fill(table, padded, column, (*known, -missed, -projection * g, -mean_dy * g, g))


@njit(**OPTIONS)
def differentiate(dy, x, dx, table, streams, start, stop):
    """Dx for rows start to stop."""
    columns, padded = x.size // x.shape[0], table.size // BACKWARD_TABLES
    dy_, x_, dx_, table_, one = memory(dy), memory(x), memory(dx), memory(table), ones(table)
    streams = streamable(dx_, columns, streams, one)
    for row in range(start, stop):
        o = row * columns
        for j in range(0, columns, lanes(one)):
            count = columns - j
            mean, rstd = load(table_, j, one), load(table_, padded + j, one)
            missed, projection = (
                load(table_, 2 * padded + j, one),
                load(table_, 3 * padded + j, one),
            )
            mean_dy, g = load(table_, 4 * padded + j, one), load(table_, 5 * padded + j, one)
            h = fma(some(x_, o + j, count, one) - mean, rstd, missed)
            d = fma(some(dy_, o + j, count, one), g, mean_dy)
            put_some(dx_, o + j, fma(h, projection, d) * rstd, count, streams)
    if streams:
        fence()


@njit(parallel=True, **OPTIONS)
def forward_sums_in_parallel(x, table, sums, lost, rows, parts, count, at_once):
    """So many tasks, which may run at the same time, in as many as there are at once."""
    for each in prange(at_once):
        start, stop = count * each // at_once, count * (each + 1) // at_once
        forward_sums(x, table, sums, lost, rows, parts, start, stop)


@njit(parallel=True, **OPTIONS)
def backward_sums_in_parallel(dy, x, table, sums, lost, rows, parts, count, at_once):
    """As `forward_sums_in_parallel`."""
    for each in prange(at_once):
        start, stop = count * each // at_once, count * (each + 1) // at_once
        backward_sums(dy, x, table, sums, lost, rows, parts, start, stop)


@njit(parallel=True, **OPTIONS)
def write_in_parallel(x, y, table, streams, count, at_once):
    """So many rows, in as many parts as there are at once."""
    for each in prange(at_once):
        write(x, y, table, streams, count * each // at_once, count * (each + 1) // at_once)


@njit(parallel=True, **OPTIONS)
def differentiate_in_parallel(dy, x, dx, table, streams, count, at_once):
    """As `write_in_parallel`."""
    for each in prange(at_once):
        start, stop = count * each // at_once, count * (each + 1) // at_once
        differentiate(dy, x, dx, table, streams, start, stop)
