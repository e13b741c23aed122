"""From a call of layer norm or RMS norm to a kernel: the checks, the rows view, the plan.

A plan is made once for each kind of call (dtypes, shapes, devices, layouts, options) and kept. It
checks the arguments when it is made, so a repeated call is one look-up, then the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from . import _check
from ._arrays import ACCUMULATION, Array, device_of, dtype_name, in_shape, library_of
from .backend import Choice, Primitive, RowsSpec, cache_plan, cached_plan, choose
from .kernels import rows

GRADIENTS = ("dx", "dgamma", "dbeta")


class View(NamedTuple):
    """X seen as rows, and the shapes that its statistics and parameters have beside it."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    """The normalised axes, ascending."""
    permutation: tuple[int, ...]
    """Which brings the normalised axes to the end; empty where they are there."""
    rows: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, ...], axes: tuple[int, ...]) -> View:
        kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
        permutation = kept + axes if axes[0] != len(kept) else ()
        m = math.prod(shape[axis] for axis in kept)
        n = math.prod(shape[axis] for axis in axes)
        return cls(shape, axes, permutation, (m, n))

    @property
    def parameter(self) -> tuple[int, ...]:
        """The shape of gamma and beta."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def broadcast_parameter(self) -> tuple[int, ...]:
        """The shape of gamma and beta beside x."""
        return tuple(n if axis in self.axes else 1 for axis, n in enumerate(self.shape))

    @property
    def statistic(self) -> tuple[int, ...]:
        """The shape of mean and rstd."""
        return tuple(1 if axis in self.axes else n for axis, n in enumerate(self.shape))

    def to_rows(self, x: Array) -> Array:
        return in_shape(x, self.rows, self.permutation)

    def from_rows(self, x: Array) -> Array:
        xp = library_of(x).xp
        if not self.permutation:
            return xp.reshape(x, self.shape)
        x = xp.reshape(x, tuple(self.shape[axis] for axis in self.permutation))
        inverse = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        return xp.permute_dims(x, tuple(inverse))


class Plan:
    """How a kind of call runs. Subclasses say it for arrays of rows and for chunked arrays."""

    def __init__(self, primitive: Primitive, spec: RowsSpec, view: View, choice: Choice) -> None:
        self.primitive, self.spec, self.view, self.choice = primitive, spec, view, choice


class RowsPlan(Plan):
    """X goes to the kernel as (M, N) in C order: as it is, as a view, or as a copy."""

    def __init__(
        self, primitive: Primitive, spec: RowsSpec, view: View, x: Array, *parameters: Array | None
    ) -> None:
        super().__init__(primitive, spec, view, choose(primitive, spec))
        in_order = library_of(x).in_order
        self.direct = in_order(x) and not view.permutation and view.rows == view.shape
        self.flat = (spec.shape[1],)
        self.direct_parameters = len(view.axes) == 1 and all(
            each is None or in_order(each) for each in parameters
        )

    def _parameter(self, values: Array | None) -> Array | None:
        if values is None or self.direct_parameters:
            return values
        return in_shape(values, self.flat)

    def run(
        self, x: Array, gamma: Array | None, beta: Array | None, out: Array | None
    ) -> tuple[Array, Array | None, Array]:
        """Y as the caller wants it, mean and rstd one to a row."""
        spec, view, kernel = self.spec, self.view, self.choice.kernel
        library = library_of(x)
        target = None
        if out is not None and not view.permutation and library.in_order(out):
            target = library.xp.reshape(out, view.rows)
        y, mean, rstd = kernel(
            x if self.direct else view.to_rows(x),
            self._parameter(gamma),
            self._parameter(beta),
            epsilon=spec.epsilon,
            center=spec.center,
            groups=1,
            repeat=1,
            out=target,
        )
        if out is not None:
            if target is None:
                out[...] = view.from_rows(y)
            y = out
        elif not self.direct:
            y = view.from_rows(y)
        return y, mean, rstd

    def forward(
        self, x: Array, gamma: Array | None, beta: Array | None, out: Array | None
    ) -> tuple[Array, Array | None, Array]:
        """Y, mean and rstd, the latter of x's rank."""
        y, mean, rstd = self.run(x, gamma, beta, out)
        reshape, shape = library_of(x).xp.reshape, self.view.statistic
        return y, None if mean is None else reshape(mean, shape), reshape(rstd, shape)

    def backward(
        self, dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
    ) -> tuple[Array | None, Array | None, Array | None]:
        spec, view = self.spec, self.view
        xp = library_of(x).xp
        dx, dgamma, dbeta = self.choice.kernel(
            view.to_rows(dy),
            x if self.direct else view.to_rows(x),
            None if mean is None else _statistic(xp, in_shape(mean, (spec.shape[0],)), spec),
            _statistic(xp, in_shape(rstd, (spec.shape[0],)), spec),
            self._parameter(gamma),
            center=spec.center,
            groups=1,
            repeat=1,
            need=spec.need,
        )
        return (
            dx if dx is None or self.direct else view.from_rows(dx),
            _gradient(xp, dgamma, view.parameter, x, gamma),
            _gradient(xp, dbeta, view.parameter, x, gamma),
        )


