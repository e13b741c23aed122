"""Backward passes over rows along an axis that is not the last. See `strided_forward`."""

from __future__ import annotations

import numpy as np
from numba import njit

from .column_sums import clear, compensation_for, flush_sums, reduce_blocks
from .columns_forward import can_use_non_temporal
from .compile import CALLED, INLINE
from .doubles import from_float64, zeros_float64
from .gradient_sums import clear as clear_from
from .gradient_sums import empty_or_none, put_first
from .row_gradients import DxConstants, deviation, exact_x_hat, scaled_dy
from .row_passes import TERMS_PER_FLUSH
from .simd import (
    broadcast_like,
    fma,
    if_present,
    lanes,
    negative,
    ones,
    range_scale,
    reduce_add,
    reduce_add4,
    zeros,
)
from .strided_forward import LANES, prefetch_tile, tile_of
from .tasks import reducing_task_of
from .vector_memory import (
    data_pointer,
    fence,
    load,
    load_broadcast,
    load_partial,
    stack_alloc,
    store,
    store_partial,
)

#: Number of tables with a constant per row of a tile: mean, rstd, x_hat_correction, -mean(g) and
#: -projection.
BACKWARD_TABLES = 5


@njit(**INLINE)
def load_stats_tables(tile, mean, rstd, table):
    """Fill the first two tables of the backward pass: mean and rstd of rows; 0 beyond the last."""
    table[: 2 * tile.width] = 0
    for k in range(tile.count):
        if mean is not None:
            table[k] = mean[tile.row + k]
        table[tile.width + k] = rstd[tile.row + k]


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
def gradient_sums_of_tile(dy, x, tile, mean, gamma, table, sums, compensation):
    """Take the sums of `gradient_lane_sums` over each row, and fill the other tables."""
    x_offset, _, count, width, n, inner = tile
    table_ptr, sums_ptr = data_pointer(table), data_pointer(sums)
    compensation_ptr, ones_vec = data_pointer(compensation), ones(table)
    num_lanes = lanes(ones_vec)
    zero = zeros(ones_vec)
    clear(sums, compensation)
    for begin in range(0, n, TERMS_PER_FLUSH):
        end = min(begin + TERMS_PER_FLUSH, n)
        prefetch_tile(x, tile, begin, TERMS_PER_FLUSH, num_lanes)
        prefetch_tile(dy, tile, begin, TERMS_PER_FLUSH, num_lanes)
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
                g0 = scaled_dy(g0, gamma_k, 0, None, None)
                g1 = scaled_dy(g1, gamma_k, 0, None, None)
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
    inv_count = broadcast_like(1.0 / n, ones_vec)
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
    """Load the `DxConstants` of a vector of rows."""
    return DxConstants(
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
def write_dx_tile(dy, x, dx, tile, mean, gamma, table, dgamma, dbeta, non_temporal):
    """Write dx and the sums of dgamma and dbeta of a tile, two elements of each row at a time."""
    x_offset, _, count, width, n, inner = tile
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
    tile_dgamma = empty_or_none(dgamma, padded, rstd)
    tile_dbeta = empty_or_none(dbeta, padded, rstd)
    non_temporal = dx is not None and can_use_non_temporal(dx_ptr, inner, non_temporal, ones_vec)
    units = num_samples * -(-inner // width)
    for block in range(start, stop):
        sums_offset = block * padded
        clear_from(dgamma, sums_offset, padded)
        clear_from(dbeta, sums_offset, padded)
        clear_from(dgamma_comp, sums_offset, padded)
        clear_from(dbeta_comp, sums_offset, padded)
        for unit in range(block * tiles, min((block + 1) * tiles, units)):
            tile = tile_of(unit, n, inner, width)
            load_stats_tables(tile, mean, rstd, table)
            gradient_sums_of_tile(
                dy_ptr, x_ptr, tile, mean_ptr, gamma_ptr, table, sums, compensation
            )
            write_dx_tile(
                dy_ptr, x_ptr, dx_ptr, tile, mean_ptr, gamma_ptr, table,
                data_pointer(tile_dgamma), data_pointer(tile_dbeta), non_temporal,
            )  # fmt: skip
            flush_param_sums(dgamma, dgamma_comp, sums_offset, tile_dgamma, rstd)
            flush_param_sums(dbeta, dbeta_comp, sums_offset, tile_dbeta, rstd)
    if non_temporal:
        fence()


@njit(**INLINE)
def reduce_param_sums(sums, compensation, blocks, into):
    """Add up the compensated sums of all blocks, and store them to `into`."""
    if sums is not None:
        reduce_blocks(sums, compensation, sums.size // blocks)
        put_first(sums, into)


@njit(**CALLED)
def reduce_params(blocks, dgamma, dbeta, dgamma_comp, dbeta_comp, into_dgamma, into_dbeta):
    """Reduce the sums of all blocks to the gradients of gamma and beta."""
    reduce_param_sums(dgamma, dgamma_comp, blocks, into_dgamma)
    reduce_param_sums(dbeta, dbeta_comp, blocks, into_dbeta)


backward_task = reducing_task_of(backward, reduce_params, withheld=(10, 12), reduced=(6, 12))
