"""Rows that do not lie in memory as rows: other axes, other orders, broadcast inputs.

They are read where they are. Sums over rows, and over columns for the gradients of parameters,
take two steps, so that few sums fill the device as well: a thread for each slot of a sum, then one
reduction of the slots. What has the shape of x is written by an elementwise kernel, and lies as x
does.

Forward, this reads x twice and writes y; a copy of x into rows would be a read and a write more.
Backward, it reads and writes as much as with copies of dy and x, less where either is broadcast,
and needs no memory for them.

Copied into rows are, still: rows that only lie further apart than they are long; dy that lies
otherwise or is broadcast beside an x that lies in rows, since reading x thrice instead would cost
as much; and what takes more than two strides to walk along.

Which arrays come here may not depend on the number of rows, nor may the order of a sum, because the
bits of a row would. So strides decide, that of a single row among them, and small arrays come here
too, though they wait for more launches than with a copy. CuPy's reductions arrange their threads by
strides and the number of results; they find the slots of `LINE` results at least side by side,
beyond which nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import cupy

from ln_array_api.backend import Layout, Primitive, RowsSpec

from .strided_kernels import add_up_many, elementwise, merge_moments

#: Elements that a thread sums up, at least.
RUN = 64
#: Slots that one thread merges or adds up, at most: CuPy's reductions are for more. They take the
#: host as long as the rest of a pass.
FEW = 64
#: Results that a block of CuPy's reductions takes at once, at most, where they lie side by side.
LINE = 32
#: Arrays in which a thread of the first step leaves the moments of its slot.
MOMENTS = 6

Steps = tuple[int, int, int, int]


def lies_in_rows(layout: Layout, itemsize: int) -> bool:
    """Whether the elements of a row lie together, in order, and the rows apart from each other."""
    extent = itemsize
    for axis in reversed(layout.axes):
        if layout.shape[axis] > 1:
            if layout.strides[axis] != extent:
                return False
            extent *= layout.shape[axis]
    return all(
        abs(layout.strides[axis]) >= extent or (length == 1 and layout.strides[axis] == 0)
        for axis, length in enumerate(layout.shape)
        if axis not in layout.axes
    )


def _steps(shape: Sequence[int], strides: Sequence[int], slots: int) -> Steps | None:
    """How to go from an element to that which is `slots` on, by as few strides as there are.

    That is the length of the inner axis, how far one goes on it, how many bytes that is, and how
    many more where the axis ends. None where there are more than two strides.
    """
    merged: list[tuple[int, int]] = []
    for length, stride in zip(shape, strides, strict=True):
        if merged and merged[-1][1] == length * stride:
            merged[-1] = merged[-1][0] * length, stride
        elif length > 1:
            merged.append((length, stride))
    if len(merged) > 2:
        return None
    (_, outer), (length, inner) = [(1, 0)] * (2 - len(merged)) + merged
    turns, ahead = divmod(slots, length)
    return length, ahead, turns * outer + ahead * inner, outer - length * inner


class Sums(NamedTuple):
    """Sums over some axes of the arrays of a call, as kernels take them."""

    lines: int
    """How many sums there are."""
    length: int
    """How many terms each has."""
    slots: int
    """Into how many parts each is cut."""
    padded: int
    """How many sums the workspace has room for."""
    lines_together: bool
    """Whether neighbours in memory belong to different sums, so that neighbouring threads had
    better have different ones, too."""

    @classmethod
    def of(cls, layout: Layout, kept: Sequence[int], summed: Sequence[int]) -> Sums:
        lines, length = (math.prod(layout.shape[axis] for axis in axes) for axes in (kept, summed))
        smallest = [_smallest_stride(layout, axes) for axes in (kept, summed)]
        return cls.over(lines, length, lines_together=smallest[0] <= smallest[1])

    @classmethod
    def over(cls, lines: int, length: int, *, lines_together: bool) -> Sums:
        slots = -(-length // max(RUN, math.isqrt(length) // 4))
        return cls(lines, length, slots, -(-lines // LINE) * LINE, lines_together)

    @property
    def threads(self) -> int:
        return self.lines * self.slots

    def parts(self, planes: int) -> tuple[int, int, int]:
        """The shape of what the first step leaves."""
        return planes, self.slots, self.padded


def _smallest_stride(layout: Layout, axes: Iterable[int]) -> float:
    strides = (abs(layout.strides[axis]) for axis in axes if layout.shape[axis] > 1)
    return min(filter(None, strides), default=math.inf)


class Strided:
    """A kind of call: its arrays' layout, in what order they are walked through, its sums."""

    def __init__(self, spec: RowsSpec, layout: Layout) -> None:
        self.layout, self.center, self.epsilon = layout, spec.center, spec.epsilon
        self.need = spec.need
        ndim, axes = len(layout.shape), layout.axes
        kept = tuple(axis for axis in range(ndim) if axis not in axes)
        self.by_row, self.by_column = kept + axes, axes + kept
        self.rows, self.columns = Sums.of(layout, kept, axes), Sums.of(layout, axes, kept)
        self.statistic = tuple(1 if axis in axes else n for axis, n in enumerate(layout.shape))
        self.single = cupy.dtype("float64" if spec.dtype == "float64" else "float32")
        self.share = 1 / self.rows.length
        walks: list[Any] = [
            _steps(
                [layout.shape[axis] for axis in along], [strides[axis] for axis in along], by.slots
            )
            for by, along in ((self.rows, axes), (self.columns, kept))
            for strides in (layout.strides, layout.dy or layout.strides)
        ]
        self.can_walk = None not in walks
        self.x_along_rows, self.dy_along_rows, self.x_along_columns, self.dy_along_columns = walks
        order = sorted(range(ndim), key=lambda axis: -abs(layout.strides[axis]))
        self.in_memory = tuple(layout.shape[axis] for axis in order)
        self.to_axes = tuple(order.index(axis) for axis in range(ndim))
        if self.to_axes == tuple(range(ndim)):
            self.to_axes = ()

    def empty_as_x(self, x: Any) -> Any:
        """An array for a result, which lies as x does."""
        result = cupy.empty(self.in_memory, x.dtype)
        return result.transpose(self.to_axes) if self.to_axes else result

    def merged(self, parts: Any) -> Any:
        """Mean, what it misses and rstd of each row, in a shape that broadcasts with x."""
        if self.rows.slots <= FEW:
            mean, missed = cupy.empty((2, *self.statistic), self.single)
            rstd = cupy.empty(self.statistic, self.single)
            elementwise("merge_few_moments")(
                *(parts, self.rows.slots, self.rows.padded, self.share, self.epsilon),
                *(mean, missed, rstd),
            )
            return mean, missed, rstd
        results = cupy.empty((3, self.rows.padded), self.single)
        merge_moments()(*parts, self.share, self.epsilon, *results, axis=0)
        return results[:, : self.rows.lines].reshape(3, *self.statistic)

    def forward(self, x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = self.empty_as_x(x) if out is None else out
        parts = cupy.empty(self.rows.parts(MOMENTS), self.single)
        elementwise("moments")(
            *(x.transpose(self.by_row), *self.x_along_rows, *self.rows, self.center, parts),
            size=self.rows.threads,
        )
        mean, missed, rstd = self.merged(parts)
        parameters, scalars = present(gamma=(gamma, 1.0), beta=(beta, 0.0))
        elementwise("normalise", *scalars)(x, mean, missed, rstd, *parameters, y)
        return y, mean if self.center else None, rstd

    def backward(self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        need_dx, need_dgamma, need_dbeta = self.need
        planes = 3 if need_dx else int(need_dgamma and self.center)
        wanted = need_dgamma + need_dbeta
        of_rows, sums, of_columns = _workspace(
            self.single,
            *(self.rows.parts(planes), (planes, self.rows.padded), self.columns.parts(wanted)),
        )
        # What a kernel does not read is some array that is there.
        mean = mean if self.center else rstd
        if planes:
            elementwise("sums_of_rows")(
                *(dy.transpose(self.by_row), *self.dy_along_rows),
                *(x.transpose(self.by_row), *self.x_along_rows),
                *(mean, rstd, rstd if gamma is None else gamma, gamma is not None, need_dx),
                *(*self.rows, self.center, of_rows),
                size=self.rows.threads,
            )
            sums = add_up(of_rows, self.rows, sums)
        dx = dgamma = dbeta = None
        if need_dx:
            dx = self.empty_as_x(x)
            parameters, scalars = present(gamma=(gamma, 1.0))
            elementwise("dx", *scalars)(
                *(dy, x, mean, rstd, *sums.reshape(planes, *self.statistic)),
                *(*parameters, self.share, self.center, dx),
            )
        if wanted:
            elementwise("sums_of_columns")(
                *(dy.transpose(self.by_column), *self.dy_along_columns),
                *(x.transpose(self.by_column), *self.x_along_columns),
                *(mean, rstd, sums[0] if planes else rstd, self.share),
                *(need_dgamma, need_dbeta, *self.columns, self.center, of_columns),
                size=self.columns.threads,
            )
            dtype = (x if gamma is None else gamma).dtype
            gradients = cupy.empty((wanted, self.columns.padded), dtype)
            gradients = add_up(of_columns, self.columns, gradients)
            dgamma = gradients[0] if need_dgamma else None
            dbeta = gradients[-1] if need_dbeta else None
        return dx, dgamma, dbeta


def add_up(parts: Any, sums: Sums, results: Any) -> Any:
    """The sums of some slots of several lines of sums, left in `results`, which has room for it."""
    if sums.slots > FEW:
        add_up_many()(parts, results, axis=1)
        return results[:, : sums.lines]
    results = cupy.ndarray((len(parts), sums.lines), results.dtype, results.data)
    elementwise("add_up_few")(parts, sums.lines, sums.slots, sums.padded, results)
    return results


def _workspace(dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    """Arrays of such shapes in one piece of memory."""
    sizes = [math.prod(shape) for shape in shapes]
    memory, arrays = cupy.empty(sum(sizes), dtype).data, []
    for shape, size in zip(shapes, sizes, strict=True):
        arrays.append(cupy.ndarray(shape, dtype, memory))
        memory = memory + size * dtype.itemsize  # and not in place, which the array would notice
    return arrays


def present(**parameters: tuple[Any, float]) -> tuple[list[Any], list[str]]:
    """Parameters, or numbers in place of those that are absent, and the names of these."""
    arrays = [number if each is None else each for each, number in parameters.values()]
    return arrays, [name for name, (each, _) in parameters.items() if each is None]


def prepare_strided(
    primitive: Primitive, spec: RowsSpec, layout: Layout
) -> tuple[Callable[..., Any], str] | None:
    """What runs a call whose x does not lie in rows, and a word about it; else None."""
    itemsize = 2 if spec.dtype.endswith("16") else int(spec.dtype[-2:]) // 8
    if spec.groups * spec.repeat > 1 or lies_in_rows(layout, itemsize):
        return None
    call = Strided(spec, layout)
    if not call.can_walk:
        return None
    kernel = call.forward if primitive == "rows_forward" else call.backward
    return kernel, f"elementwise and reduction kernels for {spec.dtype}, on x as it lies"
