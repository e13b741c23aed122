"""From a spec of channels to launches: how x is split, which kernels, one workspace for a call.

Forward, a first launch reduces parts of each channel to moments, a second reduces these to the
statistics of each channel, and a third normalises. Backward, there are sums in place of moments. So
x is read twice and y written, or x and dy read twice and dx written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ln_array_api.backend import ChannelsSpec, Primitive

from .kernel_launch import C_NAME, accumulation_dtype, bind_launch, get_kernel, read_sources
from .launch_config import CHUNK_BYTES, ITEMSIZE, TARGET_WARPS, WARP, ceil_div

#: Shorter extents of a channel (runs of elements that share it) fit into one memory transaction.
MIN_PLANE_BYTES = 128
#: Threads of a block that goes through rows of x, and in how many rows they may be arranged.
THREADS, MAX_THREAD_ROWS = 256, 8
#: Steps of a thread in a part, each of a few elements.
MAX_STEPS_PER_PART = 64
#: Vectors that a thread reads at a time, and elements, which are kept for the second pass.
MAX_VECS, BACKWARD_VECS = 8, 4
MAX_VALUES = {"float16": 32, "bfloat16": 32, "float32": 32, "float64": 16}
#: Rows that share the parameters which a thread has loaded.
MAX_ROWS_PER_THREAD = 16
#: Up to so many parts of a channel are reduced by one warp.
FEW_PARTS = 128
#: Numbers in the moments and sums of a part, and for each channel forward and backward.
NUM_MOMENTS, NUM_SUMS, NUM_FORWARD_CONSTANTS, NUM_BACKWARD_CONSTANTS = 4, 3, 4, 3


@cache
def source() -> str:
    """Return the CUDA C of all kernels over channels, which use some code for rows."""
    return read_sources(
        *("accumulate.cuh", "common.cuh", "rows_forward.cu", "rows_backward.cu"),
        *("channels_common.cuh", "channels_forward.cu", "channels_backward.cu"),
    )


@cache
def kernel(name: str, *parameters: str | int | bool) -> Any:
    """Return a kernel over channels for these template parameters."""
    return get_kernel(source(), name, *parameters)


def vector_width(dtype: str, length: int) -> int:
    """Return how many elements a thread reads at a time, where vectors have to divide a length."""
    return min(CHUNK_BYTES // ITEMSIZE[dtype], length & -length)


class ColumnLayout(NamedTuple):
    """X as rows of `row_length` elements; a block has `thread_cols` vectors of each of its rows."""

    vec: int
    row_length: int
    rows: int
    last_row_length: int
    thread_cols: int

    @classmethod
    def of(cls, shape: tuple[int, int, int], vec: int) -> ColumnLayout:
        b, c, s = shape
        folds = min(b, ceil_div(WARP * vec, c * s))  # enough for a warp to read at a time
        rows = ceil_div(b, folds)
        thread_rows = min(MAX_THREAD_ROWS, 1 << (rows - 1).bit_length())
        last_row_length = (b - (rows - 1) * folds) * c * s
        return cls(vec, folds * c * s, rows, last_row_length, THREADS // thread_rows)

    @property
    def thread_rows(self) -> int:
        return THREADS // self.thread_cols

    @property
    def tiles(self) -> int:
        return ceil_div(self.row_length, self.vec * self.thread_cols)


class ChannelSplit(NamedTuple):
    """How the elements of channels are split into parts, by their shape alone."""

    columns: ColumnLayout | None
    """Where sums are by columns; None where they are by planes."""
    vec: int
    vecs_per_step: int
    warps: int
    rows: int
    """Vectors of a channel, or rows of each of its columns."""
    length: int
    """The same of a part."""

    @classmethod
    def of(cls, spec: ChannelsSpec, *, backward: bool) -> ChannelSplit:
        dtype, (b, c, s) = spec.dtype, merge_single_channel(spec.shape)
        by_columns = s * ITEMSIZE[dtype] < MIN_PLANE_BYTES
        vec = vector_width(dtype, c * s if by_columns else s)
        vecs_per_step = min(MAX_VECS, MAX_VALUES[dtype] // vec)
        if backward:
            vecs_per_step = BACKWARD_VECS
        if by_columns:
            columns = ColumnLayout.of((b, c, s), vec)
            rows, warps, height = columns.rows, THREADS // WARP, columns.thread_rows
            units = columns.tiles
        else:
            columns, rows, units = None, b * s // vec, c
            warps = 2 if rows <= 2 * WARP * vecs_per_step else 8
            height = warps * WARP
        steps = ceil_div(rows, height * vecs_per_step)
        parts = max(ceil_div(TARGET_WARPS, warps * units), ceil_div(steps, MAX_STEPS_PER_PART))
        length = ceil_div(steps, min(steps, parts)) * height * vecs_per_step
        return cls(columns, vec, vecs_per_step, warps, rows, length)

    @property
    def parts(self) -> int:
        return ceil_div(self.rows, self.length)

    def __str__(self) -> str:
        how = "by planes" if self.columns is None else "by columns"
        return f"sums {how} in {self.parts} parts"


def merge_single_channel(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of x, in which a single channel is one long extent."""
    b, c, s = shape
    return (1, 1, b * s) if c == 1 else shape


