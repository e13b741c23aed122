"""Plans of calls over rows: on rows, on arrays that keep their axes, or chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeAlias

from ._arrays import (
    ACCUMULATION,
    Array,
    dtype_name_or_none,
    library_of,
    native_dtype,
    reshape_contiguous,
    signatures,
)
from ._chunks import ChunkCall, Chunks, hold_rows
from ._views import RowsView
from .backend import Choice, Primitive, RowsSpec
from .kernels import rows

GRADIENTS = ("dx", "dgamma", "dbeta")


class Plan:
    """How a kind of call runs. Subclasses are for rows, for all axes and for chunked arrays."""

    def __init__(
        self,
        primitive: Primitive,
        spec: RowsSpec,
        view: RowsView,
        choice: Choice,
        *,
        widens: bool = False,
    ) -> None:
        """Plan for a kernel; `widens` is whether gamma is widened for it: see `widened`."""
        self.primitive, self.spec, self.view, self.choice = primitive, spec, view, choice
        self.widens = widens

    def takes(self, out: Array, x: Array, gamma: Array | None, beta: Array | None) -> bool:
        """Whether `out` is known to be valid and to overlap no input; if not, check it."""
        return False

    def remember(self, out: Array) -> None:
        """Remember an `out` that has been checked."""


class RowsPlan(Plan):
    """The kernel gets x as (M, N) in C order: x itself, a view or a copy."""

    def __init__(
        self,
        primitive: Primitive,
        spec: RowsSpec,
        view: RowsView,
        choice: Choice,
        *arrays: Array | None,
        acc_arrays: tuple[Array | None, ...] = (),
        widens: bool = False,
    ) -> None:
        """Plan for calls with such arrays.

        `acc_arrays`: arrays that the kernel takes in the accumulation dtype, or whose gradient it
        returns in that dtype.
        """
        super().__init__(primitive, spec, view, choice, widens=widens)
        self.kernel: Callable[..., tuple[Any, Any, Any]] = self.choice.kernel
        self.kernel_of_y: Callable[..., Any] = getattr(
            self.kernel, "without_statistics", self.kernel
        )
        # Whether arrays go to the kernel, and its results to the caller, unchanged.
        self.passthrough = (
            view.is_rows
            and all(each is None or library_of(each).is_contiguous(each) for each in arrays)
            and {dtype_name_or_none(each) for each in acc_arrays}
            <= {None, ACCUMULATION[spec.dtype]}
            and not widens
        )
        # Signatures of valid `out`; and of those that own their memory, where all inputs own theirs
        # too, so that two arrays overlap only if they are the same one.
        self._outs: set[Hashable] = set()
        self._owning_outs: set[Hashable] = set()
        inputs = [each for each in arrays if each is not None]
        self._inputs_own = all(library_of(each).owns_memory(each) for each in inputs)

    def takes(self, out: Array, x: Array, gamma: Array | None, beta: Array | None) -> bool:
        find = signatures.get(type(out))
        signature = None if find is None else find(out)
        if signature in self._owning_outs:
            return out is not gamma and out is not beta
        if signature not in self._outs:
            return False
        overlaps = library_of(out).may_overlap
        if overlaps is None or (out is not x and overlaps(out, x)):
            return False
        return not (
            (gamma is not None and overlaps(out, gamma))
            or (beta is not None and overlaps(out, beta))
        )

    def remember(self, out: Array) -> None:
        library = library_of(out)
        if self.passthrough and library.may_overlap is not None and library.is_contiguous(out):
            self._outs.add(library.signature(out))
            if self._inputs_own and library.owns_memory(out):
                self._owning_outs.add(library.signature(out))

    def run(
        self, x: Array, gamma: Array | None, beta: Array | None, out: Array | None
    ) -> tuple[Array, ...]:
        """Return y in x's shape, and the other results of the kernel."""
        if self.passthrough and (out is None or library_of(out).is_contiguous(out)):
            results: tuple[Array, ...] = self.kernel_of_y(x, gamma, beta, out=out)
            return results if out is None else (out, *results[1:])
        return self._run(self.kernel_of_y, x, gamma, beta, out)

    def _run(
        self,
        kernel: Callable[..., Any],
        x: Array,
        gamma: Array | None,
        beta: Array | None,
        out: Array | None,
    ) -> tuple[Array, ...]:
        view, library = self.view, library_of(x)
        target = None
        if out is not None and not view.permutation and library.is_contiguous(out):
            target = library.reshape(out, view.rows)
        parameters = map(self._parameter, (gamma, beta))
        y, *statistics = kernel(view.to_rows(x, self.choice.ascontiguous), *parameters, out=target)
        if out is None:
            return view.from_rows(y), *statistics
        if target is None:
            out[...] = view.from_rows(y)
        return out, *statistics

    def _parameter(self, values: Array | None) -> Array | None:
        return None if values is None else reshape_contiguous(values, (self.spec.parameters,))

    def forward(
        self, x: Array, gamma: Array | None, beta: Array | None, out: Array | None
    ) -> tuple[Array, Array | None, Array]:
        """Return y, mean and rstd; the statistics have x's rank."""
        if self.passthrough and (out is None or library_of(out).is_contiguous(out)):
            y, mean, rstd = self.kernel(x, gamma, beta, out=out)
            return y if out is None else out, mean, rstd
        y, mean, rstd = self._run(self.kernel, x, gamma, beta, out)
        reshape, shape = library_of(x).reshape, self.view.statistic
        return y, None if mean is None else reshape(mean, shape), reshape(rstd, shape)

    def backward(
        self,
        dy: Array,
        x: Array,
        mean: Array | None,
        rstd: Array,
        gamma: Array | None,
        beta: Array | None = None,
    ) -> tuple[Array | None, Array | None, Array | None]:
        if self.passthrough:
            return self.kernel(dy, x, mean, rstd, gamma)
        view, m = self.view, self.spec.shape[0]
        xp = library_of(x).xp
        scale = widened(xp, gamma, beta, self.spec.dtype) if self.widens else gamma
        dx, dgamma, dbeta = self.kernel(
            view.to_rows(dy, self.choice.ascontiguous),
            view.to_rows(x, self.choice.ascontiguous),
            None
            if mean is None
            else reshape_contiguous(cast_statistic(xp, mean, self.spec.dtype), (m, 1)),
            reshape_contiguous(cast_statistic(xp, rstd, self.spec.dtype), (m, 1)),
            self._parameter(scale),
        )
        return (
            None if dx is None else view.from_rows(dx),
            finish_gradient(xp, dgamma, view.parameter, x, gamma),
            finish_gradient(xp, dbeta, view.parameter, x, gamma, beta),
        )


