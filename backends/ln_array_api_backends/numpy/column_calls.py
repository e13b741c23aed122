"""From a spec to compiled kernels for columns: batch norm's channels, and groups of channels last.

Groups of channels last lie as columns of each sample: group norm and instance norm read them there,
instead of bringing rows together first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from ln_array_api.backend import Layout, Primitive, RowsSpec

from . import columns
from .calls import ITEMSIZE, array_type, compiled, may_stream
from .gradient_sums import add_up
from .kinds import Kind
from .simd import BYTES
from .sweeps import RUN

#: Columns of which the tables stay in the second cache.
COLUMNS = 16384
#: Blocks of rows with sums of their own, at most, and how many rows they have at least.
BLOCKS, ROWS = 32, 64


def _padded(kind: Kind) -> int:
    """How many numbers a table has."""
    width = BYTES // kind.single.itemsize
    return -(-kind.shape[1] // width) * width


def sums_types(kind: Kind) -> tuple[Any, Any]:
    """The types of sums and of what they have lost, which is absent beside float32."""
    sums = array_type("float64", 1)
    return sums, sums if kind.single == np.float64 else types.none


class _Sums:
    """Sums over all rows, in blocks of them, and parts of the columns."""

    def __init__(self, kind: Kind, names: int, kernels: tuple[Any, Any], *arrays: Any) -> None:
        m = kind.shape[0]
        self.rows = -(-max(ROWS, -(-m // BLOCKS)) // RUN) * RUN
        blocks = -(-m // self.rows)
        self.m, self.parts, self.tasks = m, kind.at_once, blocks * kind.at_once
        self.length = blocks * names * _padded(kind)
        tables = kind.single_type, *sums_types(kind)
        self._over = kind.over(*kernels, *arrays, *tables, *[types.int64] * 4)
        self.loses = kind.single == np.float64

    def of(self, table: np.ndarray, *arrays: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """The sums, and what they have lost."""
        sums, lost = np.zeros(self.length), np.zeros(self.length) if self.loses else None
        self._over(self.tasks, *arrays, table, sums, lost, 0, self.m, self.rows, self.parts)
        return sums, lost


def forward(kind: Kind, n: int) -> Callable[..., None]:
    """Batch norm, of channels of n columns each."""
    m, single, integers = kind.shape[0], kind.single_type, [types.int64] * 4
    guess = compiled(columns.guess, kind.x, single, *integers[:3])
    sums = _Sums(kind, 2, (columns.forward_sums, columns.forward_sums_in_parallel), kind.x)
    given = (kind.x, kind.gamma, kind.beta, *[single] * 3, types.float64, single)
    settle = compiled(columns.settle_forward, *given, *sums_types(kind), *integers)
    write, epsilon, length = _write(kind), kind.spec.epsilon, columns.FORWARD_TABLES * _padded(kind)

    def run(x: Any, gamma: Any, beta: Any, y: Any, *statistics: Any) -> None:
        table = kind.new(length)
        guess(x, table, n, 0, m)
        settle(x, gamma, beta, *statistics, epsilon, table, *sums.of(table, x), n, n, 0, m)
        write(m, x, y, table, kind.streams)

    return run


def _write(kind: Kind) -> Callable[..., None]:
    arguments = (kind.x, kind.x, kind.single_type, types.boolean)
    return kind.over(columns.write, columns.write_in_parallel, *arguments)


def inference(kind: Kind, n: int) -> Callable[..., None]:
    """Batch norm by given statistics, of channels of n columns each."""
    single = kind.single_type
    given = (single, single, kind.gamma, kind.beta, types.float64, single, types.int64)
    settle = compiled(columns.settle_inference, *given)
    write, length = _write(kind), columns.FORWARD_TABLES * _padded(kind)

    def run(x: Any, mean: Any, var: Any, gamma: Any, beta: Any, y: Any) -> None:
        table = kind.new(length)
        settle(mean, var, gamma, beta, kind.spec.epsilon, table, n)
        write(kind.shape[0], x, y, table, kind.streams)

    return run


def backward(kind: Kind, n: int) -> Callable[..., None]:
    """The gradients of batch norm, of channels of n columns each."""
    m, single, integers = kind.shape[0], kind.single_type, [types.int64] * 4
    dx, dgamma, dbeta = kind.gradient_types()
    know = compiled(columns.know, kind.x, *[single] * 3, *integers[:3])
    kernels = (columns.backward_sums, columns.backward_sums_in_parallel)
    sums = _Sums(kind, 3, kernels, kind.dy, kind.x)
    given = (kind.x, kind.gamma, dgamma, dbeta, single, *sums_types(kind))
    settle = compiled(columns.settle_backward, *given, *integers)
    differentiate: Any = None
    if dx is not types.none:
        arguments = (kind.dy, kind.x, dx, single, types.boolean)
        kernels = (columns.differentiate, columns.differentiate_in_parallel)
        differentiate = kind.over(*kernels, *arguments)
    length = columns.BACKWARD_TABLES * _padded(kind)

    def run(
        dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, dx: Any, dgamma: Any, dbeta: Any
    ) -> None:
        table = kind.new(length)
        know(x, mean, rstd, table, n, 0, m)
        settle(x, gamma, dgamma, dbeta, table, *sums.of(table, dy, x), n, n, 0, m)
        if dx is not None:
            differentiate(m, dy, x, dx, table, kind.streams)

    return run


def prepare_groups(
    primitive: Primitive, spec: RowsSpec, layout: Layout
) -> tuple[Callable[..., Any], str] | None:
    """What runs a rows primitive on groups that lie as columns of samples, or None for others."""
    if not layout.strides:
        return None
    split, group = layout.shape, layout.parameter_axes[0]
    trailing = tuple(range(group + 1, len(split)))
    kept = next((axis for axis in range(len(split)) if axis in layout.axes), 0)
    leading = tuple(range(kept, group))
    as_columns = group not in layout.axes and layout.axes == leading + trailing
    k = math.prod(split[group:])
    if not as_columns or math.prod(split[kept:group]) == 1 or k > COLUMNS or not spec.center:
        return None
    if primitive == "rows_backward" and layout.dy is None:
        return None  # dy lies otherwise, and would have to be copied
    rows = math.prod(split[kept:group])
    m = math.prod(split[:kept]) * rows
    streams = may_stream(m, m * k * ITEMSIZE[spec.dtype])
    kind = Kind(spec, (m, k), streams)
    n, per = k // split[group], k // spec.parameters
    make = _forward_groups if primitive == "rows_forward" else _backward_groups
    count = "1 thread" if kind.at_once == 1 else "several threads"
    reason = f"compiled by Numba for {spec.dtype}, by columns of each sample as they lie, {count}"
    return make(kind, n, per, rows), reason


def _flat(values: Any) -> Any:
    """A parameter or a statistic as its kernel takes it."""
    if values is None:
        return None
    return np.require(values, values.dtype.newbyteorder("="), ("C", "A")).ravel()


def _forward_groups(kind: Kind, n: int, per: int, rows: int) -> Callable[..., Any]:
    (m, k), single = kind.shape, kind.single_type
    samples, groups = m // rows, k // n
    given = (kind.x, kind.gamma, kind.beta, kind.x, single, single, types.float64)
    over = kind.over(
        columns.forward_of_samples,
        columns.forward_of_samples_in_parallel,
        *(*given, *[types.int64] * 4, types.boolean),
    )
    constants = (kind.spec.epsilon, n, per, rows, _padded(kind), kind.streams)

    def call(x: Any, gamma: Any, beta: Any, out: None = None) -> Any:
        y, mean, rstd = kind.empty(x.dtype), kind.new(samples * groups), kind.new(samples * groups)
        parameters = kind.view_gamma(_flat(gamma)), kind.view_beta(_flat(beta))
        over(samples, kind.view(x.reshape(m, k)), *parameters, kind.view(y), mean, rstd, *constants)
        return y.reshape(x.shape), mean.reshape(samples, groups), rstd.reshape(samples, groups)

    return call


def _backward_groups(kind: Kind, n: int, per: int, rows: int) -> Callable[..., Any]:
    (m, k), single = kind.shape, kind.single_type
    samples, parameters = m // rows, k // per
    need_dx, need_dgamma, need_dbeta = kind.spec.need
    given = (kind.dy, kind.x, single, single, kind.gamma, *kind.gradient_types())
    over = kind.over(
        columns.backward_of_samples,
        columns.backward_of_samples_in_parallel,
        *(*given, *[types.int64] * 4, types.boolean),
    )
    total = compiled(add_up, single, types.int64)
    constants = (n, per, rows, _padded(kind), kind.streams)

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = kind.empty(x.dtype) if need_dx else None
        dgamma = kind.new(samples * parameters) if need_dgamma else None
        dbeta = kind.new(samples * parameters) if need_dbeta else None
        arrays = (
            kind.view_dy(dy.reshape(m, k)),
            kind.view(x.reshape(m, k)),
            _flat(mean),
            _flat(rstd),
        )
        target = None if dx is None else kind.view(dx)
        over(samples, *arrays, kind.view_gamma(_flat(gamma)), target, dgamma, dbeta, *constants)
        for sums in (dgamma, dbeta):
            if sums is not None:
                total(sums, samples)
        return (
            None if dx is None else dx.reshape(x.shape),
            None if dgamma is None else dgamma[:parameters].copy(),
            None if dbeta is None else dbeta[:parameters].copy(),
        )

    return call
