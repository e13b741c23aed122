"""Statistics over windows around each element, cut at the border: local contrast norm.

A window is the product of a run of positions on each axis, so the statistics of runs on one axis
are merged into those on the next. A run is halved until it is a single position: the cost per
element grows with the number of axes and the logarithm of the size.

Sums over windows are never subtracted from each other, and means are kept as offsets from an
anchor, an element of the window. So nothing depends on values outside of the window, and the error
is that of the differences between its elements, however far these are from 0. The moments of
two runs are merged by the formula of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances" (1979), here of means and variances instead of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .._arrays import (
    Array,
    creation_device,
    dask_overlap,
    dtype_name,
    library_of,
    native_dtype,
    to_acc_dtype,
)
from .rows import astype_like, scaling, unscaled_rstd

Fields: TypeAlias = tuple[Array, ...]
Radius: TypeAlias = dict[int, int]
"""The half-length of a window, to either side of its centre, for each axis."""

#: Gradients of very large x are very small. They are multiplied by this power of two while they are
#: summed, so that the terms are not subnormal.
_LIFT = 2.0**44


def window_radius(shape: tuple[int, ...], axes: tuple[int, ...], size: int) -> Radius:
    """Return the radius of windows of a size, at most the length of the axis."""
    return {axis: min(size // 2, max(shape[axis] - 1, 0)) for axis in axes}


def windows_forward(
    x: Array, *, axes: tuple[int, ...], size: int, epsilon: float
) -> tuple[Array, Array, Array]:
    """Normalise each element of x by the window around it.

    Parameters
    ----------
    x
        Of any shape.
    axes
        The axes that windows extend along, not negative.
    size
        The length of a window along each, odd.
    epsilon
        Added to the variance, inside the root.

    Returns
    -------
    y : array of the shape and dtype of x
    mean, rstd : arrays of x's shape, in the accumulation dtype
    """
    xp, x_acc = library_of(x).xp, to_acc_dtype(library_of(x).xp, x)
    if 0 in x.shape:  # copies, so that a framework can differentiate them
        y, statistic = (xp.astype(x_acc, dtype) for dtype in (native_dtype(x), x_acc.dtype))
        return y, statistic, statistic
    with np.errstate(all="ignore"):
        scale, scaled_epsilon = _scaling(xp, x, x_acc, axes, epsilon)
        d = x_acc if scale is None else x_acc * scale
        deviation, mean, var = _by_chunks(_moments, (d,), window_radius(x.shape, axes, size), 3)
        rstd = 1 / xp.sqrt(var + scaled_epsilon)
        y = xp.astype(deviation * rstd, native_dtype(x), copy=False)
        rstd = unscaled_rstd(xp, rstd, scale, var, epsilon, dtype_name(x_acc.dtype))
        return y, mean if scale is None else mean / scale, rstd


def windows_backward(
    dy: Array, x: Array, rstd: Array, *, axes: tuple[int, ...], size: int
) -> Array:
    """Return the gradient of `windows_forward`; the rounded mean is not used.

    With n the number of elements in a window, dx is dy * rstd, minus the sum of dy * rstd / n over
    all windows that contain the element x, minus the sum of dy * x̂ * rstd² / n * (x - mean) over
    these, where everything except x is of the window.

    Parameters
    ----------
    dy, x, rstd
        Of x's shape: the gradient of y, the input of the forward pass, and its result rstd.
    axes, size
        As in `windows_forward`.

    Returns
    -------
    dx : array of the shape and dtype of x
    """
    xp, x_acc = library_of(x).xp, to_acc_dtype(library_of(x).xp, x)
    if 0 in x.shape:
        return xp.astype(x_acc, native_dtype(x))
    radius = window_radius(x.shape, axes, size)
    with np.errstate(all="ignore"):
        dy, rstd = astype_like(xp, dy, x_acc), astype_like(xp, rstd, x_acc)
        scale, _ = _scaling(xp, x, x_acc, axes, 0.0)
        # rstd / scale overflows in a constant window of large values. Its factors, steep and rest,
        # do not; the deviation, which is 0 there, is multiplied by one after the other.
        lift, steep, rest = 1.0, rstd, 1.0
        if scale is not None:
            x_acc = x_acc * scale
            lift = xp.where(scale < 1, _LIFT, xp.ones_like(scale))
            rest = xp.where(scale < 1, 1 / (scale * _LIFT), 1.0)
            steep = rstd / (scale * rest)
        deviation, _, _ = _by_chunks(_moments, (x_acc,), radius, 3)
        x_hat = deviation * steep * rest
        u = dy * (rstd * lift)
        u_per_element = u / _counts(xp, x_acc, radius)
        total = u_per_element * x_hat * rest * steep
        (sums,) = _by_chunks(
            _adjoint, (x_acc, total, -(total * deviation + u_per_element)), radius, 1
        )
        return xp.astype((u + sums) / lift, native_dtype(x), copy=False)


def _scaling(
    xp: Any, x: Array, x_acc: Array, axes: tuple[int, ...], epsilon: float
) -> tuple[Array | None, Array | float]:
    """Return a power of two for all windows along `axes`, and epsilon times its square."""
    finite = xp.where(xp.isfinite(x_acc), x_acc, 0.0)  # infinity affects only its own windows
    return scaling(xp, x.dtype, finite, axes, epsilon)


def _moments(x: Array, radius: Radius) -> Fields:
    """Return x minus the mean of its window, that mean, and the variance of the window."""
    xp = library_of(x).xp
    fields: Fields = (x, xp.zeros_like(x), xp.zeros_like(x))
    for axis, places in radius.items():
        fields = _merge_runs(xp, _merged_moments, fields, (True, True, True), axis, places)
    anchor, mean_offset, var = fields
    return (x - anchor) - mean_offset, anchor + mean_offset, var


def _merged_moments(a: Fields, b: Fields, weight: Array) -> Fields:
    """Merge two adjacent runs: anchor, offset of the mean from it, variance.

    `weight` is the share of the second run in the elements of both.
    """
    anchor, mean_offset, var = a
    step = (b[0] - anchor) + (b[1] - mean_offset)
    inner = (1 - weight) * var + weight * b[2]
    return anchor, mean_offset + weight * step, inner + (weight * (1 - weight)) * step * step


def _adjoint(x: Array, total: Array, moment: Array, radius: Radius) -> Fields:
    """Return for each x_k the sum of moment_i + total_i * (x_i - x_k) over all i in its window.

    The anchor of a run is its element with the largest magnitude of total. An element k is in the
    window around i, so x_i - x_k is at most sqrt(2 n) / rstd_i, and total_i is proportional to
    rstd_i²: where an edge makes x_i - anchor large, total_i is small, or that of the anchor is.
    """
    xp = library_of(x).xp
    fields: Fields = (x, xp.abs(total), total, moment)
    for axis, places in radius.items():
        fields = _merge_runs(xp, _merged_sums, fields, (True, False, False, False), axis, places)
    anchor, _, total, moment = fields
    return (moment - total * (x - anchor),)


def _merged_sums(a: Fields, b: Fields, weight: Array) -> Fields:
    """Merge two adjacent runs: anchor and magnitude of its total, sums of totals and of moments.

    The moments are about the anchor.
    """
    xp = library_of(a[0]).xp
    first = a[1] >= b[1]
    anchor, max_total = (
        xp.where(first, of_a, of_b) for of_a, of_b in zip(a[:2], b[:2], strict=True)
    )
    moment = (a[3] + a[2] * (a[0] - anchor)) + (b[3] + b[2] * (b[0] - anchor))
    return anchor, max_total, a[2] + b[2], moment


def _merge_runs(
    xp: Any,
    merged: Callable[[Fields, Fields, Array], Fields],
    fields: Fields,
    by_edge: tuple[bool, ...],
    axis: int,
    radius: int,
) -> Fields:
    """Return fields of the run around each position on an axis, from those of single positions.

    Positions beyond the border have weight 0. There, a field has its value at the border
    (`by_edge`), which is in each window that crosses the border, or 0.
    """
    length = fields[0].shape[axis]
    one = tuple(
        _extended(xp, field, axis, radius, edge)
        for field, edge in zip(fields, by_edge, strict=True)
    )
    start = np.arange(length + 2 * radius)

    def count(begin: Any, n: int) -> Any:
        """Count the elements of the array among n positions from `begin` on."""
        low, high = radius, radius + length
        return np.clip(begin + n, low, high) - np.clip(begin, low, high)

    def join(a: Fields, n: int, b: Fields, m: int) -> Fields:
        """Return runs of n + m positions, from runs of n and of m."""
        runs = length + 2 * radius - n - m + 1
        begin = start[:runs]
        weight = _broadcast_axis(
            xp, count(begin + n, m) / np.maximum(count(begin, n + m), 1), axis, one[0]
        )
        return merged(
            tuple(_cut(field, axis, 0, runs) for field in a),
            tuple(_cut(field, axis, n, n + runs) for field in b),
            weight,
        )

    runs, n = one, 1
    for bit in f"{2 * radius + 1:b}"[1:]:
        runs, n = join(runs, n, runs, n), 2 * n
        if bit == "1":
            runs, n = join(runs, n, one, 1), n + 1
    return runs


def _cut(x: Array, axis: int, start: int, stop: int) -> Array:
    return x[tuple(slice(start, stop) if each == axis else slice(None) for each in range(x.ndim))]


def _extended(xp: Any, x: Array, axis: int, radius: int, by_edge: bool) -> Array:
    """Extend x by `radius` positions at either end of an axis."""
    if radius == 0:
        return x
    n = x.shape[axis]
    ends = _cut(x, axis, 0, 1), _cut(x, axis, n - 1, n)
    shape = tuple(radius if each == axis else m for each, m in enumerate(x.shape))
    if not by_edge:
        ends = xp.zeros_like(ends[0]), xp.zeros_like(ends[1])
    first, last = (xp.broadcast_to(end, shape) for end in ends)
    return xp.concat([first, x, last], axis=axis)


def _counts(xp: Any, x: Array, radius: Radius) -> Array:
    """Return the number of elements in each window, in a shape that broadcasts with x."""
    counts: Any = 1
    for axis, places in radius.items():
        n = x.shape[axis]
        place = np.arange(n)
        along = np.minimum(place, places) + np.minimum(n - 1 - place, places) + 1
        counts = counts * _broadcast_axis(xp, along, axis, x)
    return counts


def _broadcast_axis(xp: Any, values: Any, axis: int, x: Array) -> Array:
    """Convert NumPy's values along an axis to x's library, to broadcast with x."""
    shape = tuple(-1 if each == axis else 1 for each in range(x.ndim))
    return xp.asarray(values.reshape(shape), dtype=x.dtype, device=creation_device(x))


def _by_chunks(
    kernel: Callable[..., Fields], arrays: Fields, radius: Radius, results: int
) -> Fields:
    """Run the kernel on arrays of one shape; on chunked ones, on each chunk with its neighbours."""
    if not library_of(arrays[0]).lazy:
        return kernel(*arrays, radius)
    stacked = library_of(arrays[0]).xp.stack(arrays).rechunk({0: -1})
    extended = dask_overlap(stacked, {axis + 1: places for axis, places in radius.items()})

    def around(axis: int, place: int) -> tuple[int, int]:
        """Return how many elements at either end of a chunk belong to its neighbours."""
        places, last = radius.get(axis - 1, 0), extended.numblocks[axis] - 1
        return places if place > 0 else 0, places if place < last else 0

    def run(chunk: Array, block_info: Any = None) -> Array:
        chunk_results = kernel(*(chunk[index, ...] for index in range(len(arrays))), radius)
        inner: list[Any] = [slice(None)]
        for axis, place in enumerate(block_info[0]["chunk-location"][1:], 1):
            before, after = around(axis, place)
            inner.append(slice(before, chunk.shape[axis] - after))
        return library_of(chunk).xp.stack(chunk_results)[tuple(inner)]

    chunks = [(results,)]
    for axis, sizes in enumerate(extended.chunks[1:], 1):
        chunks.append(tuple(n - sum(around(axis, place)) for place, n in enumerate(sizes)))
    computed = extended.map_blocks(
        run, chunks=tuple(chunks), dtype=stacked.dtype, meta=stacked._meta
    )
    return tuple(computed[index, ...] for index in range(results))
