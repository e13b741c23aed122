"""Arrays whose rows are not contiguous: other axes, other orders, broadcast inputs.

They are read in place. Sums over rows, and over columns for the gradients of parameters, take two
steps, so that few sums fill the device as well: each thread computes a partial sum, and a reduction
adds these up. An elementwise kernel writes results of x's shape, which get the memory order of x.

Forward, this reads x twice and writes y; a copy of x into rows would add a read and a write.
Backward, it reads and writes as much as with copies of dy and x, less where either is broadcast,
and needs no memory for copies.

Three cases are still copied to rows: contiguous rows with gaps between them; a dy of another
layout, or broadcast, while x is stored in rows (reading x three times would cost as much); and axes
that need more than two strides.

Neither the choice of this path nor the order of a sum may depend on the number of rows, because the
bits of a row would. So strides decide, also that of a single row, and small arrays take this path
too, although it needs more launches than a copy. CuPy's reductions arrange their threads by strides
and by the number of results. Here at least `OUTPUTS_PER_BLOCK` results are contiguous, from which
number on the arrangement no longer changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import cupy

from ln_array_api.backend import Layout, Primitive, RowsSpec

from .kernel_launch import accumulation_dtype
from .launch_config import ITEMSIZE, ceil_div
from .strided_kernels import elementwise, merge_moments_many, reduce_partials_many

#: A thread adds up at least so many elements.
MIN_TERMS_PER_THREAD = 64
#: Up to so many partial results are reduced by one thread. CuPy's reductions, which reduce more,
#: cost the host as much as the rest of a pass.
MAX_SERIAL_PARTIALS = 64
#: A block of CuPy's reductions takes up to so many results, where they are contiguous.
OUTPUTS_PER_BLOCK = 32
#: Numbers in the moments that a thread stores.
NUM_MOMENTS = 6

Steps = tuple[int, int, int, int]


def has_contiguous_rows(layout: Layout, itemsize: int) -> bool:
    """Return whether each row is contiguous, in order, and no rows overlap."""
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


def iterator_steps(shape: Sequence[int], strides: Sequence[int], step: int) -> Steps | None:
    """Return how a `StridedIterator` goes from each element to that which is `step` further on.

    These are the length of the inner axis, the step on it, the same in bytes, and the bytes to add
    where that axis ends. Return None where there are more than two strides.
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
    outer_step, inner_step = divmod(step, length)
    return length, inner_step, outer_step * outer + inner_step * inner, outer - length * inner


