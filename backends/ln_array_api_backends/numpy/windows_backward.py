"""Gradients of local normalisation, tile by tile: sums over all windows that contain an element.

The terms and their weights are those of `ln_array_api.kernels.windows.windows_backward`. Sums over
windows are merged from those over runs, about an anchor that is chosen from these. Anchors, their
weights, sums of totals and sums of moments are fields.
"""

from __future__ import annotations

from numba import njit

from .compile import CALLED, INLINE, ONCE
from .simd import absolute, broadcast_like, fma, lanes, negative, ones, where_at_least, zeros
from .tasks import task_of
from .vector_memory import (
    data_pointer,
    load,
    load_broadcast,
    load_partial,
    store,
    store_partial,
    unrelated,
)
from .window_runs import BLOCK, first_step, merge_windows
from .windows_forward import load_tile, tile_of, workspace

#: Fields of a tile: x; offsets of runs along rows and of windows; total, moment and weight of each
#: window; two more for sums, which otherwise reuse fields that are no longer needed.
FIELDS = 9
#: Gradients of very large x are very small. They are multiplied by this power of two until they
#: are summed, so that terms are not subnormal.
LIFT = 2.0**44


@njit(**INLINE)
def load_sums(fields, places, q, ones_vec):
    """Load the anchor of a run, its weight, the sum of totals, and that of moments about it."""
    return (
        load(fields, places[0] + q, ones_vec),
        load(fields, places[1] + q, ones_vec),
        load(fields, places[2] + q, ones_vec),
        load(fields, places[3] + q, ones_vec),
    )


@njit(**INLINE)
def sums_of_both(first, second):
    """Merge the sums of two runs, about the anchor with the larger weight."""
    a, weight_a, total_a, moment_a = first
    b, weight_b, total_b, moment_b = second
    anchor = where_at_least(weight_a, weight_b, a, b)
    weight = where_at_least(weight_a, weight_b, weight_a, weight_b)
    moment = fma(total_a, a - anchor, moment_a) + fma(total_b, b - anchor, moment_b)
    return anchor, weight, total_a + total_b, moment


@njit(**CALLED)
def merge_sums(fields, runs, singles, target, o, rows, places, pitch, stride, has_single, ones_vec):
    """Merge sums of runs with those `stride` elements further on, and with a place if `has_single`.

    The fields of `runs`, `singles` and `target` are used from element o on.
    """
    for i in range(rows):
        for j in range(0, places, lanes(ones_vec)):
            q = unrelated(o + i * pitch + j)
            both = sums_of_both(
                load_sums(fields, runs, q, ones_vec), load_sums(fields, runs, q + stride, ones_vec)
            )
            if has_single:
                both = sums_of_both(both, load_sums(fields, singles, q + 2 * stride, ones_vec))
            store(fields, target[0] + q, both[0])
            store(fields, target[1] + q, both[1])
            store(fields, target[2] + q, both[2])
            store(fields, target[3] + q, both[3])


