"""Statistics over channels: batch norm, forward and backward.

With x̂ = (x - mean) * rstd and rstd = 1 / sqrt(var + epsilon), mean and var of each channel over all
other axes, the forward pass is y = x̂ * gamma + beta, and the backward pass is

    dx = gamma * rstd * (dy - mean(dy) - x̂ * mean(dy * x̂)),  dgamma = Σ dy * x̂,  dbeta = Σ dy

(Ioffe and Szegedy, "Batch Normalization", arXiv:1502.03167, section 3, with its gradients
simplified). `rows` describes how the error is bounded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arrays import Array, dtype_name, library_of, native_dtype, to_acc_dtype
from .._layout import ascontiguous
from .reductions import wide_sum
from .rows import (
    Elements,
    astype_like,
    normalise,
    normalise_backward,
    scale_epsilon,
    x_hat_from_stats,
)


def channels_forward(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    *,
    epsilon: float,
    axis: int = 1,
    where: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Normalise each channel of x.

    Parameters
    ----------
    x
        Shape (B, C, S), in C order where the library has an order.
    gamma, beta
        Shape (C,) or None.
    epsilon
        Added to the variance, inside the root.
    axis
        The axis of the channels; then x may have any rank, and gamma and beta that of x. Backends
        always get arrays as above, and no mask.
    where
        A boolean array that broadcasts with x, or None, as in `rows.normalise`.

    Returns
    -------
    y : array of the shape and dtype of x
    mean, var, rstd : arrays of shape (C,) in the accumulation dtype
        The variance is biased: divided by the number of elements.
    """
    xp, c = library_of(x).xp, x.shape[axis]
    parameters = (_broadcast_channels(xp, x, axis, each) for each in (gamma, beta))
    axes = _other_axes(x, axis)
    y, *statistics = normalise(x, *parameters, axes=axes, epsilon=epsilon, center=True, where=where)
    return y, *(xp.reshape(each, (c,)) for each in statistics)


def channels_inference(
    x: Array,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    *,
    epsilon: float,
    axis: int = 1,
) -> Array:
    """Normalise each channel of x by given statistics.

    Parameters
    ----------
    x, gamma, beta, epsilon, axis
        As in `channels_forward`.
    mean, var
        Shape (C,), in the accumulation dtype.

    Returns
    -------
    y : array of the shape and dtype of x
    """
    xp = library_of(x).xp
    with np.errstate(all="ignore"):
        scale = 1 / xp.sqrt(var + scale_epsilon(epsilon, dtype_name(var.dtype)))
        if gamma is not None:
            scale = scale * astype_like(xp, gamma, scale)
        y = to_acc_dtype(xp, x) - _broadcast_channels(xp, x, axis, mean)
        y = y * _broadcast_channels(xp, x, axis, scale)
        if beta is not None:
            y = y + _broadcast_channels(xp, x, axis, astype_like(xp, beta, scale))
        return xp.astype(y, native_dtype(x), copy=False)


def channels_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    gamma: Array | None,
    *,
    need: tuple[bool, bool, bool] = (True, True, True),
    axis: int = 1,
) -> tuple[Array | None, Array | None, Array | None]:
    """Compute the gradients of `channels_forward`.

    Parameters
    ----------
    dy, x
        Shape (B, C, S): the gradient of y, and the input of the forward pass.
    mean, rstd
        Shape (C,), from `channels_forward`.
    gamma, axis
        As in `channels_forward`.
    need
        Which of dx, dgamma and dbeta to compute. The others are None and cost nothing.

    Returns
    -------
    dx : array of the shape and dtype of x
    dgamma, dbeta : arrays of shape (C,), in the accumulation dtype
        A backend may return them in the dtype of gamma, or of x where gamma is absent.
    """
    xp, axes, c = library_of(x).xp, _other_axes(x, axis), x.shape[axis]
    need_dx, need_dgamma, need_dbeta = need
    n = max(math.prod(x.shape[each] for each in axes), 1)
    dx = dgamma = dbeta = None
    with np.errstate(all="ignore"):
        x, dy = ascontiguous(x), astype_like(xp, ascontiguous(dy), rstd)
        if need_dx or need_dbeta:
            dbeta = wide_sum(xp, dy, axes, fused=False)
        if need_dx or need_dgamma:
            mean, rstd = (_broadcast_channels(xp, x, axis, each) for each in (mean, rstd))
            x_hat = x_hat_from_stats(x, mean, rstd, Elements(xp, dy, axes))
            dgamma = wide_sum(xp, dy * x_hat, axes, fused=False)
        if need_dx:
            dx = (dy - dbeta / n) - x_hat * (dgamma / n)
            scale = rstd
            if gamma is not None:
                scale = rstd * _broadcast_channels(xp, x, axis, astype_like(xp, gamma, rstd))
            dx = xp.astype(dx * scale, native_dtype(x), copy=False)
    return (
        dx,
        xp.reshape(dgamma, (c,)) if need_dgamma else None,
        xp.reshape(dbeta, (c,)) if need_dbeta else None,
    )


def backward_over(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    gamma: Array | None,
    *,
    axis: int,
    parameter: tuple[int, ...],
    parameter_axes: tuple[int, ...],
    need: tuple[bool, bool, bool],
    where: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Compute the gradients of `channels_forward` for parameters of the rank of x, and masks.

    The gradients of parameters have the shape `parameter`, and vary along `parameter_axes` of x.
    """
    xp = library_of(x).xp
    dx, dgamma, dbeta = normalise_backward(
        dy,
        x,
        *(_broadcast_channels(xp, x, axis, each) for each in (mean, rstd, gamma)),
        axes=_other_axes(x, axis),
        parameter_axes=parameter_axes,
        center=True,
        need=need,
        where=where,
    )
    return (
        dx,
        None if dgamma is None else xp.reshape(dgamma, parameter),
        None if dbeta is None else xp.reshape(dbeta, parameter),
    )


def _other_axes(x: Array, axis: int) -> tuple[int, ...]:
    return tuple(each for each in range(x.ndim) if each != axis)


def _broadcast_channels(xp: Any, x: Array, axis: int, values: Array | None) -> Array | None:
    """Reshape values of channels to broadcast with x, unless they have its rank."""
    if values is None or values.ndim == x.ndim:
        return values
    return xp.reshape(values, tuple(-1 if each == axis else 1 for each in range(x.ndim)))


def counts_of_channels(x: Array, where: Array, axis: int) -> Array:
    """Return how many elements of each channel of x a mask has, in the accumulation dtype."""
    xp = library_of(x).xp
    ones = xp.where(where, xp.ones_like(to_acc_dtype(xp, x)), 0.0)
    return xp.reshape(wide_sum(xp, ones, _other_axes(x, axis)), (x.shape[axis],))
