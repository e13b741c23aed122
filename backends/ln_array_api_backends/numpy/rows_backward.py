"""The backward pass over rows, for every dtype and every choice of gradients.

As in `forward`, code for an argument that is None is left out at compile time. There are two passes
over each row. The first takes the sums that dx needs, and the residual of the rounded mean. The
second computes dx, and adds terms to the gradients of gamma and beta. Each block of rows has
partial sums of these gradients. The number of blocks depends only on the shape, and the partial
sums are added in order at the end: see `gradient_sums`.
"""

from __future__ import annotations

from numba import njit

from .atomics import increment
from .compile import CALLED, INLINE, ONCE
from .gradient_sums import (
    accumulate_params,
    accumulate_params2,
    accumulate_params4,
    add_run,
    add_to,
    clear,
    empty_or_none,
    put_first,
    reduce_partials,
)
from .row_passes import PREFETCH_BYTES, TERMS_PER_FLUSH, compensated_add
from .rows_forward import MAX_CACHED_ROW_BYTES
from .simd import (
    broadcast,
    fma,
    if_present,
    lanes,
    ones,
    range_scale,
    reduce_add,
    reduce_add4,
    scalar_like,
    zero_tail,
    zeros,
)
from .tasks import COUNT, FINISHED, arguments
from .vector_memory import (
    data_pointer,
    elements_to_alignment,
    fence,
    load,
    load_broadcast,
    load_masked,
    prefetch,
    stack_alloc,
    store,
    store_masked,
    store_non_temporal,
)

#: Largest row for which a block has four rows, else two. More would fit in L1, but then the next
#: rows would not be prefetched from memory during the second pass.
MAX_SHORT_ROW_BYTES = 1024
#: Smallest prefetch distance of the second pass, in bytes.
BACKWARD_PREFETCH_BYTES = 16 << 10
#: Numbers of scratch memory for four rows, so that a vector can be stored at the last.
ROOM = 32


@njit(**INLINE)
def deviation(x, mean):
    """Subtract the rounded mean."""
    return x if mean is None else x - mean


@njit(**INLINE)
def scaled_dy(dy, gamma, param_offset, count, addend):
    """Return dy * gamma + addend; gamma and addend may be None."""
    if gamma is None:
        return dy if addend is None else dy + addend
    g = (
        load(gamma, param_offset, dy)
        if count is None
        else load_masked(gamma, param_offset, count, dy)
    )
    return dy * g if addend is None else fma(dy, g, addend)


@njit(**INLINE)
def gradient_lane_sums(dy, x, x_offset, n, mean, rstd, gamma, param_offset, prefetch_distance):
    """Return lane sums of d, g and g * d * rstd over n elements: d is x - mean, g is dy * gamma.

    The first is the sum of d times `range_scale`, and not of d * rstd: for short rows, the rounding
    of these products would be visible in x_hat.
    """
    zero = zeros(rstd)
    scale, _ = range_scale(rstd)
    width = lanes(rstd)
    step = 2 * width
    sum_d, sum_g, sum_g_x_hat = zero, zero, zero
    comp_d, comp_g, comp_g_x_hat = zero, zero, zero
    j = 0
    while j + step <= n:
        end = min(n - step, j + (TERMS_PER_FLUSH - 1) * step)
        a, b, aa, bb, ab, ba = zero, zero, zero, zero, zero, zero
        while j <= end:
            if prefetch_distance:
                prefetch(x, x_offset + j + prefetch_distance)
                prefetch(dy, x_offset + j + prefetch_distance)
                prefetch(x, x_offset + j + prefetch_distance + width)
                prefetch(dy, x_offset + j + prefetch_distance + width)
            d = deviation(load(x, x_offset + j, rstd), mean)
            g = scaled_dy(load(dy, x_offset + j, rstd), gamma, param_offset + j, None, None)
            a, aa, ab = fma(d, scale, a), aa + g, fma(g, d * rstd, ab)
            d = deviation(load(x, x_offset + j + width, rstd), mean)
            g = scaled_dy(
                load(dy, x_offset + j + width, rstd), gamma, param_offset + j + width, None, None
            )
            b, bb, ba = fma(d, scale, b), bb + g, fma(g, d * rstd, ba)
            j += step
        if j <= TERMS_PER_FLUSH * step:
            sum_d, sum_g, sum_g_x_hat = a + b, aa + bb, ab + ba
        else:
            sum_d, comp_d = compensated_add(sum_d, comp_d, a + b)
            sum_g, comp_g = compensated_add(sum_g, comp_g, aa + bb)
            sum_g_x_hat, comp_g_x_hat = compensated_add(sum_g_x_hat, comp_g_x_hat, ab + ba)
    while j < n:
        count = min(width, n - j)
        d = zero_tail(deviation(load_masked(x, x_offset + j, count, rstd), mean), count)
        g = load_masked(dy, x_offset + j, count, rstd)
        g = zero_tail(scaled_dy(g, gamma, param_offset + j, count, None), count)
        sum_d, sum_g, sum_g_x_hat = fma(d, scale, sum_d), sum_g + g, fma(g, d * rstd, sum_g_x_hat)
        j += width
    return sum_d + comp_d, sum_g + comp_g, sum_g_x_hat + comp_g_x_hat


