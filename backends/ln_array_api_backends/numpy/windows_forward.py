"""Local normalisation of planes, tile by tile: each element by the window around it.

x is (P, H, W). The fields of a tile stay in L2: x including the windows at its border, and the
moments that `window_runs` computes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .compile import CALLED, INLINE, ONCE
from .simd import (
    absolute,
    broadcast_like,
    dtype_limits,
    fmax,
    lanes,
    ones,
    reduce_max,
    square_root,
    where_at_least,
    zeros,
)
from .tasks import task_of
from .vector_memory import (
    data_pointer,
    elements_to_alignment,
    load,
    load_broadcast,
    load_partial,
    store,
    store_partial,
)
from .window_runs import merge_windows

#: Fields of a tile: x, offset and variance of runs along rows, and both of windows.
FIELDS = 5
#: Vectors in a page, and the offset within a page from field to field: a load waits for a recent
#: store to the same offset in another page (4K aliasing).
PAGE_VECTORS, FIELD_OFFSET = 64, 13


@njit(**INLINE)
def scale_factor(max_abs, epsilon, ones_vec):
    """Return the power of two that brings squares of numbers up to `max_abs` into range.

    A sum of 2³¹ squares does not overflow, and the square of a difference of one ulp does not
    underflow. It is 1 for most data, and changes no bits of results in range.
    """
    min_normal, _, _ = dtype_limits(ones_vec)
    sqrt_epsilon = math.sqrt(epsilon)
    if min_normal > 2.0**-200:
        if max_abs >= 2.0**46:
            return 2.0**-62 if max_abs < 2.0**108 else 2.0**-124
        if max(max_abs, sqrt_epsilon) < 2.0**-16:
            return 2.0**62 if max(max_abs, sqrt_epsilon) >= 2.0**-78 else 2.0**124
    else:
        if max_abs >= 2.0**480:
            return 2.0**-700
        if max(max_abs, sqrt_epsilon) < 2.0**-420:
            return 2.0**700
    return 1.0


@njit(**ONCE)
def scale_field(space, o, count, factor, ones_vec):
    """Multiply `count` numbers of a field, rounded up to whole vectors, by a factor."""
    field, factors = data_pointer(space), broadcast_like(factor, ones_vec)
    for j in range(0, count, lanes(ones_vec)):
        store(field, o + j, load(field, o + j, ones_vec) * factors)


@njit(**ONCE)
def load_tile(
    x, plane, height, width, top, rows, left, columns, space, to, pitch, epsilon, ones_vec
):
    """Copy a part of a plane, which may extend beyond the borders, to a field.

    `plane` is the offset of the plane, and `to` that of the field. Returns the `scale_factor` by
    which the field is multiplied.
    """
    field = data_pointer(space)
    first, last = max(left, 0), min(left + columns, width)
    lead, count = first - left, last - first
    max_abs = zeros(ones_vec)
    for i in range(rows):
        x_offset, field_offset = plane + min(max(top + i, 0), height - 1) * width, to + i * pitch
        edge = load_broadcast(x, x_offset + first, ones_vec)
        for j in range(0, lead, lanes(ones_vec)):
            store(field, field_offset + j, edge)
        for j in range(0, count, lanes(ones_vec)):
            values = load_partial(x, x_offset + first + j, count - j, ones_vec)
            max_abs = fmax(max_abs, absolute(values) + (values - values))  # NaN if it is not finite
            store(field, field_offset + lead + j, values)
        edge = load_broadcast(x, x_offset + last - 1, ones_vec)
        for j in range(lead + count, columns, lanes(ones_vec)):
            store(field, field_offset + j, edge)
    factor = scale_factor(float(reduce_max(max_abs)), epsilon, ones_vec)
    if factor != 1:
        scale_field(space, to, rows * pitch, factor, ones_vec)
    return factor


@njit(**INLINE)
def tile_of(unit, shape, rows, columns):
    """Return the offset of the plane of a tile, its first row and column, and its shape."""
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
def workspace(rows, places, count, like):
    """Allocate `count` fields; return the array, the first offset, and the strides.

    These are the stride of the fields and that of their rows, the pitch: whole vectors, and one
    after the last place. The number of vectors is odd, so that a column of vectors is spread over
    all cache sets. Functions get the array and not a pointer, since Numba frees it after its last
    use.
    """
    ones_vec = ones(like)
    pitch = (-(-places // lanes(ones_vec)) + 1 | 1) * lanes(ones_vec)
    field_stride = (
        -(-rows * pitch // (PAGE_VECTORS * lanes(ones_vec))) * PAGE_VECTORS + FIELD_OFFSET
    ) * lanes(ones_vec)
    space = np.empty(count * field_stride + lanes(ones_vec), like.dtype)
    return space, elements_to_alignment(data_pointer(space), 0, ones_vec), field_stride, pitch


@njit(**CALLED)
def write_tile(
    space, x, offset, variance, y, mean, rstd, first_y,
    rows, columns, radius, pitch, width, factor, epsilon, ones_vec,
):  # fmt: skip
    """Write y of a tile, and mean and rstd unless these are None, from element first_y on."""
    fields = data_pointer(space)
    min_normal, _, max_number = dtype_limits(ones_vec)
    variance_epsilon, epsilon_rstd = 0.0, math.inf
    if epsilon > 0:
        variance_epsilon = max(epsilon * factor * factor, min_normal)
        epsilon_rstd = min(1.0 / math.sqrt(epsilon), max_number)
    variance_epsilon = broadcast_like(variance_epsilon, ones_vec)
    epsilon_rstd = broadcast_like(epsilon_rstd, ones_vec)
    scale = broadcast_like(factor, ones_vec)
    unscale = broadcast_like(1.0 / factor, ones_vec)
    centre = radius[0] * pitch + radius[1]
    for i in range(rows):
        for j in range(0, columns, lanes(ones_vec)):
            field_offset, y_offset = i * pitch + j, first_y + i * width + j
            anchor = load(fields, x + field_offset, ones_vec)
            mean_offset = load(fields, offset + field_offset, ones_vec)
            square = load(fields, offset + variance + field_offset, ones_vec)
            rstd_vec = ones_vec / square_root(square + variance_epsilon)
            deviation = (load(fields, x + centre + field_offset, ones_vec) - anchor) - mean_offset
            store_partial(y, y_offset, deviation * rstd_vec, columns - j, False)
            if mean is not None:
                store_partial(mean, y_offset, (anchor + mean_offset) * unscale, columns - j, False)
                # In a constant window rstd depends only on epsilon, and may overflow if scaled.
                rstd_vec = where_at_least(zeros(ones_vec), square, epsilon_rstd, rstd_vec * scale)
                store_partial(rstd, y_offset, rstd_vec, columns - j, False)


@njit(**CALLED)
def forward(
    x, y, mean, rstd, across, strips, down, bands, epsilon,
    radius_down, radius_across, rows, columns, start, stop,
):  # fmt: skip
    """Normalise tiles start to stop, of `rows` rows and `columns` columns.

    `strips` and `bands` are the numbers of the tables of a tile, by its column and its row.
    """
    radius = (radius_down, radius_across)
    x_ptr, y_ptr, mean_ptr = data_pointer(x), data_pointer(y), data_pointer(mean)
    rstd_ptr, ones_vec = data_pointer(rstd), ones(across)
    _, height, width = x.shape
    space, field, field_stride, pitch = workspace(
        rows + 2 * radius_down, columns + 2 * radius_across, FIELDS, across
    )
    for unit in range(start, stop):
        plane, row, column, num_rows, num_columns = tile_of(unit, x.shape, rows, columns)
        top, high = row - radius_down, num_rows + 2 * radius_down
        left, wide = column - radius_across, num_columns + 2 * radius_across
        factor = load_tile(
            x_ptr, plane, height, width, top, high, left, wide, space, field, pitch, epsilon,
            ones_vec,
        )  # fmt: skip
        offset = merge_windows(
            space, across, strips[column // columns], down, bands[row // rows],
            field, field + field_stride, field + 2 * field_stride, 2 * field_stride, max(-top, 0),
            min(top + high, height) - max(top, 0), num_rows, num_columns, radius, pitch, ones_vec,
        )  # fmt: skip
        write_tile(
            space, field, offset, 2 * field_stride, y_ptr, mean_ptr, rstd_ptr,
            plane + row * width + column, num_rows, num_columns, radius, pitch, width, factor,
            epsilon, ones_vec,
        )  # fmt: skip


forward_task = task_of(forward)
