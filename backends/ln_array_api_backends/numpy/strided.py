"""Passes over rows along an axis that others follow, for every dtype.

X is (K, N, I) in C order. The elements of a row are I apart, and I rows lie beside each other, so a
lane of a vector is a row. What is swept at once is a tile: some of these rows, whose elements fill
lines of the cache, and which stays in the second cache from one sweep to the next. Sums over a row
depend on its length alone. Those of gradients of parameters depend on the shape.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from .access import (
    data_pointer,
    fence,
    load,
    load_broadcast,
    prefetch,
    stack_alloc,
    store,
    store_masked,
)
from .atomics import increment
from .backward import deviation, exact_x_hat, times
from .column_sums import add_to, clear, gather, lost_of
from .columns import put, put_some, some, streamable
from .compile import CALLED, INLINE
from .doubles import from_float64, zeros_float64
from .gradient_sums import clear as clear_from
from .moments import judged, judged_together, mean_of
from .simd import (
    broadcast,
    fma,
    if_present,
    lanes,
    negative,
    ones,
    range_scale,
    reduce_add,
    reduce_add4,
    scalar_like,
    zeros,
)
from .sweeps import RUN, RUN_OF_SQUARES, scaled_and_shifted, x_hat
from .tasks import COUNT, FINISHED, arguments

#: Elements of a row that its mean is guessed from.
SAMPLE = 16
#: What is known of each row of a tile: scale, offset, rstd and minus missed; for gradients mean,
#: rstd, minus missed, minus the mean of g and minus the projection.
FORWARD_TABLES, BACKWARD_TABLES = 4, 5
#: Elements of each row that are written at a time, and that are fetched ahead.
AT_ONCE, AHEAD = 8, 16
#: Numbers of float64 that two vectors hold.
LANES = 16


def room_beside(present, length, like):
    """Memory for so many numbers of an array's dtype where another is present, else None."""


@overload(room_beside)
def _room_beside(present, length, like):
    if isinstance(present, types.NoneType):
        return lambda present, length, like: None
    return lambda present, length, like: np.empty(length, like.dtype)


