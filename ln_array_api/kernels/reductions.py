"""Reductions over some axes: sums whose rounding error does not grow with their length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._arrays import Array, library_of

#: Rows that are added one after the other before their sums are added. NumPy adds the rows of a
#: column sum in sequence, and a sequence of n terms is off by sqrt(n)/8 ulp or so.
BLOCK = 64
#: Elements of a row that CuPy may add up at once: each of its 512 threads takes a sequence of them.
CUPY_ROW = 512 * BLOCK


def sum_over(xp: Any, x: Array, axes: tuple[int, ...], *, fused: bool = True) -> Array:
    """Sum x over some of its axes, which stay with length one.

    Leading or trailing axes of a contiguous array are summed where they are, trailing ones first;
    others are brought to the end by a copy. Chunked arrays are summed chunk by chunk, then over
    the chunks.

    A sum of products of two arrays that is broadcast again takes ``fused=False``: see `_jax`.
    """
    if not axes:
        return x
    total = _sum_over(xp, x, axes)
    if library_of(x).name == "jax":
        from .. import _jax

        return _jax.derivatives_unfused(total) if fused else _jax.unfused(total)
    return total


def _sum_over(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    if library_of(x).lazy:
        return _by_chunks(_sum_over, x, axes)
    if 0 in x.shape:
        return xp.sum(x, axis=axes, keepdims=True)
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    trailing = tuple(axis for axis in axes if axis > max(kept, default=-1))
    if trailing and trailing != axes:
        if any(x.shape[axis] > 1 for axis in trailing):
            x = _sum_over(xp, x, trailing)
        return _sum_over(xp, x, axes[: -len(trailing)])
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    if trailing:
        n = math.prod(x.shape[len(kept) :])
        if n > CUPY_ROW and library_of(x).name == "cupy":
            return xp.reshape(_sum_long_rows(xp, xp.reshape(x, (-1, n))), shape)
        return xp.sum(x, axis=axes, keepdims=True)
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


def _sum_long_rows(xp: Any, x: Array) -> Array:
    """Sum each row of x, shape (M, N), in blocks of CUPY_ROW, then the blocks likewise."""
    while x.shape[1] > CUPY_ROW:
        blocks, rest = divmod(x.shape[1], CUPY_ROW)
        whole = xp.reshape(x[:, : blocks * CUPY_ROW], (x.shape[0], blocks, CUPY_ROW))
        sums = xp.sum(whole, axis=2)
        if rest:
            last = xp.sum(x[:, blocks * CUPY_ROW :], axis=1)[:, None]
            sums = xp.concat([sums, last], axis=1)
        x = sums
    return xp.sum(x, axis=1)


def largest_magnitude(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    """The largest absolute value of x over some of its axes, which stay with length one."""
    if library_of(x).lazy:
        return _by_chunks(largest_magnitude, x, axes)
    largest, smallest = xp.max(x, axis=axes, keepdims=True), xp.min(x, axis=axes, keepdims=True)
    return xp.maximum(largest, -smallest)


def _by_chunks(
    reduction: Callable[[Any, Array, tuple[int, ...]], Array], x: Array, axes: tuple[int, ...]
) -> Array:
    """Reduce each chunk of x, then the results of the chunks along `axes`, in order."""

    def reduce(chunk: Array) -> Array:
        return reduction(library_of(chunk).xp, chunk, axes)

    def of_length_one(x: Array) -> tuple[tuple[int, ...], ...]:
        return tuple(
            (1,) * len(sizes) if axis in axes else sizes for axis, sizes in enumerate(x.chunks)
        )

    options = {"dtype": x.dtype, "meta": x._meta}
    reduced = x.map_blocks(reduce, chunks=of_length_one(x), **options)
    if reduced.numblocks != tuple(1 if axis in axes else n for axis, n in enumerate(x.numblocks)):
        reduced = reduced.rechunk(dict.fromkeys(axes, -1))
        reduced = reduced.map_blocks(reduce, chunks=of_length_one(reduced), **options)
    return reduced