@njit(**INLINE)
def gradient_sums4(
    dy, x, x_offset, n, mean, rstd, row, gamma, param_offset, prefetch_distance, ones_vec
):
    """Return the horizontal sums of four consecutive rows, each in a quarter of the lanes."""
    m, r = load_broadcast(mean, row, ones_vec), load_broadcast(rstd, row, ones_vec)
    a, aa, aaa = gradient_lane_sums(
        dy, x, x_offset, n, m, r, gamma, param_offset, prefetch_distance
    )
    m, r = load_broadcast(mean, row + 1, ones_vec), load_broadcast(rstd, row + 1, ones_vec)
    b, bb, bbb = gradient_lane_sums(
        dy, x, x_offset + n, n, m, r, gamma, param_offset, prefetch_distance
    )
    m, r = load_broadcast(mean, row + 2, ones_vec), load_broadcast(rstd, row + 2, ones_vec)
    c, cc, ccc = gradient_lane_sums(
        dy, x, x_offset + 2 * n, n, m, r, gamma, param_offset, prefetch_distance
    )
    m, r = load_broadcast(mean, row + 3, ones_vec), load_broadcast(rstd, row + 3, ones_vec)
    d, dd, ddd = gradient_lane_sums(
        dy, x, x_offset + 3 * n, n, m, r, gamma, param_offset, prefetch_distance
    )
    return reduce_add4(a, b, c, d), reduce_add4(aa, bb, cc, dd), reduce_add4(aaa, bbb, ccc, ddd)


@njit(**INLINE)
def gradient_sums_of_segments(
    dy, x, x_offset, n, segments, mean, rstd, gamma, param_offset, ones_vec
):
    """Return the broadcast sums of a row of segments of n elements, each with one gamma."""
    zero = zeros(ones_vec)
    sum_d, sum_g, sum_g_x_hat = zero, zero, zero
    comp_d, comp_g, comp_g_x_hat = zero, zero, zero
    for segment in range(segments):
        g = load_broadcast(gamma, param_offset + segment, ones_vec)
        a, b, c = gradient_lane_sums(dy, x, x_offset + segment * n, n, mean, rstd, g, 0, 0)
        sum_d, comp_d = compensated_add(sum_d, comp_d, broadcast(reduce_add(a)))
        sum_g, comp_g = compensated_add(sum_g, comp_g, broadcast(reduce_add(b)))
        sum_g_x_hat, comp_g_x_hat = compensated_add(
            sum_g_x_hat, comp_g_x_hat, broadcast(reduce_add(c))
        )
    return sum_d + comp_d, sum_g + comp_g, sum_g_x_hat + comp_g_x_hat


@njit(**INLINE)
def dx_vector(dy, x, i, count, row_constants, gamma, param_offset, dx, non_temporal):
    """Write dx for a vector from element i on, or for `count` elements; return dy and x_hat.

    `non_temporal` is None for ordinary stores.
    """
    mean, rstd, x_hat_correction, neg_mean_g, neg_projection = row_constants
    if count is None:
        v, d = load(x, i, rstd), load(dy, i, rstd)
    else:
        v, d = load_masked(x, i, count, rstd), load_masked(dy, i, count, rstd)
    x_hat = exact_x_hat(v, mean, rstd, x_hat_correction)
    if dx is not None:
        v = fma(x_hat, neg_projection, scaled_dy(d, gamma, param_offset, count, neg_mean_g)) * rstd
        if count is not None:
            store_masked(dx, i, v, count)
        elif non_temporal is not None:
            store_non_temporal(dx, i, v)
        else:
            store(dx, i, v)
    return d, x_hat


@njit(**INLINE)
def exact_x_hat(x, mean, rstd, x_hat_correction):
    """Return x_hat, corrected for the residual of the rounded mean."""
    if mean is None:
        return x * rstd
    return fma(x - mean, rstd, x_hat_correction)


