"""Statistics over rows: layer norm and related operations, forward and backward.

With x̂ = (x - mean) * rstd and rstd = 1 / sqrt(var + epsilon), the forward pass is
y = x̂ * gamma + beta. With g = dy * gamma, the backward pass is

    dx = rstd * (g - mean(g) - x̂ * mean(g * x̂)),  dgamma = Σ dy * x̂,  dbeta = Σ dy

(Ba, Kiros and Hinton, "Layer Normalization", arXiv:1607.06450, with the gradient of its equation
(4) written out). RMS norm omits the mean, in x̂ and in dx (Zhang and Sennrich,
"Root Mean Square Layer Normalization", arXiv:1910.07467).

Three things keep the error from growing with mean, length or magnitude:

* The rounding error of the mean is corrected. Subtracting the rounded mean is exact enough, so the
  mean of the differences is that error, `mean_residual`, and is subtracted too (Chan, Golub and
  LeVeque, "Algorithms for computing the sample variance", 1983, equation (1.7), applied to the
  mean).
* The first sweep subtracts one element of a row from all others and sums the differences, so the
  mean of a constant row is exact.
* Rows whose squares would leave the range of the dtype are scaled by a power of two first.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Array, computes_in_float64, dtype_name, library_of, native_dtype, to_acc_dtype
from .._layout import ascontiguous
from .reductions import largest_magnitude, one_of_each, sum_over, wide_sum


class ScaleRule(NamedTuple):
    """A factor for rows whose magnitude is beyond a threshold."""

    threshold: float
    factor: float


#: After scaling, neither the sum of 2³¹ squares overflows nor the square of a difference of one ulp
#: underflows. Ordered from 1 outwards; the last rule that applies is used.
_DOWNSCALE = {
    "float32": (ScaleRule(2.0**46, 2.0**-62), ScaleRule(2.0**108, 2.0**-124)),
    "float64": (ScaleRule(2.0**480, 2.0**-700),),
}
_UPSCALE = {
    "float32": (ScaleRule(2.0**-16, 2.0**62), ScaleRule(2.0**-78, 2.0**124)),
    "float64": (ScaleRule(2.0**-420, 2.0**700),),
}
#: Where rstd is smaller than this, deviations are multiplied by it before they are summed.
_RANGE_SCALE = {"float32": 2.0**-64, "float64": 2.0**-512}
_SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}


class Elements:
    """The elements that statistics over some axes are taken of: all, or those where a mask is true.

    A mask broadcasts with x.
    """

    def __init__(
        self, xp: Any, x: Array, axes: tuple[int, ...], where: Array | None = None
    ) -> None:
        """Take elements of arrays of the shape of x, which has the accumulation dtype."""
        self.xp, self.axes, self.where = xp, axes, where
        #: Their number, or 1 where there are none.
        self.count: Any = max(math.prod(x.shape[axis] for axis in axes), 1)
        if where is not None:
            ones = xp.where(where, xp.ones_like(x), 0.0)
            count = xp.astype(sum_over(xp, ones, axes, wide=True), x.dtype, copy=False)
            self._is_empty = count == 0
            self.count = xp.where(self._is_empty, 1.0, count)

    def only(self, values: Array, other: Any = 0.0) -> Array:
        """Return values with another in place of those that do not belong."""
        return values if self.where is None else self.xp.where(self.where, values, other)

    def unless_empty(self, statistic: Any, other: float = 0.0) -> Any:
        """Return a statistic with another value where there are no elements."""
        if self.where is None:
            return statistic
        return self.xp.where(self._is_empty, other, statistic)

    def one(self, x: Array) -> Array:
        """Return one of the elements of x; 0 where there are none."""
        if self.where is None:
            return one_of_each(self.xp, x, self.axes)
        least = self.xp.min(self.only(x, math.inf), axis=self.axes, keepdims=True)
        return self.unless_empty(least)

    def mean(self, values: Array, **options: Any) -> Array:
        """Return the mean of values, by the options of `sum_over`; 0 where there are none."""
        return sum_over(self.xp, self.only(values), self.axes, **options) / self.count


def rows_forward(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    *,
    epsilon: float,
    center: bool,
    groups: int = 1,
    repeat: int = 1,
    span: int = 1,
    out: Array | None = None,
    where: Array | None = None,
) -> tuple[Array, Array | None, Array]:
    """Normalise each row of x.

    Parameters
    ----------
    x
        Shape (M, N), in C order where the library has an order.
    gamma, beta
        Shape (groups * N // repeat,) or None. Element (r, c) of x takes its parameters from index
        (r // span mod groups) * (N // repeat) + c // repeat.
    epsilon
        Added to the variance, inside the root.
    center
        Whether to subtract the mean. Without it this is RMS norm.
    groups, repeat, span
        See gamma. Layer norm and RMS norm have 1, 1 and 1, unless parameters have the rank of x.
    out
        An array for y, or None.
    where
        Boolean, of shape (M, N), or None. Elements where it is false do not count, whatever they
        are, and y is 0 there. A row without elements has a mean and an rstd of 0.

    Returns
    -------
    y : array of shape (M, N), in the dtype of x
    mean : array of shape (M, 1) in the accumulation dtype, or None where `center` is False
    rstd : array of shape (M, 1), likewise
    """
    xp = library_of(x).xp
    split = _split(x.shape, groups, repeat, span)
    y, mean, _, rstd = normalise(
        _reshape(xp, x, split.shape),
        *(_reshape(xp, each, split.parameter) for each in (gamma, beta)),
        axes=split.axes,
        epsilon=epsilon,
        center=center,
        where=_reshape(xp, where, split.shape),
    )
    y = _reshape(xp, y, x.shape)
    mean, rstd = (_reshape(xp, each, (x.shape[0], 1)) for each in (mean, rstd))
    return _write(y, out), mean, rstd


def rows_backward(
    dy: Array,
    x: Array,
    mean: Array | None,
    rstd: Array,
    gamma: Array | None,
    *,
    center: bool,
    groups: int = 1,
    repeat: int = 1,
    span: int = 1,
    need: tuple[bool, bool, bool] = (True, True, True),
    where: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Compute the gradients of `rows_forward`.

    Parameters
    ----------
    dy, x
        Shape (M, N): the gradient of y, and the input of the forward pass.
    mean, rstd
        Shape (M, 1), from `rows_forward`; mean is None where `center` is False.
    gamma, center, groups, repeat, span
        As in `rows_forward`.
    need
        Which of dx, dgamma and dbeta to compute. The others are None and cost nothing.
    where
        As in `rows_forward`; dx is 0 where it is false.

    Returns
    -------
    dx : array of shape (M, N), in the dtype of x
    dgamma, dbeta : arrays of shape (groups * N // repeat,), in the accumulation dtype
        A backend may return them in the dtype of gamma, or of x where gamma is absent.
    """
    xp = library_of(x).xp
    split = _split(x.shape, groups, repeat, span)
    dx, dgamma, dbeta = normalise_backward(
        _reshape(xp, dy, split.shape),
        _reshape(xp, x, split.shape),
        _reshape(xp, mean, split.statistic),
        _reshape(xp, rstd, split.statistic),
        _reshape(xp, gamma, split.parameter),
        axes=split.axes,
        parameter_axes=split.parameter_axes,
        center=center,
        need=need,
        where=_reshape(xp, where, split.shape),
    )
    parameters = (groups * x.shape[1] // repeat,)
    dx = _reshape(xp, dx, x.shape)
    return dx, *(_reshape(xp, each, parameters) for each in (dgamma, dbeta))


class _Split(NamedTuple):
    """Shapes of rows, statistics and parameters that broadcast, and which axes these have."""

    shape: tuple[int, ...]
    statistic: tuple[int, ...]
    parameter: tuple[int, ...]
    axes: tuple[int, ...]
    parameter_axes: tuple[int, ...]


def _split(shape: tuple[int, int], groups: int, repeat: int, span: int) -> _Split:
    """Split (M, N) into (M / groups / span, groups, span, N / repeat, repeat), unless all are 1."""
    m, n = shape
    if groups == repeat == 1:
        return _Split((m, n), (m, 1), (n,), (1,), (1,))
    outer, inner = m // (groups * span), n // repeat
    rows, parameter = (outer, groups, span, inner, repeat), (1, groups, 1, inner, 1)
    return _Split(rows, (outer, groups, span, 1, 1), parameter, (3, 4), (1, 3))


def _reshape(xp: Any, x: Array | None, shape: tuple[int, ...]) -> Any:
    """Reshape x to a shape of another rank; arrays of that rank have that shape already."""
    return x if x is None or x.ndim == len(shape) else xp.reshape(x, shape)


def _write(y: Array, out: Array | None) -> Array:
    """Return y, written to `out` if that is given."""
    if out is None:
        return y
    out[...] = y
    return out


def forward_over(
    x: Array, gamma: Array | None, beta: Array | None, *, out: Array | None = None, **options: Any
) -> tuple[Array, Array | None, Array]:
    """Normalise x as `rows_forward` does, with all its axes and the options of `normalise`."""
    y, mean, _, rstd = normalise(x, gamma, beta, **options)
    return _write(y, out), mean, rstd


def normalise(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    *,
    axes: tuple[int, ...],
    epsilon: float,
    center: bool,
    where: Array | None = None,
) -> tuple[Array, Array | None, Array, Array]:
    """Normalise x over `axes`, ascending; gamma and beta broadcast, statistics keep the rank.

    Return y, mean, var and rstd. Without `center`, the mean is None and var is the mean square.
    Elements where a mask is false do not count: y is 0 there. Statistics of no elements are 0.
    """
    xp = library_of(x).xp
    d = to_acc_dtype(xp, ascontiguous(x))
    dtype = d.dtype
    if 0 in (x.shape[axis] for axis in axes):
        # y is empty, but frameworks still see a function of x, gamma and beta.
        nan = xp.sum(d, axis=axes, keepdims=True) + (math.nan if where is None else 0.0)
        y = xp.astype(_affine(xp, d * nan, gamma, beta), native_dtype(x), copy=False)
        return y, nan if center else None, nan, nan
    elements = Elements(xp, d, axes, where)
    d = elements.only(d)
    with np.errstate(all="ignore"):  # NaN, infinity and zero variance are expected
        scale, scaled_epsilon = scaling(xp, x.dtype, d, axes, epsilon)
        if scale is not None:
            d = d * scale
        if center:
            d, approx_mean, mean_residual = centred(d, elements)
        var = mean_square(d, elements)
        std = xp.sqrt(var + elements.unless_empty(scaled_epsilon, 1.0))
        rstd = 1 / std
        if std.dtype == dtype and computes_in_float64(x):  # a quotient has one rounding less
            y = d / std
        else:
            y = d * astype_like(xp, rstd, d)
        del d  # frees memory of the size of x
        y = elements.only(_affine(xp, y, gamma, beta))
        mean = approx_mean + mean_residual if center else None
        rstd = unscaled_rstd(xp, rstd, scale, var, epsilon, dtype_name(dtype))
        rstd = elements.unless_empty(rstd)
        if scale is not None:
            var = var / scale / scale  # whose square may be out of range
            mean = None if mean is None else mean / scale
        var, rstd = (xp.astype(each, dtype, copy=False) for each in (var, rstd))
        return xp.astype(y, native_dtype(x), copy=False), mean, var, rstd


def _affine(xp: Any, y: Array, gamma: Array | None, beta: Array | None) -> Array:
    """Return y * gamma + beta in the accumulation dtype; either parameter may be None."""
    if gamma is not None:
        y = y * astype_like(xp, gamma, y)
    return y if beta is None else y + astype_like(xp, beta, y)


def unscaled_rstd(
    xp: Any, rstd: Array, scale: Array | None, var: Array, epsilon: float, accumulation: str
) -> Array:
    """Return the rstd of x from rstd and var of x * scale.

    Where x is constant, rstd follows from epsilon only, which may underflow in the dtype. Then
    rstd is at most the largest finite number, unless epsilon is 0.
    """
    largest = float(np.finfo(accumulation).max)
    constant_rstd = min(1 / math.sqrt(epsilon), largest) if epsilon > 0 else math.inf
    return xp.where(var == 0, constant_rstd, rstd if scale is None else rstd * scale)


def centred(x: Array, elements: Elements) -> tuple[Array, Array, Array]:
    """Return x minus the mean of its elements, the approximate mean, and the residual of that mean.

    What does not belong is 0.
    """
    one = elements.one(x)
    approx_mean = one + elements.mean(x - one)
    d = x - approx_mean
    mean_residual = elements.mean(d)
    d -= mean_residual
    return elements.only(d), approx_mean, mean_residual


def mean_square(d: Array, elements: Elements) -> Array:
    """Return the mean of the squares of d, in float64 where the library has it.

    There is no wider dtype for squares in float64, so the mean of their deviations from the
    computed mean is added: where squares are alike, as in a row with many zeros, a plain sum
    rounds in one direction.
    """
    xp, squares = elements.xp, d * d
    mean = elements.mean(squares, wide=True)
    if dtype_name(d.dtype) != "float64":
        return mean
    residual = elements.mean(squares - mean)
    return xp.where(xp.isfinite(residual), mean + residual, mean)


def normalise_backward(
    dy: Array,
    x: Array,
    mean: Array | None,
    rstd: Array,
    gamma: Array | None,
    *,
    axes: tuple[int, ...],
    parameter_axes: tuple[int, ...],
    center: bool,
    need: tuple[bool, bool, bool],
    where: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Compute the gradients of `normalise`; those of parameters keep the rank."""
    xp = library_of(x).xp
    need_dx, need_dgamma, need_dbeta = need
    reduced_axes = tuple(axis for axis in range(x.ndim) if axis not in parameter_axes)
    dx = dgamma = dbeta = None
    with np.errstate(all="ignore"):
        x, dy = ascontiguous(x), astype_like(xp, ascontiguous(dy), rstd)
        elements = Elements(xp, dy, axes, where)
        dy = elements.only(dy)
        if need_dbeta:
            dbeta = wide_sum(xp, dy, reduced_axes)
        if not (need_dx or need_dgamma):
            return dx, dgamma, dbeta
        x_hat = x_hat_from_stats(x, mean, rstd, elements)
        if need_dgamma:
            dgamma = wide_sum(xp, dy * x_hat, reduced_axes)
        if need_dx:
            g = dy if gamma is None else dy * astype_like(xp, gamma, dy)
            dx = g - x_hat * elements.mean(g * x_hat, fused=False)
            if center:
                dx -= elements.mean(g, fused=False)
            dx = xp.astype(elements.only(dx * rstd), native_dtype(x), copy=False)
    return dx, dgamma, dbeta


def x_hat_from_stats(x: Array, mean: Array | None, rstd: Array, elements: Elements) -> Array:
    """Return x̂ from the statistics of `normalise`, corrected for the rounding of the mean.

    What does not belong to the elements is finite.
    """
    xp = elements.xp
    d = elements.only(to_acc_dtype(xp, x))
    if mean is None:
        return d * rstd
    # Deviations are scaled by a power of two, which is exact and prevents overflow of their sum. In
    # short rows, the rounding of products with rstd would be visible in x_hat.
    min_rstd = _RANGE_SCALE[dtype_name(rstd.dtype)]
    scale = xp.where(rstd < min_rstd, min_rstd, xp.ones_like(rstd))
    d = (d - mean) * scale
    d -= elements.mean(d)
    return d * (rstd / scale)


def astype_like(xp: Any, values: Array, like: Array) -> Array:
    """Cast values to the dtype of `like`, an array in the accumulation dtype."""
    return xp.astype(values, like.dtype, copy=False)


def scaling(
    xp: Any, dtype: Any, x: Array, axes: tuple[int, ...], epsilon: float
) -> tuple[Array | None, Array | float]:
    """Return a power of two for each row, or None where none is needed, and epsilon * its square.

    `x` has the accumulation dtype, `dtype` is its original one.
    """
    accumulation = dtype_name(x.dtype)
    if dtype_name(dtype) == "float16":  # its squares are well inside the range of float32
        return None, scale_epsilon(epsilon, accumulation)
    max_abs = largest_magnitude(xp, x, axes)
    scale = xp.ones_like(max_abs)
    scaled_epsilon = xp.full_like(max_abs, scale_epsilon(epsilon, accumulation))
    # Where epsilon is large enough to put the variance in range, small rows need no scaling.
    small = [rule for rule in _UPSCALE[accumulation] if math.sqrt(epsilon) < rule.threshold]
    for applies, factor in (
        *((max_abs >= threshold, factor) for threshold, factor in _DOWNSCALE[accumulation]),
        *((max_abs < threshold, factor) for threshold, factor in small),
    ):
        scale = xp.where(applies, factor, scale)
        scaled_epsilon = xp.where(
            applies, scale_epsilon(epsilon, accumulation, factor), scaled_epsilon
        )
    return scale, scaled_epsilon


def scale_epsilon(epsilon: float, accumulation: str, factor: float = 1.0) -> float:
    """Return epsilon * factor², but not less than the smallest normal number, unless it is 0.

    An epsilon that underflows is far below the variance, unless the row is constant: then it
    prevents 0 / 0.
    """
    return max(epsilon * factor * factor, _SMALLEST_NORMAL[accumulation]) if epsilon > 0 else 0.0
