"""How rows are distributed over threads and blocks, and sums over rows over blocks."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: A chunk is a vector of 16 bytes of x.
WARP, CHUNK_BYTES = 32, 16
#: Rows in a block where each row has one warp.
ROWS_PER_BLOCK = 4
#: Chunks of a row that a thread keeps in registers: as many as the backward pass, which also keeps
#: dy and two sums for each element, can have without spilling.
MAX_CHUNKS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 4}
LONG_ROW_WARPS = 16
#: Warps that fill a large GPU. Sums over rows are split for so many on every GPU.
TARGET_WARPS = 4224
#: Rows that a thread adds up one after the other: the error of a sum of n terms is about
#: sqrt(n) / 8 ulp.
MAX_ROWS_PER_THREAD = 512


class ParamIndexing(StrEnum):
    """How many elements of a row share a parameter, by its name in CUDA C."""

    PER_ELEMENT = "PER_ELEMENT"
    REPEATED = "REPEATED"
    PER_CHUNK = "PER_CHUNK"

    @classmethod
    def of(cls, dtype: str, repeat: int) -> ParamIndexing:
        if repeat == 1:
            return cls.PER_ELEMENT
        return cls.REPEATED if repeat * ITEMSIZE[dtype] % CHUNK_BYTES else cls.PER_CHUNK


class BlockShape(NamedTuple):
    """How a row that fits into a block's registers is distributed over threads."""

    warps: int
    rows: int
    chunks: int

    @property
    def threads(self) -> int:
        return self.warps * self.rows * WARP

    def capacity(self, dtype: str) -> int:
        """Return the largest number of elements that a row may have."""
        return self.warps * WARP * self.chunks * CHUNK_BYTES // ITEMSIZE[dtype]

    def __str__(self) -> str:
        threads = "a warp" if self.warps == 1 else f"a block of {self.warps} warps"
        return f"{threads} for each row"


def forward_shape(dtype: str, n: int) -> BlockShape | None:
    """Return the smallest shape for rows of n elements, or None if a block cannot hold them."""
    return _smallest(dtype, n, MAX_CHUNKS[dtype], (4, 8, 16, 32))


def backward_shape(
    dtype: str, n: int, indexing: ParamIndexing, gamma: str | None = None
) -> BlockShape | None:
    """Return the same for the backward pass, with gamma of some dtype.

    The largest tile keeps only two sums per element in registers and reads x and dy twice. With
    16-bit x and float64 gamma it would run out of registers, so it is not used.
    """
    max_chunks = backward_chunks(dtype, indexing)
    shape = _smallest(dtype, n, max_chunks, (4, 8, 16))
    too_wide = gamma == "float64" and ITEMSIZE[dtype] == 2
    if shape or indexing == ParamIndexing.REPEATED or too_wide:
        return shape
    return _smallest(dtype, n, 2 * max_chunks, (16,))


def backward_chunks(dtype: str, indexing: ParamIndexing) -> int:
    """Return how many chunks a thread can keep; REPEATED indexing needs registers of its own."""
    return MAX_CHUNKS[dtype] // (2 if indexing == ParamIndexing.REPEATED else 1)


def _smallest(dtype: str, n: int, max_chunks: int, warps: tuple[int, ...]) -> BlockShape | None:
    shapes = [BlockShape(1, ROWS_PER_BLOCK, chunks) for chunks in (1, 2, 4) if chunks <= max_chunks]
    shapes += (BlockShape(each, 1, max_chunks) for each in warps)
    return next((shape for shape in shapes if n <= shape.capacity(dtype)), None)


class RowSplit(NamedTuple):
    """How a longer row is split: only by its length, so that no bits depend on other rows."""

    warps: int
    chunks: int
    tiles: int
    """A block keeps a tile in registers, and writes y or dx of it."""
    segments: int
    """A block adds up a segment. There are at most as many as threads, which add these sums up."""
    length: int
    """Elements of a segment."""

    @property
    def threads(self) -> int:
        return self.warps * WARP

    def __str__(self) -> str:
        return f"{self.tiles} blocks of {self.warps} warps for each row"


def split_row(dtype: str, n: int, chunks: int) -> RowSplit:
    """Split rows of n elements, where a thread holds so many chunks."""
    tile = BlockShape(LONG_ROW_WARPS, 1, chunks)
    size = tile.capacity(dtype)
    tiles = ceil_div(n, size)
    length = size * ceil_div(tiles, tile.threads)
    return RowSplit(tile.warps, tile.chunks, tiles, ceil_div(n, length), length)


def ceil_div(a: int, b: int) -> int:
    """Divide a by b, and round up."""
    return -(-a // b)


def choose_num_partials(rows: int, sums: int, target: int) -> int:
    """Return how many partial sums each of `sums` sums over rows is split into.

    So many that `target` partial sums run at once, and that no thread has too many rows.
    """
    return min(rows, max(ceil_div(target, sums), ceil_div(rows, MAX_ROWS_PER_THREAD)))
