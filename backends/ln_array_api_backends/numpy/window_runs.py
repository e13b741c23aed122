"""Moments of windows, merged from those of runs: along the rows of a tile, then down its columns.

Runs are doubled until they are as long as a window, as in `ln_array_api.kernels.windows`, which
explains why moments are merged, and sums are not subtracted. The result for an element depends only
on its window, and not on its tile.

All fields are in one workspace, with the same pitch, and are given by their offsets. A mean is
stored as its difference from the first element of its run, the anchor. Places beyond the border
repeat the border, so that an anchor is in the plane, and have weight 0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .compile import CALLED, INLINE, ONCE
from .simd import fma, lanes
from .vector_memory import data_pointer, load, load_broadcast, load_field, store, unrelated

#: Vectors of a field that are merged along rows at a time: they stay in L1, and a load does not
#: follow the store to its address too soon.
BLOCK = 48
#: Tables of a doubling step: two weights for the merge of two runs, two for that with a place.
TABLES = 4


@njit(**INLINE)
def first_step(radius):
    """Return the length of the shortest runs, 1, and the second highest bit of a window's length.

    The bits of the length, from the highest on, decide whether doubled runs get one more place. The
    integer is typed, since Numba would compile functions for the literal first.
    """
    bit = 1
    while 2 * bit <= 2 * radius + 1:
        bit *= 2
    return np.int64(1), bit // 2


@njit(**INLINE)
def offset_of(anchor, offset, second_anchor, second_offset):
    """Return the difference of the means of two runs. An offset that is None is 0."""
    step = second_anchor - anchor
    if offset is None:
        if second_offset is None:
            return step
        return step + second_offset
    if second_offset is None:
        return step - offset
    return step + (second_offset - offset)


@njit(**INLINE)
def mean_of_both(offset, step, weight):
    """Return the offset of two merged runs."""
    if offset is None:
        return weight * step
    return fma(weight, step, offset)


@njit(**INLINE)
def variance_of_both(variance, step, weight, cross_weight, second_variance, ones_vec):
    """Return the variance of two merged runs. A variance that is None is 0."""
    between = cross_weight * step
    if second_variance is None:
        if variance is None:
            return between * step
        return fma(between, step, (ones_vec - weight) * variance)
    return fma(between, step, fma(weight, second_variance, (ones_vec - weight) * variance))


@njit(**INLINE)
def weight_at(tables, t, place, down, ones_vec):
    """Load a weight: a vector for places along rows, or one number for all lanes if `down`."""
    if down is None:
        return load(tables, t + place, ones_vec)
    return load_broadcast(tables, t + place, ones_vec)


@njit(**INLINE)
def merge_next(fields, x, runs, variance, b, anchor, offset, square, weights, ones_vec):
    """Merge a run with the one that begins at b; return the offset and variance of both.

    `weights` are the weight of the second run, and that times the weight of the first.
    """
    weight, cross_weight = weights
    mean_offset = offset_of(
        anchor, offset, load(fields, x + b, ones_vec), load_field(fields, runs, 0, b, ones_vec)
    )
    second_square = load_field(fields, runs, variance, b, ones_vec)
    return mean_of_both(offset, mean_offset, weight), variance_of_both(
        square, mean_offset, weight, cross_weight, second_square, ones_vec
    )


@njit(**INLINE)
def weights_at(tables, t, pad, place, down, ones_vec):
    """Load two weights: vectors for places along rows, or one number each down columns."""
    return (
        weight_at(tables, t, place, down, ones_vec),
        weight_at(tables, t + pad, place, down, ones_vec),
    )


@njit(**CALLED)
def merge(
    fields, tables, x, runs, singles, target, variance,
    rows, places, pitch, stride, has_single, t, pad, down, ones_vec,
):  # fmt: skip
    """Merge runs with those `stride` elements further on, and with a place if `has_single`.

    `runs`, `singles` and `target` are the fields of offsets of runs, of single places and of the
    result. `runs` may be the target; None means that all are 0. The fields of variances follow
    `variance` elements later.
    """
    for i in range(rows):
        for j in range(0, places, lanes(ones_vec)):
            q, place = unrelated(i * pitch + j), j if down is None else i
            anchor, offset = load(fields, x + q, ones_vec), load_field(fields, runs, 0, q, ones_vec)
            square = load_field(fields, runs, variance, q, ones_vec)
            weights = weights_at(tables, t, pad, place, down, ones_vec)
            merged_offset, merged_variance = merge_next(
                fields, x, runs, variance, q + stride, anchor, offset, square, weights, ones_vec
            )
            if has_single:
                weights = weights_at(tables, t + 2 * pad, pad, place, down, ones_vec)
                merged_offset, merged_variance = merge_next(
                    fields, x, singles, variance, q + 2 * stride, anchor, merged_offset,
                    merged_variance, weights, ones_vec,
                )  # fmt: skip
            store(fields, target + q, merged_offset)
            if variance is not None:
                store(fields, target + variance + q, merged_variance)


@njit(**INLINE)
def single_places(fields, x, offset, count, variance, ones_vec):
    """Store offsets and variances of runs of one place: 0, or NaN where x is not finite."""
    for j in range(0, count, lanes(ones_vec)):
        values = load(fields, x + j, ones_vec)
        store(fields, offset + j, values - values)
        if variance is not None:
            store(fields, offset + variance + j, values - values)


@njit(**INLINE)
def repeat(fields, o, to, count, variance, ones_vec):
    """Copy a row of offsets, and of variances where these are kept."""
    for j in range(0, count, lanes(ones_vec)):
        store(fields, to + j, load(fields, o + j, ones_vec))
        if variance is not None:
            store(fields, to + variance + j, load(fields, o + variance + j, ones_vec))


@njit(**ONCE)
def merge_windows(
    space, across, strip, down, band, x, offset, second, variance,
    before, count, rows, columns, radius, pitch, ones_vec,
):  # fmt: skip
    """Compute the offsets and variances of all windows of a tile, and return their field.

    The field x has `rows` rows and `columns` columns, and those within the radius around them.
    `count` of its rows are in the plane, after `before` rows that are not. `across` and `down` are
    tables; `strip` and `band` are the numbers of those for this tile. `radius` is (down, across).
    The result is in `offset` or in `second`.
    """
    fields, across_ptr, down_ptr = data_pointer(space), data_pointer(across), data_pointer(down)
    pad, length = across.shape[2], 2 * radius[1] + 1
    block = max(1, BLOCK * lanes(ones_vec) // pitch)
    for first in range(before, before + count, block):
        some_rows, o = min(block, before + count - first), first * pitch
        (n, bit), t = first_step(radius[1]), strip * across.shape[1] * pad
        if bit == 0:
            single_places(fields, x + o, offset + o, some_rows * pitch, variance, ones_vec)
        while bit:
            has_single = length & bit != 0
            ends = columns + length - 2 * n - has_single
            if n == 1:
                merge(
                    fields, across_ptr, x + o, None, None, offset + o, variance,
                    some_rows, ends, pitch, n, has_single, t, pad, None, ones_vec,
                )  # fmt: skip
            else:
                merge(
                    fields, across_ptr, x + o, offset + o, None, offset + o, variance,
                    some_rows, ends, pitch, n, has_single, t, pad, None, ones_vec,
                )  # fmt: skip
            n, t, bit = 2 * n + has_single, t + TABLES * pad, bit // 2
    last = before + count - 1
    for i in range(rows + 2 * radius[0]):
        if i < before or i > last:
            edge = min(max(i, before), last)
            repeat(fields, offset + edge * pitch, offset + i * pitch, columns, variance, ones_vec)
    pad, length, runs = down.shape[2], 2 * radius[0] + 1, offset
    for j in range(0, columns, lanes(ones_vec)):  # all rows of a vector, which stay in L1
        (n, bit), t, runs = first_step(radius[0]), band * down.shape[1] * pad, offset
        while bit:
            has_single = length & bit != 0
            merge(
                fields, down_ptr, x + j, runs + j, offset + j, second + j, variance,
                rows + length - 2 * n - has_single, lanes(ones_vec), pitch, n * pitch, has_single,
                t, pad, True, ones_vec,
            )  # fmt: skip
            n, t, bit, runs = 2 * n + has_single, t + TABLES * pad, bit // 2, second
    return runs
