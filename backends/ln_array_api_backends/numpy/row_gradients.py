"""Backward passes over the elements of a row, or of a piece of one.

The first takes the sums that dx needs, and the residual of the rounded mean. The second computes
dx, and adds terms to the gradients of gamma and beta. As in `row_passes`, code for an argument that
is None is left out at compile time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from .compile import INLINE
from .gradient_sums import accumulate_params, accumulate_params2, accumulate_params4
from .row_passes import TERMS_PER_FLUSH, compensated_add
from .simd import broadcast, fma, if_present, lanes, range_scale, reduce_add, zero_tail, zeros
from .vector_memory import (
    elements_to_alignment,
    load_broadcast,
    load_vector,
    prefetch,
    store_vector,
)


class Source(NamedTuple):
    """Pointers to dy and x from element `offset` on, and to gamma from `param_offset` on.

    Gamma is a vector if all elements have the same, or None.
    """

    dy: Any
    x: Any
    offset: Any
    gamma: Any
    param_offset: Any


class Gradients(NamedTuple):
    """Pointers to dx, and to the sums for gamma and beta from element `offset` on, or None.

    dx has the offset of its `Source`.
    """

    dx: Any
    dgamma: Any
    dbeta: Any
    offset: Any


class DxConstants(NamedTuple):
    """Vectors by which dx is computed; g is dy * gamma. For RMS norm, those of means are None."""

    mean: Any
    rstd: Any
    x_hat_correction: Any
    """Minus the residual of the rounded mean, in units of x_hat."""
    neg_mean_g: Any
    neg_projection: Any


@njit(**INLINE)
def deviation(x, mean):
    """Subtract the rounded mean."""
    return x if mean is None else x - mean


@njit(**INLINE)
def scaled_dy(dy, gamma, param_offset, count, addend):
    """Return dy * gamma + addend; gamma and addend may be None."""
    if gamma is None:
        return dy if addend is None else dy + addend
    g = load_vector(gamma, param_offset, count, dy)
    return dy * g if addend is None else fma(dy, g, addend)


@njit(**INLINE)
def exact_x_hat(x, mean, rstd, x_hat_correction):
    """Return x_hat, corrected for the residual of the rounded mean."""
    if mean is None:
        return x * rstd
    return fma(x - mean, rstd, x_hat_correction)


@njit(**INLINE)
def prefetch_source(source, j):
    """Prefetch x and dy from element j on."""
    prefetch(source.x, source.offset + j)
    prefetch(source.dy, source.offset + j)


@njit(**INLINE)
def load_terms(source, j, count, mean, like):
    """Load d = x - mean and g = dy * gamma from element j on; `count` is None for all lanes."""
    d = deviation(load_vector(source.x, source.offset + j, count, like), mean)
    g = load_vector(source.dy, source.offset + j, count, like)
    return d, scaled_dy(g, source.gamma, source.param_offset + j, count, None)


@njit(**INLINE)
def gradient_lane_sums(source, n, mean, rstd, prefetch_distance):
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
                prefetch_source(source, j + prefetch_distance)
                prefetch_source(source, j + prefetch_distance + width)
            d, g = load_terms(source, j, None, mean, rstd)
            a, aa, ab = fma(d, scale, a), aa + g, fma(g, d * rstd, ab)
            d, g = load_terms(source, j + width, None, mean, rstd)
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
        d, g = load_terms(source, j, count, mean, rstd)
        d, g = zero_tail(d, count), zero_tail(g, count)
        sum_d, sum_g, sum_g_x_hat = fma(d, scale, sum_d), sum_g + g, fma(g, d * rstd, sum_g_x_hat)
        j += width
    return sum_d + comp_d, sum_g + comp_g, sum_g_x_hat + comp_g_x_hat


@njit(**INLINE)
def horizontal_sums(lane_sums):
    """Return the sums over all lanes of three vectors, each in every lane."""
    a, b, c = lane_sums
    return broadcast(reduce_add(a)), broadcast(reduce_add(b)), broadcast(reduce_add(c))


@njit(**INLINE)
def gradient_sums_of_segments(source, n, segments, mean, rstd):
    """Return the broadcast sums of a row of segments of n elements, each with one gamma."""
    zero = zeros(rstd)
    sum_d, sum_g, sum_g_x_hat = zero, zero, zero
    comp_d, comp_g, comp_g_x_hat = zero, zero, zero
    for segment in range(segments):
        g = load_broadcast(source.gamma, source.param_offset + segment, rstd)
        piece = Source(source.dy, source.x, source.offset + segment * n, g, 0)
        a, b, c = horizontal_sums(gradient_lane_sums(piece, n, mean, rstd, 0))
        sum_d, comp_d = compensated_add(sum_d, comp_d, a)
        sum_g, comp_g = compensated_add(sum_g, comp_g, b)
        sum_g_x_hat, comp_g_x_hat = compensated_add(sum_g_x_hat, comp_g_x_hat, c)
    return sum_d + comp_d, sum_g + comp_g, sum_g_x_hat + comp_g_x_hat


@njit(**INLINE)
def load_dx_constants(mean, rstd, row, d_means, g_means, projections, index, ones_vec):
    """Load the constants of the second pass over a row, from its means at an index."""
    zero = zeros(ones_vec)
    r = load_broadcast(rstd, row, ones_vec)
    _, unscale = range_scale(r)
    x_hat_correction = zero - load_broadcast(d_means, index, ones_vec) * (r * unscale)
    neg_mean_g = zero - load_broadcast(g_means, index, ones_vec)
    neg_projection = zero - load_broadcast(projections, index, ones_vec)
    if mean is not None:
        neg_projection = fma(x_hat_correction, neg_mean_g, neg_projection)
    return DxConstants(
        load_broadcast(mean, row, ones_vec),
        r,
        if_present(mean, x_hat_correction),
        if_present(mean, neg_mean_g),
        neg_projection,
    )


@njit(**INLINE)
def dx_vector(source, i, j, count, constants, dx, non_temporal):
    """Write dx of a vector, or of its first lanes if `count` is not None; return dy and x_hat.

    i is the index of the element after the offset of the source, j that of its parameter.
    """
    rstd = constants.rstd
    v = load_vector(source.x, source.offset + i, count, rstd)
    d = load_vector(source.dy, source.offset + i, count, rstd)
    x_hat = exact_x_hat(v, constants.mean, rstd, constants.x_hat_correction)
    if dx is not None:
        g = scaled_dy(d, source.gamma, source.param_offset + j, count, constants.neg_mean_g)
        values = fma(x_hat, constants.neg_projection, g) * rstd
        store_vector(dx, source.offset + i, values, count, non_temporal)
    return d, x_hat


@njit(**INLINE)
def add_dx_vector(source, j, count, constants, gradients, non_temporal):
    """Do what `dx_vector` does; add the terms of dgamma and dbeta to the sums of their elements."""
    d, x_hat = dx_vector(source, j, j, count, constants, gradients.dx, non_temporal)
    offset = gradients.offset + j
    accumulate_params(d, x_hat, gradients.dgamma, gradients.dbeta, offset, count)
    return d, x_hat


@njit(**INLINE)
def write_dx(source, n, constants, gradients, non_temporal, prefetch_distance):
    """Write dx for n elements, and add the terms of dgamma and dbeta to their sums.

    Without non-temporal stores, also return the sums of these terms over all elements.
    """
    rstd = constants.rstd
    width = lanes(rstd)
    dgamma_acc, dbeta_acc = zeros(rstd), zeros(rstd)
    dgamma_comp, dbeta_comp = zeros(rstd), zeros(rstd)
    j = 0
    if non_temporal:
        j = min(elements_to_alignment(gradients.dx, source.offset, rstd), n)
        if j:
            add_dx_vector(source, 0, j, constants, gradients, False)
        while j + width <= n:
            if prefetch_distance:
                prefetch_source(source, j + prefetch_distance)
            add_dx_vector(source, j, None, constants, gradients, True)
            j += width
    else:
        while j + width <= n:
            end = min(n - width, j + (TERMS_PER_FLUSH - 1) * width)
            run_dgamma, run_dbeta = zeros(rstd), zeros(rstd)
            while j <= end:
                d, x_hat = add_dx_vector(source, j, None, constants, gradients, False)
                run_dgamma, run_dbeta = fma(d, x_hat, run_dgamma), run_dbeta + d
                j += width
            dgamma_acc, dgamma_comp = compensated_add(dgamma_acc, dgamma_comp, run_dgamma)
            dbeta_acc, dbeta_comp = compensated_add(dbeta_acc, dbeta_comp, run_dbeta)
    if j < n:
        d, x_hat = add_dx_vector(source, j, n - j, constants, gradients, False)
        dgamma_acc, dbeta_acc = dgamma_acc + zero_tail(d * x_hat, n - j), dbeta_acc + d
    return reduce_add(dgamma_acc + dgamma_comp), reduce_add(dbeta_acc + dbeta_comp)


@njit(**INLINE)
def prefetch_rows(source, n, count, j, prefetch_distance):
    """Prefetch x and dy of consecutive rows, unless the distance is 0."""
    if prefetch_distance:
        for k in range(count):
            prefetch_source(source, k * n + j + prefetch_distance)


@njit(**INLINE)
def write_dx2(source, n, rows, gradients, non_temporal, prefetch_distance):
    """Do what `write_dx` does for two consecutive rows of whole vectors, with constants `rows`.

    `non_temporal` is constant in each call: a test within the loop costs a tenth of the time.
    """
    dx = gradients.dx
    for j in range(0, n, lanes(rows[0].rstd)):
        prefetch_rows(source, n, 2, j, prefetch_distance)
        d0, x_hat0 = dx_vector(source, j, j, None, rows[0], dx, non_temporal)
        d1, x_hat1 = dx_vector(source, n + j, j, None, rows[1], dx, non_temporal)
        accumulate_params2(
            d0, x_hat0, d1, x_hat1, gradients.dgamma, gradients.dbeta, gradients.offset + j
        )


@njit(**INLINE)
def write_dx4(source, n, rows, gradients, non_temporal, prefetch_distance):
    """Do what `write_dx2` does for four rows."""
    dx = gradients.dx
    for j in range(0, n, lanes(rows[0].rstd)):
        prefetch_rows(source, n, 4, j, prefetch_distance)
        d0, x_hat0 = dx_vector(source, j, j, None, rows[0], dx, non_temporal)
        d1, x_hat1 = dx_vector(source, n + j, j, None, rows[1], dx, non_temporal)
        d2, x_hat2 = dx_vector(source, 2 * n + j, j, None, rows[2], dx, non_temporal)
        d3, x_hat3 = dx_vector(source, 3 * n + j, j, None, rows[3], dx, non_temporal)
        accumulate_params4(
            d0, x_hat0, d1, x_hat1, d2, x_hat2, d3, x_hat3, gradients.dgamma, gradients.dbeta,
            gradients.offset + j,
        )  # fmt: skip
