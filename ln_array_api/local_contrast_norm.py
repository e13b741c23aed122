"""Local contrast normalisation: each element by the window around it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

from ._arrays import Array, Axis, dtype_name
from ._dispatch import checks
from ._dispatch.cache import plan_of
from ._dispatch.family import family_plan, operations_plan
from ._dispatch.plans import Plan
from ._dispatch.specs import FamilyPrimitive
from ._dispatch.views import over_axes
from .kernels.windows import windows_backward, windows_forward
from .layer_norm import EPSILON

#: Of the results of a forward call, those that are wanted.
_ONLY_Y, _ALL = (True, False, False), (True, True, True)


class LocalContrastForward(NamedTuple):
    """What `local_contrast_norm_forward` gives."""

    y: Array
    mean: Array
    rstd: Array


class LocalContrastGradients(NamedTuple):
    """What `local_contrast_norm_backward` gives; None stands for what was not asked for."""

    dx: Array | None


def _checked(
    func_name: str, x: Array, size: int, spatial_axes: Axis
) -> tuple[tuple[int, ...], int]:
    """Return the axes, not negative, and the size."""
    checks.array(func_name, "x", x)
    axis = checks.canonical_axis(func_name, spatial_axes, "spatial_axes")
    axes = checks.axes(func_name, axis, tuple(x.shape), argument="spatial_axes")
    checks.known_lengths(func_name, tuple(x.shape), range(x.ndim))
    size = checks.integer(func_name, "size", size)
    if size < 1 or size % 2 == 0:
        raise ValueError(
            f"{func_name}: size must be odd and at least 1, not {size}, since a window has a centre"
        )
    return axes, size


def _plan(
    primitive: FamilyPrimitive,
    x: Array,
    arrays: tuple[Array, ...],
    axes: tuple[int, ...],
    generic: Any,
    **details: Any,
) -> Plan:
    """Return the plan for x as (P, H, W), where H is 1 if there is one spatial axis."""
    if len(axes) > 2:
        return operations_plan(x, "windows extend along more than two axes", generic)
    shape = tuple(x.shape)
    order = (*(axis for axis in range(x.ndim) if axis not in axes), *axes)
    planes = math.prod(shape[axis] for axis in order[: -len(axes)])
    spatial = [shape[axis] for axis in axes]
    view = over_axes(shape, axes)._replace(
        rows=(planes, *[1] * (2 - len(axes)), *spatial),
        permutation=() if order == tuple(range(x.ndim)) else order,
    )
    return family_plan(primitive, x, arrays, view, generic, **details)


def _forward_plan(
    func_name: str,
    x: Array,
    size: int,
    spatial_axes: Axis,
    epsilon: float,
    need: tuple[bool, bool, bool],
) -> Plan:
    """Return the plan of a forward call; `need` tells which results are wanted."""
    axes, size = _checked(func_name, x, size, spatial_axes)
    epsilon = checks.epsilon(func_name, epsilon, x.dtype)
    generic = partial(windows_forward, axes=axes, size=size, epsilon=epsilon)
    return _plan("windows_forward", x, (x,), axes, generic, size=size, epsilon=epsilon, need=need)


def _backward_plan(
    func_name: str,
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    size: int,
    spatial_axes: Axis,
    need: tuple[str, ...],
) -> Plan:
    checks.need(func_name, need, LocalContrastGradients._fields)
    axes, size = _checked(func_name, x, size, spatial_axes)
    checks.gradient(func_name, x, dy=dy)
    checks.saved(func_name, x, tuple(x.shape), mean=mean, rstd=rstd)
    generic = partial(windows_backward, axes=axes, size=size)
    return _plan(
        "windows_backward", x, (dy, x, rstd), axes, generic, size=size, dy=dtype_name(dy.dtype)
    )


def local_contrast_norm(
    x: Array, /, *, size: int = 9, spatial_axes: Axis = (-2, -1), epsilon: float = EPSILON
) -> Array:
    """Normalise each element of x to zero mean and unit variance in the window around it.

    Computes ``(x - mean) / sqrt(var + epsilon)``, where mean and var, the biased variance, are
    taken over a window of so many elements on each spatial axis, with the element in its centre. At
    the border windows are cut: statistics are those of the elements that are there.

    Parameters
    ----------
    x
        As for `layer_norm`, as are the errors.
    size : int, default: 9
        The length of a window along each spatial axis; odd.
    spatial_axes : int or tuple of ints, default: (-2, -1)
        The axes that windows extend along, in any place and order; an int for one.
    epsilon : float, default: 1e-5
        As for `layer_norm`; a window is a row of its own.

    Returns
    -------
    array
        The contrasts, of x's library, device, shape and dtype.

    Raises
    ------
    ValueError
        Also if size is not odd.

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
    options = size, spatial_axes, epsilon, _ONLY_Y
    return plan_of(_forward_plan, "local_contrast_norm", (x,), *options).run(x)[0]


def local_contrast_norm_forward(
    x: Array, /, *, size: int = 9, spatial_axes: Axis = (-2, -1), epsilon: float = EPSILON
) -> LocalContrastForward:
    """Local contrast norm, with the statistics that its gradient needs.

    Parameters
    ----------
    x, size, spatial_axes, epsilon
        As for `local_contrast_norm`, as are the errors.

    Returns
    -------
    y, mean, rstd : array
        As from `layer_norm_forward`, all of x's shape: those of the window around each element.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([1.0, 2.0, 3.0, 103.0, 104.0])
    >>> ln.local_contrast_norm_forward(x, size=3, spatial_axes=0).mean
    array([  1.5,   2. ,  36. ,  70. , 103.5])
    """
    options = size, spatial_axes, epsilon, _ALL
    plan = plan_of(_forward_plan, "local_contrast_norm_forward", (x,), *options)
    return LocalContrastForward(*plan.run(x))


def local_contrast_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    /,
    *,
    size: int = 9,
    spatial_axes: Axis = (-2, -1),
    need: tuple[str, ...] = LocalContrastGradients._fields,
) -> LocalContrastGradients:
    """Gradient of local contrast norm with respect to x.

    Parameters
    ----------
    dy, x, need
        As for `layer_norm_backward`, as are the errors; dx is the only gradient.
    mean, rstd : array
        From `local_contrast_norm_forward`. `mean` is checked but not used: it is rounded, so the
        means are recomputed from x.
    size, spatial_axes
        As in the forward pass.

    Returns
    -------
    dx : array or None
        Like x.

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
    arrays, options = (dy, x, mean, rstd), (size, spatial_axes, need)
    plan = plan_of(_backward_plan, "local_contrast_norm_backward", arrays, *options)
    return LocalContrastGradients(plan.run(dy, x, rstd) if need else None)
