"""Dynamic tanh: a squashing that stands in for normalisation, and needs no statistics."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from ._arrays import Array, Axis, dtype_name_or_none
from ._dispatch import checks
from ._dispatch.cache import plan_of
from ._dispatch.family import family_plan
from ._dispatch.plans import Plan, cast_gradient
from ._dispatch.views import RowsView, checked_view, of_elements
from .kernels import tanh


class TanhForward(NamedTuple):
    """What `dynamic_tanh_forward` gives."""

    y: Array


class TanhGradients(NamedTuple):
    """What `dynamic_tanh_backward` gives; None stands for what was not asked for."""

    dx: Array | None
    dalpha: Array | None
    dgamma: Array | None
    dbeta: Array | None


def _checked(
    func_name: str, x: Array, alpha: Array, gamma: Array | None, beta: Array | None, axis: Axis
) -> RowsView:
    view = checked_view(func_name, axis, x, gamma=gamma, beta=beta)
    checks.operand(func_name, "alpha", alpha, x, (), "that of a single number")
    return view


def _forward_plan(func_name: str, x: Array, *others: Any) -> Plan:
    view = _checked(func_name, x, *others)
    alpha, gamma, beta, _ = others
    generic = partial(tanh.tanh_forward, shape=view.broadcast_parameter)
    view = of_elements(view, parameters=gamma is not None or beta is not None)
    arrays = x, alpha, gamma, beta
    dtypes = _dtypes(alpha=alpha, gamma=gamma, beta=beta)
    return family_plan("tanh_forward", x, arrays, view, generic, **dtypes)


def _backward_plan(func_name: str, dy: Array, x: Array, *others: Any) -> Plan:
    *inputs, need = others
    alpha, gamma, _, _ = inputs
    need = checks.need(func_name, need, TanhGradients._fields)
    view = _checked(func_name, x, *inputs)
    checks.gradient(func_name, x, dy=dy)
    needs = "dx" in need, "dalpha" in need, "dgamma" in need and gamma is not None, "dbeta" in need
    generic = partial(
        tanh.tanh_backward,
        shape=view.broadcast_parameter,
        parameter_axes=view.parameter_axes,
        need=needs,
    )
    view = of_elements(view, parameters=gamma is not None or "dbeta" in need)
    arrays = dy, x, alpha, gamma
    dtypes = _dtypes(alpha=alpha, gamma=gamma, dy=dy)
    return family_plan("tanh_backward", x, arrays, view, generic, need=needs, **dtypes)


def _dtypes(**arrays: Array | None) -> dict[str, str | None]:
    return {name: dtype_name_or_none(each) for name, each in arrays.items()}


def dynamic_tanh(
    x: Array,
    alpha: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    axis: Axis = -1,
) -> Array:
    """Squash x by a hyperbolic tangent, where a network would otherwise normalise it.

    Computes ``tanh(alpha * x) * gamma + beta``.

    Parameters
    ----------
    x
        As for `layer_norm`, as are the errors.
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
        The tangents, of x's library, device, shape and dtype.

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
    arrays = x, alpha, gamma, beta
    return plan_of(_forward_plan, "dynamic_tanh", arrays, axis).run(*arrays)


def dynamic_tanh_forward(
    x: Array,
    alpha: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    axis: Axis = -1,
) -> TanhForward:
    """Dynamic tanh in the form of the other operations; its gradient needs no statistics.

    Parameters
    ----------
    x, alpha, gamma, beta, axis
        As for `dynamic_tanh`, as are the errors.

    Returns
    -------
    y : array
        As from `dynamic_tanh`.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.dynamic_tanh_forward(np.asarray([0.0, 1.0]), np.asarray(0.5)).y.round(4)
    array([0.    , 0.4621])
    """
    arrays = x, alpha, gamma, beta
    return TanhForward(plan_of(_forward_plan, "dynamic_tanh_forward", arrays, axis).run(*arrays))


def dynamic_tanh_backward(
    dy: Array,
    x: Array,
    alpha: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    axis: Axis = -1,
    need: tuple[str, ...] = TanhGradients._fields,
) -> TanhGradients:
    """Gradients of dynamic tanh with respect to x, alpha, gamma and beta.

    Parameters
    ----------
    dy, x, gamma, beta, need
        As for `layer_norm_backward`, as are the errors; `need` may name "dalpha" as well.
    alpha, axis
        As in the forward pass.

    Returns
    -------
    dx : array or None
        Of x's shape and dtype.
    dalpha : array or None
        Of shape (), in alpha's dtype.
    dgamma, dbeta : array or None
        As from `layer_norm_backward`, of the shape of `axis`.

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
    arrays = dy, x, alpha, gamma, beta
    plan = plan_of(_backward_plan, "dynamic_tanh_backward", arrays, axis, need)
    dx, dalpha, dgamma, dbeta = plan.run(dy, x, alpha, gamma)
    return TanhGradients(
        dx,
        cast_gradient(dalpha, x, alpha),
        cast_gradient(dgamma, x, gamma),
        cast_gradient(dbeta, x, gamma, beta),
    )
