"""Mean and squared deviations, accurate enough to be merged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arrays import Array, library_of, to_acc_dtype
from .reductions import sum_over
from .rows import Elements, centred, scaling


def moments(x: Array, *, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Return mean, m2 and the residual of the mean over `axes`, ascending.

    All keep the rank, in the accumulation dtype. Without values they are NaN, 0 and 0.
    """
    xp = library_of(x).xp
    d = to_acc_dtype(xp, x)
    if 0 in (x.shape[axis] for axis in axes):
        zero = xp.sum(d, axis=axes, keepdims=True)
        return zero + math.nan, zero, zero
    with np.errstate(all="ignore"):
        scale, _ = scaling(xp, x.dtype, d, axes, 0.0)
        if scale is not None:
            d = d * scale
        d, approx_mean, mean_residual = centred(d, Elements(xp, d, axes))
        mean, mean_residual = two_sum(approx_mean, mean_residual)
        m2 = sum_over(xp, d * d, axes, wide=True)
        if scale is not None:
            mean, mean_residual, m2 = mean / scale, mean_residual / scale, m2 / scale / scale
    return mean, xp.astype(m2, d.dtype, copy=False), mean_residual


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Return the sum of a and b, and its exact rounding error.

    From Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """
    total = a + b
    rounded = total - a
    return total, (a - (total - rounded)) + (b - rounded)
