"""How rows are distributed over threads and blocks, and sums over rows over blocks."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: A chunk is a vector of 16 bytes of x.
WARP, CHUNK_BYTES = 32, 16
#: Threads of a block that has several rows, and of a short row.
SHARED_BLOCK, SHORT_ROW = 128, 8
#: Chunks of a row that a thread keeps in registers in the forward pass.
FORWARD_CHUNKS = 4
#: The same in the backward pass, which also keeps dy, the next row and two sums for each element.
BACKWARD_CHUNKS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 4}
LONG_ROW_THREADS = 512
#: Warps that fill a large GPU of 132 multiprocessors. Sums over rows are split for so many on every
#: GPU.
TARGET_WARPS = 132 * 32
#: The same of kernels whose registers leave room for 512 threads on a multiprocessor.
BACKWARD_TARGET_WARPS = 132 * 16
#: Short rows use few registers, so that more warps run at once. They get TARGET_WARPS if each warp
#: then has at least so many rows.
MANY_ROWS_PER_WARP = 8
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

    row_threads: int
    rows: int
    chunks: int

    @property
    def threads(self) -> int:
        return self.row_threads * self.rows

    def capacity(self, dtype: str) -> int:
        """Return the largest number of elements that a row may have."""
        return self.row_threads * self.chunks * CHUNK_BYTES // ITEMSIZE[dtype]

    def __str__(self) -> str:
        if self.row_threads < WARP:
            return f"{self.row_threads} threads for each row"
        warps = self.row_threads // WARP
        return f"{'a warp' if warps == 1 else f'a block of {warps} warps'} for each row"


def forward_shape(dtype: str, n: int) -> BlockShape | None:
    """Return the smallest shape for rows of n elements, or None if a block cannot hold them."""
    shape = _smallest(dtype, n, FORWARD_CHUNKS, (128, 256, 512, 1024))
    if shape or dtype != "float32":
        return shape
    return _smallest(dtype, n, 2 * FORWARD_CHUNKS, (1024,))


def backward_shape(dtype: str, n: int, indexing: ParamIndexing) -> BlockShape | None:
    """Return the same for the backward pass.

    The largest tile keeps only two sums per element in registers and reads x and dy twice.
    """
    max_chunks = backward_chunks(dtype, indexing)
    shape = _smallest(dtype, n, max_chunks, (128, 256, 512))
    if shape or indexing == ParamIndexing.REPEATED:
        return shape
    return _smallest(dtype, n, 2 * max_chunks, (512,))


def backward_chunks(dtype: str, indexing: ParamIndexing) -> int:
    """Return how many chunks a thread can keep; REPEATED indexing needs registers of its own."""
    return BACKWARD_CHUNKS[dtype] // (2 if indexing == ParamIndexing.REPEATED else 1)


def _smallest(dtype: str, n: int, max_chunks: int, threads: tuple[int, ...]) -> BlockShape | None:
    shapes = [
        BlockShape(each, SHARED_BLOCK // each, chunks)
        for each in (SHORT_ROW, WARP)
        for chunks in (1, 2, 4)
        if chunks <= max_chunks
    ]
    shapes += (BlockShape(each, 1, max_chunks) for each in threads)
    return next((shape for shape in shapes if n <= shape.capacity(dtype)), None)


def backward_target(shape: BlockShape, rows: int) -> int:
    """Return how many blocks of a backward pass should run at once.

    Each stores partial sums: more blocks than fit on a GPU only add to these.
    """
    has_many = shape.row_threads <= WARP and rows >= MANY_ROWS_PER_WARP * TARGET_WARPS
    return (TARGET_WARPS if has_many else BACKWARD_TARGET_WARPS) * WARP // shape.threads


class RowSplit(NamedTuple):
    """How a longer row is split: only by its length, so that no bits depend on other rows."""

    threads: int
    chunks: int
    tiles: int
    """A block keeps a tile in registers, and writes y or dx of it."""
    segments: int
    """A block adds up a segment. There are at most as many as threads, which add these sums up."""
    length: int
    """Elements of a segment."""

    def __str__(self) -> str:
        return f"{self.tiles} blocks of {self.threads // WARP} warps for each row"


def split_row(dtype: str, n: int, chunks: int) -> RowSplit:
    """Split rows of n elements, where a thread holds so many chunks."""
    tile = BlockShape(LONG_ROW_THREADS, 1, chunks)
    size = tile.capacity(dtype)
    tiles = ceil_div(n, size)
    length = size * ceil_div(tiles, tile.threads)
    return RowSplit(tile.threads, tile.chunks, tiles, ceil_div(n, length), length)


def ceil_div(a: int, b: int) -> int:
    """Divide a by b, and round up."""
    return -(-a // b)


def choose_num_partials(rows: int, sums: int, target: int) -> int:
    """Return how many partial sums each of `sums` sums over rows is split into.

    So many that `target` partial sums run at once, and that no thread has too many rows.
    """
    return min(rows, max(ceil_div(target, sums), ceil_div(rows, MAX_ROWS_PER_THREAD)))
