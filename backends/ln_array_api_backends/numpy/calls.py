"""From a spec to a compiled kernel: views, memory, threads and stores for a kind of call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import from_dtype, types

from ln_array_api.backend import Primitive, RowsBackend, RowsSpec

from . import layout, threads
from .backward import backward_in_order, backward_in_parallel
from .forward import forward, forward_in_parallel
from .memory import memory_pool

#: Bytes of x from which several threads are worth waking.
PARALLEL = 128 << 10
#: Bytes of a result from which its memory comes from the pool.
POOLED = 1 << 20
#: Bytes of a result from which it is stored past the cache, which it would not fit in. Rows of less
#: than so many bytes are slowed down by that.
STREAMED, STREAMED_ROW = 12 << 20, 2048


#: How 16-bit arrays go to Numba, which does not know their dtypes.
VIEWS = {"float16": np.int16, "bfloat16": np.uint16}
ACCUMULATION = {"float64": "float64"}
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class NumPyBackend(RowsBackend):
    """Both rows primitives, for every dtype and option."""

    put_in_order = staticmethod(layout.put_in_order)

    def can_run(self, primitive: Primitive, spec: RowsSpec) -> bool:
        return 0 not in spec.shape

    def prepare(self, primitive: Primitive, spec: RowsSpec) -> Callable[..., Any]:
        return _forward(spec) if primitive == "rows_forward" else _backward(spec)

    def describe(self, primitive: Primitive, spec: RowsSpec) -> str:
        size = math.prod(spec.shape) * ITEMSIZE[spec.dtype]
        count = threads.number() if size >= PARALLEL else 1
        return ", ".join(
            (
                f"compiled by Numba for {spec.dtype}",
                "1 thread" if count == 1 else f"{count} threads",
                "streaming stores" if _may_stream(spec.shape[0], size) else "cached stores",
                "memory from the pool" if size >= POOLED else "fresh memory",
            )
        )


def _compiled(kernel: Any, *arguments: Any) -> Callable[..., None]:
    """A kernel compiled for such arguments, to be called with nothing else.

    Numba's own way, by the types of the values of each call, costs more than a small kernel, and
    compiles anew for arrays that are read-only.
    """
    kernel.compile(arguments)
    entry: Callable[..., None] = kernel.overloads[arguments].entry_point
    return entry


def _array(dtype: str | None, ndim: int) -> Any:
    """Numba's type of an array of a dtype, or of its absence."""
    if dtype is None:
        return types.none
    return types.Array(from_dtype(np.dtype(VIEWS.get(dtype, dtype))), ndim, "C")


def _may_pay(size: int) -> bool:
    """Whether several threads may be faster than one for x of so many bytes."""
    return size >= PARALLEL and numba.config.NUMBA_NUM_THREADS > 1


def _may_stream(m: int, size: int) -> bool:
    """Whether a result of m rows and so many bytes had better be stored past the cache."""
    return size >= max(STREAMED, m * STREAMED_ROW)


def _viewed(dtype: str | None) -> Callable[[Any], Any]:
    """How an array of a dtype, or its absence, goes to a kernel."""
    view = VIEWS.get(dtype or "")
    return (lambda array: array) if view is None else (lambda array: array.view(view))


def _empty(shape: tuple[int, ...], size: int) -> Callable[[Any], np.ndarray]:
    """A function that gives an array of a dtype for a result of so many bytes."""
    new = np.empty if size < POOLED else memory_pool.empty
    return lambda dtype: new(shape, dtype)