def can_run(spec: ChannelsSpec) -> bool:
    """Return whether 31 bits hold the numbers of all blocks."""
    b, c, s = spec.shape
    return 0 < b * c * s < 1 << 38 and c < 1 << 30


def describe(primitive: Primitive, spec: ChannelsSpec) -> str:
    """Say how channels are reduced."""
    if primitive == "channels_inference":
        return "one launch"
    return str(ChannelSplit.of(spec, backward=primitive == "channels_backward"))


def _min_epsilon(spec: ChannelsSpec) -> float:
    """Return epsilon, or if it underflows, the smallest normal number, which prevents 0 / 0."""
    if not spec.epsilon > 0:
        return spec.epsilon
    return max(spec.epsilon, float(np.finfo(accumulation_dtype(spec.dtype)).smallest_normal))


class _Reduction:
    """The first two launches of a pass: they reduce parts, and the parts of each channel."""

    def __init__(self, spec: ChannelsSpec, memory: Any, *, backward: bool) -> None:
        self.memory = memory
        self.shape = merge_single_channel(spec.shape)
        self.acc_dtype = accumulation_dtype(spec.dtype)
        self.split = split = ChannelSplit.of(spec, backward=backward)
        _, c, s = self.shape
        types, flags = [C_NAME[spec.dtype]], []
        first, last = [], [_min_epsilon(spec)]
        if backward:
            types.append(C_NAME[spec.dy or spec.dtype])
            flags.append(spec.need[0] or spec.need[1])
            first, last = [c, s], []
        results = "sums" if backward else "moments"
        if split.columns is None:
            self.row_length, self.layout = c, (1, c, split.rows, c, split.length)
            self.launch_parts = bind_launch(
                memory,
                kernel(
                    f"plane_{results}", *types, split.vec, split.vecs_per_step, split.warps, *flags
                ),
                (c * split.parts,),
                split.warps * WARP,
                *(np.uint32(c), s, split.rows, split.length, *last),
            )
        else:
            self.row_length, tiles = split.columns.row_length, split.columns.tiles
            layout = (self.row_length, split.rows, split.columns.last_row_length, split.length)
            self.layout = (s, *layout)
            self.launch_parts = bind_launch(
                memory,
                kernel(f"column_{results}", *types, split.vec, split.vecs_per_step, *flags),
                (tiles * split.parts,),
                THREADS,
                *(*first, *layout, np.uint32(tiles), np.int32(split.columns.thread_cols), *last),
            )

    def bind_channels(self, name: str, *types: str, last: tuple[float, ...]) -> Any:
        """Bind the second launch."""
        c, split = self.shape[1], self.split
        few_parts = split.parts * self.row_length // c <= FEW_PARTS
        warps, channels = (1, 4) if few_parts else (8, 1)
        return bind_launch(
            self.memory,
            kernel(name, C_NAME[self.acc_dtype.name], *types, warps, channels),
            (ceil_div(c, channels),),
            warps * channels * WARP,
            *(c, *self.layout, split.parts, *last),
        )

    def nbytes(self, numbers: int) -> int:
        """Return the size of the results of all parts, where each has so many numbers."""
        return numbers * self.split.parts * self.row_length * self.acc_dtype.itemsize


