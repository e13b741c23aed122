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
from .gradient_sums import put_first, reduce_partials
from .moments import compute_rstd, finalize_moments
from .row_passes import SQUARES_PER_FLUSH, TERMS_PER_FLUSH
from .simd import broadcast, first_lane, fma, lanes, ones, range_scale, scalar_like, zeros
from .tasks import COUNT, FINISHED, arguments
from .vector_memory import (
    data_pointer,
    elements_to_alignment,
    fence,
    load,
    load_broadcast,
    load_masked,
    store,
    store_masked,
    store_non_temporal,
)

#: Most rows from which the approximate mean of a channel is computed.
MAX_SAMPLE_ROWS = 64
#: Number of tables of the forward and of the backward pass.
FORWARD_TABLES, BACKWARD_TABLES = 5, 6


@njit(**INLINE)
def load_partial(elements, i, count, like):
    """Load `count` elements from i on, at most a whole vector; the other lanes are 0."""
    if count >= lanes(like):
        return load(elements, i, like)
    return load_masked(elements, i, count, like)


@njit(**INLINE)
def store_vector(elements, i, values, non_temporal):
    """Store a vector, with a non-temporal store or not."""
    if non_temporal:
        store_non_temporal(elements, i, values)
    else:
        store(elements, i, values)


@njit(**INLINE)
def store_partial(elements, i, values, count, non_temporal):
    """Store the first `count` lanes, or the whole vector if it has fewer lanes."""
    if count < lanes(values):
        store_masked(elements, i, values, count)
    else:
        store_vector(elements, i, values, non_temporal)


@njit(**CALLED)
def approx_channel_means(x, table, n, first, count):
    """Fill the first table: the approximate mean of each channel, from its first column.

    It is exact if the column is constant.
    """
    columns, padded = x.shape[1], table.size // FORWARD_TABLES
    x_ptr, table_ptr, ones_vec = data_pointer(x), data_pointer(table), ones(table)
    num_samples = min(count, MAX_SAMPLE_ROWS)
    inv_count = broadcast(scalar_like(1.0 / num_samples, ones_vec))
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


def guess_task(kinds):
    """`approx_channel_means` as a task of one part."""

    def task(words, part, num_parts):
        approx_channel_means(*(arguments(words, kinds, part, num_parts)[:-2]))

    return task


def know_task(kinds):
    """`load_stats_tables` as a task of one part."""

    def task(words, part, num_parts):
        load_stats_tables(*(arguments(words, kinds, part, num_parts)[:-2]))

    return task


def settle_inference_task(kinds):
    """`finalize_inference` as a task of one part."""

    def task(words, part, num_parts):
        finalize_inference(*(arguments(words, kinds, part, num_parts)[:-2]))

    return task


def forward_sums_task(kinds):
    """`forward_sums` as a task. Who finishes the last part calls `finalize_forward`."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        tables, n = given[6:9], given[10]
        forward_sums(*(given[:1] + tables + (0,) + given[11:]))
        if increment(words, FINISHED) == num_parts - 1:
            finalize_forward(*(given[:11] + (n, 0) + given[11:12]))  # noqa: RUF005 # as Numba can

    return task


def write_task(kinds):
    """`normalise_rows` as a task."""

    def task(words, part, num_parts):
        normalise_rows(*arguments(words, kinds, part, num_parts))

    return task


def backward_sums_task(kinds):
    """`backward_sums` as a task. Who finishes the last part calls `finalize_backward`."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        tables, (n, count) = given[5:8], given[8:10]
        backward_sums(*(given[:2] + tables + (0,) + given[9:]))
        if increment(words, FINISHED) == num_parts - 1:
            finalize_backward(*(given[1:5] + tables + (n, n, 0, count)))

    return task


def differentiate_task(kinds):
    """`write_dx_rows` as a task."""

    def task(words, part, num_parts):
        write_dx_rows(*arguments(words, kinds, part, num_parts))

    return task


def forward_of_samples_task(kinds):
    """`forward_of_samples` as a task."""

    def task(words, part, num_parts):
        forward_of_samples(*arguments(words, kinds, part, num_parts))

    return task


def backward_of_samples_task(kinds):
    """`backward_of_samples` as a task. The thread that finishes the last part adds up the sums.

    The results of that follow dgamma and dbeta in the arguments.
    """

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        backward_of_samples(*(given[:8] + given[10:]))
        if increment(words, FINISHED) == num_parts - 1:
            samples = words[COUNT]
            reduce_partials(given[6], samples)
            reduce_partials(given[7], samples)
            put_first(given[6], given[8])
            put_first(given[7], given[9])

    return task
