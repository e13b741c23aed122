"""Primitives on the instances of x, the channels of each sample, by any kernels.

Kernels of a backend get instances as rows, generic ones get x with all its axes. In either case a
caller passes and gets statistics of the rank of x.
"""

from __future__ import annotations

from typing import Any

from ._arrays import (
    ACCUMULATION,
    Array,
    dtype_name,
    dtype_name_or_none,
    library_of,
    native_dtype,
)
from ._family import Call, call_on
from ._plans import reshaped
from ._views import RowsView
from .kernels import instances


class Instances:
    """The primitives of ``kernels.instances`` on x, and on dy in a backward call."""

    def __init__(self, x: Array, view: RowsView, dy: Array | None = None) -> None:
        self._x, self._dy, self._view, self._xp = x, dy, view, library_of(x).xp
        self._statistic = view.broadcast_statistic
        # Conversions of x and dy that have been made, by their kind.
        self._converted: dict[Any, Array] = {}

    def statistics(self, epsilon: float) -> tuple[Array, ...]:
        """Return mean, its residual, var and rstd."""
        call = call_on("instances_statistics", self._x, self._view.rows, epsilon=epsilon)
        if call.has_kernel:
            return self._with_rank(call.results(self._as_rows(self._x, call)))
        x, axes = self._widened(self._x), self._view.axes
        return instances.statistics(x, axes=axes, epsilon=epsilon)

    def affine(self, *of_instances: Array) -> Array:
        """Return x̂ * scale + shift, given mean, mean_residual, rstd, scale and shift."""
        call = call_on("instances_affine", self._x, self._view.rows)
        if call.has_kernel:
            columns = map(self._as_column, of_instances)
            return self._view.from_rows(call.results(self._as_rows(self._x, call), *columns))
        return self._like_x(instances.affine(self._widened(self._x), *of_instances))

    def sums(self, mean: Array, rstd: Array) -> tuple[Array, ...]:
        """Return the residual of the rounded mean, and the sums of dy and of dy * x̂."""
        call = call_on("instances_sums", self._x, self._view.rows, dy=dtype_name_or_none(self._dy))
        if call.has_kernel:
            dy, x = self._as_rows(self._dy, call), self._as_rows(self._x, call)
            return self._with_rank(call.results(dy, x, *map(self._as_column, (mean, rstd))))
        dy, x = self._widened(self._dy), self._widened(self._x)
        return instances.sums(dy, x, mean, rstd, axes=self._view.axes)

    def gradient(self, *of_instances: Array) -> Array:
        """Return dx, given mean, mean_residual, rstd, weight, scale and shift."""
        call = call_on(
            "instances_gradient", self._x, self._view.rows, dy=dtype_name_or_none(self._dy)
        )
        if call.has_kernel:
            dy, x = self._as_rows(self._dy, call), self._as_rows(self._x, call)
            return self._view.from_rows(call.results(dy, x, *map(self._as_column, of_instances)))
        dy, x = self._widened(self._dy), self._widened(self._x)
        return self._like_x(instances.gradient(dy, x, *of_instances))

    def _as_rows(self, values: Array, call: Call) -> Array:
        key = "rows", id(values)
        if key not in self._converted:
            self._converted[key] = self._view.to_rows(values, call.choice.ascontiguous)
        return self._converted[key]

    def _widened(self, values: Array) -> Array:
        """Cast x or dy to the accumulation dtype, once: frameworks add up gradients in x's own."""
        key = "acc", id(values)
        if key not in self._converted:
            dtype = getattr(self._xp, ACCUMULATION[dtype_name(self._x.dtype)])
            values_acc = self._xp.astype(values, dtype, copy=False)
            self._converted[key] = reshaped(values_acc, self._view.grouped_shape)
        return self._converted[key]

    def _like_x(self, values: Array) -> Array:
        dtype = native_dtype(self._x)
        return self._xp.astype(reshaped(values, self._view.shape), dtype, copy=False)

    def _as_column(self, values: Array) -> Array:
        if values.shape != self._statistic:
            values = self._xp.broadcast_to(values, self._statistic)
        return self._xp.reshape(values, (self._view.rows[0], 1))

    def _with_rank(self, columns: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(self._xp.reshape(each, self._statistic) for each in columns)
