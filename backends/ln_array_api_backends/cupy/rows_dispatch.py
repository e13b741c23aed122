"""From a spec of rows to launches: which kernels, how many blocks, one workspace for a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ln_array_api.backend import Primitive, RowsSpec

from .kernel_launch import C_NAME, accumulation_dtype, bind_launch, get_kernel, read_sources
from .launch_config import (
    BACKWARD_CHUNKS,
    BACKWARD_TARGET_WARPS,
    CHUNK_BYTES,
    FORWARD_CHUNKS,
    ITEMSIZE,
    TARGET_WARPS,
    WARP,
    ParamIndexing,
    backward_chunks,
    backward_shape,
    backward_target,
    ceil_div,
    choose_num_partials,
    forward_shape,
    split_row,
)

#: Threads of a block that adds up partial sums: over columns, and over rows of them. So many have
#: enough loads in flight where there are few columns.
COLUMNS, THREAD_ROWS = 32, 32
#: Warps of a block that adds up repeated partial sums.
REPEATED_WARPS = 8
#: Numbers in the moments of a segment, and sums over a segment.
NUM_MOMENTS, NUM_SUMS = 4, 3


@cache
def source() -> str:
    """Return the CUDA C of all kernels over rows."""
    return read_sources("accumulate.cuh", "common.cuh", "rows_forward.cu", "rows_backward.cu")


@cache
def kernel(name: str, *parameters: str | int | bool) -> Any:
    """Return a kernel over rows for these template parameters."""
    return get_kernel(source(), name, *parameters)


def can_run(spec: RowsSpec) -> bool:
    """Return whether 32 bits hold a block's number, the number of groups and `repeat`.

    Parameters that several adjacent rows share are for the generic kernels.
    """
    m, n = spec.shape
    if spec.span > 1:
        return False
    return 0 < m < 1 << 31 and n > 0 and spec.groups < 1 << 29 and spec.repeat < 1 << 31


def describe(primitive: Primitive, spec: RowsSpec) -> str:
    """Say how rows are distributed over threads."""
    dtype, n = spec.dtype, spec.shape[1]
    if primitive == "rows_forward":
        return str(forward_shape(dtype, n) or split_row(dtype, n, FORWARD_CHUNKS))
    indexing = ParamIndexing.of(dtype, spec.repeat)
    shape = backward_shape(dtype, n, indexing)
    return str(shape or split_row(dtype, n, backward_chunks(dtype, indexing)))


def _forward(spec: RowsSpec, memory: Any) -> Callable[..., Any]:
    (m, n), center = spec.shape, spec.center
    acc_dtype = accumulation_dtype(spec.dtype)
    names = C_NAME[spec.dtype], C_NAME[spec.gamma or spec.beta or spec.dtype]
    flags = (center, ParamIndexing.of(spec.dtype, spec.repeat))
    group_args = (np.uint32(spec.groups), spec.repeat)
    shape = forward_shape(spec.dtype, n)
    launch_segments, workspace_bytes = None, 0
    if shape:
        launch_forward = bind_launch(
            memory,
            kernel("rows_forward", *names, *shape, *flags),
            (ceil_div(m, shape.rows),),
            shape.threads,
            *(m, n, *group_args, 1 / n, spec.epsilon),
        )
    else:
        split = split_row(spec.dtype, n, FORWARD_CHUNKS)
        segment_args = (np.uint32(split.segments), split.length)
        workspace_bytes = m * split.segments * NUM_MOMENTS * acc_dtype.itemsize
        launch_segments = bind_launch(
            memory,
            kernel("segment_moments", names[0], split.threads, split.chunks, center),
            (m * split.segments,),
            split.threads,
            *(n, *segment_args, spec.epsilon),
        )
        launch_forward = bind_launch(
            memory,
            kernel("segments_forward", *names, split.threads, split.chunks, *flags),
            (m * split.tiles,),
            split.threads,
            *(n, *group_args, *segment_args, np.uint32(split.tiles), spec.epsilon),
        )
    empty, several, y_shape, stats_shape = memory.empty, memory.several, (m, n), (m, 1)
    dtype = memory.dtype(acc_dtype.name)

    def call(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = empty(y_shape, x.dtype, x) if out is None else out
        rstd, *means = several(1 + center, stats_shape, dtype, x)
        mean = means[0] if center else None
        if launch_segments is None:
            launch_forward(x, gamma, beta, y, mean, rstd)
        else:
            segment_moments = memory.workspace(workspace_bytes, x)
            launch_segments(x, segment_moments)
            launch_forward(x, gamma, beta, y, mean, rstd, segment_moments)
        return y, mean, rstd

    return call


def _bind_reduce(
    spec: RowsSpec, memory: Any, num_partials: int, num_gradients: int, elements_per_sum: int
) -> Callable[..., None] | None:
    """Bind the launch that adds up the partial sums of dgamma, dbeta or both.

    There is a row of sums for each partial and group, each over `elements_per_sum` elements. Return
    None where the partial sums are the gradients.
    """
    width, repeat = spec.groups * spec.shape[1] // elements_per_sum, spec.repeat // elements_per_sum
    acc_name = C_NAME[accumulation_dtype(spec.dtype).name]
    result = C_NAME[spec.gamma or spec.dtype]
    if repeat > 1:
        grid = (ceil_div(width // repeat, REPEATED_WARPS), num_gradients)
        run = kernel("reduce_repeated_partials", acc_name, result, REPEATED_WARPS)
        return bind_launch(memory, run, grid, REPEATED_WARPS * WARP, num_partials, width, repeat)
    if num_partials == 1 and acc_name == result:
        return None
    grid = (ceil_div(width, COLUMNS), num_gradients)
    run = kernel("reduce_partials", acc_name, acc_name, result, COLUMNS, THREAD_ROWS)
    threads = COLUMNS * THREAD_ROWS
    return bind_launch(memory, run, grid, threads, num_partials, width, np.uint32(1))


def _backward(spec: RowsSpec, memory: Any) -> Callable[..., Any]:
    (m, n), groups, repeat = spec.shape, spec.groups, spec.repeat
    need_dx, need_dgamma, need_dbeta = spec.need
    if not (need_dx or need_dgamma):
        return _dbeta(spec, memory) if need_dbeta else lambda *arrays: (None, None, None)
    num_param_grads = need_dgamma + need_dbeta
    acc_bytes = accumulation_dtype(spec.dtype).itemsize
    names = [C_NAME[each or spec.dtype] for each in (spec.dtype, spec.dy, spec.gamma)]
    indexing = ParamIndexing.of(spec.dtype, repeat)
    flags, group_args = (spec.center, indexing), (np.uint32(groups), repeat)
    shape = backward_shape(spec.dtype, n, indexing)
    launch_segments, segment_sums_bytes = None, 0
    if shape:
        num_partials = ceil_div(m // groups, shape.rows)
        if num_param_grads:
            target = backward_target(shape, m)
            num_partials = choose_num_partials(num_partials, groups, target)
        in_registers = shape.chunks <= BACKWARD_CHUNKS[spec.dtype]
        launch_backward = bind_launch(
            memory,
            kernel("rows_backward", *names, *shape, in_registers, *flags),
            (num_partials * groups,),
            shape.threads,
            *(m, n, *group_args, 1 / n, num_partials),
        )
    else:
        split = split_row(spec.dtype, n, backward_chunks(spec.dtype, indexing))
        num_partials = m // groups
        if num_param_grads:
            num_partials = choose_num_partials(
                num_partials, groups * split.tiles, BACKWARD_TARGET_WARPS * WARP // split.threads
            )
        segments = np.uint32(split.segments)
        segment_sums_bytes = NUM_SUMS * m * split.segments * acc_bytes
        launch_segments = bind_launch(
            memory,
            kernel("segment_sums", *names, split.threads, split.chunks, *flags),
            (m * split.segments,),
            split.threads,
            *(n, *group_args, segments, split.length),
        )
        launch_backward = bind_launch(
            memory,
            kernel("segments_backward", *names, split.threads, split.chunks, *flags),
            (num_partials * groups * split.tiles,),
            split.threads,
            *(m, n, *group_args, 1 / n, num_partials, segments, np.uint32(split.tiles)),
        )
    elements_per_sum = 1
    if indexing == ParamIndexing.PER_CHUNK:
        elements_per_sum = CHUNK_BYTES // ITEMSIZE[spec.dtype]
    launch_reduce = (
        _bind_reduce(spec, memory, num_partials, num_param_grads, elements_per_sum)
        if num_param_grads
        else None
    )
    partials_bytes = 0
    if launch_reduce:
        partials_bytes = num_partials * groups * n // elements_per_sum * acc_bytes
    workspace_bytes = num_param_grads * partials_bytes + segment_sums_bytes
    empty, params_shape = memory.empty, (groups * n // repeat,)

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = empty((m, n), x.dtype, x) if need_dx else None
        dtype = (x if gamma is None else gamma).dtype
        gradients = [
            empty(params_shape, dtype, x) if each else None for each in (need_dgamma, need_dbeta)
        ]
        workspace: Any = memory.workspace(workspace_bytes, x) if workspace_bytes else None
        partials = gradients
        if launch_reduce:
            partials = [
                workspace if need_dgamma else None,
                workspace + partials_bytes * need_dgamma if need_dbeta else None,
            ]
        if launch_segments:
            segment_sums = workspace + num_param_grads * partials_bytes
            launch_segments(dy, x, mean, rstd, gamma, segment_sums)
            launch_backward(dy, x, mean, rstd, gamma, dx, *partials, segment_sums)
        else:
            launch_backward(dy, x, mean, rstd, gamma, dx, *partials)
        if launch_reduce:
            # The kernel reduces one gradient, or dgamma first and dbeta second.
            first = 0 if need_dgamma else 1
            launch_reduce(partials[first], partials[1], gradients[first], gradients[1])
        return dx, *gradients

    return call


def _dbeta(spec: RowsSpec, memory: Any) -> Callable[..., Any]:
    """Prepare dbeta alone: sums over columns of dy, seen as rows of all groups side by side."""
    rows, width = spec.shape[0] // spec.groups, spec.groups * spec.shape[1]
    acc_dtype = accumulation_dtype(spec.dtype)
    acc_name, tiles = C_NAME[acc_dtype.name], ceil_div(width, COLUMNS)
    target = TARGET_WARPS // THREAD_ROWS
    num_partials = choose_num_partials(ceil_div(rows, THREAD_ROWS), tiles, target)
    dy_name = C_NAME[spec.dy or spec.dtype]
    launch_rows = bind_launch(
        memory,
        kernel("reduce_partials", dy_name, acc_name, acc_name, COLUMNS, THREAD_ROWS),
        (tiles * num_partials,),
        COLUMNS * THREAD_ROWS,
        *(rows, width, np.uint32(num_partials)),
    )
    launch_reduce = _bind_reduce(spec, memory, num_partials, 1, elements_per_sum=1)
    workspace_bytes = num_partials * width * acc_dtype.itemsize

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dtype = (x if gamma is None else gamma).dtype
        dbeta = memory.empty((width // spec.repeat,), dtype, x)
        if launch_reduce:
            partials = memory.workspace(workspace_bytes, x)
            launch_rows(dy, None, partials, None)
            launch_reduce(partials, None, dbeta, None)
        else:
            launch_rows(dy, None, dbeta, None)
        return None, None, dbeta

    return call


PREPARE: dict[str, Callable[[RowsSpec, Any], Callable[..., Any]]] = {
    "rows_forward": _forward,
    "rows_backward": _backward,
}