class ReductionLayout(NamedTuple):
    """A reduction over some axes of the arrays of a call, as kernels take it."""

    outputs: int
    """Number of results."""
    length: int
    """Terms of each."""
    num_partials: int
    """Partial results that each is split into."""
    padded_outputs: int
    """Number of results that the workspace has memory for."""
    coalesce_outputs: bool
    """Whether neighbouring threads compute different outputs, since neighbouring elements do."""

    @classmethod
    def of(cls, layout: Layout, kept: Sequence[int], summed: Sequence[int]) -> ReductionLayout:
        outputs, length = (
            math.prod(layout.shape[axis] for axis in axes) for axes in (kept, summed)
        )
        kept_stride, summed_stride = (_smallest_stride(layout, axes) for axes in (kept, summed))
        return cls.over(outputs, length, coalesce_outputs=kept_stride <= summed_stride)

    @classmethod
    def over(cls, outputs: int, length: int, *, coalesce_outputs: bool) -> ReductionLayout:
        num_partials = ceil_div(length, max(MIN_TERMS_PER_THREAD, math.isqrt(length) // 4))
        padded_outputs = ceil_div(outputs, OUTPUTS_PER_BLOCK) * OUTPUTS_PER_BLOCK
        return cls(outputs, length, num_partials, padded_outputs, coalesce_outputs)

    @property
    def threads(self) -> int:
        return self.outputs * self.num_partials

    def partials_shape(self, planes: int) -> tuple[int, int, int]:
        """Return the shape of the results of the first step."""
        return planes, self.num_partials, self.padded_outputs


def _smallest_stride(layout: Layout, axes: Iterable[int]) -> float:
    strides = (abs(layout.strides[axis]) for axis in axes if layout.shape[axis] > 1)
    return min(filter(None, strides), default=math.inf)


class Strided:
    """A kind of call: the layout of its arrays, how they are iterated over, its reductions."""

    def __init__(self, spec: RowsSpec, layout: Layout) -> None:
        self.layout, self.center, self.epsilon = layout, spec.center, spec.epsilon
        self.need = spec.need
        ndim, axes = len(layout.shape), layout.axes
        kept = tuple(axis for axis in range(ndim) if axis not in axes)
        self.by_row, self.by_column = kept + axes, axes + kept
        self.rows = ReductionLayout.of(layout, kept, axes)
        self.columns = ReductionLayout.of(layout, axes, kept)
        self.stats_shape = tuple(1 if axis in axes else n for axis, n in enumerate(layout.shape))
        self.acc_dtype = accumulation_dtype(spec.dtype)
        self.inv_count = 1 / self.rows.length
        steps: list[Any] = [
            iterator_steps(
                [layout.shape[axis] for axis in along],
                [strides[axis] for axis in along],
                reduction.num_partials,
            )
            for reduction, along in ((self.rows, axes), (self.columns, kept))
            for strides in (layout.strides, layout.dy or layout.strides)
        ]
        self.can_iterate = None not in steps
        self.x_row_steps, self.dy_row_steps, self.x_column_steps, self.dy_column_steps = steps
        order = sorted(range(ndim), key=lambda axis: -abs(layout.strides[axis]))
        self.memory_shape = tuple(layout.shape[axis] for axis in order)
        self.to_axes = tuple(order.index(axis) for axis in range(ndim))
        if self.to_axes == tuple(range(ndim)):
            self.to_axes = ()

    def empty_like_strided(self, x: Any) -> Any:
        """Return an array for a result, which has the memory order of x."""
        result = cupy.empty(self.memory_shape, x.dtype)
        return result.transpose(self.to_axes) if self.to_axes else result

    def partial_moments(self, x: Any) -> Any:
        """Return partial moments of each row."""
        partials = cupy.empty(self.rows.partials_shape(NUM_MOMENTS), self.acc_dtype)
        elementwise("partial_moments")(
            *(x.transpose(self.by_row), *self.x_row_steps, *self.rows, self.center, partials),
            size=self.rows.threads,
        )
        return partials

    def finalize_stats(self, partials: Any, *, with_var: bool = False) -> Any:
        """Return mean, mean_residual, the variance if wanted, and rstd of each row.

        Their shape broadcasts with x.
        """
        if self.rows.num_partials <= MAX_SERIAL_PARTIALS:
            means = cupy.empty((2, *self.stats_shape), self.acc_dtype)
            others = [cupy.empty(self.stats_shape, self.acc_dtype) for _ in range(1 + with_var)]
            elementwise("merge_moments_with_var_few" if with_var else "merge_moments_few")(
                *(partials, self.rows.num_partials, self.rows.padded_outputs),
                *(self.inv_count, self.epsilon, *means, *others),
            )
            return *means, *others
        results = cupy.empty((3 + with_var, self.rows.padded_outputs), self.acc_dtype)
        merge = merge_moments_many(with_var=with_var)
        merge(*partials, self.inv_count, self.epsilon, *results, axis=0)
        return results[:, : self.rows.outputs].reshape(-1, *self.stats_shape)

    def forward(self, x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        y = self.empty_like_strided(x) if out is None else out
        mean, mean_residual, rstd = self.finalize_stats(self.partial_moments(x))
        parameters, scalars = fill_absent(gamma=(gamma, 1.0), beta=(beta, 0.0))
        elementwise("normalise", *scalars)(x, mean, mean_residual, rstd, *parameters, y)
        return y, mean if self.center else None, rstd

    def partial_row_sums(
        self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, partials: Any
    ) -> None:
        """Write partial sums of each row: of deviations, and where there is room, of g * x_hat, g.

        g is dy * gamma.
        """
        elementwise("row_sums")(
            *(dy.transpose(self.by_row), *self.dy_row_steps),
            *(x.transpose(self.by_row), *self.x_row_steps),
            *(mean, rstd, rstd if gamma is None else gamma, gamma is not None, len(partials) > 1),
            *(*self.rows, self.center, partials),
            size=self.rows.threads,
        )

    def backward(self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        need_dx, need_dgamma, need_dbeta = self.need
        num_row_sums = 3 if need_dx else int(need_dgamma and self.center)
        num_param_grads = need_dgamma + need_dbeta
        row_partials, row_sums, column_partials = _carve_workspace(
            self.acc_dtype,
            self.rows.partials_shape(num_row_sums),
            (num_row_sums, self.rows.padded_outputs),
            self.columns.partials_shape(num_param_grads),
        )
        # Pass any valid array for an input that the kernel does not read.
        mean = mean if self.center else rstd
        if num_row_sums:
            self.partial_row_sums(dy, x, mean, rstd, gamma, row_partials)
            row_sums = reduce_partials(row_partials, self.rows, row_sums)
        dx = dgamma = dbeta = None
        if need_dx:
            dx = self.empty_like_strided(x)
            parameters, scalars = fill_absent(gamma=(gamma, 1.0))
            elementwise("dx", *scalars)(
                *(dy, x, mean, rstd, *row_sums.reshape(num_row_sums, *self.stats_shape)),
                *(*parameters, self.inv_count, self.center, dx),
            )
        if num_param_grads:
            elementwise("column_sums")(
                *(dy.transpose(self.by_column), *self.dy_column_steps),
                *(x.transpose(self.by_column), *self.x_column_steps),
                *(mean, rstd, row_sums[0] if num_row_sums else rstd, self.inv_count),
                *(need_dgamma, need_dbeta, *self.columns, self.center, column_partials),
                size=self.columns.threads,
            )
            dtype = (x if gamma is None else gamma).dtype
            gradients = cupy.empty((num_param_grads, self.columns.padded_outputs), dtype)
            gradients = reduce_partials(column_partials, self.columns, gradients)
            dgamma = gradients[0] if need_dgamma else None
            dbeta = gradients[-1] if need_dbeta else None
        return dx, dgamma, dbeta


def reduce_partials(partials: Any, reduction: ReductionLayout, results: Any) -> Any:
    """Add up partial sums; return the sums, which are in the memory of `results`."""
    if reduction.num_partials > MAX_SERIAL_PARTIALS:
        reduce_partials_many()(partials, results, axis=1)
        return results[:, : reduction.outputs]
    results = cupy.ndarray((len(partials), reduction.outputs), results.dtype, results.data)
    elementwise("reduce_partials_few")(
        *(partials, reduction.outputs, reduction.num_partials, reduction.padded_outputs, results)
    )
    return results


def few_partials(partials: Any, reduction: ReductionLayout) -> Any:
    """Return partial sums that one thread can add up, from those of any number."""
    if reduction.num_partials <= MAX_SERIAL_PARTIALS:
        return partials
    sums = cupy.empty((len(partials), 1, reduction.padded_outputs), partials.dtype)
    reduce_partials_many()(partials, sums[:, 0], axis=1)
    return sums


def _carve_workspace(dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    """Return arrays of some shapes in one piece of memory."""
    sizes = [math.prod(shape) for shape in shapes]
    memory, arrays = cupy.empty(sum(sizes), dtype).data, []
    for shape, size in zip(shapes, sizes, strict=True):
        arrays.append(cupy.ndarray(shape, dtype, memory))
        memory = memory + size * dtype.itemsize  # not in place, which would change the array
    return arrays


def fill_absent(**parameters: tuple[Any, float]) -> tuple[list[Any], list[str]]:
    """Return parameters, with a number for each that is absent, and the names of these."""
    arrays = [number if each is None else each for each, number in parameters.values()]
    return arrays, [name for name, (each, _) in parameters.items() if each is None]


def prepare_strided(
    primitive: Primitive, spec: RowsSpec, layout: Layout
) -> tuple[Callable[..., Any], str] | None:
    """Return a function that runs calls on such arrays in place, and its description, or None."""
    if spec.groups * spec.repeat > 1 or has_contiguous_rows(layout, ITEMSIZE[spec.dtype]):
        return None
    call = Strided(spec, layout)
    if not call.can_iterate:
        return None
    kernel = call.forward if primitive == "rows_forward" else call.backward
    return kernel, f"elementwise and reduction kernels for {spec.dtype}, on x in place"
