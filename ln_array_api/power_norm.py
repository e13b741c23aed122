"""Power normalisation: a signed power of each element, then unit length.

Where no backend has a kernel for it, a row of powers is a row of RMS norm, which divides by the
root of a mean square where this divides by that of a sum: hence the root of the number of elements
below. Powers above the first may be beyond the dtype where results are not, so these have generic
operations of their own.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, Axis, dtype_name, library_of, native_dtype, on_device_of, to_acc_dtype
from ._dispatch import checks
from ._dispatch.cache import is_planning_anew, plan_of
from ._dispatch.family import family_plan
from ._dispatch.plans import Plan
from ._dispatch.rows import RMS, backward_plan, forward_plan
from ._dispatch.views import RowsView, checked_view
from ._layout import broadcast_like
from .kernels.powers import powers_backward, powers_forward, signed_power

EPSILON = 1e-12
#: From here on, powers of all numbers between 0 and 1 are 0 in every dtype.
_LARGEST_ALPHA = 2.0**100


class NormForward(NamedTuple):
    """What `power_norm_forward` gives."""

    y: Array
    norm: Array


class NormGradients(NamedTuple):
    """What `power_norm_backward` and `unit_norm_backward` give; None is what was not wanted."""

    dx: Array | None


def _checked(func_name: str, x: Array, alpha: float, axis: Axis) -> tuple[RowsView, float]:
    """Return the view of x as rows, and alpha."""
    view = checked_view(func_name, axis, x)
    return view, min(checks.positive(func_name, "alpha", alpha), _LARGEST_ALPHA)


def _plan(func_name: str, x: Array, alpha: float, axis: Axis, epsilon: float) -> Plan:
    view, alpha = _checked(func_name, x, alpha, axis)
    epsilon = checks.epsilon(func_name, epsilon, x.dtype)
    generic: Any = partial(powers_forward, axes=view.axes, alpha=alpha, epsilon=epsilon)
    if alpha <= 1:
        generic = partial(_by_rms_norm, func_name, view=view, alpha=alpha, epsilon=epsilon)
    plan = family_plan("powers_forward", x, (x,), view, generic, exponent=alpha, epsilon=epsilon)
    if alpha <= 1 and plan.primitive == "-" and is_planning_anew():
        with on_device_of(x):  # `explain` tells of the plan for powers of x
            _rms_plan(func_name, to_acc_dtype(library_of(x).xp, x), view, epsilon)
    return plan


def _sqrt_n(view: RowsView) -> float:
    return math.sqrt(max(view.rows[1], 1))


def _rms_plan(func_name: str, z: Array, view: RowsView, epsilon: float) -> Any:
    epsilon = epsilon / _sqrt_n(view) ** 2
    return forward_plan(func_name, RMS, z, None, None, view.axes, epsilon)


def _by_rms_norm(
    func_name: str, x: Array, view: RowsView, alpha: float, epsilon: float
) -> tuple[Array, Array]:
    z, sqrt_n = signed_power(x, alpha), _sqrt_n(view)
    y, _, rstd = _rms_plan(func_name, z, view, epsilon).forward(z, None, None)
    with np.errstate(all="ignore"):
        return library_of(x).xp.astype(y / sqrt_n, native_dtype(x), copy=False), sqrt_n / rstd


def power_norm(
    x: Array, /, *, alpha: float = 0.5, axis: Axis = -1, epsilon: float = EPSILON
) -> Array:
    """Take a power of each element of x but its sign, and divide by the norm over some axes.

    Computes ``z / sqrt(sum(z²) + epsilon)`` with ``z = sign(x) * abs(x)**alpha``.

    Parameters
    ----------
    x, axis
        As for `layer_norm`, as are the errors.
    alpha : float, default: 0.5
        The exponent, more than 0. With 1 this is `unit_norm`.
    epsilon : float, default: 1e-12
        As for `unit_norm`.

    Returns
    -------
    array
        The powers at length 1, of x's library, device, shape and dtype.

    Raises
    ------
    ValueError
        Also if alpha is not more than 0, or not finite.

    Notes
    -----
    From Perronnin, Sanchez and Mensink, "Improving the Fisher Kernel for Large-Scale Image
    Classification", ECCV 2010, sections 3.1 and 3.2 in the order that they are used in; theirs
    are powers of less than 1. Squares neither overflow nor underflow, and neither do powers, except
    in the norm that `power_norm_forward` gives: infinity or 0 may be nearest to it. On torch
    tensors and JAX arrays the result can be differentiated by those frameworks.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.power_norm(np.asarray([[9.0, -16.0, 0.0]])).round(3)
    array([[ 0.6, -0.8,  0. ]])
    """
    return plan_of(_plan, "power_norm", (x,), alpha, axis, epsilon).run(x)[0]


def power_norm_forward(
    x: Array, /, *, alpha: float = 0.5, axis: Axis = -1, epsilon: float = EPSILON
) -> NormForward:
    """Power norm, with the norms that its gradient needs.

    Parameters
    ----------
    x, alpha, axis, epsilon
        As for `power_norm`, as are the errors.

    Returns
    -------
    y, norm : array
        As y and rstd from `layer_norm_forward`, with norm = sqrt(sum(z²) + epsilon).

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.power_norm_forward(np.asarray([[9.0, -16.0, 0.0]])).norm.round(3)
    array([[5.]])
    """
    plan = plan_of(_plan, "power_norm_forward", (x,), alpha, axis, epsilon)
    return NormForward(*plan.run(x))


def _backward_plan(
    func_name: str,
    dy: Array,
    x: Array,
    norm: Array,
    alpha: float,
    axis: Axis,
    need: tuple[str, ...],
) -> Plan:
    checks.need(func_name, need, NormGradients._fields)
    view, alpha = _checked(func_name, x, alpha, axis)
    checks.gradient(func_name, x, dy=dy)
    checks.saved(func_name, x, view.statistic, norm=norm)
    generic: Any = partial(powers_backward, axes=view.axes, alpha=alpha)
    if alpha <= 1:
        generic = partial(_gradient_by_rms_norm, func_name, view=view, alpha=alpha)
    dtype = dtype_name(dy.dtype)
    plan = family_plan("powers_backward", x, (dy, x, norm), view, generic, exponent=alpha, dy=dtype)
    if alpha <= 1 and plan.primitive == "-" and is_planning_anew():
        with on_device_of(x):  # `explain` tells of the plan for powers of x
            _rms_backward_plan(func_name, dy, to_acc_dtype(library_of(x).xp, x), norm, view)
    return plan


def _rms_backward_plan(
    func_name: str, dy: Array, z: Array, norm: Array, view: RowsView
) -> tuple[Any, Array, Array]:
    """Return the plan of RMS norm of z, and its dy and rstd."""
    sqrt_n = _sqrt_n(view)
    dy = broadcast_like(dy, z, tuple(z.shape)) / sqrt_n
    rstd = sqrt_n / broadcast_like(norm, z, view.statistic)
    need = ("dx",)
    plan = backward_plan(func_name, RMS, dy, z, None, rstd, None, None, view.axes, need)
    return plan, dy, rstd


def _gradient_by_rms_norm(
    func_name: str, dy: Array, x: Array, norm: Array, view: RowsView, alpha: float
) -> Array:
    xp, z = library_of(x).xp, signed_power(x, alpha)
    with np.errstate(all="ignore"):
        plan, dy, rstd = _rms_backward_plan(func_name, dy, z, norm, view)
        dx = plan.backward(dy, z, None, rstd, None)[0]
        if alpha != 1:
            x_acc = to_acc_dtype(xp, x)
            dx = dx * (alpha * (z / xp.where(x_acc == 0, 1.0, x_acc)))
        return xp.astype(dx, native_dtype(x), copy=False)


def power_norm_backward(
    dy: Array,
    x: Array,
    norm: Array,
    /,
    *,
    alpha: float = 0.5,
    axis: Axis = -1,
    need: tuple[str, ...] = NormGradients._fields,
) -> NormGradients:
    """Gradient of power norm with respect to x.

    Parameters
    ----------
    dy, x, need
        As for `layer_norm_backward`, as are the errors; dx is the only gradient.
    norm : array
        From `power_norm_forward`.
    alpha, axis
        As in the forward pass.

    Returns
    -------
    dx : array or None
        Of x's shape and dtype. Where x is 0, dx is 0, unless alpha is 1. With an alpha of less than
        1 the derivative is infinite there; with one of more than 1 it is 0.

    Notes
    -----
    With z and y as above, the gradient is
    ``dx = (dy - y * sum(dy * y)) / norm * alpha * abs(x)**(alpha - 1)``.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[9.0, -16.0, 0.0]])
    >>> y, norm = ln.power_norm_forward(x)
    >>> ln.power_norm_backward(np.asarray([[1.0, 0.0, 0.0]]), x, norm).dx.round(4)
    array([[0.0213, 0.012 , 0.    ]])
    """
    arrays = dy, x, norm
    plan = plan_of(_backward_plan, "power_norm_backward", arrays, alpha, axis, need)
    return NormGradients(plan.run(*arrays) if need else None)
