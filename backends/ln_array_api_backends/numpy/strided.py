"""Passes over rows along an axis that is not the last, for every dtype.

x is (K, N, I) in C order. The elements of a row have stride I, and the elements of I rows are
adjacent, so each lane of a vector belongs to a row. A tile is some of these rows: their elements
fill cache lines, and the tile stays in L2 between the passes. Sums over a row depend only on its
length. Sums of parameter gradients depend on the shape.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from .atomics import increment
from .column_sums import clear, compensation_for, flush_sums, reduce_blocks
from .columns import can_use_non_temporal, load_partial, store_partial, store_vector
from .compile import CALLED, INLINE
from .doubles import from_float64, zeros_float64
from .gradient_sums import clear as clear_from
from .moments import finalize_moments, finalize_moments_lanes, unscaled_mean
from .row_passes import SQUARES_PER_FLUSH, TERMS_PER_FLUSH, apply_affine, x_hat
from .rows_backward import deviation, exact_x_hat, scaled_dy
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
from .tasks import COUNT, FINISHED, arguments
from .vector_memory import (
    data_pointer,
    fence,
    load,
    load_broadcast,
    prefetch,
    stack_alloc,
    store,
    store_masked,
)

#: Most elements of a row from which its approximate mean is computed.
MAX_SAMPLE_ELEMENTS = 16
#: Number of tables with a constant per row of a tile: scale, offset, rstd and x_hat_correction;
#: in the backward pass mean, rstd, x_hat_correction, -mean(g) and -projection.
FORWARD_TABLES, BACKWARD_TABLES = 4, 5
#: Elements of each row that are written at a time, and the prefetch distance in such elements.
ELEMENTS_PER_BLOCK, PREFETCH_ELEMENTS = 8, 16
#: Numbers of float64 that two vectors hold.
LANES = 16


def empty_if_present(present, length, like):
    """Allocate `length` numbers of the dtype of `like`, or return None if `present` is None."""


@overload(empty_if_present)
def _empty_if_present(present, length, like):
    if isinstance(present, types.NoneType):
        return lambda present, length, like: None
    return lambda present, length, like: np.empty(length, like.dtype)


@njit(**INLINE)
def tile_of(unit, n, inner, width):
    """Return the offset of a tile, its first row and its number of rows, at most `width`."""
    tiles = -(-inner // width)
    sample, left = unit // tiles, unit % tiles * width
    return sample * n * inner + left, sample * inner + left, min(width, inner - left)


@njit(**INLINE)
def compute_approx_means(x, x_offset, n, inner, count, table):
    """Fill the first table: approximate means of the rows of a tile, exact for constant rows."""
    table_ptr, ones_vec = data_pointer(table), ones(table)
    num_samples = min(n, MAX_SAMPLE_ELEMENTS)
    inv_count = broadcast(scalar_like(1.0 / num_samples, ones_vec))
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
def prefetch_tile(elements, i, rows, inner, count, num_lanes):
    """Prefetch some elements of each row of a tile, in the order of memory."""
    for k in range(rows):
        for j in range(0, count, num_lanes):
            prefetch(elements, i + k * inner + j)


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
def deviation_sums_of_tile(x, x_offset, n, inner, count, table, sums, compensation, width):
    """Take the sums of d and d² over each row of a tile, where d is x - approx_mean."""
    table_ptr, sums_ptr = data_pointer(table), data_pointer(sums)
    compensation_ptr, ones_vec = data_pointer(compensation), ones(table)
    num_lanes = lanes(ones_vec)
    clear(sums, compensation)
    for begin in range(0, n, SQUARES_PER_FLUSH):
        end = min(begin + SQUARES_PER_FLUSH, n)
        prefetch_tile(
            x, x_offset + (begin + PREFETCH_ELEMENTS) * inner, SQUARES_PER_FLUSH, inner, count,
            num_lanes,
        )  # fmt: skip
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
def statistics_of_tile(x, x_offset, n, inner, row, count, mean, rstd, table, sums, epsilon, width):
    """Store mean and rstd of each row of a tile, and fill the tables."""
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
    """Load scale, offset, rstd and x_hat_correction for a vector of rows."""
    return (
        load(table, j, like),
        load(table, width + j, like),
        load(table, 2 * width + j, like),
        if_present(mean, load(table, 3 * width + j, like)),
    )


@njit(**INLINE)
def normalised(values, row_constants, g, b):
    """Return y of a vector of elements with parameters g and b."""
    scale, offset, rstd, x_hat_correction = row_constants
    return apply_affine(x_hat(values, scale, offset, rstd, x_hat_correction), g, b, 0, None)


@njit(**INLINE)
def write_tile(x, y, x_offset, n, inner, count, mean, gamma, beta, table, width, non_temporal):
    """Write y of a tile, some elements of each row per load of the tables."""
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
                store_vector(y, i, normalised(load(x, i, ones_vec), first, g, b), non_temporal)
                store_vector(
                    y,
                    i + num_lanes,
                    normalised(load(x, i + num_lanes, ones_vec), second, g, b),
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
        x_offset, row, count = tile_of(unit, n, inner, width)
        if mean is None:
            table[:width] = 0
        else:
            compute_approx_means(x_ptr, x_offset, n, inner, count, table)
        deviation_sums_of_tile(x_ptr, x_offset, n, inner, count, table, sums, compensation, width)
        statistics_of_tile(
            x_ptr, x_offset, n, inner, row, count, mean, rstd, table, sums, epsilon, width
        )
        write_tile(
            x_ptr, y_ptr, x_offset, n, inner, count, mean_ptr, gamma_ptr, beta_ptr, table, width,
            non_temporal,
        )  # fmt: skip
    if non_temporal:
        fence()


@njit(**INLINE)
def load_stats_tables(row, count, mean, rstd, table, width):
    """Fill the first two tables of the backward pass: mean and rstd of rows; 0 beyond the last."""
    table[: 2 * width] = 0
    for k in range(count):
        if mean is not None:
            table[k] = mean[row + k]
        table[width + k] = rstd[row + k]


@njit(**INLINE)
def add_terms(sums, d, g, rstd, scale):
    """Add d * scale, g and g * d * rstd to three sums."""
    sum_d, sum_g, sum_g_x_hat = sums
    return fma(d, scale, sum_d), sum_g + g, fma(g, d * rstd, sum_g_x_hat)


@njit(**INLINE)
def flush_tile_sums(sums, compensation, j, width, mean, lane_sums):
    """Add three lane sums to the sums of the tile."""
    sum_d, sum_g, sum_g_x_hat = lane_sums
    if mean is not None:
        flush_sums(sums, compensation, j, sum_d)
        flush_sums(sums, compensation, width + j, sum_g)
    flush_sums(sums, compensation, 2 * width + j, sum_g_x_hat)


@njit(**INLINE)
def gradient_sums_of_tile(
    dy, x, x_offset, n, inner, count, mean, gamma, table, sums, compensation, width
):  # fmt: skip
    """Take the sums of `backward.gradient_lane_sums` over each row, and fill the other tables."""
    table_ptr, sums_ptr = data_pointer(table), data_pointer(sums)
    compensation_ptr, ones_vec = data_pointer(compensation), ones(table)
    num_lanes = lanes(ones_vec)
    zero = zeros(ones_vec)
    clear(sums, compensation)
    for begin in range(0, n, TERMS_PER_FLUSH):
        end = min(begin + TERMS_PER_FLUSH, n)
        prefetch_tile(
            x, x_offset + (begin + PREFETCH_ELEMENTS) * inner, TERMS_PER_FLUSH, inner, count,
            num_lanes,
        )  # fmt: skip
        prefetch_tile(
            dy, x_offset + (begin + PREFETCH_ELEMENTS) * inner, TERMS_PER_FLUSH, inner, count,
            num_lanes,
        )  # fmt: skip
        j = 0
        while j + 2 * num_lanes <= count:
            first_mean = if_present(mean, load(table_ptr, j, ones_vec))
            second_mean = if_present(mean, load(table_ptr, j + num_lanes, ones_vec))
            r0 = load(table_ptr, width + j, ones_vec)
            r1 = load(table_ptr, width + j + num_lanes, ones_vec)
            first_scale, _ = range_scale(r0)
            second_scale, _ = range_scale(r1)
            first, second = (zero, zero, zero), (zero, zero, zero)
            for k in range(begin, end):
                i, gamma_k = x_offset + k * inner + j, load_broadcast(gamma, k, ones_vec)
                v0, v1 = load(x, i, ones_vec), load(x, i + num_lanes, ones_vec)
                g0, g1 = load(dy, i, ones_vec), load(dy, i + num_lanes, ones_vec)
                g0, g1 = (
                    scaled_dy(g0, gamma_k, 0, None, None),
                    scaled_dy(g1, gamma_k, 0, None, None),
                )
                first = add_terms(first, deviation(v0, first_mean), g0, r0, first_scale)
                second = add_terms(second, deviation(v1, second_mean), g1, r1, second_scale)
            flush_tile_sums(sums_ptr, compensation_ptr, j, width, mean, first)
            flush_tile_sums(sums_ptr, compensation_ptr, j + num_lanes, width, mean, second)
            j += 2 * num_lanes
        while j < count:
            first_mean = if_present(mean, load(table_ptr, j, ones_vec))
            r0 = load(table_ptr, width + j, ones_vec)
            first_scale, _ = range_scale(r0)
            first = (zero, zero, zero)
            for k in range(begin, end):
                i = x_offset + k * inner + j
                v0 = load_partial(x, i, count - j, ones_vec)
                g0 = load_partial(dy, i, count - j, ones_vec)
                g0 = scaled_dy(g0, load_broadcast(gamma, k, ones_vec), 0, None, None)
                first = add_terms(first, deviation(v0, first_mean), g0, r0, first_scale)
            flush_tile_sums(sums_ptr, compensation_ptr, j, width, mean, first)
            j += num_lanes
    reduce_blocks(sums, compensation, sums.size)
    inv_count = broadcast(scalar_like(1.0 / n, ones_vec))
    for j in range(0, count, num_lanes):
        r = load(table_ptr, width + j, ones_vec)
        _, unscale = range_scale(r)
        x_hat_mean = load_rounded(sums_ptr, j, ones_vec) * inv_count * (r * unscale)
        mean_g = load_rounded(sums_ptr, width + j, ones_vec) * inv_count
        projection = load_rounded(sums_ptr, 2 * width + j, ones_vec) * inv_count
        store(table_ptr, 2 * width + j, negative(x_hat_mean))
        store(table_ptr, 3 * width + j, negative(mean_g))
        store(table_ptr, 4 * width + j, negative(projection - x_hat_mean * mean_g))


@njit(**INLINE)
def load_rounded(sums, j, like):
    """Load a vector of float64 sums, rounded to the dtype of `like`."""
    zero64 = zeros_float64(like)
    last = lanes(like) - lanes(zero64)
    return from_float64(load(sums, j, zero64), load(sums, j + last, zero64), like)


@njit(**INLINE)
def load_dx_constants(table, j, width, mean, like):
    """Load the constants of `backward.dx_vector` for a vector of rows."""
    return (
        if_present(mean, load(table, j, like)),
        load(table, width + j, like),
        if_present(mean, load(table, 2 * width + j, like)),
        if_present(mean, load(table, 3 * width + j, like)),
        load(table, 4 * width + j, like),
    )


@njit(**INLINE)
def dx_vector(v, d, row_constants, gamma):
    """Return dx and x_hat of a vector of elements v with gradient d."""
    mean, rstd, x_hat_correction, neg_mean_g, neg_projection = row_constants
    x_hat = exact_x_hat(v, mean, rstd, x_hat_correction)
    return fma(x_hat, neg_projection, scaled_dy(d, gamma, 0, None, neg_mean_g)) * rstd, x_hat


@njit(**INLINE)
def write_dx_tile(
    dy, x, dx, x_offset, n, inner, count, mean, gamma, table, dgamma, dbeta, width, non_temporal
):  # fmt: skip
    """Write dx and the sums of dgamma and dbeta of a tile, two elements of each row at a time."""
    table_ptr, ones_vec = data_pointer(table), ones(table)
    num_lanes = lanes(ones_vec)
    zero = zeros(ones_vec)
    quarter = num_lanes // 4
    all_sums = stack_alloc(ones_vec, LANES)
    for k in range(0, n - 1, 2):
        gamma0, gamma1 = load_broadcast(gamma, k, ones_vec), load_broadcast(gamma, k + 1, ones_vec)
        dgamma_acc0, dbeta_acc0, dgamma_acc1, dbeta_acc1 = zero, zero, zero, zero
        for j in range(0, count, num_lanes):
            i, remaining = x_offset + k * inner + j, count - j
            row_constants = load_dx_constants(table_ptr, j, width, mean, ones_vec)
            d0 = load_partial(dy, i, remaining, ones_vec)
            d1 = load_partial(dy, i + inner, remaining, ones_vec)
            dx0, x_hat0 = dx_vector(
                load_partial(x, i, remaining, ones_vec), d0, row_constants, gamma0
            )
            dx1, x_hat1 = dx_vector(
                load_partial(x, i + inner, remaining, ones_vec), d1, row_constants, gamma1
            )
            dgamma_acc0, dbeta_acc0 = fma(d0, x_hat0, dgamma_acc0), dbeta_acc0 + d0
            dgamma_acc1, dbeta_acc1 = fma(d1, x_hat1, dgamma_acc1), dbeta_acc1 + d1
            if dx is not None:
                store_partial(dx, i, dx0, remaining, non_temporal)
                store_partial(dx, i + inner, dx1, remaining, non_temporal)
        store(all_sums, 0, reduce_add4(dgamma_acc0, dgamma_acc1, dbeta_acc0, dbeta_acc1))
        if dgamma is not None:
            dgamma[k], dgamma[k + 1] = all_sums[0], all_sums[quarter]
        if dbeta is not None:
            dbeta[k], dbeta[k + 1] = all_sums[2 * quarter], all_sums[3 * quarter]
    if n % 2:
        k = n - 1
        dgamma_acc0, dbeta_acc0 = zero, zero
        for j in range(0, count, num_lanes):
            i, remaining = x_offset + k * inner + j, count - j
            row_constants = load_dx_constants(table_ptr, j, width, mean, ones_vec)
            d0 = load_partial(dy, i, remaining, ones_vec)
            dx0, x_hat0 = dx_vector(
                load_partial(x, i, remaining, ones_vec),
                d0,
                row_constants,
                load_broadcast(gamma, k, ones_vec),
            )
            dgamma_acc0, dbeta_acc0 = fma(d0, x_hat0, dgamma_acc0), dbeta_acc0 + d0
            if dx is not None:
                store_partial(dx, i, dx0, remaining, non_temporal)
        if dgamma is not None:
            dgamma[k] = reduce_add(dgamma_acc0)
        if dbeta is not None:
            dbeta[k] = reduce_add(dbeta_acc0)


@njit(**INLINE)
def flush_param_sums(sums, compensation, sums_offset, tile_sums, acc_like):
    """Add the sums of a tile to those of its block, which begin at sums_offset."""
    if sums is not None:
        ones_vec = ones(acc_like)
        sums_ptr, compensation_ptr = data_pointer(sums), data_pointer(compensation)
        tile_sums_ptr = data_pointer(tile_sums)
        for k in range(0, tile_sums.size, lanes(ones_vec)):
            flush_sums(
                sums_ptr, compensation_ptr, sums_offset + k, load(tile_sums_ptr, k, ones_vec)
            )


@njit(**CALLED)
def backward(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, dgamma_comp, dbeta_comp, width, tiles,
    non_temporal, start, stop,
):  # fmt: skip
    """Process blocks start to stop of `tiles` tiles, each with sums of dgamma and dbeta.

    Numba frees an array after its last use, so pointers to arrays that are used by all blocks are
    taken inside of the loop.
    """
    num_samples, n, inner = x.shape
    dy_ptr, x_ptr, gamma_ptr = data_pointer(dy), data_pointer(x), data_pointer(gamma)
    dx_ptr, mean_ptr = data_pointer(dx), data_pointer(mean)
    table, sums = np.zeros(BACKWARD_TABLES * width, rstd.dtype), np.empty(3 * width, np.float64)
    ones_vec, compensation = ones(rstd), compensation_for(sums, rstd)
    padded = -(-n // lanes(ones_vec)) * lanes(ones_vec)
    tile_dgamma = empty_if_present(dgamma, padded, rstd)
    tile_dbeta = empty_if_present(dbeta, padded, rstd)
    non_temporal = dx is not None and can_use_non_temporal(dx_ptr, inner, non_temporal, ones_vec)
    units = num_samples * -(-inner // width)
    for block in range(start, stop):
        sums_offset = block * padded
        clear_from(dgamma, sums_offset, padded)
        clear_from(dbeta, sums_offset, padded)
        clear_from(dgamma_comp, sums_offset, padded)
        clear_from(dbeta_comp, sums_offset, padded)
        for unit in range(block * tiles, min((block + 1) * tiles, units)):
            x_offset, row, count = tile_of(unit, n, inner, width)
            load_stats_tables(row, count, mean, rstd, table, width)
            gradient_sums_of_tile(
                dy_ptr, x_ptr, x_offset, n, inner, count, mean_ptr, gamma_ptr, table, sums,
                compensation, width,
            )  # fmt: skip
            write_dx_tile(
                dy_ptr, x_ptr, dx_ptr, x_offset, n, inner, count, mean_ptr, gamma_ptr, table,
                data_pointer(tile_dgamma), data_pointer(tile_dbeta), width, non_temporal,
            )  # fmt: skip
            flush_param_sums(dgamma, dgamma_comp, sums_offset, tile_dgamma, rstd)
            flush_param_sums(dbeta, dbeta_comp, sums_offset, tile_dbeta, rstd)
    if non_temporal:
        fence()


@njit(**CALLED)
def reduce_param_sums(sums, compensation, blocks, into):
    """Add up the compensated sums of all blocks, and store them to `into`."""
    if sums is not None:
        reduce_blocks(sums, compensation, sums.size // blocks)
        for k in range(into.size):
            into[k] = sums[k]


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task


def backward_task(kinds):
    """`backward` as a task. The thread that finishes the last part reduces dgamma and dbeta."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        backward(*(given[:10] + given[12:]))
        if increment(words, FINISHED) == num_parts - 1:
            reduce_param_sums(given[6], given[8], words[COUNT], given[10])
            reduce_param_sums(given[7], given[9], words[COUNT], given[11])

    return task
