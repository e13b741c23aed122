"""The forward pass over rows, for every dtype, with and without mean, gamma and beta."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from .compile import CALLED, INLINE, ONCE
from .doubles import to_float64, zeros_float64
from .moments import finalize_moments, finalize_moments_lanes, reduce_add_float64, unscaled_mean
from .row_passes import (
    PendingRow,
    Row,
    RowConstants,
    approx_mean_or_zero,
    deviation_lane_sums,
    deviation_sums,
    finish_row,
    normalise_two_rows,
    normalised,
    param_row,
    prefetch_distance_of,
    sample_size,
    sample_sum,
    short_deviation_sums,
    start_row,
    write_row,
)
from .rows_where import normalise_where
from .simd import (
    broadcast,
    broadcast_like,
    first_lane,
    if_present,
    lanes,
    negative,
    ones,
    reduce_add,
    reduce_add_rows,
    zeros,
)
from .tasks import task_of
from .vector_memory import (
    data_pointer,
    fence,
    load,
    load_broadcast,
    stack_alloc,
    store,
    store_masked,
)

#: Largest row for which L2 holds this row and the next.
MAX_CACHED_ROW_BYTES = 128 << 10
#: Largest size of a block of rows: most of L1. A block has at most as many rows as a vector has
#: lanes.
MAX_BLOCK_BYTES = 24 << 10
#: Most lanes of a vector; numbers in that many vectors, and in that many vectors of float64.
LANES, LANES_SQUARED, SUMS = 16, 256, 128


class Affine(NamedTuple):
    """Pointers to gamma and beta, or None, and which of their elements belong to a row."""

    gamma: Any
    beta: Any
    groups: Any
    """The number of rows of parameters."""
    span: Any
    """Rows that follow each other and have the same parameters."""
    repeat: Any
    """Adjacent elements that share a parameter, or None for 1."""


class Output(NamedTuple):
    """Pointers to the results; that to the mean is None for RMS norm."""

    y: Any
    mean: Any
    rstd: Any
    non_temporal: Any


class Scratch(NamedTuple):
    """Numbers of each row of a block; the sums are float64."""

    approx_means: Any
    scaled_rstds: Any
    x_hat_corrections: Any
    deviations: Any
    squares: Any


@njit(**CALLED)
def forward(
    x, gamma, beta, mask, y, mean, rstd, epsilon, groups, span, repeat, non_temporal, start, stop
):
    """Normalise rows start to stop. A row whose squares leave the range of the dtype is scaled."""
    affine = Affine(data_pointer(gamma), data_pointer(beta), groups, span, repeat)
    out = Output(data_pointer(y), data_pointer(mean), data_pointer(rstd), non_temporal)
    if mask is None:
        normalise_rows(x, affine, out, epsilon, start, stop)
    else:
        n = x.shape[1]
        normalise_where(
            data_pointer(x), n, data_pointer(mask), affine, out, epsilon, start, stop, rstd,
            prefetch_distance_of(n, x.itemsize, non_temporal),
        )  # fmt: skip
        if non_temporal:
            fence()


@njit(**INLINE)
def normalise_rows(x, affine, out, epsilon, start, stop):
    """Normalise rows of which all elements count."""
    n, size, non_temporal = x.shape[1], x.itemsize, out.non_temporal
    prefetch_distance = prefetch_distance_of(n, size, non_temporal)
    if (
        non_temporal
        and affine.repeat is None
        and 4 * lanes(ones(out.rstd)) < n <= MAX_CACHED_ROW_BYTES // size
    ):
        normalise_pipelined(
            data_pointer(x), n, affine, out, epsilon, prefetch_distance, start, stop
        )
    else:
        rows_per_block = max(1, MAX_BLOCK_BYTES // (n * size) // 2 * 2)
        normalise_blocks(
            data_pointer(x), n, affine, out, epsilon, prefetch_distance, rows_per_block, start, stop
        )


@njit(**INLINE)
def finalize_row(x, row, n, out, epsilon, approx_mean, deviation, square):
    """Store the statistics of a row; return its `RowConstants`."""
    factor, approx_mean, mean_residual, _, scaled_rstd = finalize_moments(
        x, (row * n, n, 1, n), 1.0 / n, ones(out.rstd), out.mean, epsilon, approx_mean, deviation,
        square,
    )  # fmt: skip
    out.rstd[row] = scaled_rstd * factor
    store_mean(out.mean, row, factor, approx_mean, mean_residual)
    return RowConstants(
        broadcast(factor),
        broadcast(-approx_mean),
        broadcast(scaled_rstd),
        if_present(out.mean, broadcast(-mean_residual * scaled_rstd)),
    )


@njit(**INLINE)
def store_mean(mean, row, factor, approx_mean, mean_residual):
    """Store the mean of a row, unless `mean` is None."""
    if mean is not None:
        mean[row] = unscaled_mean(factor, approx_mean, mean_residual)


@njit(**CALLED)
def normalise_pipelined(x, n, affine, out, epsilon, prefetch_distance, start, stop):
    """Normalise rows with non-temporal stores: one is written while the next is read."""
    ones_vec = ones(out.rstd)
    row_tail = stack_alloc(ones_vec, LANES)
    approx_mean = approx_mean_or_zero(out.mean, x, start * n, n, ones_vec)
    deviation, square = deviation_sums(x, start * n, n, ones_vec, broadcast(-approx_mean), 0)
    for row in range(start, stop):
        x_offset, param_offset = row * n, param_row(affine, row) * n
        constants = finalize_row(x, row, n, out, epsilon, approx_mean, deviation, square)
        current = Row(x, x_offset, constants, affine.gamma, affine.beta, param_offset)
        pending_row = PendingRow(current, out.y, row_tail, row == start)
        if row + 1 < stop:
            approx_mean = approx_mean_or_zero(out.mean, x, x_offset + n, n, ones_vec)
            lane_sums = deviation_lane_sums(
                x, x_offset + n, n, ones_vec, broadcast(-approx_mean), prefetch_distance,
                pending_row,
            )  # fmt: skip
            deviation, square = reduce_add(lane_sums[0]), reduce_add(lane_sums[1])
        else:
            count = finish_row(start_row(n, pending_row), n, pending_row)
            store_masked(out.y, x_offset + n - count, load(row_tail, 0, ones_vec), count)
    fence()


@njit(**ONCE)
def normalise_blocks(x, n, affine, out, epsilon, prefetch_distance, rows_per_block, start, stop):
    """Normalise blocks of rows. In a block, each lane of a vector holds a statistic of one row.

    The latency of sums, square root and division is long compared with a short row.
    """
    ones_vec = ones(out.rstd)
    width, lanes64 = lanes(ones_vec), lanes(zeros_float64(ones_vec))
    approx_means, scaled_rstds = stack_alloc(ones_vec, LANES), stack_alloc(ones_vec, LANES)
    x_hat_corrections = stack_alloc(ones_vec, LANES)
    deviations = stack_alloc(zeros_float64(ones_vec), SUMS)
    squares = stack_alloc(zeros_float64(ones_vec), SUMS)
    scratch = Scratch(approx_means, scaled_rstds, x_hat_corrections, deviations, squares)
    samples = stack_alloc(ones_vec, LANES_SQUARED)
    rows_per_block = min(rows_per_block, width)
    store(approx_means, 0, zeros(ones_vec))
    for begin in range(start, stop, rows_per_block):
        count = min(rows_per_block, stop - begin)
        compute_approx_means(out.mean, x, begin * n, n, ones_vec, count, approx_means, samples)
        if n <= 4 * width:
            deviation, square = deviation_sums_of_short_rows(
                x, begin * n, n, ones_vec, count, approx_means, samples
            )
        else:
            for k in range(count):
                offset = negative(load_broadcast(approx_means, k, ones_vec))
                lane_sums = deviation_lane_sums(
                    x, (begin + k) * n, n, ones_vec, offset, prefetch_distance, None
                )
                store(deviations, k * lanes64, lane_sums[0])
                store(squares, k * lanes64, lane_sums[1])
            deviation = reduce_add_float64(deviations, count, ones_vec)
            square = reduce_add_float64(squares, count, ones_vec)
        mean_residual, scaled_rstd, good = finalize_moments_lanes(
            deviation, square, deviations, squares, 1.0 / n, ones_vec, out.mean, epsilon, count
        )
        if good:
            store_means(out.mean, begin, load(approx_means, 0, ones_vec) + mean_residual, count)
            store_masked(out.rstd, begin, scaled_rstd, count)
            store(scaled_rstds, 0, scaled_rstd)
            store(x_hat_corrections, 0, negative(mean_residual * scaled_rstd))
            normalise_block(x, n, affine, out, scratch, begin, count)
        else:
            normalise_rows_fallback(x, n, affine, out, epsilon, scratch, begin, count)
    if out.non_temporal:
        fence()


@njit(**INLINE)
def store_means(mean, begin, means, count):
    """Store the means of `count` rows, unless `mean` is None."""
    if mean is not None:
        store_masked(mean, begin, means, count)


@njit(**INLINE)
def compute_approx_means(mean, x, x_offset, n, ones_vec, count, approx_means, samples):
    """Store the approximate means of `count` rows, unless `mean` is None.

    `samples` is scratch memory for lane sums.
    """
    if mean is not None:
        for k in range(count):
            first = load_broadcast(x, x_offset + k * n, ones_vec)
            approx_means[k] = first_lane(first)
            store(samples, k * lanes(ones_vec), sample_sum(x, x_offset + k * n, n, ones_vec, first))
        inv_count = broadcast_like(1.0 / sample_size(n, ones_vec), ones_vec)
        store(
            approx_means,
            0,
            load(approx_means, 0, ones_vec) + reduce_add_rows(samples, 0, ones_vec) * inv_count,
        )


@njit(**ONCE)
def deviation_sums_of_short_rows(x, x_offset, n, ones_vec, count, approx_means, samples):
    """Return the sums of d and of d² of `count` short rows, in two float64 vectors each.

    So few elements are summed in their own dtype. `samples` is scratch memory for lane sums.
    """
    squares = stack_alloc(ones_vec, LANES_SQUARED)
    for k in range(count):
        deviation, square = short_deviation_sums(
            x, x_offset + k * n, n, ones_vec, negative(load_broadcast(approx_means, k, ones_vec))
        )
        store(samples, k * lanes(ones_vec), deviation)
        store(squares, k * lanes(ones_vec), square)
    return to_float64(reduce_add_rows(samples, 0, ones_vec)), to_float64(
        reduce_add_rows(squares, 0, ones_vec)
    )


@njit(**INLINE)
def load_row_constants(scratch, mean, k, ones_vec):
    """Load the `RowConstants` of row k of a block."""
    return RowConstants(
        ones_vec,
        negative(load_broadcast(scratch.approx_means, k, ones_vec)),
        load_broadcast(scratch.scaled_rstds, k, ones_vec),
        if_present(mean, load_broadcast(scratch.x_hat_corrections, k, ones_vec)),
    )


@njit(**ONCE)
def normalise_block(x, n, affine, out, scratch, begin, count):
    """Write y of `count` rows whose statistics are final."""
    ones_vec = ones(out.rstd)
    in_pairs = affine.repeat is None and not out.non_temporal
    k = 0
    while k < count:
        row = begin + k
        constants = load_row_constants(scratch, out.mean, k, ones_vec)
        params = param_row(affine, row)
        if in_pairs and k + 1 < count and params == param_row(affine, row + 1):
            next_constants = load_row_constants(scratch, out.mean, k + 1, ones_vec)
            normalise_two_rows(
                Row(x, row * n, constants, affine.gamma, affine.beta, params * n),
                Row(x, row * n + n, next_constants, affine.gamma, affine.beta, params * n),
                out.y,
                n,
            )
            k += 2
        else:
            normalise_row(affine.repeat, x, n, affine, out, row, constants)
            k += 1


@njit(**INLINE)
def normalise_row(repeat, x, n, affine, out, row, constants):
    """Write y of a row; each parameter belongs to `repeat` elements if that is not None."""
    scale, x_offset = constants.scale, row * n
    if repeat is None:
        param_offset = param_row(affine, row) * n
        current = Row(x, x_offset, constants, affine.gamma, affine.beta, param_offset)
        write_row(normalised, current, out.y, x_offset, n, scale, out.non_temporal)
    else:
        segments = n // repeat
        for segment in range(segments):
            param_offset = param_row(affine, row) * segments + segment
            g = load_broadcast(affine.gamma, param_offset, scale)
            b = load_broadcast(affine.beta, param_offset, scale)
            i = x_offset + segment * repeat
            current = Row(x, i, constants, g, b, 0)
            write_row(normalised, current, out.y, i, repeat, scale, out.non_temporal)


@njit(**ONCE)
def normalise_rows_fallback(x, n, affine, out, epsilon, scratch, begin, count):
    """Normalise `count` rows one by one, since some need sums about a better mean, or scaling."""
    for k in range(count):
        constants = finalize_row(
            x, begin + k, n, out, epsilon, scratch.approx_means[k], scratch.deviations[k],
            scratch.squares[k],
        )  # fmt: skip
        normalise_row(affine.repeat, x, n, affine, out, begin + k, constants)


forward_task = task_of(forward)
