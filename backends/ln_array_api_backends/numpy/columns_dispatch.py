"""From a spec to compiled kernels for columns: batch norm's channels, and groups of channels last.

If channels are the last axis, groups are columns of each sample: group norm and instance norm read
them in place, instead of copying them to rows first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ln_array_api.backend import Layout, Primitive, RowsSpec

from . import columns_backward, columns_forward
from .call_context import CallContext
from .config import ITEMSIZE, should_use_non_temporal
from .row_passes import TERMS_PER_FLUSH
from .simd import BYTES
from .tasks import ABSENT, Argument, array_of, boolean, integer, real

#: Most columns for which the tables stay in L2.
COLUMNS = 16384
#: Most blocks of rows with partial sums, and fewest rows of a block.
BLOCKS, ROWS = 32, 64


def _table_width(context: CallContext) -> int:
    """Return how many numbers a table has."""
    lanes = BYTES // context.acc_dtype.itemsize
    return -(-context.shape[1] // lanes) * lanes


class _BlockedSums:
    """The partial sums of a call: for blocks of rows and ranges of columns."""

    def __init__(self, context: CallContext, num_sums: int) -> None:
        m = context.shape[0]
        rows = -(-max(ROWS, -(-m // BLOCKS)) // TERMS_PER_FLUSH) * TERMS_PER_FLUSH
        blocks = -(-m // rows)
        self.count = blocks * context.max_parts
        length = blocks * num_sums * _table_width(context)
        sums = array_of("float64", length)
        self.compensated = context.acc_dtype == np.float64
        self.arrays = sums, (sums if self.compensated else ABSENT)
        self.options = integer(m), integer(rows), integer(context.max_parts)
        self._length = length

    def new(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Allocate the sums and their compensation."""
        length = self._length
        return np.zeros(length), np.zeros(length) if self.compensated else None


def forward(context: CallContext, n: int) -> Callable[..., None]:
    """Return a function that runs batch norm, of channels of n columns."""
    m, c = context.shape[0], context.shape[1] // n
    length = columns_forward.FORWARD_TABLES * _table_width(context)
    table, sums = context.acc(length), _BlockedSums(context, 2)
    approx_means = context.bind(
        columns_forward.approx_channel_means_task,
        1,
        context.x,
        table,
        integer(n),
        integer(0),
        integer(m),
    )
    finalize = context.bind(
        columns_forward.forward_sums_task,
        sums.count,
        *(context.x, context.gamma, context.beta, *[context.acc(c)] * 3, table, *sums.arrays),
        *(real(context.spec.epsilon), integer(n), *sums.options),
    )
    normalise_rows = _write(context, table)

    def run(x: Any, gamma: Any, beta: Any, y: Any, *statistics: Any) -> None:
        table = context.new(length)
        approx_means(x, table)
        finalize(x, gamma, beta, *statistics, table, *sums.new())
        normalise_rows(x, y, table)

    return run


def _write(context: CallContext, table: Argument) -> Callable[..., None]:
    arguments = context.x, context.x, table, boolean(context.non_temporal)
    return context.bind(columns_forward.normalise_rows_task, context.shape[0], *arguments)


def inference(context: CallContext, n: int) -> Callable[..., None]:
    """Return a function that runs batch norm by given statistics, of channels of n columns."""
    c = context.shape[1] // n
    length = columns_forward.FORWARD_TABLES * _table_width(context)
    table = context.acc(length)
    finalize = context.bind(
        columns_forward.finalize_inference_task,
        1,
        *(*[context.acc(c)] * 2, context.gamma, context.beta, table),
        *(real(context.spec.epsilon), integer(n)),
    )
    normalise_rows = _write(context, table)

    def run(x: Any, mean: Any, var: Any, gamma: Any, beta: Any, y: Any) -> None:
        table = context.new(length)
        finalize(mean, var, gamma, beta, table)
        normalise_rows(x, y, table)

    return run


