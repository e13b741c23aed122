"""Rows of chunked arrays: where each chunk holds whole rows, a task for each.

A task is a call on the chunk, by whichever kernel its own library has. Gradients of parameters are
sums over chunks, in a tree whose order is that of the chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from .._arrays import ACCUMULATION, Array, dtype_name, library_of
from ..backend import Choice, use_backend
from ..kernels.reductions import sum_over
from .plans import RowsPlan, cast_gradient, cast_statistic
from .specs import Primitive, RowsSpec
from .views import Over, RowsView

CHUNKS_REASON = (
    "chunked arrays compute nothing until asked; chunks that hold whole rows go to the kernel of "
    "their own library"
)


class ChunkCall(NamedTuple):
    """A call on each chunk, without its arrays. It is sent to where the chunk is."""

    func_name: str
    """The public function, for messages."""
    over: Over
    center: bool
    epsilon: float
    """Of a forward call."""
    need: tuple[str, ...]
    """Of a backward call."""
    backend: str | None
    """The backend requested by `use_backend`."""

    def forward(self, x: Array, gamma: Array | None, beta: Array | None) -> Any:
        """Return y, mean and rstd of a chunk."""
        with self._asked_for():
            return self._plan(x, gamma, beta).forward(x, gamma, beta)

    def y(self, x: Array, gamma: Array | None, beta: Array | None) -> Array:
        """Return y of a chunk."""
        with self._asked_for():
            return self._plan(x, gamma, beta).y(x, gamma, beta)

    def _plan(self, x: Array, gamma: Array | None, beta: Array | None) -> Any:
        from .rows import LAYER, RMS, forward_plan  # which plans for chunked arrays by this module

        operation = LAYER if self.center else RMS
        return forward_plan(self.func_name, operation, x, gamma, beta, self.over, self.epsilon)

    def backward(self, *arrays: Any) -> tuple[Any, ...]:
        """Return dx of a chunk, and its partial sums of dgamma and dbeta, not rounded yet.

        Takes dy, x, mean, rstd and gamma of the chunk, and the shape of beta.
        """
        from .rows import LAYER, RMS, backward_plan

        dy, x, mean, rstd, gamma, shape = arrays
        xp = library_of(x).xp
        acc_dtype = rstd.dtype
        gamma = None if gamma is None else xp.astype(gamma, acc_dtype, copy=False)
        beta = xp.zeros(shape, dtype=acc_dtype) if "dbeta" in self.need else None
        arrays = dy, x, mean, rstd, gamma, beta
        with self._asked_for():
            operation = LAYER if self.center else RMS
            plan = backward_plan(self.func_name, operation, *arrays, self.over, self.need)
            return plan.backward(*arrays)

    def _asked_for(self) -> Any:
        return nullcontext() if self.backend is None else use_backend(self.backend)


def hold_rows(x: Array, view: RowsView) -> bool:
    """Whether each chunk of x holds whole rows, and there is something in it."""
    return 0 not in x.shape and all(x.numblocks[axis] == 1 for axis in view.row_axes)


class Chunks:
    """A `ChunkCall` on all chunks of an array that hold whole rows."""

    def __init__(self, call: ChunkCall, view: RowsView) -> None:
        self.call, self.view = call, view
        rank = len(view.shape)
        self._x = tuple(range(rank))
        #: Statistics of rows have the other axes of x, and that of the groups.
        self._statistic: tuple[int, ...] = self._x
        if len(view.statistic) < rank or view.grouped_shape != view.shape:
            self._statistic = tuple(axis for axis in self._x if axis not in view.row_axes)
            self._statistic += (rank,) * (len(view.statistic) - len(self._statistic))
        # A parameter of each row is chunked like x; others are passed whole to each chunk.
        self._is_shared = bool(set(view.parameter_axes) & set(view.axes))
        new_axes = range(rank + 1, rank + 1 + len(view.parameter))
        self._parameter = tuple(new_axes) if self._is_shared else view.parameter_axes

    def y(self, x: Array, gamma: Array | None, beta: Array | None) -> Array:
        """Return y, in the chunks of x."""
        return self._each(self.call.y, x, x.dtype, *self._given(x, gamma, beta))

    def forward(self, x: Array, gamma: Array | None, beta: Array | None) -> tuple[Any, Any, Any]:
        """Return y, mean and rstd."""
        results = self._each(self.call.forward, x, x.dtype, *self._given(x, gamma, beta))
        acc_dtype = getattr(library_of(x).xp, ACCUMULATION[dtype_name(x.dtype)])
        y, rstd = self._part(results, 0, x.dtype), self._statistics(results, 2, acc_dtype)
        return y, self._statistics(results, 1, acc_dtype) if self.call.center else None, rstd

    def backward(
        self, dy: Array, x: Array, mean: Array | None, rstd: Array, gamma: Array | None
    ) -> tuple[Any, Any, Any]:
        """Return dx, and dgamma and dbeta in the accumulation dtype."""
        statistics = [self._rechunk_like(x, each, self._statistic) for each in (mean, rstd)]
        dy = self._rechunk_like(x, dy, self._x)
        arrays = [x, self._x, *_argument(statistics[0], self._statistic)]
        arrays += [*_argument(statistics[1], self._statistic)]
        arrays += [*_argument(self._rechunk_like(x, gamma, self._parameter), self._parameter)]
        results = self._each(
            self.call.backward, dy, x.dtype, *arrays, *_argument(self.view.parameter, None)
        )
        dx = self._part(results, 0, x.dtype) if "dx" in self.call.need else None
        has_dgamma = "dgamma" in self.call.need and gamma is not None
        return (
            dx,
            self._total(results, 1, rstd.dtype) if has_dgamma else None,
            self._total(results, 2, rstd.dtype) if "dbeta" in self.call.need else None,
        )

    def _given(self, x: Array, *parameters: Array | None) -> list[Any]:
        given: list[Any] = []
        for each in parameters:
            given += _argument(self._rechunk_like(x, each, self._parameter), self._parameter)
        return given

    def _rechunk_like(self, x: Array, values: Array | None, axes: tuple[int, ...]) -> Array | None:
        """Rechunk values like x along the axes of x that rows do not extend over."""
        if values is None:
            return None
        chunks = tuple(
            x.chunks[axis] if axis < x.ndim and axis not in self.view.row_axes else (length,)
            for axis, length in zip(axes, values.shape, strict=True)
        )
        return values if _are_equal(values.chunks, chunks) else values.rechunk(chunks)

    def _each(self, call: Callable[..., Any], x: Array, dtype: Any, *others: Any) -> Array:
        from dask.array import blockwise  # x is its array, so it is there

        options = {"dtype": dtype, "meta": x._meta, "concatenate": True, "align_arrays": False}
        return blockwise(call, self._x, x, self._x, *others, **options)

    def _part(
        self, results: Array, number: int, dtype: Any, axes: tuple[int, ...] = (), **options: Any
    ) -> Array:
        """Return one of the results of each chunk, an array of some axes."""
        from dask.array import blockwise

        axes = axes or self._x
        xp = library_of(results).xp
        meta = xp.empty((0,) * len(axes), dtype=dtype)._meta
        options = {**options, "dtype": dtype, "meta": meta, "align_arrays": False}
        return blockwise(_pick, axes, results, self._x, number, None, **options)

    def _statistics(self, results: Array, number: int, dtype: Any) -> Array:
        view, options = self.view, {}
        if self._statistic == self._x:
            options["adjust_chunks"] = dict.fromkeys(view.axes, 1)
        elif len(self._x) in self._statistic:
            options["new_axes"] = {len(self._x): view.groups}
        return self._part(results, number, dtype, self._statistic, **options)

    def _total(self, results: Array, number: int, dtype: Any) -> Array:
        """Sum the gradient of a parameter over the chunks that share the parameter."""
        if not self._is_shared:
            return self._part(results, number, dtype, self._parameter)
        from dask.array import blockwise

        view = self.view
        kept_axes = tuple(axis for axis in self._x if axis not in view.row_axes)
        xp = library_of(results).xp
        rank = len(kept_axes) + len(self._parameter)
        partial_sums = blockwise(
            _partial_sum,
            (*kept_axes, *self._parameter),
            results,
            self._x,
            number,
            None,
            len(kept_axes),
            None,
            dtype=dtype,
            meta=xp.empty((0,) * rank, dtype=dtype)._meta,
            align_arrays=False,
            adjust_chunks=dict.fromkeys(kept_axes, 1),
            new_axes=dict(zip(self._parameter, view.parameter, strict=True)),
        )
        total = sum_over(xp, partial_sums, tuple(range(len(kept_axes))), wide=True)
        return xp.reshape(total, view.parameter)


class ChunksPlan(RowsPlan):
    """X is chunked: one task for each chunk if chunks hold whole rows, else by its axes."""

    def __init__(
        self,
        primitive: Primitive,
        spec: RowsSpec,
        view: RowsView,
        choice: Choice,
        *arrays: Array | None,
        call: ChunkCall,
    ) -> None:
        super().__init__(primitive, spec, view, choice, *arrays)
        self._chunks = Chunks(call, view)
        self._is_plain = view.expanded is None and not spec.where

    def _runs_by_chunks(self, x: Array) -> bool:
        return self._is_plain and hold_rows(x, self.view)

    def y(self, x: Array, *others: Any) -> Array:
        if self._runs_by_chunks(x):
            return self._chunks.y(x, *others[:2])
        return super().y(x, *others)

    def forward(self, x: Array, *others: Any) -> Any:
        if self._runs_by_chunks(x):
            return self._chunks.forward(x, *others[:2])
        return super().forward(x, *others)

    def backward(self, *arrays: Any) -> Any:
        dy, x, mean, rstd, gamma, *others = arrays
        if not self._runs_by_chunks(x):
            return super().backward(*arrays)
        rstd = cast_statistic(rstd, self.spec.dtype)
        mean = None if mean is None else cast_statistic(mean, self.spec.dtype)
        dx, dgamma, dbeta = self._chunks.backward(dy, x, mean, rstd, gamma)
        return dx, cast_gradient(dgamma, x, gamma), cast_gradient(dbeta, x, gamma, *others[:1])


def _are_equal(chunks: Any, others: Any) -> bool:
    """Whether lengths of chunks are equal, or unknown at the same places."""
    return all(
        len(one) == len(other)
        and all(a == b or (a != a and b != b) for a, b in zip(one, other, strict=True))
        for one, other in zip(chunks, others, strict=True)
    )


def _argument(values: Any, axes: tuple[int, ...] | None) -> tuple[Any, Any]:
    """Return an argument of blockwise, and its axes, if it is an array."""
    return values, None if values is None else axes


def _pick(results: Any, number: int) -> Array:
    """Return one of a chunk's results, which are in lists where axes are omitted."""
    while isinstance(results, list):
        (results,) = results
    return results[number]


def _partial_sum(results: Any, number: int, rank: int) -> Array:
    """Return the partial sum of a chunk, with `rank` axes of length 1 prepended."""
    partial_sum = _pick(results, number)
    return partial_sum[(None,) * rank]
