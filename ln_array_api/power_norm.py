"""Power normalisation: a signed power of each element, then unit length.

Where no backend has a kernel for it, a row of powers is a row of RMS norm, which divides by the
root of a mean square where this divides by that of a sum: hence the root of the number of elements
below. Powers above the first may be beyond the dtype where results are not, so these have generic
operations of their own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _check, _rows
from ._arrays import (
    Array,
    dtype_name,
    library_of,
    native_dtype,
    on_device_of_x,
    reshape_contiguous,
    to_acc_dtype,
)
from ._beside import broadcast_like, check_gradient, check_inputs, check_saved
from ._explain import explained_by
from ._family import Call, call_on
from ._plans import cast_statistic
from ._views import RowsView
from .kernels.powers import powers_backward, powers_forward, signed_power

EPSILON = 1e-12
#: From here on, powers of all numbers between 0 and 1 are 0 in every dtype.
_LARGEST_ALPHA = 2.0**100


class PowerNormForward(NamedTuple):
    """What `power_norm_forward` gives."""

    y: Array
    norm: Array


class PowerNormGradients(NamedTuple):
    """What `power_norm_backward` gives; None stands for what was not asked for."""

    dx: Array | None


def _checked(
    func_name: str, x: Array, alpha: float, axis: int | tuple[int, ...]
) -> tuple[RowsView, float, float]:
    """How x is seen, alpha, and the root of the number of elements that a norm is taken of."""
    view = check_inputs(func_name, axis, x)
    alpha = min(_check.positive(func_name, "alpha", alpha), _LARGEST_ALPHA)
    return view, alpha, math.sqrt(max(view.rows[1], 1))


def _forward(
    func_name: str, x: Array, alpha: float, axis: int | tuple[int, ...], epsilon: float
) -> tuple[Array, Array]:
    view, alpha, sqrt_n = _checked(func_name, x, alpha, axis)
    epsilon = _check.epsilon(func_name, epsilon, x.dtype)
    call = call_on("powers_forward", x, view.rows, exponent=alpha, epsilon=epsilon)
    if call.has_kernel:
        y, norm = call.results(view.to_rows(x, call.choice.ascontiguous))
        return view.from_rows(y), library_of(x).reshape(norm, view.statistic)
    if alpha > 1:
        return powers_forward(x, axes=view.axes, alpha=alpha, epsilon=epsilon)
    z = signed_power(x, alpha)
    plan = _rows.forward_plan(
        func_name, z, None, None, view.axes, epsilon / sqrt_n**2, None, center=False
    )
    y, _, rstd = plan.forward(z, None, None, None)
    with np.errstate(all="ignore"):
        return library_of(x).xp.astype(y / sqrt_n, native_dtype(x), copy=False), sqrt_n / rstd


def _explained(
    func_name: str, x: Array, alpha: float, axis: int | tuple[int, ...], epsilon: float
) -> Any:
    view, alpha, sqrt_n = _checked(func_name, x, alpha, axis)
    epsilon = _check.epsilon(func_name, epsilon, x.dtype)
    call = call_on("powers_forward", x, view.rows, exponent=alpha, epsilon=epsilon)
    if call.has_kernel or alpha > 1:
        return call
    z = to_acc_dtype(library_of(x).xp, x)  # of the dtype and layout that powers of x have
    epsilon /= sqrt_n**2
    return _rows.forward_plan(func_name, z, None, None, view.axes, epsilon, None, center=False)


@explained_by(_explained)
@on_device_of_x
def power_norm(
    x: Array,
    /,
    *,
    alpha: float = 0.5,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = EPSILON,
) -> Array:
    """Take a power of each element of x but its sign, and divide by the norm over some axes.

    Computes ``z / sqrt(sum(z²) + epsilon)`` with ``z = sign(x) * abs(x)**alpha``.

    Parameters
    ----------
    x : array
        Of any array library that follows the Python array API standard, of any layout, with dtype
        float16, bfloat16, float32 or float64.
    alpha : float, default: 0.5
        The exponent, more than 0. With 1 this is division by the Euclidean norm.
    axis : int or tuple of ints, default: -1
        The axes that norms are taken over, in any place and order; an int for one.
    epsilon : float, default: 1e-12
        Added to the sum of squares, inside the root. Finite and at least 0; with 0 a row of zeros
        gives NaN.

    Returns
    -------
    array
        Of x's library, device, shape and dtype.

    Raises
    ------
    TypeError
        If x is no array, or of an unsupported dtype.
    ValueError
        If an axis is out of range, alpha is not more than 0, or epsilon is negative, or either of
        these is not finite.

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
    return _forward("power_norm", x, alpha, axis, epsilon)[0]


