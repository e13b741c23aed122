"""The backward pass over rows, for every dtype and every choice of gradients.

As in `forward`, what is None is left out at compile time. Each row is swept twice: the first sweep
takes the sums that dx needs, and what the rounded mean has missed; the second computes dx, and adds
to the gradients of gamma and beta. These are kept apart for each block of rows, whose number
depends on the shape alone, and added in order at the end.
"""

from __future__ import annotations

from numba import njit, prange

from .forward import AHEAD, INLINE, OPTIONS, RUN, plus
from .simd import (
    beside,
    element,
    elements_to_alignment,
    fence,
    fma,
    keep_first,
    lanes,
    load,
    load_first,
    number,
    ones,
    prefetch,
    splat,
    store,
    store_first,
    stream,
    total,
)


@njit(**INLINE)
def rough_x_hat(x, mean, rstd):
    """Normalised elements, but for what the rounded mean has missed."""
    if mean is None:
        return x * rstd
    return (x - mean) * rstd


@njit(**INLINE)
def times(dy, gamma, p, count):
    """Dy times the elements of gamma from p on; `count` of them, or a vector full."""
    if gamma is None:
        return dy
    if count is None:
        return dy * load(gamma, p, dy)
    return dy * load_first(gamma, p, count, dy)


@njit(**INLINE)
def sums(dy, x, o, n, mean, rstd, gamma, p, ahead):
    """Sums of x_hat, of g and of g * x_hat over n elements, where g is dy * gamma."""
    zero = rstd - rstd
    width = lanes(rstd)
    step = 2 * width
    of_x_hat, of_g, of_product = zero, zero, zero
    lost_x_hat, lost_g, lost_product = zero, zero, zero
    j = 0
    while j + step <= n:
        end = min(n - step, j + (RUN - 1) * step)
        a, b, aa, bb, ab, ba = zero, zero, zero, zero, zero, zero
        while j <= end:
            if ahead:
                prefetch(x, o + j + ahead)
                prefetch(dy, o + j + ahead)
                prefetch(x, o + j + ahead + width)
                prefetch(dy, o + j + ahead + width)
            h = rough_x_hat(load(x, o + j, rstd), mean, rstd)
            g = times(load(dy, o + j, rstd), gamma, p + j, None)
            a, aa, ab = a + h, aa + g, fma(g, h, ab)
            h = rough_x_hat(load(x, o + j + width, rstd), mean, rstd)
            g = times(load(dy, o + j + width, rstd), gamma, p + j + width, None)
            b, bb, ba = b + h, bb + g, fma(g, h, ba)
            j += step
        of_x_hat, lost_x_hat = plus(of_x_hat, lost_x_hat, a + b)
        of_g, lost_g = plus(of_g, lost_g, aa + bb)
        of_product, lost_product = plus(of_product, lost_product, ab + ba)
    while j < n:
        count = min(width, n - j)
        h = rough_x_hat(load_first(x, o + j, count, rstd), mean, rstd)
        h = keep_first(h, count)
        g = load_first(dy, o + j, count, rstd)
        g = keep_first(times(g, gamma, p + j, count), count)
        of_x_hat, of_g, of_product = of_x_hat + h, of_g + g, fma(g, h, of_product)
        j += width
    return total(of_x_hat + lost_x_hat), total(of_g + lost_g), total(of_product + lost_product)


@njit(**INLINE)
def add(sums, q, values, count):
    """Add values to the elements of sums from q on, where there are sums to be taken."""
    if sums is not None:
        if count is None:
            store(sums, q, load(sums, q, values) + values)
        else:
            store_first(sums, q, load_first(sums, q, count, values) + values, count)


@njit(**INLINE)
def step(
    dy, x, i, count, mean, rstd, missed, mean_g, minus_projection, gamma, p, dx, dgamma, dbeta, q,
    streams,
):  # fmt: skip
    """The second sweep over a vector from element i on, or over `count` elements of it.

    Gives the terms of dgamma and dbeta, and adds them where there are arrays for that.
    """
    if count is None:
        h, d = rough_x_hat(load(x, i, rstd), mean, rstd), load(dy, i, rstd)
    else:
        h = rough_x_hat(load_first(x, i, count, rstd), mean, rstd)
        d = load_first(dy, i, count, rstd)
    if missed is not None:
        h = h - missed
    if dx is not None:
        v = times(d, gamma, p, count)
        if mean_g is not None:
            v = v - mean_g
        v = fma(h, minus_projection, v) * rstd
        if count is not None:
            store_first(dx, i, v, count)
        elif streams is not None:
            stream(dx, i, v)
        else:
            store(dx, i, v)
    product = d * h
    add(dgamma, q, product, count)
    add(dbeta, q, d, count)
    if count is not None:
        product = keep_first(product, count)
    return product, d


