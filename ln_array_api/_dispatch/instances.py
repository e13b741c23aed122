"""Primitives on the instances of x, the channels of each sample, by any kernels.

Kernels of a backend get instances as rows, generic ones get x with all its axes. In either case a
caller passes and gets statistics of the rank of x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._arrays import ACCUMULATION, Array, dtype_name, dtype_name_or_none, library_of, native_dtype
from .._layout import reshaped
from ..backend import Choice
from ..kernels import instances
from .family import choose_kernel, operations_plan
from .plans import Plan, cast_statistic
from .specs import FamilyPrimitive
from .views import RowsView


class InstancesPlan(Plan):
    """A plan that computes with the primitives on instances: see `Instances`."""

    def __init__(
        self,
        view: RowsView,
        compute: Callable[..., Any],
        x: Array,
        dy: Array | None = None,
        epsilon: float = 0.0,
    ) -> None:
        """Plan for such arrays, and ``compute(self, *arrays)``."""
        details: dict[FamilyPrimitive, dict[str, Any]]
        details = {"instances_statistics": {"epsilon": epsilon}, "instances_affine": {}}
        if dy is not None:
            of_dy = {"dy": dtype_name_or_none(dy)}
            details = {"instances_sums": of_dy, "instances_gradient": of_dy}
        #: The backends' kernels by their primitives; those that are missing are generic.
        self.kernels: dict[str, Choice] = {}
        for primitive in reversed(details):
            chosen = choose_kernel(primitive, x, view.rows, **details[primitive])
            if isinstance(chosen, str):
                first = operations_plan(x, chosen, compute)
                super().__init__(first.primitive, first.spec, first.choice)
            else:
                super().__init__(primitive, *chosen)
                self.kernels[primitive] = chosen[1]
        self.view, self.epsilon = view, epsilon
        self.shape, self.statistic_shape = view.broadcast_parameter, view.broadcast_statistic
        self._compute = compute

    def run(self, *arrays: Array | None, **masks: Array) -> Any:
        return self._compute(self, *arrays)

    def with_rank(self, statistic: Array) -> Array:
        """Return a saved statistic in the accumulation dtype and of the rank of x."""
        return reshaped(cast_statistic(statistic, self.spec.dtype), self.statistic_shape)


class Instances:
    """The primitives of ``kernels.instances`` on x, and on dy in a backward call."""

    def __init__(self, plan: InstancesPlan, x: Array, dy: Array | None = None) -> None:
        self._plan, self._x, self._dy, self._xp = plan, x, dy, library_of(x).xp
        # Conversions of x and dy that have been made, by their kind.
        self._converted: dict[Any, Array] = {}

    def statistics(self) -> tuple[Array, ...]:
        """Return mean, its residual, var and rstd."""
        choice = self._plan.kernels.get("instances_statistics")
        if choice is not None:
            return self._with_rank(choice.kernel(self._as_rows(self._x, choice)))
        x, axes = self._widened(self._x), self._plan.view.axes
        return instances.statistics(x, axes=axes, epsilon=self._plan.epsilon)

    def affine(self, *of_instances: Array) -> Array:
        """Return x̂ * scale + shift, given mean, mean_residual, rstd, scale and shift."""
        choice = self._plan.kernels.get("instances_affine")
        if choice is not None:
            columns = map(self._as_column, of_instances)
            y = choice.kernel(self._as_rows(self._x, choice), *columns)
            return self._plan.view.from_rows(y)
        return self._like_x(instances.affine(self._widened(self._x), *of_instances))

    def sums(self, mean: Array, rstd: Array) -> tuple[Array, ...]:
        """Return the residual of the rounded mean, and the sums of dy and of dy * x̂."""
        choice = self._plan.kernels.get("instances_sums")
        if choice is not None:
            columns = map(self._as_column, (mean, rstd))
            return self._with_rank(choice.kernel(*self._rows_of_both(choice), *columns))
        dy, x = self._widened(self._dy), self._widened(self._x)
        return instances.sums(dy, x, mean, rstd, axes=self._plan.view.axes)

    def gradient(self, *of_instances: Array) -> Array:
        """Return dx, given mean, mean_residual, rstd, weight, scale and shift."""
        choice = self._plan.kernels.get("instances_gradient")
        if choice is not None:
            columns = map(self._as_column, of_instances)
            return self._plan.view.from_rows(choice.kernel(*self._rows_of_both(choice), *columns))
        dy, x = self._widened(self._dy), self._widened(self._x)
        return self._like_x(instances.gradient(dy, x, *of_instances))

    def _rows_of_both(self, choice: Choice) -> tuple[Array, Array]:
        return self._as_rows(self._dy, choice), self._as_rows(self._x, choice)

    def _as_rows(self, values: Array, choice: Choice) -> Array:
        key = "rows", id(values)
        if key not in self._converted:
            self._converted[key] = self._plan.view.to_rows(values, choice.ascontiguous)
        return self._converted[key]

    def _widened(self, values: Array) -> Array:
        """Cast x or dy to the accumulation dtype, once: frameworks add up gradients in x's own."""
        key = "acc", id(values)
        if key not in self._converted:
            dtype = getattr(self._xp, ACCUMULATION[dtype_name(self._x.dtype)])
            values_acc = self._xp.astype(values, dtype, copy=False)
            self._converted[key] = reshaped(values_acc, self._plan.view.grouped_shape)
        return self._converted[key]

    def _like_x(self, values: Array) -> Array:
        dtype = native_dtype(self._x)
        return self._xp.astype(reshaped(values, self._plan.view.shape), dtype, copy=False)

    def _as_column(self, values: Array) -> Array:
        if values.shape != self._plan.statistic_shape:
            values = self._xp.broadcast_to(values, self._plan.statistic_shape)
        return self._xp.reshape(values, (self._plan.view.rows[0], 1))

    def _with_rank(self, columns: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(self._xp.reshape(each, self._plan.statistic_shape) for each in columns)
