"""The backward pass over rows, for every dtype and every choice of gradients.

As in `rows_forward`, code for an argument that is None is left out at compile time. There are two
passes over each row, in `row_gradients`. Each block of rows has partial sums of the gradients of
gamma and beta. The number of blocks depends only on the shape, and the partial sums are added in
order at the end: see `gradient_sums`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from .compile import CALLED, INLINE, ONCE
from .gradient_sums import add_run, add_to, clear, empty_or_none, reduce_into
from .row_gradients import (
    Gradients,
    Source,
    gradient_lane_sums,
    gradient_sums_of_segments,
    horizontal_sums,
    load_dx_constants,
    write_dx,
    write_dx2,
    write_dx4,
)
from .row_passes import PREFETCH_BYTES
from .rows_forward import MAX_CACHED_ROW_BYTES
from .rows_where import backward_where
from .simd import (
    broadcast_like,
    lanes,
    ones,
    reduce_add4,
)
from .tasks import reducing_task_of
from .vector_memory import (
    data_pointer,
    elements_to_alignment,
    fence,
    load_broadcast,
    stack_alloc,
    store,
)

#: Largest row for which a block has four rows, else two. More would fit in L1, but then the next
#: rows would not be prefetched from memory during the second pass.
MAX_SHORT_ROW_BYTES = 1024
#: Smallest prefetch distance of the second pass, in bytes.
BACKWARD_PREFETCH_BYTES = 16 << 10
#: Numbers of scratch memory for four rows, so that a vector can be stored at the last.
ROOM = 32


@njit(**INLINE)
def lane_sums_of_row(source, n, mean, rstd, row, prefetch_distance, ones_vec):
    """Return `gradient_lane_sums` of a row, whose number is that of its statistics."""
    mu, r = load_broadcast(mean, row, ones_vec), load_broadcast(rstd, row, ones_vec)
    return gradient_lane_sums(source, n, mu, r, prefetch_distance)


@njit(**INLINE)
def gradient_sums4(source, n, mean, rstd, row, prefetch_distance, ones_vec):
    """Return the horizontal sums of four consecutive rows, each in a quarter of the lanes."""
    dy, x, offset, gamma, param = source
    a, aa, aaa = lane_sums_of_row(source, n, mean, rstd, row, prefetch_distance, ones_vec)
    b, bb, bbb = lane_sums_of_row(
        Source(dy, x, offset + n, gamma, param), n, mean, rstd, row + 1, prefetch_distance, ones_vec
    )
    c, cc, ccc = lane_sums_of_row(
        Source(dy, x, offset + 2 * n, gamma, param), n, mean, rstd, row + 2, prefetch_distance,
        ones_vec,
    )  # fmt: skip
    d, dd, ddd = lane_sums_of_row(
        Source(dy, x, offset + 3 * n, gamma, param), n, mean, rstd, row + 3, prefetch_distance,
        ones_vec,
    )  # fmt: skip
    return reduce_add4(a, b, c, d), reduce_add4(aa, bb, cc, dd), reduce_add4(aaa, bbb, ccc, ddd)


@njit(**ONCE)
def backward(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, non_temporal, start, stop,
    grad_offset, gamma_offset,
):  # fmt: skip
    """Process rows start to stop; store their sums for dgamma and dbeta from grad_offset on.

    Their parameters start at gamma_offset.
    """
    n, size = x.shape[1], x.itemsize
    dy_ptr, x_ptr = data_pointer(dy), data_pointer(x)
    gamma_ptr, dx_ptr = data_pointer(gamma), data_pointer(dx)
    dgamma_ptr, dbeta_ptr = data_pointer(dgamma), data_pointer(dbeta)
    mean_ptr, rstd_ptr = data_pointer(mean), data_pointer(rstd)
    ones_vec = ones(rstd)
    inv_count = broadcast_like(1.0 / n, ones_vec)
    sums_prefetch_distance = (
        PREFETCH_BYTES // size if non_temporal and n * size > MAX_CACHED_ROW_BYTES else 0
    )
    rows_per_block = 4 if n * size <= MAX_SHORT_ROW_BYTES else 2
    dx_prefetch_distance = (
        max(rows_per_block * n, BACKWARD_PREFETCH_BYTES // size)
        if non_temporal and not sums_prefetch_distance
        else 0
    )
    params_per_row = n if repeat is None else n // repeat
    clear(dgamma, grad_offset, groups * params_per_row)
    clear(dbeta, grad_offset, groups * params_per_row)
    # The numbers of four rows fill a vector.
    spacing = lanes(ones_vec) // 4
    d_means, g_means = stack_alloc(ones_vec, ROOM), stack_alloc(ones_vec, ROOM)
    projections = stack_alloc(ones_vec, ROOM)
    whole = repeat is None and groups == 1 and n % lanes(ones_vec) == 0
    for begin in range(start, stop, rows_per_block):
        count = min(rows_per_block, stop - begin)
        k = 0
        while k < count:
            row, rows_now = begin + k, 1
            param_offset = (row % groups) * params_per_row
            source = Source(dy_ptr, x_ptr, row * n, gamma_ptr, gamma_offset + param_offset)
            if whole and k + 4 <= count:
                rows_now = 4
                sum_d, sum_g, sum_g_x_hat = gradient_sums4(
                    source, n, mean_ptr, rstd_ptr, row, sums_prefetch_distance, ones_vec
                )
            elif repeat is None:
                lane_sums = lane_sums_of_row(
                    source, n, mean_ptr, rstd_ptr, row, sums_prefetch_distance, ones_vec
                )
                sum_d, sum_g, sum_g_x_hat = horizontal_sums(lane_sums)
            else:
                mu = load_broadcast(mean_ptr, row, ones_vec)
                r = load_broadcast(rstd_ptr, row, ones_vec)
                sum_d, sum_g, sum_g_x_hat = gradient_sums_of_segments(
                    source, repeat, params_per_row, mu, r
                )
            store(d_means, k * spacing, sum_d * inv_count)
            store(g_means, k * spacing, sum_g * inv_count)
            store(projections, k * spacing, sum_g_x_hat * inv_count)
            k += rows_now
        k = 0
        while k < count:
            row = begin + k
            param_offset = (row % groups) * params_per_row
            source = Source(dy_ptr, x_ptr, row * n, gamma_ptr, gamma_offset + param_offset)
            gradients = Gradients(dx_ptr, dgamma_ptr, dbeta_ptr, grad_offset + param_offset)
            row0 = load_dx_constants(
                mean_ptr, rstd_ptr, row, d_means, g_means, projections, k * spacing, ones_vec
            )
            if whole and k + 1 < count:
                rows_non_temporal = (
                    non_temporal and elements_to_alignment(dx_ptr, row * n, ones_vec) == 0
                )
                row1 = load_dx_constants(
                    mean_ptr, rstd_ptr, row + 1, d_means, g_means, projections, (k + 1) * spacing,
                    ones_vec,
                )  # fmt: skip
                if k + 3 < count:
                    row2 = load_dx_constants(
                        mean_ptr, rstd_ptr, row + 2, d_means, g_means, projections,
                        (k + 2) * spacing, ones_vec,
                    )  # fmt: skip
                    row3 = load_dx_constants(
                        mean_ptr, rstd_ptr, row + 3, d_means, g_means, projections,
                        (k + 3) * spacing, ones_vec,
                    )  # fmt: skip
                    rows = (row0, row1, row2, row3)
                    if rows_non_temporal:
                        write_dx4(source, n, rows, gradients, True, dx_prefetch_distance)
                    else:
                        write_dx4(source, n, rows, gradients, False, 0)
                    k += 3
                else:
                    if rows_non_temporal:
                        write_dx2(source, n, (row0, row1), gradients, True, dx_prefetch_distance)
                    else:
                        write_dx2(source, n, (row0, row1), gradients, False, 0)
                    k += 1
            elif repeat is None:
                write_dx(source, n, row0, gradients, non_temporal, dx_prefetch_distance)
            else:
                # No non-temporal stores: they need an alignment prologue, so the order of the sums
                # would depend on the address of the segment.
                for segment in range(params_per_row):
                    g = load_broadcast(gamma_ptr, source.param_offset + segment, ones_vec)
                    piece = Source(dy_ptr, x_ptr, row * n + segment * repeat, g, 0)
                    a, b = write_dx(piece, repeat, row0, Gradients(dx_ptr, None, None, 0), False, 0)
                    add_to(dgamma, grad_offset + param_offset + segment, a)
                    add_to(dbeta, grad_offset + param_offset + segment, b)
            k += 1


@njit(**INLINE)
def backward_of_run(
    dy, x, mean, rstd, gamma, mask, dx, dgamma, dbeta, groups, repeat, non_temporal, start, stop,
    grad_offset, gamma_offset,
):  # fmt: skip
    """Process rows start to stop, those of their elements that a mask has, unless it is None."""
    if mask is None:
        backward(
            dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, non_temporal, start, stop,
            grad_offset, gamma_offset,
        )  # fmt: skip
    else:
        backward_where(
            dy, x, mean, rstd, gamma, mask, dx, dgamma, dbeta, groups, repeat, non_temporal, start,
            stop, grad_offset, gamma_offset,
        )  # fmt: skip


class Block(NamedTuple):
    """Rows with common partial sums, and the rows of parameters that they have in turn."""

    start: Any
    stop: Any
    groups: Any
    param_row: Any
    """The first of them."""


@njit(**INLINE)
def block_of(index, m, groups, span, rows_per_block):
    """Return a block. Where a row of parameters has a span of rows, a block has one of them."""
    if span == 1:
        start = index * rows_per_block
        return Block(start, min(m, start + rows_per_block), groups, 0)
    blocks_per_span = -(-span // rows_per_block)
    param_row = index % groups
    outer, part = divmod(index // groups, blocks_per_span)
    begin = (outer * groups + param_row) * span
    start = begin + part * rows_per_block
    return Block(start, min(begin + span, start + rows_per_block), 1, param_row)


@njit(**CALLED)
def backward_blocks(
    dy, x, mean, rstd, gamma, mask, dx, dgamma, dbeta, groups, span, repeat, non_temporal,
    rows_per_block, rows_per_run, first, last,
):  # fmt: skip
    """Process blocks first to last (exclusive), each in runs of rows with sums of their own."""
    m, n = x.shape
    params_per_row = n if repeat is None else n // repeat
    parameters = params_per_row * (groups if span == 1 else 1)
    run_length = parameters if rows_per_block > rows_per_run else 0
    run_dgamma = empty_or_none(dgamma, run_length, rstd)
    run_dbeta = empty_or_none(dbeta, run_length, rstd)
    for index in range(first, last):
        block = block_of(index, m, groups, span, rows_per_block)
        gamma_offset, grad_offset = block.param_row * params_per_row, index * parameters
        for start in range(block.start, block.stop, rows_per_run):
            is_first = start == block.start
            backward_of_run(
                dy, x, mean, rstd, gamma, mask, dx, dgamma if is_first else run_dgamma,
                dbeta if is_first else run_dbeta, block.groups, repeat, non_temporal, start,
                min(start + rows_per_run, block.stop), grad_offset if is_first else 0, gamma_offset,
            )  # fmt: skip
            if not is_first:
                add_run(dgamma, grad_offset, run_dgamma, rstd)
                add_run(dbeta, grad_offset, run_dbeta, rstd)
    if non_temporal:
        fence()  # not after each block, since it waits for memory


@njit(**INLINE)
def reduce_several(sums, into):
    """Reduce partial sums into the gradient, unless there is one only, which is the gradient."""
    if sums is not None:
        partials = sums.size // into.size
        if partials > 1:
            reduce_into(sums, partials, into)


@njit(**INLINE)
def reduce_all(blocks, dgamma, dbeta, into_dgamma, into_dbeta):
    """Reduce the partial sums of all blocks; where these have rows of parameters, of each."""
    reduce_several(dgamma, into_dgamma)
    reduce_several(dbeta, into_dbeta)


backward_task = reducing_task_of(backward_blocks, reduce_all, withheld=(9, 11), reduced=(7, 11))