@njit(**INLINE)
def differentiate(
    dy, x, o, n, mean, rstd, missed, mean_g, minus_projection, gamma, p, dx, dgamma, dbeta, q,
    streams, following,
):  # fmt: skip
    """The second sweep over n elements from o on; parameters are from p on, their sums from q on.

    Gives the sums of the terms of dgamma and dbeta.
    """
    width = lanes(rstd)
    of_dgamma, of_dbeta = rstd - rstd, rstd - rstd
    j = 0
    if streams:
        count = min(elements_to_alignment(dx, o), n)
        if count:
            a, b = step(
                dy, x, o, count, mean, rstd, missed, mean_g, minus_projection, gamma, p,
                dx, dgamma, dbeta, q, None,
            )  # fmt: skip
            of_dgamma, of_dbeta = of_dgamma + a, of_dbeta + b
            j = count
        while j + width <= n:
            if following:
                prefetch(x, o + j + following)
                prefetch(dy, o + j + following)
            a, b = step(
                dy, x, o + j, None, mean, rstd, missed, mean_g, minus_projection, gamma, p + j,
                dx, dgamma, dbeta, q + j, True,
            )  # fmt: skip
            of_dgamma, of_dbeta = of_dgamma + a, of_dbeta + b
            j += width
    else:
        while j + width <= n:
            a, b = step(
                dy, x, o + j, None, mean, rstd, missed, mean_g, minus_projection, gamma, p + j,
                dx, dgamma, dbeta, q + j, None,
            )  # fmt: skip
            of_dgamma, of_dbeta = of_dgamma + a, of_dbeta + b
            j += width
    if j < n:
        a, b = step(
            dy, x, o + j, n - j, mean, rstd, missed, mean_g, minus_projection, gamma, p + j,
            dx, dgamma, dbeta, q + j, None,
        )  # fmt: skip
        of_dgamma, of_dbeta = of_dgamma + a, of_dbeta + b
    return total(of_dgamma), total(of_dbeta)


@njit(**OPTIONS)
def backward(dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, streams, rows, block):
    """One block of so many rows, with sums of its own for dgamma and dbeta."""
    m, n = x.shape
    one = ones(rstd)
    zero, count = number(0, one), number(n, one)
    size = x.itemsize
    long = n * size > 2 * AHEAD
    ahead = AHEAD // size if streams and long else 0
    following = n if streams and not long else 0
    per_row = n if repeat is None else n // repeat
    if dgamma is not None:
        dgamma[block, :] = 0
    if dbeta is not None:
        dbeta[block, :] = 0
    for row in range(block * rows, min(m, (block + 1) * rows)):
        o, p = row * n, (row % groups) * per_row
        mu, r = element(mean, row, one), element(rstd, row, one)
        of_x_hat, of_g, of_product = zero, zero, zero
        if repeat is None:
            of_x_hat, of_g, of_product = sums(dy, x, o, n, mu, r, gamma, p, ahead)
        else:
            for k in range(per_row):
                g = element(gamma, p + k, one)
                a, b, c = sums(dy, x, o + k * repeat, repeat, mu, r, g, 0, 0)
                of_x_hat, of_g, of_product = of_x_hat + a, of_g + b, of_product + c
        if mean is not None:  # what the rounded mean has missed is no part of x_hat
            of_product -= of_x_hat / count * of_g
        missed = beside(mean, splat(of_x_hat / count))
        mean_g = beside(mean, splat(of_g / count))
        minus_projection = splat(-of_product / count)
        if repeat is None:
            differentiate(
                dy, x, o, n, mu, r, missed, mean_g, minus_projection, gamma, p,
                dx, dgamma, dbeta, block * groups * per_row + p, streams, following,
            )  # fmt: skip
        else:
            for k in range(per_row):
                g = element(gamma, p + k, one)
                a, b = differentiate(
                    dy, x, o + k * repeat, repeat, mu, r, missed, mean_g, minus_projection, g, 0,
                    dx, None, None, 0, streams, following,
                )  # fmt: skip
                if dgamma is not None:
                    dgamma[block, p + k] += a
                if dbeta is not None:
                    dbeta[block, p + k] += b
    if streams:
        fence()


@njit(**OPTIONS)
def add_up(partial):
    """The sums of the blocks into those of the first, in an order that their number alone sets."""
    if partial is not None:
        blocks, n = partial.shape
        stride = 1
        while stride < blocks:
            for first in range(0, blocks, stride * RUN):
                for block in range(first + stride, min(blocks, first + stride * RUN), stride):
                    for j in range(n):
                        partial[first, j] += partial[block, j]
            stride *= RUN


@njit(**OPTIONS)
def backward_in_order(dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, streams, rows):
    """All rows, in blocks of so many."""
    for block in range((x.shape[0] + rows - 1) // rows):
        backward(dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, streams, rows, block)
    add_up(dgamma)
    add_up(dbeta)


@njit(parallel=True, **OPTIONS)
def backward_in_parallel(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, streams, rows
):
    """As `backward_in_order`, but blocks may run at the same time."""
    for block in prange((x.shape[0] + rows - 1) // rows):
        backward(dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, streams, rows, block)
    add_up(dgamma)
    add_up(dbeta)
