"""What an operation normalises over, and the view of x as rows that follows from it.

A caller names axes, as in layer norm, `ChannelGroups` or a `KeptAxis`. Each of these gives a
`RowsView` for a shape of x, which holds all that a plan needs to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from .._arrays import Array, Axis
from .._layout import reshape_contiguous, restore_shape
from . import checks


class RowsView(NamedTuple):
    """X seen as rows, with the shapes of its statistics and parameters."""

    shape: tuple[int, ...]
    permutation: tuple[int, ...]
    """The permutation of axes that makes rows contiguous; empty where none is needed."""
    rows: tuple[int, int]
    parameter: tuple[int, ...]
    """The shape of gamma and beta."""
    statistic: tuple[int, ...]
    """The shape of mean and rstd."""
    grouped_shape: tuple[int, ...]
    """The shape of x, where groups of channels have an axis of their own."""
    axes: tuple[int, ...]
    """The normalised axes of `grouped_shape`, ascending."""
    parameter_axes: tuple[int, ...]
    """The axes of `grouped_shape` that gamma and beta have."""
    shape_text: str
    """The shape of the parameters in words, for messages."""
    plain_axes: tuple[int, ...]
    """The axes of x that parameters have where they have not its rank."""
    groups: int = 1
    repeat: int = 1
    span: int = 1
    """Rows that follow each other and have the same parameters."""
    expanded: tuple[int, ...] | None = None
    """The shape that parameters are broadcast to for kernels on rows, where they have the rank of
    x; else None: see `parameters`."""

    @property
    def plain_parameter(self) -> tuple[int, ...]:
        """The shape of parameters where they have not the rank of x."""
        return tuple(self.shape[axis] for axis in self.plain_axes)

    @property
    def channel_axis(self) -> int:
        """The axis of x that holds groups of channels; its rank where there are none."""
        return self.plain_axes[0] if self.grouped_shape != self.shape else len(self.shape)

    def grouped_axes(self, axes: set[int]) -> tuple[int, ...]:
        """Return the axes of `grouped_shape` that are these axes of x."""
        channels = self.channel_axis
        return tuple(
            each
            for axis in sorted(axes)
            for each in ((axis, axis + 1) if axis == channels else (axis + (axis > channels),))
        )

    def axis_of_x(self, axis: int) -> int:
        """Return the axis of x that an axis of `grouped_shape` is part of."""
        return axis - (axis > self.channel_axis)

    @property
    def broadcast_parameter(self) -> tuple[int, ...]:
        """The shape in which gamma and beta broadcast with `grouped_shape`."""
        return tuple(
            n if axis in self.parameter_axes else 1 for axis, n in enumerate(self.grouped_shape)
        )

    @property
    def broadcast_statistic(self) -> tuple[int, ...]:
        """The shape in which mean and rstd broadcast with `grouped_shape`."""
        return tuple(1 if axis in self.axes else n for axis, n in enumerate(self.grouped_shape))

    @property
    def row_axes(self) -> tuple[int, ...]:
        """The axes of x over which a row extends."""
        return self.axes if self.grouped_shape == self.shape else tuple(range(1, len(self.shape)))

    def grouped_strides(self, strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the strides of an array of x's shape, seen in `grouped_shape`."""
        if strides is None or len(strides) == len(self.grouped_shape):
            return strides
        group = self.channel_axis
        each = self.grouped_shape[group + 1]
        return (*strides[:group], strides[group] * each, *strides[group:])

    @property
    def is_rows(self) -> bool:
        """Whether x has shape (M, N), its parameters (N,) and its statistics (M, 1)."""
        m, n = self.rows
        return (self.shape, self.parameter, self.statistic) == ((m, n), (n,), (m, 1))

    def to_rows(self, x: Array, ascontiguous: Callable[[Array], Array] | None = None) -> Array:
        return reshape_contiguous(x, self.rows, self.permutation, ascontiguous)

    def from_rows(self, x: Array) -> Array:
        return restore_shape(x, self.shape, self.permutation)


def over_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> RowsView:
    """Statistics over `axes`, ascending, as in layer norm."""
    kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
    parameter = tuple(shape[axis] for axis in axes)
    return RowsView(
        shape,
        permutation=kept + axes if axes[0] != len(kept) else (),
        rows=(math.prod(shape[axis] for axis in kept), math.prod(parameter)),
        parameter=parameter,
        statistic=tuple(1 if axis in axes else n for axis, n in enumerate(shape)),
        grouped_shape=shape,
        axes=axes,
        parameter_axes=axes,
        shape_text=f"the shape of the normalised axes {axes}",
        plain_axes=axes,
    )


def over_channels(shape: tuple[int, ...], axis: int) -> RowsView:
    """Statistics of each channel over all other axes, as in batch norm."""
    others = tuple(each for each in range(len(shape)) if each != axis)
    return over_axes(shape, others)._replace(
        parameter=shape[axis : axis + 1],
        parameter_axes=(axis,),
        shape_text=f"the number of channels, on axis {axis}",
        plain_axes=(axis,),
        groups=shape[axis],
        repeat=math.prod(shape[each] for each in others),
    )


