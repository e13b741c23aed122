"""How a planned call runs: a kernel, the conversions of its arrays, and those of its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

from .._arrays import (
    ACCUMULATION,
    Array,
    Library,
    dtype_name_or_none,
    has_dtype,
    library_of,
    native_dtype,
    signatures,
)
from .._layout import (
    ascontiguous,
    reshape,
    reshape_contiguous,
    reshaped,
    reshaper,
    restore_shape,
)
from ..backend import Choice
from . import parameters
from .specs import SIGNATURES, ChannelsSpec, FamilySpec, RowsSpec
from .views import RowsView

GRADIENTS = ("dx", "dgamma", "dbeta")


class Conversion(NamedTuple):
    """How arrays of one kind go to a kernel, and how they come back."""

    to_kernel: Callable[[Array], Array]
    from_kernel: Callable[[Array], Array]
    shape: tuple[int, ...] | None = None
    """The shape that a kernel gets, of a contiguous array with its axes in order."""
    dtype: str | None = None
    """The dtype that a kernel gets, where `to_kernel` casts to one."""

    def of(self, x: Array | None) -> Callable[[Array], Array] | None:
        """Return the least that makes arrays like x fit a kernel; None is nothing."""
        if x is None:
            return None
        library = library_of(x)
        if self.shape is None or not library.is_contiguous(x):
            return self.to_kernel
        if self.dtype is not None and not has_dtype(x, self.dtype):
            return self.to_kernel
        return None if tuple(x.shape) == self.shape else reshaper(library, self.shape)


def as_rows(view: RowsView, choice: Choice, dtype: str, library: Library) -> dict[str, Conversion]:
    """Conversions for a kernel on rows: contiguous, x as (M, N), statistics as (M, 1)."""
    rows, permutation, column = view.rows, view.permutation, (view.rows[0], 1)
    parameter = Conversion(flat, reshaper(library, view.parameter), (math.prod(view.parameter),))
    if view.expanded is not None:
        parameter = Conversion(
            partial(parameters.to_rows, view),
            partial(restore_shape, shape=view.expanded, permutation=permutation),
        )
    return {
        "x": Conversion(
            lambda x: reshape_contiguous(x, rows, permutation, choice.ascontiguous),
            view.from_rows if permutation else reshaper(library, view.shape),
            None if permutation else rows,
        ),
        "statistic": Conversion(
            lambda values: reshape_contiguous(cast_statistic(values, dtype), column),
            reshaper(library, view.statistic),
            column,
            ACCUMULATION[dtype],
        ),
        "parameter": parameter,
        "mask": Conversion(
            lambda mask: reshape_contiguous(
                library.xp.broadcast_to(mask, view.shape), rows, permutation
            ),
            _unchanged,
        ),
        "other": Conversion(ascontiguous, _unchanged),
    }


def _unchanged(values: Array) -> Array:
    return values


def with_axes(view: RowsView, dtype: str) -> dict[str, Conversion]:
    """Conversions for a kernel on arrays that keep their axes; the others broadcast with x."""
    statistic = view.broadcast_statistic
    return {
        "x": Conversion(
            partial(reshaped, shape=view.grouped_shape), partial(reshaped, shape=view.shape)
        ),
        "statistic": Conversion(
            lambda values: reshaped(cast_statistic(values, dtype), statistic),
            partial(reshaped, shape=view.statistic),
        ),
        "parameter": Conversion(
            partial(reshaped, shape=view.broadcast_parameter)
            if view.expanded is None
            else partial(parameters.to_axes, view),
            partial(reshape, shape=view.parameter),
        ),
        "mask": Conversion(partial(mask_with_axes, view), _unchanged),
    }


class Plan:
    """How a kind of call runs."""

    def __init__(
        self,
        primitive: str,
        spec: RowsSpec | ChannelsSpec | FamilySpec,
        choice: Choice,
        conversions: dict[str, Conversion] | None = None,
        *arrays: Array | None,
        passthrough: bool = False,
        gives_dtypes: bool = False,
        widens: bool = False,
    ) -> None:
        """Plan for a kernel and such arrays; these and its results are as `SIGNATURES` tells.

        `passthrough` is whether arrays go to the kernel, and its results to the caller, unchanged;
        so they do without `conversions`. `gives_dtypes` is whether gradients come from the kernel
        in the dtypes of x, gamma and beta, as they always do then. `widens` is whether gamma is
        widened: see `widened`.
        """
        self.primitive, self.spec, self.choice = primitive, spec, choice
        self.kernel: Callable[..., Any] = choice.kernel
        self.passthrough = passthrough or conversions is None
        self.widens = widens
        self.gives_dtypes = gives_dtypes or self.passthrough
        if conversions is not None:
            self._to_mask = conversions["mask"].to_kernel if "mask" in conversions else _unchanged
            takes, gives = SIGNATURES[primitive]
            self._to_kernel = [
                conversions[kind].to_kernel
                if widens and kind == "parameter"
                else conversions[kind].of(each)
                for kind, each in zip(takes, arrays, strict=True)
            ]
            self._from_kernel = [conversions[each].from_kernel for each in gives]

    def run(self, *arrays: Array | None, **masks: Array) -> Any:
        """Return the results of the kernel in the caller's shapes."""
        if self.passthrough:
            return self.kernel(*arrays)
        results = self.kernel(*self._converted(arrays), **masks)
        if not isinstance(results, tuple):
            return self._from_kernel[0](results)
        return self._restored(results)

    def _converted(self, arrays: tuple[Array | None, ...]) -> list[Array | None]:
        return [
            each if to_kernel is None or each is None else to_kernel(each)
            for each, to_kernel in zip(arrays, self._to_kernel, strict=True)
        ]

    def _restored(self, results: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
        return tuple(
            [
                None if each is None else from_kernel(each)
                for each, from_kernel in zip(results, self._from_kernel, strict=False)
            ]
        )

    def backward(
        self,
        dy: Array,
        x: Array,
        mean: Array | None,
        rstd: Array,
        gamma: Array | None,
        beta: Array | None = None,
        where: Array | None = None,
    ) -> Any:
        """Return dx, dgamma and dbeta in the dtypes of x, gamma and beta."""
        if self.passthrough:
            return self.kernel(dy, x, mean, rstd, gamma)
        masks = self._masks(where)
        if self.gives_dtypes:
            return self.run(dy, x, mean, rstd, gamma, **masks)
        scale = widened(gamma, beta, self.spec.dtype) if self.widens else gamma
        dx, dgamma, dbeta = self.run(dy, x, mean, rstd, scale, **masks)
        dgamma, dbeta = self._fitted(dgamma, gamma), self._fitted(dbeta, gamma, beta)
        return dx, cast_gradient(dgamma, x, gamma), cast_gradient(dbeta, x, gamma, beta)

    def _masks(self, where: Array | None) -> dict[str, Array]:
        """Return the mask of a call as the kernel gets it, by its keyword."""
        return {} if where is None else {"where": self._to_mask(where)}

    def _fitted(self, gradient: Array | None, *like: Array | None) -> Array | None:
        """Return a gradient in the shape of the last parameter that is given."""
        return gradient


class RowsPlan(Plan):
    """A plan over rows, whose forward pass may write to `out`."""

    def __init__(
        self,
        primitive: str,
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
        keeps_axes, is_plain = choice.keeps_axes, view.expanded is None
        library = library_of(arrays[0])
        gives_dtypes = not keeps_axes and is_plain and have_acc_dtype(spec.dtype, acc_arrays)
        super().__init__(
            primitive,
            spec,
            choice,
            with_axes(view, spec.dtype)
            if keeps_axes
            else as_rows(view, choice, spec.dtype, library),
            *arrays,
            passthrough=gives_dtypes and view.is_rows and not spec.where and are_contiguous(arrays),
            gives_dtypes=gives_dtypes,
            widens=widens,
        )
        self.view = view
        #: The kernel without statistics, for calls that need y only.
        self.kernel_of_y: Callable[..., Any] = (
            self.kernel if keeps_axes else getattr(self.kernel, "without_statistics", self.kernel)
        )
        # Signatures of valid `out`; and of those that own their memory, where all inputs own theirs
        # too, so that two arrays overlap only if they are the same one.
        self._outs: set[Hashable] = set()
        self._owning_outs: set[Hashable] = set()
        inputs = [each for each in arrays if each is not None]
        self._inputs_own = all(library_of(each).owns_memory(each) for each in inputs)
        if choice.whole_call is not None:
            for name in ("y", "forward", "backward"):
                setattr(self, name, choice.whole_call(getattr(self, name)))

    def takes(self, out: Array, x: Array, gamma: Array | None, beta: Array | None) -> bool:
        """Whether `out` is known to be valid and to overlap no input; if not, check it."""
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
        """Remember an `out` that has been checked."""
        library = library_of(out)
        if self.passthrough and library.may_overlap is not None and library.is_contiguous(out):
            self._outs.add(library.signature(out))
            if self._inputs_own and library.owns_memory(out):
                self._owning_outs.add(library.signature(out))

    def y(
        self,
        x: Array,
        gamma: Array | None,
        beta: Array | None,
        out: Array | None = None,
        where: Array | None = None,
    ) -> Array:
        """Return y in x's shape."""
        if self.passthrough and (out is None or library_of(out).is_contiguous(out)):
            y = self.kernel_of_y(x, gamma, beta, out=out)[0]
            return y if out is None else out
        target = self._target(out)
        arrays = self._converted((x, gamma, beta))
        y = self.kernel_of_y(*arrays, out=target, **self._masks(where))[0]
        return self._placed(y, out, target)

    def forward(
        self,
        x: Array,
        gamma: Array | None,
        beta: Array | None,
        out: Array | None = None,
        where: Array | None = None,
    ) -> Any:
        """Return y, mean and rstd; the statistics have x's rank."""
        if self.passthrough and (out is None or library_of(out).is_contiguous(out)):
            y, mean, rstd = self.kernel(x, gamma, beta, out=out)
            return y if out is None else out, mean, rstd
        target = self._target(out)
        arrays = self._converted((x, gamma, beta))
        y, mean, rstd = self.kernel(*arrays, out=target, **self._masks(where))
        _, of_mean, of_rstd = self._from_kernel
        mean = None if mean is None else of_mean(mean)
        return self._placed(y, out, target), mean, of_rstd(rstd)

    def _fitted(self, gradient: Array | None, *like: Array | None) -> Array | None:
        if self.view.expanded is None or gradient is None:
            return gradient
        return parameters.fit_gradient(self.view, gradient, last_given(like))

    def _target(self, out: Array | None) -> Array | None:
        """Return what a kernel may write y to."""
        if out is None or self.choice.keeps_axes:
            return out
        library = library_of(out)
        fits = not self.view.permutation and library.is_contiguous(out)
        return library.reshape(out, self.view.rows) if fits else None

    def _placed(self, y: Array, out: Array | None, target: Array | None) -> Array:
        """Return y in x's shape, in `out` where that is given."""
        if out is None:
            return self._from_kernel[0](y)
        if target is None:
            out[...] = self._from_kernel[0](y)
        return out


def mask_with_axes(view: RowsView, mask: Array) -> Array:
    """Return a mask with all axes of x, groups of channels apart, to broadcast with it."""
    lengths = tuple(mask.shape)
    mask = reshape(mask, (1,) * (len(view.shape) - len(lengths)) + lengths)
    return parameters.to_axes(view, mask)


def are_contiguous(arrays: tuple[Array | None, ...]) -> bool:
    """Whether all arrays that are given are contiguous."""
    return all(each is None or library_of(each).is_contiguous(each) for each in arrays)


def have_acc_dtype(dtype: str, arrays: tuple[Array | None, ...]) -> bool:
    """Whether all arrays that are given have the accumulation dtype of x's."""
    return {dtype_name_or_none(each) for each in arrays} <= {None, ACCUMULATION[dtype]}


def flat(parameter: Array) -> Array:
    """Return a parameter as kernels on rows get it."""
    return reshape_contiguous(parameter, (math.prod(parameter.shape),))


def cast_statistic(values: Array, dtype: str) -> Array:
    """Cast a statistic of x to the accumulation dtype; `dtype` is that of x."""
    acc_dtype = ACCUMULATION[dtype]
    if has_dtype(values, acc_dtype):
        return values
    xp = library_of(values).xp
    return xp.astype(values, getattr(xp, acc_dtype), copy=False)


def cast_gradient(values: Array | None, *arrays: Array | None) -> Array | None:
    """Cast a gradient to the dtype of the last array that is given."""
    if values is None:
        return None
    last = last_given(arrays)
    if values.dtype == last.dtype:
        return values
    return library_of(values).xp.astype(values, native_dtype(last), copy=False)


def last_given(arrays: tuple[Array | None, ...]) -> Array:
    """Return the last of some arrays that is not None."""
    return [each for each in arrays if each is not None][-1]


def finish_gradient(
    values: Array | None, shape: tuple[int, ...], *arrays: Array | None
) -> Array | None:
    """Reshape a gradient, and cast it to the dtype of the last array that is given."""
    return None if values is None else cast_gradient(reshape(values, shape), *arrays)


def must_widen(
    dtype: str, gamma: Array | None, beta: Array | None, *, sums_further: bool = False
) -> bool:
    """Whether gradients would lose digits in the dtype that kernels return, for x of this dtype.

    Either dbeta would, or both, if their sums over further axes are still to be taken.
    """
    given = dtype_name_or_none(gamma) or dtype
    differs = beta is not None and dtype_name_or_none(beta) != given
    return (sums_further or differs) and given != ACCUMULATION[dtype]


def widened(gamma: Array | None, beta: Array | None, dtype: str) -> Array:
    """Return gamma in the accumulation dtype, or ones where it is absent.

    Kernels may return both gradients in gamma's dtype, which may be narrower than beta's.
    """
    if gamma is None:
        return library_of(beta).xp.ones_like(cast_statistic(beta, dtype))
    return cast_statistic(gamma, dtype)
