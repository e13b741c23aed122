"""Arrays large enough for every path of a kernel: more than a block of rows, a vector, a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .operation_spec import Case, OperationSpec, row_case
from .operations import OPERATIONS


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

    operation: OperationSpec
    case: Case
    places: int = 5


def _channels(
    spec: OperationSpec, shape: tuple[int, ...], kept: int = 1, places: int = 5, **options: Any
) -> Large:
    """Return a case from the shape of x; all other inputs except weights are of one axis."""
    shapes = {
        name: (3,) if name.endswith("weights") else (shape[kept],) for name in spec.parameters
    }
    return Large(spec, Case({spec.x: shape, **shapes}, options), places)


def _over_channels(spec: OperationSpec, **options: Any) -> dict[str, Large]:
    return {
        "long channels": _channels(spec, (3, 6, 91, 90), **options),
        "channels last": _channels(spec, (5, 53, 41, 12), -1, channel_axis=-1, **options),
        "short channels": _channels(spec, (700, 6, 7, 5), **options),
    }


def _over_columns(spec: OperationSpec) -> dict[str, Large]:
    return _over_channels(spec) | {
        "columns": _channels(spec, (4099, 65)),
        "few long columns": _channels(spec, (70_001, 3)),
        "13 MB of long channels": _channels(spec, (40, 20, 64, 64), places=2),
        "13 MB of columns": _channels(spec, (51_001, 64), places=2),
    }


def _over_slices(spec: OperationSpec) -> dict[str, Large]:
    return {
        "many slices": _channels(spec, (4100, 3, 7), 0),
        "slices of 65": _channels(spec, (131, 65), 0),
        "slices of 1000": _channels(spec, (67, 10, 100), 0),
        "long slices": _channels(spec, (3, 100_003), 0, places=3),
        "columns": _channels(spec, (4100, 33), -1, axis=-1),
    }


def _powers(spec: OperationSpec) -> dict[str, Large]:
    return {
        "many rows": Large(spec, row_case((4100, 9), ())),
        "rows of 65": Large(spec, row_case((131, 65), (), epsilon=0.0)),
        "rows of 1000": Large(spec, row_case((67, 1000), (), alpha=2.0, epsilon=0.0)),
        "long rows": Large(spec, row_case((3, 100_003), ()), 3),
    }


def _image(spec: OperationSpec) -> dict[str, Large]:
    return {"an image": Large(spec, Case({"x": (3, 67, 130)}, {}))}


def _affine_rows(spec: OperationSpec) -> dict[str, Large]:
    shapes = {"x": (4100, 65), "alpha": (), "gamma": (65,), "beta": (65,)}
    return {"many rows": Large(spec, Case(shapes, {}))}


_CASES: dict[str, Callable[[OperationSpec], dict[str, Large]]] = {
    "group_norm": lambda spec: _over_channels(spec, num_groups=3),
    "instance_norm": _over_channels,
    "batch_norm_forward": _over_columns,
    "batch_norm": _over_columns,
    "weight_standardization": _over_slices,
    "weight_norm": _over_slices,
    "power_norm": _powers,
    "batch_instance_norm": _over_channels,
    "switchable_norm": _over_channels,
    "local_contrast_norm": _image,
    "dynamic_tanh": _affine_rows,
}
#: All of them, by the name of the operation and their own.
LARGE = {
    f"{name}-{key}": large
    for name, cases in _CASES.items()
    for key, large in cases(OPERATIONS[name]).items()
}
