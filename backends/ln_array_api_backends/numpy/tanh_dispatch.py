"""From a spec to the compiled kernels of dynamic tanh: pieces of x, memory, threads, stores."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ln_array_api.backend import FamilySpec

from . import tanh
from .call_context import CallContext
from .config import ITEMSIZE, should_use_non_temporal
from .memory import allocator
from .simd import BYTES
from .tasks import ABSENT, Argument, array_of, boolean, integer

#: Most elements of a segment, in a forward and in a backward pass, whose tables of sums stay in L1.
SEGMENT, SEGMENT_OF_SUMS = 4096, 512
#: Fewest adjacent elements with one parameter for which these are a row.
SHORT = 16
#: Rows of fewer columns are joined to longer rows.
FEW = 64
#: Most blocks of rows with partial sums, and fewest rows of a block.
BLOCKS, ROWS = 32, 64


class Cut(NamedTuple):
    """How x is divided into rows; the last may be shorter."""

    length: int
    rows: int
    parameters: int | None
    """If each row has one element of gamma and beta: rows until the same is used again."""
    repeat: int = 1
    times: int = 1
    """Else how often each element, and how often all elements are repeated for the columns."""


def cut(spec: FamilySpec, *, uses_parameters: bool) -> Cut:
    """Divide x of a spec into rows; `uses_parameters`: for gamma or beta, or their gradients."""
    size, parameters, repeat = math.prod(spec.shape), spec.parameters, spec.repeat
    if not uses_parameters:
        return Cut(size, 1, 1)
    if repeat >= SHORT:
        return Cut(repeat, size // repeat, parameters)
    length = parameters * repeat
    rows = size // length
    times = max(1, min(rows, SEGMENT_OF_SUMS // length)) if length < FEW else 1
    return Cut(length * times, -(-rows // times), None, repeat, times)


def forward(spec: FamilySpec) -> Callable[..., Any]:
    """Return the kernel that computes y of x, alpha, gamma and beta."""
    this = cut(spec, uses_parameters=(spec.gamma or spec.beta) is not None)
    context = _context(spec, this)
    run = context.bind(
        tanh.forward_task,
        this.rows * -(-this.length // SEGMENT),
        *(context.x, array_of(spec.alpha, 1), context.gamma, context.beta, context.x),
        *(integer(this.length), integer(SEGMENT), _optional(this.parameters)),
        boolean(context.non_temporal),
    )
    expand = _expander(this)

    def call(x: Any, alpha: Any, gamma: Any, beta: Any) -> Any:
        y = context.empty(x.dtype)
        run(x, alpha, expand(gamma), expand(beta), y)
        return y

    return call


def backward(spec: FamilySpec) -> Callable[..., Any] | None:
    """Return the kernel that computes dx, dalpha, dgamma and dbeta of dy, x, alpha and gamma."""
    if not any(spec.need):
        return None
    _, _, need_dgamma, need_dbeta = spec.need
    this = cut(spec, uses_parameters=spec.gamma is not None or need_dgamma or need_dbeta)
    context = _context(spec, this)
    prepare = _backward_of_columns if this.parameters is None else _backward_of_rows
    return prepare(spec, context, this)


def _context(spec: FamilySpec, this: Cut) -> CallContext:
    """Return the context of calls, with gamma and beta as the kernels get them."""
    parameters = this.parameters or this.length
    non_temporal = should_use_non_temporal(this.rows, math.prod(spec.shape) * ITEMSIZE[spec.dtype])
    return CallContext(spec, spec.shape, parameters, non_temporal=non_temporal)


def _optional(value: int | None) -> Argument:
    return ABSENT if value is None else integer(value)


def _expander(this: Cut) -> Callable[[Any], Any]:
    """Return a function that repeats a parameter for the columns of a row, or of several rows."""
    if this.repeat == this.times == 1:
        return lambda values: values
    return lambda values: (
        None if values is None else np.tile(np.repeat(values, this.repeat), this.times)
    )


class _Gradients:
    """Memory for partial sums of gradients, and for the gradients that are needed."""

    def __init__(self, spec: FamilySpec, context: CallContext, *lengths: int) -> None:
        """`lengths` are those of the sums for alpha, gamma and beta."""
        self._needs, self._lengths, parameters = spec.need[1:], lengths, spec.parameters
        self._shapes = (), (parameters,), (parameters,)
        self._new, self._dtype = allocator(8 * max(lengths)), context.acc_dtype
        self.sums = [
            array_of("float64", length) if need else ABSENT
            for length, need in zip(lengths, self._needs, strict=True)
        ]
        acc = context.acc(1), context.acc(parameters), context.acc(parameters)
        self.results = [
            kind if need else ABSENT for kind, need in zip(acc, self._needs, strict=True)
        ]

    def new_sums(self) -> list[Any]:
        return [
            self._new((length,), np.float64) if need else None
            for length, need in zip(self._lengths, self._needs, strict=True)
        ]

    def new_results(self) -> list[Any]:
        return [
            np.empty(shape, self._dtype) if need else None
            for shape, need in zip(self._shapes, self._needs, strict=True)
        ]


def _backward_of_rows(spec: FamilySpec, context: CallContext, this: Cut) -> Callable[..., Any]:
    count = this.rows * -(-this.length // SEGMENT)
    gradients = _Gradients(spec, context, count, count, count)
    need_dx = spec.need[0]
    run = context.bind(
        tanh.backward_task,
        count,
        *(context.dy, context.x, array_of(spec.alpha, 1), context.gamma),
        context.x if need_dx else ABSENT,
        *(*gradients.sums, *gradients.results),
        *map(integer, (this.length, SEGMENT)),
        *(_optional(this.parameters), boolean(context.non_temporal and need_dx)),
    )

    def call(dy: Any, x: Any, alpha: Any, gamma: Any) -> Any:
        dx = context.empty(x.dtype) if need_dx else None
        results = gradients.new_results()
        run(dy, x, alpha, gamma, dx, *gradients.new_sums(), *results)
        return dx, *results

    return call


def _backward_of_columns(spec: FamilySpec, context: CallContext, this: Cut) -> Callable[..., Any]:
    lanes = BYTES // context.acc_dtype.itemsize
    padded = -(-this.length // lanes) * lanes
    rows = max(ROWS, -(-this.rows // BLOCKS))
    blocks, segments = -(-this.rows // rows), -(-this.length // SEGMENT_OF_SUMS)
    count, length = blocks * segments, blocks * padded
    gradients = _Gradients(spec, context, count, length, length)
    compensated = context.acc_dtype == np.float64
    need_dx = spec.need[0]
    alpha_sums, gamma_sums, beta_sums = gradients.sums
    run = context.bind(
        tanh.backward_of_columns_task,
        count,
        *(context.dy, context.x, array_of(spec.alpha, 1), context.gamma),
        *(context.x if need_dx else ABSENT, alpha_sums),
        *(gamma_sums, gamma_sums if compensated else ABSENT),
        *(beta_sums, beta_sums if compensated else ABSENT),
        *gradients.results,
        *map(integer, (this.repeat, this.length, padded, SEGMENT_OF_SUMS, rows)),
        boolean(context.non_temporal and need_dx),
    )
    expand = _expander(this)

    def call(dy: Any, x: Any, alpha: Any, gamma: Any) -> Any:
        dx = context.empty(x.dtype) if need_dx else None
        alpha_sums, gamma_sums, beta_sums = gradients.new_sums()
        _, gamma_comp, beta_comp = gradients.new_sums() if compensated else (None,) * 3
        results = gradients.new_results()
        sums = alpha_sums, gamma_sums, gamma_comp, beta_sums, beta_comp
        run(dy, x, alpha, expand(gamma), dx, *sums, *results)
        return dx, *results

    return call
