"""The forward pass over rows, for every dtype, with and without mean, gamma and beta."""

from __future__ import annotations

from numba import njit

from .compile import CALLED, INLINE, ONCE
from .doubles import to_float64, zeros_float64
from .moments import finalize_moments, finalize_moments_lanes, reduce_add_float64, unscaled_mean
from .row_passes import (
    PREFETCH_BYTES,
    compute_approx_mean,
    deviation_lane_sums,
    deviation_sums,
    finish_row,
    normalise,
    normalise_two_rows,
    sample_size,
    sample_sum,
    short_deviation_sums,
    start_row,
)
from .simd import (
    broadcast,
    first_lane,
    if_present,
    lanes,
    negative,
    ones,
    reduce_add,
    reduce_add_rows,
    scalar_like,
    zeros,
)
from .tasks import arguments
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
#: Smallest row from which on the next rows are prefetched, also without non-temporal stores.
PREFETCH_MIN_ROW_BYTES = 1024
#: Largest size of a block of rows: most of L1. A block has at most as many rows as a vector has
#: lanes.
MAX_BLOCK_BYTES = 24 << 10
#: Most lanes of a vector; numbers in so many vectors, and in so many vectors of float64.
LANES, LANES_SQUARED, SUMS = 16, 256, 128


@njit(**CALLED)
def forward(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, non_temporal, start, stop):
    """Normalise rows start to stop. A row whose squares leave the range of the dtype is scaled."""
    n, size = x.shape[1], x.itemsize
    x_ptr, y_ptr = data_pointer(x), data_pointer(y)
    gamma_ptr, beta_ptr = data_pointer(gamma), data_pointer(beta)
    prefetch_distance = (
        PREFETCH_BYTES // size if non_temporal or n * size >= PREFETCH_MIN_ROW_BYTES else 0
    )
    if (
        non_temporal
        and repeat is None
        and 4 * lanes(ones(rstd)) < n <= MAX_CACHED_ROW_BYTES // size
    ):
        normalise_pipelined(
            x_ptr, gamma_ptr, beta_ptr, y_ptr, mean, rstd, n, epsilon, groups, prefetch_distance,
            start, stop,
        )  # fmt: skip
    else:
        normalise_blocks(
            x_ptr, gamma_ptr, beta_ptr, y_ptr, mean, rstd, n, epsilon, groups, repeat, non_temporal,
            prefetch_distance, max(1, MAX_BLOCK_BYTES // (n * size) // 2 * 2), start, stop,
        )  # fmt: skip


@njit(**INLINE)
def finalize_row(x, mean, rstd, row, n, ones_vec, epsilon, approx_mean, deviation, square):
    """Store the statistics of a row; return its scale, and (offset, rstd, x_hat_correction)."""
    inv_count, mean_or_none = 1.0 / n, data_pointer(mean)
    factor, approx_mean, mean_residual, _, scaled_rstd = finalize_moments(
        x, (row * n, n, 1, n), inv_count, ones_vec, mean_or_none, epsilon, approx_mean, deviation,
        square,
    )  # fmt: skip
    rstd[row, 0] = scaled_rstd * factor
    if mean is not None:
        mean[row, 0] = unscaled_mean(factor, approx_mean, mean_residual)
    x_hat_correction = if_present(mean_or_none, broadcast(-mean_residual * scaled_rstd))
    return broadcast(factor), (broadcast(-approx_mean), broadcast(scaled_rstd), x_hat_correction)


@njit(**CALLED)
def normalise_pipelined(
    x, gamma, beta, y, mean, rstd, n, epsilon, groups, prefetch_distance, start, stop
):
    """Normalise rows with non-temporal stores: one is written while the next is read."""
    ones_vec = ones(rstd)
    row_tail, x_offset = stack_alloc(ones_vec, LANES), start * n
    approx_mean = (
        reduce_add(zeros(ones_vec))
        if mean is None
        else compute_approx_mean(x, x_offset, n, ones_vec)
    )
    deviation, square = deviation_sums(x, x_offset, n, ones_vec, broadcast(-approx_mean), 0)
    for row in range(start, stop):
        x_offset, param_offset = row * n, (row % groups) * n
        scale, (offset, scaled_rstd, x_hat_correction) = finalize_row(
            x, mean, rstd, row, n, ones_vec, epsilon, approx_mean, deviation, square
        )
        pending_row = (
            y, x_offset, scale, offset, scaled_rstd, x_hat_correction, gamma, beta, param_offset,
            row_tail, row == start,
        )  # fmt: skip
        if row + 1 < stop:
            approx_mean = (
                reduce_add(zeros(ones_vec))
                if mean is None
                else compute_approx_mean(x, x_offset + n, n, ones_vec)
            )
            lane_sums = deviation_lane_sums(
                x, x_offset + n, n, ones_vec, broadcast(-approx_mean), prefetch_distance,
                pending_row,
            )  # fmt: skip
            deviation, square = reduce_add(lane_sums[0]), reduce_add(lane_sums[1])
        else:
            count = finish_row(x, start_row(x, n, pending_row), n, pending_row)
            store_masked(y, x_offset + n - count, load(row_tail, 0, ones_vec), count)
    fence()


@njit(**ONCE)
def normalise_blocks(
    x, gamma, beta, y, mean, rstd, n, epsilon, groups, repeat, non_temporal, prefetch_distance,
    rows_per_block, start, stop,
):  # fmt: skip
    """Normalise blocks of rows. In a block, each lane of a vector holds a statistic of one row.

    The latency of sums, square root and division is long compared with a short row.
    """
    ones_vec = ones(rstd)
    width, inv_count = lanes(ones_vec), 1.0 / n
    mean_ptr, rstd_ptr = data_pointer(mean), data_pointer(rstd)
    approx_means, scaled_rstds = stack_alloc(ones_vec, LANES), stack_alloc(ones_vec, LANES)
    x_hat_corrections = stack_alloc(ones_vec, LANES)
    deviations = stack_alloc(zeros_float64(ones_vec), SUMS)
    squares = stack_alloc(zeros_float64(ones_vec), SUMS)
    samples, lanes64 = stack_alloc(ones_vec, LANES_SQUARED), lanes(zeros_float64(ones_vec))
    rows_per_block = min(rows_per_block, width)
    store(approx_means, 0, zeros(ones_vec))
    for begin in range(start, stop, rows_per_block):
        count = min(rows_per_block, stop - begin)
        if mean is not None:
            compute_approx_means(x, begin * n, n, ones_vec, count, approx_means, samples)
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
            deviation, square, deviations, squares, inv_count, ones_vec, mean_ptr, epsilon, count
        )
        if good:
            if mean is not None:
                store_masked(
                    mean_ptr, begin, load(approx_means, 0, ones_vec) + mean_residual, count
                )
            store_masked(rstd_ptr, begin, scaled_rstd, count)
            store(scaled_rstds, 0, scaled_rstd)
            store(x_hat_corrections, 0, negative(mean_residual * scaled_rstd))
            normalise_block(
                x, gamma, beta, y, mean_ptr, n, groups, repeat, non_temporal, begin, count,
                ones_vec, approx_means, scaled_rstds, x_hat_corrections,
            )  # fmt: skip
        else:
            normalise_rows_fallback(
                x, gamma, beta, y, mean, rstd, n, epsilon, groups, repeat, non_temporal, begin,
                count, ones_vec, approx_means, deviations, squares,
            )  # fmt: skip
    if non_temporal:
        fence()


