"""Passes over channels that consist of a piece per sample, for every dtype.

As in `forward` and `backward`, code for an argument that is None is left out at compile time. One
thread does both passes over a channel, so that the second mostly finds it in the cache.
"""

from __future__ import annotations

from numba import njit

from .compile import CALLED, INLINE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .moments import compute_rstd, moments_of_pieces, unscaled_mean
from .row_gradients import DxConstants, Gradients, Source, gradient_lane_sums, write_dx
from .row_passes import Row, RowConstants, compute_approx_mean, normalised, write_row
from .simd import broadcast, broadcast_like, first_lane, ones, range_scale, reduce_add, scalar_like
from .tasks import task_of
from .vector_memory import data_pointer, fence, load_broadcast


@njit(**INLINE)
def approx_channel_mean(x, pieces, ones_vec):
    """Return the approximate mean of a channel from four pieces; exact for a constant channel."""
    x_offset, n, num_pieces, stride = pieces
    first = compute_approx_mean(x, x_offset, n, ones_vec)
    difference_sum = first - first
    for quarter in range(1, 4):
        difference_sum += (
            compute_approx_mean(x, x_offset + num_pieces * quarter // 4 * stride, n, ones_vec)
            - first
        )
    return first + difference_sum * scalar_like(0.25, ones_vec)


@njit(**INLINE)
def store_stats(
    mean, var, rstd, channel, factor, approx_mean, mean_residual, variance, scaled_rstd
):
    """Store the statistics of a channel; the given ones are those of x * factor."""
    mean[channel] = unscaled_mean(factor, approx_mean, mean_residual)
    if var is not None:
        var[channel] = variance / factor / factor
    rstd[channel] = scaled_rstd * factor


@njit(**INLINE)
def piece_lengths(x, non_temporal):
    """Return how many pieces a channel has, their length, stride and the prefetch distance."""
    samples, channels, n = x.shape
    stride = channels * n
    return samples, n, stride, stride if non_temporal else 0  # the next piece is prefetched


@njit(**CALLED)
def forward(x, gamma, beta, y, mean, var, rstd, epsilon, non_temporal, start, stop):
    """Normalise channels start to stop. Channels with squares out of range are scaled."""
    samples, n, stride, prefetch_distance = piece_lengths(x, non_temporal)
    x_ptr, y_ptr = data_pointer(x), data_pointer(y)
    gamma_ptr, beta_ptr = data_pointer(gamma), data_pointer(beta)
    ones_vec, inv_count = ones(rstd), 1.0 / (samples * n)
    for channel in range(start, stop):
        pieces = (channel * n, n, samples, stride)
        approx_mean = approx_channel_mean(x_ptr, pieces, ones_vec)
        factor, approx_mean, mean_residual, variance, scaled_rstd = moments_of_pieces(
            x_ptr, pieces, inv_count, ones_vec, data_pointer(mean), epsilon, approx_mean,
            prefetch_distance,
        )  # fmt: skip
        store_stats(
            mean, var, rstd, channel, factor, approx_mean, mean_residual, variance, scaled_rstd
        )
        g = load_broadcast(gamma_ptr, channel, ones_vec)
        b = load_broadcast(beta_ptr, channel, ones_vec)
        constants = RowConstants(
            broadcast(factor),
            broadcast(-approx_mean),
            broadcast(scaled_rstd),
            broadcast(-mean_residual * scaled_rstd),
        )
        for sample in range(samples):
            x_offset = channel * n + sample * stride
            row = Row(x_ptr, x_offset, constants, g, b, 0)
            write_row(normalised, row, y_ptr, x_offset, n, ones_vec, non_temporal)
    if non_temporal:
        fence()


@njit(**CALLED)
def inference(x, mean, var, gamma, beta, y, epsilon, non_temporal, start, stop):
    """Normalise pieces start to stop by given statistics, in the order of memory."""
    channels, n = x.shape[1:]
    x_ptr, y_ptr = data_pointer(x), data_pointer(y)
    gamma_ptr, beta_ptr = data_pointer(gamma), data_pointer(beta)
    ones_vec = ones(var)
    for piece in range(start, stop):
        channel = piece % channels
        rstd = compute_rstd(var[channel], epsilon, ones_vec)
        g = load_broadcast(gamma_ptr, channel, ones_vec)
        b = load_broadcast(beta_ptr, channel, ones_vec)
        constants = RowConstants(ones_vec, broadcast(-mean[channel]), broadcast(rstd), None)
        row = Row(x_ptr, piece * n, constants, g, b, 0)
        write_row(normalised, row, y_ptr, piece * n, n, ones_vec, non_temporal)
    if non_temporal:
        fence()


@njit(**CALLED)
def backward(dy, x, mean, rstd, gamma, dx, dgamma, dbeta, non_temporal, start, stop):
    """Process channels start to stop."""
    samples, n, stride, prefetch_distance = piece_lengths(x, non_temporal)
    dy_ptr, x_ptr = data_pointer(dy), data_pointer(x)
    gamma_ptr, dx_ptr = data_pointer(gamma), data_pointer(dx)
    mean_ptr, rstd_ptr = data_pointer(mean), data_pointer(rstd)
    ones_vec = ones(rstd)
    zero, inv_count = zeros_float64(ones_vec), 1.0 / (samples * n)
    gradients = Gradients(dx_ptr, None, None, 0)
    for channel in range(start, stop):
        mu = load_broadcast(mean_ptr, channel, ones_vec)
        r = load_broadcast(rstd_ptr, channel, ones_vec)
        a, b, c, rest_a, rest_b, rest_c = zero, zero, zero, zero, zero, zero
        for sample in range(samples):
            x_offset = channel * n + sample * stride
            source = Source(dy_ptr, x_ptr, x_offset, None, 0)
            aa, bb, cc = gradient_lane_sums(source, n, mu, r, prefetch_distance)
            a, rest_a = accumulate(a, rest_a, aa)
            b, rest_b = accumulate(b, rest_b, bb)
            c, rest_c = accumulate(c, rest_c, cc)
        sum_dy = reduce_add(sum_in_float64(b, rest_b, ones_vec))
        _, unscale = range_scale(r)
        # The residual of the rounded mean, in units of x_hat.
        x_hat_mean = (
            reduce_add(sum_in_float64(a, rest_a, ones_vec)) * inv_count * first_lane(r * unscale)
        )
        sum_dy_x_hat = reduce_add(sum_in_float64(c, rest_c, ones_vec)) - x_hat_mean * sum_dy
        if dgamma is not None:
            dgamma[channel] = sum_dy_x_hat
        if dbeta is not None:
            dbeta[channel] = sum_dy
        if dx is not None:
            g = load_broadcast(gamma_ptr, channel, ones_vec)
            neg_mean_g = broadcast_like(-sum_dy * inv_count, ones_vec)
            neg_projection = broadcast_like(-sum_dy_x_hat * inv_count, ones_vec)
            if gamma is not None:
                neg_mean_g, neg_projection = neg_mean_g * g, neg_projection * g
            x_hat_correction = broadcast_like(-x_hat_mean, ones_vec)
            constants = DxConstants(mu, r, x_hat_correction, neg_mean_g, neg_projection)
            for sample in range(samples):
                x_offset = channel * n + sample * stride
                source = Source(dy_ptr, x_ptr, x_offset, g, 0)
                write_dx(source, n, constants, gradients, non_temporal, 0)
    if non_temporal:
        fence()


forward_task = task_of(forward)
inference_task = task_of(inference)
backward_task = task_of(backward)
