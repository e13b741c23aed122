"""Sums whose rounding error does not grow with their length, in every library."""

from __future__ import annotations

import math
from typing import Any

from .._arrays import Array, library_of

#: Rows that are added one after the other before their sums are added. NumPy adds the rows of a
#: column sum in sequence, and a sequence of n terms is off by sqrt(n)/8 ulp or so.
BLOCK = 64


def sum_over(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    """Sum x over some of its axes, which stay with length one.

    Leading or trailing axes of a contiguous array are summed where they are; others are brought
    to the end by a copy first. Chunked arrays are summed chunk by chunk, then over the chunks.
    """
    if not axes:
        return x
    if 0 in x.shape:
        return xp.sum(x, axis=axes, keepdims=True)
    if library_of(x).lazy:
        return _sum_chunks(xp, x, axes)
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    if axes[0] == len(kept):
        return xp.sum(x, axis=axes, keepdims=True)
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    if axes[-1] == len(axes) - 1:
        rows = math.prod(x.shape[: len(axes)])
        return xp.reshape(_sum_rows(xp, xp.reshape(x, (rows, -1))), shape)
    rows_last = xp.reshape(xp.permute_dims(x, kept + axes), (math.prod(shape), -1))
    return xp.reshape(xp.sum(rows_last, axis=1), shape)


def _sum_rows(xp: Any, x: Array) -> Array:
    """Sum the rows of x, shape (M, N), in blocks of BLOCK, then the blocks likewise."""
    while x.shape[0] > BLOCK:
        blocks, rest = divmod(x.shape[0], BLOCK)
        whole = xp.reshape(x[: blocks * BLOCK, :], (blocks, BLOCK, x.shape[1]))
        sums = xp.sum(whole, axis=1)
        x = xp.concat([sums, xp.sum(x[blocks * BLOCK :, :], axis=0)[None, :]]) if rest else sums
    return xp.sum(x, axis=0)


def _sum_chunks(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    def sum_chunk(chunk: Array) -> Array:
        return sum_over(library_of(chunk).xp, chunk, axes)

    chunks = tuple(
        (1,) * len(sizes) if axis in axes else sizes for axis, sizes in enumerate(x.chunks)
    )
    sums = x.map_blocks(sum_chunk, dtype=x.dtype, chunks=chunks, meta=x._meta)
    return xp.sum(sums, axis=axes, keepdims=True)
