"""Mean and variance from sums about an approximate mean, as exact as the dtype can hold them.

Elements that are normalised together are one piece (rows) or several (channels). `pieces` is the
index of the first element, the length n of a piece, the number of pieces, and their stride.
`mean_or_none` is None for RMS norm; its value is not used. `inv_count` is 1 / the number of
elements. The mean is `approx_mean` + `mean_residual`.
"""

from __future__ import annotations

import math

from numba import njit

from .compile import CALLED, INLINE
from .doubles import from_float64, reciprocal_sqrt, zeros_float64
from .row_passes import (
    approx_mean_or_zero,
    compensated_add,
    deviation_sums,
    largest_magnitudes,
    with_compensation,
)
from .simd import (
    all_at_most,
    broadcast,
    broadcast_like,
    dtype_limits,
    first_lane,
    lanes,
    reduce_add_rows,
    reduce_max,
    scalar_like,
    zeros,
)
from .vector_memory import store


@njit(**INLINE)
def moments(deviation, square, inv_count, mean_or_none):
    """Return the residual of the approximate mean, and the variance (RMS norm: the mean square).

    The sums are float64 numbers or vectors.
    """
    mean_residual = deviation * inv_count
    if mean_or_none is None:
        return mean_residual, square * inv_count
    return mean_residual, square * inv_count - mean_residual * mean_residual


@njit(**INLINE)
def deviation_sums_of_pieces(x, pieces, scale, offset, prefetch_distance):
    """Return the sums of d and of d² over all pieces, where d is x * scale + offset."""
    x_offset, n, num_pieces, stride = pieces
    deviation, square = deviation_sums(x, x_offset, n, scale, offset, prefetch_distance)
    comp_deviation, comp_square = 0.0, 0.0
    for piece in range(1, num_pieces):
        more_deviation, more_square = deviation_sums(
            x, x_offset + piece * stride, n, scale, offset, prefetch_distance
        )
        deviation, comp_deviation = compensated_add(deviation, comp_deviation, more_deviation)
        square, comp_square = compensated_add(square, comp_square, more_square)
    return with_compensation(deviation, comp_deviation), with_compensation(square, comp_square)


@njit(**CALLED)
def moments_about(x, pieces, inv_count, scale, approx_mean, mean_or_none):
    """Return the `moments` of x * scale about an approximate mean."""
    deviation, square = deviation_sums_of_pieces(x, pieces, scale, broadcast(-approx_mean), 0)
    return moments(deviation, square, inv_count, mean_or_none)


@njit(**CALLED)
def scale_factor(x, pieces, ones_vec, epsilon):
    """Return the power of two that scales max(abs(x), sqrt(epsilon)) to nearly 1, within limits."""
    min_normal, _, _ = dtype_limits(ones_vec)
    max_exponent = -math.frexp(min_normal)[1] - 22
    max_abs = zeros(ones_vec)
    start, n, num_pieces, stride = pieces
    for piece in range(num_pieces):
        max_abs = largest_magnitudes(max_abs, x, start + piece * stride, n)
    size = max(float(reduce_max(max_abs)), math.sqrt(epsilon))
    if not 0.0 < size < math.inf:
        return 1.0
    return math.ldexp(1.0, min(max(-math.frexp(size)[1], -max_exponent), max_exponent))


@njit(**INLINE)
def compute_rstd(variance, epsilon, ones_vec):
    """Return 1 / sqrt(variance + epsilon)."""
    var_eps = variance + epsilon
    _, min_mean_square, max_mean_square = dtype_limits(ones_vec)
    if min_mean_square <= var_eps <= max_mean_square:  # the same bits as for lanes
        return scalar_like(first_lane(reciprocal_sqrt(broadcast(var_eps), ones_vec)), ones_vec)
    return scalar_like(1.0 / math.sqrt(var_eps), ones_vec)


@njit(**CALLED)
def scaled_moments(x, pieces, inv_count, ones_vec, mean_or_none, epsilon):
    """Return a factor, and of x * factor: approximate mean, its residual, variance and rstd."""
    factor = scale_factor(x, pieces, ones_vec, epsilon)
    unit, scale = scalar_like(1.0, ones_vec), broadcast_like(factor, ones_vec)
    approx_mean = approx_mean_or_zero(mean_or_none, x, pieces[0], pieces[1], scale)
    mean_residual, variance = moments_about(x, pieces, inv_count, scale, approx_mean, mean_or_none)
    if mean_or_none is not None:
        approx_mean = scalar_like(approx_mean + mean_residual, ones_vec)
        mean_residual, variance = moments_about(
            x, pieces, inv_count, scale, approx_mean, mean_or_none
        )
    if variance == 0 and epsilon > 0:
        # rstd depends only on epsilon. That of x * factor may be out of range if x is constant.
        _, _, max_mean_square = dtype_limits(ones_vec)
        epsilon_rstd = min(1.0 / math.sqrt(epsilon), max_mean_square)
        if epsilon_rstd > max_mean_square * factor:
            return (
                unit,
                scalar_like(approx_mean / factor, ones_vec),
                scalar_like(0.0, ones_vec),
                0.0,
                scalar_like(epsilon_rstd, ones_vec),
            )
        scaled_rstd = scalar_like(epsilon_rstd / factor, ones_vec)
    else:
        scaled_rstd = compute_rstd(variance, epsilon * factor * factor, ones_vec)
    return (
        scalar_like(factor, ones_vec),
        approx_mean,
        scalar_like(mean_residual, ones_vec),
        variance,
        scaled_rstd,
    )


