"""Statistics of instance, layer and batch norm, mixed: switchable norm's maths.

An instance is a channel of a sample; its mean and variance are found from x alone. The mean of a
layer or of the batch is the mean of their instances' means, and the variance is the mean of their
variances and the variance of their means (Luo et al., "Differentiable Learning-to-Normalize via
Switchable Normalization", arXiv:1806.10779, section 3). Means enter by their differences alone,
which are taken without trusting a rounded mean.

Arrays have x's rank, and are in its accumulation dtype.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from .._arrays import Array, dtype_name
from .reductions import sum_over
from .rows import in_range

Three: TypeAlias = tuple[Array, Array, Array]  # of instance, layer and batch


class Moments:
    """How far x is from the means of its instances, and these from those of layer and batch."""

    def __init__(
        self, xp: Any, x: Array, mean: Array, *, axes: tuple[int, ...], channels: int
    ) -> None:
        """Given the rounded means of instances, which are over `axes`; the batch is axis 0."""
        self.xp, self.axes, self.channels = xp, axes, channels
        self.n = math.prod(x.shape[axis] for axis in axes)
        d = x - mean
        missed = self.average(d, self.axes)
        self.deviation = d - missed
        """Of x from the mean of its instance."""
        self.from_layer, self.from_batch = (
            self._spread(mean, missed, axis) for axis in (self.channels, 0)
        )

    def average(self, values: Array, axes: tuple[int, ...], *, fused: bool = True) -> Array:
        n = max(math.prod(values.shape[axis] for axis in axes), 1)
        return sum_over(self.xp, values, axes, fused=fused) / n

    def _spread(self, mean: Array, missed: Array, axis: int) -> Array:
        """How far the means of instances are from their own mean over an axis."""
        one = slice(min(1, mean.shape[axis]))
        first = tuple(one if each == axis else slice(None) for each in range(mean.ndim))
        d = (mean - mean[first]) + missed
        d = d - self.average(d, (axis,))
        return d - self.average(d, (axis,))

    def variances(self, var: Array) -> Three:
        """Of instance, layer and batch."""
        _, layer, batch = self._averages(var)
        layer = layer + self.average(self.from_layer * self.from_layer, (self.channels,))
        batch = batch + self.average(self.from_batch * self.from_batch, (0,))
        return var, layer, batch

    def centred(self, weights: Three) -> Array:
        """X without the mean that is mixed with such weights, whose sum is 1."""
        _, layer, batch = weights
        return self.deviation + (layer * self.from_layer + batch * self.from_batch)

    def gradient(self, of_mean: Three, of_var: Three, dmean: Array, dvar: Array) -> Array:
        """With respect to x, through the statistics alone, given those of the mixed ones."""
        dmean = _mixed(of_mean, self._averages(dmean))
        _, layer, batch = dvars = self._averages(dvar)
        spread = of_var[1] * layer * self.from_layer + of_var[2] * batch * self.from_batch
        dmean = dmean + 2 * spread
        return (dmean + 2 * _mixed(of_var, dvars) * self.deviation) / max(self.n, 1)

    def _averages(self, values: Array) -> Three:
        """Of instances: values themselves, their average over channels, and over the batch."""
        layer, batch = (self.average(values, (axis,), fused=False) for axis in (self.channels, 0))
        return values, layer, batch


def softmax(xp: Any, weights: Array, like: Array) -> Three:
    """Of the weights of a mix, in the dtype of `like`."""
    weights = xp.astype(weights, like.dtype, copy=False)
    weights = xp.exp(weights - xp.max(weights))
    weights = weights / xp.sum(weights)
    return weights[0], weights[1], weights[2]


def _mixed(weights: Three, values: Three) -> Array:
    (a, b, c), (x, y, z) = weights, values
    return a * x + b * y + c * z


def means(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    """Rounded, but exact where x is constant; 0 where there is nothing to take them of."""
    n = math.prod(x.shape[axis] for axis in axes)
    if n == 0:
        return xp.sum(x, axis=axes, keepdims=True)
    first = x[tuple(slice(1) if axis in axes else slice(None) for axis in range(x.ndim))]
    return first + sum_over(xp, x - first, axes) / n


def rstd_of(xp: Any, weights: Three, variances: Three, epsilon: float) -> Array:
    """1 / sqrt(var + epsilon), where var is mixed."""
    variance = _mixed(weights, variances)
    return 1 / xp.sqrt(variance + in_range(epsilon, dtype_name(variance.dtype)))


def softmax_gradient(xp: Any, weights: Three, dy: Array, values: Three) -> Array:
    """Of sum(dy * values mixed with weights), with respect to what the weights are softmax of."""
    every = tuple(range(dy.ndim))
    totals = [xp.reshape(sum_over(xp, dy * each, every, fused=False), ()) for each in values]
    mean = _mixed(weights, (totals[0], totals[1], totals[2]))
    return xp.stack([w * (total - mean) for w, total in zip(weights, totals, strict=True)])
