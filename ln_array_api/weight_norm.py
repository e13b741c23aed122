"""Weight normalisation: the direction and the length of weights as parameters of their own.

A slice is a row of RMS norm, which divides by the root of a mean square where this divides by that
of a sum. The root of the number of elements, by which they differ, is taken care of in g.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from . import _check, _rows
from ._arrays import Array, library_of, native_dtype, on_device_of_x, to_acc_dtype
from ._beside import check_gradient, check_inputs, check_saved
from ._explain import explained_by
from ._plans import SomePlan
from ._views import KeptAxis


class WeightNormForward(NamedTuple):
    """What `weight_norm_forward` gives."""

    w: Array
    norm: Array


class WeightNormGradients(NamedTuple):
    """What `weight_norm_backward` gives; None stands for what was not asked for."""

    dv: Array | None
    dg: Array | None


def _checked(func_name: str, v: Array, g: Array, axis: int) -> tuple[KeptAxis, float]:
    """What is normalised over, and the root of the number of elements in a slice."""
    slices = KeptAxis(axis, "v", scaled=True)
    view = check_inputs(func_name, slices, v)
    _check.operand(func_name, "g", g, v, view.parameter, view.shape_text, x_name="v")
    return slices, math.sqrt(max(view.rows[1], 1))


def _forward(func_name: str, v: Array, g: Array, axis: int) -> tuple[SomePlan, Array, float]:
    """The plan, its gamma, and the root of the number of elements in a slice."""
    slices, sqrt_n = _checked(func_name, v, g, axis)
    gamma = to_acc_dtype(library_of(v).xp, g) / sqrt_n
    plan = _rows.forward_plan(func_name, v, gamma, None, slices, 0.0, None, center=False)
    return plan, gamma, sqrt_n


def _forward_plan(func_name: str, v: Array, g: Array, axis: int) -> SomePlan:
    return _forward(func_name, v, g, axis)[0]


@explained_by(_forward_plan)
@on_device_of_x
def weight_norm(v: Array, g: Array, /, *, axis: int = 0) -> Array:
    """Give each slice of a weight array along an axis the direction of v and the length g.

    Computes ``g * v / norm``, where norm is the root of the sum of squares over all other axes.

    Parameters
    ----------
    v : array
        Weights of two axes or more, of any array library that follows the Python array API
        standard, of any layout, with dtype float16, bfloat16, float32 or float64.
    g : array
        Of shape (v.shape[axis],), in v's dtype or a wider one.
    axis : int, default: 0
        The axis that is kept, of output channels: norms are over all others.

    Returns
    -------
    array
        Of v's library, device, shape and dtype. NaN in a slice of zeros, which has no direction.

    Raises
    ------
    TypeError
        If an argument is no array, or of another library or of an unsupported dtype.
    ValueError
        If axis is out of range, v has only one, or g has another shape.
    DeviceMismatchError
        If the arrays are not on one device.

    Notes
    -----
    After Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
    Training of Deep Neural Networks", arXiv:1602.07868. Squares neither overflow nor underflow.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.weight_norm(np.asarray([[3.0, 4.0], [0.0, 0.1]]), np.asarray([10.0, 2.0])).round(3)
    array([[6., 8.],
           [0., 2.]])
    """
    plan, gamma, _ = _forward("weight_norm", v, g, axis)
    return plan.run(v, gamma, None, None)[0]


@explained_by(_forward_plan)
@on_device_of_x
def weight_norm_forward(v: Array, g: Array, /, *, axis: int = 0) -> WeightNormForward:
    """Weight norm, with the norms that its gradient needs.

    Parameters
    ----------
    v, g, axis
        As for `weight_norm`, as are the errors.

    Returns
    -------
    w : array
        Of v's shape and dtype.
    norm : array
        Of each slice of v, of shape (v.shape[axis],); in float32 for 16-bit v, else in v's dtype.
        NaN where slices are empty.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> v, g = np.asarray([[3.0, 4.0], [0.0, 0.1]]), np.ones(2)
    >>> ln.weight_norm_forward(v, g).norm.round(3)
    array([5. , 0.1])
    """
    plan, gamma, sqrt_n = _forward("weight_norm_forward", v, g, axis)
    w, _, rstd = plan.forward(v, gamma, None, None)
    with np.errstate(all="ignore"):
        return WeightNormForward(w, sqrt_n / rstd)


def _backward(
    func_name: str, dw: Array, v: Array, norm: Array, g: Array, axis: int, need: tuple[str, ...]
) -> tuple[SomePlan, tuple[Array, ...], float]:
    """The plan, its arrays, and the root of the number of elements in a slice."""
    need = _check.need(func_name, need, WeightNormGradients._fields)
    slices, sqrt_n = _checked(func_name, v, g, axis)
    check_gradient(func_name, v, "v", dw=dw)
    check_saved(func_name, v, tuple(g.shape), "v", norm=norm)
    gamma = to_acc_dtype(library_of(v).xp, g) / sqrt_n
    with np.errstate(all="ignore"):
        arrays = dw, v, None, sqrt_n / norm, gamma
    wanted = tuple("dx" if each == "dv" else "dgamma" for each in need)
    return (
        _rows.backward_plan(func_name, *arrays, None, slices, wanted, center=False),
        arrays,
        sqrt_n,
    )


def _backward_plan(
    func_name: str, dw: Array, v: Array, norm: Array, g: Array, axis: int, need: tuple[str, ...]
) -> SomePlan:
    return _backward(func_name, dw, v, norm, g, axis, need)[0]


@explained_by(_backward_plan)
@on_device_of_x
def weight_norm_backward(
    dw: Array,
    v: Array,
    norm: Array,
    g: Array,
    /,
    *,
    axis: int = 0,
    need: tuple[str, ...] = WeightNormGradients._fields,
) -> WeightNormGradients:
    """Gradients of weight norm with respect to v and g.

    Parameters
    ----------
    dw : array
        Gradient of the loss with respect to w, of v's shape, in v's dtype or a wider one.
    v, g : array
        What w was computed from.
    norm : array
        From `weight_norm_forward`.
    axis : int, default: 0
        As in the forward pass.
    need : tuple of str, default: both
        Which gradients to compute, out of "dv" and "dg". The others are None and cost nothing.

    Returns
    -------
    dv : array or None
        Of v's shape and dtype.
    dg : array or None
        Of g's shape and dtype.

    Raises
    ------
    TypeError, ValueError, DeviceMismatchError
        As for `weight_norm`; ValueError also for a name in `need` that is no gradient.

    Notes
    -----
    With u = v / norm and all sums over a slice, the gradients are
    ``dv = g / norm * (dw - u * sum(dw * u))`` and ``dg = sum(dw * u)``.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> v, g = np.asarray([[3.0, 4.0]]), np.asarray([10.0])
    >>> w, norm = ln.weight_norm_forward(v, g)
    >>> dv, dg = ln.weight_norm_backward(np.asarray([[1.0, 0.0]]), v, norm, g)
    >>> dv.round(3), dg.round(3)
    (array([[ 1.28, -0.96]]), array([0.6]))
    """
    plan, arrays, sqrt_n = _backward("weight_norm_backward", dw, v, norm, g, axis, need)
    dv, dg, _ = plan.backward(*arrays)
    if dg is not None:
        dg = library_of(v).xp.astype(dg / sqrt_n, native_dtype(g), copy=False)
    return WeightNormGradients(dv, dg)