@njit(**INLINE)
def tile_of(unit, n, inner, width):
    """Where a tile begins, its first row and how many it has: `width`, or what is left of I."""
    tiles = -(-inner // width)
    sample, left = unit // tiles, unit % tiles * width
    return sample * n * inner + left, sample * inner + left, min(width, inner - left)


@njit(**INLINE)
def rough_means(x, o, n, inner, count, table):
    """The first table: guesses at the means of a tile's rows, exact where a row is constant."""
    table_, one = data_pointer(table), ones(table)
    num_samples = min(n, SAMPLE)
    share = broadcast(scalar_like(1.0 / num_samples, one))
    for j in range(0, count, lanes(one)):
        top = some(x, o + j, count - j, one)
        rest = one - one
        for k in range(1, num_samples):
            rest = rest + (some(x, o + n * k // num_samples * inner + j, count - j, one) - top)
        store(table_, j, top + rest * share)


@njit(**INLINE)
def fetch(elements, i, rows, inner, count, lane):
    """Have a part of a tile fetched, line after line as they lie: some elements of each row."""
    for k in range(rows):
        for j in range(0, count, lane):
            prefetch(elements, i + k * inner + j)


@njit(**INLINE)
def sums_of_lanes(x, i, begin, end, inner, count, rough):
    """Sums of d and d² over some elements of the rows from i on, where d is x - rough."""
    deviation, square = zeros(rough), zeros(rough)
    for k in range(begin, end):
        d = some(x, i + k * inner, count, rough) - rough
        deviation, square = deviation + d, fma(d, d, square)
    return deviation, square


@njit(**INLINE)
def sums_of_four(x, i, begin, end, inner, roughs):
    """As `sums_of_lanes`, for four vectors of rows, whose elements are read line after line."""
    r0, r1, r2, r3 = roughs
    lane = lanes(r0)
    zero = zeros(r0)
    a, b, c, d, aa, bb, cc, dd = zero, zero, zero, zero, zero, zero, zero, zero
    for k in range(begin, end):
        here = i + k * inner
        v0, v1 = load(x, here, r0), load(x, here + lane, r0)
        v2, v3 = load(x, here + 2 * lane, r0), load(x, here + 3 * lane, r0)
        v0, v1, v2, v3 = v0 - r0, v1 - r1, v2 - r2, v3 - r3
        a, b, c, d = a + v0, b + v1, c + v2, d + v3
        aa, bb, cc, dd = fma(v0, v0, aa), fma(v1, v1, bb), fma(v2, v2, cc), fma(v3, v3, dd)
    return (a, b, c, d), (aa, bb, cc, dd)


@njit(**INLINE)
def sums_of_tile(x, o, n, inner, count, table, sums, lost, width):
    """Sums of d and d² over each row of a tile, where d is x without the rough mean."""
    table_, sums_ = data_pointer(table), data_pointer(sums)
    lost_, one = data_pointer(lost), ones(table)
    lane = lanes(one)
    clear(sums, lost)
    for begin in range(0, n, RUN_OF_SQUARES):
        end = min(begin + RUN_OF_SQUARES, n)
        fetch(x, o + (begin + AHEAD) * inner, RUN_OF_SQUARES, inner, count, lane)
        j = 0
        while j + 4 * lane <= count:
            roughs = (
                load(table_, j, one),
                load(table_, j + lane, one),
                load(table_, j + 2 * lane, one),
                load(table_, j + 3 * lane, one),
            )
            four, four_squares = sums_of_four(x, o + j, begin, end, inner, roughs)
            for each in range(4):
                add_to(sums_, lost_, j + each * lane, four[each])
                add_to(sums_, lost_, width + j + each * lane, four_squares[each])
            j += 4 * lane
        while j < count:
            rough = load(table_, j, one)
            deviation, square = sums_of_lanes(x, o + j, begin, end, inner, count - j, rough)
            add_to(sums_, lost_, j, deviation)
            add_to(sums_, lost_, width + j, square)
            j += lane
    gather(sums, lost, sums.size)


@njit(**INLINE)
def statistics_of_tile(x, o, n, inner, row, count, mean, rstd, table, sums, epsilon, width):
    """Mean and rstd of each row of a tile, and the tables."""
    mean_, rstd_ = data_pointer(mean), data_pointer(rstd)
    table_, sums_ = data_pointer(table), data_pointer(sums)
    one, wide = ones(table), zeros_float64(ones(table))
    share, last = 1.0 / n, lanes(one) - lanes(wide)
    deviations, squares = stack_alloc(wide, LANES), stack_alloc(wide, LANES)
    for j in range(0, count, lanes(one)):
        some_rows = min(lanes(one), count - j)
        deviation = load(sums_, j, wide), load(sums_, j + last, wide)
        square = load(sums_, width + j, wide), load(sums_, width + j + last, wide)
        missed, root, good = judged_together(
            deviation, square, deviations, squares, share, one, mean_, epsilon, some_rows
        )
        if good:
            rough = load(table_, j, one)
            if mean is not None:
                store_masked(mean_, row + j, rough + missed, some_rows)
            store_masked(rstd_, row + j, root, some_rows)
            store(table_, j, one)
            store(table_, width + j, negative(rough))
            store(table_, 2 * width + j, root)
            store(table_, 3 * width + j, negative(missed * root))
        else:
            for k in range(j, j + some_rows):
                where = (o + k, 1, n, inner)
                factor, rough, missed, _, root = judged(
                    x, where, share, one, mean_, epsilon, table[k], sums[k], sums[width + k]
                )
                if mean is not None:
                    mean[row + k] = mean_of(factor, rough, missed)
                rstd[row + k] = root * factor
                table[k], table[width + k] = factor, -rough
                table[2 * width + k], table[3 * width + k] = root, -missed * root


@njit(**INLINE)
def known(table, j, width, mean, like):
    """Of the rows of a vector: scale, offset, rstd and minus missed."""
    return (
        load(table, j, like),
        load(table, width + j, like),
        load(table, 2 * width + j, like),
        if_present(mean, load(table, 3 * width + j, like)),
    )


@njit(**INLINE)
def normalised(values, of_rows, g, b):
    """Y of a vector of elements, whose parameters these are."""
    scale, offset, rstd, minus_missed = of_rows
    return scaled_and_shifted(x_hat(values, scale, offset, rstd, minus_missed), g, b, 0, None)


@njit(**INLINE)
def write_tile(x, y, o, n, inner, count, mean, gamma, beta, table, width, streams):
    """Y of a tile, some elements of each row at a time, for which the tables are loaded once."""
    table_, one = data_pointer(table), ones(table)
    lane = lanes(one)
    for begin in range(0, n, AT_ONCE):
        end = min(begin + AT_ONCE, n)
        j = 0
        while j + 2 * lane <= count:
            first = known(table_, j, width, mean, one)
            second = known(table_, j + lane, width, mean, one)
            for k in range(begin, end):
                g, b = load_broadcast(gamma, k, one), load_broadcast(beta, k, one)
                i = o + k * inner + j
                put(y, i, normalised(load(x, i, one), first, g, b), streams)
                put(y, i + lane, normalised(load(x, i + lane, one), second, g, b), streams)
            j += 2 * lane
        while j < count:
            first = known(table_, j, width, mean, one)
            for k in range(begin, end):
                g, b = load_broadcast(gamma, k, one), load_broadcast(beta, k, one)
                i = o + k * inner + j
                values = normalised(some(x, i, count - j, one), first, g, b)
                put_some(y, i, values, count - j, streams)
            j += lane


@njit(**CALLED)
def forward(x, gamma, beta, y, mean, rstd, epsilon, width, streams, start, stop):
    """Tiles start to stop."""
    _, n, inner = x.shape
    x_, y_ = data_pointer(x), data_pointer(y)
    gamma_, beta_ = data_pointer(gamma), data_pointer(beta)
    table, sums = np.zeros(FORWARD_TABLES * width, rstd.dtype), np.empty(2 * width, np.float64)
    lost, mean_ = lost_of(sums, rstd), data_pointer(mean)
    streams = streamable(y_, inner, streams, ones(rstd))
    for unit in range(start, stop):
        o, row, count = tile_of(unit, n, inner, width)
        if mean is None:
            table[:width] = 0
        else:
            rough_means(x_, o, n, inner, count, table)
        sums_of_tile(x_, o, n, inner, count, table, sums, lost, width)
        statistics_of_tile(x_, o, n, inner, row, count, mean, rstd, table, sums, epsilon, width)
        write_tile(x_, y_, o, n, inner, count, mean_, gamma_, beta_, table, width, streams)
    if streams:
        fence()


@njit(**INLINE)
def know_tile(row, count, mean, rstd, table, width):
    """The first two tables for gradients: mean and rstd of each row; 0 beyond the last."""
    table[: 2 * width] = 0
    for k in range(count):
        if mean is not None:
            table[k] = mean[row + k]
        table[width + k] = rstd[row + k]


@njit(**INLINE)
def add_terms(sums, d, g, rstd, scale):
    """Sums of d * scale, of g and of g * d * rstd, with those of more elements."""
    of_d, of_g, of_product = sums
    return fma(d, scale, of_d), of_g + g, fma(g, d * rstd, of_product)


@njit(**INLINE)
def add_sums(sums, lost, j, width, mean, of_lanes):
    """Add these to the sums of the tile."""
    of_d, of_g, of_product = of_lanes
    if mean is not None:
        add_to(sums, lost, j, of_d)
        add_to(sums, lost, width + j, of_g)
    add_to(sums, lost, 2 * width + j, of_product)


@njit(**INLINE)
def gradient_sums_of_tile(
    dy, x, o, n, inner, count, mean, gamma, table, sums, lost, width
):  # fmt: skip
    """Sums of d, g and g * d * rstd over each row, as in `backward.sums`, and the other tables."""
    table_, sums_ = data_pointer(table), data_pointer(sums)
    lost_, one = data_pointer(lost), ones(table)
    lane = lanes(one)
    zero = one - one
    clear(sums, lost)
    for begin in range(0, n, RUN):
        end = min(begin + RUN, n)
        fetch(x, o + (begin + AHEAD) * inner, RUN, inner, count, lane)
        fetch(dy, o + (begin + AHEAD) * inner, RUN, inner, count, lane)
        j = 0
        while j + 2 * lane <= count:
            first_mean = if_present(mean, load(table_, j, one))
            second_mean = if_present(mean, load(table_, j + lane, one))
            r0, r1 = load(table_, width + j, one), load(table_, width + j + lane, one)
            first_scale, _ = range_scale(r0)
            second_scale, _ = range_scale(r1)
            first, second = (zero, zero, zero), (zero, zero, zero)
            for k in range(begin, end):
                i, gamma_k = o + k * inner + j, load_broadcast(gamma, k, one)
                v0, v1 = load(x, i, one), load(x, i + lane, one)
                g0, g1 = load(dy, i, one), load(dy, i + lane, one)
                g0, g1 = times(g0, gamma_k, 0, None, None), times(g1, gamma_k, 0, None, None)
                first = add_terms(first, deviation(v0, first_mean), g0, r0, first_scale)
                second = add_terms(second, deviation(v1, second_mean), g1, r1, second_scale)
            add_sums(sums_, lost_, j, width, mean, first)
            add_sums(sums_, lost_, j + lane, width, mean, second)
            j += 2 * lane
        while j < count:
            first_mean, r0 = if_present(mean, load(table_, j, one)), load(table_, width + j, one)
            first_scale, _ = range_scale(r0)
            first = (zero, zero, zero)
            for k in range(begin, end):
                i = o + k * inner + j
                v0, g0 = some(x, i, count - j, one), some(dy, i, count - j, one)
                g0 = times(g0, load_broadcast(gamma, k, one), 0, None, None)
                first = add_terms(first, deviation(v0, first_mean), g0, r0, first_scale)
            add_sums(sums_, lost_, j, width, mean, first)
            j += lane
    gather(sums, lost, sums.size)
    share = broadcast(scalar_like(1.0 / n, one))
    for j in range(0, count, lane):
        r = load(table_, width + j, one)
        _, unscale = range_scale(r)
        missed = in_lanes(sums_, j, one) * share * (r * unscale)
        mean_g = in_lanes(sums_, width + j, one) * share
        projection = in_lanes(sums_, 2 * width + j, one) * share
        store(table_, 2 * width + j, negative(missed))
        store(table_, 3 * width + j, negative(mean_g))
        store(table_, 4 * width + j, negative(projection - missed * mean_g))


@njit(**INLINE)
def in_lanes(sums, j, like):
    """As many sums in float64 as a vector has lanes, rounded to its dtype."""
    wide = zeros_float64(like)
    last = lanes(like) - lanes(wide)
    return from_float64(load(sums, j, wide), load(sums, j + last, wide), like)


@njit(**INLINE)
def known_for_gradients(table, j, width, mean, like):
    """Of the rows of a vector: what `backward.step` takes."""
    return (
        if_present(mean, load(table, j, like)),
        load(table, width + j, like),
        if_present(mean, load(table, 2 * width + j, like)),
        if_present(mean, load(table, 3 * width + j, like)),
        load(table, 4 * width + j, like),
    )


@njit(**INLINE)
def gradient(v, d, of_rows, gamma):
    """Dx and x_hat of a vector of elements v whose gradient is d."""
    mean, rstd, minus_missed, minus_mean_g, minus_projection = of_rows
    h = exact_x_hat(v, mean, rstd, minus_missed)
    return fma(h, minus_projection, times(d, gamma, 0, None, minus_mean_g)) * rstd, h


@njit(**INLINE)
def differentiate_tile(
    dy, x, dx, o, n, inner, count, mean, gamma, table, dgamma, dbeta, width, streams
):  # fmt: skip
    """Dx of a tile, and its sums of dgamma and dbeta; two elements of each row at a time."""
    table_, one = data_pointer(table), ones(table)
    lane = lanes(one)
    zero = one - one
    quarter = lane // 4
    all_sums = stack_alloc(one, LANES)
    for k in range(0, n - 1, 2):
        gamma_0, gamma_1 = load_broadcast(gamma, k, one), load_broadcast(gamma, k + 1, one)
        of_dgamma_0, of_dbeta_0, of_dgamma_1, of_dbeta_1 = zero, zero, zero, zero
        for j in range(0, count, lane):
            i, rest = o + k * inner + j, count - j
            of_rows = known_for_gradients(table_, j, width, mean, one)
            d0, d1 = some(dy, i, rest, one), some(dy, i + inner, rest, one)
            dx0, h0 = gradient(some(x, i, rest, one), d0, of_rows, gamma_0)
            dx1, h1 = gradient(some(x, i + inner, rest, one), d1, of_rows, gamma_1)
            of_dgamma_0, of_dbeta_0 = fma(d0, h0, of_dgamma_0), of_dbeta_0 + d0
            of_dgamma_1, of_dbeta_1 = fma(d1, h1, of_dgamma_1), of_dbeta_1 + d1
            if dx is not None:
                put_some(dx, i, dx0, rest, streams)
                put_some(dx, i + inner, dx1, rest, streams)
        store(all_sums, 0, reduce_add4(of_dgamma_0, of_dgamma_1, of_dbeta_0, of_dbeta_1))
        if dgamma is not None:
            dgamma[k], dgamma[k + 1] = all_sums[0], all_sums[quarter]
        if dbeta is not None:
            dbeta[k], dbeta[k + 1] = all_sums[2 * quarter], all_sums[3 * quarter]
    if n % 2:
        k = n - 1
        of_dgamma_0, of_dbeta_0 = zero, zero
        for j in range(0, count, lane):
            i, rest = o + k * inner + j, count - j
            of_rows = known_for_gradients(table_, j, width, mean, one)
            d0 = some(dy, i, rest, one)
            dx0, h0 = gradient(some(x, i, rest, one), d0, of_rows, load_broadcast(gamma, k, one))
            of_dgamma_0, of_dbeta_0 = fma(d0, h0, of_dgamma_0), of_dbeta_0 + d0
            if dx is not None:
                put_some(dx, i, dx0, rest, streams)
        if dgamma is not None:
            dgamma[k] = reduce_add(of_dgamma_0)
        if dbeta is not None:
            dbeta[k] = reduce_add(of_dbeta_0)


@njit(**INLINE)
def add_of_tile(sums, lost, q, of_tile, single):
    """Add a tile's sums of a parameter to those of its block, from q on."""
    if sums is not None:
        one = ones(single)
        sums_, lost_, of_tile_ = data_pointer(sums), data_pointer(lost), data_pointer(of_tile)
        for k in range(0, of_tile.size, lanes(one)):
            add_to(sums_, lost_, q + k, load(of_tile_, k, one))


@njit(**CALLED)
def backward(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, dgamma_lost, dbeta_lost, width, tiles, streams,
    start, stop,
):  # fmt: skip
    """Blocks start to stop of so many tiles, which have sums of dgamma and dbeta of their own.

    Numba frees an array after its last use, so one that lives for all blocks is not replaced by its
    memory before them.
    """
    num_samples, n, inner = x.shape
    dy_, x_, gamma_ = data_pointer(dy), data_pointer(x), data_pointer(gamma)
    dx_, mean_ = data_pointer(dx), data_pointer(mean)
    table, sums = np.zeros(BACKWARD_TABLES * width, rstd.dtype), np.empty(3 * width, np.float64)
    one, lost = ones(rstd), lost_of(sums, rstd)
    padded = -(-n // lanes(one)) * lanes(one)
    of_dgamma, of_dbeta = room_beside(dgamma, padded, rstd), room_beside(dbeta, padded, rstd)
    streams = dx is not None and streamable(dx_, inner, streams, one)
    units = num_samples * -(-inner // width)
    for block in range(start, stop):
        q = block * padded
        clear_from(dgamma, q, padded)
        clear_from(dbeta, q, padded)
        clear_from(dgamma_lost, q, padded)
        clear_from(dbeta_lost, q, padded)
        for unit in range(block * tiles, min((block + 1) * tiles, units)):
            o, row, count = tile_of(unit, n, inner, width)
            know_tile(row, count, mean, rstd, table, width)
            gradient_sums_of_tile(
                dy_, x_, o, n, inner, count, mean_, gamma_, table, sums, lost, width
            )
            differentiate_tile(
                dy_, x_, dx_, o, n, inner, count, mean_, gamma_, table, data_pointer(of_dgamma),
                data_pointer(of_dbeta), width, streams,
            )  # fmt: skip
            add_of_tile(dgamma, dgamma_lost, q, of_dgamma, rstd)
            add_of_tile(dbeta, dbeta_lost, q, of_dbeta, rstd)
    if streams:
        fence()


@njit(**CALLED)
def add_blocks(sums, lost, blocks, into):
    """The sums of all blocks of a parameter, with what they have lost, where they belong."""
    if sums is not None:
        gather(sums, lost, sums.size // blocks)
        for k in range(into.size):
            into[k] = sums[k]


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task


def backward_task(kinds):
    """`backward` as a task; who finishes the last part adds up the sums of dgamma and dbeta."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        backward(*(given[:10] + given[12:]))
        if increment(words, FINISHED) == num_parts - 1:
            add_blocks(given[6], given[8], words[COUNT], given[10])
            add_blocks(given[7], given[9], words[COUNT], given[11])

    return task
