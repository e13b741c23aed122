"""From a call over channels to its plan: the checks, the view of x as (B, C, S), the kernel."""

from __future__ import annotations

import math
from functools import partial

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
from . import checks
from .plans import (
    GRADIENTS,
    Conversion,
    Plan,
    are_contiguous,
    cast_statistic,
    flat,
    have_acc_dtype,
    must_widen,
)
from .specs import ChannelsSpec, Primitive


def forward_plan(
    func_name: str,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    channel_axis: int,
    epsilon: float,
    momentum: float,
) -> Plan:
    """Return the plan of a call in training; a wrong call raises here."""
    axis, spec = _checked(func_name, x, channel_axis, optional={"gamma": gamma, "beta": beta})
    checks.known_lengths(func_name, tuple(x.shape), range(x.ndim))
    _check_params(
        func_name, x, axis, optional={"running_mean": running_mean, "running_var": running_var}
    )
    if spec.shape[0] * spec.shape[2] < 2:
        raise ValueError(
            f"{func_name}: x has shape {tuple(x.shape)}, which leaves a channel of axis {axis} "
            "with no more than one value; training needs more, to have a variance"
        )
    checks.fraction(func_name, "momentum", momentum)
    spec = spec._replace(epsilon=checks.epsilon(func_name, epsilon, x.dtype))
    return _plan("channels_forward", spec, axis, x, (x, gamma, beta))


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
    axis, spec = _checked(func_name, x, channel_axis, optional={"gamma": gamma, "beta": beta})
    _check_params(func_name, x, axis, required={"mean": mean, "var": var})
    spec = spec._replace(epsilon=checks.epsilon(func_name, epsilon, x.dtype))
    arrays = (x, mean, var, gamma, beta)
    return _plan("channels_inference", spec, axis, x, arrays, acc_arrays=(mean, var))


def backward_plan(
    func_name: str,
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    gamma: Array | None,
    beta: Array | None,
    channel_axis: int,
    need: tuple[str, ...],
) -> Plan:
    """Return the plan of a backward call; a wrong call raises here."""
    need = checks.need(func_name, need, GRADIENTS)
    axis, spec = _checked(func_name, x, channel_axis, optional={"gamma": gamma})
    checks.known_lengths(func_name, tuple(x.shape), range(x.ndim))
    checks.gradient(func_name, x, dy=dy)
    checks.saved(func_name, x, spec.shape[1:2], mean=mean, rstd=rstd)
    _check_params(func_name, x, axis, optional={"beta": beta})
    widens = "dbeta" in need and must_widen(spec.dtype, gamma, beta)
    spec = spec._replace(
        dy=dtype_name_or_none(dy),
        gamma=ACCUMULATION[spec.dtype] if widens else spec.gamma,
        need=("dx" in need, "dgamma" in need and gamma is not None, "dbeta" in need),
    )
    return _plan(
        "channels_backward",
        spec,
        axis,
        x,
        (dy, x, mean, rstd, gamma),
        acc_arrays=(mean, rstd, x if gamma is None else gamma, beta),
        widens=widens,
    )


def _plan(
    primitive: Primitive,
    spec: ChannelsSpec,
    axis: int,
    x: Array,
    arrays: tuple[Array | None, ...],
    *,
    acc_arrays: tuple[Array | None, ...] = (),
    widens: bool = False,
) -> Plan:
    """Return the plan for x and such arrays, in the order in which the kernel takes them."""
    shape, library = tuple(x.shape), library_of(x)
    choice = _choice(primitive, spec, axis, x)
    gives_dtypes = not choice.keeps_axes and have_acc_dtype(spec.dtype, acc_arrays)
    passthrough = gives_dtypes and shape == spec.shape and are_contiguous(arrays)
    conversions = _conversions(spec, shape, choice, library)
    flags = {"passthrough": passthrough, "gives_dtypes": gives_dtypes, "widens": widens}
    return Plan(primitive, spec, choice, conversions, *arrays, **flags)


def _choice(primitive: Primitive, spec: ChannelsSpec, axis: int, x: Array) -> Choice:
    """Choose the kernel for a call; the generic one runs on arrays that keep their axes."""
    if library_of(x).lazy:
        reason = "chunked arrays compute nothing until asked"
    else:
        choice = choose(primitive, spec)
        if choice.backend != "generic":
            return choice
        reason = choice.reason
    kernel = partial(GENERIC[primitive], axis=axis, **spec.options(primitive))
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
    func_name: str, x: Array, channel_axis: int, optional: dict[str, Array | None]
) -> tuple[int, ChannelsSpec]:
    library = checks.array(func_name, "x", x)
    shape = tuple(x.shape)
    channel_axis = checks.integer(func_name, "channel_axis", channel_axis)
    axis = checks.channel_axis(func_name, channel_axis, shape)
    checks.known_lengths(func_name, shape, (axis,))
    _check_params(func_name, x, axis, optional=optional)
    spec = ChannelsSpec(
        library=library.name,
        device=str(device_of(x)),
        shape=(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])),
        dtype=dtype_name(x.dtype),
        gamma=dtype_name_or_none(optional.get("gamma")),
        beta=dtype_name_or_none(optional.get("beta")),
    )
    return axis, spec


def _check_params(
    func_name: str,
    x: Array,
    axis: int,
    *,
    required: dict[str, Array] | None = None,
    optional: dict[str, Array | None] | None = None,
) -> None:
    """Check parameters and statistics of shape (C,), given by name; optional ones may be None."""
    present = {name: value for name, value in (optional or {}).items() if value is not None}
    for name, value in {**(required or {}), **present}.items():
        shape_text = f"the number of channels, on axis {axis}"
        checks.operand(func_name, name, value, x, (x.shape[axis],), shape_text)