class ChunkedPlan(Plan):
    """X keeps its axes, because a reshape would cut its chunks anew. Always generic."""

    def __init__(self, primitive: Primitive, spec: RowsSpec, view: View) -> None:
        reason = "chunked arrays keep their axes, and compute nothing until asked"
        kernels: dict[Primitive, Callable[..., Any]] = {
            "rows_forward": rows.normalise,
            "rows_backward": rows.differentiate,
        }
        super().__init__(primitive, spec, view, Choice(kernels[primitive], "generic", reason))

    def _parameter(self, values: Array | None) -> Array | None:
        if values is None:
            return None
        return library_of(values).xp.reshape(values, self.view.broadcast_parameter)

    def run(
        self, x: Array, gamma: Array | None, beta: Array | None, out: None
    ) -> tuple[Array, Array | None, Array]:
        return self.choice.kernel(  # type: ignore[no-any-return]
            x,
            self._parameter(gamma),
            self._parameter(beta),
            axes=self.view.axes,
            epsilon=self.spec.epsilon,
            center=self.spec.center,
        )

    def forward(
        self, x: Array, gamma: Array | None, beta: Array | None, out: None
    ) -> tuple[Array, Array | None, Array]:
        return self.run(x, gamma, beta, out)

    def backward(
        self, dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
    ) -> tuple[Array | None, Array | None, Array | None]:
        xp = library_of(x).xp
        dx, dgamma, dbeta = self.choice.kernel(
            dy,
            x,
            None if mean is None else _statistic(xp, mean, self.spec),
            _statistic(xp, rstd, self.spec),
            self._parameter(gamma),
            axes=self.view.axes,
            parameter_axes=self.view.axes,
            center=self.spec.center,
            need=self.spec.need,
        )
        return (
            dx,
            _gradient(xp, dgamma, self.view.parameter, x, gamma),
            _gradient(xp, dbeta, self.view.parameter, x, gamma),
        )


def _statistic(xp: Any, values: Array, spec: RowsSpec) -> Array:
    return xp.astype(values, getattr(xp, ACCUMULATION[spec.dtype]), copy=False)


def _gradient(
    xp: Any, values: Array | None, shape: tuple[int, ...], x: Array, gamma: Array | None
) -> Array | None:
    """A parameter's gradient in the parameter's shape, and in the dtype of gamma, else of x."""
    if values is None:
        return None
    dtype = x.dtype if gamma is None else gamma.dtype
    return xp.reshape(xp.astype(values, dtype, copy=False), shape)


def forward_plan(
    function: str,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    *,
    axis: int | tuple[int, ...],
    epsilon: float,
    center: bool,
) -> RowsPlan | ChunkedPlan:
    """The plan of a forward call, made if there is none; a wrong call raises here."""
    if type(axis) is not int:
        axis = _check.canonical_axis(function, axis)
    try:
        key = (_signature(x), _signature(gamma), _signature(beta), axis, epsilon, center)
        plan = cached_plan(key)
    except TypeError:  # no array, or nothing to look up by: the checks below say what is wrong
        plan = None
    if plan is None:
        view, spec = _checked(function, x, gamma, axis, center)
        epsilon = _check.epsilon(function, epsilon, x.dtype)
        if beta is not None:
            _parameter("beta", function, beta, x, view)
        spec = spec._replace(beta=_dtype_of(beta), epsilon=epsilon)
        plan = (
            ChunkedPlan("rows_forward", spec, view)
            if library_of(x).lazy
            else RowsPlan("rows_forward", spec, view, x, gamma, beta)
        )
        cache_plan(key, plan)
    return plan  # type: ignore[no-any-return]


def backward_plan(
    function: str,
    dy: Array,
    x: Array,
    mean: Array | None,
    rstd: Array,
    gamma: Array | None,
    *,
    axis: int | tuple[int, ...],
    need: tuple[str, ...],
    center: bool,
) -> RowsPlan | ChunkedPlan:
    """The plan of a backward call, made if there is none; a wrong call raises here."""
    if type(axis) is not int:
        axis = _check.canonical_axis(function, axis)
    need = _check.need(function, need, GRADIENTS if center else GRADIENTS[:2])
    try:
        arrays = tuple(map(_signature, (dy, x, mean, rstd, gamma)))
        key = (arrays, axis, need, center)
        plan = cached_plan(key)
    except TypeError:  # no array: the checks below say which
        plan = None
    if plan is None:
        view, spec = _checked(function, x, gamma, axis, center)
        _check.companion(function, "dy", dy, x, view.shape, "the shape of x")
        statistics = {"mean": mean, "rstd": rstd} if center else {"rstd": rstd}
        for name, values in statistics.items():
            what = f"as {function.removesuffix('_backward')}_forward gives it"
            _check.companion(
                function, name, values, x, view.statistic, what, ACCUMULATION[spec.dtype]
            )
        spec = spec._replace(
            dy=_dtype_of(dy),
            need=("dx" in need, "dgamma" in need and gamma is not None, "dbeta" in need),
        )
        plan = (
            ChunkedPlan("rows_backward", spec, view)
            if library_of(x).lazy
            else RowsPlan("rows_backward", spec, view, x, gamma)
        )
        cache_plan(key, plan)
    return plan  # type: ignore[no-any-return]


def _signature(x: Array | None) -> Hashable:
    return None if x is None else library_of(x).signature(x)


def _dtype_of(x: Array | None) -> str | None:
    return None if x is None else dtype_name(x.dtype)


def _checked(
    function: str, x: Array, gamma: Array | None, axis: int | tuple[int, ...], center: bool
) -> tuple[View, RowsSpec]:
    library = _check.array(function, "x", x)
    shape = tuple(x.shape)
    view = View.of(shape, _check.axes(function, axis, shape))
    if gamma is not None:
        _parameter("gamma", function, gamma, x, view)
    spec = RowsSpec(
        library=library.name,
        device=str(device_of(x)),
        shape=view.rows,
        dtype=dtype_name(x.dtype),
        gamma=_dtype_of(gamma),
        beta=None,
        center=center,
    )
    return view, spec


def _parameter(name: str, function: str, values: Array, x: Array, view: View) -> None:
    what = f"the shape of the normalised axes {view.axes}"
    _check.companion(function, name, values, x, view.parameter, what)
