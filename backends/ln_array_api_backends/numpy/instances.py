"""Passes over instances, which are rows, for every dtype: statistics, sums, affine maps, gradients.

Batch-instance and switchable norm mix the statistics of instances between two passes. One thread
processes a row, so the results of a row do not depend on other rows.
"""

from __future__ import annotations

from numba import njit

from .compile import CALLED, INLINE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .moments import moments_of_pieces
from .row_gradients import DxConstants, Gradients, Source, gradient_lane_sums, write_dx
from .row_passes import (
    PREFETCH_BYTES,
    Row,
    RowConstants,
    compensated_add,
    compute_approx_mean,
    normalised,
    write_row,
)
from .simd import first_lane, ones, range_scale, reduce_add, scalar_like, zeros
from .tasks import task_of
from .vector_memory import data_pointer, fence, load_broadcast


@njit(**CALLED)
def statistics(x, mean, mean_residual, var, rstd, epsilon, is_large, start, stop):
    """Compute the statistics of rows start to stop. Rows with squares out of range are scaled."""
    n, x_ptr, ones_vec, mean_or_none = x.shape[1], data_pointer(x), ones(rstd), data_pointer(mean)
    inv_count, prefetch_distance = 1.0 / n, PREFETCH_BYTES // x.itemsize if is_large else 0
    zero = reduce_add(zeros(ones_vec))
    for row in range(start, stop):
        pieces = (row * n, n, 1, n)
        approx_mean = compute_approx_mean(x_ptr, row * n, n, ones_vec)
        factor, approx_mean, residual, variance, scaled_rstd = moments_of_pieces(
            x_ptr, pieces, inv_count, ones_vec, mean_or_none, epsilon, approx_mean,
            prefetch_distance,
        )  # fmt: skip
        rounded_mean, residual = compensated_add(approx_mean, zero, residual)
        mean[row, 0], mean_residual[row, 0] = rounded_mean / factor, residual / factor
        var[row, 0] = variance / factor / factor
        rstd[row, 0] = scaled_rstd * factor


@njit(**CALLED)
def affine(x, mean, mean_residual, rstd, scale, shift, y, non_temporal, start, stop):
    """Write x̂ * scale + shift for rows start to stop."""
    n, x_ptr, y_ptr, ones_vec = x.shape[1], data_pointer(x), data_pointer(y), ones(rstd)
    mean_ptr, mean_residual_ptr = data_pointer(mean), data_pointer(mean_residual)
    rstd_ptr = data_pointer(rstd)
    scale_ptr, shift_ptr = data_pointer(scale), data_pointer(shift)
    for row in range(start, stop):
        rstd_vec = load_broadcast(rstd_ptr, row, ones_vec)
        range_factor, unscale = range_scale(rstd_vec)
        constants = RowConstants(
            range_factor,
            zeros(ones_vec) - load_broadcast(mean_ptr, row, ones_vec) * range_factor,
            rstd_vec * unscale,
            zeros(ones_vec) - load_broadcast(mean_residual_ptr, row, ones_vec) * rstd_vec,
        )
        g = load_broadcast(scale_ptr, row, ones_vec)
        b = load_broadcast(shift_ptr, row, ones_vec)
        current = Row(x_ptr, row * n, constants, g, b, 0)
        write_row(normalised, current, y_ptr, row * n, n, ones_vec, non_temporal)
    if non_temporal:
        fence()


@njit(**INLINE)
def reduce_add_wide(values, ones_vec):
    """Return the horizontal sum in float64."""
    sum_, rest = accumulate(zeros_float64(ones_vec), zeros_float64(ones_vec), values)
    return reduce_add(sum_in_float64(sum_, rest, ones_vec))


@njit(**CALLED)
def sums_of_rows(dy, x, mean, rstd, mean_residual, sum_dy, sum_dy_x_hat, is_large, start, stop):
    """Compute the residuals of the rounded means, and the sums of dy and of dy * x̂."""
    n, dy_ptr, x_ptr, ones_vec = x.shape[1], data_pointer(dy), data_pointer(x), ones(rstd)
    mean_ptr, rstd_ptr = data_pointer(mean), data_pointer(rstd)
    inv_count, prefetch_distance = 1.0 / n, PREFETCH_BYTES // x.itemsize if is_large else 0
    for row in range(start, stop):
        rstd_vec = load_broadcast(rstd_ptr, row, ones_vec)
        source = Source(dy_ptr, x_ptr, row * n, None, 0)
        mean_vec = load_broadcast(mean_ptr, row, ones_vec)
        a, b, c = gradient_lane_sums(source, n, mean_vec, rstd_vec, prefetch_distance)
        _, unscale = range_scale(rstd_vec)
        d_mean, row_sum = reduce_add_wide(a, ones_vec) * inv_count, reduce_add_wide(b, ones_vec)
        mean_residual[row, 0] = scalar_like(d_mean, ones_vec) * first_lane(unscale)
        sum_dy[row, 0] = row_sum
        sum_dy_x_hat[row, 0] = (
            reduce_add_wide(c, ones_vec) - d_mean * first_lane(rstd_vec * unscale) * row_sum
        )


@njit(**CALLED)
def gradient(dy, x, mean, mean_residual, rstd, weight, scale, shift, dx, non_temporal, start, stop):
    """Write rstd * (dy * weight + x̂ * scale + shift) for rows start to stop."""
    n, dy_ptr, x_ptr = x.shape[1], data_pointer(dy), data_pointer(x)
    dx_ptr, ones_vec = data_pointer(dx), ones(rstd)
    mean_ptr, mean_residual_ptr = data_pointer(mean), data_pointer(mean_residual)
    rstd_ptr = data_pointer(rstd)
    weight_ptr, scale_ptr = data_pointer(weight), data_pointer(scale)
    shift_ptr = data_pointer(shift)
    for row in range(start, stop):
        rstd_vec = load_broadcast(rstd_ptr, row, ones_vec)
        constants = DxConstants(
            load_broadcast(mean_ptr, row, ones_vec),
            rstd_vec,
            zeros(ones_vec) - load_broadcast(mean_residual_ptr, row, ones_vec) * rstd_vec,
            load_broadcast(shift_ptr, row, ones_vec),
            load_broadcast(scale_ptr, row, ones_vec),
        )
        g = load_broadcast(weight_ptr, row, ones_vec)
        source = Source(dy_ptr, x_ptr, row * n, g, 0)
        write_dx(source, n, constants, Gradients(dx_ptr, None, None, 0), non_temporal, 0)
    if non_temporal:
        fence()


statistics_task = task_of(statistics)
affine_task = task_of(affine)
sums_of_rows_task = task_of(sums_of_rows)
gradient_task = task_of(gradient)