@njit(**INLINE)
def write_dx(
    dy, x, x_offset, n, row_constants, gamma, param_offset, dx, dgamma, dbeta, grad_offset,
    non_temporal, prefetch_distance,
):  # fmt: skip
    """Write dx for n elements, and add the terms of dgamma and dbeta to sums from grad_offset on.

    Without non-temporal stores, also return the sums of these terms.
    """
    rstd = row_constants[1]
    width = lanes(rstd)
    dgamma_acc, dbeta_acc = zeros(rstd), zeros(rstd)
    dgamma_comp, dbeta_comp = zeros(rstd), zeros(rstd)
    j = 0
    if non_temporal:
        count = min(elements_to_alignment(dx, x_offset, rstd), n)
        if count:
            d, x_hat = dx_vector(
                dy, x, x_offset, count, row_constants, gamma, param_offset, dx, None
            )
            accumulate_params(d, x_hat, dgamma, dbeta, grad_offset, count)
            j = count
        while j + width <= n:
            if prefetch_distance:
                prefetch(x, x_offset + j + prefetch_distance)
                prefetch(dy, x_offset + j + prefetch_distance)
            d, x_hat = dx_vector(
                dy, x, x_offset + j, None, row_constants, gamma, param_offset + j, dx, True
            )
            accumulate_params(d, x_hat, dgamma, dbeta, grad_offset + j, None)
            j += width
    else:
        while j + width <= n:
            end = min(n - width, j + (TERMS_PER_FLUSH - 1) * width)
            run_dgamma, run_dbeta = zeros(rstd), zeros(rstd)
            while j <= end:
                d, x_hat = dx_vector(
                    dy, x, x_offset + j, None, row_constants, gamma, param_offset + j, dx, None
                )
                accumulate_params(d, x_hat, dgamma, dbeta, grad_offset + j, None)
                run_dgamma, run_dbeta = fma(d, x_hat, run_dgamma), run_dbeta + d
                j += width
            dgamma_acc, dgamma_comp = compensated_add(dgamma_acc, dgamma_comp, run_dgamma)
            dbeta_acc, dbeta_comp = compensated_add(dbeta_acc, dbeta_comp, run_dbeta)
    if j < n:
        d, x_hat = dx_vector(
            dy, x, x_offset + j, n - j, row_constants, gamma, param_offset + j, dx, None
        )
        accumulate_params(d, x_hat, dgamma, dbeta, grad_offset + j, n - j)
        dgamma_acc, dbeta_acc = dgamma_acc + zero_tail(d * x_hat, n - j), dbeta_acc + d
    return reduce_add(dgamma_acc + dgamma_comp), reduce_add(dbeta_acc + dbeta_comp)


@njit(**INLINE)
def write_dx2(
    dy, x, x_offset, n, row0, row1, gamma, param_offset, dx, dgamma, dbeta, grad_offset,
    non_temporal, prefetch_distance,
):  # fmt: skip
    """Do what `write_dx` does for two consecutive rows of whole vectors."""
    width = lanes(row0[1])
    if non_temporal:
        for j in range(0, n, width):
            if prefetch_distance:
                prefetch(x, x_offset + j + prefetch_distance)
                prefetch(dy, x_offset + j + prefetch_distance)
                prefetch(x, x_offset + n + j + prefetch_distance)
                prefetch(dy, x_offset + n + j + prefetch_distance)
            d0, x_hat0 = dx_vector(
                dy, x, x_offset + j, None, row0, gamma, param_offset + j, dx, True
            )
            d1, x_hat1 = dx_vector(
                dy, x, x_offset + n + j, None, row1, gamma, param_offset + j, dx, True
            )
            accumulate_params2(d0, x_hat0, d1, x_hat1, dgamma, dbeta, grad_offset + j)
    else:
        for j in range(0, n, width):
            d0, x_hat0 = dx_vector(
                dy, x, x_offset + j, None, row0, gamma, param_offset + j, dx, None
            )
            d1, x_hat1 = dx_vector(
                dy, x, x_offset + n + j, None, row1, gamma, param_offset + j, dx, None
            )
            accumulate_params2(d0, x_hat0, d1, x_hat1, dgamma, dbeta, grad_offset + j)