def _bind_elementwise(
    memory: Any, name: str, spec: ChannelsSpec, *types: str | None, last: tuple[Any, ...]
) -> Any:
    """Bind the launch that goes through all of x."""
    b, c, s = shape = merge_single_channel(spec.shape)
    vec, full_vec = vector_width(spec.dtype, s), CHUNK_BYTES // ITEMSIZE[spec.dtype]
    one_channel = s > 1 and 2 * vec >= full_vec
    columns = ColumnLayout.of(shape, vec if one_channel else vector_width(spec.dtype, c * s))
    threads = b * c * s // columns.vec
    rows = min(MAX_ROWS_PER_THREAD, max(1, threads // (2 * TARGET_WARPS * WARP)))
    length = columns.thread_rows * rows
    names = [C_NAME[each or spec.dtype] for each in (spec.dtype, *types)]
    return bind_launch(
        memory,
        kernel(name, *names, columns.vec, one_channel),
        (columns.tiles * ceil_div(columns.rows, length),),
        THREADS,
        *(c, s, columns.row_length, columns.rows, columns.last_row_length, length),
        *(np.uint32(columns.tiles), np.int32(columns.thread_cols), *last),
    )


def _forward(spec: ChannelsSpec, memory: Any) -> Callable[..., Any]:
    (b, c, s), epsilon = spec.shape, _min_epsilon(spec)
    reduction = _Reduction(spec, memory, backward=False)
    split, acc_dtype = reduction.split, reduction.acc_dtype
    count = b * s // (1 if split.columns else split.vec)
    launch_parts = reduction.launch_parts
    launch_channels = reduction.bind_channels("channel_statistics", last=(count, epsilon))
    launch_normalise = _bind_elementwise(
        memory, "channels_normalise", spec, spec.gamma or spec.beta, last=(epsilon,)
    )
    y_shape, stats_shape, dtype = spec.shape, (c,), memory.dtype(acc_dtype.name)
    parts_bytes = reduction.nbytes(NUM_MOMENTS)
    workspace_bytes = parts_bytes + NUM_FORWARD_CONSTANTS * c * acc_dtype.itemsize

    def call(x: Any, gamma: Any, beta: Any) -> Any:
        y = memory.empty(y_shape, x.dtype, x)
        mean, var, rstd = memory.several(3, stats_shape, dtype, x)
        part_moments = memory.workspace(workspace_bytes, x)
        channel_constants = part_moments + parts_bytes
        launch_parts(x, part_moments)
        launch_channels(part_moments, channel_constants, mean, var, rstd)
        launch_normalise(x, channel_constants, None, None, gamma, beta, y)
        return y, mean, var, rstd

    return call


def _inference(spec: ChannelsSpec, memory: Any) -> Callable[..., Any]:
    last = (_min_epsilon(spec),)
    launch_normalise = _bind_elementwise(
        memory, "channels_normalise", spec, spec.gamma or spec.beta, last=last
    )
    y_shape = spec.shape

    def call(x: Any, mean: Any, var: Any, gamma: Any, beta: Any) -> Any:
        y = memory.empty(y_shape, x.dtype, x)
        launch_normalise(x, None, mean, var, gamma, beta, y)
        return y

    return call


def _backward(spec: ChannelsSpec, memory: Any) -> Callable[..., Any]:
    (b, c, s), need = spec.shape, spec.need
    if not any(need):
        return lambda *arrays: (None, None, None)
    need_dx, need_dgamma, need_dbeta = need
    reduction = _Reduction(spec, memory, backward=True)
    launch_parts = reduction.launch_parts
    result = C_NAME[spec.gamma or spec.dtype]
    launch_channels = reduction.bind_channels("channel_gradients", result, last=(1 / (b * s),))
    launch_dx = (
        _bind_elementwise(memory, "channels_dx", spec, spec.dy, spec.gamma, last=())
        if need_dx
        else None
    )
    empty, dx_shape, params_shape = memory.empty, spec.shape, (c,)
    parts_bytes = reduction.nbytes(NUM_SUMS)
    workspace_bytes = parts_bytes + NUM_BACKWARD_CONSTANTS * c * reduction.acc_dtype.itemsize
    needs_x = need_dx or need_dgamma

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dtype = (x if gamma is None else gamma).dtype
        dgamma = empty(params_shape, dtype, x) if need_dgamma else None
        dbeta = empty(params_shape, dtype, x) if need_dbeta else None
        part_sums = memory.workspace(workspace_bytes, x)
        channel_constants = part_sums + parts_bytes
        launch_parts(dy, x if needs_x else None, mean, rstd, part_sums)
        launch_channels(part_sums, mean, rstd, channel_constants, dgamma, dbeta)
        dx = None
        if launch_dx:
            dx = empty(dx_shape, x.dtype, x)
            launch_dx(dy, x, mean, rstd, channel_constants, gamma, dx)
        return dx, dgamma, dbeta

    return call


PREPARE: dict[str, Callable[[ChannelsSpec, Any], Callable[..., Any]]] = {
    "channels_forward": _forward,
    "channels_inference": _inference,
    "channels_backward": _backward,
}
