"""X by its instances, the channels of each sample: on a backend's kernels, or on the generic ones.

Kernels of a backend get instances as rows. Generic ones get x with all its axes. What a caller has
of statistics is of the rank of x in either case.
"""

from __future__ import annotations

from typing import Any

from ._arrays import ACCUMULATION, Array, dtype_name, library_of, native_dtype
from ._family import Call, call_on
from ._plans import dtype_of, reshaped
from ._views import View
from .kernels import instances


class Instances:
    """X, and dy in a backward call, with the primitives of ``kernels.instances`` on them."""

    def __init__(self, x: Array, view: View, dy: Array | None = None) -> None:
        self._x, self._dy, self._view, self._xp = x, dy, view, library_of(x).xp
        self._statistic = view.broadcast_statistic
        # X and dy as they have been converted, by the function that did it.
        self._converted: dict[Any, Array] = {}

    def statistics(self, epsilon: float) -> tuple[Array, ...]:
        """Mean, what rounding took from it, var and rstd."""
        call = call_on("instances_statistics", self._x, self._view.rows, epsilon=epsilon)
        if call.has_kernel:
            return self._with_rank(call.results(self._as_rows(self._x, call)))
        x, axes = self._widened(self._x), self._view.axes
        return instances.statistics(x, axes=axes, epsilon=epsilon)

    def affine(self, *of_instances: Array) -> Array:
        """X̂ * scale + shift, given mean, missed, rstd, scale and shift."""
        call = call_on("instances_affine", self._x, self._view.rows)
        if call.has_kernel:
            columns = map(self._as_column, of_instances)
            return self._view.from_rows(call.results(self._as_rows(self._x, call), *columns))
        return self._like_x(instances.affine(self._widened(self._x), *of_instances))

    def sums(self, mean: Array, rstd: Array) -> tuple[Array, ...]:
        """What the rounded mean has missed, and the sums of dy and of dy * x̂."""
        call = call_on("instances_sums", self._x, self._view.rows, dy=dtype_of(self._dy))
        if call.has_kernel:
            dy, x = self._as_rows(self._dy, call), self._as_rows(self._x, call)
            return self._with_rank(call.results(dy, x, *map(self._as_column, (mean, rstd))))
        dy, x = self._widened(self._dy), self._widened(self._x)
        return instances.sums(dy, x, mean, rstd, axes=self._view.axes)

    def gradient(self, *of_instances: Array) -> Array:
        """Dx, given mean, missed, rstd, weight, scale and shift."""
        call = call_on("instances_gradient", self._x, self._view.rows, dy=dtype_of(self._dy))
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
        """X or dy in the accumulation dtype: once, since frameworks add up gradients in x's own."""
        key = "wide", id(values)
        if key not in self._converted:
            dtype = getattr(self._xp, ACCUMULATION[dtype_name(self._x.dtype)])
            wide = self._xp.astype(values, dtype, copy=False)
            self._converted[key] = reshaped(wide, self._view.split)
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
