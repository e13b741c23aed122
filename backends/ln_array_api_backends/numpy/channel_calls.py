"""From a spec to compiled kernels for channels: in pieces, or as columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import types

from ln_array_api.backend import ChannelsSpec, Primitive

from . import channels, column_calls
from .calls import ITEMSIZE, may_stream
from .column_calls import COLUMNS
from .kinds import Kind

#: Elements of a channel that must lie together for it to be swept as pieces, if its columns are
#: few enough for tables; and if they are not.
SHORT, SHORT_IF_MANY = 64, 16


def is_by_columns(spec: ChannelsSpec) -> bool:
    """Whether rows are swept with all channels beside each other, not a channel after the other."""
    _, c, s = spec.shape
    return s < (SHORT if c * s <= COLUMNS else SHORT_IF_MANY)


def streams(spec: ChannelsSpec) -> bool:
    """Whether results had better be stored past the cache."""
    _, c, s = spec.shape
    size = math.prod(spec.shape) * ITEMSIZE[spec.dtype]
    together = (c * s if is_by_columns(spec) else s) * ITEMSIZE[spec.dtype]
    return may_stream(size // together, size)


def prepare(primitive: Primitive, spec: ChannelsSpec) -> Callable[..., Any]:
    """What runs a call of a channels primitive, given the arrays alone."""
    by_columns = is_by_columns(spec)
    samples, c, s = spec.shape
    kind = Kind(spec, (samples, c * s) if by_columns else spec.shape, streams(spec))
    if primitive == "channels_forward":
        run = column_calls.forward(kind, s) if by_columns else _forward(kind)
        return _forward_call(kind, run, c)
    if primitive == "channels_inference":
        run = column_calls.inference(kind, s) if by_columns else _inference(kind)
        return _inference_call(kind, run)
    run = column_calls.backward(kind, s) if by_columns else _backward(kind)
    return _backward_call(kind, run, c)


def _forward_call(kind: Kind, run: Callable[..., None], channels: int) -> Callable[..., Any]:
    shape = kind.shape

    def call(x: Any, gamma: Any, beta: Any) -> Any:
        y = kind.empty(x.dtype)
        statistics = [kind.new(channels) for _ in range(3)]
        parameters = kind.view_gamma(gamma), kind.view_beta(beta)
        run(kind.view(x.reshape(shape)), *parameters, kind.view(y), *statistics)
        return y.reshape(x.shape), *statistics

    return call


def _inference_call(kind: Kind, run: Callable[..., None]) -> Callable[..., Any]:
    shape = kind.shape

    def call(x: Any, mean: Any, var: Any, gamma: Any, beta: Any) -> Any:
        y = kind.empty(x.dtype)
        parameters = kind.view_gamma(gamma), kind.view_beta(beta)
        run(kind.view(x.reshape(shape)), mean, var, *parameters, kind.view(y))
        return y.reshape(x.shape)

    return call


def _backward_call(kind: Kind, run: Callable[..., None], channels: int) -> Callable[..., Any]:
    shape = kind.shape
    need_dx, need_dgamma, need_dbeta = kind.spec.need

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = kind.empty(x.dtype) if need_dx else None
        dgamma = kind.new(channels) if need_dgamma else None
        dbeta = kind.new(channels) if need_dbeta else None
        target = None if dx is None else kind.view(dx)
        given = kind.view_dy(dy.reshape(shape)), kind.view(x.reshape(shape)), mean, rstd
        run(*given, kind.view_gamma(gamma), target, dgamma, dbeta)
        return None if dx is None else dx.reshape(x.shape), dgamma, dbeta

    return call


def _forward(kind: Kind) -> Callable[..., None]:
    given = (kind.x, kind.gamma, kind.beta, kind.x, *[kind.single_type] * 3)
    over = kind.over(
        channels.forward,
        channels.forward_in_parallel,
        *(*given, types.float64, types.boolean),
    )
    count, constants = kind.shape[1], (kind.spec.epsilon, kind.streams)
    return lambda *arrays: over(count, *arrays, *constants)


def _inference(kind: Kind) -> Callable[..., None]:
    given = (kind.x, *[kind.single_type] * 2, kind.gamma, kind.beta, kind.x)
    over = kind.over(
        channels.inference,
        channels.inference_in_parallel,
        *(*given, types.float64, types.boolean),
    )
    count, constants = kind.shape[0] * kind.shape[1], (kind.spec.epsilon, kind.streams)
    return lambda *arrays: over(count, *arrays, *constants)


def _backward(kind: Kind) -> Callable[..., None]:
    given = (kind.dy, kind.x, *[kind.single_type] * 2, kind.gamma, *kind.gradient_types())
    over = kind.over(channels.backward, channels.backward_in_parallel, *given, types.boolean)
    count, streams = kind.shape[1], kind.streams and kind.spec.need[0]
    return lambda *arrays: over(count, *arrays, streams)
