"""Statistics of instance, layer and batch norm, mixed: switchable norm's maths.

An instance is a channel of a sample; only its mean and variance are computed from x. The mean of a
layer or of the batch is the mean of its instances' means, and the variance is the mean of their
variances plus the variance of their means (Luo et al., "Differentiable Learning-to-Normalize via
Switchable Normalization", arXiv:1806.10779, section 3). Only differences of means are used.

Arrays hold values of instances, as in `instances`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from .._arrays import Array, dtype_name
from .instances import average, common_mean
from .reductions import sum_over
from .rows import scale_epsilon

PerSource: TypeAlias = tuple[Array, Array, Array]  # of instance, layer and batch


class Mix:
    """Distances of the means of instances from those of their layer and of the batch."""

    def __init__(self, xp: Any, mean: Array, mean_residual: Array, channels: int) -> None:
        """Take means and their residuals; the batch is axis 0."""
        self.xp, self.channels = xp, channels
        _, self.from_layer = common_mean(xp, mean, mean_residual, channels)
        _, self.from_batch = common_mean(xp, mean, mean_residual, 0)

    def variances(self, var: Array) -> PerSource:
        """Return the variances of instance, layer and batch."""
        _, layer, batch = self._averages(var)
        layer = layer + average(self.xp, self.from_layer * self.from_layer, self.channels)
        batch = batch + average(self.xp, self.from_batch * self.from_batch, 0)
        return var, layer, batch

    def distance(self, weights: PerSource) -> Array:
        """Return the distances of the means of instances from the mean mixed with these weights."""
        _, layer, batch = weights
        return layer * self.from_layer + batch * self.from_batch

    def gradient(
        self, of_mean: PerSource, of_var: PerSource, dmean: Array, dvar: Array
    ) -> tuple[Array, Array]:
        """Return gradients of instances' statistics, given those of the mixed ones."""
        dmean, dvars = _mixed(of_mean, self._averages(dmean)), self._averages(dvar)
        deviation_term = (
            of_var[1] * dvars[1] * self.from_layer + of_var[2] * dvars[2] * self.from_batch
        )
        return dmean + 2 * deviation_term, _mixed(of_var, dvars)

    def _averages(self, values: Array) -> PerSource:
        """Return values of instances, and their averages over channels and over the batch."""
        return values, average(self.xp, values, self.channels), average(self.xp, values, 0)


def softmax(xp: Any, weights: Array, like: Array) -> PerSource:
    """Return the softmax of the weights of a mix, in the dtype of `like`."""
    weights = xp.astype(weights, like.dtype, copy=False)
    weights = xp.exp(weights - xp.max(weights))
    weights = weights / xp.sum(weights)
    return weights[0], weights[1], weights[2]


def _mixed(weights: PerSource, values: PerSource) -> Array:
    (a, b, c), (x, y, z) = weights, values
    return a * x + b * y + c * z


def rstd_of(xp: Any, weights: PerSource, variances: PerSource, epsilon: float) -> Array:
    """Return 1 / sqrt(var + epsilon) of the mixed variance."""
    variance = _mixed(weights, variances)
    return 1 / xp.sqrt(variance + scale_epsilon(epsilon, dtype_name(variance.dtype)))


def softmax_gradient(xp: Any, weights: PerSource, dy: Array, values: PerSource) -> Array:
    """Differentiate sum(dy * mixed values) with respect to the inputs of `softmax`."""
    every = tuple(range(dy.ndim))
    totals = [xp.reshape(sum_over(xp, dy * each, every, fused=False), ()) for each in values]
    mean = _mixed(weights, (totals[0], totals[1], totals[2]))
    return xp.stack([w * (total - mean) for w, total in zip(weights, totals, strict=True)])
