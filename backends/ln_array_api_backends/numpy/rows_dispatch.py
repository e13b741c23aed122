"""From a spec to a compiled kernel for rows: arguments, memory, threads and stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ln_array_api.backend import Primitive, RowsSpec

from .array_tasks import bind, max_parts_of
from .config import ITEMSIZE, accumulation_dtype, should_use_non_temporal
from .memory import allocator
from .row_passes import TERMS_PER_FLUSH
from .rows_backward import MAX_SHORT_ROW_BYTES, backward_task
from .rows_forward import forward_task
from .simd import BYTES
from .tasks import ABSENT, Argument, Task, array_of, boolean, integer, real


def uses_non_temporal(primitive: Primitive, spec: RowsSpec) -> bool:
    """Return whether the result of a call is written with non-temporal stores, unless in place."""
    m, n = spec.shape
    large = should_use_non_temporal(m, m * n * ITEMSIZE[spec.dtype])
    if primitive == "rows_forward":
        return large
    # The order of sums over a segment would depend on its address.
    return large and spec.need[0] and spec.repeat == 1


def task_count(primitive: Primitive, spec: RowsSpec) -> int:
    """Return how many parts a call has at most: rows, or blocks of rows with partial sums."""
    m, groups, span = spec.shape[0], spec.groups, spec.span
    if primitive == "rows_forward":
        return m
    rows = rows_per_partial(m, groups, span)
    return -(-m // rows) if span == 1 else m // span * -(-span // rows)


def partial_count(spec: RowsSpec) -> int:
    """Return how many partial sums each parameter has in a backward call."""
    blocks = task_count("rows_backward", spec)
    return blocks if spec.span == 1 else blocks // spec.groups


#: Indices of the arguments of `forward`: x, gamma, beta and the mask; y, mean and rstd.
FORWARD_INPUTS, FORWARD_OUTPUTS = range(4), range(4, 7)
#: Index of the argument that says whether `forward` uses non-temporal stores.
FORWARD_NON_TEMPORAL = 11
#: Indices of the arguments of `backward_task`: dy, x, mean, rstd, gamma, the mask; the gradients.
#: Those of gamma and beta occur twice: as partial sums of each block, and as results.
BACKWARD_INPUTS, DX = range(6), 6
DGAMMA, DBETA, DGAMMA_RESULT, DBETA_RESULT = range(7, 11)


def _repeat(spec: RowsSpec) -> Argument:
    return ABSENT if spec.repeat == 1 else integer(spec.repeat)


def _mask(spec: RowsSpec) -> Argument:
    return array_of("uint8" if spec.where else None, *spec.shape)


def forward_arguments(spec: RowsSpec, *, in_place: bool = False) -> tuple[Argument, ...]:
    """Return the arguments of `forward` without start and stop; `in_place`: y is x."""
    (m, n), acc_name = spec.shape, accumulation_dtype(spec.dtype)
    return (
        array_of(spec.dtype, m, n),
        array_of(spec.gamma, spec.parameters),
        array_of(spec.beta, spec.parameters),
        _mask(spec),
        array_of(spec.dtype, m, n),
        array_of(acc_name if spec.center else None, m, 1),
        array_of(acc_name, m, 1),
        real(spec.epsilon),
        integer(spec.groups),
        integer(spec.span),
        _repeat(spec),
        boolean(not in_place and uses_non_temporal("rows_forward", spec)),
    )


def backward_arguments(spec: RowsSpec) -> tuple[Argument, ...]:
    """Return the arguments of `backward_task`.

    Where each parameter has a single partial sum, these are the gradients, else separate arrays.
    Both are always arguments, so that one kernel is compiled for both cases.
    """
    (m, n), acc_name = spec.shape, accumulation_dtype(spec.dtype)
    sums = partial_count(spec) * spec.parameters
    groups = spec.groups if spec.span == 1 else 1  # of a block
    need_dx, need_dgamma, need_dbeta = spec.need
    return (
        array_of(spec.dy, m, n),
        array_of(spec.dtype, m, n),
        array_of(acc_name if spec.center else None, m, 1),
        array_of(acc_name, m, 1),
        array_of(spec.gamma, spec.parameters),
        _mask(spec),
        array_of(spec.dtype if need_dx else None, m, n),
        array_of(acc_name if need_dgamma else None, sums),
        array_of(acc_name if need_dbeta else None, sums),
        array_of(acc_name if need_dgamma else None, spec.parameters),
        array_of(acc_name if need_dbeta else None, spec.parameters),
        integer(spec.groups),
        integer(spec.span),
        _repeat(spec),
        boolean(uses_non_temporal("rows_backward", spec)),
        integer(rows_per_partial(m, spec.groups, spec.span)),
        integer(rows_per_run(n, spec.dtype, groups, spec.repeat, in_pairs=not spec.where)),
    )


def prepare(primitive: Primitive, spec: RowsSpec) -> Callable[..., Any]:
    """Return the kernel of a rows primitive: a function of the arrays and `out`."""
    return _forward(spec) if primitive == "rows_forward" else _backward(spec)


def _forward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), center = spec.shape, spec.center
    size = m * n * ITEMSIZE[spec.dtype]
    acc_dtype = np.dtype(accumulation_dtype(spec.dtype))
    non_temporal = uses_non_temporal("rows_forward", spec)

    def bound(in_place: bool) -> Callable[..., None]:
        task = Task(forward_task, forward_arguments(spec, in_place=in_place), m)
        return bind(task, 7, max_parts_of(m, size), size)

    run = bound(in_place=False)
    run_in_cache = bound(in_place=True) if non_temporal else run
    new, empty, shape, column = allocator(size), np.empty, (m, n), (m, 1)

    def call(x: Any, gamma: Any, beta: Any, out: Any = None, where: Any = None) -> Any:
        y = new(shape, x.dtype) if out is None else out
        mean = empty(column, acc_dtype) if center else None
        rstd = empty(column, acc_dtype)
        # Elements that are not aligned to their size can never be aligned to a vector.
        in_cache = non_temporal and out is not None and (out is x or not out.flags.aligned)
        (run_in_cache if in_cache else run)(x, gamma, beta, where, y, mean, rstd)
        return y, mean, rstd

    return call


#: Spans of rows from which on each is one block, if it is short.
MANY_SPANS = 32


def rows_per_partial(m: int, groups: int, span: int = 1) -> int:
    """Return how many rows have common partial sums of dgamma and dbeta (a block).

    Blocks hold rows of all groups, or, where parameters have a span of rows, of one. Many spans are
    work enough for several threads, so that these are not cut into more blocks than they must be.
    """
    rows = max(8, min(64, m // groups // 4))
    if span == 1:
        return groups * rows
    return min(span, rows if m // span < MANY_SPANS else 64)


def rows_per_run(n: int, dtype: str, groups: int, repeat: int, *, in_pairs: bool = True) -> int:
    """Return how many rows of a block have common sums (a run).

    The terms of two rows of whole vectors, or of four if they are short, are first added to each
    other, so that there are fewer terms; with a mask, or if not `in_pairs`, they are not.
    """
    acc_dtype = np.dtype(accumulation_dtype(dtype))
    if not in_pairs or groups > 1 or repeat > 1 or n * acc_dtype.itemsize % BYTES > 0:
        return groups * TERMS_PER_FLUSH
    return TERMS_PER_FLUSH * (4 if n * ITEMSIZE[dtype] <= MAX_SHORT_ROW_BYTES else 2)


def _backward(spec: RowsSpec) -> Callable[..., Any]:
    m, n = spec.shape
    size = m * n * ITEMSIZE[spec.dtype]
    acc_dtype = np.dtype(accumulation_dtype(spec.dtype))
    need_dx, need_dgamma, need_dbeta = spec.need
    blocks, parameters = task_count("rows_backward", spec), spec.parameters
    task = Task(backward_task, backward_arguments(spec), blocks)
    run = bind(task, 11, max_parts_of(blocks, size), size)
    partials = partial_count(spec)
    new, empty, shape, sums = allocator(size), np.empty, (m, n), partials * parameters
    new_sums = allocator(sums * acc_dtype.itemsize)

    if partials == 1:

        def call_once(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, where: Any = None) -> Any:
            dx = new(shape, x.dtype) if need_dx else None
            dgamma = empty(parameters, acc_dtype) if need_dgamma else None
            dbeta = empty(parameters, acc_dtype) if need_dbeta else None
            run(dy, x, mean, rstd, gamma, where, dx, dgamma, dbeta, dgamma, dbeta)
            return dx, dgamma, dbeta

        return call_once

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, where: Any = None) -> Any:
        dx = new(shape, x.dtype) if need_dx else None
        dgamma = empty(parameters, acc_dtype) if need_dgamma else None
        dbeta = empty(parameters, acc_dtype) if need_dbeta else None
        dgamma_sums = new_sums((sums,), acc_dtype) if need_dgamma else None
        dbeta_sums = new_sums((sums,), acc_dtype) if need_dbeta else None
        run(dy, x, mean, rstd, gamma, where, dx, dgamma_sums, dbeta_sums, dgamma, dbeta)
        return dx, dgamma, dbeta

    return call
