"""From a spec of channels to launches: how x is cut, which kernels, one workspace for a call.

Forward, the elements of each channel are reduced to their moments in parts, the moments of its
parts to its statistics, and a third launch normalises; backward, sums take the place of moments. So
x is read twice and y written, or x and dy read twice and dx written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ln_array_api.backend import ChannelsSpec, Primitive

from .launching import ACCUMULATION, C_NAME, compiled, expression, launcher, read
from .shapes import CHUNK_BYTES, ITEMSIZE, WARP, WARPS_AT_ONCE, ceil

#: A run of the elements that share a channel is short if a memory transaction or so is all of it.
SHORT_RUN_BYTES = 128
#: Threads of a block that goes through rows of x.
THREADS, MOST_TEAMS = 256, 8
#: Parts of an element's sum that a thread adds up one after the other, each of a few elements.
RUN = 64
#: Words that a thread has at once, and elements, which are kept for the second sweep.
MOST_WORDS, WORDS_BACKWARD = 8, 4
MOST_VALUES = {"float16": 32, "bfloat16": 32, "float32": 32, "float64": 16}
#: Rows that share the parameters which a thread has loaded, at most.
MOST_ROWS = 16
#: Parts of a channel that one warp puts together.
FEW_PARTS = 128
#: Numbers in the moments of a part, and in what a channel is normalised or differentiated by.
MOMENTS, STATISTICS, SUMS = 4, 4, 3


@cache
def source() -> str:
    """The CUDA C of all kernels over channels, which use some over rows."""
    rows = ("common.cu", "forward.cu", "backward.cu")
    return read(*rows, "channels.cu", "channels_forward.cu", "channels_backward.cu")


@cache
def kernel(name: str, *parameters: str | int | bool) -> Any:
    """A kernel over channels for such template parameters."""
    return compiled(source(), expression(name, *parameters))


def word_of(dtype: str, length: int) -> int:
    """How many elements a thread reads at once where whole words have to make such a length."""
    return min(CHUNK_BYTES // ITEMSIZE[dtype], length & -length)


class Lines(NamedTuple):
    """X as rows of `line` elements, and blocks of `lanes` words side by side in each of some."""

    word: int
    line: int
    rows: int
    ragged: int
    """How many elements the last row has."""
    lanes: int

    @classmethod
    def of(cls, shape: tuple[int, int, int], word: int) -> Lines:
        b, c, s = shape
        folds = min(b, ceil(WARP * word, c * s))  # enough for a warp side by side
        rows = ceil(b, folds)
        teams = min(MOST_TEAMS, 1 << (rows - 1).bit_length())
        ragged = (b - (rows - 1) * folds) * c * s
        return cls(word, folds * c * s, rows, ragged, THREADS // teams)

    @property
    def teams(self) -> int:
        return THREADS // self.lanes

    @property
    def tiles(self) -> int:
        return ceil(self.line, self.word * self.lanes)


class Cut(NamedTuple):
    """How the elements of channels are cut into parts, by their shape alone."""

    lines: Lines | None
    """Of sums by columns; None where they are by planes."""
    word: int
    at_once: int
    warps: int
    rows: int
    """What a channel, or each of its columns, has in all: words, or rows."""
    length: int
    """The same of a part."""

    @classmethod
    def of(cls, spec: ChannelsSpec, *, backward: bool) -> Cut:
        dtype, (b, c, s) = spec.dtype, canonical(spec.shape)
        by_columns = s * ITEMSIZE[dtype] < SHORT_RUN_BYTES
        word = word_of(dtype, c * s if by_columns else s)
        at_once = min(MOST_WORDS, MOST_VALUES[dtype] // word)
        if backward:  # a word of 16 bits beside dy of 64 takes five times the registers
            wide = spec.dy == "float64" and ITEMSIZE[dtype] == 2
            at_once = WORDS_BACKWARD // (2 if wide else 1)
        if by_columns:
            lines = Lines.of((b, c, s), word)
            rows, warps, height, units = lines.rows, THREADS // WARP, lines.teams, lines.tiles
        else:
            lines, rows, units = None, b * s // word, c
            warps = 2 if rows <= 2 * WARP * at_once else 8
            height = warps * WARP
        steps = ceil(rows, height * at_once)
        parts = min(steps, max(ceil(WARPS_AT_ONCE, warps * units), ceil(steps, RUN)))
        return cls(lines, word, at_once, warps, rows, ceil(steps, parts) * height * at_once)

    @property
    def parts(self) -> int:
        return ceil(self.rows, self.length)

    def __str__(self) -> str:
        how = "by planes" if self.lines is None else "by columns"
        return f"sums {how} in {self.parts} parts"


def canonical(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """A single channel is one long run."""
    b, c, s = shape
    return (1, 1, b * s) if c == 1 else shape


def can_run(spec: ChannelsSpec) -> bool:
    """Numbers of blocks have 31 bits."""
    b, c, s = spec.shape
    return 0 < b * c * s < 1 << 38 and c < 1 << 30


def describe(primitive: Primitive, spec: ChannelsSpec) -> str:
    """How a call runs."""
    how = "one launch"
    if primitive != "channels_inference":
        backward = primitive == "channels_backward"
        how = str(Cut.of(spec, backward=backward))
    return f"CUDA C for {spec.dtype}, {how}"


def prepare_channels(primitive: Primitive, spec: ChannelsSpec, memory: Any) -> Callable[..., Any]:
    """What runs such a call, given the arrays alone, which `memory` is for."""
    return PLANS[primitive](spec, memory)


def _single(spec: ChannelsSpec) -> np.dtype[Any]:
    return np.dtype(ACCUMULATION.get(spec.dtype, "float32"))


def _epsilon(spec: ChannelsSpec) -> float:
    """What keeps 0 / 0 away has to be a normal number, if it is not 0."""
    smallest = float(np.finfo(_single(spec)).smallest_normal) if spec.epsilon > 0 else 0.0
    return max(spec.epsilon, smallest)


class _Reduction:
    """The first two launches of a pass: parts, and what is made of them for each channel."""

    def __init__(self, spec: ChannelsSpec, memory: Any, *, backward: bool) -> None:
        self.memory = memory
        self.shape, self.single = canonical(spec.shape), _single(spec)
        self.cut = cut = Cut.of(spec, backward=backward)
        _, c, s = self.shape
        types, flags = [C_NAME[spec.dtype]], []
        first, last = [], [_epsilon(spec)]
        if backward:
            types.append(C_NAME[spec.dy or spec.dtype])
            flags.append(spec.need[0] or spec.need[1])
            first, last = [c, s], []
        if cut.lines is None:
            self.line, self.per_channel = c, (1, c, cut.rows, c, cut.length)
            name = "plane_sums" if backward else "plane_moments"
            self.reduce = launcher(
                memory,
                kernel(name, *types, cut.word, cut.at_once, cut.warps, *flags),
                (c * cut.parts,),
                cut.warps * WARP,
                *(np.uint32(c), s, cut.rows, cut.length, *last),
            )
        else:
            self.line, tiles = cut.lines.line, cut.lines.tiles
            places = (self.line, cut.rows, cut.lines.ragged, cut.length)
            self.per_channel = (s, *places)
            name = "column_sums" if backward else "column_moments"
            self.reduce = launcher(
                memory,
                kernel(name, *types, cut.word, cut.at_once, *flags),
                (tiles * cut.parts,),
                THREADS,
                *(*first, *places, np.uint32(tiles), np.int32(cut.lines.lanes), *last),
            )

    def of_channels(self, name: str, *types: str, last: tuple[float, ...]) -> Any:
        """The second launch."""
        c, cut = self.shape[1], self.cut
        few = cut.parts * self.line // c <= FEW_PARTS
        warps, teams = (1, 4) if few else (8, 1)
        return launcher(
            self.memory,
            kernel(name, C_NAME[self.single.name], *types, warps, teams),
            (ceil(c, teams),),
            warps * teams * WARP,
            *(c, *self.per_channel, cut.parts, *last),
        )

    def bytes(self, numbers: int) -> int:
        """Of all parts, where each has so many numbers."""
        return numbers * self.cut.parts * self.line * self.single.itemsize


def _elementwise(
    memory: Any, name: str, spec: ChannelsSpec, *types: str | None, last: tuple[Any, ...]
) -> Any:
    """The launch that goes through all of x."""
    b, c, s = shape = canonical(spec.shape)
    word, most = word_of(spec.dtype, s), CHUNK_BYTES // ITEMSIZE[spec.dtype]
    one = s > 1 and 2 * word >= most
    lines = Lines.of(shape, word if one else word_of(spec.dtype, c * s))
    threads = b * c * s // lines.word
    rows = min(MOST_ROWS, max(1, threads // (2 * WARPS_AT_ONCE * WARP)))
    length = lines.teams * rows
    names = [C_NAME[each or spec.dtype] for each in (spec.dtype, *types)]
    return launcher(
        memory,
        kernel(name, *names, lines.word, one),
        (lines.tiles * ceil(lines.rows, length),),
        THREADS,
        *(c, s, lines.line, lines.rows, lines.ragged, length),
        *(np.uint32(lines.tiles), np.int32(lines.lanes), *last),
    )


def _forward(spec: ChannelsSpec, memory: Any) -> Callable[..., Any]:
    c, epsilon = spec.shape[1], _epsilon(spec)
    reduction = _Reduction(spec, memory, backward=False)
    reduce, single = reduction.reduce, reduction.single
    count = spec.shape[0] * spec.shape[2] // (1 if reduction.cut.lines else reduction.cut.word)
    of_channels = reduction.of_channels("channel_statistics", last=(count, epsilon))
    normalise = _elementwise(
        memory, "channels_normalise", spec, spec.gamma, spec.beta, last=(epsilon,)
    )
    whole, each, dtype = spec.shape, (c,), memory.dtype(single.name)
    of_parts = reduction.bytes(MOMENTS)
    workspace = of_parts + STATISTICS * c * single.itemsize

    def call(x: Any, gamma: Any, beta: Any) -> Any:
        y = memory.empty(whole, x.dtype, x)
        mean, var, rstd = memory.several(3, each, dtype, x)
        parts = memory.workspace(workspace, x)
        statistics = parts + of_parts
        reduce(x, parts)
        of_channels(parts, statistics, mean, var, rstd)
        normalise(x, statistics, None, None, gamma, beta, y)
        return y, mean, var, rstd

    return call


def _inference(spec: ChannelsSpec, memory: Any) -> Callable[..., Any]:
    normalise = _elementwise(
        memory, "channels_normalise", spec, spec.gamma, spec.beta, last=(_epsilon(spec),)
    )
    whole = spec.shape

    def call(x: Any, mean: Any, var: Any, gamma: Any, beta: Any) -> Any:
        y = memory.empty(whole, x.dtype, x)
        normalise(x, None, mean, var, gamma, beta, y)
        return y

    return call


def _backward(spec: ChannelsSpec, memory: Any) -> Callable[..., Any]:
    (b, c, s), need = spec.shape, spec.need
    if not any(need):
        return lambda *arrays: (None, None, None)
    need_dx, need_dgamma, need_dbeta = need
    reduction = _Reduction(spec, memory, backward=True)
    reduce, single = reduction.reduce, reduction.single
    result = C_NAME[spec.gamma or spec.dtype]
    of_channels = reduction.of_channels("channel_gradients", result, last=(1 / (b * s),))
    differentiate = (
        _elementwise(memory, "channels_differentiate", spec, spec.dy, spec.gamma, last=())
        if need_dx
        else None
    )
    empty, whole, each = memory.empty, spec.shape, (c,)
    of_parts = reduction.bytes(SUMS)
    workspace = of_parts + SUMS * c * single.itemsize
    takes_x = need_dx or need_dgamma

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dtype = (x if gamma is None else gamma).dtype
        dgamma = empty(each, dtype, x) if need_dgamma else None
        dbeta = empty(each, dtype, x) if need_dbeta else None
        parts = memory.workspace(workspace, x)
        sums = parts + of_parts
        reduce(dy, x if takes_x else None, mean, rstd, parts)
        of_channels(parts, mean, rstd, sums, dgamma, dbeta)
        dx = None
        if differentiate:
            dx = empty(whole, x.dtype, x)
            differentiate(dy, x, mean, rstd, sums, gamma, dx)
        return dx, dgamma, dbeta

    return call


PLANS: dict[str, Callable[[ChannelsSpec, Any], Callable[..., Any]]] = {
    "channels_forward": _forward,
    "channels_inference": _inference,
    "channels_backward": _backward,
}