def backward(context: CallContext, n: int) -> Callable[..., None]:
    """Return a function that computes the gradients of batch norm, of channels of n columns."""
    m, c = context.shape[0], context.shape[1] // n
    length = columns_backward.BACKWARD_TABLES * _table_width(context)
    table, sums = context.acc(length), _BlockedSums(context, 3)
    statistics = [context.acc(c)] * 2
    load_stats = context.bind(
        columns_backward.load_stats_tables_task,
        1,
        context.x,
        *statistics,
        table,
        *map(integer, (n, 0, m)),
    )
    dx, dgamma, dbeta = context.gradients(c)
    finalize = context.bind(
        columns_backward.backward_sums_task,
        sums.count,
        *(context.dy, context.x, context.gamma, dgamma, dbeta, table, *sums.arrays),
        *(integer(n), *sums.options),
    )
    write_dx_rows: Any = None
    if dx is not ABSENT:
        arguments = context.dy, context.x, dx, table, boolean(context.non_temporal)
        write_dx_rows = context.bind(columns_backward.write_dx_rows_task, m, *arguments)

    def run(
        dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, dx: Any, dgamma: Any, dbeta: Any
    ) -> None:
        table = context.new(length)
        load_stats(x, mean, rstd, table)
        finalize(dy, x, gamma, dgamma, dbeta, table, *sums.new())
        if dx is not None:
            write_dx_rows(dy, x, dx, table)

    return run


def prepare_groups(
    primitive: Primitive, spec: RowsSpec, layout: Layout
) -> tuple[Callable[..., Any], str] | None:
    """Return what runs a rows primitive on groups that are columns of samples, else None."""
    if not layout.strides or not layout.parameter_axes:
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
        return None  # dy has another layout, and has to be copied
    rows = math.prod(split[kept:group])
    m = math.prod(split[:kept]) * rows
    non_temporal = should_use_non_temporal(m, m * k * ITEMSIZE[spec.dtype])
    context = CallContext(spec, (m, k), spec.parameters, non_temporal=non_temporal)
    n, columns_per_param = k // split[group], k // spec.parameters
    make = _forward_groups if primitive == "rows_forward" else _backward_groups
    count = "1 thread" if context.max_parts == 1 else "several threads"
    reason = f"compiled by Numba for {spec.dtype}, by columns of each sample as they lie, {count}"
    return make(context, n, columns_per_param, rows), reason


def contiguous(values: Any) -> Any:
    """Return a parameter or statistic contiguous, aligned and in native byte order."""
    if values is None:
        return None
    return np.require(values, values.dtype.newbyteorder("="), ("C", "A"))


def _forward_groups(
    context: CallContext, n: int, columns_per_param: int, rows: int
) -> Callable[..., Any]:
    m, k = context.shape
    samples, groups = m // rows, k // n
    run = context.bind(
        columns_forward.forward_of_samples_task,
        samples,
        *(context.x, context.gamma, context.beta, context.x, *[context.acc(samples * groups)] * 2),
        real(context.spec.epsilon),
        *map(integer, (n, columns_per_param, rows, _table_width(context))),
        boolean(context.non_temporal),
    )

    def call(x: Any, gamma: Any, beta: Any, out: None = None) -> Any:
        y = context.empty(x.dtype)
        mean, rstd = context.new(samples * groups), context.new(samples * groups)
        run(x, contiguous(gamma), contiguous(beta), y, mean, rstd)
        return y.reshape(x.shape), mean.reshape(samples, groups), rstd.reshape(samples, groups)

    return call


def _backward_groups(
    context: CallContext, n: int, columns_per_param: int, rows: int
) -> Callable[..., Any]:
    m, k = context.shape
    samples, parameters = m // rows, k // columns_per_param
    need_dx, *needs = context.spec.need
    dx, *sums = context.gradients(samples * parameters)
    run = context.bind(
        columns_backward.backward_of_samples_task,
        samples,
        *(context.dy, context.x, *[context.acc(samples * k // n)] * 2, context.gamma),
        *(dx, *sums, *context.gradients(parameters)[1:]),
        *map(integer, (n, columns_per_param, rows, _table_width(context))),
        boolean(context.non_temporal),
    )

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = context.empty(x.dtype) if need_dx else None
        sums = [
            context.new(samples * parameters) if need else None for need in context.spec.need[1:]
        ]
        dgamma, dbeta = (context.new(parameters) if need else None for need in needs)
        statistics = contiguous(mean), contiguous(rstd)
        run(dy, x, *statistics, contiguous(gamma), dx, *sums, dgamma, dbeta)
        return None if dx is None else dx.reshape(x.shape), dgamma, dbeta

    return call