def _forward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), center, groups = spec.shape, spec.center, spec.groups
    size = m * n * ITEMSIZE[spec.dtype]
    accumulation = ACCUMULATION.get(spec.dtype, "float32")
    single = np.dtype(accumulation)
    epsilon = spec.epsilon
    repeat = None if spec.repeat == 1 else spec.repeat
    empty, run, shape, column = np.empty, threads.run, (m, n), (m, 1)
    arguments = (
        _array(spec.dtype, 2),
        _array(spec.gamma, 1),
        _array(spec.beta, 1),
        _array(spec.dtype, 2),
        _array(accumulation if center else None, 2),
        _array(accumulation, 2),
        types.float64,
        types.int64,
        types.none if repeat is None else types.int64,
        types.boolean,
    )
    constants = (epsilon, groups, repeat)
    serial = _compiled(forward, *arguments, types.int64, types.int64)
    parallel = _compiled(forward_in_parallel, *arguments, types.int64) if _may_pay(size) else None
    viewed = {spec.dtype, spec.gamma, spec.beta} & set(VIEWS)
    may_stream = _may_stream(m, size)
    parts = min(m, numba.config.NUMBA_NUM_THREADS)

    def direct(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        """As `call`, for the small and frequent, without what does not concern them."""
        y = empty(shape, x.dtype) if out is None else out
        mean = empty(column, single) if center else None
        rstd = empty(column, single)
        arrays = (x, gamma, beta, y, mean, rstd)
        if parallel is None or not run(parallel, *arrays, *constants, False, parts):
            serial(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, False, 0, m)
        return y, mean, rstd

    if size < min(POOLED, STREAMED) and not viewed:
        return direct

    large = _empty(shape, size)
    view_x, view_gamma, view_beta = map(_viewed, (spec.dtype, spec.gamma, spec.beta))

    def call(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = large(x.dtype) if out is None else out
        mean = empty(column, single) if center else None
        rstd = empty(column, single)
        arrays = (x, gamma, beta, y, mean, rstd)
        if viewed:
            arrays = (view_x(x), view_gamma(gamma), view_beta(beta), view_x(y), mean, rstd)
        streams = may_stream and out is None
        if parallel is None or not run(parallel, *arrays, *constants, streams, parts):
            serial(*arrays, *constants, streams, 0, m)
        return y, mean, rstd

    return call


def rows_in_a_block(m: int, groups: int) -> int:
    """How many rows' terms of dgamma and dbeta are added up one after the other."""
    return groups * max(8, min(64, m // groups // 4))


def _backward(spec: RowsSpec) -> Callable[..., Any]:
    m, n = spec.shape
    size = m * n * ITEMSIZE[spec.dtype]
    accumulation = ACCUMULATION.get(spec.dtype, "float32")
    single = np.dtype(accumulation)
    need_dx, need_dgamma, need_dbeta = spec.need
    rows = rows_in_a_block(m, spec.groups)
    blocks = -(-m // rows)
    parameters = spec.groups * n // spec.repeat
    view_dy, view_x, view_gamma = map(_viewed, (spec.dy, spec.dtype, spec.gamma))
    empty = _empty((m, n), size)
    partial = _empty((blocks * parameters,), blocks * parameters * single.itemsize)
    repeat = None if spec.repeat == 1 else spec.repeat
    streams = _may_stream(m, size) and need_dx
    constants = (spec.groups, repeat, streams, rows)
    arguments = (
        _array(spec.dy, 2),
        _array(spec.dtype, 2),
        _array(accumulation if spec.center else None, 2),
        _array(accumulation, 2),
        _array(spec.gamma, 1),
        _array(spec.dtype if need_dx else None, 2),
        _array(accumulation if need_dgamma else None, 1),
        _array(accumulation if need_dbeta else None, 1),
        types.int64,
        types.none if repeat is None else types.int64,
        types.boolean,
        types.int64,
    )
    serial = _compiled(backward_in_order, *arguments)
    may_pay = _may_pay(size) and blocks > 1
    parallel = _compiled(backward_in_parallel, *arguments) if may_pay else None
    viewed = {spec.dy, spec.dtype, spec.gamma} & set(VIEWS)

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = empty(x.dtype) if need_dx else None
        dgamma = partial(single) if need_dgamma else None
        dbeta = partial(single) if need_dbeta else None
        arrays = (dy, x, mean, rstd, gamma, dx, dgamma, dbeta)
        if viewed:
            target = None if dx is None else view_x(dx)
            arrays = (view_dy(dy), view_x(x), mean, rstd, view_gamma(gamma), target, dgamma, dbeta)
        if parallel is None or not threads.run(parallel, *arrays, *constants):
            serial(*arrays, *constants)
        if blocks > 1:  # the sums are in the first; the memory of the others is not needed
            dgamma = None if dgamma is None else dgamma[:parameters].copy()
            dbeta = None if dbeta is None else dbeta[:parameters].copy()
        return dx, dgamma, dbeta

    return call
