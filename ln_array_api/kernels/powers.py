"""Signed powers of rows, and their norm for exponents above 1: power norm's maths.

Such powers, and their squares, easily leave the range of a dtype. With p the largest magnitude in a
row, v = (abs(x) / p)**alpha, which is at most 1, and s = p**alpha / sqrt(epsilon),

    y = sign(x) * v / sqrt(sum(v²) + 1 / s²) = sign(x) * v * s / sqrt(sum(v²) * s² + 1)

The first form is in range where s is at least 1, the second where s is less. Where p**alpha
itself is out of range, it is taken as two factors, each the root of it.

p is a constant to frameworks that differentiate y: the result does not depend on it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arrays import Array, detach, dtype_name, library_of, native_dtype, to_acc_dtype
from .reductions import largest_magnitude, sum_over
from .rows import astype_like

#: Ratios to the largest magnitude in a row from which powers are computed from the distance to it.
LARGE_RATIO = 0.9


def power(xp: Any, magnitudes: Array, alpha: float) -> Array:
    """Return magnitudes to the power of alpha.

    The rounding error of alpha in float32 makes the powers of very large and of very small numbers
    wrong in the seventh digit. So they are multiplied by powers with that error as the exponent.
    """
    if dtype_name(magnitudes.dtype) == "float64":
        return magnitudes**alpha
    rounded = float(np.float32(alpha))
    powers = magnitudes**rounded
    if rounded == alpha:
        return powers
    return powers * (1 + (alpha - rounded) * xp.log(xp.where(magnitudes == 0, 1.0, magnitudes)))


def signed_power(x: Array, alpha: float) -> Array:
    """Return powers of x in the accumulation dtype; frameworks get a derivative of 0 at x = 0."""
    xp, x_acc = library_of(x).xp, to_acc_dtype(library_of(x).xp, x)
    if alpha == 1:
        return x_acc
    # Not by `sign`, which looks for NaN in CuPy's arrays, and so waits for them.
    signed = xp.copysign(power(xp, xp.where(x_acc == 0, 1.0, xp.abs(x_acc)), alpha), x_acc)
    return xp.where(x_acc == 0, 0.0, signed)


def powers_forward(
    x: Array, *, axes: tuple[int, ...], alpha: float, epsilon: float
) -> tuple[Array, Array]:
    """Divide powers of x by their norm.

    Parameters
    ----------
    x
        Of any shape.
    axes
        The axes that norms are taken over, ascending.
    alpha
        The exponent, more than 1.
    epsilon
        Added to the sum of squares, inside the root.

    Returns
    -------
    y : array of the shape and dtype of x
    norm : array in the accumulation dtype, of x's rank, with length 1 in place of `axes`
    """
    xp, x_acc = library_of(x).xp, to_acc_dtype(library_of(x).xp, x)
    with np.errstate(all="ignore"):
        if 0 in (x.shape[axis] for axis in axes):
            nan = xp.sum(x_acc, axis=axes, keepdims=True) + math.nan
            return xp.astype(x_acc * nan, native_dtype(x), copy=False), nan
        max_abs, _, v = _ratios(xp, x_acc, axes, alpha)
        half, squares = power(xp, max_abs, alpha / 2), sum_over(xp, v * v, axes)
        if epsilon == 0:
            total = xp.sqrt(squares)
            norm = half * total * half
        else:
            sqrt_epsilon = max(math.sqrt(epsilon), _min_normal(x_acc))
            max_power = power(xp, max_abs, alpha)
            s = xp.where(
                max_power < _min_normal(x_acc), half / sqrt_epsilon * half, max_power / sqrt_epsilon
            )
            above = (s >= 1) & (squares > 0)
            v = xp.where(above, v, v * s)
            total = xp.sqrt(xp.where(above, squares + 1 / (s * s), squares * s * s + 1))
            norm = xp.where(above, half * total * half, sqrt_epsilon * total)
        return xp.astype(xp.copysign(v, x_acc) / total, native_dtype(x), copy=False), norm


def powers_backward(
    dy: Array, x: Array, norm: Array, *, axes: tuple[int, ...], alpha: float
) -> Array:
    """Return the gradient of `powers_forward`: dx, of the shape and dtype of x.

    Parameters
    ----------
    dy, x
        Of one shape: the gradient of y, and the input of the forward pass.
    norm
        From `powers_forward`.
    axes, alpha
        As in `powers_forward`.
    """
    xp, x_acc = library_of(x).xp, to_acc_dtype(library_of(x).xp, x)
    with np.errstate(all="ignore"):
        if 0 in x.shape:
            return xp.astype(x_acc, native_dtype(x))
        dy, norm = astype_like(xp, dy, x_acc), astype_like(xp, norm, x_acc)
        max_abs, ratio, v = _ratios(xp, x_acc, axes, alpha)
        slope = xp.where(ratio < LARGE_RATIO, power(xp, ratio, alpha - 1), v / ratio)
        squares = sum_over(xp, v * v, axes)
        # Where the norm is out of range, epsilon does not matter: the powers are too large for it,
        # or it would have brought the norm into range.
        in_range = (norm >= _min_normal(x_acc)) & (norm < math.inf)
        half = power(xp, max_abs, alpha / 2)
        v = xp.where(in_range, v * (half / norm) * half, v / xp.sqrt(squares))
        y = xp.copysign(v, x_acc)
        g = dy - y * sum_over(xp, dy * y, axes)
        half = power(xp, max_abs, (alpha - 1) / 2)
        per_norm = xp.where(in_range, half / norm * half, 1 / xp.sqrt(squares) / max_abs)
        return xp.astype(g * (alpha * slope) * per_norm, native_dtype(x), copy=False)


def _min_normal(x: Array) -> float:
    """Return the smallest normal number of the dtype of x."""
    return float(np.finfo(dtype_name(x.dtype)).smallest_normal)


def _ratios(xp: Any, x: Array, axes: tuple[int, ...], alpha: float) -> tuple[Array, Array, Array]:
    """Return p of each row, or 1 if it is 0, and the ratios to it of magnitudes and of powers."""
    magnitudes = xp.abs(x)
    max_abs = detach(largest_magnitude(xp, x, axes))
    max_abs = xp.where(max_abs == 0, 1.0, max_abs)
    ratio = magnitudes / max_abs
    # A power multiplies the rounding error of a ratio by alpha, which matters for the largest
    # ratios. Their distance from 1 has a smaller error. For other ratios it would be worse: XLA's
    # log1p is off by 100 eps near -0.4.
    distance = xp.maximum((magnitudes - max_abs) / max_abs, xp.full_like(max_abs, LARGE_RATIO - 1))
    v = xp.where(ratio < LARGE_RATIO, power(xp, ratio, alpha), xp.exp(alpha * xp.log1p(distance)))
    return max_abs, ratio, v
