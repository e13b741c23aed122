"""Batch-instance normalisation: a learned mix of batch norm and instance norm."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, has_symbols, library_of
from ._dispatch import checks
from ._dispatch.cache import plan_of
from ._dispatch.instances import Instances, InstancesPlan
from ._dispatch.plans import finish_gradient
from ._dispatch.views import ChannelGroups, RowsView, checked_view
from ._layout import broadcast_like
from .kernels.instances import common_mean, common_rstd
from .kernels.reductions import wide_sum
from .layer_norm import EPSILON


class BatchInstanceForward(NamedTuple):
    """What `batch_instance_norm_forward` gives."""

    y: Array
    batch_mean: Array
    batch_rstd: Array
    instance_mean: Array
    instance_rstd: Array


class BatchInstanceGradients(NamedTuple):
    """What `batch_instance_norm_backward` gives; None stands for what was not asked for."""

    dx: Array | None
    drho: Array | None
    dgamma: Array | None
    dbeta: Array | None


def _checked(
    func_name: str, x: Array, rho: Array, gamma: Array | None, beta: Array | None, channel_axis: int
) -> RowsView:
    view = checked_view(func_name, ChannelGroups(None, channel_axis), x, gamma=gamma, beta=beta)
    checks.parameter(func_name, "rho", rho, x, view)
    return view


def _forward_plan(func_name: str, x: Array, *others: Any) -> InstancesPlan:
    *parameters, epsilon = others
    view = _checked(func_name, x, *parameters)
    epsilon = checks.epsilon(func_name, epsilon, x.dtype)
    return InstancesPlan(view, _forward, x, epsilon=epsilon)


def _forward(
    plan: InstancesPlan, x: Array, rho: Array, gamma: Array | None, beta: Array | None
) -> BatchInstanceForward:
    xp, view, instances = library_of(x).xp, plan.view, Instances(plan, x)
    mean, mean_residual, _, rstd = instances.statistics()
    rho, gamma, beta = (broadcast_like(each, mean, plan.shape) for each in (rho, gamma, beta))
    with np.errstate(all="ignore"):
        batch_mean, from_batch = common_mean(xp, mean, mean_residual, 0)
        batch_rstd = common_rstd(xp, rstd, from_batch, 0)
        # The x̂ of the batch is that of the instance times a ratio, plus a shift.
        ratio, shift = batch_rstd / rstd, from_batch * batch_rstd
        of_batch, of_instance = _scales(rho, gamma)
        shift = of_batch * shift if beta is None else of_batch * shift + beta
        y = instances.affine(mean, mean_residual, rstd, of_batch * ratio + of_instance, shift)
        of_channels, of_instances = (batch_mean, batch_rstd), (mean, rstd)
        if 0 in x.shape:
            of_channels, of_instances = (
                tuple(each + math.nan for each in both) for both in (of_channels, of_instances)
            )
    return BatchInstanceForward(
        y,
        *(xp.reshape(each, view.parameter) for each in of_channels),
        *(xp.reshape(each, view.statistic) for each in of_instances),
    )


def _scales(rho: Array, gamma: Array | None) -> tuple[Array, Array]:
    """Return what batch norm and instance norm are multiplied by before they are added."""
    return (rho, 1 - rho) if gamma is None else (rho * gamma, (1 - rho) * gamma)


def batch_instance_norm(
    x: Array,
    rho: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
) -> Array:
    """Mix batch norm and instance norm, in a proportion for each channel.

    Computes ``(rho * x_batch + (1 - rho) * x_instance) * gamma + beta``, where x_batch is x with
    each channel normalised over the batch and all spatial axes, and x_instance is x with each
    channel of each sample normalised over all spatial axes.

    Parameters
    ----------
    x, gamma, beta, channel_axis
        As for `group_norm`, as are the errors.
    rho : array
        Of shape (C,), in x's dtype or a wider one. It is for the caller to keep it in [0, 1].
    epsilon : float, default: 1e-5
        Added to either variance, inside the root. Finite and at least 0; with 0 a constant
        channel of a sample gives NaN.

    Returns
    -------
    array
        The mix of both, of x's library, device, shape and dtype.

    Notes
    -----
    From Nam and Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural
    Networks", arXiv:1805.07925. Accuracy and special values are as in `layer_norm`: each
    half is an application of it. On torch tensors and JAX arrays the result can be differentiated
    by those frameworks.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[[1.0, 3.0]], [[5.0, 7.0]]])  # two samples of one channel
    >>> ln.batch_instance_norm(x, np.asarray([0.5])).round(3)
    array([[[-1.171,  0.276]],
           [[-0.276,  1.171]]])
    """
    arrays = x, rho, gamma, beta
    plan = plan_of(_forward_plan, "batch_instance_norm", arrays, channel_axis, epsilon)
    return plan.run(*arrays).y


def batch_instance_norm_forward(
    x: Array,
    rho: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
) -> BatchInstanceForward:
    """Batch-instance norm, with the statistics that its gradient needs.

    Parameters
    ----------
    x, rho, gamma, beta, channel_axis, epsilon
        As for `batch_instance_norm`, as are the errors.

    Returns
    -------
    y, batch_mean, batch_rstd : array
        As from `layer_norm_forward`; batch_mean and batch_rstd of each channel, of shape (C,).
    instance_mean, instance_rstd : array
        As from `instance_norm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[[1.0, 3.0]], [[5.0, 7.0]]])
    >>> forward = ln.batch_instance_norm_forward(x, np.asarray([0.5]))
    >>> forward.batch_mean, forward.instance_mean
    (array([4.]), array([[2.],
           [6.]]))
    """
    arrays = x, rho, gamma, beta
    plan = plan_of(_forward_plan, "batch_instance_norm_forward", arrays, channel_axis, epsilon)
    return BatchInstanceForward(*plan.run(*arrays))


def _backward_plan(
    func_name: str,
    dy: Array,
    x: Array,
    batch_mean: Array,
    batch_rstd: Array,
    instance_mean: Array,
    instance_rstd: Array,
    *others: Any,
) -> InstancesPlan:
    *parameters, need = others
    need = checks.need(func_name, need, BatchInstanceGradients._fields)
    view = _checked(func_name, x, *parameters)
    checks.gradient(func_name, x, dy=dy)
    checks.saved(func_name, x, view.parameter, batch_mean=batch_mean, batch_rstd=batch_rstd)
    of_instances = {"instance_mean": instance_mean, "instance_rstd": instance_rstd}
    checks.saved(func_name, x, view.statistic, **of_instances)
    return InstancesPlan(view, partial(_backward, need=need), x, dy)


def _backward(
    plan: InstancesPlan,
    dy: Array,
    x: Array,
    batch_mean: Array,
    batch_rstd: Array,
    instance_mean: Array,
    instance_rstd: Array,
    rho: Array,
    gamma: Array | None,
    beta: Array | None,
    need: tuple[str, ...],
) -> BatchInstanceGradients:
    if not need:
        return BatchInstanceGradients(*[None] * 4)
    xp, view, shape = library_of(x).xp, plan.view, plan.shape
    mean, rstd = plan.with_rank(instance_mean), plan.with_rank(instance_rstd)
    common = broadcast_like(batch_rstd, mean, shape)
    if 0 in x.shape:  # the NaN that stands for no statistics must not reach the gradients
        mean, rstd, common = xp.zeros_like(mean), xp.ones_like(rstd), xp.ones_like(common)
    mixture, scale = broadcast_like(rho, mean, shape), broadcast_like(gamma, mean, shape)
    of_batch, of_instance = _scales(mixture, scale)
    instances, n = Instances(plan, x, dy), max(view.rows[1], 1)
    total = partial(wide_sum, xp, axes=(0,), fused=False)
    if not has_symbols(x) and n == 1:  # no element differs from the mean of its instance
        of_instance = 0 * of_instance
    mean_residual, sum_dy, by_instance = instances.sums(mean, rstd)
    dx = drho = dgamma = None
    with np.errstate(all="ignore"):
        # The x̂ of the batch is that of the instance times a ratio, plus a shift.
        ratio, shift = common / rstd, common_mean(xp, mean, mean_residual, 0)[1] * common
        by_batch = total(by_instance * ratio + sum_dy * shift)
        dbeta = total(sum_dy)
        if "dx" in need:
            in_batch = of_batch * ratio
            count = max(x.shape[0], 1) * n
            dx = instances.gradient(
                *(mean, mean_residual, rstd, in_batch + of_instance),
                -(in_batch * ratio * (by_batch / count) + of_instance * (by_instance / n)),
                -(in_batch * ((dbeta + shift * by_batch) / count) + of_instance * (sum_dy / n)),
            )
        by_instance = total(by_instance)
        if "drho" in need:
            drho = by_batch - by_instance
            drho = drho if scale is None else drho * scale
        if "dgamma" in need and gamma is not None:
            dgamma = mixture * by_batch + (1 - mixture) * by_instance
    return BatchInstanceGradients(
        dx,
        finish_gradient(drho, view.parameter, x, rho),
        finish_gradient(dgamma, view.parameter, x, gamma),
        finish_gradient(dbeta if "dbeta" in need else None, view.parameter, x, gamma, beta),
    )


def batch_instance_norm_backward(
    dy: Array,
    x: Array,
    batch_mean: Array,
    batch_rstd: Array,
    instance_mean: Array,
    instance_rstd: Array,
    rho: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    need: tuple[str, ...] = BatchInstanceGradients._fields,
) -> BatchInstanceGradients:
    """Gradients of batch-instance norm with respect to x, rho, gamma and beta.

    Parameters
    ----------
    dy, x, gamma, beta, need
        As for `group_norm_backward`, as are the errors; `need` may name "drho" as well.
    batch_mean, batch_rstd, instance_mean, instance_rstd : array
        From `batch_instance_norm_forward`.
    rho, channel_axis
        As in the forward pass.

    Returns
    -------
    dx : array or None
        Of x's shape and dtype.
    drho : array or None
        Of shape (C,) and rho's dtype.
    dgamma, dbeta : array or None
        As from `group_norm_backward`.

    Notes
    -----
    dx is the sum of the gradients of batch norm with scale ``gamma * rho`` and of instance norm
    with scale ``gamma * (1 - rho)``, each as in `layer_norm_backward`. With sums over all axes but
    that of the channels, ``drho = gamma * (sum(dy * x_batch) - sum(dy * x_instance))``,
    ``dgamma = rho * sum(dy * x_batch) + (1 - rho) * sum(dy * x_instance)`` and
    ``dbeta = sum(dy)``.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x, rho = np.asarray([[[1.0, 3.0]], [[5.0, 8.0]]]), np.asarray([0.5])
    >>> y, *statistics = ln.batch_instance_norm_forward(x, rho)
    >>> dy = np.asarray([[[1.0, 0.0]], [[0.0, 0.0]]])
    >>> gradients = ln.batch_instance_norm_backward(dy, x, *statistics, rho)
    >>> gradients.dx.round(4)
    array([[[ 0.0687, -0.0777]],
           [[-0.0307,  0.0398]]])
    >>> gradients.drho.round(4), gradients.dbeta
    (array([-0.2568]), array([1.]))
    """
    statistics = batch_mean, batch_rstd, instance_mean, instance_rstd
    arrays = dy, x, *statistics, rho, gamma, beta
    plan = plan_of(_backward_plan, "batch_instance_norm_backward", arrays, channel_axis, need)
    return BatchInstanceGradients(*plan.run(*arrays))
