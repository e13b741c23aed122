"""From a spec to compiled kernels for channels, as `calls` for rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from ln_array_api.backend import ChannelsSpec, Primitive

from . import channels, columns, threads
from .calls import (
    ACCUMULATION,
    ITEMSIZE,
    array_type,
    compiled,
    empty_for,
    may_pay,
    may_stream,
    viewed_as,
)
from .simd import BYTES
from .sweeps import RUN

#: Elements of a channel that must lie together for it to be swept as pieces; and if its columns
#: are not more than so many, so that the tables for them stay in the second cache, how many then.
SHORT, COLUMNS, SHORT_IF_FEW = 16, 16384, 64
#: Blocks of rows with sums of their own, at most, and how many rows they have at least.
BLOCKS, ROWS = 32, 64

Kernel = Callable[..., None]


def prepare(primitive: Primitive, spec: ChannelsSpec) -> Callable[..., Any]:
    """What runs a call of a channels primitive, given the arrays alone."""
    make = {
        "channels_forward": _forward,
        "channels_inference": _inference,
        "channels_backward": _backward,
    }[primitive]
    return make(_Kind(spec))


def is_by_columns(spec: ChannelsSpec) -> bool:
    """Whether rows are swept with all channels beside each other, not a channel after the other."""
    _, c, s = spec.shape
    return s < (SHORT_IF_FEW if c * s <= COLUMNS else SHORT)


def streams(spec: ChannelsSpec) -> bool:
    """Whether results had better be stored past the cache."""
    _, c, s = spec.shape
    size = math.prod(spec.shape) * ITEMSIZE[spec.dtype]
    together = (c * s if is_by_columns(spec) else s) * ITEMSIZE[spec.dtype]
    return may_stream(size // together, size)


class _Kind:
    """What the kernels for a kind of call have in common."""

    def __init__(self, spec: ChannelsSpec) -> None:
        self.spec, self.shape = spec, spec.shape
        samples, c, s = spec.shape
        self.size = math.prod(spec.shape) * ITEMSIZE[spec.dtype]
        self.accumulation = ACCUMULATION.get(spec.dtype, "float32")
        self.single = np.dtype(self.accumulation)
        self.x = array_type(spec.dtype, 3)
        self.statistic = array_type(self.accumulation, 1)
        self.gamma, self.beta = array_type(spec.gamma, 1), array_type(spec.beta, 1)
        self.view, self.view_dy = viewed_as(spec.dtype), viewed_as(spec.dy)
        self.view_gamma, self.view_beta = viewed_as(spec.gamma), viewed_as(spec.beta)
        self.empty = empty_for(spec.shape, self.size)
        self.by_columns = is_by_columns(spec)
        self.streams = streams(spec)
        self.pays = may_pay(self.size)
        self.at_once = numba.config.NUMBA_NUM_THREADS if self.pays else 1
        width = BYTES // self.single.itemsize
        self.padded = -(-c * s // width) * width
        self.rows = -(-max(ROWS, -(-samples // BLOCKS)) // RUN) * RUN
        self.blocks = -(-samples // self.rows)

    def over(self, kernel: Any, parallel: Any, *arguments: Any) -> Callable[..., None]:
        """A function of what the kernels take, and of how many tasks there are."""
        alone = compiled(kernel, *arguments, types.int64, types.int64)
        together = compiled(parallel, *arguments, types.int64, types.int64) if self.pays else None

        def run(count: int, *arrays: Any) -> None:
            parts = min(count, self.at_once)
            if together is None or not threads.run(together, *arrays, count, parts):
                alone(*arrays, 0, count)

        return run

    def statistics(self, count: int) -> list[np.ndarray]:
        return [np.empty(self.shape[1], self.single) for _ in range(count)]

    def tables(self, count: int) -> np.ndarray:
        return np.empty(count * self.padded, self.single)

    def sums(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """So many sums of all columns for each block, and what they have lost."""
        length = self.blocks * count * self.padded
        return np.zeros(length, self.single), np.zeros(length, self.single)


def _forward(kind: _Kind) -> Callable[..., Any]:
    run = _forward_columns(kind) if kind.by_columns else _forward_pieces(kind)

    def call(x: Any, gamma: Any, beta: Any) -> Any:
        y = kind.empty(x.dtype)
        statistics = kind.statistics(3)
        run(kind.view(x), kind.view_gamma(gamma), kind.view_beta(beta), kind.view(y), *statistics)
        return y, *statistics

    return call


def _forward_pieces(kind: _Kind) -> Callable[..., None]:
    given = (kind.x, kind.gamma, kind.beta, kind.x, *[kind.statistic] * 3)
    over = kind.over(
        channels.forward,
        channels.forward_in_parallel,
        *(*given, types.float64, types.boolean),
    )
    epsilon, streams, count = kind.spec.epsilon, kind.streams, kind.shape[1]
    return lambda *arrays: over(count, *arrays, epsilon, streams)


def _forward_columns(kind: _Kind) -> Callable[..., None]:
    table_type = kind.statistic
    guess = compiled(columns.guess, kind.x, table_type)
    sum_up = kind.over(
        columns.forward_sums,
        columns.forward_sums_in_parallel,
        *(kind.x, *[table_type] * 3, types.int64, types.int64),
    )
    given = (kind.x, kind.gamma, kind.beta, *[kind.statistic] * 3)
    settle = compiled(columns.settle_forward, *given, types.float64, *[table_type] * 3)
    write = _write(kind)

    def run(x: Any, gamma: Any, beta: Any, y: Any, *statistics: Any) -> None:
        table, (sums, lost) = kind.tables(columns.FORWARD_TABLES), kind.sums(2)
        guess(x, table)
        tasks = kind.blocks * kind.at_once
        sum_up(tasks, x, table, sums, lost, kind.rows, kind.at_once)
        settle(x, gamma, beta, *statistics, kind.spec.epsilon, table, sums, lost)
        write(kind.shape[0], x, y, table, kind.streams)

    return run


def _write(kind: _Kind) -> Callable[..., None]:
    arguments = (kind.x, kind.x, kind.statistic, types.boolean)
    return kind.over(columns.write, columns.write_in_parallel, *arguments)


def _inference(kind: _Kind) -> Callable[..., Any]:
    run = _inference_columns(kind) if kind.by_columns else _inference_pieces(kind)

    def call(x: Any, mean: Any, var: Any, gamma: Any, beta: Any) -> Any:
        y = kind.empty(x.dtype)
        parameters = kind.view_gamma(gamma), kind.view_beta(beta)
        run(kind.view(x), mean, var, *parameters, kind.view(y))
        return y

    return call


def _inference_pieces(kind: _Kind) -> Callable[..., None]:
    given = (kind.x, kind.statistic, kind.statistic, kind.gamma, kind.beta, kind.x)
    over = kind.over(
        channels.inference,
        channels.inference_in_parallel,
        *(*given, types.float64, types.boolean),
    )
    epsilon, streams, count = kind.spec.epsilon, kind.streams, kind.shape[0] * kind.shape[1]
    return lambda *arrays: over(count, *arrays, epsilon, streams)


def _inference_columns(kind: _Kind) -> Callable[..., None]:
    given = (kind.statistic, kind.statistic, kind.gamma, kind.beta)
    numbers = (types.float64, kind.statistic, types.int64)
    settle = compiled(columns.settle_inference, *given, *numbers)
    write = _write(kind)

    def run(x: Any, mean: Any, var: Any, gamma: Any, beta: Any, y: Any) -> None:
        table = kind.tables(columns.FORWARD_TABLES)
        settle(mean, var, gamma, beta, kind.spec.epsilon, table, kind.shape[2])
        write(kind.shape[0], x, y, table, kind.streams)

    return run


def _backward(kind: _Kind) -> Callable[..., Any]:
    run = _backward_columns(kind) if kind.by_columns else _backward_pieces(kind)
    need_dx, need_dgamma, need_dbeta = kind.spec.need

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = kind.empty(x.dtype) if need_dx else None
        dgamma = np.empty(kind.shape[1], kind.single) if need_dgamma else None
        dbeta = np.empty(kind.shape[1], kind.single) if need_dbeta else None
        target = None if dx is None else kind.view(dx)
        given = (kind.view_dy(dy), kind.view(x), mean, rstd, kind.view_gamma(gamma))
        run(*given, target, dgamma, dbeta)
        return dx, dgamma, dbeta

    return call


def _gradient_types(kind: _Kind) -> tuple[Any, Any, Any]:
    kinds = (kind.x, kind.statistic, kind.statistic)
    needed = zip(kinds, kind.spec.need, strict=True)
    dx, dgamma, dbeta = (each if need else types.none for each, need in needed)
    return dx, dgamma, dbeta


def _backward_pieces(kind: _Kind) -> Callable[..., None]:
    dy = array_type(kind.spec.dy, 3)
    given = (dy, kind.x, kind.statistic, kind.statistic, kind.gamma, *_gradient_types(kind))
    over = kind.over(channels.backward, channels.backward_in_parallel, *given, types.boolean)
    streams, count = kind.streams and kind.spec.need[0], kind.shape[1]
    return lambda *arrays: over(count, *arrays, streams)


def _backward_columns(kind: _Kind) -> Callable[..., None]:
    dy, table_type = array_type(kind.spec.dy, 3), kind.statistic
    _, dgamma, dbeta = _gradient_types(kind)
    know = compiled(columns.know, kind.statistic, kind.statistic, table_type, types.int64)
    sum_up = kind.over(
        columns.backward_sums,
        columns.backward_sums_in_parallel,
        *(dy, kind.x, *[table_type] * 3, types.int64, types.int64),
    )
    settle = compiled(columns.settle_backward, kind.x, kind.gamma, dgamma, dbeta, *[table_type] * 3)
    arguments = (dy, kind.x, kind.x, table_type, types.boolean)
    differentiate = kind.over(columns.differentiate, columns.differentiate_in_parallel, *arguments)

    def run(
        dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, dx: Any, dgamma: Any, dbeta: Any
    ) -> None:
        table, (sums, lost) = kind.tables(columns.BACKWARD_TABLES), kind.sums(3)
        know(mean, rstd, table, kind.shape[2])
        tasks = kind.blocks * kind.at_once
        sum_up(tasks, dy, x, table, sums, lost, kind.rows, kind.at_once)
        settle(x, gamma, dgamma, dbeta, table, sums, lost)
        if dx is not None:
            differentiate(kind.shape[0], dy, x, dx, table, kind.streams)

    return run
