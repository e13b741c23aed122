"""X by its instances, the channels of each sample: on a backend's kernels, or on the generic ones.

Kernels of a backend get instances as rows. Generic ones get x with all its axes. What a caller has
of statistics is of the rank of x in either case.
"""

from __future__ import annotations

from typing import Any

from ._arrays import Array, library_of
from ._family import Call, call_on
from ._plans import dtype_of, reshaped
from ._views import View
from .backend import FamilyPrimitive
from .kernels import instances


def planned(primitive: FamilyPrimitive, x: Array, view: View, **details: Any) -> Call:
    """How a call of a primitive on instances of x runs, of which the view is that of `Groups`."""
    return call_on(primitive, x, view.rows, **details)


class Instances:
    """X, and dy in a backward call, with the primitives of ``kernels.instances`` on them."""

    def __init__(self, x: Array, view: View, dy: Array | None = None) -> None:
        self._x, self._dy, self._view, self._xp = x, dy, view, library_of(x).xp
        self._rows: dict[str, Array] = {}

    def statistics(self, epsilon: float) -> tuple[Array, Array, Array, Array]:
        """Mean, what rounding took from it, var and rstd."""
        call = planned("instances_statistics", self._x, self._view, epsilon=epsilon)
        if call.has_kernel:
            return self._by_rows(call, {"x": self._x})  # type: ignore[no-any-return]
        axes = self._view.axes
        return instances.statistics(self._split(self._x), axes=axes, epsilon=epsilon)

    def affine(self, *of_instances: Array) -> Array:
        """X̂ * scale + shift, given mean, missed, rstd, scale and shift."""
        call = planned("instances_affine", self._x, self._view)
        if call.has_kernel:
            return self._view.from_rows(self._by_rows(call, {"x": self._x}, *of_instances))
        y = instances.affine(self._split(self._x), *of_instances)
        return reshaped(y, self._view.shape)

    def sums(self, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
        """What the rounded mean has missed, and the sums of dy and of dy * x̂."""
        call = planned("instances_sums", self._x, self._view, dy=dtype_of(self._dy))
        if call.has_kernel:
            full = {"dy": self._dy, "x": self._x}
            return self._by_rows(call, full, mean, rstd)  # type: ignore[no-any-return]
        dy, x = self._split(self._dy), self._split(self._x)
        return instances.sums(dy, x, mean, rstd, axes=self._view.axes)

    def gradient(self, *of_instances: Array) -> Array:
        """Dx, given mean, missed, rstd, weight, scale and shift."""
        call = planned("instances_gradient", self._x, self._view, dy=dtype_of(self._dy))
        if call.has_kernel:
            dx = self._by_rows(call, {"dy": self._dy, "x": self._x}, *of_instances)
            return self._view.from_rows(dx)
        dx = instances.gradient(self._split(self._dy), self._split(self._x), *of_instances)
        return reshaped(dx, self._view.shape)

    def _split(self, values: Array) -> Array:
        return reshaped(values, self._view.split)

    def _by_rows(self, call: Call, full: dict[str, Array], *of_instances: Array) -> Array:
        """Results of a kernel; statistics in the shape in which a caller has them."""
        for name, values in full.items():
            if name not in self._rows:
                self._rows[name] = self._view.to_rows(values, call.choice.put_in_order)
        results = call.results(
            *(self._rows[name] for name in full), *map(self._as_column, of_instances)
        )
        if not isinstance(results, tuple):
            return results
        shape = self._view.broadcast_statistic
        return tuple(self._xp.reshape(each, shape) for each in results)

    def _as_column(self, values: Array) -> Array:
        whole = self._xp.broadcast_to(values, self._view.broadcast_statistic)
        return self._xp.reshape(whole, (self._view.rows[0], 1))
