"""From a spec to compiled kernels for windows: tiles of planes, threads and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from ln_array_api.backend import FamilySpec

from . import windows
from .call_context import ABSENT, CallContext, integer
from .calls import array_of
from .simd import BYTES

#: Bytes of the fields of a tile, which are to stay in the second cache.
WORKSPACE = 256 << 10
#: Places of a tile along a row at least, where there are so many.
COLUMNS = 256


class Tiles(NamedTuple):
    """How planes are cut, which depends on their shape and on the windows alone."""

    reach: tuple[int, int]
    """How far windows go to either side of their centre, down and across."""
    rows: int
    columns: int
    num_tiles: int
    """Of all planes."""


def tiles_of(spec: FamilySpec, fields: int, windows_deep: int) -> Tiles:
    """Tiles of so many fields, which have so many windows next to each other around them."""
    planes, height, width = spec.shape
    itemsize = 8 if spec.dtype == "float64" else 4
    down, across = (min(spec.size // 2, length - 1) for length in (height, width))
    beyond_rows, beyond_columns = (2 * windows_deep * reach for reach in (down, across))
    room = WORKSPACE // (fields * itemsize)
    most = max(COLUMNS, room // (height + beyond_rows) - beyond_columns, 2 * beyond_columns)
    columns = even_share(width, most, BYTES // itemsize)
    most = max(1, room // (columns + beyond_columns) - beyond_rows, 2 * beyond_rows)
    rows = even_share(height, most, 1)
    count = planes * -(-height // rows) * -(-width // columns)
    return Tiles((down, across), rows, columns, count)


def even_share(length: int, most: int, unit: int) -> int:
    """Of a length in as few equal parts of at most about so many as there can be, in units."""
    parts = -(-length // most)
    return min(length, -(-length // (parts * unit)) * unit)


def prepare_forward(spec: FamilySpec) -> Callable[..., Any]:
    """What runs `windows_forward`, given x."""
    context = CallContext(spec, spec.shape, 0, non_temporal=False)
    tiles = tiles_of(spec, windows.FIELDS, 1)
    statistic = array_of(context.acc_dtype.name, *spec.shape)
    has_statistics = spec.need != (True, False, False)
    like = np.empty(1, context.acc_dtype)
    run = context.bind(
        windows.forward_task,
        tiles.num_tiles,
        *(context.x, context.x, *[statistic if has_statistics else ABSENT] * 2),
        *(array_of(context.acc_dtype.name, 1), (types.float64, spec.epsilon)),
        *map(integer, (*tiles.reach, tiles.rows, tiles.columns)),
    )

    def call(x: Any) -> Any:
        y = context.empty(x.dtype)
        mean, rstd = (context.empty(context.acc_dtype) if has_statistics else None for _ in "ab")
        run(x, y, mean, rstd, like)
        return y, mean, rstd

    return call
