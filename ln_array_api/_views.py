"""What an operation normalises over, and x seen as rows for that.

`Groups` and `Slices` stand beside the axes of layer norm: whatever a caller may name. Each gives,
for a shape of x, a `View`: all that a plan has to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from . import _check
from ._arrays import Array, in_shape, library_of


class View(NamedTuple):
    """X seen as rows, and the shapes that its statistics and parameters have beside it."""

    shape: tuple[int, ...]
    permutation: tuple[int, ...]
    """Which brings the elements of a row together; empty where they are."""
    rows: tuple[int, int]
    parameter: tuple[int, ...]
    """The shape of gamma and beta."""
    statistic: tuple[int, ...]
    """The shape of mean and rstd."""
    split: tuple[int, ...]
    """The shape of x where `axes` are axes of their own."""
    axes: tuple[int, ...]
    """Of `split`, the normalised ones, ascending."""
    parameter_axes: tuple[int, ...]
    """Of `split`, those which gamma and beta have."""
    what: str
    """The shape of the parameters, in words."""
    groups: int = 1
    repeat: int = 1
    name: str = "x"
    """How the caller knows x."""

    @property
    def broadcast_parameter(self) -> tuple[int, ...]:
        """The shape of gamma and beta beside `split`."""
        return tuple(n if axis in self.parameter_axes else 1 for axis, n in enumerate(self.split))

    @property
    def broadcast_statistic(self) -> tuple[int, ...]:
        """The shape of mean and rstd beside `split`."""
        return tuple(1 if axis in self.axes else n for axis, n in enumerate(self.split))

    @property
    def together(self) -> tuple[int, ...]:
        """The axes of x along which the elements of a row lie."""
        return self.axes if self.split == self.shape else tuple(range(1, len(self.shape)))

    def split_strides(self, strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """The strides of an array of x's shape, where `axes` are axes of their own."""
        if strides is None or len(strides) == len(self.split):
            return strides
        group = self.parameter_axes[0]
        each = self.split[group + 1]
        return (*strides[:group], strides[group] * each, *strides[group:])

    @property
    def is_rows(self) -> bool:
        """Whether x itself is rows, and what goes with it is as it is beside rows."""
        m, n = self.rows
        return (self.shape, self.parameter, self.statistic) == ((m, n), (n,), (m, 1))

    def to_rows(self, x: Array, ascontiguous: Callable[[Array], Array] | None = None) -> Array:
        return in_shape(x, self.rows, self.permutation, ascontiguous)

    def from_rows(self, x: Array) -> Array:
        library = library_of(x)
        if not self.permutation:
            return library.reshape(x, self.shape)
        x = library.reshape(x, tuple(self.shape[axis] for axis in self.permutation))
        inverse = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        return library.xp.permute_dims(x, tuple(inverse))


def over_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> View:
    """Statistics over `axes`, ascending, as in layer norm."""
    kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
    parameter = tuple(shape[axis] for axis in axes)
    return View(
        shape,
        permutation=kept + axes if axes[0] != len(kept) else (),
        rows=(math.prod(shape[axis] for axis in kept), math.prod(parameter)),
        parameter=parameter,
        statistic=tuple(1 if axis in axes else n for axis, n in enumerate(shape)),
        split=shape,
        axes=axes,
        parameter_axes=axes,
        what=f"the shape of the normalised axes {axes}",
    )


def of_elements(view: View, *, parameters: bool) -> View:
    """The same x, as rows that need not lie together, since nothing is computed of a row.

    So elements stay where they are, as far as those of `parameters` lie beside rows.
    """
    shape, axes = view.shape, view.parameter_axes
    if not view.permutation:
        return view
    if not parameters:
        return view._replace(permutation=(), rows=(math.prod(shape[:-1]), shape[-1]))
    if axes[-1] - axes[0] >= len(axes):
        return view
    rows = math.prod(shape[: axes[-1] + 1]), math.prod(shape[axes[-1] + 1 :])
    return view._replace(
        permutation=(), rows=rows, groups=math.prod(view.parameter), repeat=rows[1]
    )


@dataclass(frozen=True)  # unlike a named tuple, never equal to axes
class Groups:
    """Statistics of each sample over groups of channels, as in group norm."""

    count: int | None
    """How many groups; None for as many as channels."""
    channel_axis: int

    def canonical(self, function: str) -> Groups:
        count = self.count
        if count is not None:
            count = _check.integer(function, "num_groups", count)
        return Groups(count, _check.integer(function, "channel_axis", self.channel_axis))

    def view(self, function: str, shape: tuple[int, ...]) -> View:
        axis = _check.channel_axis(function, self.channel_axis, shape)
        _check.known_lengths(function, shape, range(len(shape)))
        channels = shape[axis]
        count = channels if self.count is None else self.count
        if self.count is not None and (count < 1 or channels % count):
            raise ValueError(
                f"{function}: num_groups={count} does not divide the {channels} channels of axis "
                f"{axis} into groups of one size"
            )
        each = channels // count if count else 1
        spatial = tuple(other for other in range(1, len(shape)) if other != axis)
        repeat = math.prod(shape[other] for other in spatial)
        split = (*shape[:axis], count, each, *shape[axis + 1 :])
        return View(
            shape,
            permutation=(0, axis, *spatial) if axis != 1 else (),
            rows=(shape[0] * count, each * repeat),
            parameter=(channels,),
            statistic=(shape[0], count),
            split=split,
            axes=tuple(other for other in range(1, len(split)) if other != axis),
            parameter_axes=(axis, axis + 1),
            what=f"the number of channels, on axis {axis}",
            groups=count,
            repeat=repeat,
        )


@dataclass(frozen=True)
class Slices:
    """Statistics over all axes but one, as in weight standardization."""

    axis: int
    name: str = "w"
    """How the caller knows x."""
    scaled: bool = False
    """Whether each slice has a parameter, as in weight norm."""

    def canonical(self, function: str) -> Slices:
        return replace(self, axis=_check.integer(function, "axis", self.axis))

    def view(self, function: str, shape: tuple[int, ...]) -> View:
        (kept,) = _check.axes(function, self.axis, shape, name=self.name)
        _check.known_lengths(function, shape, range(len(shape)))
        axes = tuple(axis for axis in range(len(shape)) if axis != kept)
        if not axes:
            raise ValueError(
                f"{function}: {self.name} has one axis, so a slice of it is a single element"
            )
        view = over_axes(shape, axes)
        view = view._replace(statistic=(shape[kept],), name=self.name)
        if not self.scaled:
            return view
        return view._replace(
            parameter=(shape[kept],),
            parameter_axes=(kept,),
            what=f"the length of axis {kept}",
            groups=shape[kept],
            repeat=view.rows[1],
        )


#: What is normalised over: an axis or some, or one of the above.
Over: TypeAlias = int | tuple[int, ...] | Groups | Slices


def name_of(over: Over) -> str:
    """How the caller knows x."""
    return over.name if isinstance(over, Slices) else "x"


def canonical(function: str, over: Over) -> Over:
    """The same, of plain ints, from what may hold lists or NumPy's integers."""
    if isinstance(over, Groups | Slices):
        return over.canonical(function)
    return _check.canonical_axis(function, over)


def view_of(function: str, over: Over, shape: tuple[int, ...]) -> View:
    """X of a shape seen as rows; what does not go together raises."""
    if isinstance(over, Groups | Slices):
        return over.view(function, shape)
    return over_axes(shape, _check.axes(function, over, shape))