@njit(**INLINE)
def write_dx4(
    dy, x, x_offset, n, rows, gamma, param_offset, dx, dgamma, dbeta, grad_offset, non_temporal,
    prefetch_distance,
):  # fmt: skip
    """Do what `write_dx2` does for four rows."""
    row0, row1, row2, row3 = rows
    width = lanes(row0[1])
    if non_temporal:
        for j in range(0, n, width):
            if prefetch_distance:
                for k in range(4):
                    prefetch(x, x_offset + k * n + j + prefetch_distance)
                    prefetch(dy, x_offset + k * n + j + prefetch_distance)
            d0, x_hat0 = dx_vector(
                dy, x, x_offset + j, None, row0, gamma, param_offset + j, dx, True
            )
            d1, x_hat1 = dx_vector(
                dy, x, x_offset + n + j, None, row1, gamma, param_offset + j, dx, True
            )
            d2, x_hat2 = dx_vector(
                dy, x, x_offset + 2 * n + j, None, row2, gamma, param_offset + j, dx, True
            )
            d3, x_hat3 = dx_vector(
                dy, x, x_offset + 3 * n + j, None, row3, gamma, param_offset + j, dx, True
            )
            accumulate_params4(
                d0, x_hat0, d1, x_hat1, d2, x_hat2, d3, x_hat3, dgamma, dbeta, grad_offset + j
            )
    else:
        for j in range(0, n, width):
            d0, x_hat0 = dx_vector(
                dy, x, x_offset + j, None, row0, gamma, param_offset + j, dx, None
            )
            d1, x_hat1 = dx_vector(
                dy, x, x_offset + n + j, None, row1, gamma, param_offset + j, dx, None
            )
            d2, x_hat2 = dx_vector(
                dy, x, x_offset + 2 * n + j, None, row2, gamma, param_offset + j, dx, None
            )
            d3, x_hat3 = dx_vector(
                dy, x, x_offset + 3 * n + j, None, row3, gamma, param_offset + j, dx, None
            )
            accumulate_params4(
                d0, x_hat0, d1, x_hat1, d2, x_hat2, d3, x_hat3, dgamma, dbeta, grad_offset + j
            )


@njit(**INLINE)
def load_dx_constants(mean, rstd, row, d_means, g_means, projections, index, ones_vec):
    """Load the constants of the second pass over a row, as vectors.

    They are mean, rstd, x_hat_correction, -mean(g) and -projection. The correction subtracts the
    residual of the rounded mean from x_hat.
    """
    zero = zeros(ones_vec)
    r = load_broadcast(rstd, row, ones_vec)
    _, unscale = range_scale(r)
    x_hat_correction = zero - load_broadcast(d_means, index, ones_vec) * (r * unscale)
    neg_mean_g = zero - load_broadcast(g_means, index, ones_vec)
    neg_projection = zero - load_broadcast(projections, index, ones_vec)
    if mean is not None:
        neg_projection = fma(x_hat_correction, neg_mean_g, neg_projection)
    return (
        load_broadcast(mean, row, ones_vec),
        r,
        if_present(mean, x_hat_correction),
        if_present(mean, neg_mean_g),
        neg_projection,
    )


