"""Backward passes over columns, for every dtype. See `columns_forward`."""

from __future__ import annotations

import numpy as np
from numba import njit

from .atomics import increment
from .column_sums import clear, compensation_for, flush_sums, reduce_blocks, sum_of
from .columns_forward import can_use_non_temporal, set_column, task_range, weight_and_shift
from .compile import CALLED, INLINE
from .gradient_sums import reduce_into
from .row_passes import TERMS_PER_FLUSH
from .simd import first_lane, fma, lanes, ones, range_scale, scalar_like, zeros
from .tasks import FINISHED, arguments, reducing_task_of, task_of
from .vector_memory import (
    data_pointer,
    fence,
    load,
    load_broadcast,
    load_partial,
    store_partial,
)

#: Number of tables of the backward pass: mean, rstd, x_hat_correction, -projection, -mean(g) and
#: gamma.
BACKWARD_TABLES = 6


@njit(**CALLED)
def load_stats_tables(x, mean, rstd, table, n, first, count):
    """Fill the first two tables of the backward pass: mean and rstd of each column."""
    columns, padded = x.shape[1], table.size // BACKWARD_TABLES
    before = first // count * (columns // n)
    for column in range(columns):
        channel = before + column // n
        table[column], table[padded + column] = mean[channel], rstd[channel]


@njit(**CALLED)
def backward_sums(dy, x, table, sums, compensation, first, count, rows, parts, start, stop):
    """Take the sums of d, dy and dy * d * rstd in tasks start to stop.

    d is that of `backward.gradient_lane_sums`.
    """
    columns, padded = x.shape[1], table.size // BACKWARD_TABLES
    dy_ptr, x_ptr = data_pointer(dy), data_pointer(x)
    table_ptr, ones_vec = data_pointer(table), ones(table)
    sums_ptr, compensation_ptr = data_pointer(sums), data_pointer(compensation)
    for task in range(start, stop):
        block, left, right = task_range(task, parts, padded, lanes(ones_vec))
        sums_offset = block * 3 * padded
        last = first + min(count, (block + 1) * rows)
        for begin in range(first + block * rows, last, TERMS_PER_FLUSH):
            end = min(begin + TERMS_PER_FLUSH, last)
            for j in range(left, right, lanes(ones_vec)):
                mean, rstd = load(table_ptr, j, ones_vec), load(table_ptr, padded + j, ones_vec)
                scale, _ = range_scale(rstd)
                sum_d, sum_dy = zeros(ones_vec), zeros(ones_vec)
                sum_dy_x_hat = zeros(ones_vec)
                for row in range(begin, end):
                    i = row * columns + j
                    d = load_partial(x_ptr, i, columns - j, ones_vec) - mean
                    g = load_partial(dy_ptr, i, columns - j, ones_vec)
                    sum_d, sum_dy = fma(d, scale, sum_d), sum_dy + g
                    sum_dy_x_hat = fma(g, d * rstd, sum_dy_x_hat)
                flush_sums(sums_ptr, compensation_ptr, sums_offset + j, sum_d)
                flush_sums(sums_ptr, compensation_ptr, sums_offset + padded + j, sum_dy)
                flush_sums(sums_ptr, compensation_ptr, sums_offset + 2 * padded + j, sum_dy_x_hat)


