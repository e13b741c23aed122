"""Local contrast normalisation: each element by the window around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from . import _check
from ._arrays import Array, dtype_name, library_of, on_device_of_x
from ._beside import check_gradient, check_saved
from ._explain import explained_by
from ._family import Call, call_on, operations_on
from ._specs import FamilyPrimitive
from .kernels.windows import windows_backward, windows_forward
from .layer_norm import EPSILON

#: Of the results of a forward call, those that are wanted.
_Y_ALONE = True, False, False


class LocalContrastForward(NamedTuple):
    """What `local_contrast_norm_forward` gives."""

    y: Array
    mean: Array
    rstd: Array


class LocalContrastGradients(NamedTuple):
    """What `local_contrast_norm_backward` gives; None stands for what was not asked for."""

    dx: Array | None


def _checked(
    func_name: str, x: Array, size: int, spatial_axes: int | tuple[int, ...]
) -> tuple[tuple[int, ...], int]:
    """The axes, not negative, and the size."""
    _check.array(func_name, "x", x)
    axis = _check.canonical_axis(func_name, spatial_axes, "spatial_axes")
    axes = _check.axes(func_name, axis, tuple(x.shape), argument="spatial_axes")
    _check.known_lengths(func_name, tuple(x.shape), range(x.ndim))
    size = _check.integer(func_name, "size", size)
    if size < 1 or size % 2 == 0:
        raise ValueError(
            f"{func_name}: size must be odd and at least 1, not {size}, since a window has a centre"
        )
    return axes, size


class _Plan(NamedTuple):
    """A checked call."""

    call: Call
    axes: tuple[int, ...]
    size: int
    epsilon: float = 0.0

    def kernel_results(self, *arrays: Array) -> tuple[Array | None, ...]:
        """What a kernel makes of arrays of one shape, whose spatial axes may be anywhere."""
        xp, ndim = library_of(arrays[0]).xp, arrays[0].ndim
        order = (*(axis for axis in range(ndim) if axis not in self.axes), *self.axes)
        back = tuple(order.index(axis) for axis in range(ndim))
        moved = [self.call.ascontiguous(xp.permute_dims(each, order)) for each in arrays]
        results = self.call.results(*(xp.reshape(each, self.call.spec.shape) for each in moved))
        return tuple(
            None if each is None else xp.permute_dims(xp.reshape(each, moved[0].shape), back)
            for each in (results if isinstance(results, tuple) else (results,))
        )


def _planned(primitive: FamilyPrimitive, x: Array, axes: tuple[int, ...], **details: Any) -> Call:
    """The call for x with its spatial axes as (P, H, W), where H is 1 if there is but one."""
    if len(axes) > 2:
        return operations_on(x, "windows extend along more than two axes")
    planes = math.prod(n for axis, n in enumerate(x.shape) if axis not in axes)
    spatial = [x.shape[axis] for axis in axes]
    return call_on(primitive, x, (planes, *[1] * (2 - len(axes)), *spatial), **details)


def _call_of(planner: Callable[..., _Plan], **details: Any) -> Callable[..., Call]:
    """For `explain`, the call of a plan."""
    return lambda func_name, **arguments: planner(func_name, **arguments, **details).call


def _plan_forward(
    func_name: str,
    x: Array,
    size: int,
    spatial_axes: int | tuple[int, ...],
    epsilon: float,
    need: tuple[bool, bool, bool] = (True, True, True),
) -> _Plan:
    """The plan of a forward call; `need` tells which results are wanted."""
    axes, size = _checked(func_name, x, size, spatial_axes)
    epsilon = _check.epsilon(func_name, epsilon, x.dtype)
    call = _planned("windows_forward", x, axes, size=size, epsilon=epsilon, need=need)
    return _Plan(call, axes, size, epsilon)


def _forward(plan: _Plan, x: Array) -> Any:
    """Y, mean and rstd, as far as they are wanted."""
    call, axes, size, epsilon = plan
    if call.has_kernel:
        return plan.kernel_results(x)
    return windows_forward(x, axes=axes, size=size, epsilon=epsilon)


@explained_by(_call_of(_plan_forward, need=_Y_ALONE))
@on_device_of_x
def local_contrast_norm(
    x: Array,
    /,
    *,
    size: int = 9,
    spatial_axes: int | tuple[int, ...] = (-2, -1),
    epsilon: float = EPSILON,
) -> Array:
    """Normalise each element of x to zero mean and unit variance in the window around it.

    Computes ``(x - mean) / sqrt(var + epsilon)``, where mean and var, the biased variance, are
    taken over a window of so many elements on each spatial axis, with the element in its centre. At
    the border windows are cut: statistics are those of the elements that are there.

    Parameters
    ----------
    x : array
        Of any array library that follows the Python array API standard, of any layout, with dtype
        float16, bfloat16, float32 or float64.
    size : int, default: 9
        The length of a window along each spatial axis; odd.
    spatial_axes : int or tuple of ints, default: (-2, -1)
        The axes that windows extend along, in any place and order; an int for one.
    epsilon : float, default: 1e-5
        Added to the variance, inside the root. Finite and at least 0; with 0 a constant window
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
        If an axis is out of range, size is not odd, or epsilon is negative or not finite.

    Notes
    -----
    After Jarrett, Kavukcuoglu, Ranzato and LeCun, "What is the Best Multi-Stage Architecture for
    Object Recognition?", ICCV 2009, with uniform windows of one channel, and epsilon in place of
    their threshold. 16-bit inputs are computed in float32, with one rounding at the end. The error
    does not grow with the mean of a window, nor with what is outside of it; squares of what is
    very large or small are kept in range as long as all of an image is of like magnitude. Cost
    grows with the logarithm of the size. On torch tensors and JAX arrays the result can be
    differentiated by those frameworks. On Dask arrays nothing is computed until asked, and chunks
    get what is around them; chunks smaller than half a window are merged, and all lengths have to
    be known.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([1.0, 2.0, 3.0, 103.0, 104.0])
    >>> ln.local_contrast_norm(x, size=3, spatial_axes=0).round(3)
    array([-1.   ,  0.   , -0.697,  0.697,  1.   ])
    """
    plan = _plan_forward("local_contrast_norm", x, size, spatial_axes, epsilon, _Y_ALONE)
    return _forward(plan, x)[0]


@explained_by(_call_of(_plan_forward))
@on_device_of_x
def local_contrast_norm_forward(
    x: Array,
    /,
    *,
    size: int = 9,
    spatial_axes: int | tuple[int, ...] = (-2, -1),
    epsilon: float = EPSILON,
) -> LocalContrastForward:
    """Local contrast norm, with the statistics that its gradient needs.

    Parameters
    ----------
    x, size, spatial_axes, epsilon
        As for `local_contrast_norm`, as are the errors.

    Returns
    -------
    y : array
        Of x's shape and dtype.
    mean, rstd : array
        Mean and 1 / sqrt(var + epsilon) of the window around each element, of x's shape; in float32
        for 16-bit x, else in x's dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([1.0, 2.0, 3.0, 103.0, 104.0])
    >>> ln.local_contrast_norm_forward(x, size=3, spatial_axes=0).mean
    array([  1.5,   2. ,  36. ,  70. , 103.5])
    """
    plan = _plan_forward("local_contrast_norm_forward", x, size, spatial_axes, epsilon)
    return LocalContrastForward(*_forward(plan, x))


def _plan_backward(
    func_name: str,
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    size: int,
    spatial_axes: int | tuple[int, ...],
    need: tuple[str, ...],
) -> _Plan:
    """The plan of a backward call."""
    _check.need(func_name, need, LocalContrastGradients._fields)
    axes, size = _checked(func_name, x, size, spatial_axes)
    check_gradient(func_name, x, dy=dy)
    check_saved(func_name, x, tuple(x.shape), mean=mean, rstd=rstd)
    call = _planned("windows_backward", x, axes, size=size, dy=dtype_name(dy.dtype))
    return _Plan(call, axes, size)


@explained_by(_call_of(_plan_backward))
@on_device_of_x
def local_contrast_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    /,
    *,
    size: int = 9,
    spatial_axes: int | tuple[int, ...] = (-2, -1),
    need: tuple[str, ...] = LocalContrastGradients._fields,
) -> LocalContrastGradients:
    """Gradient of local contrast norm with respect to x.

    Parameters
    ----------
    dy : array
        Gradient of the loss with respect to y, of x's shape, in x's dtype or a wider one.
    x : array
        What y was computed from.
    mean, rstd : array
        From `local_contrast_norm_forward`. `mean` is checked but not used: it is rounded, so the
        means are recomputed from x.
    size, spatial_axes
        As in the forward pass.
    need : tuple of str, default: all
        Which gradients to compute: "dx" is the only one.

    Returns
    -------
    dx : array or None
        Of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError, DeviceMismatchError
        As for `local_contrast_norm`; ValueError also for a name in `need` that is no gradient.

    Notes
    -----
    An element is in as many windows as its own window has elements, and there is a term in its
    gradient for each: ``dx[k] = dy[k] * rstd[k] - sum((dy * rstd / n)[i] * (1 + (x̂ * rstd)[i] *
    (x[k] - mean[i])))`` over all i in the window around k, where n[i] is the number of elements in
    the window around i. The error of an element is that of its own terms: it does not grow with
    the terms of its neighbours, such as those on the other side of an edge.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x, dy = np.asarray([1.0, 2.0, 6.0]), np.asarray([0.0, 1.0, 0.0])
    >>> y, mean, rstd = ln.local_contrast_norm_forward(x, size=3, spatial_axes=0)
    >>> ln.local_contrast_norm_backward(dy, x, mean, rstd, size=3, spatial_axes=0).dx.round(4)
    array([-0.2204,  0.2755, -0.0551])
    """
    func_name = "local_contrast_norm_backward"
    plan = _plan_backward(func_name, dy, x, mean, rstd, size, spatial_axes, need)
    if not need:
        return LocalContrastGradients(None)
    if plan.call.has_kernel:
        return LocalContrastGradients(*plan.kernel_results(dy, x, rstd))
    return LocalContrastGradients(windows_backward(dy, x, rstd, axes=plan.axes, size=plan.size))
