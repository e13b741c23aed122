"""From a spec to launches: which kernels, how many blocks, one workspace for a kind of call."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import cupy

from ln_array_api.backend import Primitive, RowsSpec

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
    module = cupy.RawModule(
        code=source(), options=("-std=c++17",), name_expressions=(expression,)
    )
    return module.get_function(expression)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


class CuPyBackend:
    """Both rows primitives, for every dtype and option."""

    def can_run(self, primitive: Primitive, spec: RowsSpec) -> bool:
        return 0 not in spec.shape

    def prepare(self, primitive: Primitive, spec: RowsSpec) -> Callable[..., Any]:
        call = _forward(spec) if primitive == "rows_forward" else _backward(spec)
        if cupy.cuda.runtime.getDeviceCount() == 1:
            return call

        def on_its_device(*arrays: Any, **options: Any) -> Any:
            with arrays[0].device:
                return call(*arrays, **options)

        return on_its_device

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


def _forward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), center = spec.shape, spec.center
    single = cupy.dtype(ACCUMULATION.get(spec.dtype, "float32"))
    smallest = float(cupy.finfo(single).smallest_normal) if spec.epsilon > 0 else 0.0
    epsilon = max(spec.epsilon, smallest)
    shape = row_shape(spec.dtype, n, FORWARD_WARPS)
    names = (C_NAME[each or spec.dtype] for each in (spec.dtype, spec.gamma, spec.beta))
    run = kernel("rows_forward", *names, *shape, center, spec.repeat > 1)
    grid, block = (_ceil(m, shape.rows),), (shape.threads,)
    constants = (m, n, spec.groups, spec.repeat, 1 / n, epsilon, math.sqrt(epsilon))
    empty, column = cupy.empty, (m, 1)

    def call(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = empty((m, n), x.dtype) if out is None else out
        mean = empty(column, single) if center else None
        rstd = empty(column, single)
        arrays = (x, _or_null(gamma), _or_null(beta), y, _or_null(mean), rstd)
        run(grid, block, (*arrays, *constants))
        return y, mean, rstd

    return call


def slots_for(rows: int, units: int, at_once: int) -> int:
    """Into how many parts sums over so many rows are cut, where `units` such sums run at once."""
    return min(rows, max(_ceil(at_once, units), _ceil(rows, RUN)))


def _backward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), groups, repeat = spec.shape, spec.groups, spec.repeat
    need_dx, need_dgamma, need_dbeta = spec.need
    need_rows = need_dx or need_dgamma
    single = cupy.dtype(ACCUMULATION.get(spec.dtype, "float32"))
    x_name, dy_name = C_NAME[spec.dtype], C_NAME[spec.dy or spec.dtype]
    gamma_name, a_name = C_NAME[spec.gamma or spec.dtype], C_NAME[single.name]
    shape = row_shape(spec.dtype, n, BACKWARD_WARPS)
    by_rows = need_rows and shape.chunks > 0
    by_columns = (need_dgamma or need_dbeta) and not by_rows
    repeated, width = repeat > 1, groups * n
    tiles = _ceil(n, THREADS)
    if by_rows:
        at_once = WARPS_AT_ONCE // max(shape.warps, shape.rows)
        teams = _ceil(m // groups, shape.rows)
        slots = slots_for(teams, groups, at_once) if need_dgamma or need_dbeta else teams
    else:
        slots = slots_for(m // groups, groups * tiles, WARPS_AT_ONCE * WARP // THREADS)
    wanted = [name for name, need in (("dgamma", need_dgamma), ("dbeta", need_dbeta)) if need]
    adds_up = bool(wanted) and (slots > 1 or repeated)
    keeps_missed = by_columns and need_dgamma and spec.center
    partials = slots * width if adds_up else 0
    workspace_size = len(wanted) * partials + (m if keeps_missed else 0)
    parameters = width // repeat
    if by_rows:
        run = kernel(
            "rows_backward", x_name, dy_name, gamma_name, *shape, spec.center, repeated
        )
    elif need_rows:
        run = kernel(
            "long_rows_backward",
            *(x_name, dy_name, gamma_name, shape.warps or LONG_ROW_WARPS, spec.center, repeated),
        )
    if by_columns:
        run_columns = kernel("parameter_gradients", x_name, dy_name, THREADS, spec.center)
    if adds_up:
        if repeated:
            run_sums = kernel("add_up_repeated", a_name, TEAMS)
            grid_of_sums = (_ceil(parameters, TEAMS), len(wanted))
        else:
            run_sums = kernel("add_up", a_name, COLUMNS, TEAMS)
            grid_of_sums = (_ceil(width, COLUMNS), len(wanted))
    empty = cupy.empty

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = empty((m, n), x.dtype) if need_dx else None
        results = [empty((parameters,), single) for _ in wanted]
        workspace = empty((workspace_size,), single) if workspace_size else None
        begin = 0 if workspace is None else workspace.data.ptr
        step = partials * single.itemsize
        parts = [begin + place * step for place in range(len(wanted))] if adds_up else results
        place_of = dict(zip(wanted, parts, strict=True))
        dgamma, dbeta = place_of.get("dgamma", 0), place_of.get("dbeta", 0)
        missed = begin + len(wanted) * step if keeps_missed else 0
        mean_, gamma_, dx_ = _or_null(mean), _or_null(gamma), _or_null(dx)
        if by_rows:
            arrays = (dy, x, mean_, rstd, gamma_, dx_, dgamma, dbeta)
            run((slots * groups,), (shape.threads,), (*arrays, m, n, groups, repeat, 1 / n, slots))
        elif need_rows and (need_dx or keeps_missed):
            arrays = (dy, x, mean_, rstd, gamma_, dx_, missed)
            run((m,), (shape.threads,), (*arrays, n, groups, repeat, 1 / n))
        if by_columns:
            arrays = (dy, x, mean_, rstd, missed, dgamma, dbeta)
            grid = (tiles * slots * groups,)
            run_columns(grid, (THREADS,), (*arrays, m, n, groups, slots, tiles))
        if adds_up:
            pointers = (parts[0], parts[-1], results[0], results[-1], slots, width)
            if repeated:
                run_sums(grid_of_sums, (TEAMS * WARP,), (*pointers, repeat))
            else:
                run_sums(grid_of_sums, (COLUMNS * TEAMS,), pointers)
        result_of = dict(zip(wanted, results, strict=True))
        return dx, result_of.get("dgamma"), result_of.get("dbeta")

    return call
