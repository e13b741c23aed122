"""Parameters that have the rank of x, with length 1 or x's along each axis.

In a call with such a parameter, all parameters have the rank of x. Kernels on rows find the
parameters of row r in row ``(r // span) mod groups`` of them, and ``repeat`` adjacent elements
share one. Where this does not describe an array, it is broadcast along further axes, and its
gradient is summed over these.
"""

from __future__ import annotations

import math

from .._arrays import Array, is_unknown, library_of
from .._layout import reshape, reshape_contiguous
from ..kernels.reductions import wide_sum
from . import checks
from .views import RowsView


def has_rank_of_x(shape: tuple[int, ...], x_shape: tuple[int, ...]) -> bool:
    """Whether a parameter has the rank of x, and length 1 or x's along each axis."""
    return len(shape) == len(x_shape) and all(
        a == 1 or a == b or is_unknown(b) for a, b in zip(shape, x_shape, strict=True)
    )


def with_rank_of_x(view: RowsView, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a parameter with the rank of x, which it may have already."""
    if shape != view.plain_parameter:
        return shape
    axes = view.plain_axes
    return tuple(n if axis in axes else 1 for axis, n in enumerate(view.shape))


def checked(func_name: str, view: RowsView, x: Array, **parameters: Array | None) -> RowsView:
    """Check parameters that may have the rank of x; return the view of x for them."""
    shapes = []
    text = f"{view.shape_text}, or x's rank with each length 1 or x's"
    for name, value in parameters.items():
        if value is None:
            continue
        given = tuple(getattr(value, "shape", ()))
        ranked = given != view.parameter and has_rank_of_x(given, view.shape)
        checks.operand(func_name, name, value, x, given if ranked else view.parameter, text)
        shapes.append(given if ranked else view.parameter)
    return with_parameters(view, shapes)


def with_parameters(view: RowsView, shapes: list[tuple[int, ...]]) -> RowsView:
    """Return the view of x for parameters of these shapes."""
    if all(shape == view.parameter for shape in shapes):
        return view
    ranked = [with_rank_of_x(view, shape) for shape in shapes]
    varies = {axis for shape in ranked for axis, n in enumerate(shape) if n != 1}
    expanded, groups, span, repeat = _as_rows(view, varies)
    return view._replace(
        parameter=_lengths(view, varies),
        parameter_axes=view.grouped_axes(varies),
        expanded=_lengths(view, expanded),
        groups=groups,
        span=span,
        repeat=repeat,
    )


def _lengths(view: RowsView, varies: set[int]) -> tuple[int, ...]:
    return tuple(n if axis in varies else 1 for axis, n in enumerate(view.shape))


def _as_rows(view: RowsView, varies: set[int]) -> tuple[set[int], int, int, int]:
    """Return the axes of x along which rows of parameters vary, groups, span and repeat.

    Among the kept axes of x as rows these follow each other, and among the normalised ones they are
    the first. Axes of length 1 count as either.
    """
    order = view.permutation or tuple(range(len(view.shape)))
    shape = view.grouped_shape
    in_order = [each for axis in order for each in view.grouped_axes({axis})]
    kept = [axis for axis in in_order if axis not in view.axes and shape[axis] != 1]
    normalised = [axis for axis in in_order if axis in view.axes and shape[axis] != 1]
    while True:
        grouped = view.grouped_axes(varies)
        rows = [place for place, axis in enumerate(kept) if axis in grouped]
        elements = [place for place, axis in enumerate(normalised) if axis in grouped]
        of_rows = kept[rows[0] : rows[-1] + 1] if rows else []
        of_elements = normalised[: elements[-1] + 1] if elements else []
        needed = {view.axis_of_x(axis) for axis in of_rows + of_elements}
        if needed <= varies:
            break
        varies = varies | needed  # both axes of a group of channels are one axis of x
    groups = math.prod(shape[axis] for axis in of_rows)
    span = math.prod(shape[axis] for axis in kept[rows[-1] + 1 :]) if groups > 1 else 1
    repeat = math.prod(shape[axis] for axis in normalised[len(of_elements) :])
    return varies, groups, span, repeat


def to_rows(view: RowsView, values: Array) -> Array:
    """Return a parameter as kernels on rows get it."""
    shape, expanded = with_rank_of_x(view, tuple(values.shape)), view.expanded or ()
    ranked = reshape(values, shape)
    if shape != expanded:
        ranked = library_of(values).xp.broadcast_to(ranked, expanded)
    return reshape_contiguous(ranked, (math.prod(expanded),), view.permutation)


def to_axes(view: RowsView, values: Array) -> Array:
    """Return a parameter, or a mask, with all axes of x, groups of channels apart."""
    shape = with_rank_of_x(view, tuple(values.shape))
    channels = view.channel_axis
    if channels < len(shape):
        of_channels = (
            view.grouped_shape[channels : channels + 2] if shape[channels] != 1 else (1, 1)
        )
        shape = (*shape[:channels], *of_channels, *shape[channels + 1 :])
    return values if tuple(values.shape) == shape else reshape(values, shape)


def fit_gradient(view: RowsView, gradient: Array, like: Array) -> Array:
    """Return the gradient of a parameter `like`, from that of one broadcast along further axes."""
    shape = with_rank_of_x(view, tuple(like.shape))
    lengths = zip(shape, gradient.shape, strict=True)
    axes = tuple(axis for axis, (n, given) in enumerate(lengths) if n == 1 and given != 1)
    return reshape(wide_sum(library_of(gradient).xp, gradient, axes), tuple(like.shape))
