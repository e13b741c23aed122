"""From a call to a kernel over channels: the checks, the view as (B, C, S), the plan.

Plans are made once for each kind of call and kept, as those over rows are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from . import _check
from ._arrays import (
    ACCUMULATION,
    Array,
    device_of,
    dtype_name,
    dtype_name_or_none,
    library_of,
    reshape_contiguous,
    signatures,
)
from ._plans import GRADIENTS, cast_statistic, finish_gradient, must_widen, widened
from .backend import (
    GENERIC,
    ChannelsSpec,
    Choice,
    Primitive,
    cache_plan,
    choose,
    plans,
    requested_backend,
)


class ChannelsPlan:
    """How a kind of call runs.

    X goes to a kernel as (B, C, S) in C order: as it is, as a view, or as a copy. It keeps its axes
    where the kernel is generic.
    """

    def __init__(
        self,
        primitive: Primitive,
        spec: ChannelsSpec,
        axis: int,
        x: Array,
        *others: Array | None,
        acc_arrays: tuple[Array | None, ...] = (),
        widens: bool = False,
    ) -> None:
        """Plan for calls with such arrays.

        `acc_arrays`: arrays that the kernel takes in the accumulation dtype, or whose gradient it
        returns in that dtype.
        `widens` is whether gamma is widened, as over rows.
        """
        self.primitive, self.spec, self.widens = primitive, spec, widens
        self.shape = tuple(x.shape)
        self.choice = _choice(primitive, spec, axis, x)
        self.kernel: Callable[..., Any] = self.choice.kernel
        # Whether arrays go to the kernel, and its results to the caller, unchanged.
        self.passthrough = (
            not self.choice.keeps_axes
            and self.shape == spec.shape
            and all(each is None or library_of(each).is_contiguous(each) for each in (x, *others))
            and {dtype_name_or_none(each) for each in acc_arrays}
            <= {None, ACCUMULATION[spec.dtype]}
            and not widens
        )

    def _to_kernel(self, x: Array) -> Array:
        if self.choice.keeps_axes:
            return x
        return reshape_contiguous(x, self.spec.shape, (), self.choice.ascontiguous)

    def _from_kernel(self, x: Array) -> Array:
        return x if self.choice.keeps_axes else library_of(x).reshape(x, self.shape)

    def _parameter(self, values: Array | None) -> Array | None:
        if values is None or self.choice.keeps_axes:
            return values
        return reshape_contiguous(values, (self.spec.shape[1],))

    def _statistic(self, values: Array) -> Array | None:
        return self._parameter(cast_statistic(library_of(values).xp, values, self.spec.dtype))

    def forward(
        self, x: Array, gamma: Array | None, beta: Array | None
    ) -> tuple[Array, Array, Array, Array]:
        """Return y, mean, var and rstd."""
        if self.passthrough:
            return self.kernel(x, gamma, beta)  # type: ignore[no-any-return]
        y, mean, var, rstd = self.kernel(
            self._to_kernel(x), self._parameter(gamma), self._parameter(beta)
        )
        return self._from_kernel(y), mean, var, rstd

    def inference(
        self, x: Array, mean: Array, var: Array, gamma: Array | None, beta: Array | None
    ) -> Array:
        if self.passthrough:
            return self.kernel(x, mean, var, gamma, beta)
        y = self.kernel(
            self._to_kernel(x),
            self._statistic(mean),
            self._statistic(var),
            self._parameter(gamma),
            self._parameter(beta),
        )
        return self._from_kernel(y)

    def backward(
        self,
        dy: Array,
        x: Array,
        mean: Array,
        rstd: Array,
        gamma: Array | None,
        beta: Array | None = None,
    ) -> tuple[Array | None, Array | None, Array | None]:
        if self.passthrough:
            return self.kernel(dy, x, mean, rstd, gamma)  # type: ignore[no-any-return]
        xp, channels = library_of(x).xp, (self.spec.shape[1],)
        scale = widened(xp, gamma, beta, self.spec.dtype) if self.widens else gamma
        dx, dgamma, dbeta = self.kernel(
            self._to_kernel(dy),
            self._to_kernel(x),
            self._statistic(mean),
            self._statistic(rstd),
            self._parameter(scale),
        )
        return (
            None if dx is None else self._from_kernel(dx),
            finish_gradient(xp, dgamma, channels, x, gamma),
            finish_gradient(xp, dbeta, channels, x, gamma, beta),
        )


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
) -> ChannelsPlan:
    """The plan of a forward call, made if there is none; a wrong call raises here."""
    arrays = (x, gamma, beta, running_mean, running_var)
    if type(channel_axis) is not int:  # 1.0 would find the plan for 1
        channel_axis = _check.integer(func_name, "channel_axis", channel_axis)
    key, plan = _lookup_plan("channels_forward", arrays, channel_axis, epsilon, momentum)
    if plan is None:
        axis, spec = _checked(func_name, x, channel_axis, gamma=gamma, beta=beta)
        _check.known_lengths(func_name, tuple(x.shape), range(x.ndim))
        for name, values in (("running_mean", running_mean), ("running_var", running_var)):
            _check_optional_param(name, func_name, values, x, axis)
        if spec.shape[0] * spec.shape[2] < 2:
            raise ValueError(
                f"{func_name}: x has shape {tuple(x.shape)}, which leaves a channel of axis {axis} "
                "with no more than one value; training needs more, to have a variance"
            )
        _check.fraction(func_name, "momentum", momentum)
        spec = spec._replace(epsilon=_check.epsilon(func_name, epsilon, x.dtype))
        plan = ChannelsPlan("channels_forward", spec, axis, x, gamma, beta)
        cache_plan(key, plan, x)
    return plan


def inference_plan(
    func_name: str,
    x: Array,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    channel_axis: int,
    epsilon: float,
) -> ChannelsPlan:
    """The plan of a call with given statistics, made if there is none; a wrong call raises here."""
    arrays = (x, mean, var, gamma, beta)
    if type(channel_axis) is not int:  # 1.0 would find the plan for 1
        channel_axis = _check.integer(func_name, "channel_axis", channel_axis)
    key, plan = _lookup_plan("channels_inference", arrays, channel_axis, epsilon)
    if plan is None:
        axis, spec = _checked(func_name, x, channel_axis, gamma=gamma, beta=beta)
        for name, values in (("mean", mean), ("var", var)):
            _check_param(name, func_name, values, x, axis)
        spec = spec._replace(epsilon=_check.epsilon(func_name, epsilon, x.dtype))
        plan = ChannelsPlan("channels_inference", spec, axis, *arrays, acc_arrays=(mean, var))
        cache_plan(key, plan, x)
    return plan


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
) -> ChannelsPlan:
    """The plan of a backward call, made if there is none; a wrong call raises here."""
    arrays = (x, dy, mean, rstd, gamma)
    if type(need) is not tuple:
        need = _check.need(func_name, need, GRADIENTS)
    if type(channel_axis) is not int:  # 1.0 would find the plan for 1
        channel_axis = _check.integer(func_name, "channel_axis", channel_axis)
    key, plan = _lookup_plan("channels_backward", (*arrays, beta), channel_axis, need)
    if plan is None:
        _check.need(func_name, need, GRADIENTS)
        axis, spec = _checked(func_name, x, channel_axis, gamma=gamma)
        _check.known_lengths(func_name, tuple(x.shape), range(x.ndim))
        _check.operand(func_name, "dy", dy, x, tuple(x.shape), "the shape of x")
        shape_text = f"as {func_name.removesuffix('_backward')}_forward gives it"
        for name, values in (("mean", mean), ("rstd", rstd)):
            dtype, shape = ACCUMULATION[spec.dtype], spec.shape[1:2]
            _check.operand(func_name, name, values, x, shape, shape_text, dtype)
        _check_optional_param("beta", func_name, beta, x, axis)
        widens = "dbeta" in need and must_widen(spec.dtype, gamma, beta)
        spec = spec._replace(
            dy=dtype_name_or_none(dy),
            gamma=ACCUMULATION[spec.dtype] if widens else spec.gamma,
            need=("dx" in need, "dgamma" in need and gamma is not None, "dbeta" in need),
        )
        acc_arrays = (mean, rstd, x if gamma is None else gamma, beta)
        plan = ChannelsPlan(
            "channels_backward", spec, axis, *arrays, acc_arrays=acc_arrays, widens=widens
        )
        cache_plan(key, plan, x)
    return plan


def _lookup_plan(
    primitive: Primitive, arrays: tuple[Array | None, ...], *options: Hashable
) -> tuple[Hashable, ChannelsPlan | None]:
    """Return the key of a call and its cached plan; None for either where there is none."""
    find = signatures
    try:
        key = (
            primitive,
            options,
            requested_backend(),
            *[find[type(each)](each) for each in arrays],
        )
        return key, plans.get(key)
    except (KeyError, RuntimeError, TypeError):  # a type not seen before, or what the checks refuse
        return None, None


def _checked(
    func_name: str, x: Array, channel_axis: int, **parameters: Array | None
) -> tuple[int, ChannelsSpec]:
    library = _check.array(func_name, "x", x)
    shape = tuple(x.shape)
    axis = _check.channel_axis(func_name, channel_axis, shape)
    _check.known_lengths(func_name, shape, (axis,))
    for name, values in parameters.items():
        _check_optional_param(name, func_name, values, x, axis)
    spec = ChannelsSpec(
        library=library.name,
        device=str(device_of(x)),
        shape=(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])),
        dtype=dtype_name(x.dtype),
        gamma=dtype_name_or_none(parameters.get("gamma")),
        beta=dtype_name_or_none(parameters.get("beta")),
    )
    return axis, spec


def _check_optional_param(
    name: str, func_name: str, values: Array | None, x: Array, axis: int
) -> None:
    if values is not None:
        _check_param(name, func_name, values, x, axis)


def _check_param(name: str, func_name: str, values: Array, x: Array, axis: int) -> None:
    shape_text = f"the number of channels, on axis {axis}"
    _check.operand(func_name, name, values, x, (x.shape[axis],), shape_text)
