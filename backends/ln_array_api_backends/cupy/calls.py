"""From a spec to launches: which kernels, how many blocks, one workspace for a kind of call."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import cupy

from ln_array_api.backend import Layout, Primitive, RowsSpec

from . import stages
from .devices import if_there_are_several
from .strided import prepare_strided

ACCUMULATION = {"float64": "float64"}
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
C_NAME = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
}
WARP, CHUNK_BYTES = 32, 16
#: Rows in a block where each has a warp to itself.
ROWS = 4
#: Chunks of a row that a thread keeps in registers: as many as the backward pass, which also keeps
#: dy and two sums for each element, can have without spilling.
MOST_CHUNKS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 4}
FORWARD_WARPS, BACKWARD_WARPS = (4, 8, 16, 32), (4, 8, 16)
LONG_ROW_WARPS = 16
#: Warps that fill a large GPU. Sums over rows are cut into so many parts on every GPU.
WARPS_AT_ONCE = 4224
#: Rows that a thread adds up one after the other: a sum of n terms is off by sqrt(n) / 8 ulp or so.
RUN = 512
COLUMNS, TEAMS, THREADS = 32, 8, 256


class Shape(NamedTuple):
    """How a row is spread over threads; no chunks means that it is read again at each sweep."""

    warps: int
    rows: int
    chunks: int

    @property
    def threads(self) -> int:
        return self.warps * self.rows * WARP

    def __str__(self) -> str:
        if self.chunks == 0:
            return f"a block of {self.warps} warps streams each row"
        whose = "a warp" if self.warps == 1 else f"a block of {self.warps} warps"
        return f"{whose} keeps each row in registers"


LONG = Shape(LONG_ROW_WARPS, 1, 0)


def row_shape(dtype: str, n: int, warps: tuple[int, ...]) -> Shape:
    """The smallest shape that holds rows of n elements."""
    most = MOST_CHUNKS[dtype]
    chunk = CHUNK_BYTES // ITEMSIZE[dtype]
    few = [Shape(1, ROWS, chunks) for chunks in (1, 2, 4) if chunks <= most]
    for shape in (*few, *(Shape(each, 1, most) for each in warps)):
        if n <= shape.warps * WARP * shape.chunks * chunk:
            return shape
    return LONG


@cache
def source() -> str:
    """The CUDA C of all kernels."""
    here = files(__package__)
    names = ("common.cu", "forward.cu", "backward.cu")
    return "\n".join((here / name).read_text(encoding="utf-8") for name in names)


@cache
def kernel(name: str, *parameters: str | int | bool) -> Any:
    """A kernel for such template parameters, compiled when it is first launched on a device."""
    arguments = ", ".join(
        str(each).lower() if isinstance(each, bool) else str(each) for each in parameters
    )
    expression = f"{name}<{arguments}>"
    module = cupy.RawModule(code=source(), options=("-std=c++17",), name_expressions=(expression,))
    return module.get_function(expression)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


class CuPyBackend:
    """Both rows primitives, for every dtype and option."""

    caffe2_stages = stages

    def can_run(self, primitive: Primitive, spec: RowsSpec) -> bool:
        m, n = spec.shape
        # A block has a 32-bit number, and computes with it and the number of groups.
        return m > 0 and n > 0 and m < 1 << 31 and spec.groups < 1 << 29

    def prepare(self, primitive: Primitive, spec: RowsSpec) -> Callable[..., Any]:
        return if_there_are_several(
            _forward(spec) if primitive == "rows_forward" else _backward(spec)
        )

    def prepare_strided(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout
    ) -> tuple[Callable[..., Any], str] | None:
        found = prepare_strided(primitive, spec, layout)
        return None if found is None else (if_there_are_several(found[0]), found[1])

    def describe(self, primitive: Primitive, spec: RowsSpec) -> str:
        warps = FORWARD_WARPS if primitive == "rows_forward" else BACKWARD_WARPS
        return f"CUDA C for {spec.dtype}, {row_shape(spec.dtype, spec.shape[1], warps)}"

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
    return RowsSpec("cupy", str(x.device), x.shape, x.dtype.name, gamma, beta, **options)


def _or_null(array: Any) -> Any:
    return 0 if array is None else array


def _launcher(
    run: Any, grid: tuple[int, ...], threads: int, *constants: Any
) -> Callable[..., None]:
    """A kernel with all but its arrays, which stand first; None is a null pointer."""
    block = (threads,)

    def launch(*arrays: Any) -> None:
        run(grid, block, (*map(_or_null, arrays), *constants))

    return launch


def _forward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), center = spec.shape, spec.center
    single = cupy.dtype(ACCUMULATION.get(spec.dtype, "float32"))
    smallest = float(cupy.finfo(single).smallest_normal) if spec.epsilon > 0 else 0.0
    epsilon = max(spec.epsilon, smallest)
    shape = row_shape(spec.dtype, n, FORWARD_WARPS)
    names = (C_NAME[each or spec.dtype] for each in (spec.dtype, spec.gamma, spec.beta))
    normalise = _launcher(
        kernel("rows_forward", *names, *shape, center, spec.repeat > 1),
        (_ceil(m, shape.rows),),
        shape.threads,
        *(m, n, cupy.uint32(spec.groups), spec.repeat, 1 / n, epsilon, math.sqrt(epsilon)),
    )
    empty, column = cupy.empty, (m, 1)

    def call(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = empty((m, n), x.dtype) if out is None else out
        mean = empty(column, single) if center else None
        rstd = empty(column, single)
        normalise(x, gamma, beta, y, mean, rstd)
        return y, mean, rstd

    return call


def slots_for(rows: int, units: int, at_once: int) -> int:
    """Into how many parts sums over so many rows are cut, where `units` such sums run at once."""
    return min(rows, max(_ceil(at_once, units), _ceil(rows, RUN)))


def _add_up(spec: RowsSpec, dtype: str, slots: int, gradients: int) -> Callable[..., None]:
    """The launch that adds up the parts of one or both of dgamma and dbeta."""
    width = spec.groups * spec.shape[1]
    if spec.repeat > 1:
        grid = (_ceil(width // spec.repeat, TEAMS), gradients)
        run = kernel("add_up_repeated", C_NAME[dtype], TEAMS)
        return _launcher(run, grid, TEAMS * WARP, slots, width, spec.repeat)
    grid = (_ceil(width, COLUMNS), gradients)
    run = kernel("add_up", C_NAME[dtype], COLUMNS, TEAMS)
    return _launcher(run, grid, COLUMNS * TEAMS, slots, width)


def _backward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), center, groups, repeat = spec.shape, spec.center, spec.groups, spec.repeat
    need_dx, need_dgamma, need_dbeta = spec.need
    wanted = need_dgamma + need_dbeta
    single = cupy.dtype(ACCUMULATION.get(spec.dtype, "float32"))
    names = [C_NAME[each or spec.dtype] for each in (spec.dtype, spec.dy, spec.gamma)]
    shape = row_shape(spec.dtype, n, BACKWARD_WARPS)
    # Rows that are kept in registers give all gradients at once. Where rows are long, or dbeta
    # alone is wanted, columns are summed by themselves, given what the mean of each row missed.
    at_once = shape.chunks > 0 and (need_dx or need_dgamma)
    by_columns = wanted > 0 and not at_once
    keeps_missed = by_columns and need_dgamma and center
    of_rows = of_columns = add_up = None
    tiles = _ceil(n, THREADS)
    slots = _ceil(m // groups, shape.rows)
    if by_columns:
        slots = slots_for(m // groups, groups * tiles, WARPS_AT_ONCE * WARP // THREADS)
        of_columns = _launcher(
            kernel("parameter_gradients", *names[:2], THREADS, center),
            (tiles * slots * groups,),
            THREADS,
            *(m, n, groups, slots, tiles),
        )
    elif wanted:
        slots = slots_for(slots, groups, WARPS_AT_ONCE // max(shape.warps, shape.rows))
    if at_once:
        of_rows = _launcher(
            kernel("rows_backward", *names, *shape, center, repeat > 1),
            (slots * groups,),
            shape.threads,
            *(m, n, cupy.uint32(groups), repeat, 1 / n, slots),
        )
    elif need_dx or keeps_missed:
        of_rows = _launcher(
            kernel("long_rows_backward", *names, LONG.warps, center, repeat > 1),
            (m,),
            LONG.threads,
            *(n, cupy.uint32(groups), repeat, 1 / n),
        )
    if wanted and (slots > 1 or repeat > 1):
        add_up = _add_up(spec, single.name, slots, wanted)
    parameters = (groups * n // repeat,)
    part = slots * groups * n if add_up else 0
    workspace = wanted * part + m * keeps_missed
    empty = cupy.empty

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = empty((m, n), x.dtype) if need_dx else None
        dgamma = empty(parameters, single) if need_dgamma else None
        dbeta = empty(parameters, single) if need_dbeta else None
        memory = empty((workspace,), single) if workspace else None
        begin = memory.data.ptr if memory is not None else 0
        missed = begin + wanted * part * single.itemsize if keeps_missed else None
        parts = [dgamma, dbeta]
        if add_up:
            step = part * single.itemsize
            parts = [
                begin if need_dgamma else None,
                begin + step * need_dgamma if need_dbeta else None,
            ]
        if of_rows:
            outputs = parts if at_once else (missed,)
            of_rows(dy, x, mean, rstd, gamma, dx, *outputs)
        if of_columns:
            of_columns(dy, x, mean, rstd, missed, *parts)
        if add_up:
            # The kernel's second block row, if there is one, is dbeta's.
            first, result = (parts[0], dgamma) if need_dgamma else (parts[1], dbeta)
            add_up(first, parts[1], result, dbeta)
        return dx, dgamma, dbeta

    return call
