"""Switchable normalisation: a learned mix of the statistics of instance, layer and batch norm."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, library_of
from ._dispatch import checks
from ._dispatch.cache import plan_of
from ._dispatch.instances import Instances, InstancesPlan
from ._dispatch.plans import finish_gradient
from ._dispatch.views import ChannelGroups, RowsView, checked_view
from ._layout import broadcast_like
from .kernels.reductions import sum_over
from .kernels.switchable import Mix, rstd_of, softmax, softmax_gradient
from .layer_norm import EPSILON


class SwitchableForward(NamedTuple):
    """What `switchable_norm_forward` gives."""

    y: Array
    mean: Array
    var: Array


class SwitchableGradients(NamedTuple):
    """What `switchable_norm_backward` gives; None stands for what was not asked for."""

    dx: Array | None
    dmean_weights: Array | None
    dvar_weights: Array | None
    dgamma: Array | None
    dbeta: Array | None


def _checked(
    func_name: str,
    x: Array,
    mean_weights: Array,
    var_weights: Array,
    gamma: Array | None,
    beta: Array | None,
    channel_axis: int,
    epsilon: float,
) -> tuple[RowsView, float]:
    view = checked_view(func_name, ChannelGroups(None, channel_axis), x, gamma=gamma, beta=beta)
    for name, values in (("mean_weights", mean_weights), ("var_weights", var_weights)):
        checks.operand(func_name, name, values, x, (3,), "for instance, layer and batch")
    return view, checks.epsilon(func_name, epsilon, x.dtype)


def _forward_plan(func_name: str, x: Array, *others: Any) -> InstancesPlan:
    view, epsilon = _checked(func_name, x, *others)
    return InstancesPlan(view, _forward, x, epsilon=epsilon)


def _forward(
    plan: InstancesPlan,
    x: Array,
    mean_weights: Array,
    var_weights: Array,
    gamma: Array | None,
    beta: Array | None,
) -> SwitchableForward:
    xp, view, instances = library_of(x).xp, plan.view, Instances(plan, x)
    mean, mean_residual, var, _ = instances.statistics()
    shape, channels = plan.shape, view.parameter_axes[0]
    with np.errstate(all="ignore"):
        mix = Mix(xp, mean, mean_residual, channels)
        rstd = rstd_of(xp, softmax(xp, var_weights, mean), mix.variances(var), plan.epsilon)
        scale = xp.ones_like(mean) if gamma is None else broadcast_like(gamma, mean, shape)
        shift = mix.distance(softmax(xp, mean_weights, mean)) * rstd * scale
        if beta is not None:
            shift = shift + broadcast_like(beta, mean, shape)
        y = instances.affine(mean, mean_residual, rstd, scale, shift)
        if 0 in x.shape:
            mean = var = mean + math.nan
    return SwitchableForward(y, *(xp.reshape(each, view.statistic) for each in (mean, var)))


def switchable_norm(
    x: Array,
    mean_weights: Array,
    var_weights: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
) -> Array:
    """Normalise x by a mix of the statistics of instance norm, layer norm and batch norm.

    Computes ``(x - mean) / sqrt(var + epsilon) * gamma + beta``, where mean is the sum of the means
    of the channel of the sample (instance), of the sample (layer) and of the channel (batch), each
    times a weight, and var likewise with weights of its own. Both triples of weights go through a
    softmax first, which makes each add up to 1.

    Parameters
    ----------
    x, gamma, beta, channel_axis
        As for `group_norm`, as are the errors.
    mean_weights, var_weights : array
        Of shape (3,), for instance, layer and batch, in x's dtype or a wider one.
    epsilon : float, default: 1e-5
        Added to the variance, inside the root. Finite and at least 0; with 0 constant x gives NaN.

    Returns
    -------
    array
        x by the mixed statistics, of its library, device, shape and dtype.

    Notes
    -----
    From Luo, Ren, Peng, Zhang and Li, "Differentiable Learning-to-Normalize via Switchable
    Normalization", arXiv:1806.10779. 16-bit inputs are computed in float32, with one rounding at
    the end. The error does not grow with the mean, nor with the distance of one instance's mean
    from another's. Variances are results, so they have to be numbers of their dtype: values of
    1e19 and more are too large for float32. On torch tensors and JAX arrays the result can be
    differentiated by those frameworks.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[[1.0, 3.0]], [[5.0, 7.0]]])  # two samples of one channel
    >>> ln.switchable_norm(x, np.zeros(3), np.zeros(3)).round(3)
    array([[[-1.091,  0.218]],
           [[-0.218,  1.091]]])
    """
    arrays = x, mean_weights, var_weights, gamma, beta
    return plan_of(_forward_plan, "switchable_norm", arrays, channel_axis, epsilon).run(*arrays).y


def switchable_norm_forward(
    x: Array,
    mean_weights: Array,
    var_weights: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
) -> SwitchableForward:
    """Switchable norm, with the statistics that its gradient needs.

    Parameters
    ----------
    x, mean_weights, var_weights, gamma, beta, channel_axis, epsilon
        As for `switchable_norm`, as are the errors.

    Returns
    -------
    y, mean, var : array
        As from `layer_norm_forward`, with the biased variance in place of rstd; mean and var of
        each channel of each sample, of shape (B, C).

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[[1.0, 3.0]], [[5.0, 7.0]]])
    >>> y, mean, var = ln.switchable_norm_forward(x, np.zeros(3), np.zeros(3))
    >>> mean, var
    (array([[2.],
           [6.]]), array([[1.],
           [1.]]))
    """
    arrays = x, mean_weights, var_weights, gamma, beta
    plan = plan_of(_forward_plan, "switchable_norm_forward", arrays, channel_axis, epsilon)
    return SwitchableForward(*plan.run(*arrays))


def _backward_plan(
    func_name: str, dy: Array, x: Array, mean: Array, var: Array, *others: Any
) -> InstancesPlan:
    *parameters, need = others
    need = checks.need(func_name, need, SwitchableGradients._fields)
    view, epsilon = _checked(func_name, x, *parameters)
    checks.gradient(func_name, x, dy=dy)
    checks.saved(func_name, x, view.statistic, mean=mean, var=var)
    return InstancesPlan(view, partial(_backward, need=need), x, dy, epsilon)


def _backward(
    plan: InstancesPlan,
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    mean_weights: Array,
    var_weights: Array,
    gamma: Array | None,
    beta: Array | None,
    need: tuple[str, ...],
) -> SwitchableGradients:
    if not need:
        return SwitchableGradients(*[None] * 5)
    xp, view, shape = library_of(x).xp, plan.view, plan.shape
    channels = view.parameter_axes[0]
    mean, var = plan.with_rank(mean), plan.with_rank(var)
    if 0 in x.shape:  # the NaN that stands for no statistics must not reach the weights
        mean, var = xp.zeros_like(mean), xp.ones_like(var)
    reduced_axes = tuple(
        axis for axis in range(len(view.grouped_shape)) if axis not in view.parameter_axes
    )
    instances, n = Instances(plan, x, dy), max(view.rows[1], 1)
    dx = dmean_weights = dvar_weights = dgamma = None
    with np.errstate(all="ignore"):
        of_mean, of_var = (softmax(xp, each, mean) for each in (mean_weights, var_weights))
        mean_residual, sum_dy, product = instances.sums(mean, xp.ones_like(mean))
        mix = Mix(xp, mean, mean_residual, channels)
        variances = mix.variances(var)
        rstd = rstd_of(xp, of_var, variances, plan.epsilon)
        product = (product + sum_dy * mix.distance(of_mean)) * rstd
        scale = xp.ones_like(mean) if gamma is None else broadcast_like(gamma, mean, shape)
        dmean, dvar = -rstd * (scale * sum_dy), -rstd * (rstd * (scale * product)) / 2
        # Softmax is blind to what is added to all three, so those of the instance are left out.
        if "dmean_weights" in need:
            means = 0 * mix.from_layer, -mix.from_layer, -mix.from_batch
            dmean_weights = softmax_gradient(xp, of_mean, dmean, means)
        if "dvar_weights" in need:
            _, layer, batch = variances
            apart = 0 * var, layer - var, batch - var
            dvar_weights = softmax_gradient(xp, of_var, dvar, apart)
        if "dx" in need:
            dmean, dvar = mix.gradient(of_mean, of_var, dmean, dvar)
            of_deviation = 2 * dvar / n / rstd / rstd
            dx = instances.gradient(
                mean, mean_residual, rstd, scale, of_deviation, dmean / n / rstd
            )
        if "dgamma" in need and gamma is not None:
            dgamma = sum_over(xp, product, reduced_axes)
        dbeta = sum_over(xp, sum_dy, reduced_axes) if "dbeta" in need else None
    return SwitchableGradients(
        dx,
        finish_gradient(dmean_weights, (3,), x, mean_weights),
        finish_gradient(dvar_weights, (3,), x, var_weights),
        finish_gradient(dgamma, view.parameter, x, gamma),
        finish_gradient(dbeta, view.parameter, x, gamma, beta),
    )


def switchable_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    mean_weights: Array,
    var_weights: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
    need: tuple[str, ...] = SwitchableGradients._fields,
) -> SwitchableGradients:
    """Gradients of switchable norm with respect to x, both triples of weights, gamma and beta.

    Parameters
    ----------
    dy, x, gamma, beta, need
        As for `group_norm_backward`, as are the errors; `need` may name "dmean_weights" and
        "dvar_weights" as well.
    mean, var : array
        From `switchable_norm_forward`.
    mean_weights, var_weights, channel_axis, epsilon
        As in the forward pass.

    Returns
    -------
    dx : array or None
        Of x's shape and dtype.
    dmean_weights, dvar_weights : array or None
        Of shape (3,) and the dtype of the weights, with respect to these before the softmax.
    dgamma, dbeta : array or None
        As from `group_norm_backward`.

    Notes
    -----
    With g = dy * gamma, the gradients of the mixed statistics of an instance are
    ``dmean = -rstd * sum(g)`` and ``dvar = -rstd² / 2 * sum(g * x̂)``. These reach the statistics of
    each instance directly, and averaged over the channels and over the batch; a layer's and a
    batch's variance have the instances' means in them as well.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x, weights = np.asarray([[[1.0, 3.0]], [[5.0, 8.0]]]), np.zeros(3)
    >>> y, mean, var = ln.switchable_norm_forward(x, weights, weights)
    >>> dy = np.asarray([[[1.0, 0.0]], [[0.0, 0.0]]])
    >>> gradients = ln.switchable_norm_backward(dy, x, mean, var, weights, weights)
    >>> gradients.dx.round(4)
    array([[[ 0.1282, -0.1635]],
           [[-0.0268,  0.062 ]]])
    >>> gradients.dmean_weights.round(4)
    array([ 0.1469,  0.1469, -0.2938])
    """
    arrays = dy, x, mean, var, mean_weights, var_weights, gamma, beta
    options = channel_axis, epsilon, need
    plan = plan_of(_backward_plan, "switchable_norm_backward", arrays, *options)
    return SwitchableGradients(*plan.run(*arrays))
