"""Passes over columns; adjacent columns may be normalised together. For every dtype.

x is (M, K) in C order. A channel has n adjacent columns: in all rows (batch norm), or in the rows
of one sample. `first` is the first of `count` rows that are normalised together. An element of
gamma or beta belongs to `columns_per_param` columns.

Sums are taken over blocks of rows, whose number depends only on the shape, and over any range of
columns, so that the sums of a column do not depend on threads. They are in float64. For float64
data they have a table of compensations, which is None for other dtypes. The constants of columns
are in consecutive tables; each has a number per column, and is padded to whole vectors.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .atomics import increment
from .channels import store_stats
from .column_sums import clear, compensation_for, flush_sums, reduce_blocks, sum_of
from .compile import CALLED, INLINE
from .moments import compute_rstd, finalize_moments
from .row_passes import SQUARES_PER_FLUSH
from .simd import broadcast_like, first_lane, fma, lanes, ones, scalar_like, zeros
from .tasks import FINISHED, arguments, task_of
from .vector_memory import (
    data_pointer,
    elements_to_alignment,
    fence,
    load,
    load_broadcast,
    load_partial,
    store,
    store_partial,
)

#: Most rows from which the approximate mean of a channel is computed.
MAX_SAMPLE_ROWS = 64
#: Number of tables of the forward pass: scale, offset, mean_residual, weight and shift.
FORWARD_TABLES = 5


@njit(**CALLED)
def approx_channel_means(x, table, n, first, count):
    """Fill the first table: the approximate mean of each channel, from its first column.

    It is exact if the column is constant.
    """
    columns, padded = x.shape[1], table.size // FORWARD_TABLES
    x_ptr, table_ptr, ones_vec = data_pointer(x), data_pointer(table), ones(table)
    num_samples = min(count, MAX_SAMPLE_ROWS)
    inv_count = broadcast_like(1.0 / num_samples, ones_vec)
    for j in range(0, padded, lanes(ones_vec)):
        anchor = load_partial(x_ptr, first * columns + j, columns - j, ones_vec)
        difference_sum = zeros(ones_vec)
        for k in range(1, num_samples):
            row = first + count * k // num_samples
            difference_sum = difference_sum + (
                load_partial(x_ptr, row * columns + j, columns - j, ones_vec) - anchor
            )
        store(table_ptr, j, anchor + difference_sum * inv_count)
    if n > 1:
        for column in range(columns):
            table[column] = table[column // n * n]


@njit(**INLINE)
def task_range(task, parts, padded, width):
    """Return the block of a task and its range of columns; a block has `parts` tasks."""
    block, part, vectors = task // parts, task % parts, padded // width
    return block, vectors * part // parts * width, vectors * (part + 1) // parts * width


@njit(**CALLED)
def forward_sums(x, table, sums, compensation, first, count, rows, parts, start, stop):
    """Take the sums of d and d² in tasks start to stop, where d is x - approx_mean."""
    columns, padded = x.shape[1], table.size // FORWARD_TABLES
    x_ptr, table_ptr, ones_vec = data_pointer(x), data_pointer(table), ones(table)
    sums_ptr, compensation_ptr = data_pointer(sums), data_pointer(compensation)
    for task in range(start, stop):
        block, left, right = task_range(task, parts, padded, lanes(ones_vec))
        sums_offset = block * 2 * padded
        last = first + min(count, (block + 1) * rows)
        for begin in range(first + block * rows, last, SQUARES_PER_FLUSH):
            end = min(begin + SQUARES_PER_FLUSH, last)
            for j in range(left, right, lanes(ones_vec)):
                approx_mean = load(table_ptr, j, ones_vec)
                deviation, square = zeros(ones_vec), zeros(ones_vec)
                for row in range(begin, end):
                    d = load_partial(x_ptr, row * columns + j, columns - j, ones_vec) - approx_mean
                    deviation, square = deviation + d, fma(d, d, square)
                flush_sums(sums_ptr, compensation_ptr, sums_offset + j, deviation)
                flush_sums(sums_ptr, compensation_ptr, sums_offset + padded + j, square)


@njit(**CALLED)
def finalize_forward(
    x, gamma, beta, mean, var, rstd, table, sums, compensation, epsilon, n, columns_per_param,
    first, count,
):  # fmt: skip
    """Store the statistics of all channels and fill the tables of `normalise_rows`.

    They are scale, offset, mean_residual, weight and shift.
    """
    columns, padded = x.shape[1], table.size // FORWARD_TABLES
    channels = columns // n
    before = first // count * channels  # statistics of the samples before
    reduce_blocks(sums, compensation, 2 * padded)
    x_ptr, gamma_ptr = data_pointer(x), data_pointer(gamma)
    beta_ptr, ones_vec = data_pointer(beta), ones(table)
    inv_count = 1.0 / (count * n)
    for channel in range(channels):
        start = channel * n
        approx_mean = table[start]
        deviation = sum_of(sums, start, n)
        square = sum_of(sums, padded + start, n)
        pieces = (first * columns + start, n, count, columns)
        factor, approx_mean, mean_residual, variance, scaled_rstd = finalize_moments(
            x_ptr, pieces, inv_count, ones_vec, data_pointer(mean), epsilon, approx_mean, deviation,
            square,
        )  # fmt: skip
        store_stats(
            mean, var, rstd, before + channel, factor, approx_mean, mean_residual, variance,
            scaled_rstd,
        )  # fmt: skip
        for column in range(start, start + n):
            weight, shift = weight_and_shift(
                gamma_ptr, beta_ptr, column // columns_per_param, scaled_rstd, ones_vec
            )
            set_column(table, padded, column, (factor, -approx_mean, mean_residual, weight, shift))


@njit(**INLINE)
def weight_and_shift(gamma, beta, param, scaled_rstd, ones_vec):
    """Return scaled_rstd * gamma, and beta, for one parameter."""
    weight, shift = scaled_rstd, scalar_like(0.0, ones_vec)
    if gamma is not None:
        weight = scaled_rstd * first_lane(load_broadcast(gamma, param, ones_vec))
    if beta is not None:
        shift = first_lane(load_broadcast(beta, param, ones_vec))
    return weight, shift


@njit(**INLINE)
def set_column(table, padded, column, numbers):
    """Store the constants of a column to the tables."""
    for k in range(len(numbers)):
        table[k * padded + column] = numbers[k]


@njit(**CALLED)
def finalize_inference(mean, var, gamma, beta, table, epsilon, n):
    """Fill the tables of `normalise_rows` from given statistics of channels of n columns."""
    padded = table.size // FORWARD_TABLES
    gamma_ptr, beta_ptr, ones_vec = data_pointer(gamma), data_pointer(beta), ones(table)
    unit, zero = scalar_like(1.0, ones_vec), scalar_like(0.0, ones_vec)
    for channel in range(mean.size):
        rstd = compute_rstd(var[channel], epsilon, ones_vec)
        weight, shift = weight_and_shift(gamma_ptr, beta_ptr, channel, rstd, ones_vec)
        for column in range(channel * n, (channel + 1) * n):
            set_column(table, padded, column, (unit, -mean[channel], zero, weight, shift))


@njit(**INLINE)
def can_use_non_temporal(y, columns, non_temporal, ones_vec):
    """Return whether non-temporal stores are wanted, and all rows are aligned to vectors."""
    return (
        non_temporal
        and columns % lanes(ones_vec) == 0
        and elements_to_alignment(y, 0, ones_vec) == 0
    )


@njit(**CALLED)
def normalise_rows(x, y, table, non_temporal, start, stop):
    """Write y for rows start to stop."""
    columns, padded = x.shape[1], table.size // FORWARD_TABLES
    x_ptr, y_ptr = data_pointer(x), data_pointer(y)
    table_ptr, ones_vec = data_pointer(table), ones(table)
    non_temporal = can_use_non_temporal(y_ptr, columns, non_temporal, ones_vec)
    for row in range(start, stop):
        x_offset = row * columns
        for j in range(0, columns, lanes(ones_vec)):
            count = columns - j
            d = fma(
                load_partial(x_ptr, x_offset + j, count, ones_vec),
                load(table_ptr, j, ones_vec),
                load(table_ptr, padded + j, ones_vec),
            )
            d = d - load(table_ptr, 2 * padded + j, ones_vec)
            weight = load(table_ptr, 3 * padded + j, ones_vec)
            shift = load(table_ptr, 4 * padded + j, ones_vec)
            store_partial(y_ptr, x_offset + j, fma(d, weight, shift), count, non_temporal)
    if non_temporal:
        fence()


@njit(**CALLED)
def forward_of_samples(
    x, gamma, beta, y, mean, rstd, epsilon, n, columns_per_param, count, padded, non_temporal,
    start, stop,
):  # fmt: skip
    """Normalise samples start to stop, of `count` rows each."""
    table, sums = np.empty(FORWARD_TABLES * padded, rstd.dtype), np.empty(2 * padded, np.float64)
    compensation = compensation_for(sums, rstd)
    for sample in range(start, stop):
        first = sample * count
        clear(sums, compensation)
        approx_channel_means(x, table, n, first, count)
        forward_sums(x, table, sums, compensation, first, count, count, 1, 0, 1)
        finalize_forward(
            x, gamma, beta, mean, None, rstd, table, sums, compensation, epsilon, n,
            columns_per_param, first, count,
        )  # fmt: skip
        normalise_rows(x, y, table, non_temporal, first, first + count)


approx_channel_means_task = task_of(approx_channel_means, has_parts=False)
finalize_inference_task = task_of(finalize_inference, has_parts=False)


def forward_sums_task(kinds):
    """`forward_sums` as a task. Who finishes the last part calls `finalize_forward`."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        tables, n = given[6:9], given[10]
        forward_sums(*(given[:1] + tables + (0,) + given[11:]))
        if increment(words, FINISHED) == num_parts - 1:
            finalize_forward(*(given[:11] + (n, 0) + given[11:12]))  # noqa: RUF005 # as Numba can

    return task


normalise_rows_task = task_of(normalise_rows)
forward_of_samples_task = task_of(forward_of_samples)
