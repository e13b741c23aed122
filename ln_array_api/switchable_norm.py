"""Switchable normalisation: a learned mix of the statistics of instance, layer and batch norm."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _check
from ._arrays import (
    Array,
    dtype_name,
    dtype_name_or_none,
    library_of,
    on_device_of_x,
)
from ._beside import broadcast_like, check_gradient, check_inputs, check_saved
from ._explain import explained_by
from ._family import Call, call_on
from ._instances import Instances
from ._plans import cast_statistic, finish_gradient, reshaped
from ._views import ChannelGroups, RowsView
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
    view = check_inputs(func_name, ChannelGroups(None, channel_axis), x, gamma=gamma, beta=beta)
    for name, values in (("mean_weights", mean_weights), ("var_weights", var_weights)):
        _check.operand(func_name, name, values, x, (3,), "for instance, layer and batch")
    return view, _check.epsilon(func_name, epsilon, x.dtype)


def _forward(
    func_name: str,
    x: Array,
    mean_weights: Array,
    var_weights: Array,
    gamma: Array | None,
    beta: Array | None,
    channel_axis: int,
    epsilon: float,
) -> SwitchableForward:
    view, epsilon = _checked(
        func_name, x, mean_weights, var_weights, gamma, beta, channel_axis, epsilon
    )
    xp, instances = library_of(x).xp, Instances(x, view)
    mean, mean_residual, var, _ = instances.statistics(epsilon)
    shape, channels = view.broadcast_parameter, view.parameter_axes[0]
    with np.errstate(all="ignore"):
        mix = Mix(xp, mean, mean_residual, channels)
        rstd = rstd_of(xp, softmax(xp, var_weights, mean), mix.variances(var), epsilon)
        scale = xp.ones_like(mean) if gamma is None else broadcast_like(xp, gamma, mean, shape)
        shift = mix.distance(softmax(xp, mean_weights, mean)) * rstd * scale
        if beta is not None:
            shift = shift + broadcast_like(xp, beta, mean, shape)
        y = instances.affine(mean, mean_residual, rstd, scale, shift)
        if 0 in x.shape:
            mean = var = mean + math.nan
    return SwitchableForward(y, *(xp.reshape(each, view.statistic) for each in (mean, var)))


def _forward_call(func_name: str, x: Array, **others: Any) -> Call:
    view, epsilon = _checked(func_name, x, **others)
    return call_on("instances_statistics", x, view.rows, epsilon=epsilon)


@explained_by(_forward_call)
@on_device_of_x
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
    x : array
        Of shape (B, C, ...), or with the channels on any other axis but the first; of any array
        library that follows the Python array API standard, of any layout, with dtype float16,
        bfloat16, float32 or float64.
    mean_weights, var_weights : array
        Of shape (3,), for instance, layer and batch, in x's dtype or a wider one.
    gamma, beta : array, optional
        Scale and shift of shape (C,), in x's dtype or a wider one. Either may be absent.
    channel_axis : int, default: 1
        The axis of the channels: 1 for channels first, -1 for channels last. Not the first axis,
        which is the batch.
    epsilon : float, default: 1e-5
        Added to the variance, inside the root. Finite and at least 0; with 0 constant x gives NaN.

    Returns
    -------
    array
        Of x's library, device, shape and dtype.

    Raises
    ------
    TypeError
        If an argument is no array, or of another library or of an unsupported dtype.
    ValueError
        If channel_axis is out of range or the batch axis, epsilon is negative or not finite, or a
        shape does not fit.
    DeviceMismatchError
        If the arrays are not on one device.

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
    return _forward(
        "switchable_norm", x, mean_weights, var_weights, gamma, beta, channel_axis, epsilon
    ).y


@explained_by(_forward_call)
@on_device_of_x
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
    y : array
        Of x's shape and dtype.
    mean, var : array
        Mean and biased variance of each channel of each sample, of shape (B, C); in float32 for
        16-bit x, else in x's dtype. NaN where there is nothing to take them of.

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
    return _forward(
        "switchable_norm_forward", x, mean_weights, var_weights, gamma, beta, channel_axis, epsilon
    )


def _checked_backward(
    func_name: str,
    dy: Array,
    x: Array,
    *,
    mean: Array,
    var: Array,
    need: tuple[str, ...],
    **others: Any,
) -> tuple[tuple[str, ...], RowsView, float]:
    need = _check.need(func_name, need, SwitchableGradients._fields)
    view, epsilon = _checked(func_name, x, **others)
    check_gradient(func_name, x, dy=dy)
    check_saved(func_name, x, view.statistic, mean=mean, var=var)
    return need, view, epsilon


def _backward_call(func_name: str, dy: Array, x: Array, **others: Any) -> Call:
    _, view, _ = _checked_backward(func_name, dy, x, **others)
    return call_on("instances_sums", x, view.rows, dy=dtype_name_or_none(dy))


@explained_by(_backward_call)
@on_device_of_x
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
    dy : array
        Gradient of the loss with respect to y, of x's shape, in x's dtype or a wider one.
    x, mean_weights, var_weights : array
        What y was computed from.
    mean, var : array
        From `switchable_norm_forward`.
    gamma, beta : array, optional
        The scale and the shift, if there were any. Of beta nothing but shape and dtype matters.
    channel_axis, epsilon
        As in the forward pass.
    need : tuple of str, default: all
        Which gradients to compute, out of "dx", "dmean_weights", "dvar_weights", "dgamma" and
        "dbeta". The others are None and cost nothing.

    Returns
    -------
    dx : array or None
        Of x's shape and dtype.
    dmean_weights, dvar_weights : array or None
        Of shape (3,) and the dtype of the weights, with respect to these before the softmax.
    dgamma : array or None
        Of shape (C,) and gamma's dtype; None where gamma is absent.
    dbeta : array or None
        Of shape (C,), in the dtype of beta, or of gamma where beta is absent, or of x
        where both are.

    Raises
    ------
    TypeError, ValueError, DeviceMismatchError
        As for `switchable_norm`; ValueError also for a name in `need` that is no gradient.

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
    func_name = "switchable_norm_backward"
    need, view, epsilon = _checked_backward(
        func_name,
        dy,
        x,
        mean=mean,
        var=var,
        need=need,
        mean_weights=mean_weights,
        var_weights=var_weights,
        gamma=gamma,
        beta=beta,
        channel_axis=channel_axis,
        epsilon=epsilon,
    )
    if not need:
        return SwitchableGradients(*[None] * 5)
    xp, shape, channels = library_of(x).xp, view.broadcast_parameter, view.parameter_axes[0]
    mean, var = (
        reshaped(cast_statistic(xp, each, dtype_name(x.dtype)), view.broadcast_statistic)
        for each in (mean, var)
    )
    if 0 in x.shape:  # the NaN that stands for no statistics must not reach the weights
        mean, var = xp.zeros_like(mean), xp.ones_like(var)
    reduced_axes = tuple(
        axis for axis in range(len(view.grouped_shape)) if axis not in view.parameter_axes
    )
    instances, n = Instances(x, view, dy), max(view.rows[1], 1)
    dx = dmean_weights = dvar_weights = dgamma = None
    with np.errstate(all="ignore"):
        of_mean, of_var = (softmax(xp, each, mean) for each in (mean_weights, var_weights))
        mean_residual, sum_dy, product = instances.sums(mean, xp.ones_like(mean))
        mix = Mix(xp, mean, mean_residual, channels)
        variances = mix.variances(var)
        rstd = rstd_of(xp, of_var, variances, epsilon)
        product = (product + sum_dy * mix.distance(of_mean)) * rstd
        scale = xp.ones_like(mean) if gamma is None else broadcast_like(xp, gamma, mean, shape)
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
        finish_gradient(xp, dmean_weights, (3,), x, mean_weights),
        finish_gradient(xp, dvar_weights, (3,), x, var_weights),
        finish_gradient(xp, dgamma, view.parameter, x, gamma),
        finish_gradient(xp, dbeta, view.parameter, x, gamma, beta),
    )
