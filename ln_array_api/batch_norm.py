"""Batch normalisation: zero mean and unit variance of each channel, over the batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, detach, library_of, native_dtype, on_device_of_x, to_acc_dtype
from ._dispatch import channels
from ._dispatch.cache import plan_of
from ._dispatch.channels_last import keeps_channels_last
from ._dispatch.plans import GRADIENTS, cast_gradient
from ._dispatch.scaled import with_offset
from ._layout import reshape_contiguous
from .kernels.channels import counts_of_channels
from .layer_norm import EPSILON, Gradients, make_namedtuple

MOMENTUM = 0.1


class BatchForward(NamedTuple):
    """What `batch_norm_forward` gives; None stands for running statistics that were not given."""

    y: Array
    mean: Array
    rstd: Array
    running_mean: Array | None
    running_var: Array | None


@keeps_channels_last
def batch_norm(
    x: Array,
    mean: Array,
    var: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
    gamma_offset: float = 0.0,
) -> Array:
    """Normalise each channel of x by statistics that are given: batch norm after training.

    Computes ``(x - mean) / sqrt(var + epsilon) * gamma + beta``.

    Parameters
    ----------
    x, gamma, beta, channel_axis
        As for `group_norm`, as are the errors.
    mean, var : array
        Mean and variance of each channel, of shape (C,), in x's dtype or a wider one: the running
        statistics of `batch_norm_forward`, or those of `Moments`.
    epsilon : float, default: 1e-5
        Added to the variance, inside the root. Finite and at least 0.
    gamma_offset : float, default: 0.0
        As for `layer_norm`.

    Returns
    -------
    array
        Like x: each channel normalised by its given statistics.

    Notes
    -----
    After Ioffe and Szegedy, "Batch Normalization", arXiv:1502.03167, algorithm 2. 16-bit inputs
    are computed in float32, with one rounding at the end; statistics, gamma and beta are converted
    to float32 for x of up to 32 bits. On torch tensors and JAX arrays the result can be
    differentiated by those frameworks. On Dask arrays the result is lazy: nothing is computed
    until requested.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[1.0, 10.0], [3.0, 30.0]])
    >>> ln.batch_norm(x, np.asarray([1.0, 20.0]), np.asarray([4.0, 100.0])).round(3)
    array([[ 0., -1.],
           [ 1.,  1.]])
    """
    gamma = with_offset("batch_norm", x, gamma, gamma_offset)
    arrays = x, mean, var, gamma, beta
    plan = plan_of(channels.inference_plan, "batch_norm", arrays, channel_axis, epsilon)
    return plan.run(*arrays)


@keeps_channels_last
def batch_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
    momentum: float = MOMENTUM,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> BatchForward:
    """Normalise each channel of x to zero mean and unit variance: batch norm in training.

    Parameters
    ----------
    x, gamma, beta, channel_axis, epsilon
        As for `batch_norm`, as are the errors. With epsilon 0 a constant channel gives NaN.
    running_mean, running_var : array, optional
        What earlier batches left, of shape (C,), in x's dtype or a wider one. They are not
        written: the next ones are results. Either may be absent.
    momentum : float, default: 0.1
        The weight of this batch in the running statistics, from 0 to 1.
    where, gamma_offset
        As for `layer_norm`. The running statistics of a channel without elements, and the running
        variance of one with a single element, are left as they are.

    Returns
    -------
    y, mean, rstd : array
        As from `layer_norm_forward`; mean and rstd of each channel, of shape (C,).
    running_mean, running_var : array or None
        ``(1 - momentum) * running + momentum * batch``, of the shape and dtype of the given ones;
        None where these are absent. A batch's part in running_var is its unbiased variance.

    Raises
    ------
    ValueError
        Also if a channel has no more than one value, or momentum is not from 0 to 1.

    Notes
    -----
    After Ioffe and Szegedy, "Batch Normalization", arXiv:1502.03167, algorithm 1. The statistics
    are those of each channel over all other axes. The error does not grow with the mean, a constant
    channel gives exactly beta, and a NaN spoils only its own channel.

    On torch tensors and JAX arrays y, mean and rstd can be differentiated by those frameworks. The
    running statistics are no part of their graphs, so keeping them does not keep a graph.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[1.0, 10.0], [3.0, 30.0]])
    >>> result = ln.batch_norm_forward(x, None, None, np.zeros(2), np.ones(2))
    >>> result.y.round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> result.mean
    array([ 2., 20.])
    >>> result.running_mean, result.running_var
    (array([0.2, 2. ]), array([ 1.1, 20.9]))
    """
    gamma = with_offset("batch_norm_forward", x, gamma, gamma_offset)
    arrays = x, gamma, beta, running_mean, running_var, where
    options = channel_axis, epsilon, momentum
    plan = plan_of(channels.forward_plan, "batch_norm_forward", arrays, *options)
    masks = {} if where is None else {"where": where}
    y, mean, var, rstd = plan.run(x, gamma, beta, **masks)
    count: Any = plan.spec.shape[0] * plan.spec.shape[2]
    if where is not None and not (running_mean is running_var is None):
        count = counts_of_channels(x, where, channel_axis % x.ndim)
    if running_mean is not None:
        running_mean = _running(running_mean, mean, momentum, count, least=1)
    if running_var is not None:
        running_var = _running(running_var, var, momentum, count, least=2)
    return make_namedtuple(BatchForward, (y, mean, rstd, running_mean, running_var))


@on_device_of_x
def _running(running: Array, batch: Array, momentum: float, count: Any, *, least: int) -> Array:
    """Running statistics after a batch, computed in their own dtype or the wider accumulation.

    A variance, which needs 2 elements at `least`, becomes the unbiased one. With a mask, `count` is
    an array, and statistics of fewer elements than `least` are ignored.
    """
    xp = library_of(running).xp
    running = detach(reshape_contiguous(running, tuple(running.shape)))
    with np.errstate(all="ignore"):
        running_acc = to_acc_dtype(xp, running)
        batch = xp.astype(detach(batch), running_acc.dtype, copy=False)
        is_known = isinstance(count, int)
        if not is_known:
            count = xp.astype(detach(count), running_acc.dtype, copy=False)
        correction = count / (count - least + 1)
        moved = (1 - momentum) * running_acc + momentum * (batch * correction)
        if not is_known:
            moved = xp.where(count < least, running_acc, moved)
        return xp.astype(moved, native_dtype(running), copy=False)


@keeps_channels_last
def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    need: tuple[str, ...] = GRADIENTS,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Gradients:
    """Gradients of batch norm in training with respect to x, gamma and beta.

    Parameters
    ----------
    dy, x, mean, rstd, gamma, beta, channel_axis, need, where, gamma_offset
        As for `group_norm_backward`, as are the errors; mean and rstd from `batch_norm_forward`.

    Returns
    -------
    dx, dgamma, dbeta : array or None
        As from `group_norm_backward`.

    Notes
    -----
    With x̂ = (x - mean) * rstd, the gradients are ``dgamma = sum(dy * x̂)``, ``dbeta = sum(dy)`` and
    ``dx = gamma * rstd * (dy - mean(dy) - x̂ * mean(dy * x̂))``. The rounding error of the stored
    mean is made up for, as in the forward pass.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[1.0], [2.0], [6.0]])
    >>> result = ln.batch_norm_forward(x)
    >>> dy = np.asarray([[1.0], [0.0], [0.0]])
    >>> dx, _, dbeta = ln.batch_norm_backward(dy, x, result.mean, result.rstd)
    >>> dx.T.round(4)
    array([[ 0.1763, -0.2204,  0.0441]])
    >>> dbeta
    array([1.])
    """
    scale = with_offset("batch_norm_backward", x, gamma, gamma_offset)
    arrays = dy, x, mean, rstd, scale, beta, where
    plan = plan_of(channels.backward_plan, "batch_norm_backward", arrays, channel_axis, need)
    dx, dgamma, dbeta = plan.backward(*arrays)
    if scale is not gamma:  # which is wider than gamma
        dgamma, dbeta = cast_gradient(dgamma, gamma), cast_gradient(dbeta, gamma, beta)
    return make_namedtuple(Gradients, (dx, dgamma, dbeta))
