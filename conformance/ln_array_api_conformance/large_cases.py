"""Arrays large enough for every path of a kernel: more than a block of rows, a vector, a thread."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import family, family_more
from .family import Case, OperationSpec, Shapes


class Rows(NamedTuple):
    """Rows with an axis: their shape, and how many columns gradients are looked at in."""

    shape: tuple[int, int]
    columns: int


#: More rows than a block has, lengths beside powers of two, rows longer than a vector, many
#: megabytes, whose results a kernel may store past the cache.
ROWS = {
    "4097 short rows": Rows((4097, 7), 7),
    "many whole vectors": Rows((4099, 64), 8),
    "rows of 65": Rows((131, 65), 8),
    "rows of 1000": Rows((67, 1000), 8),
    "long rows": Rows((3, 100_003), 3),
    "13 MB": Rows((3203, 1024), 2),
    "13 MB of ragged rows": Rows((1501, 2201), 2),
}


class Columns(NamedTuple):
    """Rows beside each other: the shape of an array, whose axis 1 is that of the rows' elements."""

    shape: tuple[int, int, int]
    places: int
    """As `columns` of rows."""


#: Fewer rows beside each other than a vector has lanes, and more than a tile has; with a vector
#: that is not full, and without; longer than what is summed at once; for several threads.
COLUMNS = {
    "columns": Columns((1, 1000, 67), 8),
    "samples of columns": Columns((33, 65, 40), 8),
    "few beside each other": Columns((300, 19, 9), 8),
    "whole vectors": Columns((5, 256, 128), 8),
    "long columns": Columns((1, 30_011, 21), 2),
    "13 MB of columns": Columns((2, 1601, 1024), 2),
}


class Large(NamedTuple):
    """A case of an operation, and in how many places of each input gradients are looked at."""

    member: OperationSpec
    case: Case
    places: int


def _channels(member: OperationSpec, shape: tuple[int, ...], axis: int = 1) -> Shapes:
    """The shapes of all inputs of an operation, from that of x."""
    return {
        name: shape if name == member.x else _parameter_shape(name, known, shape[axis])
        for name, known in member.shapes.items()
    }


def _parameter_shape(name: str, known: tuple[int, ...], channels: int) -> tuple[int, ...]:
    return known if name.endswith("weights") or known == () else (channels,)


def _large(
    member: OperationSpec, shape: tuple[int, ...], axis: int = 1, places: int = 5, **options: Any
) -> Large:
    if axis != 1:
        options |= {"channel_axis" if member.has("channel_axis") else "axis": axis}
    return Large(member, Case(_channels(member, shape, axis), options), places)


def _over_channels(member: OperationSpec, **options: Any) -> dict[str, Large]:
    return {
        "long channels": _large(member, (3, 6, 91, 90), **options),
        "channels last": _large(member, (5, 53, 41, 12), -1, **options),
        "short channels": _large(member, (700, 6, 7, 5), **options),
    }


def _columns(member: OperationSpec) -> dict[str, Large]:
    return _over_channels(member) | {
        "columns": _large(member, (4099, 65)),
        "few long columns": _large(member, (70_001, 3)),
        "13 MB of long channels": _large(member, (40, 20, 64, 64), places=2),
        "13 MB of columns": _large(member, (51_001, 64), places=2),
    }


def _slices(member: OperationSpec) -> dict[str, Large]:
    return {
        "many slices": Large(member, _axis_shape(member, (4100, 3, 7)), 5),
        "slices of 65": Large(member, _axis_shape(member, (131, 65)), 5),
        "slices of 1000": Large(member, _axis_shape(member, (67, 10, 100)), 5),
        "long slices": Large(member, _axis_shape(member, (3, 100_003)), 3),
        "columns": Large(member, _axis_shape(member, (4100, 33), -1), 5),
    }


def _axis_shape(member: OperationSpec, shape: tuple[int, ...], axis: int = 0) -> Case:
    options = {} if axis == 0 else {"axis": axis}
    others = {name: (shape[axis],) for name in member.inputs if name != member.x}
    return Case({member.x: shape, **others}, options)


def _powers(shape: tuple[int, int], places: int, **options: Any) -> Large:
    return Large(family_more.POWER_NORM, Case({"x": shape}, options), places)


_OF_MEMBERS: dict[str, dict[str, Large]] = {
    "group_norm": _over_channels(family.GROUP_NORM, num_groups=3),
    "instance_norm": _over_channels(family.INSTANCE_NORM),
    "batch_norm_forward": _columns(family.BATCH_NORM_FORWARD),
    "batch_norm": _columns(family.BATCH_NORM),
    "weight_standardization": _slices(family.WEIGHT_STANDARDIZATION),
    "weight_norm": _slices(family_more.WEIGHT_NORM),
    "power_norm": {
        "many rows": _powers((4100, 9), 5),
        "rows of 65": _powers((131, 65), 5, epsilon=0.0),
        "rows of 1000": _powers((67, 1000), 5, alpha=2.0, epsilon=0.0),
        "long rows": _powers((3, 100_003), 3),
    },
    "batch_instance_norm": _over_channels(family_more.BATCH_INSTANCE_NORM),
    "switchable_norm": _over_channels(family_more.SWITCHABLE_NORM),
    "local_contrast_norm": {
        "an image": Large(family_more.LOCAL_CONTRAST_NORM, Case({"x": (3, 67, 130)}, {}), 5),
    },
    "dynamic_tanh": {
        "many rows": Large(
            family_more.DYNAMIC_TANH,
            Case({"x": (4100, 65), "alpha": (), "gamma": (65,), "beta": (65,)}, {}),
            5,
        ),
    },
}
#: All of them, by the name of the operation and their own.
LARGE = {
    f"{name}-{key}": large for name, cases in _OF_MEMBERS.items() for key, large in cases.items()
}
