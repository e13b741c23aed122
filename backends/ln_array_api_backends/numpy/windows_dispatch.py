"""From a spec to compiled kernels for windows: tiles of planes, tables, threads and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ln_array_api.backend import FamilySpec

from . import windows_backward, windows_forward
from .call_context import CallContext
from .simd import BYTES
from .tasks import ABSENT, array_of, integer, real
from .window_runs import TABLES

#: Bytes of the fields of a tile, which stay in L2.
WORKSPACE = 256 << 10
#: Fewest columns of a tile, unless x has fewer.
COLUMNS = 256


class Axis(NamedTuple):
    """How an axis is divided into tiles, which depends only on its length and on the windows."""

    length: int
    radius: int
    """Elements of a window on either side of its centre."""
    tile_length: int
    """The places of a tile, except the last tile."""

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        return -(-self.length // self.tile_length)


def axes_of(
    shape: tuple[int, ...], size: int, itemsize: int, fields: int, deep: int
) -> tuple[Axis, Axis]:
    """Divide planes down and across into tiles; `deep` is as in `tables_of`."""
    down, across = (min(size // 2, length - 1) for length in shape[1:])
    around_rows, around_columns = (2 * (deep + 1) * radius for radius in (down, across))
    room = WORKSPACE // (fields * itemsize)
    most = max(COLUMNS, room // (shape[1] + around_rows) - around_columns, 2 * around_columns)
    columns = even_length(shape[2], most, BYTES // itemsize)
    most = max(1, room // (columns + around_columns) - around_rows, 2 * around_rows)
    return Axis(shape[1], down, even_length(shape[1], most, 1)), Axis(shape[2], across, columns)


def even_length(length: int, most: int, unit: int) -> int:
    """Return the length of the parts, if a length is split into few equal parts, in units."""
    parts = -(-length // most)
    return min(length, -(-length // (parts * unit)) * unit)


def tables_of(axis: Axis, deep: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return the tables of weights by which runs are merged, and the number of that of each tile.

    A table has rows for each doubling step, by the place where a run begins: the weight of the
    second run, and that times the weight of the first; and the same for a single place that follows
    both. The last row is the number of elements of a window. Places beyond the border count as 0.
    The windows are those around all places of a tile, and, if they are in the array, around places
    up to `deep` times the radius outside of it.
    """
    length, radius, tile_length = axis
    known: dict[tuple[int, int, int], int] = {}
    tables: list[list[np.ndarray]] = []
    numbers = []
    pad = tile_length + 2 * (deep + 1) * radius + BYTES  # and a vector beyond the last place
    for first in range(0, length, tile_length):
        begin = max(first - deep * radius, 0) - radius
        end = min(first + tile_length + deep * radius, length) + radius
        kind = max(-begin, 0), max(end - length, 0), end - begin
        if kind not in known:
            known[kind] = len(tables)
            tables.append(_tables(np.arange(begin, begin + pad), length, radius))
        numbers.append(known[kind])
    return np.array(tables, dtype), np.array(numbers)


def _tables(begin: np.ndarray, length: int, radius: int) -> list[np.ndarray]:
    def count(after: int, n: int) -> np.ndarray:
        """Count the places in the array, of n places that begin `after` the start of a run."""
        first, last = (np.clip(begin + each, 0, length) for each in (after, after + n))
        return np.asarray(last - first)

    rows, n = [], 1
    for bit in f"{2 * radius + 1:b}"[1:]:
        for before, more in ((n, n), (2 * n, 1)):
            part = count(before, more) / np.maximum(count(0, before + more), 1)
            rows += [part, part * (1 - part)]
        n = 2 * n + int(bit)
    assert len(rows) == TABLES * (len(f"{2 * radius + 1:b}") - 1)
    return [*rows, count(0, 2 * radius + 1)]


class _Tiles:
    """How planes are divided for a kernel, and the arguments that describe it."""

    def __init__(self, context: CallContext, size: int, fields: int, deep: int):
        """Divide planes for windows of a size, and a kernel with `fields` fields."""
        dtype, shape = context.acc_dtype, context.shape
        down, across = axes_of(shape, size, dtype.itemsize, fields, deep)
        self.num_tiles = shape[0] * down.tiles * across.tiles
        self.tables = *tables_of(across, deep, dtype), *tables_of(down, deep, dtype)
        """Across and down, each with the numbers of the tiles' own."""
        self.kinds = [array_of(each.dtype.name, *each.shape) for each in self.tables]
        self.lengths = [
            integer(n) for n in (down.radius, across.radius, down.tile_length, across.tile_length)
        ]


def _shape_of(spec: FamilySpec) -> tuple[int, ...]:
    """Return the shape of x in the kernels, where a single column is a row."""
    planes, height, width = spec.shape
    return (planes, width, height) if width == 1 else (planes, height, width)


def forward(spec: FamilySpec) -> Callable[..., Any]:
    """Return the kernel of `windows_forward`, a function of x."""
    shape = _shape_of(spec)
    context = CallContext(spec, shape, 0, non_temporal=False)
    tiles = _Tiles(context, spec.size, windows_forward.FIELDS, 0)
    statistic = array_of(context.acc_dtype.name, *shape)
    has_statistics = spec.need != (True, False, False)
    run = context.bind(
        windows_forward.forward_task,
        tiles.num_tiles,
        *(context.x, context.x, *[statistic if has_statistics else ABSENT] * 2),
        *(*tiles.kinds, real(spec.epsilon), *tiles.lengths),
    )

    def call(x: Any) -> Any:
        y = context.empty(x.dtype)
        if not has_statistics:
            run(x, y, None, None, *tiles.tables)
            return y.reshape(x.shape), None, None
        mean, rstd = context.empty(context.acc_dtype), context.empty(context.acc_dtype)
        run(x, y, mean, rstd, *tiles.tables)
        return y.reshape(x.shape), mean.reshape(x.shape), rstd.reshape(x.shape)

    return call


def backward(spec: FamilySpec) -> Callable[..., Any]:
    """Return the kernel of `windows_backward`, a function of dy, x and rstd."""
    shape = _shape_of(spec)
    context = CallContext(spec, shape, 0, non_temporal=False)
    tiles = _Tiles(context, spec.size, windows_backward.FIELDS, 1)
    run = context.bind(
        windows_backward.backward_task,
        tiles.num_tiles,
        *(context.dy, context.x, array_of(context.acc_dtype.name, *shape), context.x),
        *(*tiles.kinds, *tiles.lengths),
    )

    def call(dy: Any, x: Any, rstd: Any) -> Any:
        dx = context.empty(x.dtype)
        run(dy, x, rstd, dx, *tiles.tables)
        return dx.reshape(x.shape)

    return call