@explained_by(_explained)
@on_device_of_x
def power_norm_forward(
    x: Array,
    /,
    *,
    alpha: float = 0.5,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = EPSILON,
) -> PowerNormForward:
    """Power norm, with the norms that its gradient needs.

    Parameters
    ----------
    x, alpha, axis, epsilon
        As for `power_norm`, as are the errors.

    Returns
    -------
    y : array
        Of x's shape and dtype.
    norm : array
        sqrt(sum(z²) + epsilon), of x's rank with length 1 in place of each axis that it is taken
        over; in float32 for 16-bit x, else in x's dtype. NaN where those axes are empty.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.power_norm_forward(np.asarray([[9.0, -16.0, 0.0]])).norm.round(3)
    array([[5.]])
    """
    return PowerNormForward(*_forward("power_norm_forward", x, alpha, axis, epsilon))


def _checked_backward(
    func_name: str,
    dy: Array,
    x: Array,
    norm: Array,
    alpha: float,
    axis: int | tuple[int, ...],
    need: tuple[str, ...],
) -> tuple[tuple[str, ...], RowsView, float, float]:
    need = _check.need(func_name, need, PowerNormGradients._fields)
    view, alpha, sqrt_n = _checked(func_name, x, alpha, axis)
    check_gradient(func_name, x, dy=dy)
    check_saved(func_name, x, view.statistic, norm=norm)
    return need, view, alpha, sqrt_n


def _backward_call(dy: Array, x: Array, view: RowsView, alpha: float) -> Call:
    return call_on("powers_backward", x, view.rows, exponent=alpha, dy=dtype_name(dy.dtype))


def _backward_explained(func_name: str, dy: Array, x: Array, norm: Array, **options: Any) -> Any:
    _, view, alpha, _ = _checked_backward(func_name, dy, x, norm, **options)
    call = _backward_call(dy, x, view, alpha)
    if call.has_kernel or alpha > 1:
        return call
    xp = library_of(x).xp
    z = to_acc_dtype(xp, x)
    dy, rstd = (
        broadcast_like(xp, dy, z, tuple(x.shape)),
        broadcast_like(xp, norm, z, view.statistic),
    )
    return _rows.backward_plan(
        func_name, dy, z, None, rstd, None, None, view.axes, ("dx",), center=False
    )


@explained_by(_backward_explained)
@on_device_of_x
def power_norm_backward(
    dy: Array,
    x: Array,
    norm: Array,
    /,
    *,
    alpha: float = 0.5,
    axis: int | tuple[int, ...] = -1,
    need: tuple[str, ...] = PowerNormGradients._fields,
) -> PowerNormGradients:
    """Gradient of power norm with respect to x.

    Parameters
    ----------
    dy : array
        Gradient of the loss with respect to y, of x's shape, in x's dtype or a wider one.
    x : array
        What y was computed from.
    norm : array
        From `power_norm_forward`.
    alpha, axis
        As in the forward pass.
    need : tuple of str, default: all
        Which gradients to compute: "dx" is the only one.

    Returns
    -------
    dx : array or None
        Of x's shape and dtype. Where x is 0, dx is 0, unless alpha is 1. With an alpha of less than
        1 the derivative is infinite there; with one of more than 1 it is 0.

    Raises
    ------
    TypeError, ValueError, DeviceMismatchError
        As for `power_norm`; ValueError also for a name in `need` that is no gradient.

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
    func_name = "power_norm_backward"
    need, view, alpha, sqrt_n = _checked_backward(func_name, dy, x, norm, alpha, axis, need)
    if not need:
        return PowerNormGradients(None)
    call = _backward_call(dy, x, view, alpha)
    if call.has_kernel:
        rows = (view.to_rows(each, call.choice.ascontiguous) for each in (dy, x))
        norm = reshape_contiguous(
            cast_statistic(library_of(x).xp, norm, call.spec.dtype), (view.rows[0], 1)
        )
        return PowerNormGradients(view.from_rows(call.results(*rows, norm)))
    if alpha > 1:
        return PowerNormGradients(powers_backward(dy, x, norm, axes=view.axes, alpha=alpha))
    xp, z = library_of(x).xp, signed_power(x, alpha)
    with np.errstate(all="ignore"):
        dy = broadcast_like(xp, dy, z, tuple(x.shape)) / sqrt_n
        rstd = sqrt_n / broadcast_like(xp, norm, z, view.statistic)
        plan = _rows.backward_plan(
            func_name, dy, z, None, rstd, None, None, view.axes, ("dx",), center=False
        )
        dx = plan.backward(dy, z, None, rstd, None)[0]
        if alpha != 1:
            x_acc = to_acc_dtype(xp, x)
            dx = dx * (alpha * (z / xp.where(x_acc == 0, 1.0, x_acc)))
        return PowerNormGradients(xp.astype(dx, native_dtype(x), copy=False))
