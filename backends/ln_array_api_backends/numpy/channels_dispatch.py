"""From a spec to compiled kernels for channels: in pieces, or as columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ln_array_api.backend import ChannelsSpec, Primitive

from . import channels, columns_dispatch
from .call_context import CallContext
from .columns_dispatch import COLUMNS
from .config import ITEMSIZE, should_use_non_temporal
from .tasks import boolean, real

#: Smallest number of adjacent elements of a channel for which it is processed as pieces: if its
#: columns are few enough for tables, and if they are not.
SHORT, SHORT_IF_MANY = 64, 16


def is_by_columns(spec: ChannelsSpec) -> bool:
    """Return whether rows are processed with all channels, and not channel by channel."""
    _, c, s = spec.shape
    return s < (SHORT if c * s <= COLUMNS else SHORT_IF_MANY)


def uses_non_temporal(spec: ChannelsSpec) -> bool:
    """Return whether results are written with non-temporal stores."""
    _, c, s = spec.shape
    size = math.prod(spec.shape) * ITEMSIZE[spec.dtype]
    together = (c * s if is_by_columns(spec) else s) * ITEMSIZE[spec.dtype]
    return should_use_non_temporal(size // together, size)


def prepare(primitive: Primitive, spec: ChannelsSpec) -> Callable[..., Any]:
    """Return the kernel of a channels primitive: a function of the arrays."""
    by_columns = is_by_columns(spec)
    samples, c, s = spec.shape
    shape = (samples, c * s) if by_columns else spec.shape
    context = CallContext(spec, shape, c, non_temporal=uses_non_temporal(spec))
    if primitive == "channels_forward":
        run = columns_dispatch.forward(context, s) if by_columns else _forward(context)
        return _forward_call(context, run, c)
    if primitive == "channels_inference":
        run = columns_dispatch.inference(context, s) if by_columns else _inference(context)
        return _inference_call(context, run)
    run = columns_dispatch.backward(context, s) if by_columns else _backward(context)
    return _backward_call(context, run, c)


def _forward_call(
    context: CallContext, run: Callable[..., None], channels: int
) -> Callable[..., Any]:
    def call(x: Any, gamma: Any, beta: Any) -> Any:
        y = context.empty(x.dtype)
        statistics = [context.new(channels) for _ in range(3)]
        run(x, gamma, beta, y, *statistics)
        return y.reshape(x.shape), *statistics

    return call


def _inference_call(context: CallContext, run: Callable[..., None]) -> Callable[..., Any]:
    def call(x: Any, mean: Any, var: Any, gamma: Any, beta: Any) -> Any:
        y = context.empty(x.dtype)
        run(x, mean, var, gamma, beta, y)
        return y.reshape(x.shape)

    return call


def _backward_call(
    context: CallContext, run: Callable[..., None], channels: int
) -> Callable[..., Any]:
    need_dx, need_dgamma, need_dbeta = context.spec.need

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = context.empty(x.dtype) if need_dx else None
        dgamma = context.new(channels) if need_dgamma else None
        dbeta = context.new(channels) if need_dbeta else None
        run(dy, x, mean, rstd, gamma, dx, dgamma, dbeta)
        return None if dx is None else dx.reshape(x.shape), dgamma, dbeta

    return call


def _forward(context: CallContext) -> Callable[..., None]:
    c = context.shape[1]
    return context.bind(
        channels.forward_task,
        c,
        *(context.x, context.gamma, context.beta, context.x, *[context.acc(c)] * 3),
        *(real(context.spec.epsilon), boolean(context.non_temporal)),
    )


def _inference(context: CallContext) -> Callable[..., None]:
    samples, c, _ = context.shape
    return context.bind(
        channels.inference_task,
        samples * c,
        *(context.x, *[context.acc(c)] * 2, context.gamma, context.beta, context.x),
        *(real(context.spec.epsilon), boolean(context.non_temporal)),
    )


def _backward(context: CallContext) -> Callable[..., None]:
    c = context.shape[1]
    return context.bind(
        channels.backward_task,
        c,
        *(context.dy, context.x, *[context.acc(c)] * 2, context.gamma, *context.gradients(c)),
        boolean(context.non_temporal and context.spec.need[0]),
    )
