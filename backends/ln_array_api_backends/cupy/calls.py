"""From a spec to launches: which kernels, how many blocks, one workspace for a kind of call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cupy
import numpy as np

from ln_array_api.backend import (
    ChannelsBackend,
    ChannelsSpec,
    Layout,
    Primitive,
    RowsBackend,
    RowsSpec,
    Spec,
)

from . import channels, stages
from .launching import ACCUMULATION, C_NAME, compiled, expression, launcher, read
from .shapes import (
    CHUNK_BYTES,
    ITEMSIZE,
    MOST_CHUNKS,
    WARP,
    WARPS_AT_ONCE,
    Repeat,
    are_kept,
    backward_chunks,
    backward_shape,
    ceil,
    forward_shape,
    row_cut,
    slots_for,
)
from .strided import prepare_strided

COLUMNS, TEAMS = 32, 8
#: Numbers in the moments of a segment.
MOMENTS = 4


@cache
def source() -> str:
    """The CUDA C of all kernels over rows."""
    return read("common.cu", "forward.cu", "backward.cu")


@cache
def kernel(name: str, *parameters: str | int | bool) -> Any:
    """A kernel over rows for such template parameters."""
    return compiled(source(), expression(name, *parameters))


class CuPyBackend(RowsBackend, ChannelsBackend):
    """All primitives, for every dtype and option."""

    caffe2_stages = stages

    def can_run(self, primitive: Primitive, spec: Spec) -> bool:
        if isinstance(spec, ChannelsSpec):
            return channels.can_run(spec)
        m, n = spec.shape
        # A block has a 32-bit number, and computes with it, the number of groups and `repeat`.
        return 0 < m < 1 << 31 and n > 0 and spec.groups < 1 << 29 and spec.repeat < 1 << 31

    def prepare(self, primitive: Primitive, spec: Spec) -> Callable[..., Any]:
        if isinstance(spec, ChannelsSpec):
            return channels.prepare_channels(primitive, spec)
        return _forward(spec) if primitive == "rows_forward" else _backward(spec)

    def prepare_strided(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout
    ) -> tuple[Callable[..., Any], str] | None:
        return prepare_strided(primitive, spec, layout)

    def describe(self, primitive: Primitive, spec: Spec) -> str:
        if isinstance(spec, ChannelsSpec):
            return channels.describe(primitive, spec)
        dtype, n = spec.dtype, spec.shape[1]
        if primitive == "rows_forward":
            how = forward_shape(dtype, n) or row_cut(dtype, n, MOST_CHUNKS[dtype])
        else:
            repeat = Repeat.of(dtype, spec.repeat)
            how = backward_shape(dtype, n, repeat, spec.gamma) or row_cut(
                dtype, n, backward_chunks(dtype, repeat)
            )
        return f"CUDA C for {dtype}, {how}"


def _forward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), center = spec.shape, spec.center
    single = np.dtype(ACCUMULATION.get(spec.dtype, "float32"))
    smallest = float(np.finfo(single).smallest_normal) if spec.epsilon > 0 else 0.0
    epsilon = max(spec.epsilon, smallest)
    names = [C_NAME[each or spec.dtype] for each in (spec.dtype, spec.gamma, spec.beta)]
    flags = (center, Repeat.of(spec.dtype, spec.repeat))
    places = (np.uint32(spec.groups), spec.repeat)
    shape = forward_shape(spec.dtype, n)
    of_segments, workspace = None, 0
    if shape:
        normalise = launcher(
            kernel("rows_forward", *names, *shape, *flags),
            (ceil(m, shape.rows),),
            shape.threads,
            *(m, n, *places, 1 / n, epsilon),
        )
    else:
        cut = row_cut(spec.dtype, n, MOST_CHUNKS[spec.dtype])
        segments = (np.uint32(cut.segments), cut.length)
        workspace = m * cut.segments * MOMENTS * single.itemsize
        of_segments = launcher(
            kernel("segment_moments", names[0], cut.warps, cut.chunks, center),
            (m * cut.segments,),
            cut.threads,
            *(n, *segments, epsilon),
        )
        normalise = launcher(
            kernel("segments_forward", *names, cut.warps, cut.chunks, *flags),
            (m * cut.tiles,),
            cut.threads,
            *(n, *places, *segments, np.uint32(cut.tiles), epsilon),
        )
    array, alloc, whole, column = cupy.ndarray, cupy.cuda.alloc, (m, n), (m, 1)
    statistic = m * single.itemsize

    def call(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = array(whole, x.dtype) if out is None else out
        memory = alloc(statistic * (1 + center))
        rstd = array(column, single, memory)
        mean = array(column, single, memory + statistic) if center else None
        if of_segments is None:
            normalise(x, gamma, beta, y, mean, rstd)
        else:
            moments = alloc(workspace)
            of_segments(x, moments)
            normalise(x, gamma, beta, y, mean, rstd, moments)
        return y, mean, rstd

    return call


def _per_sum(spec: RowsSpec) -> int:
    """How many elements of a row each partial sum of a gradient is of."""
    of_chunks = Repeat.of(spec.dtype, spec.repeat) == Repeat.CHUNKS_OF
    return CHUNK_BYTES // ITEMSIZE[spec.dtype] if of_chunks else 1


def _add_up(spec: RowsSpec, slots: int, gradients: int, per: int) -> Callable[..., None] | None:
    """The launch that makes one or both of dgamma and dbeta of partial sums, each `per` elements'.

    There is a row of them for each slot and group; none is needed where these are the gradients.
    """
    width, repeat = spec.groups * spec.shape[1] // per, spec.repeat // per
    name = C_NAME[ACCUMULATION.get(spec.dtype, "float32")]
    result = C_NAME[spec.gamma or spec.dtype]
    if repeat > 1:
        grid = (ceil(width // repeat, TEAMS), gradients)
        run = kernel("add_up_repeated", name, result, TEAMS)
        return launcher(run, grid, TEAMS * WARP, slots, width, repeat)
    if slots == 1 and name == result:
        return None
    grid = (ceil(width, COLUMNS), gradients)
    run = kernel("add_up", name, name, result, COLUMNS, TEAMS)
    return launcher(run, grid, COLUMNS * TEAMS, slots, width, np.uint32(1))


def _backward(spec: RowsSpec) -> Callable[..., Any]:
    (m, n), groups, repeat = spec.shape, spec.groups, spec.repeat
    need_dx, need_dgamma, need_dbeta = spec.need
    if not (need_dx or need_dgamma):
        return _dbeta(spec) if need_dbeta else lambda *arrays: (None, None, None)
    wanted = need_dgamma + need_dbeta
    single = np.dtype(ACCUMULATION.get(spec.dtype, "float32"))
    names = [C_NAME[each or spec.dtype] for each in (spec.dtype, spec.dy, spec.gamma)]
    sharing = Repeat.of(spec.dtype, repeat)
    flags, places = (spec.center, sharing), (np.uint32(groups), repeat)
    shape = backward_shape(spec.dtype, n, sharing, spec.gamma)
    of_segments, row_sums = None, 0
    if shape:
        slots = ceil(m // groups, shape.rows)
        if wanted:
            slots = slots_for(slots, groups, WARPS_AT_ONCE // max(shape.warps, shape.rows))
        kept = are_kept(spec.dtype, shape)
        differentiate = launcher(
            kernel("rows_backward", *names, *shape, kept, *flags),
            (slots * groups,),
            shape.threads,
            *(m, n, *places, 1 / n, slots),
        )
    else:
        cut = row_cut(spec.dtype, n, backward_chunks(spec.dtype, sharing))
        slots = m // groups
        if wanted:
            slots = slots_for(slots, groups * cut.tiles, WARPS_AT_ONCE // cut.warps)
        segments, row_sums = np.uint32(cut.segments), 3 * m * cut.segments
        of_segments = launcher(
            kernel("segment_sums", *names, cut.warps, cut.chunks, *flags),
            (m * cut.segments,),
            cut.threads,
            *(n, *places, segments, cut.length),
        )
        differentiate = launcher(
            kernel("segments_backward", *names, cut.warps, cut.chunks, *flags),
            (slots * groups * cut.tiles,),
            cut.threads,
            *(m, n, *places, 1 / n, slots, segments, np.uint32(cut.tiles)),
        )
    per = _per_sum(spec)
    add_up = _add_up(spec, slots, wanted, per) if wanted else None
    part = slots * groups * n // per * single.itemsize if add_up else 0
    workspace = wanted * part + row_sums * single.itemsize
    array, alloc, parameters = cupy.ndarray, cupy.cuda.alloc, (groups * n // repeat,)

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = array((m, n), x.dtype) if need_dx else None
        dtype = (x if gamma is None else gamma).dtype
        gradients = [
            array(parameters, dtype) if each else None for each in (need_dgamma, need_dbeta)
        ]
        memory: Any = alloc(workspace) if workspace else None
        parts = gradients
        if add_up:
            parts = [
                memory if need_dgamma else None,
                memory + part * need_dgamma if need_dbeta else None,
            ]
        if of_segments:
            sums = memory + wanted * part
            of_segments(dy, x, mean, rstd, gamma, sums)
            differentiate(dy, x, mean, rstd, gamma, dx, *parts, sums)
        else:
            differentiate(dy, x, mean, rstd, gamma, dx, *parts)
        if add_up:
            # The kernel's first is dgamma, or what there is; its second is dbeta after dgamma.
            first = 0 if need_dgamma else 1
            add_up(parts[first], parts[1], gradients[first], gradients[1])
        return dx, *gradients

    return call


def _dbeta(spec: RowsSpec) -> Callable[..., Any]:
    """Dbeta alone is sums over columns of dy, whose rows of all groups stand side by side."""
    rows, width = spec.shape[0] // spec.groups, spec.groups * spec.shape[1]
    single = np.dtype(ACCUMULATION.get(spec.dtype, "float32"))
    name, tiles = C_NAME[single.name], ceil(width, COLUMNS)
    slots = slots_for(ceil(rows, TEAMS), tiles, WARPS_AT_ONCE // TEAMS)
    add_rows_up = launcher(
        kernel("add_up", C_NAME[spec.dy or spec.dtype], name, name, COLUMNS, TEAMS),
        (tiles * slots,),
        COLUMNS * TEAMS,
        *(rows, width, np.uint32(slots)),
    )
    add_up = _add_up(spec, slots, 1, per=1)
    workspace = slots * width * single.itemsize

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dbeta = cupy.ndarray((width // spec.repeat,), (x if gamma is None else gamma).dtype)
        if add_up:
            parts = cupy.cuda.alloc(workspace)
            add_rows_up(dy, None, parts, None)
            add_up(parts, None, dbeta, None)
        else:
            add_rows_up(dy, None, dbeta, None)
        return None, None, dbeta

    return call