@njit(**ONCE)
def compute_approx_means(x, x_offset, n, ones_vec, count, approx_means, samples):
    """Store the approximate means of `count` rows. `samples` is scratch memory for lane sums."""
    for k in range(count):
        first = load_broadcast(x, x_offset + k * n, ones_vec)
        approx_means[k] = first_lane(first)
        store(samples, k * lanes(ones_vec), sample_sum(x, x_offset + k * n, n, ones_vec, first))
    inv_count = broadcast(scalar_like(1.0 / sample_size(n, ones_vec), ones_vec))
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


@njit(**ONCE)
def normalise_block(
    x, gamma, beta, y, mean, n, groups, repeat, non_temporal, begin, count, ones_vec, approx_means,
    scaled_rstds, x_hat_corrections,
):  # fmt: skip
    """Write y of `count` rows whose statistics are final."""
    k = 0
    if repeat is None and groups == 1 and not non_temporal:
        while k + 1 < count:
            first = load_normalise_constants(
                mean, approx_means, scaled_rstds, x_hat_corrections, k, ones_vec
            )
            second = load_normalise_constants(
                mean, approx_means, scaled_rstds, x_hat_corrections, k + 1, ones_vec
            )
            normalise_two_rows(x, y, (begin + k) * n, n, ones_vec, first, second, gamma, beta)
            k += 2
    while k < count:
        constants = load_normalise_constants(
            mean, approx_means, scaled_rstds, x_hat_corrections, k, ones_vec
        )
        normalise_row(
            x, gamma, beta, y, n, groups, repeat, non_temporal, begin + k, ones_vec, constants
        )
        k += 1


@njit(**INLINE)
def load_normalise_constants(mean, approx_means, scaled_rstds, x_hat_corrections, k, ones_vec):
    """Load the offset, rstd and x_hat_correction of row k of a block."""
    offset = negative(load_broadcast(approx_means, k, ones_vec))
    return (
        offset,
        load_broadcast(scaled_rstds, k, ones_vec),
        if_present(mean, load_broadcast(x_hat_corrections, k, ones_vec)),
    )


@njit(**INLINE)
def normalise_row(x, gamma, beta, y, n, groups, repeat, non_temporal, row, scale, constants):
    """Write y of a row; each parameter belongs to `repeat` elements if that is not None."""
    offset, rstd, x_hat_correction = constants
    x_offset = row * n
    if repeat is None:
        param_offset = (row % groups) * n
        normalise(
            x, y, x_offset, n, scale, offset, rstd, x_hat_correction, gamma, beta, param_offset,
            non_temporal,
        )  # fmt: skip
    else:
        segments = n // repeat
        for segment in range(segments):
            param_offset = (row % groups) * segments + segment
            g = load_broadcast(gamma, param_offset, scale)
            b = load_broadcast(beta, param_offset, scale)
            i = x_offset + segment * repeat
            normalise(x, y, i, repeat, scale, offset, rstd, x_hat_correction, g, b, 0, non_temporal)


@njit(**ONCE)
def normalise_rows_fallback(
    x, gamma, beta, y, mean, rstd, n, epsilon, groups, repeat, non_temporal, begin, count, ones_vec,
    approx_means, deviations, squares,
):  # fmt: skip
    """Normalise `count` rows one by one, since some need sums about a better mean, or scaling."""
    for k in range(count):
        row = begin + k
        scale, constants = finalize_row(
            x, mean, rstd, row, n, ones_vec, epsilon, approx_means[k], deviations[k], squares[k]
        )
        normalise_row(x, gamma, beta, y, n, groups, repeat, non_temporal, row, scale, constants)


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task