class AxesPlan(Plan):
    """X keeps its axes: the kernel gets them unchanged, and the other arrays broadcast with x."""

    def _parameter(self, values: Array | None) -> Array | None:
        return reshaped(values, self.view.broadcast_parameter)

    def _saved(self, values: Array | None) -> Array | None:
        if values is None:
            return None
        values = cast_statistic(library_of(values).xp, values, self.spec.dtype)
        return reshaped(values, self.view.broadcast_statistic)

    def run(
        self, x: Array, gamma: Array | None, beta: Array | None, out: Array | None
    ) -> tuple[Array, ...]:
        return self.forward(x, gamma, beta, out)

    def forward(
        self, x: Array, gamma: Array | None, beta: Array | None, out: Array | None
    ) -> tuple[Array, Array | None, Array]:
        view = self.view
        y, mean, rstd = self.choice.kernel(
            reshaped(x, view.grouped_shape), self._parameter(gamma), self._parameter(beta), out=out
        )
        y, rstd = reshaped(y, view.shape), reshaped(rstd, view.statistic)
        return y, reshaped(mean, view.statistic), rstd

    def backward(
        self,
        dy: Array,
        x: Array,
        mean: Array | None,
        rstd: Array,
        gamma: Array | None,
        beta: Array | None = None,
    ) -> tuple[Array | None, Array | None, Array | None]:
        view, xp = self.view, library_of(x).xp
        scale = widened(xp, gamma, beta, self.spec.dtype) if self.widens else gamma
        dx, dgamma, dbeta = self.choice.kernel(
            reshaped(dy, view.grouped_shape),
            reshaped(x, view.grouped_shape),
            self._saved(mean),
            self._saved(rstd),
            self._parameter(scale),
        )
        return (
            reshaped(dx, view.shape),
            finish_gradient(xp, dgamma, view.parameter, x, gamma),
            finish_gradient(xp, dbeta, view.parameter, x, gamma, beta),
        )


def whole(plan: AxesPlan) -> AxesPlan:
    """Wrap the calls of a plan by the `whole_call` of its backend, if it has one."""
    if plan.choice.whole_call is not None:
        for name in ("run", "forward", "backward"):
            setattr(plan, name, plan.choice.whole_call(getattr(plan, name)))
    return plan