@njit(**CALLED)
def finalize_backward(
    x, gamma, dgamma, dbeta, table, sums, compensation, n, columns_per_param, first, count
):
    """Store the gradients of parameters and fill the tables of `write_dx_rows`.

    After mean and rstd, these are -x_hat_mean, -projection, -mean(g) and gamma, where g is
    dy * gamma. x_hat_mean is the residual of the rounded mean in units of x_hat.
    """
    columns, padded = x.shape[1], table.size // BACKWARD_TABLES
    before = first // count * (columns // columns_per_param)
    reduce_blocks(sums, compensation, 3 * padded)
    gamma_ptr, table_ptr, ones_vec = data_pointer(gamma), data_pointer(table), ones(table)
    inv_count, unit = 1.0 / (count * n), scalar_like(1.0, ones_vec)
    for start in range(0, columns, n):
        r = load_broadcast(table_ptr, padded + start, ones_vec)
        _, unscale = range_scale(r)
        x_hat_mean = sum_of(sums, start, n) * inv_count * first_lane(r * unscale)
        for column in range(start, start + n):
            sums[2 * padded + column] -= x_hat_mean * sums[padded + column]
        sum_g, sum_g_x_hat = 0.0, 0.0
        for first_column in range(start, start + n, columns_per_param):
            param = first_column // columns_per_param
            sum_dy = sum_of(sums, padded + first_column, columns_per_param)
            sum_dy_x_hat = sum_of(sums, 2 * padded + first_column, columns_per_param)
            if dgamma is not None:
                dgamma[before + param] = sum_dy_x_hat
            if dbeta is not None:
                dbeta[before + param] = sum_dy
            g, _ = weight_and_shift(gamma_ptr, None, param, unit, ones_vec)
            sum_g, sum_g_x_hat = sum_g + g * sum_dy, sum_g_x_hat + g * sum_dy_x_hat
        mean_g = scalar_like(sum_g * inv_count, ones_vec)
        projection = scalar_like(sum_g_x_hat * inv_count, ones_vec)
        x_hat_mean = scalar_like(x_hat_mean, ones_vec)
        for column in range(start, start + n):
            g, _ = weight_and_shift(gamma_ptr, None, column // columns_per_param, unit, ones_vec)
            stats = (table[column], table[padded + column])
            set_column(table, padded, column, (*stats, -x_hat_mean, -projection, -mean_g, g))


@njit(**CALLED)
def write_dx_rows(dy, x, dx, table, non_temporal, start, stop):
    """Write dx for rows start to stop."""
    columns, padded = x.shape[1], table.size // BACKWARD_TABLES
    dy_ptr, x_ptr, dx_ptr = data_pointer(dy), data_pointer(x), data_pointer(dx)
    table_ptr, ones_vec = data_pointer(table), ones(table)
    non_temporal = can_use_non_temporal(dx_ptr, columns, non_temporal, ones_vec)
    for row in range(start, stop):
        x_offset = row * columns
        for j in range(0, columns, lanes(ones_vec)):
            count = columns - j
            mean, rstd = load(table_ptr, j, ones_vec), load(table_ptr, padded + j, ones_vec)
            x_hat_correction = load(table_ptr, 2 * padded + j, ones_vec)
            neg_projection = load(table_ptr, 3 * padded + j, ones_vec)
            neg_mean_g = load(table_ptr, 4 * padded + j, ones_vec)
            g = load(table_ptr, 5 * padded + j, ones_vec)
            x_hat = fma(
                load_partial(x_ptr, x_offset + j, count, ones_vec) - mean, rstd, x_hat_correction
            )
            d = fma(load_partial(dy_ptr, x_offset + j, count, ones_vec), g, neg_mean_g)
            store_partial(
                dx_ptr, x_offset + j, fma(x_hat, neg_projection, d) * rstd, count, non_temporal
            )
    if non_temporal:
        fence()


@njit(**CALLED)
def backward_of_samples(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, n, columns_per_param, count, padded, non_temporal,
    start, stop,
):  # fmt: skip
    """Process samples start to stop, of `count` rows each, with their own parameter gradients."""
    table, sums = np.empty(BACKWARD_TABLES * padded, rstd.dtype), np.empty(3 * padded, np.float64)
    compensation = compensation_for(sums, rstd)
    for sample in range(start, stop):
        first = sample * count
        clear(sums, compensation)
        load_stats_tables(x, mean, rstd, table, n, first, count)
        backward_sums(dy, x, table, sums, compensation, first, count, count, 1, 0, 1)
        finalize_backward(
            x, gamma, dgamma, dbeta, table, sums, compensation, n, columns_per_param, first, count
        )
        if dx is not None:
            write_dx_rows(dy, x, dx, table, non_temporal, first, first + count)


load_stats_tables_task = task_of(load_stats_tables, has_parts=False)


def backward_sums_task(kinds):
    """`backward_sums` as a task. Who finishes the last part calls `finalize_backward`."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        tables, (n, count) = given[5:8], given[8:10]
        backward_sums(*(given[:2] + tables + (0,) + given[9:]))
        if increment(words, FINISHED) == num_parts - 1:
            finalize_backward(*(given[1:5] + tables + (n, n, 0, count)))

    return task


write_dx_rows_task = task_of(write_dx_rows)


@njit(**INLINE)
def reduce_samples(samples, dgamma, dbeta, into_dgamma, into_dbeta):
    """Reduce the gradients of all samples."""
    reduce_into(dgamma, samples, into_dgamma)
    reduce_into(dbeta, samples, into_dbeta)


backward_of_samples_task = reducing_task_of(
    backward_of_samples, reduce_samples, withheld=(8, 10), reduced=(6, 10)
)
