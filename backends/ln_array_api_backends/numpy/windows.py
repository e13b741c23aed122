"""Statistics of windows around each element of a plane, cut at its border, and what these give.

X is (P, H, W). A plane is worked on in tiles, whose fields stay in the second cache: x, and of runs
of places the mean and the variance. Runs along rows are doubled until they are as long as a window,
and then those down columns, as in `ln_array_api.kernels.windows`, which tells why their moments are
merged, and not sums of them subtracted. What an element gets depends on its window alone, and not
on the tile that it is in.

Fields lie in one workspace, each from some number on, and row by row at the same pitch. A mean is
kept as an offset: how far it is beyond the first element of its run, its anchor. Places beyond the
border repeat what is at the border, so that an anchor is in the plane, and weigh nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .access import element, elements_to_alignment, load, load_field, memory, store
from .columns import put_some, some
from .compile import INLINE, OPTIONS
from .simd import (
    BYTES,
    fma,
    lanes,
    largest,
    limits,
    magnitude,
    number,
    ones,
    peak,
    splat,
    square_root,
    where_at_least,
    zeros,
)
from .tasks import arguments

#: Bytes of fields that rows are merged in before the next ones: they stay in the first cache, and
#: what a vector is loaded from was not stored just before.
BLOCK = 16 << 10
#: Fields of a tile in the forward pass: x; offset and variance of runs along rows, and of windows.
FIELDS = 5
#: Tables of each step of doubling: the weights of a merger, and those of one place more.
TABLES = 4


@njit(**INLINE)
def inside(begin, n, length):
    """How many of n places from `begin` on are among those from 0 to `length`."""
    return min(max(begin + n, 0), length) - min(max(begin, 0), length)


@njit(**INLINE)
def highest_bit(n):
    """The largest power of two that is at most n."""
    bit = 1
    while 2 * bit <= n:
        bit *= 2
    return bit


@njit(**INLINE)
def rows_of_tables(reach):
    """How many tables windows that reach so far have: those of each step, and of their lengths."""
    steps, bit = 0, highest_bit(2 * reach + 1)
    while bit > 1:
        steps, bit = steps + 1, bit // 2
    return TABLES * steps + 1


@njit(**OPTIONS)
def weigh(tables, known, reach, begin, places, length):
    """How runs from each place of an axis are merged, from place `begin` on, of which 0 is first.

    For each step the part of the second run in both, and that times the part of the first, and the
    same for a single place that follows both; at last how many elements a window has. `known` tells
    what the tables are of already: the places beyond either border, and how many there are.
    """
    before, after = max(-begin, 0), max(begin + places - length, 0)
    if known[0] == before and known[1] == after and known[2] == places:
        return
    known[0], known[1], known[2] = before, after, places
    rows, pad = tables.shape
    n, t, bit = 1, 0, highest_bit(2 * reach + 1) // 2
    while bit:
        for j in range(places):
            a, b = inside(begin + j, n, length), inside(begin + j + n, n, length)
            part = b / max(a + b, 1)
            tables[t, j], tables[t + 1, j] = part, part * (1.0 - part)
            one_more = inside(begin + j + 2 * n, 1, length)
            part = one_more / max(a + b + one_more, 1)
            tables[t + 2, j], tables[t + 3, j] = part, part * (1.0 - part)
        n, t = 2 * n + ((2 * reach + 1) & bit != 0), t + TABLES
        bit //= 2
    for j in range(places):
        tables[rows - 1, j] = inside(begin + j, 2 * reach + 1, length)


@njit(**OPTIONS)
def gather(x, plane, height, width, top, rows, left, columns, space, to, pitch, one):
    """Put a part of a plane, which may reach beyond its borders, into a field.

    `plane` is the plane's first element, and `to` that of the field. Gives the largest magnitude
    that is finite.
    """
    field = memory(space)
    first, last = max(left, 0), min(left + columns, width)
    lead, count = first - left, last - first
    most = zeros(one)
    for i in range(rows):
        o, q = plane + min(max(top + i, 0), height - 1) * width, to + i * pitch
        edge = element(x, o + first, one)
        for j in range(0, lead, lanes(one)):
            store(field, q + j, edge)
        for j in range(0, count, lanes(one)):
            values = some(x, o + first + j, count - j, one)
            most = largest(most, magnitude(values) + (values - values))  # NaN if it is not finite
            store(field, q + lead + j, values)
        edge = element(x, o + last - 1, one)
        for j in range(lead + count, columns, lanes(one)):
            store(field, q + j, edge)
    return float(peak(most))


@njit(**INLINE)
def power_of_two(most, epsilon, one):
    """What brings the squares of numbers up to `most`, or epsilon, into the range of the dtype.

    The sum of 2³¹ squares does not overflow, nor does the square of a difference of one ulp
    underflow. It is 1 for most.
    """
    smallest, _, _ = limits(one)
    root = math.sqrt(epsilon)
    if smallest > 2.0**-200:
        if most >= 2.0**46:
            return 2.0**-62 if most < 2.0**108 else 2.0**-124
        if max(most, root) < 2.0**-16:
            return 2.0**62 if max(most, root) >= 2.0**-78 else 2.0**124
    else:
        if most >= 2.0**480:
            return 2.0**-700
        if max(most, root) < 2.0**-420:
            return 2.0**700
    return 1.0


@njit(**OPTIONS)
def scale(space, o, count, factor, one):
    """Multiply so many numbers of a field, and those that follow in the last vector."""
    field, factors = memory(space), splat(number(factor, one))
    for j in range(0, count, lanes(one)):
        store(field, o + j, load(field, o + j, one) * factors)


@njit(**INLINE)
def offset_of(anchor, offset, beside, beside_offset):
    """How far the mean of one run is beyond that of another. An offset that is None is 0."""
    step = beside - anchor
    if offset is None:
        if beside_offset is None:
            return step
        return step + beside_offset
    if beside_offset is None:
        return step - offset
    return step + (beside_offset - offset)


@njit(**INLINE)
def mean_of_both(offset, step, part):
    """The offset of two runs together."""
    if offset is None:
        return part * step
    return fma(part, step, offset)


@njit(**INLINE)
def variance_of_both(variance, step, part, weight, beside, one):
    """The variance of two runs together. One that is None is 0."""
    between = weight * step
    if beside is None:
        if variance is None:
            return between * step
        return fma(between, step, (one - part) * variance)
    return fma(between, step, fma(part, beside, (one - part) * variance))


@njit(**INLINE)
def weight_at(tables, t, place, down, one):
    """The number of a place in a table: in every lane down columns, else of as many places."""
    if down is None:
        return load(tables, t + place, one)
    return element(tables, t + place, one)


@njit(**OPTIONS)
def merge(
    fields, tables, x, runs, singles, target, variance,
    rows, places, pitch, n, step, plus, t, pad, down, one,
):  # fmt: skip
    """Runs twice as long, of runs of n places, which lie `step` elements apart; `plus` one place.

    `runs`, `singles` and `target` are where offsets are: of runs, which may be the target, of
    single places and of the result. None are all 0. Variances are so many elements behind them.
    """
    for i in range(rows):
        for j in range(0, places, lanes(one)):
            q, place = i * pitch + j, j if down is None else i
            b = q + n * step
            anchor, offset = load(fields, x + q, one), load_field(fields, runs, 0, q, one)
            square = load_field(fields, runs, variance, q, one)
            part = weight_at(tables, t, place, down, one)
            weight = weight_at(tables, t + pad, place, down, one)
            beyond = offset_of(
                anchor, offset, load(fields, x + b, one), load_field(fields, runs, 0, b, one)
            )
            both = mean_of_both(offset, beyond, part)
            of_both = variance_of_both(
                square, beyond, part, weight, load_field(fields, runs, variance, b, one), one
            )
            if plus:
                b += n * step
                part = weight_at(tables, t + 2 * pad, place, down, one)
                weight = weight_at(tables, t + 3 * pad, place, down, one)
                beyond = offset_of(
                    anchor, both, load(fields, x + b, one), load_field(fields, singles, 0, b, one)
                )
                both = mean_of_both(both, beyond, part)
                of_both = variance_of_both(
                    of_both,
                    beyond,
                    part,
                    weight,
                    load_field(fields, singles, variance, b, one),
                    one,
                )
            store(fields, target + q, both)
            if variance is not None:
                store(fields, target + variance + q, of_both)


@njit(**OPTIONS)
def merge_along(fields, tables, x, target, variance, rows, places, reach, pitch, pad, one):
    """Windows of places of each row, some rows after the other."""
    length = 2 * reach + 1
    block = max(1, BLOCK // (FIELDS * BYTES) * lanes(one) // pitch)
    for first in range(0, rows, block):
        count, o = min(block, rows - first), first * pitch
        n, t, bit = 1, 0, highest_bit(length) // 2
        if bit == 0:
            clear(fields, target + o, count * pitch, variance, one)
        while bit:
            plus = length & bit != 0
            ends = places - 2 * n - plus + 1
            if n == 1:
                merge(
                    fields, tables, x + o, None, None, target + o, variance,
                    count, ends, pitch, n, 1, plus, t, pad, None, one,
                )  # fmt: skip
            else:
                merge(
                    fields, tables, x + o, target + o, None, target + o, variance,
                    count, ends, pitch, n, 1, plus, t, pad, None, one,
                )  # fmt: skip
            n, t, bit = 2 * n + plus, t + TABLES * pad, bit // 2


@njit(**OPTIONS)
def merge_down(fields, tables, x, singles, target, variance, rows, places, reach, pitch, pad, one):
    """Windows of rows, from those along each row. Gives where they are."""
    length = 2 * reach + 1
    n, t, bit = 1, 0, highest_bit(length) // 2
    runs = singles
    while bit:
        plus = length & bit != 0
        ends = rows - 2 * n - plus + 1
        merge(
            fields, tables, x, runs, singles, target, variance,
            ends, places, pitch, n, pitch, plus, t, pad, True, one,
        )  # fmt: skip
        n, t, bit, runs = 2 * n + plus, t + TABLES * pad, bit // 2, target
    return runs


@njit(**INLINE)
def clear(fields, o, count, variance, one):
    """Put 0 to offsets, and to variances where these are kept."""
    for j in range(0, count, lanes(one)):
        store(fields, o + j, zeros(one))
        if variance is not None:
            store(fields, o + variance + j, zeros(one))


@njit(**INLINE)
def repeat(fields, o, to, count, variance, one):
    """Copy a row of offsets, and of variances where these are kept."""
    for j in range(0, count, lanes(one)):
        store(fields, to + j, load(fields, o + j, one))
        if variance is not None:
            store(fields, to + variance + j, load(fields, o + variance + j, one))


@njit(**OPTIONS)
def windows(
    space, across, down, x, offset, second, variance,
    before, count, rows, columns, reach, pitch, one,
):  # fmt: skip
    """Offsets of all windows of a tile, and variances. Gives where they are: at one of two places.

    The field x has rows and columns for as many windows and what they reach to, `count` rows of
    them in the plane, after `before` that are not. `reach` is that down and across.
    """
    fields, ends = memory(space), columns + 2 * reach[1]
    o = before * pitch
    merge_along(
        fields, memory(across), x + o, offset + o, variance,
        count, ends, reach[1], pitch, across.shape[1], one,
    )  # fmt: skip
    for i in range(before):
        repeat(fields, offset + o, offset + i * pitch, columns, variance, one)
    last = before + count - 1
    for i in range(last + 1, rows + 2 * reach[0]):
        repeat(fields, offset + last * pitch, offset + i * pitch, columns, variance, one)
    return merge_down(
        fields, memory(down), x, offset, second, variance,
        rows + 2 * reach[0], columns, reach[0], pitch, down.shape[1], one,
    )  # fmt: skip


@njit(**INLINE)
def tile_of(unit, shape, rows, columns):
    """Of a tile: its plane's first element, its first row and column, and how many it has."""
    _, height, width = shape
    bands, strips = -(-height // rows), -(-width // columns)
    plane, tile = unit // (bands * strips), unit % (bands * strips)
    row, column = tile // strips * rows, tile % strips * columns
    return (
        plane * height * width,
        row,
        column,
        min(rows, height - row),
        min(columns, width - column),
    )


@njit(**INLINE)
def pitch_of(places, one):
    """From row to row of a field: whole vectors, and one more for what is beyond the last place."""
    return (-(-places // lanes(one)) + 1) * lanes(one)


@njit(**INLINE)
def workspace(rows, pitch, count, like):
    """Memory for so many fields, where the first begins, and how far it is to the next."""
    apart = rows * pitch + lanes(ones(like))
    fields = np.empty(count * apart + lanes(ones(like)), like.dtype)
    return fields, elements_to_alignment(memory(fields), 0, ones(like)), apart


@njit(**OPTIONS)
def write(
    space, x, offset, variance, y, mean, rstd, o,
    rows, columns, reach, pitch, width, factor, epsilon, one,
):  # fmt: skip
    """Y of a tile, and mean and rstd where they are wanted, from element o on."""
    fields = memory(space)
    smallest, _, most = limits(one)
    above, alone = 0.0, math.inf
    if epsilon > 0:
        above = max(epsilon * factor * factor, smallest)
        alone = min(1.0 / math.sqrt(epsilon), most)
    above, alone = splat(number(above, one)), splat(number(alone, one))
    scale, unscale = splat(number(factor, one)), splat(number(1.0 / factor, one))
    centre = reach[0] * pitch + reach[1]
    for i in range(rows):
        for j in range(0, columns, lanes(one)):
            q, p = i * pitch + j, o + i * width + j
            anchor, beyond = load(fields, x + q, one), load(fields, offset + q, one)
            square = load(fields, offset + variance + q, one)
            root = one / square_root(square + above)
            deviation = (load(fields, x + centre + q, one) - anchor) - beyond
            put_some(y, p, deviation * root, columns - j, False)
            if mean is not None:
                put_some(mean, p, (anchor + beyond) * unscale, columns - j, False)
                # Where all is alike, epsilon alone makes rstd, which may be out of range if scaled.
                root = where_at_least(zeros(one), square, alone, root * scale)
                put_some(rstd, p, root, columns - j, False)


@njit(**OPTIONS)
def forward(x, y, mean, rstd, like, epsilon, down, across, rows, columns, start, stop):
    """Tiles start to stop, of so many rows and columns, whose windows reach so far."""
    reach = (down, across)
    x_, y_, mean_, rstd_, one = memory(x), memory(y), memory(mean), memory(rstd), ones(like)
    _, height, width = x.shape
    pitch = pitch_of(columns + 2 * across, one)
    space, field, apart = workspace(rows + 2 * down, pitch, FIELDS, like)
    of_columns, known_columns = tables_of(across, pitch, like)
    of_rows, known_rows = tables_of(down, rows + 2 * down, like)
    for unit in range(start, stop):
        plane, row, column, num_rows, num_columns = tile_of(unit, x.shape, rows, columns)
        top, left, high, wide = (
            row - down,
            column - across,
            num_rows + 2 * down,
            num_columns + 2 * across,
        )
        weigh(of_columns, known_columns, across, left, wide, width)
        weigh(of_rows, known_rows, down, top, high, height)
        most = gather(x_, plane, height, width, top, high, left, wide, space, field, pitch, one)
        factor = power_of_two(most, epsilon, one)
        if factor != 1:
            scale(space, field, high * pitch, factor, one)
        before = max(-top, 0)
        offset = windows(
            space, of_columns, of_rows, field, field + apart, field + 2 * apart, 2 * apart,
            before, min(top + high, height) - max(top, 0), num_rows, num_columns, reach, pitch, one,
        )  # fmt: skip
        write(
            space, field, offset, 2 * apart, y_, mean_, rstd_, plane + row * width + column,
            num_rows, num_columns, reach, pitch, width, factor, epsilon, one,
        )  # fmt: skip


@njit(**INLINE)
def tables_of(reach, places, like):
    """Memory for the tables of windows that reach so far, and for what is known of them."""
    return np.zeros((rows_of_tables(reach), places), like.dtype), np.full(3, -1)


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task