@njit(**INLINE)
def finalize_moments(
    x, pieces, inv_count, ones_vec, mean_or_none, epsilon, approx_mean, deviation, square
):
    """Return what `scaled_moments` does, from given sums unless they are not accurate enough."""
    mean_residual, variance = moments(deviation, square, inv_count, mean_or_none)
    if mean_or_none is not None and mean_residual * mean_residual > 0.5 * variance:
        # The approximate mean is far off: the difference in `moments` would lose digits.
        approx_mean = scalar_like(approx_mean + mean_residual, ones_vec)
        mean_residual, variance = moments_about(
            x, pieces, inv_count, ones_vec, approx_mean, mean_or_none
        )
    _, min_mean_square, max_mean_square = dtype_limits(ones_vec)
    if not min_mean_square <= variance + epsilon <= max_mean_square:
        return scaled_moments(x, pieces, inv_count, ones_vec, mean_or_none, epsilon)
    scaled_rstd = compute_rstd(variance, epsilon, ones_vec)
    return (
        scalar_like(1.0, ones_vec),
        approx_mean,
        scalar_like(mean_residual, ones_vec),
        variance,
        scaled_rstd,
    )


@njit(**INLINE)
def moments_of_pieces(
    x, pieces, inv_count, ones_vec, mean_or_none, epsilon, approx_mean, prefetch_distance
):
    """Return what `finalize_moments` does, and take the sums about an approximate mean first."""
    deviation, square = deviation_sums_of_pieces(
        x, pieces, ones_vec, broadcast(-approx_mean), prefetch_distance
    )
    return finalize_moments(
        x, pieces, inv_count, ones_vec, mean_or_none, epsilon, approx_mean, deviation, square
    )


@njit(**INLINE)
def finalize_moments_vector(deviation, square, inv_count, ones_vec, mean_or_none, epsilon, count):
    """Return mean residuals, rstds, and whether both are accurate in the first `count` lanes."""
    _, min_mean_square, max_mean_square = dtype_limits(ones_vec)
    mean_residual, variance = moments(deviation, square, broadcast(inv_count), mean_or_none)
    var_eps = variance + broadcast(epsilon)
    good = all_at_most(broadcast(min_mean_square), var_eps, count) and all_at_most(
        var_eps, broadcast(max_mean_square), count
    )
    if mean_or_none is not None:
        good = good and all_at_most(mean_residual * mean_residual, broadcast(0.5) * variance, count)
    return mean_residual, reciprocal_sqrt(var_eps, ones_vec), good


@njit(**INLINE)
def finalize_moments_lanes(
    deviation, square, deviations, squares, inv_count, ones_vec, mean_or_none, epsilon, count
):
    """Return mean residuals and rstds of `count` rows, one per lane, and whether all are accurate.

    The sums of the rows are the lanes of two float64 vectors each. If not all are accurate, the
    sums are stored to `deviations` and `squares`.
    """
    width64 = lanes(deviation[0])
    mean_residual, scaled_rstd, good = finalize_moments_vector(
        deviation[0], square[0], inv_count, ones_vec, mean_or_none, epsilon, count
    )
    more_residual, more_rstd = mean_residual, scaled_rstd
    if count > width64:
        more_residual, more_rstd, more_good = finalize_moments_vector(
            deviation[1], square[1], inv_count, ones_vec, mean_or_none, epsilon, count - width64
        )
        good = good and more_good
    if not good:
        for half in range(2):
            store(deviations, half * width64, deviation[half])
            store(squares, half * width64, square[half])
    return (
        from_float64(mean_residual, more_residual, ones_vec),
        from_float64(scaled_rstd, more_rstd, ones_vec),
        good,
    )


@njit(**INLINE)
def reduce_add_float64(numbers, count, ones_vec):
    """Return the horizontal sums of `count` float64 vectors in memory, in two float64 vectors."""
    zero = zeros_float64(ones_vec)
    width64 = lanes(zero)
    first = reduce_add_rows(numbers, 0, zero)
    return first, reduce_add_rows(numbers, width64 * width64, zero) if count > width64 else first


@njit(**INLINE)
def unscaled_mean(factor, approx_mean, mean_residual):
    """Return the mean of x from that of x * factor."""
    return approx_mean + mean_residual if factor == 1 else (approx_mean + mean_residual) / factor
