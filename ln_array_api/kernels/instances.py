"""Statistics of instances, the channels of each sample, and normalisation by mixes of them.

Batch-instance and switchable norm mix the statistics of instances with those of larger parts of x,
which follow from those of the instances. With x̂ = (x - mean) * rstd of an instance, y is
x̂ * scale + shift, and dx is rstd * (dy * weight + x̂ * scale + shift), where scale, shift and weight
are numbers of each instance. `mean_residual` corrects the rounded means of instances, as in `rows`.

Arrays and results have the accumulation dtype of x; statistics, weight, scale and shift keep the
rank of x.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arrays import Array, detach, dtype_name, library_of
from .moments import two_sum
from .reductions import largest_magnitude, one_of_each, sum_over
from .rows import Elements, astype_like, centred, mean_square, scaling, unscaled_rstd


def statistics(
    x: Array, *, axes: tuple[int, ...], epsilon: float
) -> tuple[Array, Array, Array, Array]:
    """Return the mean over `axes`, its residual, the variance and rstd.

    Where there are no elements, the mean is 0, and the variance and rstd are 1, so that no NaN
    follows from them.
    """
    xp, d = library_of(x).xp, x
    if 0 in (x.shape[axis] for axis in axes):
        zero = xp.sum(x, axis=axes, keepdims=True)
        return zero, zero, xp.ones_like(zero), xp.ones_like(zero)
    with np.errstate(all="ignore"):
        scale, scaled_epsilon = scaling(xp, x.dtype, d, axes, epsilon)
        if scale is not None:
            d = d * scale
        elements = Elements(xp, d, axes)
        d, approx_mean, mean_residual = centred(d, elements)
        var = mean_square(d, elements)
        rstd = 1 / xp.sqrt(var + scaled_epsilon)
        rstd = unscaled_rstd(xp, rstd, scale, var, epsilon, dtype_name(d.dtype))
        mean, mean_residual = two_sum(approx_mean, mean_residual)
        if scale is not None:
            mean, mean_residual, var = mean / scale, mean_residual / scale, var / scale / scale
        return mean, mean_residual, astype_like(xp, var, d), astype_like(xp, rstd, d)


def _x_hat(x: Array, mean: Array, mean_residual: Array, rstd: Array) -> Array:
    return ((x - mean) - mean_residual) * rstd


def affine(
    x: Array, mean: Array, mean_residual: Array, rstd: Array, scale: Array, shift: Array
) -> Array:
    """Return x̂ * scale + shift."""
    with np.errstate(all="ignore"):
        return _x_hat(x, mean, mean_residual, rstd) * scale + shift


def sums(
    dy: Array, x: Array, mean: Array, rstd: Array, *, axes: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Return the residual of a rounded mean, and the sums of dy and of dy * x̂ over `axes`."""
    xp = library_of(x).xp
    with np.errstate(all="ignore"):
        n = max(math.prod(x.shape[axis] for axis in axes), 1)
        mean_residual = sum_over(xp, x - mean, axes) / n
        sum_dy_x_hat = sum_over(xp, dy * _x_hat(x, mean, mean_residual, rstd), axes, fused=False)
        return mean_residual, sum_over(xp, dy, axes, fused=False), sum_dy_x_hat


def gradient(
    dy: Array,
    x: Array,
    mean: Array,
    mean_residual: Array,
    rstd: Array,
    weight: Array,
    scale: Array,
    shift: Array,
) -> Array:
    """Return rstd * (dy * weight + x̂ * scale + shift)."""
    with np.errstate(all="ignore"):
        return rstd * (dy * weight + (_x_hat(x, mean, mean_residual, rstd) * scale + shift))


def average(xp: Any, values: Array, axis: int) -> Array:
    """Average values of instances over the samples or the channels; return 0 for none."""
    return sum_over(xp, values, (axis,), fused=False) / max(values.shape[axis], 1)


def common_mean(xp: Any, mean: Array, mean_residual: Array, axis: int) -> tuple[Array, Array]:
    """Return the mean of the means of instances over an axis, and their distances from it."""
    if mean.shape[axis] == 0:
        return xp.sum(mean, axis=axis, keepdims=True), mean
    first = one_of_each(xp, mean, (axis,))
    distance = (mean - first) + mean_residual
    mean_offset = average(xp, distance, axis)
    distance = distance - mean_offset
    residual = average(xp, distance, axis)
    return first + (mean_offset + residual), distance - residual


def common_rstd(xp: Any, rstd: Array, distance: Array, axis: int) -> Array:
    """Return the rstd of all instances along an axis, given the distances of their means.

    The mean of 1 / rstd² is that of variances with epsilon. Roots are divided by the largest before
    they are squared, so that the squares stay in range. Without instances it is 1.
    """
    if rstd.shape[axis] == 0:
        return xp.sum(rstd, axis=axis, keepdims=True) + 1
    inverse = 1 / rstd
    magnitudes = (largest_magnitude(xp, each, (axis,)) for each in (inverse, distance))
    largest = detach(xp.maximum(*magnitudes))
    largest = xp.where(largest == 0, xp.ones_like(largest), largest)
    inverse, distance = inverse / largest, distance / largest
    return 1 / xp.sqrt(average(xp, inverse * inverse + distance * distance, axis)) / largest
