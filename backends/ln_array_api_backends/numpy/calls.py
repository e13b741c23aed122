"""From a spec to a compiled kernel for rows: views, memory, threads, stores for a kind of call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numba
import numpy as np
from numba import from_dtype, types

from ln_array_api.backend import Primitive, RowsSpec

from . import threads
from .backward import SHORT, backward_in_order, backward_in_parallel
from .forward import forward, forward_in_parallel
from .memory import memory_pool
from .simd import BYTES
from .sweeps import RUN

#: Bytes of x from which several threads are worth waking.
PARALLEL = 128 << 10
#: Bytes of a result from which its memory comes from the pool.
POOLED = 1 << 20
#: Bytes of a result from which it is stored past the cache, which it would not fit in.
STREAMED = 12 << 20
#: Bytes of a row from which that is faster: of one that is whole lines of the cache, and of others.
STREAMED_ROWS = 512, 2048
LINE = 64
#: Bytes of sums of all blocks up to which a gradient keeps them in memory: to copy it takes longer.
KEPT = 32 << 10


#: How 16-bit arrays go to Numba, which does not know their dtypes.
VIEWS = {"float16": np.int16, "bfloat16": np.uint16}
ACCUMULATION = {"float64": "float64"}
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def compiled(kernel: Any, *arguments: Any) -> Callable[..., None]:
    """A kernel compiled for such arguments, to be called with nothing else.

    Numba's own way, by the types of the values of each call, costs more than a small kernel, and
    compiles anew for arrays that are read-only.
    """
    kernel.compile(arguments)
    entry: Callable[..., None] = kernel.overloads[arguments].entry_point
    return entry


def array_type(dtype: str | None, ndim: int) -> Any:
    """Numba's type of an array of a dtype, or of its absence."""
    if dtype is None:
        return types.none
    return types.Array(from_dtype(np.dtype(VIEWS.get(dtype, dtype))), ndim, "C")


def may_pay(size: int) -> bool:
    """Whether several threads may be faster than one for x of so many bytes."""
    return size >= PARALLEL and numba.config.NUMBA_NUM_THREADS > 1


def may_stream(m: int, size: int) -> bool:
    """Whether a result of m rows and so many bytes had better be stored past the cache."""
    row = size // m
    return size >= STREAMED and row >= STREAMED_ROWS[row % LINE > 0]


def streams(primitive: Primitive, spec: RowsSpec) -> bool:
    """Whether the result of a call is stored past the cache, if its memory is not given."""
    m, n = spec.shape
    large = may_stream(m, m * n * ITEMSIZE[spec.dtype])
    if primitive == "rows_forward":
        return large
    # Sums over a segment would depend on where that begins in memory.
    return large and spec.need[0] and spec.repeat == 1


