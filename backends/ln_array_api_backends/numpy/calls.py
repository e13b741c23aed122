"""From a spec to a compiled kernel: views, memory, threads and stores for a kind of call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ln_array_api.backend import Primitive, RowsSpec

from . import threads
from .backward import backward_in_order, backward_in_parallel
from .forward import forward, forward_in_parallel
from .memory import memory_pool

#: Bytes of x from which several threads are worth waking.
PARALLEL = 256 << 10
#: Bytes of a result from which its memory comes from the pool.
POOLED = 1 << 20
#: Bytes of a result from which it is stored past the cache, which it would not fit in.
STREAMED = 12 << 20


#: How 16-bit arrays go to Numba, which does not know their dtypes.
VIEWS = {"float16": np.int16, "bfloat16": np.uint16}
ACCUMULATION = {"float64": np.float64}
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class NumPyBackend:
    """Both rows primitives, for every dtype and option."""

    def can_run(self, primitive: Primitive, spec: RowsSpec) -> bool:
        return 0 not in spec.shape

    def prepare(self, primitive: Primitive, spec: RowsSpec) -> Callable[..., Any]:
        return _forward(spec) if primitive == "rows_forward" else _backward(spec)

    def describe(self, primitive: Primitive, spec: RowsSpec) -> str:
        m, n = spec.shape
        size = m * n * ITEMSIZE[spec.dtype]
        count = threads.number() if size >= PARALLEL else 1
        return ", ".join(
            (
                f"compiled by Numba for {spec.dtype}",
                "1 thread" if count == 1 else f"{count} threads",
                "streaming stores" if size >= STREAMED else "cached stores",
                "memory from the pool" if size >= POOLED else "fresh memory",
            )
        )

    def rows_forward(
        self, x: Any, gamma: Any, beta: Any, *, out: Any = None, **options: Any
    ) -> Any:
        spec = _spec(x, gamma, beta, **options)
        return self.prepare("rows_forward", spec)(x, gamma, beta, out=out)

    def rows_backward(
        self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, **options: Any
    ) -> Any:
        spec = _spec(x, gamma, None, dy=dy.dtype.name, **options)
        return self.prepare("rows_backward", spec)(dy, x, mean, rstd, gamma)


def _spec(x: Any, gamma: Any, beta: Any, **options: Any) -> RowsSpec:
    gamma, beta = (None if each is None else each.dtype.name for each in (gamma, beta))
    return RowsSpec("numpy", "cpu", x.shape, x.dtype.name, gamma, beta, **options)


def _viewed(dtype: str | None) -> Callable[[Any], Any]:
    """How an array of a dtype, or its absence, goes to a kernel."""
    view = VIEWS.get(dtype or "")
    return (lambda array: array) if view is None else (lambda array: array.view(view))


def _empty(shape: tuple[int, int], size: int) -> Callable[[Any], np.ndarray]:
    """A function that gives an array of a dtype for a result of so many bytes."""
    new = np.empty if size < POOLED else memory_pool.empty
    return lambda dtype: new(shape, dtype)


def _forward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), center = spec.shape, spec.center
    size = m * n * ITEMSIZE[spec.dtype]
    accumulation = ACCUMULATION.get(spec.dtype, np.float32)
    smallest = float(np.finfo(accumulation).smallest_normal) if spec.epsilon > 0 else 0.0
    epsilon = max(spec.epsilon, smallest)
    repeat = None if spec.repeat == 1 else spec.repeat
    empty, shape, column = np.empty, (m, n), (m, 1)

    def direct(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        """As `call`, for the short and frequent, without what does not concern them."""
        y = empty(shape, x.dtype) if out is None else out
        mean = empty(column, accumulation) if center else None
        rstd = empty(column, accumulation)
        forward(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, False, 0, m)
        return y, mean, rstd

    groups = spec.groups
    viewed = {spec.dtype, spec.gamma, spec.beta} & set(VIEWS)
    if size < min(PARALLEL, POOLED) and not viewed:
        return direct

    view_x, view_gamma, view_beta = map(_viewed, (spec.dtype, spec.gamma, spec.beta))
    large = _empty(shape, size)

    def call(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = large(x.dtype) if out is None else out
        mean = empty(column, accumulation) if center else None
        rstd = empty(column, accumulation)
        arrays = (view_x(x), view_gamma(gamma), view_beta(beta), view_x(y), mean, rstd)
        streams = size >= STREAMED and out is None
        count = min(threads.number(), m) if size >= PARALLEL else 1
        if count > 1:
            threads.run(forward_in_parallel, *arrays, epsilon, groups, repeat, streams, count)
        else:
            forward(*arrays, epsilon, groups, repeat, streams, 0, m)
        return y, mean, rstd

    return call


def rows_in_a_block(m: int, groups: int) -> int:
    """How many rows' terms of dgamma and dbeta are added up one after the other."""
    return groups * max(8, min(64, m // groups // 8))


def _backward(spec: RowsSpec) -> Callable[..., Any]:
    m, n = spec.shape
    size = m * n * ITEMSIZE[spec.dtype]
    accumulation = ACCUMULATION.get(spec.dtype, np.float32)
    need_dx, need_dgamma, need_dbeta = spec.need
    rows = rows_in_a_block(m, spec.groups)
    blocks = -(-m // rows)
    partial = (blocks, spec.groups * n // spec.repeat)
    view_dy, view_x, view_gamma = map(_viewed, (spec.dy, spec.dtype, spec.gamma))
    empty = _empty((m, n), size)
    empty_partial = _empty(partial, partial[0] * partial[1] * np.dtype(accumulation).itemsize)
    repeat = None if spec.repeat == 1 else spec.repeat
    constants = (spec.groups, repeat, size >= STREAMED, rows)
    may_go_parallel = size >= PARALLEL and blocks > 1

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = empty(x.dtype) if need_dx else None
        dgamma = empty_partial(accumulation) if need_dgamma else None
        dbeta = empty_partial(accumulation) if need_dbeta else None
        target = None if dx is None else view_x(dx)
        arrays = (view_dy(dy), view_x(x), mean, rstd, view_gamma(gamma), target, dgamma, dbeta)
        if may_go_parallel and threads.number() > 1:
            threads.run(backward_in_parallel, *arrays, *constants)
        else:
            backward_in_order(*arrays, *constants)
        return dx, _first(dgamma), _first(dbeta)

    return call


def _first(partial: np.ndarray | None) -> np.ndarray | None:
    """The sums of the first block, which are those of all, without the memory of the others."""
    if partial is None:
        return None
    sums: np.ndarray = partial[0]
    return sums if len(partial) == 1 else sums.copy()