def of_elements(view: RowsView, *, parameters: bool) -> RowsView:
    """Return a view of the same x for elementwise kernels, which need no contiguous rows.

    The permutation is dropped wherever the index rule of rows can still find the `parameters`.
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


class Grouping:
    """What is normalised over, where this is more than axes.

    Equal to itself only, so that it is found by identity as part of a key: see `interned`.
    """

    def view(self, func_name: str, x_name: str, shape: tuple[int, ...]) -> RowsView:
        raise NotImplementedError

    def __reduce__(self) -> Any:
        return interned, (type(self), *vars(self).values())


@dataclass(frozen=True, eq=False)
class ChannelGroups(Grouping):
    """Statistics of each sample over groups of channels, as in group norm."""

    num_groups: int | None
    """None for as many as channels."""
    channel_axis: int

    def view(self, func_name: str, x_name: str, shape: tuple[int, ...]) -> RowsView:
        axis = checks.integer(func_name, "channel_axis", self.channel_axis)
        axis = checks.channel_axis(func_name, axis, shape)
        checks.known_lengths(func_name, shape, range(len(shape)))
        channels = count = shape[axis]
        if self.num_groups is not None:
            count = checks.integer(func_name, "num_groups", self.num_groups)
            if count < 1 or channels % count:
                raise ValueError(
                    f"{func_name}: num_groups={count} does not divide the {channels} channels of "
                    f"axis {axis} into groups of one size"
                )
        each = channels // count if count else 1
        spatial = tuple(other for other in range(1, len(shape)) if other != axis)
        repeat = math.prod(shape[other] for other in spatial)
        grouped_shape = (*shape[:axis], count, each, *shape[axis + 1 :])
        return RowsView(
            shape,
            permutation=(0, axis, *spatial) if axis != 1 else (),
            rows=(shape[0] * count, each * repeat),
            parameter=(channels,),
            statistic=(shape[0], count),
            grouped_shape=grouped_shape,
            axes=tuple(other for other in range(1, len(grouped_shape)) if other != axis),
            parameter_axes=(axis, axis + 1),
            shape_text=f"the number of channels, on axis {axis}",
            plain_axes=(axis,),
            groups=count,
            repeat=repeat,
        )


@dataclass(frozen=True, eq=False)
class KeptAxis(Grouping):
    """Statistics over all axes but one, as in weight standardization."""

    axis: int
    is_scaled: bool = False
    """Whether each slice has a parameter, as in weight norm."""

    def view(self, func_name: str, x_name: str, shape: tuple[int, ...]) -> RowsView:
        axis = checks.integer(func_name, "axis", self.axis)
        (kept,) = checks.axes(func_name, axis, shape, name=x_name)
        checks.known_lengths(func_name, shape, range(len(shape)))
        axes = tuple(axis for axis in range(len(shape)) if axis != kept)
        if not axes:
            raise ValueError(
                f"{func_name}: {x_name} has one axis, so a slice of it is a single element"
            )
        view = over_axes(shape, axes)._replace(statistic=(shape[kept],))
        if not self.is_scaled:
            return view
        return view._replace(
            parameter=(shape[kept],),
            parameter_axes=(kept,),
            shape_text=f"the length of axis {kept}",
            plain_axes=(kept,),
            groups=shape[kept],
            repeat=view.rows[1],
        )


@lru_cache(1024, typed=True)  # 1, 1.0 and True are equal, but only one of them is an axis
def _interned(kind: Callable[..., Grouping], *options: Any) -> Grouping:
    return kind(*options)


def interned(kind: Callable[..., Grouping], *options: Any) -> Grouping:
    """Return one object for each kind and options: as part of a key, it is found by identity."""
    try:
        return _interned(kind, *options)
    except TypeError:  # an option cannot be hashed, which `view` will refuse
        return kind(*options)


#: What is normalised over: an axis, a tuple of axes, or one of the above.
Over: TypeAlias = int | tuple[int, ...] | Grouping


def view_of(func_name: str, over: Over, shape: tuple[int, ...], x_name: str = "x") -> RowsView:
    """Return the view of an x of this shape as rows; raise if they do not fit each other.

    `x_name` is the caller's name of x, for messages.
    """
    if isinstance(over, Grouping):
        return over.view(func_name, x_name, shape)
    return over_axes(shape, checks.axes(func_name, over, shape, name=x_name))


def checked_view(
    func_name: str, over: Axis | Grouping, x: Array, x_name: str = "x", **parameters: Array | None
) -> RowsView:
    """Check x, the axes and the parameters that are given; return the view of x as rows.

    All parameters have the shape of the normalised axes, or that of the channels.
    """
    checks.array(func_name, x_name, x)
    if not isinstance(over, Grouping):
        over = checks.canonical_axis(func_name, over)
    view = view_of(func_name, over, tuple(x.shape), x_name)
    for name, value in parameters.items():
        if value is not None:
            checks.parameter(func_name, name, value, x, view, x_name)
    return view
