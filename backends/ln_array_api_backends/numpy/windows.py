"""Passes over planes whose elements are normalised by the windows around them, tile by tile.

X is (P, H, W). The fields of a tile stay in the second cache: x, as far as its windows reach, and
what `window_runs` makes of it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .access import data_pointer, elements_to_alignment, load, load_broadcast, store
from .columns import put_some, some
from .compile import CALLED, INLINE, ONCE
from .simd import (
    absolute,
    broadcast,
    dtype_limits,
    fmax,
    lanes,
    ones,
    reduce_max,
    scalar_like,
    square_root,
    where_at_least,
    zeros,
)
from .tasks import arguments
from .window_runs import merge_windows

#: Fields of a tile: x, offset and variance of runs along rows, and both of windows.
FIELDS = 5
#: Vectors of a page, and how much further in it than the one before a field begins: a load from
#: where the processor takes it for what was just stored to another page has to wait.
PAGE, AHEAD = 64, 13


@njit(**ONCE)
def gather(x, plane, height, width, top, rows, left, columns, space, to, pitch, one):
    """Put a part of a plane, which may reach beyond its borders, into a field.

    `plane` is the plane's first element, and `to` that of the field. Gives the largest magnitude
    that is finite.
    """
    field = data_pointer(space)
    first, last = max(left, 0), min(left + columns, width)
    lead, count = first - left, last - first
    most = zeros(one)
    for i in range(rows):
        o, q = plane + min(max(top + i, 0), height - 1) * width, to + i * pitch
        edge = load_broadcast(x, o + first, one)
        for j in range(0, lead, lanes(one)):
            store(field, q + j, edge)
        for j in range(0, count, lanes(one)):
            values = some(x, o + first + j, count - j, one)
            most = fmax(most, absolute(values) + (values - values))  # NaN if it is not finite
            store(field, q + lead + j, values)
        edge = load_broadcast(x, o + last - 1, one)
        for j in range(lead + count, columns, lanes(one)):
            store(field, q + j, edge)
    return float(reduce_max(most))


@njit(**INLINE)
def power_of_two(most, epsilon, one):
    """What brings the squares of numbers up to `most`, or epsilon, into the range of the dtype.

    The sum of 2³¹ squares does not overflow, nor does the square of a difference of one ulp
    underflow. It is 1 for most, and changes no bit of what is in range.
    """
    smallest, _, _ = dtype_limits(one)
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


@njit(**ONCE)
def scale(space, o, count, factor, one):
    """Multiply so many numbers of a field, and those that follow in the last vector."""
    field, factors = data_pointer(space), broadcast(scalar_like(factor, one))
    for j in range(0, count, lanes(one)):
        store(field, o + j, load(field, o + j, one) * factors)


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
    """From row to row of a field: whole vectors, and one more for what is beyond the last place.

    They are an odd number, so that a column of vectors is spread over all sets of the cache.
    """
    return (-(-places // lanes(one)) + 1 | 1) * lanes(one)


@njit(**INLINE)
def workspace(rows, pitch, count, like):
    """Memory for so many fields, where the first begins, and how far it is to the next.

    The array has to go to all that works in it, since it is free after its last use.
    """
    one = ones(like)
    apart = (-(-rows * pitch // (PAGE * lanes(one))) * PAGE + AHEAD) * lanes(one)
    space = np.empty(count * apart + lanes(one), like.dtype)
    return space, elements_to_alignment(data_pointer(space), 0, one), apart


@njit(**CALLED)
def write(
    space, x, offset, variance, y, mean, rstd, o,
    rows, columns, reach, pitch, width, factor, epsilon, one,
):  # fmt: skip
    """Y of a tile, and mean and rstd where they are wanted, from element o on."""
    fields = data_pointer(space)
    smallest, _, most = dtype_limits(one)
    above, alone = 0.0, math.inf
    if epsilon > 0:
        above = max(epsilon * factor * factor, smallest)
        alone = min(1.0 / math.sqrt(epsilon), most)
    above, alone = broadcast(scalar_like(above, one)), broadcast(scalar_like(alone, one))
    scale, unscale = broadcast(scalar_like(factor, one)), broadcast(scalar_like(1.0 / factor, one))
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


@njit(**CALLED)
def forward(
    x, y, mean, rstd, across, strips, down, bands, epsilon,
    reach_down, reach_across, rows, columns, start, stop,
):  # fmt: skip
    """Tiles start to stop, of so many rows and columns.

    The tables of a tile are numbered `strips` and `bands`, by its column and its row.
    """
    reach = (reach_down, reach_across)
    x_, y_, mean_ = data_pointer(x), data_pointer(y), data_pointer(mean)
    rstd_, one = data_pointer(rstd), ones(across)
    _, height, width = x.shape
    pitch = pitch_of(columns + 2 * reach_across, one)
    space, field, apart = workspace(rows + 2 * reach_down, pitch, FIELDS, across)
    for unit in range(start, stop):
        plane, row, column, num_rows, num_columns = tile_of(unit, x.shape, rows, columns)
        top, high = row - reach_down, num_rows + 2 * reach_down
        left, wide = column - reach_across, num_columns + 2 * reach_across
        most = gather(x_, plane, height, width, top, high, left, wide, space, field, pitch, one)
        factor = power_of_two(most, epsilon, one)
        if factor != 1:
            scale(space, field, high * pitch, factor, one)
        offset = merge_windows(
            space, across, strips[column // columns], down, bands[row // rows],
            field, field + apart, field + 2 * apart, 2 * apart, max(-top, 0),
            min(top + high, height) - max(top, 0), num_rows, num_columns, reach, pitch, one,
        )  # fmt: skip
        write(
            space, field, offset, 2 * apart, y_, mean_, rstd_, plane + row * width + column,
            num_rows, num_columns, reach, pitch, width, factor, epsilon, one,
        )  # fmt: skip


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task
