"""Passes over rows along an axis that is not the last, for every dtype.

x is (K, N, I) in C order. The elements of a row have stride I, and the elements of I rows are
adjacent, so each lane of a vector belongs to a row. A tile is some of these rows: their elements
fill cache lines, and the tile stays in L2 between the passes. Sums over a row depend only on its
length. Sums of parameter gradients depend on the shape.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .column_sums import clear, compensation_for, flush_sums, reduce_blocks
from .columns_forward import can_use_non_temporal
from .compile import CALLED, INLINE
from .doubles import zeros_float64
from .moments import finalize_moments, finalize_moments_lanes, unscaled_mean
from .row_passes import SQUARES_PER_FLUSH, RowConstants, apply_affine, x_hat
from .simd import broadcast_like, fma, if_present, lanes, negative, ones, zeros
from .tasks import task_of
from .vector_memory import (
    data_pointer,
    fence,
    load,
    load_broadcast,
    load_partial,
    prefetch,
    stack_alloc,
    store,
    store_masked,
    store_partial,
    store_vector,
)

#: Most elements of a row from which its approximate mean is computed.
MAX_SAMPLE_ELEMENTS = 16
#: Number of tables with a constant per row of a tile: scale, offset, rstd and x_hat_correction.
FORWARD_TABLES = 4
#: Elements of each row that are written at a time, and the prefetch distance in such elements.
ELEMENTS_PER_BLOCK, PREFETCH_ELEMENTS = 8, 16
#: Numbers of float64 that two vectors hold.
LANES = 16


class Tile(NamedTuple):
    """Some adjacent rows, whose elements have stride `inner`."""

    offset: Any
    """The index of the first element."""
    row: Any
    count: Any
    """The number of rows, at most `width`, which is the length of a table."""
    width: Any
    n: Any
    inner: Any


@njit(**INLINE)
def tile_of(unit, n, inner, width):
    """Return a tile by its number."""
    tiles = -(-inner // width)
    sample, left = unit // tiles, unit % tiles * width
    offset, row = sample * n * inner + left, sample * inner + left
    return Tile(offset, row, min(width, inner - left), width, n, inner)


@njit(**INLINE)
def compute_approx_means(x, tile, table):
    """Fill the first table: approximate means of the rows of a tile, exact for constant rows."""
    x_offset, _, count, _, n, inner = tile
    table_ptr, ones_vec = data_pointer(table), ones(table)
    num_samples = min(n, MAX_SAMPLE_ELEMENTS)
    inv_count = broadcast_like(1.0 / num_samples, ones_vec)
    for j in range(0, count, lanes(ones_vec)):
        anchor = load_partial(x, x_offset + j, count - j, ones_vec)
        difference_sum = zeros(ones_vec)
        for k in range(1, num_samples):
            difference_sum = difference_sum + (
                load_partial(x, x_offset + n * k // num_samples * inner + j, count - j, ones_vec)
                - anchor
            )
        store(table_ptr, j, anchor + difference_sum * inv_count)


@njit(**INLINE)
def prefetch_tile(elements, tile, begin, length, num_lanes):
    """Prefetch some elements of each row, in the order of memory, at the prefetch distance."""
    first = begin + PREFETCH_ELEMENTS
    for k in range(first, first + length):
        for j in range(0, tile.count, num_lanes):
            prefetch(elements, tile.offset + k * tile.inner + j)


@njit(**INLINE)
def deviation_sums1(x, i, begin, end, inner, count, approx_mean):
    """Return the sums of d and d² over some elements of a vector of rows; d is x - approx_mean."""
    deviation, square = zeros(approx_mean), zeros(approx_mean)
    for k in range(begin, end):
        d = load_partial(x, i + k * inner, count, approx_mean) - approx_mean
        deviation, square = deviation + d, fma(d, d, square)
    return deviation, square


@njit(**INLINE)
def deviation_sums4(x, i, begin, end, inner, approx_means):
    """Return `deviation_sums1` of four vectors of rows, read in the order of memory."""
    r0, r1, r2, r3 = approx_means
    num_lanes = lanes(r0)
    zero = zeros(r0)
    a, b, c, d, aa, bb, cc, dd = zero, zero, zero, zero, zero, zero, zero, zero
    for k in range(begin, end):
        here = i + k * inner
        v0, v1 = load(x, here, r0), load(x, here + num_lanes, r0)
        v2, v3 = load(x, here + 2 * num_lanes, r0), load(x, here + 3 * num_lanes, r0)
        v0, v1, v2, v3 = v0 - r0, v1 - r1, v2 - r2, v3 - r3
        a, b, c, d = a + v0, b + v1, c + v2, d + v3
        aa, bb, cc, dd = fma(v0, v0, aa), fma(v1, v1, bb), fma(v2, v2, cc), fma(v3, v3, dd)
    return (a, b, c, d), (aa, bb, cc, dd)


@njit(**INLINE)
def deviation_sums_of_tile(x, tile, table, sums, compensation):
    """Take the sums of d and d² over each row of a tile, where d is x - approx_mean."""
    x_offset, _, count, width, n, inner = tile
    table_ptr, sums_ptr = data_pointer(table), data_pointer(sums)
    compensation_ptr, ones_vec = data_pointer(compensation), ones(table)
    num_lanes = lanes(ones_vec)
    clear(sums, compensation)
    for begin in range(0, n, SQUARES_PER_FLUSH):
        end = min(begin + SQUARES_PER_FLUSH, n)
        prefetch_tile(x, tile, begin, SQUARES_PER_FLUSH, num_lanes)
        j = 0
        while j + 4 * num_lanes <= count:
            approx_means = (
                load(table_ptr, j, ones_vec),
                load(table_ptr, j + num_lanes, ones_vec),
                load(table_ptr, j + 2 * num_lanes, ones_vec),
                load(table_ptr, j + 3 * num_lanes, ones_vec),
            )
            four, four_squares = deviation_sums4(x, x_offset + j, begin, end, inner, approx_means)
            for each in range(4):
                flush_sums(sums_ptr, compensation_ptr, j + each * num_lanes, four[each])
                flush_sums(
                    sums_ptr, compensation_ptr, width + j + each * num_lanes, four_squares[each]
                )
            j += 4 * num_lanes
        while j < count:
            approx_mean = load(table_ptr, j, ones_vec)
            deviation, square = deviation_sums1(
                x, x_offset + j, begin, end, inner, count - j, approx_mean
            )
            flush_sums(sums_ptr, compensation_ptr, j, deviation)
            flush_sums(sums_ptr, compensation_ptr, width + j, square)
            j += num_lanes
    reduce_blocks(sums, compensation, sums.size)


@njit(**INLINE)
def statistics_of_tile(x, tile, mean, rstd, table, sums, epsilon):
    """Store mean and rstd of each row of a tile, and fill the tables."""
    x_offset, row, count, width, n, inner = tile
    mean_ptr, rstd_ptr = data_pointer(mean), data_pointer(rstd)
    table_ptr, sums_ptr = data_pointer(table), data_pointer(sums)
    ones_vec, zero64 = ones(table), zeros_float64(ones(table))
    inv_count, last = 1.0 / n, lanes(ones_vec) - lanes(zero64)
    deviations, squares = stack_alloc(zero64, LANES), stack_alloc(zero64, LANES)
    for j in range(0, count, lanes(ones_vec)):
        num_rows = min(lanes(ones_vec), count - j)
        deviation = load(sums_ptr, j, zero64), load(sums_ptr, j + last, zero64)
        square = load(sums_ptr, width + j, zero64), load(sums_ptr, width + j + last, zero64)
        mean_residual, scaled_rstd, good = finalize_moments_lanes(
            deviation, square, deviations, squares, inv_count, ones_vec, mean_ptr, epsilon, num_rows
        )
        if good:
            approx_mean = load(table_ptr, j, ones_vec)
            if mean is not None:
                store_masked(mean_ptr, row + j, approx_mean + mean_residual, num_rows)
            store_masked(rstd_ptr, row + j, scaled_rstd, num_rows)
            store(table_ptr, j, ones_vec)
            store(table_ptr, width + j, negative(approx_mean))
            store(table_ptr, 2 * width + j, scaled_rstd)
            store(table_ptr, 3 * width + j, negative(mean_residual * scaled_rstd))
        else:
            for k in range(j, j + num_rows):
                pieces = (x_offset + k, 1, n, inner)
                factor, approx_mean, mean_residual, _, scaled_rstd = finalize_moments(
                    x, pieces, inv_count, ones_vec, mean_ptr, epsilon, table[k], sums[k],
                    sums[width + k],
                )  # fmt: skip
                if mean is not None:
                    mean[row + k] = unscaled_mean(factor, approx_mean, mean_residual)
                rstd[row + k] = scaled_rstd * factor
                table[k], table[width + k] = factor, -approx_mean
                table[2 * width + k], table[3 * width + k] = (
                    scaled_rstd,
                    -mean_residual * scaled_rstd,
                )


@njit(**INLINE)
def load_normalise_constants(table, j, width, mean, like):
    """Load the `RowConstants` of a vector of rows."""
    return RowConstants(
        load(table, j, like),
        load(table, width + j, like),
        load(table, 2 * width + j, like),
        if_present(mean, load(table, 3 * width + j, like)),
    )


@njit(**INLINE)
def normalised(values, row_constants, g, b):
    """Return y of a vector of elements with parameters g and b."""
    return apply_affine(x_hat(values, row_constants), g, b, 0, None)


@njit(**INLINE)
def write_tile(x, y, tile, mean, gamma, beta, table, non_temporal):
    """Write y of a tile, some elements of each row per load of the tables."""
    x_offset, _, count, width, n, inner = tile
    table_ptr, ones_vec = data_pointer(table), ones(table)
    num_lanes = lanes(ones_vec)
    for begin in range(0, n, ELEMENTS_PER_BLOCK):
        end = min(begin + ELEMENTS_PER_BLOCK, n)
        j = 0
        while j + 2 * num_lanes <= count:
            first = load_normalise_constants(table_ptr, j, width, mean, ones_vec)
            second = load_normalise_constants(table_ptr, j + num_lanes, width, mean, ones_vec)
            for k in range(begin, end):
                g, b = load_broadcast(gamma, k, ones_vec), load_broadcast(beta, k, ones_vec)
                i = x_offset + k * inner + j
                store_vector(
                    y, i, normalised(load(x, i, ones_vec), first, g, b), None, non_temporal
                )
                store_vector(
                    y,
                    i + num_lanes,
                    normalised(load(x, i + num_lanes, ones_vec), second, g, b),
                    None,
                    non_temporal,
                )
            j += 2 * num_lanes
        while j < count:
            first = load_normalise_constants(table_ptr, j, width, mean, ones_vec)
            for k in range(begin, end):
                g, b = load_broadcast(gamma, k, ones_vec), load_broadcast(beta, k, ones_vec)
                i = x_offset + k * inner + j
                values = normalised(load_partial(x, i, count - j, ones_vec), first, g, b)
                store_partial(y, i, values, count - j, non_temporal)
            j += num_lanes


@njit(**CALLED)
def forward(x, gamma, beta, y, mean, rstd, epsilon, width, non_temporal, start, stop):
    """Normalise tiles start to stop."""
    _, n, inner = x.shape
    x_ptr, y_ptr = data_pointer(x), data_pointer(y)
    gamma_ptr, beta_ptr = data_pointer(gamma), data_pointer(beta)
    table, sums = np.zeros(FORWARD_TABLES * width, rstd.dtype), np.empty(2 * width, np.float64)
    compensation, mean_ptr = compensation_for(sums, rstd), data_pointer(mean)
    non_temporal = can_use_non_temporal(y_ptr, inner, non_temporal, ones(rstd))
    for unit in range(start, stop):
        tile = tile_of(unit, n, inner, width)
        if mean is None:
            table[:width] = 0
        else:
            compute_approx_means(x_ptr, tile, table)
        deviation_sums_of_tile(x_ptr, tile, table, sums, compensation)
        statistics_of_tile(x_ptr, tile, mean, rstd, table, sums, epsilon)
        write_tile(x_ptr, y_ptr, tile, mean_ptr, gamma_ptr, beta_ptr, table, non_temporal)
    if non_temporal:
        fence()


forward_task = task_of(forward)
