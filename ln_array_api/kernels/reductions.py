"""Reductions over some axes: sums whose rounding error does not grow with the length."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from .._arrays import Array, computes_in_float64, has_symbols, library_of
from .._layout import ascontiguous, reshape_contiguous

#: Rows that are added one after the other before their sums are added. NumPy adds the rows of a
#: column sum in sequence, and where the terms are alike, each is rounded in one direction: sums of
#: 8 equal terms, of 8 such sums, and so on, are off by up to 2 eps, by 64 up to 17.
BLOCK = 8
#: Largest part of a row that CuPy sums at once: each of its 512 threads adds BLOCK elements.
CUPY_ROW = 512 * BLOCK


def sum_over(
    xp: Any, x: Array, axes: tuple[int, ...], *, fused: bool = True, wide: bool = False
) -> Array:
    """Sum x over some of its axes, which stay with length one.

    A `wide` sum is in float64, except in libraries and on devices without it.

    Leading or trailing axes of a contiguous array are summed in place, trailing ones first; others
    are moved to the end by a copy. Chunked arrays are summed chunk by chunk, then over the chunks.
    With symbolic lengths, the library's own sum is used.

    A sum of products of two arrays that is broadcast again takes ``fused=False``: see `_jax`.
    """
    if not axes:
        return x
    total = _sum_over(xp, x, axes, xp.float64 if wide and computes_in_float64(x) else x.dtype)
    if library_of(x).name == "jax":
        from .. import _jax

        return _jax.derivatives_unfused(total) if fused else _jax.unfused(total)
    return total


def wide_sum(xp: Any, x: Array, axes: tuple[int, ...], *, fused: bool = True) -> Array:
    """Return a wide sum as `sum_over` does, rounded once to the dtype of x."""
    return xp.astype(sum_over(xp, x, axes, fused=fused, wide=True), x.dtype, copy=False)


def _sum_over(xp: Any, x: Array, axes: tuple[int, ...], dtype: Any) -> Array:
    if library_of(x).lazy:
        return _by_chunks(partial(_sum_over, dtype=dtype), x, axes, dtype)
    if has_symbols(x) or 0 in x.shape:
        return xp.sum(x, axis=axes, keepdims=True, dtype=dtype)
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    trailing = tuple(axis for axis in axes if axis > max(kept, default=-1))
    if trailing and trailing != axes:
        if any(x.shape[axis] > 1 for axis in trailing):
            x = _sum_over(xp, x, trailing, dtype)
        return _sum_over(xp, x, axes[: -len(trailing)], dtype)
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    if trailing:
        n = math.prod(x.shape[len(kept) :])
        if n > CUPY_ROW and library_of(x).name == "cupy":
            return xp.reshape(_sum_long_rows(xp, xp.reshape(x, (-1, n)), dtype), shape)
        return xp.sum(x, axis=axes, keepdims=True, dtype=dtype)
    if axes[-1] == len(axes) - 1:
        rows = math.prod(x.shape[: len(axes)])
        return xp.reshape(_sum_rows(xp, xp.reshape(x, (rows, -1)), dtype), shape)
    count = math.prod(shape)
    rows_last = reshape_contiguous(x, (count, math.prod(x.shape) // count), kept + axes)
    return xp.reshape(xp.sum(rows_last, axis=1, dtype=dtype), shape)


def _sum_rows(xp: Any, x: Array, dtype: Any) -> Array:
    """Sum the rows of x, shape (M, N), in blocks of BLOCK, then the blocks likewise."""
    while x.shape[0] > BLOCK:
        blocks, rest = divmod(x.shape[0], BLOCK)
        whole = xp.reshape(x[: blocks * BLOCK, :], (blocks, BLOCK, x.shape[1]))
        sums = xp.sum(whole, axis=1, dtype=dtype)
        if rest:
            last = xp.sum(x[blocks * BLOCK :, :], axis=0, dtype=dtype)[None, :]
            sums = xp.concat([sums, last])
        x = sums
    return xp.sum(x, axis=0, dtype=dtype)


def _sum_long_rows(xp: Any, x: Array, dtype: Any) -> Array:
    """Sum each row of x, shape (M, N), in blocks of CUPY_ROW, then the blocks likewise."""
    while x.shape[1] > CUPY_ROW:
        blocks, rest = divmod(x.shape[1], CUPY_ROW)
        whole = xp.reshape(x[:, : blocks * CUPY_ROW], (x.shape[0], blocks, CUPY_ROW))
        sums = xp.sum(whole, axis=2, dtype=dtype)
        if rest:
            last = xp.sum(x[:, blocks * CUPY_ROW :], axis=1, dtype=dtype)[:, None]
            sums = xp.concat([sums, last], axis=1)
        x = sums
    return xp.sum(x, axis=1, dtype=dtype)


def largest_magnitude(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    """Return the largest absolute value of x over some of its axes, which stay with length one."""
    if library_of(x).lazy:
        return _by_chunks(largest_magnitude, x, axes, x.dtype)
    largest, smallest = xp.max(x, axis=axes, keepdims=True), xp.min(x, axis=axes, keepdims=True)
    return xp.maximum(largest, -smallest)


def one_of_each(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    """Return one element of x along some axes, which stay with length one."""
    if library_of(x).name == "jax":
        from .. import _jax

        if _jax.is_sharded(x, axes):  # where JAX does not slice
            return xp.min(x, axis=axes, keepdims=True)
    return x[tuple(slice(1) if axis in axes else slice(None) for axis in range(x.ndim))]


def _by_chunks(
    reduction: Callable[[Any, Array, tuple[int, ...]], Array],
    x: Array,
    axes: tuple[int, ...],
    dtype: Any,
) -> Array:
    """Reduce each chunk of x to a dtype, then the results of the chunks along `axes`, in order."""

    def reduce(chunk: Array) -> Array:
        return reduction(library_of(chunk).xp, ascontiguous(chunk), axes)

    def of_length_one(x: Array) -> tuple[tuple[int, ...], ...]:
        return tuple(
            (1,) * len(sizes) if axis in axes else sizes for axis, sizes in enumerate(x.chunks)
        )

    options = {"dtype": dtype, "meta": x._meta.astype(dtype)}
    reduced = x.map_blocks(reduce, chunks=of_length_one(x), **options)
    if reduced.numblocks != tuple(1 if axis in axes else n for axis, n in enumerate(x.numblocks)):
        reduced = reduced.rechunk(dict.fromkeys(axes, -1))
        reduced = reduced.map_blocks(reduce, chunks=of_length_one(reduced), **options)
    return reduced