@njit(**ONCE)
def merge_all_sums(space, singles, first, second, rows, columns, radius, pitch, ones_vec):
    """Merge the sums over the windows of a tile from those of single places; return their fields.

    These are `first` or `second`, which may be the fields of the singles.
    """
    fields, runs, length = data_pointer(space), singles, 2 * radius[1] + 1
    block, high = max(1, BLOCK * lanes(ones_vec) // 2 // pitch), rows + 2 * radius[0]
    for i in range(0, high, block):
        (n, bit), runs = first_step(radius[1]), singles
        while bit:
            has_single = length & bit != 0
            ends = columns + length - 2 * n - has_single
            merge_sums(
                fields, runs, singles, first, i * pitch,
                min(block, high - i), ends, pitch, n, has_single, ones_vec,
            )  # fmt: skip
            n, bit, runs = 2 * n + has_single, bit // 2, first
    along, length = runs, 2 * radius[0] + 1
    target = first if radius[1] == 0 else second
    for j in range(0, columns, lanes(ones_vec)):
        (n, bit), runs = first_step(radius[0]), along
        while bit:
            has_single = length & bit != 0
            ends = rows + length - 2 * n - has_single
            merge_sums(
                fields, runs, along, target, j, ends, lanes(ones_vec), pitch, n * pitch, has_single,
                ones_vec,
            )  # fmt: skip
            n, bit, runs = 2 * n + has_single, bit // 2, target
    return runs


@njit(**INLINE)
def store_zeros(fields, places, q, count, ones_vec):
    """Store weight, total and moment 0 for windows outside of the plane."""
    for j in range(0, count, lanes(ones_vec)):
        store(fields, places[1] + q + j, zeros(ones_vec))
        store(fields, places[2] + q + j, zeros(ones_vec))
        store(fields, places[3] + q + j, zeros(ones_vec))


@njit(**INLINE)
def lift_of(factor):
    """Return the factor of gradients until they are summed, for x scaled by `factor`."""
    return LIFT if factor < 1 else 1.0


@njit(**ONCE)
def store_terms(
    space, x, offset, centre, singles, dy, rstd, p, width, across, t, down, u,
    shape, inside, before, pitch, factor, ones_vec,
):  # fmt: skip
    """Store weight, total and moment of the window around each place of a tile.

    The tile has `shape`; its windows begin at `before` (row, column), and `inside` is their number.
    Element p of dy and rstd belongs to the first. The number of elements of a window is the product
    of the numbers in the tables across (from t on) and down (from u on).
    """
    fields, across_ptr, down_ptr = data_pointer(space), data_pointer(across), data_pointer(down)
    # rstd / factor overflows in a constant window of large values. Its two factors do not, and are
    # multiplied by the deviation, which is 0 there, one after the other.
    lift = broadcast_like(lift_of(factor), ones_vec)
    steepness = broadcast_like(lift_of(factor) if factor < 1 else 1.0 / factor, ones_vec)
    remaining_scale = broadcast_like(1.0 / (factor * LIFT) if factor < 1 else 1.0, ones_vec)
    rows, columns = shape
    for row in range(rows):
        i, q = row - before[0], row * pitch
        if i < 0 or i >= inside[0]:
            store_zeros(fields, singles, q, columns, ones_vec)
            continue
        store_zeros(fields, singles, q, before[1], ones_vec)
        q += before[1]
        high = load_broadcast(down_ptr, u + i, ones_vec)
        for j in range(0, inside[1], lanes(ones_vec)):
            here = x + i * pitch + j
            deviation = load(fields, here + centre, ones_vec) - load(fields, here, ones_vec)
            deviation = deviation - load(fields, offset + i * pitch + j, ones_vec)
            r = load_partial(rstd, p + i * width + j, inside[1] - j, ones_vec)
            g = load_partial(dy, p + i * width + j, inside[1] - j, ones_vec) * (r * lift)
            steep = r * steepness
            weighted_g = g / (load(across_ptr, t + j, ones_vec) * high)
            total = weighted_g * (deviation * steep * remaining_scale) * remaining_scale * steep
            store(fields, singles[1] + q + j, absolute(total))
            store(fields, singles[2] + q + j, total)
            store(fields, singles[3] + q + j, negative(fma(total, deviation, weighted_g)))
        store_zeros(fields, singles, q + inside[1], columns - before[1] - inside[1], ones_vec)


@njit(**ONCE)
def write_dx(space, x, sums, dy, rstd, dx, o, rows, columns, pitch, width, factor, ones_vec):
    """Write dx of a tile, from element o on."""
    fields = data_pointer(space)
    lift = broadcast_like(lift_of(factor), ones_vec)
    unlift = broadcast_like(1.0 / lift_of(factor), ones_vec)
    for i in range(rows):
        for j in range(0, columns, lanes(ones_vec)):
            q, p = i * pitch + j, o + i * width + j
            anchor, _, total, moment = load_sums(fields, sums, q, ones_vec)
            own = load_partial(dy, p, columns - j, ones_vec) * (
                load_partial(rstd, p, columns - j, ones_vec) * lift
            )
            others = fma(total, anchor - load(fields, x + q, ones_vec), moment)
            store_partial(dx, p, (own + others) * unlift, columns - j, False)


@njit(**CALLED)
def backward(
    dy, x, rstd, dx, across, strips, down, bands,
    radius_down, radius_across, rows, columns, start, stop,
):  # fmt: skip
    """Process tiles start to stop, of `rows` rows and `columns` columns.

    `strips` and `bands` are the numbers of the tables of a tile, by its column and its row. The
    tables are for all windows that contain an element of the tile.
    """
    radius = (radius_down, radius_across)
    dy_ptr, x_ptr, rstd_ptr = data_pointer(dy), data_pointer(x), data_pointer(rstd)
    dx_ptr, ones_vec = data_pointer(dx), ones(across)
    _, height, width = x.shape
    space, field, f, pitch = workspace(
        rows + 4 * radius_down, columns + 4 * radius_across, FIELDS, across
    )
    for unit in range(start, stop):
        plane, row, column, num_rows, num_columns = tile_of(unit, x.shape, rows, columns)
        # The windows that contain elements of the tile, and x in these windows.
        row_0, column_0 = max(row - radius_down, 0), max(column - radius_across, 0)
        inside = (
            min(row + num_rows + radius_down, height) - row_0,
            min(column + num_columns + radius_across, width) - column_0,
        )
        top, high = row_0 - radius_down, inside[0] + 2 * radius_down
        left, wide = column_0 - radius_across, inside[1] + 2 * radius_across
        factor = load_tile(
            x_ptr, plane, height, width, top, high, left, wide, space, field, pitch, 0.0, ones_vec
        )
        strip, band = strips[column // columns], bands[row // rows]
        offset = merge_windows(
            space, across, strip, down, band, field, field + f, field + 2 * f, None,
            max(-top, 0), min(top + high, height) - max(top, 0), inside[0], inside[1],
            radius, pitch, ones_vec,
        )  # fmt: skip
        # Sums begin at the window whose last element is the first of the tile.
        origin = field + (row - row_0) * pitch + column - column_0
        singles = (origin, field + 5 * f, field + 3 * f, field + 4 * f)
        centre = radius_down * pitch + radius_across
        store_terms(
            space, field, offset, centre, singles, dy_ptr, rstd_ptr,
            plane + row_0 * width + column_0, width,
            across, ((strip + 1) * across.shape[1] - 1) * across.shape[2],
            down, ((band + 1) * down.shape[1] - 1) * down.shape[2],
            (num_rows + 2 * radius_down, num_columns + 2 * radius_across), inside,
            (row_0 - row + radius_down, column_0 - column + radius_across), pitch, factor, ones_vec,
        )  # fmt: skip
        sums = merge_all_sums(
            space, singles, (field + f, field + 2 * f, field + 6 * f, field + 7 * f),
            (field + 3 * f, field + 4 * f, field + 5 * f, field + 8 * f),
            num_rows, num_columns, radius, pitch, ones_vec,
        )  # fmt: skip
        write_dx(
            space, origin + centre, sums, dy_ptr, rstd_ptr, dx_ptr, plane + row * width + column,
            num_rows, num_columns, pitch, width, factor, ones_vec,
        )  # fmt: skip


backward_task = task_of(backward)
