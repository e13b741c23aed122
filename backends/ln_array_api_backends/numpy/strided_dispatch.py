"""From a spec and a layout to compiled kernels for rows along an axis that others follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ln_array_api.backend import Layout, Primitive, RowsSpec

from . import strided_backward, strided_forward
from .call_context import CallContext
from .columns_dispatch import contiguous
from .config import ITEMSIZE, should_use_non_temporal
from .simd import BYTES
from .tasks import ABSENT, array_of, boolean, integer, real

#: Bytes of a tile, which stays in L2.
TILE = 512 << 10
#: Fewest vectors of each element of a tile, which are read together, and most vectors. Backward
#: passes add them up, and float32 holds the sum of that many.
FEW_VECTORS, VECTORS = 4, {"rows_forward": 24, "rows_backward": 16}
#: Fewest adjacent rows for which enough lanes are used.
LEAST = 8
#: Fewest tiles, if there are enough columns: work for several threads.
TILES = 32
#: Most blocks of tiles with partial sums of gradients.
BLOCKS = 16


class _Tiles(NamedTuple):
    """Arrays (K, N, I) in tiles."""

    shape: tuple[int, int, int]
    width: int
    """The rows of a tile, in whole vectors."""
    num_tiles: int


def _tiles(primitive: Primitive, shape: tuple[int, int, int], spec: RowsSpec, lanes: int) -> _Tiles:
    """Choose tiles of about equal width, which depends only on the shape."""
    k, n, inner = shape
    vectors = -(-inner // lanes)
    most = TILE // (n * lanes * ITEMSIZE[spec.dtype])
    most = min(VECTORS[primitive], max(FEW_VECTORS, min(most, vectors * k // TILES)))
    across = -(-vectors // most)
    width = -(-vectors // across) * lanes
    return _Tiles(shape, width, k * -(-inner // width))


def prepare(
    primitive: Primitive, spec: RowsSpec, layout: Layout
) -> tuple[Callable[..., Any], str] | None:
    """Return the kernel of a rows primitive and a reason, or None for other layouts."""
    is_backward = primitive == "rows_backward"
    if not layout.strides or (is_backward and layout.dy is None):
        return None  # arrays have another layout, and have to be copied
    first, last = layout.axes[0], layout.axes[-1]
    if layout.axes != tuple(range(first, last + 1)) or not spec.groups == spec.repeat == 1:
        return None
    split = layout.shape[:first], layout.shape[first : last + 1], layout.shape[last + 1 :]
    k, n, inner = map(math.prod, split)
    if n == 1 or inner < LEAST:
        return None
    non_temporal = should_use_non_temporal(k * n, k * n * inner * ITEMSIZE[spec.dtype])
    context = CallContext(spec, (k, n, inner), n, non_temporal=non_temporal)
    tiles = _tiles(primitive, (k, n, inner), spec, BYTES // context.acc_dtype.itemsize)
    lengths = list(enumerate(layout.shape))
    statistic = tuple(1 if axis in layout.axes else length for axis, length in lengths)
    parameter = tuple(length if axis in layout.axes else 1 for axis, length in lengths)
    count = "1 thread" if context.max_parts == 1 else "several threads"
    reason = f"compiled by Numba for {spec.dtype}, by columns as they lie, {count}"
    make = _backward if is_backward else _forward
    result_shape = parameter if is_backward else statistic
    return make(context, tiles, result_shape, center=spec.center), reason


def _forward(
    context: CallContext, tiles: _Tiles, statistic: tuple[int, ...], *, center: bool
) -> Callable[..., Any]:
    k, _, inner = tiles.shape
    run = context.bind(
        strided_forward.forward_task,
        tiles.num_tiles,
        *(context.x, context.gamma, context.beta, context.x),
        *(context.acc(k * inner) if center else ABSENT, context.acc(k * inner)),
        *(real(context.spec.epsilon), integer(tiles.width)),
        boolean(context.non_temporal),
    )

    def call(x: Any, gamma: Any, beta: Any, out: Any = None) -> Any:
        is_place = out is not None and is_in_order(out)
        y = out if is_place else context.empty(x.dtype).reshape(x.shape)
        mean = context.new(k * inner) if center else None
        rstd = context.new(k * inner)
        run(x, contiguous(gamma), contiguous(beta), y, mean, rstd)
        if out is not None and not is_place:
            out[...] = y
        y = y if out is None else out
        return y, None if mean is None else mean.reshape(statistic), rstd.reshape(statistic)

    return call


def is_in_order(x: np.ndarray) -> bool:
    """Return whether kernels can write an array."""
    return bool(x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative)


def _backward(
    context: CallContext, tiles: _Tiles, parameter: tuple[int, ...], *, center: bool
) -> Callable[..., Any]:
    k, n, inner = tiles.shape
    need_dx, *needs = context.spec.need
    lanes = BYTES // context.acc_dtype.itemsize
    per_block = -(-tiles.num_tiles // BLOCKS)
    blocks = -(-tiles.num_tiles // per_block)
    length = blocks * -(-n // lanes) * lanes
    sums = [array_of("float64" if need else None, length) for need in needs]
    is_wide = context.acc_dtype == np.float64
    dx, *gradients = context.gradients(n)
    run = context.bind(
        strided_backward.backward_task,
        blocks,
        *(context.dy, context.x),
        *(context.acc(k * inner) if center else ABSENT, context.acc(k * inner)),
        *(context.gamma, dx, *sums, *(sums if is_wide else [ABSENT] * 2), *gradients),
        *(integer(tiles.width), integer(per_block), boolean(context.non_temporal and need_dx)),
    )

    def call(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
        dx = context.empty(x.dtype) if need_dx else None
        sums = [np.empty(length) if need else None for need in needs]
        compensations = [np.empty(length) if need and is_wide else None for need in needs]
        dgamma, dbeta = (context.new(n).reshape(parameter) if need else None for need in needs)
        saved = contiguous(mean), contiguous(rstd), contiguous(gamma)
        run(dy, x, *saved, dx, *sums, *compensations, dgamma, dbeta)
        return None if dx is None else dx.reshape(x.shape), dgamma, dbeta

    return call
