"""From a call over channels to its plan: the checks, the view of x as (B, C, S), the kernel."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from .._arrays import (
    ACCUMULATION,
    Array,
    Library,
    device_of,
    dtype_name,
    dtype_name_or_none,
    library_of,
)
from .._layout import reshape_contiguous, reshaper
from ..backend import GENERIC, Choice, choose
from ..kernels.channels import backward_over
from . import checks, parameters
from .plans import (
    GRADIENTS,
    Conversion,
    Plan,
    are_contiguous,
    cast_statistic,
    flat,
    have_acc_dtype,
    last_given,
    must_widen,
)
from .specs import ChannelsSpec, Primitive
from .views import RowsView, over_channels


def forward_plan(
    func_name: str,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    where: Array | None,
    channel_axis: int,
    epsilon: float,
    momentum: float,
) -> Plan:
    """Return the plan of a call in training; a wrong call raises here."""
    view, spec = _checked(func_name, x, channel_axis, gamma=gamma, beta=beta)
    checks.known_lengths(func_name, tuple(x.shape), range(x.ndim))
    _check_statistics(func_name, x, view, running_mean=running_mean, running_var=running_var)
    if spec.shape[0] * spec.shape[2] < 2:
        raise ValueError(
            f"{func_name}: x has shape {tuple(x.shape)}, which leaves a channel of axis "
            f"{view.plain_axes[0]} with no more than one value; training needs more, to have a "
            "variance"
        )
    checks.fraction(func_name, "momentum", momentum)
    if where is not None:
        checks.mask(func_name, where, x)
    spec = spec._replace(epsilon=checks.epsilon(func_name, epsilon, x.dtype))
    return _plan("channels_forward", spec, view, x, (x, gamma, beta), where=where)


def inference_plan(
    func_name: str,
    x: Array,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    channel_axis: int,
    epsilon: float,
) -> Plan:
    """Return the plan of a call with given statistics; a wrong call raises here."""
    view, spec = _checked(func_name, x, channel_axis, gamma=gamma, beta=beta)
    _check_statistics(func_name, x, view, mean=mean, var=var, is_required=True)
    spec = spec._replace(epsilon=checks.epsilon(func_name, epsilon, x.dtype))
    arrays = (x, mean, var, gamma, beta)
    return _plan("channels_inference", spec, view, x, arrays, acc_arrays=(mean, var))


def backward_plan(
    func_name: str,
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    gamma: Array | None,
    beta: Array | None,
    where: Array | None,
    channel_axis: int,
    need: tuple[str, ...],
) -> Plan:
    """Return the plan of a backward call; a wrong call raises here."""
    need = checks.need(func_name, need, GRADIENTS)
    view, spec = _checked(func_name, x, channel_axis, gamma=gamma, beta=beta)
    checks.known_lengths(func_name, tuple(x.shape), range(x.ndim))
    checks.gradient(func_name, x, dy=dy)
    checks.saved(func_name, x, spec.shape[1:2], mean=mean, rstd=rstd)
    if where is not None:
        checks.mask(func_name, where, x)
    widens = "dbeta" in need and must_widen(spec.dtype, gamma, beta)
    spec = spec._replace(
        dy=dtype_name_or_none(dy),
        gamma=ACCUMULATION[spec.dtype] if widens else spec.gamma,
        beta=None,
        need=("dx" in need, "dgamma" in need and gamma is not None, "dbeta" in need),
    )
    return _plan(
        "channels_backward",
        spec,
        view,
        x,
        (dy, x, mean, rstd, gamma),
        acc_arrays=(mean, rstd, x if gamma is None else gamma, beta),
        widens=widens,
        where=where,
    )


class ChannelsPlan(Plan):
    """A plan over channels, whose parameters may have the rank of x."""

    def __init__(self, view: RowsView, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._view = view

    def _fitted(self, gradient: Array | None, *like: Array | None) -> Array | None:
        if self._view.expanded is None or gradient is None:
            return gradient
        return parameters.fit_gradient(self._view, gradient, last_given(like))


def _plan(
    primitive: Primitive,
    spec: ChannelsSpec,
    view: RowsView,
    x: Array,
    arrays: tuple[Array | None, ...],
    *,
    acc_arrays: tuple[Array | None, ...] = (),
    widens: bool = False,
    where: Array | None = None,
) -> Plan:
    """Return the plan for x and such arrays, in the order in which the kernel takes them."""
    shape, library = tuple(x.shape), library_of(x)
    choice = _choice(primitive, spec, view, x, where)
    gives_dtypes = not choice.keeps_axes and have_acc_dtype(spec.dtype, acc_arrays)
    passthrough = gives_dtypes and shape == spec.shape and are_contiguous(arrays)
    conversions = _conversions(spec, shape, choice, library)
    flags = {"passthrough": passthrough, "gives_dtypes": gives_dtypes, "widens": widens}
    return ChannelsPlan(view, primitive, spec, choice, conversions, *arrays, **flags)


def _choice(
    primitive: Primitive, spec: ChannelsSpec, view: RowsView, x: Array, where: Array | None
) -> Choice:
    """Choose the kernel for a call; the generic one runs on arrays that keep their axes."""
    if library_of(x).lazy:
        reason = "chunked arrays compute nothing until asked"
    elif where is not None:
        reason = "kernels over channels take no mask"
    elif view.expanded is not None:
        reason = "kernels over channels take parameters of shape (C,)"
    else:
        choice = choose(primitive, spec)
        if choice.backend != "generic":
            return choice
        reason = choice.reason
    options = spec.options(primitive)
    kernel = partial(GENERIC[primitive], axis=view.plain_axes[0], **options)
    if primitive == "channels_backward" and (where is not None or view.expanded is not None):
        kernel = partial(
            backward_over,
            axis=view.plain_axes[0],
            parameter=view.parameter,
            parameter_axes=view.parameter_axes,
            **options,
        )
    return Choice(kernel, "generic", reason, keeps_axes=True)


def _conversions(
    spec: ChannelsSpec, shape: tuple[int, ...], choice: Choice, library: Library
) -> dict[str, Conversion]:
    """Return conversions for a kernel on (B, C, S), or for one on arrays that keep their axes."""

    def unchanged(values: Array) -> Array:
        return values

    def cast(values: Array) -> Array:
        return cast_statistic(values, spec.dtype)

    if choice.keeps_axes:
        return {
            "x": Conversion(unchanged, unchanged),
            "statistic": Conversion(cast, unchanged),
            "parameter": Conversion(unchanged, unchanged),
        }
    return {
        "x": Conversion(
            lambda x: reshape_contiguous(x, spec.shape, (), choice.ascontiguous),
            reshaper(library, shape),
            spec.shape,
        ),
        "statistic": Conversion(
            lambda values: flat(cast(values)), unchanged, spec.shape[1:2], ACCUMULATION[spec.dtype]
        ),
        "parameter": Conversion(flat, unchanged, spec.shape[1:2]),
    }


def _checked(
    func_name: str, x: Array, channel_axis: int, **given: Array | None
) -> tuple[RowsView, ChannelsSpec]:
    library = checks.array(func_name, "x", x)
    shape = tuple(x.shape)
    channel_axis = checks.integer(func_name, "channel_axis", channel_axis)
    axis = checks.channel_axis(func_name, channel_axis, shape)
    checks.known_lengths(func_name, shape, (axis,))
    view = parameters.checked(func_name, over_channels(shape, axis), x, **given)
    spec = ChannelsSpec(
        library=library.name,
        device=str(device_of(x)),
        shape=(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])),
        dtype=dtype_name(x.dtype),
        gamma=dtype_name_or_none(given["gamma"]),
        beta=dtype_name_or_none(given["beta"]),
    )
    return view, spec


def _check_statistics(
    func_name: str,
    x: Array,
    view: RowsView,
    *,
    is_required: bool = False,
    **statistics: Array | None,
) -> None:
    """Check statistics of shape (C,), given by name; unless they are required, they may be None."""
    for name, value in statistics.items():
        if value is not None or is_required:
            checks.operand(func_name, name, value, x, view.plain_parameter, view.shape_text)