@njit(**ONCE)
def backward(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, non_temporal, start, stop,
    grad_offset,
):  # fmt: skip
    """Process rows start to stop; store their sums for dgamma and dbeta from grad_offset on."""
    n, size = x.shape[1], x.itemsize
    dy_ptr, x_ptr = data_pointer(dy), data_pointer(x)
    gamma_ptr, dx_ptr = data_pointer(gamma), data_pointer(dx)
    dgamma_ptr, dbeta_ptr = data_pointer(dgamma), data_pointer(dbeta)
    mean_ptr, rstd_ptr = data_pointer(mean), data_pointer(rstd)
    ones_vec = ones(rstd)
    inv_count = broadcast(scalar_like(1.0 / n, ones_vec))
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
    parameters = groups * params_per_row
    clear(dgamma, grad_offset, parameters)
    clear(dbeta, grad_offset, parameters)
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
            x_offset, param_offset = row * n, (row % groups) * params_per_row
            mu, r = load_broadcast(mean_ptr, row, ones_vec), load_broadcast(rstd_ptr, row, ones_vec)
            if whole and k + 4 <= count:
                rows_now = 4
                sum_d, sum_g, sum_g_x_hat = gradient_sums4(
                    dy_ptr, x_ptr, x_offset, n, mean_ptr, rstd_ptr, row, gamma_ptr, param_offset,
                    sums_prefetch_distance, ones_vec,
                )  # fmt: skip
            elif repeat is None:
                a, b, c = gradient_lane_sums(
                    dy_ptr, x_ptr, x_offset, n, mu, r, gamma_ptr, param_offset,
                    sums_prefetch_distance,
                )  # fmt: skip
                sum_d, sum_g = broadcast(reduce_add(a)), broadcast(reduce_add(b))
                sum_g_x_hat = broadcast(reduce_add(c))
            else:
                sum_d, sum_g, sum_g_x_hat = gradient_sums_of_segments(
                    dy_ptr, x_ptr, x_offset, repeat, params_per_row, mu, r, gamma_ptr, param_offset,
                    ones_vec,
                )  # fmt: skip
            store(d_means, k * spacing, sum_d * inv_count)
            store(g_means, k * spacing, sum_g * inv_count)
            store(projections, k * spacing, sum_g_x_hat * inv_count)
            k += rows_now
        k = 0
        while k < count:
            row = begin + k
            x_offset, param_offset = row * n, (row % groups) * params_per_row
            row0 = load_dx_constants(
                mean_ptr, rstd_ptr, row, d_means, g_means, projections, k * spacing, ones_vec
            )
            if whole and k + 1 < count:
                rows_non_temporal = (
                    non_temporal and elements_to_alignment(dx_ptr, x_offset, ones_vec) == 0
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
                    write_dx4(
                        dy_ptr, x_ptr, x_offset, n, (row0, row1, row2, row3), gamma_ptr,
                        param_offset, dx_ptr, dgamma_ptr, dbeta_ptr, grad_offset + param_offset,
                        rows_non_temporal, dx_prefetch_distance,
                    )  # fmt: skip
                    k += 3
                else:
                    write_dx2(
                        dy_ptr, x_ptr, x_offset, n, row0, row1, gamma_ptr, param_offset, dx_ptr,
                        dgamma_ptr, dbeta_ptr, grad_offset + param_offset, rows_non_temporal,
                        dx_prefetch_distance,
                    )  # fmt: skip
                    k += 1
            elif repeat is None:
                write_dx(
                    dy_ptr, x_ptr, x_offset, n, row0, gamma_ptr, param_offset, dx_ptr, dgamma_ptr,
                    dbeta_ptr, grad_offset + param_offset, non_temporal, dx_prefetch_distance,
                )  # fmt: skip
            else:
                # No non-temporal stores: they need an alignment prologue, so the order of the sums
                # would depend on the address of the segment.
                for segment in range(params_per_row):
                    g = load_broadcast(gamma_ptr, param_offset + segment, ones_vec)
                    a, b = write_dx(
                        dy_ptr, x_ptr, x_offset + segment * repeat, repeat, row0, g, 0, dx_ptr,
                        None, None, 0, False, 0,
                    )  # fmt: skip
                    add_to(dgamma, grad_offset + param_offset + segment, a)
                    add_to(dbeta, grad_offset + param_offset + segment, b)
            k += 1


@njit(**CALLED)
def backward_blocks(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, non_temporal, rows_per_block,
    rows_per_run, first, last,
):  # fmt: skip
    """Process blocks first to last (exclusive), each in runs of rows with sums of their own."""
    m, n = x.shape
    parameters = groups * (n if repeat is None else n // repeat)
    run_length = parameters if rows_per_block > rows_per_run else 0
    run_dgamma, run_dbeta = empty_or_none(dgamma, run_length), empty_or_none(dbeta, run_length)
    for block in range(first, last):
        begin, end = block * rows_per_block, min(m, (block + 1) * rows_per_block)
        grad_offset = block * parameters
        for start in range(begin, end, rows_per_run):
            is_first = start == begin
            backward(
                dy, x, mean, rstd, gamma, dx, dgamma if is_first else run_dgamma,
                dbeta if is_first else run_dbeta, groups, repeat, non_temporal, start,
                min(start + rows_per_run, end), grad_offset if is_first else 0,
            )  # fmt: skip
            if not is_first:
                add_run(dgamma, grad_offset, run_dgamma, rstd)
                add_run(dbeta, grad_offset, run_dbeta, rstd)
    if non_temporal:
        fence()  # not after each block, since it waits for memory


def backward_task(kinds):
    """All blocks as a task. The thread that finishes the last part reduces the partial sums."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        backward_blocks(*(given[:8] + given[10:]))
        num_blocks = words[COUNT]
        if increment(words, FINISHED) == num_parts - 1 and num_blocks > 1:
            reduce_partials(given[6], num_blocks)
            reduce_partials(given[7], num_blocks)
            put_first(given[6], given[8])
            put_first(given[7], given[9])

    return task
