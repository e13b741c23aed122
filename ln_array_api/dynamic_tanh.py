"""Dynamic tanh: a squashing that stands in for normalisation, and needs no statistics."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _check
from ._arrays import (
    Array,
    dtype_name_or_none,
    library_of,
    native_dtype,
    on_device_of_x,
    reshape_contiguous,
    to_acc_dtype,
)
from ._beside import broadcast_like, check_gradient, check_inputs
from ._explain import explained_by
from ._family import Call, call_on
from ._plans import finish_gradient
from ._views import RowsView, of_elements
from .kernels.reductions import sum_over


class TanhForward(NamedTuple):
    """What `dynamic_tanh_forward` gives."""

    y: Array


class TanhGradients(NamedTuple):
    """What `dynamic_tanh_backward` gives; None stands for what was not asked for."""

    dx: Array | None
    dalpha: Array | None
    dgamma: Array | None
    dbeta: Array | None


def _planned(
    func_name: str,
    x: Array,
    alpha: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: int | tuple[int, ...],
) -> tuple[Call, RowsView]:
    """How a call runs, once its arguments are checked, and how x is seen for it."""
    view = _checked(func_name, x, alpha, gamma, beta, axis)
    view = of_elements(view, parameters=gamma is not None or beta is not None)
    dtypes = {
        "alpha": dtype_name_or_none(alpha),
        "gamma": dtype_name_or_none(gamma),
        "beta": dtype_name_or_none(beta),
    }
    parts = {"groups": view.groups, "repeat": view.repeat}
    return call_on("tanh_forward", x, view.rows, **parts, **dtypes), view


def _checked(
    func_name: str,
    x: Array,
    alpha: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: int | tuple[int, ...],
) -> RowsView:
    view = check_inputs(func_name, axis, x, gamma=gamma, beta=beta)
    _check.operand(func_name, "alpha", alpha, x, (), "that of a single number")
    return view


def _explained(func_name: str, **arguments: Any) -> Call:
    return _planned(func_name, **arguments)[0]


@explained_by(_explained)
@on_device_of_x
def dynamic_tanh(
    x: Array,
    alpha: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    axis: int | tuple[int, ...] = -1,
) -> Array:
    """Squash x by a hyperbolic tangent, where a network would otherwise normalise it.

    Computes ``tanh(alpha * x) * gamma + beta``.

    Parameters
    ----------
    x : array
        Of any array library that follows the Python array API standard, of any layout, with dtype
        float16, bfloat16, float32 or float64.
    alpha : array
        Of shape (), in x's dtype or a wider one: how steep the tangent is.
    gamma, beta : array, optional
        Scale and shift, each of the shape of `axis` in ascending order, in x's dtype or a wider
        one. Either may be absent.
    axis : int or tuple of ints, default: -1
        The axes that gamma and beta have, in any place and order; an int for one.

    Returns
    -------
    array
        Of x's library, device, shape and dtype.

    Raises
    ------
    TypeError
        If an argument is no array, or of another library or of an unsupported dtype.
    ValueError
        If a shape does not fit, or an axis is out of range.
    DeviceMismatchError
        If the arrays are not on one device.

    Notes
    -----
    From Zhu, Chen, He, LeCun and Liu, "Transformers without Normalization", arXiv:2503.10622.
    16-bit inputs are computed in float32, with one rounding at the end. On torch tensors and JAX
    arrays the result can be differentiated by those frameworks.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.dynamic_tanh(np.asarray([[-8.0, 0.0, 1.0]]), np.asarray(0.5)).round(4)
    array([[-0.9993,  0.    ,  0.4621]])
    """
    return _tanh("dynamic_tanh", x, alpha, gamma, beta, axis)


@explained_by(_explained)
@on_device_of_x
def dynamic_tanh_forward(
    x: Array,
    alpha: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    axis: int | tuple[int, ...] = -1,
) -> TanhForward:
    """Dynamic tanh in the form of the other operations; its gradient needs no statistics.

    Parameters
    ----------
    x, alpha, gamma, beta, axis
        As for `dynamic_tanh`, as are the errors.

    Returns
    -------
    y : array
        Of x's shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.dynamic_tanh_forward(np.asarray([0.0, 1.0]), np.asarray(0.5)).y.round(4)
    array([0.    , 0.4621])
    """
    return TanhForward(_tanh("dynamic_tanh_forward", x, alpha, gamma, beta, axis))


def _tanh(
    func_name: str,
    x: Array,
    alpha: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: int | tuple[int, ...],
) -> Array:
    call, view = _planned(func_name, x, alpha, gamma, beta, axis)
    if call.has_kernel:
        rows = view.to_rows(x, call.choice.ascontiguous)
        return view.from_rows(call.results(rows, alpha, _flat(gamma), _flat(beta)))
    xp, x_acc = library_of(x).xp, to_acc_dtype(library_of(x).xp, x)
    alpha, gamma, beta = (
        broadcast_like(xp, alpha, x_acc, ()),
        broadcast_like(xp, gamma, x_acc, view.broadcast_parameter),
        broadcast_like(xp, beta, x_acc, view.broadcast_parameter),
    )
    with np.errstate(all="ignore"):
        y = xp.tanh(x_acc * alpha)
        if gamma is not None:
            y = y * gamma
        if beta is not None:
            y = y + beta
        return xp.astype(y, native_dtype(x), copy=False)


def _flat(parameter: Array | None) -> Array | None:
    """A parameter as kernels get it."""
    return (
        None if parameter is None else reshape_contiguous(parameter, (math.prod(parameter.shape),))
    )


def _planned_backward(
    func_name: str,
    dy: Array,
    x: Array,
    alpha: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: int | tuple[int, ...],
    need: tuple[str, ...],
) -> tuple[Call, RowsView, tuple[str, ...]]:
    need = _check.need(func_name, need, TanhGradients._fields)
    view = _checked(func_name, x, alpha, gamma, beta, axis)
    check_gradient(func_name, x, dy=dy)
    needs = [
        "dx" in need,
        "dalpha" in need,
        "dgamma" in need and gamma is not None,
        "dbeta" in need,
    ]
    view = of_elements(view, parameters=gamma is not None or needs[-1])
    dtypes = {
        "alpha": dtype_name_or_none(alpha),
        "gamma": dtype_name_or_none(gamma),
        "dy": dtype_name_or_none(dy),
    }
    parts = {"groups": view.groups, "repeat": view.repeat}
    call = call_on("tanh_backward", x, view.rows, need=tuple(needs), **parts, **dtypes)
    return call, view, need


def _explained_backward(func_name: str, **arguments: Any) -> Call:
    return _planned_backward(func_name, **arguments)[0]


@explained_by(_explained_backward)
@on_device_of_x
def dynamic_tanh_backward(
    dy: Array,
    x: Array,
    alpha: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    axis: int | tuple[int, ...] = -1,
    need: tuple[str, ...] = TanhGradients._fields,
) -> TanhGradients:
    """Gradients of dynamic tanh with respect to x, alpha, gamma and beta.

    Parameters
    ----------
    dy : array
        Gradient of the loss with respect to y, of x's shape, in x's dtype or a wider one.
    x, alpha : array
        What y was computed from.
    gamma, beta : array, optional
        The scale and the shift, if there were any. Of beta nothing but shape and dtype matters.
    axis : int or tuple of ints, default: -1
        As in the forward pass.
    need : tuple of str, default: all
        Which gradients to compute, out of "dx", "dalpha", "dgamma" and "dbeta". The others are
        None and cost nothing.

    Returns
    -------
    dx : array or None
        Of x's shape and dtype.
    dalpha : array or None
        Of shape (), in alpha's dtype.
    dgamma : array or None
        Of gamma's shape and dtype; None where gamma is absent.
    dbeta : array or None
        Of the shape of `axis`, in the dtype of beta, or of gamma where beta is absent, or of x
        where both are.

    Raises
    ------
    TypeError, ValueError, DeviceMismatchError
        As for `dynamic_tanh`; ValueError also for a name in `need` that is no gradient.

    Notes
    -----
    With t = tanh(alpha * x) and g = dy * gamma, the gradients are ``dx = g * alpha * (1 - t²)``,
    ``dalpha = sum(g * x * (1 - t²))``, ``dgamma = sum(dy * t)`` and ``dbeta = sum(dy)``. 1 - t² is
    computed without the subtraction, which would leave nothing of it where t is almost 1.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x, alpha = np.asarray([[-8.0, 0.0, 1.0]]), np.asarray(0.5)
    >>> gradients = ln.dynamic_tanh_backward(np.ones((1, 3)), x, alpha)
    >>> gradients.dx.round(4), gradients.dalpha.round(4)
    (array([[0.0007, 0.5   , 0.3932]]), np.float64(0.7757))
    """
    call, view, need = _planned_backward(
        "dynamic_tanh_backward", dy, x, alpha, gamma, beta, axis, need
    )
    if call.has_kernel:
        return _by_kernel(call, view, dy, x, alpha, gamma, beta)
    xp, x_acc = library_of(x).xp, to_acc_dtype(library_of(x).xp, x)
    every = tuple(range(x.ndim))
    reduced_axes = tuple(each for each in every if each not in view.parameter_axes)
    steepness = broadcast_like(xp, alpha, x_acc, ())
    scale = broadcast_like(xp, gamma, x_acc, view.broadcast_parameter)
    dx = dalpha = dgamma = dbeta = None
    with np.errstate(all="ignore"):
        dy, inner = xp.astype(dy, x_acc.dtype, copy=False), x_acc * steepness
        if "dbeta" in need:
            dbeta = finish_gradient(
                xp, sum_over(xp, dy, reduced_axes), view.parameter, x, gamma, beta
            )
        if "dgamma" in need and gamma is not None:
            total = sum_over(xp, dy * xp.tanh(inner), reduced_axes)
            dgamma = finish_gradient(xp, total, view.parameter, x, gamma)
        if "dx" in need or "dalpha" in need:
            g = dy if scale is None else dy * scale
            small = xp.exp(-2 * xp.abs(inner))
            slope = 4 * small / (1 + small) ** 2
            if "dx" in need:
                dx = xp.astype(g * (slope * steepness), native_dtype(x), copy=False)
            if "dalpha" in need:
                dalpha = finish_gradient(xp, sum_over(xp, g * (slope * x_acc), every), (), x, alpha)
    return TanhGradients(dx, dalpha, dgamma, dbeta)


def _by_kernel(
    call: Call,
    view: RowsView,
    dy: Array,
    x: Array,
    alpha: Array,
    gamma: Array | None,
    beta: Array | None,
) -> TanhGradients:
    xp, order = library_of(x).xp, call.choice.ascontiguous
    dx, dalpha, dgamma, dbeta = call.results(
        view.to_rows(dy, order), view.to_rows(x, order), alpha, _flat(gamma)
    )
    return TanhGradients(
        None if dx is None else view.from_rows(dx),
        finish_gradient(xp, dalpha, (), x, alpha),
        finish_gradient(xp, dgamma, view.parameter, x, gamma),
        finish_gradient(xp, dbeta, view.parameter, x, gamma, beta),
    )
