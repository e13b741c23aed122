"""Dynamic tanh, y = tanh(alpha * x) * gamma + beta, and its gradients, for every dtype.

As in `rows_forward`, code for an argument that is None is left out at compile time. The operation
is elementwise, so x is split to fit the parameters: into rows of equal length (the last may be
shorter), and these into segments. A row has one element of gamma and beta, or one for each column.
A part of a task is a range of segments. There are partial sums for each segment, or for each column
of a block of rows. The thread that finishes last adds them up in order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from .column_sums import flush_sums, reduce_blocks
from .compile import CALLED, INLINE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .elementary import tanh, tanh_and_slope
from .gradient_sums import clear
from .row_gradients import scaled_dy
from .row_passes import apply_affine, compensated_add, with_compensation
from .simd import lanes, ones, reduce_add, zero_tail
from .tasks import reducing_task_of, task_of
from .vector_memory import (
    data_pointer,
    elements_to_alignment,
    fence,
    load_broadcast,
    load_vector,
    store_masked,
    store_vector,
)


class Segment(NamedTuple):
    """A piece of x, the vector alpha, and gamma and beta as in `row_passes.Row`."""

    x: Any
    x_offset: Any
    alpha: Any
    gamma: Any
    beta: Any
    param_offset: Any


@njit(**INLINE)
def y_vector(segment, j, count):
    """Return y of a vector from element j of a segment on, or of `count` elements."""
    x = load_vector(segment.x, segment.x_offset + j, count, segment.alpha)
    values = tanh(x * segment.alpha)
    return apply_affine(values, segment.gamma, segment.beta, segment.param_offset + j, count)


@njit(**INLINE)
def write_segment(segment, y, n, non_temporal):
    """Write y of a segment; one loop for both kinds of stores is faster than `write_row` here."""
    y_offset, width = segment.x_offset, lanes(segment.alpha)
    j = 0
    if non_temporal:
        j = min(elements_to_alignment(y, y_offset, segment.alpha), n)
        if j:
            store_masked(y, y_offset, y_vector(segment, 0, j), j)
    while j + width <= n:
        store_vector(y, y_offset + j, y_vector(segment, j, None), None, non_temporal)
        j += width
    if j < n:
        store_masked(y, y_offset + j, y_vector(segment, j, n - j), n - j)


@njit(**INLINE)
def segment_bounds(i, size, length, segment):
    """Return the row of a segment, its offsets in the row and in x, and its length."""
    segments = -(-length // segment)
    row, left = i // segments, i % segments * segment
    x_offset = row * length + left
    return row, left, x_offset, min(segment, length - left, size - x_offset)


@njit(**CALLED)
def forward(x, alpha, gamma, beta, y, length, segment, parameters, non_temporal, start, stop):
    """Process segments start to stop. `parameters` is None if each column has a parameter."""
    x_ptr, y_ptr = data_pointer(x), data_pointer(y)
    gamma_ptr, beta_ptr = data_pointer(gamma), data_pointer(beta)
    alpha_vec = load_broadcast(data_pointer(alpha), 0, ones(x))
    for i in range(start, stop):
        row, left, x_offset, n = segment_bounds(i, x.size, length, segment)
        if parameters is None:
            current = Segment(x_ptr, x_offset, alpha_vec, gamma_ptr, beta_ptr, left)
            write_segment(current, y_ptr, n, non_temporal)
        else:
            param = row % parameters
            g = load_broadcast(gamma_ptr, param, alpha_vec)
            b = load_broadcast(beta_ptr, param, alpha_vec)
            current = Segment(x_ptr, x_offset, alpha_vec, g, b, 0)
            write_segment(current, y_ptr, n, non_temporal)
    if non_temporal:
        fence()


@njit(**INLINE)
def dx_vector(dy, segment, j, count, dx, non_temporal):
    """Write dx of a vector from element j of a segment on, or of `count` elements.

    Returns the terms of dbeta, dgamma and dalpha.
    """
    i, alpha = segment.x_offset + j, segment.alpha
    v, d = load_vector(segment.x, i, count, alpha), load_vector(dy, i, count, alpha)
    t, slope = tanh_and_slope(v * alpha)
    g = scaled_dy(d, segment.gamma, segment.param_offset + j, count, None)
    dgamma_terms, dalpha_terms = d * t, g * (slope * v)
    if dx is not None:
        store_vector(dx, i, g * (slope * alpha), count, non_temporal)
    if count is not None:  # 0 * inf is NaN if gamma or alpha is infinite
        dgamma_terms, dalpha_terms = zero_tail(dgamma_terms, count), zero_tail(dalpha_terms, count)
    return d, dgamma_terms, dalpha_terms


@njit(**INLINE)
def dx_terms(dy, segment, j, n, dx, non_temporal):
    """Call `dx_vector` for a whole vector, or for the rest of a segment of n elements."""
    if j + lanes(segment.alpha) <= n:
        return dx_vector(dy, segment, j, None, dx, non_temporal)
    return dx_vector(dy, segment, j, n - j, dx, non_temporal)


@njit(**INLINE)
def can_use_non_temporal(dx, x_offset, non_temporal, like):
    """Return whether a segment of dx is aligned; a prologue would change the order of sums."""
    return non_temporal and elements_to_alignment(dx, x_offset, like) == 0


@njit(**INLINE)
def store_sum(into, i, sums, rest, like):
    """Store the sum over the lanes of a float64 pair of vectors, unless `into` is None."""
    if into is not None:
        into[i] = reduce_add(sum_in_float64(sums, rest, like))


@njit(**INLINE)
def flush_if_present(sums, compensation, i, values):
    """Call `flush_sums` unless sums is None."""
    if sums is not None:
        flush_sums(sums, compensation, i, values)


@njit(**CALLED)
def backward(
    dy, x, alpha, gamma, dx, dalpha, dgamma, dbeta, length, segment, parameters, non_temporal,
    start, stop,
):  # fmt: skip
    """Process segments start to stop of rows with one parameter; take their sums in float64."""
    dy_ptr, x_ptr = data_pointer(dy), data_pointer(x)
    gamma_ptr, dx_ptr = data_pointer(gamma), data_pointer(dx)
    alpha_vec = load_broadcast(data_pointer(alpha), 0, ones(x))
    zero, width = zeros_float64(alpha_vec), lanes(alpha_vec)
    for i in range(start, stop):
        row, _, x_offset, n = segment_bounds(i, x.size, length, segment)
        g = load_broadcast(gamma_ptr, row % parameters, alpha_vec)
        segment_non_temporal = can_use_non_temporal(dx_ptr, x_offset, non_temporal, alpha_vec)
        current = Segment(x_ptr, x_offset, alpha_vec, g, None, 0)
        a, b, c, rest_a, rest_b, rest_c = zero, zero, zero, zero, zero, zero
        j = 0
        while j < n:
            aa, bb, cc = dx_terms(dy_ptr, current, j, n, dx_ptr, segment_non_temporal)
            a, rest_a = accumulate(a, rest_a, aa)
            b, rest_b = accumulate(b, rest_b, bb)
            c, rest_c = accumulate(c, rest_c, cc)
            j += width
        store_sum(dbeta, i, a, rest_a, alpha_vec)
        store_sum(dgamma, i, b, rest_b, alpha_vec)
        store_sum(dalpha, i, c, rest_c, alpha_vec)
    if non_temporal:
        fence()


@njit(**CALLED)
def backward_of_columns(
    dy, x, alpha, gamma, dx, dalpha, dgamma, dgamma_comp, dbeta, dbeta_comp, length, padded,
    segment, rows, non_temporal, start, stop,
):  # fmt: skip
    """Process segments start to stop of blocks of rows, with a parameter for each column.

    A block has `padded` sums for gamma and for beta, and each of its segments has a sum for alpha.
    """
    dy_ptr, x_ptr = data_pointer(dy), data_pointer(x)
    gamma_ptr, dx_ptr = data_pointer(gamma), data_pointer(dx)
    dgamma_ptr, dgamma_comp_ptr = data_pointer(dgamma), data_pointer(dgamma_comp)
    dbeta_ptr, dbeta_comp_ptr = data_pointer(dbeta), data_pointer(dbeta_comp)
    alpha_vec = load_broadcast(data_pointer(alpha), 0, ones(x))
    zero, width = zeros_float64(alpha_vec), lanes(alpha_vec)
    end = -(-x.size // length)
    for i in range(start, stop):
        block, left, _, _ = segment_bounds(i, x.size, length, segment)
        sums_offset = block * padded + left
        clear(dgamma, sums_offset, min(segment, padded - left))
        clear(dgamma_comp, sums_offset, min(segment, padded - left))
        clear(dbeta, sums_offset, min(segment, padded - left))
        clear(dbeta_comp, sums_offset, min(segment, padded - left))
        c, rest = zero, zero
        for row in range(block * rows, min(end, (block + 1) * rows)):
            x_offset = row * length + left
            n = min(segment, length - left, x.size - x_offset)
            segment_non_temporal = can_use_non_temporal(dx_ptr, x_offset, non_temporal, alpha_vec)
            current = Segment(x_ptr, x_offset, alpha_vec, gamma_ptr, None, left)
            j = 0
            while j < n:
                aa, bb, cc = dx_terms(dy_ptr, current, j, n, dx_ptr, segment_non_temporal)
                flush_if_present(dbeta_ptr, dbeta_comp_ptr, sums_offset + j, aa)
                flush_if_present(dgamma_ptr, dgamma_comp_ptr, sums_offset + j, bb)
                c, rest = accumulate(c, rest, cc)
                j += width
        store_sum(dalpha, i, c, rest, alpha_vec)
    if non_temporal:
        fence()


@njit(**INLINE)
def reduce_to_parameters(sums, size, trail, into):
    """Add up the first `size` sums for each parameter; `trail` adjacent sums share a parameter."""
    for parameter in range(into.size):
        sum_, compensation = 0.0, 0.0
        for first in range(parameter * trail, size, into.size * trail):
            for i in range(first, first + trail):
                sum_, compensation = compensated_add(sum_, compensation, sums[i])
        into[parameter] = with_compensation(sum_, compensation)


@njit(**INLINE)
def reduce_segments(sums, segments, into):
    """Reduce the sums of all segments; a row has `segments` segments."""
    if into is not None:
        reduce_to_parameters(sums, sums.size, segments, into)


@njit(**INLINE)
def reduce_columns(sums, compensation, padded, length, repeat, into):
    """Reduce the sums of the columns of all blocks; `repeat` columns share a parameter."""
    if into is not None:
        reduce_blocks(sums, compensation, padded)
        reduce_to_parameters(sums, length, repeat, into)


@njit(**CALLED)
def reduce_all(count, dalpha, dgamma, dbeta, into_dalpha, into_dgamma, into_dbeta, length, segment):
    """Reduce the partial sums of `backward`, for `count` segments."""
    segments = -(-length // segment)
    reduce_segments(dalpha, 1, into_dalpha)
    reduce_segments(dgamma, segments, into_dgamma)
    reduce_segments(dbeta, segments, into_dbeta)


@njit(**CALLED)
def reduce_all_columns(
    count, dalpha, dgamma, dgamma_comp, dbeta, dbeta_comp, into_dalpha, into_dgamma, into_dbeta,
    repeat, length, padded,
):  # fmt: skip
    """Reduce the partial sums of `backward_of_columns`, for `count` segments of blocks."""
    reduce_segments(dalpha, 1, into_dalpha)
    reduce_columns(dgamma, dgamma_comp, padded, length, repeat, into_dgamma)
    reduce_columns(dbeta, dbeta_comp, padded, length, repeat, into_dbeta)


forward_task = task_of(forward)
backward_task = reducing_task_of(backward, reduce_all, withheld=(8, 11), reduced=(5, 13))
backward_of_columns_task = reducing_task_of(
    backward_of_columns, reduce_all_columns, withheld=(10, 14), reduced=(5, 16)
)