def tasks(primitive: Primitive, spec: RowsSpec) -> int:
    """How many threads a call has work for: for each row, or each block of rows that are summed."""
    m = spec.shape[0]
    return m if primitive == "rows_forward" else -(-m // rows_in_a_block(m, spec.groups))


def viewed_as(dtype: str | None) -> Callable[[Any], Any]:
    """How an array of a dtype, or its absence, goes to a kernel."""
    view = VIEWS.get(dtype or "")
    return (lambda array: array) if view is None else (lambda array: array.view(view))


def empty_for(shape: tuple[int, ...], size: int) -> Callable[[Any], np.ndarray]:
    """A function that gives an array of a dtype for a result of so many bytes."""
    new = np.empty if size < POOLED else memory_pool.empty
    return lambda dtype: new(shape, dtype)


#: A type of Numba, and a value of it: of an array the shape, of None nothing.
Argument: TypeAlias = tuple[Any, Any]
_ABSENT: Argument = types.none, None

#: Places of arrays among the arguments of a call: x, gamma and beta; y, mean and rstd.
FORWARD_INPUTS, FORWARD_OUTPUTS = range(3), range(3, 6)
#: The same of dy, x, mean, rstd and gamma; and of gradients, those of parameters as sums of each
#: block and, of a task, as they are in the end.
BACKWARD_INPUTS, DX = range(5), 5
DGAMMA, DBETA, DGAMMA_IN_THE_END, DBETA_IN_THE_END = 6, 7, 13, 14


def _array(dtype: str | None, *shape: int) -> Argument:
    return _ABSENT if dtype is None else (array_type(dtype, len(shape)), shape)


def _repeat(spec: RowsSpec) -> Argument:
    return _ABSENT if spec.repeat == 1 else (types.int64, spec.repeat)


def forward_arguments(spec: RowsSpec) -> tuple[Argument, ...]:
    """The arguments of `forward`, without start and stop."""
    (m, n), single = spec.shape, ACCUMULATION.get(spec.dtype, "float32")
    return (
        _array(spec.dtype, m, n),
        _array(spec.gamma, spec.parameters),
        _array(spec.beta, spec.parameters),
        _array(spec.dtype, m, n),
        _array(single if spec.center else None, m, 1),
        _array(single, m, 1),
        (types.float64, spec.epsilon),
        (types.int64, spec.groups),
        _repeat(spec),
        (types.boolean, streams("rows_forward", spec)),
    )


def backward_arguments(spec: RowsSpec) -> tuple[Argument, ...]:
    """The arguments of `backward_in_order`."""
    (m, n), single = spec.shape, ACCUMULATION.get(spec.dtype, "float32")
    sums = tasks("rows_backward", spec) * spec.parameters
    need_dx, need_dgamma, need_dbeta = spec.need
    return (
        _array(spec.dy, m, n),
        _array(spec.dtype, m, n),
        _array(single if spec.center else None, m, 1),
        _array(single, m, 1),
        _array(spec.gamma, spec.parameters),
        _array(spec.dtype if need_dx else None, m, n),
        _array(single if need_dgamma else None, sums),
        _array(single if need_dbeta else None, sums),
        (types.int64, spec.groups),
        _repeat(spec),
        (types.boolean, streams("rows_backward", spec)),
        (types.int64, rows_in_a_block(m, spec.groups)),
        (types.int64, rows_in_a_run(n, spec.dtype, spec.groups, spec.repeat)),
    )


def task_arguments(spec: RowsSpec) -> tuple[Argument, ...]:
    """Those of the backward pass as a task.

    The sums of a single block are the gradients; those of several get a place of their own.
    """
    arguments = backward_arguments(spec)
    single = ACCUMULATION.get(spec.dtype, "float32")
    several = tasks("rows_backward", spec) > 1
    wanted = [single if each and several else None for each in spec.need[1:]]
    return *arguments, *(_array(each, spec.parameters) for each in wanted)


def prepare(primitive: Primitive, spec: RowsSpec) -> Callable[..., Any]:
    """What runs a call of a rows primitive, given the arrays alone, and `out`."""
    return _forward(spec) if primitive == "rows_forward" else _backward(spec)


def _forward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), center, groups = spec.shape, spec.center, spec.groups
    size = m * n * ITEMSIZE[spec.dtype]
    accumulation = ACCUMULATION.get(spec.dtype, "float32")
    single = np.dtype(accumulation)
    epsilon = spec.epsilon
    repeat = None if spec.repeat == 1 else spec.repeat
    empty, run, shape, column = np.empty, threads.run, (m, n), (m, 1)
    arguments = [kind for kind, _ in forward_arguments(spec)]
    constants = (epsilon, groups, repeat)
    serial = compiled(forward, *arguments, types.int64, types.int64)
    parallel = compiled(forward_in_parallel, *arguments, types.int64) if may_pay(size) else None
    viewed = {spec.dtype, spec.gamma, spec.beta} & set(VIEWS)
    large_enough = streams("rows_forward", spec)
    parts = min(tasks("rows_forward", spec), numba.config.NUMBA_NUM_THREADS)

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

    large = empty_for(shape, size)
    view_x, view_gamma, view_beta = map(viewed_as, (spec.dtype, spec.gamma, spec.beta))

    def call(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = large(x.dtype) if out is None else out
        mean = empty(column, single) if center else None
        rstd = empty(column, single)
        arrays = (x, gamma, beta, y, mean, rstd)
        if viewed:
            arrays = (view_x(x), view_gamma(gamma), view_beta(beta), view_x(y), mean, rstd)
        past_the_cache = large_enough and out is None
        if parallel is None or not run(parallel, *arrays, *constants, past_the_cache, parts):
            serial(*arrays, *constants, past_the_cache, 0, m)
        return y, mean, rstd

    return call


def rows_in_a_block(m: int, groups: int) -> int:
    """How many rows' terms of dgamma and dbeta are added up before the sums of blocks are."""
    return groups * max(8, min(64, m // groups // 4))


def rows_in_a_run(n: int, dtype: str, groups: int, repeat: int) -> int:
    """How many of these are, before the sums of runs are.

    Rows of whole vectors are taken by twos, or by fours if they are short, and first added to each
    other: then there are fewer terms.
    """
    single = np.dtype(ACCUMULATION.get(dtype, "float32"))
    if groups > 1 or repeat > 1 or n * single.itemsize % BYTES > 0:
        return groups * RUN
    return RUN * (4 if n * ITEMSIZE[dtype] <= SHORT else 2)


def _backward(spec: RowsSpec) -> Callable[..., Any]:
    m, n = spec.shape
    size = m * n * ITEMSIZE[spec.dtype]
    accumulation = ACCUMULATION.get(spec.dtype, "float32")
    single = np.dtype(accumulation)
    need_dx, need_dgamma, need_dbeta = spec.need
    blocks, parameters = tasks("rows_backward", spec), spec.parameters
    view_dy, view_x, view_gamma = map(viewed_as, (spec.dy, spec.dtype, spec.gamma))
    empty = empty_for((m, n), size)
    size_of_sums = blocks * parameters * single.itemsize
    partial = empty_for((blocks * parameters,), size_of_sums)
    keeps = size_of_sums <= KEPT
    arguments, values = zip(*backward_arguments(spec), strict=True)
    constants = values[DBETA + 1 :]
    serial = compiled(backward_in_order, *arguments)
    pays = may_pay(size) and blocks > 1
    parallel = compiled(backward_in_parallel, *arguments, types.int64) if pays else None
    parts = min(blocks, numba.config.NUMBA_NUM_THREADS)
    viewed = {spec.dy, spec.dtype, spec.gamma} & set(VIEWS)

    def first(sums: Any) -> Any:
        return sums[:parameters] if keeps else sums[:parameters].copy()

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = empty(x.dtype) if need_dx else None
        dgamma = partial(single) if need_dgamma else None
        dbeta = partial(single) if need_dbeta else None
        arrays = (dy, x, mean, rstd, gamma, dx, dgamma, dbeta)
        if viewed:
            target = None if dx is None else view_x(dx)
            arrays = (view_dy(dy), view_x(x), mean, rstd, view_gamma(gamma), target, dgamma, dbeta)
        if parallel is None or not threads.run(parallel, *arrays, *constants, parts):
            serial(*arrays, *constants)
        if blocks > 1:  # the sums are in the first
            dgamma = None if dgamma is None else first(dgamma)
            dbeta = None if dbeta is None else first(dbeta)
        return dx, dgamma, dbeta

    return call
