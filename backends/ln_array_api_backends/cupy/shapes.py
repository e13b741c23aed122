"""How rows are spread over threads and blocks, and sums over rows over blocks."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
WARP, CHUNK_BYTES = 32, 16
#: Rows in a block where each has a warp to itself.
ROWS = 4
#: Chunks of a row that a thread keeps in registers: as many as the backward pass, which also keeps
#: dy and two sums for each element, can have without spilling.
MOST_CHUNKS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 4}
LONG_ROW_WARPS = 16
#: Warps that fill a large GPU. Sums over rows are cut into so many parts on every GPU.
WARPS_AT_ONCE = 4224
#: Rows that a thread adds up one after the other: a sum of n terms is off by sqrt(n) / 8 ulp or so.
RUN = 512


class Repeat(StrEnum):
    """How many elements of a row share a parameter, by its name in CUDA C."""

    ONE = "ONE"
    ANY = "ANY"
    CHUNKS_OF = "CHUNKS_OF"

    @classmethod
    def of(cls, dtype: str, repeat: int) -> Repeat:
        if repeat == 1:
            return cls.ONE
        return cls.ANY if repeat * ITEMSIZE[dtype] % CHUNK_BYTES else cls.CHUNKS_OF


class Shape(NamedTuple):
    """How a row that a block can hold is spread over threads."""

    warps: int
    rows: int
    chunks: int

    @property
    def threads(self) -> int:
        return self.warps * self.rows * WARP

    def holds(self, dtype: str) -> int:
        """Of how many elements a row may be."""
        return self.warps * WARP * self.chunks * CHUNK_BYTES // ITEMSIZE[dtype]

    def __str__(self) -> str:
        whose = "a warp" if self.warps == 1 else f"a block of {self.warps} warps"
        return f"{whose} for each row"


def forward_shape(dtype: str, n: int) -> Shape | None:
    """The smallest shape that holds rows of n elements, if there is one."""
    return _smallest(dtype, n, MOST_CHUNKS[dtype], (4, 8, 16, 32))


def backward_shape(dtype: str, n: int, repeat: Repeat, gamma: str | None = None) -> Shape | None:
    """The same for the backward pass, with gamma of some dtype.

    The largest has room for two sums of each element alone, and reads x and dy twice; gamma in
    float64 beside 16-bit x would not fit in there.
    """
    most = backward_chunks(dtype, repeat)
    shape = _smallest(dtype, n, most, (4, 8, 16))
    if shape or repeat == Repeat.ANY or (gamma == "float64" and ITEMSIZE[dtype] == 2):
        return shape
    return _smallest(dtype, n, 2 * most, (16,))


def backward_chunks(dtype: str, repeat: Repeat) -> int:
    """What a thread can keep; finding the parameter of each element takes registers of its own."""
    return MOST_CHUNKS[dtype] // (2 if repeat == Repeat.ANY else 1)


def _smallest(dtype: str, n: int, most: int, warps: tuple[int, ...]) -> Shape | None:
    shapes = [Shape(1, ROWS, chunks) for chunks in (1, 2, 4) if chunks <= most]
    shapes += (Shape(each, 1, most) for each in warps)
    return next((shape for shape in shapes if n <= shape.holds(dtype)), None)


def are_kept(dtype: str, shape: Shape) -> bool:
    """Whether the backward pass keeps x and dy in registers."""
    return shape.chunks <= MOST_CHUNKS[dtype]


class Cut(NamedTuple):
    """How a longer row is cut, by its length alone, so that one row has the same bits as many."""

    warps: int
    chunks: int
    tiles: int
    """What a block holds at a time, and normalises or differentiates."""
    segments: int
    """What a block takes sums over. There are not more than threads that add these up."""
    length: int
    """Of a segment, in elements."""

    @property
    def threads(self) -> int:
        return self.warps * WARP

    def __str__(self) -> str:
        return f"{self.tiles} blocks of {self.warps} warps for each row"


def row_cut(dtype: str, n: int, chunks: int) -> Cut:
    """How rows of n elements are cut where a thread holds so many chunks."""
    tile = Shape(LONG_ROW_WARPS, 1, chunks)
    size = tile.holds(dtype)
    tiles = ceil(n, size)
    length = size * ceil(tiles, tile.threads)
    return Cut(tile.warps, tile.chunks, tiles, ceil(n, length), length)


def ceil(a: int, b: int) -> int:
    """A over b, rounded up."""
    return -(-a // b)


def slots_for(rows: int, units: int, at_once: int) -> int:
    """Into how many parts sums over so many rows are cut, where `units` such sums run at once."""
    return min(rows, max(ceil(at_once, units), ceil(rows, RUN)))