class ChunksPlan(AxesPlan):
    """X is chunked: one task for each chunk if chunks hold whole rows, else by its axes."""

    def __init__(
        self, primitive: Primitive, spec: RowsSpec, view: RowsView, call: ChunkCall
    ) -> None:
        reason = (
            "chunked arrays compute nothing until asked; chunks that hold whole rows go to the "
            "kernel of their own library"
        )
        super().__init__(primitive, spec, view, generic_choice(primitive, spec, view, reason))
        self._chunks = Chunks(call, view)

    def run(
        self, x: Array, gamma: Array | None, beta: Array | None, out: Array | None
    ) -> tuple[Array, ...]:
        if hold_rows(x, self.view):
            return (self._chunks.y(x, gamma, beta),)
        return super().forward(x, gamma, beta, out)

    def forward(
        self, x: Array, gamma: Array | None, beta: Array | None, out: Array | None
    ) -> tuple[Array, Array | None, Array]:
        if hold_rows(x, self.view):
            return self._chunks.forward(x, gamma, beta)
        return super().forward(x, gamma, beta, out)

    def backward(
        self,
        dy: Array,
        x: Array,
        mean: Array | None,
        rstd: Array,
        gamma: Array | None,
        beta: Array | None = None,
    ) -> tuple[Array | None, Array | None, Array | None]:
        if not hold_rows(x, self.view):
            return super().backward(dy, x, mean, rstd, gamma, beta)
        view, xp = self.view, library_of(x).xp
        rstd = cast_statistic(xp, rstd, self.spec.dtype)
        mean = None if mean is None else cast_statistic(xp, mean, self.spec.dtype)
        dx, dgamma, dbeta = self._chunks.backward(dy, x, mean, rstd, gamma)
        return (
            dx,
            finish_gradient(xp, dgamma, view.parameter, x, gamma),
            finish_gradient(xp, dbeta, view.parameter, x, gamma, beta),
        )


#: A plan of a call over rows.
SomePlan: TypeAlias = RowsPlan | AxesPlan


def reshaped(x: Array | None, shape: tuple[int, ...]) -> Array | None:
    """Reshape x, unless it has this rank already; lengths may be unknown. None stays None."""
    if x is None or len(x.shape) == len(shape):
        return x
    return library_of(x).reshape(x, shape)


def cast_statistic(xp: Any, values: Array, dtype: str) -> Array:
    """Cast a statistic of x to the accumulation dtype; `dtype` is that of x."""
    return xp.astype(values, getattr(xp, ACCUMULATION[dtype]), copy=False)


def finish_gradient(
    xp: Any, values: Array | None, shape: tuple[int, ...], x: Array, *parameters: Array | None
) -> Array | None:
    """Reshape a gradient to `shape`, and cast it to the dtype of the last array that is given."""
    if values is None:
        return None
    dtype = native_dtype([each for each in (x, *parameters) if each is not None][-1])
    return xp.reshape(xp.astype(values, dtype, copy=False), shape)


def must_widen(dtype: str, gamma: Array | None, beta: Array | None) -> bool:
    """Whether dbeta would lose digits in the dtype that kernels return, for x of this dtype."""
    given = dtype_name_or_none(gamma) or dtype
    return beta is not None and dtype_name_or_none(beta) != given != ACCUMULATION[dtype]


def widened(xp: Any, gamma: Array | None, beta: Array | None, dtype: str) -> Array:
    """Return gamma in the accumulation dtype, or ones where it is absent.

    Kernels may return both gradients in gamma's dtype, which may be narrower than beta's.
    """
    if gamma is None:
        return xp.ones_like(cast_statistic(xp, beta, dtype))
    return cast_statistic(xp, gamma, dtype)


def generic_choice(primitive: Primitive, spec: RowsSpec, view: RowsView, reason: str) -> Choice:
    """Return the generic kernel, on arrays that keep their axes, with their chunks and shards."""
    kernel: Callable[..., Any]
    if primitive == "rows_forward":
        kernel = partial(rows.forward_over, axes=view.axes, epsilon=spec.epsilon)
    else:
        kernel = partial(
            rows.normalise_backward,
            axes=view.axes,
            parameter_axes=view.parameter_axes,
            need=spec.need,
        )
    return Choice(partial(kernel, center=spec.center), "generic", reason, keeps_axes=True)
