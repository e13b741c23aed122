"""From a spec to launches: which kernels, how many blocks, one workspace for a kind of call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

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
from .launching import ACCUMULATION, C_NAME, CuPyMemory, compiled, expression, launcher, read
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

    def prepare(
        self, primitive: Primitive, spec: Spec, memory: Any = CuPyMemory
    ) -> Callable[..., Any]:
        """What runs such a call on arrays of CuPy, or of the library that `memory` is for."""
        if isinstance(spec, ChannelsSpec):
            return channels.prepare_channels(primitive, spec, memory)
        return (_forward if primitive == "rows_forward" else _backward)(spec, memory)

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


def _forward(spec: RowsSpec, memory: Any) -> Callable[..., Any]:
    (m, n), center = spec.shape, spec.center
    single = np.dtype(ACCUMULATION.get(spec.dtype, "float32"))
    names = [C_NAME[each or spec.dtype] for each in (spec.dtype, spec.gamma, spec.beta)]
    flags = (center, Repeat.of(spec.dtype, spec.repeat))
    places = (np.uint32(spec.groups), spec.repeat)
    shape = forward_shape(spec.dtype, n)
    of_segments, workspace = None, 0
    if shape:
        normalise = launcher(
            memory,
            kernel("rows_forward", *names, *shape, *flags),
            (ceil(m, shape.rows),),
            shape.threads,
            *(m, n, *places, 1 / n, spec.epsilon),
        )
    else:
        cut = row_cut(spec.dtype, n, MOST_CHUNKS[spec.dtype])
        segments = (np.uint32(cut.segments), cut.length)
        workspace = m * cut.segments * MOMENTS * single.itemsize
        of_segments = launcher(
            memory,
            kernel("segment_moments", names[0], cut.warps, cut.chunks, center),
            (m * cut.segments,),
            cut.threads,
            *(n, *segments, spec.epsilon),
        )
        normalise = launcher(
            memory,
            kernel("segments_forward", *names, cut.warps, cut.chunks, *flags),
            (m * cut.tiles,),
            cut.threads,
            *(n, *places, *segments, np.uint32(cut.tiles), spec.epsilon),
        )
    empty, several, whole, column = memory.empty, memory.several, (m, n), (m, 1)
    dtype = memory.dtype(single.name)

    def call(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = empty(whole, x.dtype, x) if out is None else out
        rstd, *means = several(1 + center, column, dtype, x)
        mean = means[0] if center else None
        if of_segments is None:
            normalise(x, gamma, beta, y, mean, rstd)
        else:
            moments = memory.workspace(workspace, x)
            of_segments(x, moments)
            normalise(x, gamma, beta, y, mean, rstd, moments)
        return y, mean, rstd

    return call


def _per_sum(spec: RowsSpec) -> int:
    """How many elements of a row each partial sum of a gradient is of."""
    of_chunks = Repeat.of(spec.dtype, spec.repeat) == Repeat.CHUNKS_OF
    return CHUNK_BYTES // ITEMSIZE[spec.dtype] if of_chunks else 1


def _add_up(
    spec: RowsSpec, memory: Any, slots: int, gradients: int, per: int
) -> Callable[..., None] | None:
    """The launch that makes one or both of dgamma and dbeta of partial sums, each `per` elements'.

    There is a row of them for each slot and group; none is needed where these are the gradients.
    """
    width, repeat = spec.groups * spec.shape[1] // per, spec.repeat // per
    name = C_NAME[ACCUMULATION.get(spec.dtype, "float32")]
    result = C_NAME[spec.gamma or spec.dtype]
    if repeat > 1:
        grid = (ceil(width // repeat, TEAMS), gradients)
        run = kernel("add_up_repeated", name, result, TEAMS)
        return launcher(memory, run, grid, TEAMS * WARP, slots, width, repeat)
    if slots == 1 and name == result:
        return None
    grid = (ceil(width, COLUMNS), gradients)
    run = kernel("add_up", name, name, result, COLUMNS, TEAMS)
    return launcher(memory, run, grid, COLUMNS * TEAMS, slots, width, np.uint32(1))


def _backward(spec: RowsSpec, memory: Any) -> Callable[..., Any]:
    (m, n), groups, repeat = spec.shape, spec.groups, spec.repeat
    need_dx, need_dgamma, need_dbeta = spec.need
    if not (need_dx or need_dgamma):
        return _dbeta(spec, memory) if need_dbeta else lambda *arrays: (None, None, None)
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
            memory,
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
            memory,
            kernel("segment_sums", *names, cut.warps, cut.chunks, *flags),
            (m * cut.segments,),
            cut.threads,
            *(n, *places, segments, cut.length),
        )
        differentiate = launcher(
            memory,
            kernel("segments_backward", *names, cut.warps, cut.chunks, *flags),
            (slots * groups * cut.tiles,),
            cut.threads,
            *(m, n, *places, 1 / n, slots, segments, np.uint32(cut.tiles)),
        )
    per = _per_sum(spec)
    add_up = _add_up(spec, memory, slots, wanted, per) if wanted else None
    part = slots * groups * n // per * single.itemsize if add_up else 0
    workspace = wanted * part + row_sums * single.itemsize
    empty, parameters = memory.empty, (groups * n // repeat,)

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = empty((m, n), x.dtype, x) if need_dx else None
        dtype = (x if gamma is None else gamma).dtype
        gradients = [
            empty(parameters, dtype, x) if each else None for each in (need_dgamma, need_dbeta)
        ]
        partial: Any = memory.workspace(workspace, x) if workspace else None
        parts = gradients
        if add_up:
            parts = [
                partial if need_dgamma else None,
                partial + part * need_dgamma if need_dbeta else None,
            ]
        if of_segments:
            sums = partial + wanted * part
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


def _dbeta(spec: RowsSpec, memory: Any) -> Callable[..., Any]:
    """Dbeta alone is sums over columns of dy, whose rows of all groups stand side by side."""
    rows, width = spec.shape[0] // spec.groups, spec.groups * spec.shape[1]
    single = np.dtype(ACCUMULATION.get(spec.dtype, "float32"))
    name, tiles = C_NAME[single.name], ceil(width, COLUMNS)
    slots = slots_for(ceil(rows, TEAMS), tiles, WARPS_AT_ONCE // TEAMS)
    add_rows_up = launcher(
        memory,
        kernel("add_up", C_NAME[spec.dy or spec.dtype], name, name, COLUMNS, TEAMS),
        (tiles * slots,),
        COLUMNS * TEAMS,
        *(rows, width, np.uint32(slots)),
    )
    add_up = _add_up(spec, memory, slots, 1, per=1)
    workspace = slots * width * single.itemsize

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dtype = (x if gamma is None else gamma).dtype
        dbeta = memory.empty((width // spec.repeat,), dtype, x)
        if add_up:
            parts = memory.workspace(workspace, x)
            add_rows_up(dy, None, parts, None)
            add_up(parts, None, dbeta, None)
        else:
            add_rows_up(dy, None, dbeta, None)
        return None, None, dbeta

    return call
