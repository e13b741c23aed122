"""The backward pass over rows, for every dtype and every choice of gradients.

As in `forward`, what is None is left out at compile time. Each row is swept twice: the first sweep
takes the sums that dx needs, and what the rounded mean has missed; the second computes dx, and adds
to the gradients of gamma and beta. These are kept apart for each block of rows, whose number
depends on the shape alone, and added in order at the end: see `gradient_sums`.
"""

from __future__ import annotations

from numba import njit

from .access import (
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
from .atomics import increment
from .compile import CALLED, INLINE, ONCE
from .forward import LONG
from .gradient_sums import (
    add,
    add_both,
    add_four,
    add_run,
    add_to,
    add_up,
    clear,
    put_first,
    room_for,
)
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
from .sweeps import AHEAD, RUN, plus
from .tasks import COUNT, FINISHED, arguments

#: Bytes of a row up to which four are taken at once, and two if longer. More would fit the first
#: cache, but while these are swept for the second time, the next would not come from memory.
SHORT = 1024
#: Bytes that are fetched ahead, at least, while rows are swept for the second time.
FOLLOWING = 16 << 10
#: Numbers in memory for four rows, with room for a vector at the place of the last.
ROOM = 32


@njit(**INLINE)
def deviation(x, mean):
    """Elements less their rounded mean."""
    return x if mean is None else x - mean


@njit(**INLINE)
def times(dy, gamma, p, count, plus):
    """Dy times the elements of gamma from p on, plus what is to be added if it is not None."""
    if gamma is None:
        return dy if plus is None else dy + plus
    g = load(gamma, p, dy) if count is None else load_masked(gamma, p, count, dy)
    return dy * g if plus is None else fma(dy, g, plus)


@njit(**INLINE)
def sums(dy, x, o, n, mean, rstd, gamma, p, ahead):
    """Sums of d, of g and of g * d * rstd over n elements, where g is dy * gamma.

    One in each lane, which are to be added up. D is x - mean, and its sum, times `range_scale`, has
    no other rounding than its own: of short rows, those of d * rstd would be seen in x_hat.
    """
    zero = zeros(rstd)
    scale, _ = range_scale(rstd)
    width = lanes(rstd)
    step = 2 * width
    of_d, of_g, of_product = zero, zero, zero
    lost_d, lost_g, lost_product = zero, zero, zero
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
            d = deviation(load(x, o + j, rstd), mean)
            g = times(load(dy, o + j, rstd), gamma, p + j, None, None)
            a, aa, ab = fma(d, scale, a), aa + g, fma(g, d * rstd, ab)
            d = deviation(load(x, o + j + width, rstd), mean)
            g = times(load(dy, o + j + width, rstd), gamma, p + j + width, None, None)
            b, bb, ba = fma(d, scale, b), bb + g, fma(g, d * rstd, ba)
            j += step
        if j <= RUN * step:
            of_d, of_g, of_product = a + b, aa + bb, ab + ba
        else:
            of_d, lost_d = plus(of_d, lost_d, a + b)
            of_g, lost_g = plus(of_g, lost_g, aa + bb)
            of_product, lost_product = plus(of_product, lost_product, ab + ba)
    while j < n:
        count = min(width, n - j)
        d = zero_tail(deviation(load_masked(x, o + j, count, rstd), mean), count)
        g = load_masked(dy, o + j, count, rstd)
        g = zero_tail(times(g, gamma, p + j, count, None), count)
        of_d, of_g, of_product = fma(d, scale, of_d), of_g + g, fma(g, d * rstd, of_product)
        j += width
    return of_d + lost_d, of_g + lost_g, of_product + lost_product


@njit(**INLINE)
def sums_of_four(dy, x, o, n, mean, rstd, row, gamma, p, ahead, one):
    """As `sums`, added up, for four rows one after the other: a quarter of the lanes for each."""
    m, r = load_broadcast(mean, row, one), load_broadcast(rstd, row, one)
    a, aa, aaa = sums(dy, x, o, n, m, r, gamma, p, ahead)
    m, r = load_broadcast(mean, row + 1, one), load_broadcast(rstd, row + 1, one)
    b, bb, bbb = sums(dy, x, o + n, n, m, r, gamma, p, ahead)
    m, r = load_broadcast(mean, row + 2, one), load_broadcast(rstd, row + 2, one)
    c, cc, ccc = sums(dy, x, o + 2 * n, n, m, r, gamma, p, ahead)
    m, r = load_broadcast(mean, row + 3, one), load_broadcast(rstd, row + 3, one)
    d, dd, ddd = sums(dy, x, o + 3 * n, n, m, r, gamma, p, ahead)
    return reduce_add4(a, b, c, d), reduce_add4(aa, bb, cc, dd), reduce_add4(aaa, bbb, ccc, ddd)


@njit(**INLINE)
def sums_of_segments(dy, x, o, n, segments, mean, rstd, gamma, p, one):
    """As `sums`, added up in each lane, for so many segments of n elements, with a gamma each."""
    zero = one - one
    of_d, of_g, of_product = zero, zero, zero
    lost_d, lost_g, lost_product = zero, zero, zero
    for segment in range(segments):
        g = load_broadcast(gamma, p + segment, one)
        a, b, c = sums(dy, x, o + segment * n, n, mean, rstd, g, 0, 0)
        of_d, lost_d = plus(of_d, lost_d, broadcast(reduce_add(a)))
        of_g, lost_g = plus(of_g, lost_g, broadcast(reduce_add(b)))
        of_product, lost_product = plus(of_product, lost_product, broadcast(reduce_add(c)))
    return of_d + lost_d, of_g + lost_g, of_product + lost_product


@njit(**INLINE)
def step(dy, x, i, count, row, gamma, p, dx, streams):
    """The second sweep of a row over a vector from element i on, or over `count` elements of it.

    Writes dx, and gives dy and x_hat.
    """
    mean, rstd, minus_missed, minus_mean_g, minus_projection = row
    if count is None:
        v, d = load(x, i, rstd), load(dy, i, rstd)
    else:
        v, d = load_masked(x, i, count, rstd), load_masked(dy, i, count, rstd)
    h = exact_x_hat(v, mean, rstd, minus_missed)
    if dx is not None:
        v = fma(h, minus_projection, times(d, gamma, p, count, minus_mean_g)) * rstd
        if count is not None:
            store_masked(dx, i, v, count)
        elif streams is not None:
            store_non_temporal(dx, i, v)
        else:
            store(dx, i, v)
    return d, h


@njit(**INLINE)
def exact_x_hat(x, mean, rstd, minus_missed):
    """Normalised elements."""
    if mean is None:
        return x * rstd
    return fma(x - mean, rstd, minus_missed)


@njit(**INLINE)
def differentiate(dy, x, o, n, row, gamma, p, dx, dgamma, dbeta, q, streams, following):
    """The second sweep over n elements from o on; parameters are from p on, their sums from q on.

    Gives the sums of the terms of dgamma and dbeta as well, where nothing is streamed.
    """
    rstd = row[1]
    width = lanes(rstd)
    of_dgamma, of_dbeta = zeros(rstd), zeros(rstd)
    lost_dgamma, lost_dbeta = zeros(rstd), zeros(rstd)
    j = 0
    if streams:
        count = min(elements_to_alignment(dx, o, rstd), n)
        if count:
            d, h = step(dy, x, o, count, row, gamma, p, dx, None)
            add(d, h, dgamma, dbeta, q, count)
            j = count
        while j + width <= n:
            if following:
                prefetch(x, o + j + following)
                prefetch(dy, o + j + following)
            d, h = step(dy, x, o + j, None, row, gamma, p + j, dx, True)
            add(d, h, dgamma, dbeta, q + j, None)
            j += width
    else:
        while j + width <= n:
            end = min(n - width, j + (RUN - 1) * width)
            run_dgamma, run_dbeta = zeros(rstd), zeros(rstd)
            while j <= end:
                d, h = step(dy, x, o + j, None, row, gamma, p + j, dx, None)
                add(d, h, dgamma, dbeta, q + j, None)
                run_dgamma, run_dbeta = fma(d, h, run_dgamma), run_dbeta + d
                j += width
            of_dgamma, lost_dgamma = plus(of_dgamma, lost_dgamma, run_dgamma)
            of_dbeta, lost_dbeta = plus(of_dbeta, lost_dbeta, run_dbeta)
    if j < n:
        d, h = step(dy, x, o + j, n - j, row, gamma, p + j, dx, None)
        add(d, h, dgamma, dbeta, q + j, n - j)
        of_dgamma, of_dbeta = of_dgamma + zero_tail(d * h, n - j), of_dbeta + d
    return reduce_add(of_dgamma + lost_dgamma), reduce_add(of_dbeta + lost_dbeta)


@njit(**INLINE)
def differentiate_both(dy, x, o, n, row0, row1, gamma, p, dx, dgamma, dbeta, q, streams, following):
    """As `differentiate`, for two rows of whole vectors that lie one after the other."""
    width = lanes(row0[1])
    if streams:
        for j in range(0, n, width):
            if following:
                prefetch(x, o + j + following)
                prefetch(dy, o + j + following)
                prefetch(x, o + n + j + following)
                prefetch(dy, o + n + j + following)
            d0, h0 = step(dy, x, o + j, None, row0, gamma, p + j, dx, True)
            d1, h1 = step(dy, x, o + n + j, None, row1, gamma, p + j, dx, True)
            add_both(d0, h0, d1, h1, dgamma, dbeta, q + j)
    else:
        for j in range(0, n, width):
            d0, h0 = step(dy, x, o + j, None, row0, gamma, p + j, dx, None)
            d1, h1 = step(dy, x, o + n + j, None, row1, gamma, p + j, dx, None)
            add_both(d0, h0, d1, h1, dgamma, dbeta, q + j)


@njit(**INLINE)
def differentiate_four(dy, x, o, n, rows, gamma, p, dx, dgamma, dbeta, q, streams, following):
    """As `differentiate_both`, for four rows."""
    row0, row1, row2, row3 = rows
    width = lanes(row0[1])
    if streams:
        for j in range(0, n, width):
            if following:
                for k in range(4):
                    prefetch(x, o + k * n + j + following)
                    prefetch(dy, o + k * n + j + following)
            d0, h0 = step(dy, x, o + j, None, row0, gamma, p + j, dx, True)
            d1, h1 = step(dy, x, o + n + j, None, row1, gamma, p + j, dx, True)
            d2, h2 = step(dy, x, o + 2 * n + j, None, row2, gamma, p + j, dx, True)
            d3, h3 = step(dy, x, o + 3 * n + j, None, row3, gamma, p + j, dx, True)
            add_four(d0, h0, d1, h1, d2, h2, d3, h3, dgamma, dbeta, q + j)
    else:
        for j in range(0, n, width):
            d0, h0 = step(dy, x, o + j, None, row0, gamma, p + j, dx, None)
            d1, h1 = step(dy, x, o + n + j, None, row1, gamma, p + j, dx, None)
            d2, h2 = step(dy, x, o + 2 * n + j, None, row2, gamma, p + j, dx, None)
            d3, h3 = step(dy, x, o + 3 * n + j, None, row3, gamma, p + j, dx, None)
            add_four(d0, h0, d1, h1, d2, h2, d3, h3, dgamma, dbeta, q + j)


@njit(**INLINE)
def constants(mean, rstd, row, missed, mean_g, projection, place, one):
    """What the second sweep over a row needs, in vectors.

    What the rounded mean has missed is no part of x_hat.
    """
    zero = one - one
    r = load_broadcast(rstd, row, one)
    _, unscale = range_scale(r)
    minus_missed = zero - load_broadcast(missed, place, one) * (r * unscale)
    minus_mean_g = zero - load_broadcast(mean_g, place, one)
    minus_projection = zero - load_broadcast(projection, place, one)
    if mean is not None:
        minus_projection = fma(minus_missed, minus_mean_g, minus_projection)
    return (
        load_broadcast(mean, row, one),
        r,
        if_present(mean, minus_missed),
        if_present(mean, minus_mean_g),
        minus_projection,
    )


@njit(**ONCE)
def backward(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, streams, start, stop, q
):  # fmt: skip
    """Rows start to stop, whose sums for dgamma and dbeta are put to the places from q on."""
    n, size = x.shape[1], x.itemsize
    dy_, x_, gamma_, dx_ = data_pointer(dy), data_pointer(x), data_pointer(gamma), data_pointer(dx)
    dgamma_, dbeta_ = data_pointer(dgamma), data_pointer(dbeta)
    mean_, rstd_ = data_pointer(mean), data_pointer(rstd)
    one = ones(rstd)
    share = broadcast(scalar_like(1.0 / n, one))
    ahead = AHEAD // size if streams and n * size > LONG else 0
    at_once = 4 if n * size <= SHORT else 2
    following = max(at_once * n, FOLLOWING // size) if streams and not ahead else 0
    per_row = n if repeat is None else n // repeat
    parameters = groups * per_row
    clear(dgamma, q, parameters)
    clear(dbeta, q, parameters)
    # The numbers of four rows fill a vector.
    spacing = lanes(one) // 4
    misses, mean_gs = stack_alloc(one, ROOM), stack_alloc(one, ROOM)
    projections = stack_alloc(one, ROOM)
    whole = repeat is None and groups == 1 and n % lanes(one) == 0
    for begin in range(start, stop, at_once):
        count = min(at_once, stop - begin)
        k = 0
        while k < count:
            row, rows_now = begin + k, 1
            o, p = row * n, (row % groups) * per_row
            mu, r = load_broadcast(mean_, row, one), load_broadcast(rstd_, row, one)
            if whole and k + 4 <= count:
                rows_now = 4
                of_d, of_g, of_product = sums_of_four(
                    dy_, x_, o, n, mean_, rstd_, row, gamma_, p, ahead, one
                )
            elif repeat is None:
                a, b, c = sums(dy_, x_, o, n, mu, r, gamma_, p, ahead)
                of_d, of_g = broadcast(reduce_add(a)), broadcast(reduce_add(b))
                of_product = broadcast(reduce_add(c))
            else:
                of_d, of_g, of_product = sums_of_segments(
                    dy_, x_, o, repeat, per_row, mu, r, gamma_, p, one
                )
            store(misses, k * spacing, of_d * share)
            store(mean_gs, k * spacing, of_g * share)
            store(projections, k * spacing, of_product * share)
            k += rows_now
        k = 0
        while k < count:
            row = begin + k
            o, p = row * n, (row % groups) * per_row
            this = constants(mean_, rstd_, row, misses, mean_gs, projections, k * spacing, one)
            if whole and k + 1 < count:
                streams_all = streams and elements_to_alignment(dx_, o, one) == 0
                next_ = constants(
                    mean_, rstd_, row + 1, misses, mean_gs, projections, (k + 1) * spacing, one
                )
                if k + 3 < count:
                    third = constants(
                        mean_, rstd_, row + 2, misses, mean_gs, projections, (k + 2) * spacing, one
                    )
                    last = constants(
                        mean_, rstd_, row + 3, misses, mean_gs, projections, (k + 3) * spacing, one
                    )
                    differentiate_four(
                        dy_, x_, o, n, (this, next_, third, last), gamma_, p, dx_, dgamma_, dbeta_,
                        q + p, streams_all, following,
                    )  # fmt: skip
                    k += 3
                else:
                    differentiate_both(
                        dy_, x_, o, n, this, next_, gamma_, p, dx_, dgamma_, dbeta_, q + p,
                        streams_all, following,
                    )  # fmt: skip
                    k += 1
            elif repeat is None:
                differentiate(
                    dy_, x_, o, n, this, gamma_, p, dx_, dgamma_, dbeta_, q + p, streams, following
                )
            else:
                # Not streamed: the sums over a segment would depend on where that begins in memory.
                for segment in range(per_row):
                    g = load_broadcast(gamma_, p + segment, one)
                    a, b = differentiate(
                        dy_, x_, o + segment * repeat, repeat, this, g, 0, dx_, None, None, 0,
                        False, 0,
                    )  # fmt: skip
                    add_to(dgamma, q + p + segment, a)
                    add_to(dbeta, q + p + segment, b)
            k += 1


@njit(**CALLED)
def some_blocks(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, repeat, streams, rows, run, first, last
):
    """Blocks of so many rows from the first to before the last, each in runs of so many rows."""
    m, n = x.shape
    parameters = groups * (n if repeat is None else n // repeat)
    room = parameters if rows > run else 0
    run_dgamma, run_dbeta = room_for(dgamma, room), room_for(dbeta, room)
    for block in range(first, last):
        begin, end, q = block * rows, min(m, (block + 1) * rows), block * parameters
        for start in range(begin, end, run):
            is_first = start == begin
            backward(
                dy, x, mean, rstd, gamma, dx, dgamma if is_first else run_dgamma,
                dbeta if is_first else run_dbeta, groups, repeat, streams, start,
                min(start + run, end), q if is_first else 0,
            )  # fmt: skip
            if not is_first:
                add_run(dgamma, q, run_dgamma, rstd)
                add_run(dbeta, q, run_dbeta, rstd)
    if streams:
        fence()  # which waits for memory: not after each block


def backward_task(kinds):
    """All blocks as a task, and where the sums of several go in the end.

    Who finishes the last part adds them up.
    """

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        some_blocks(*(given[:8] + given[10:]))
        num_blocks = words[COUNT]
        if increment(words, FINISHED) == num_parts - 1 and num_blocks > 1:
            add_up(given[6], num_blocks)
            add_up(given[7], num_blocks)
            put_first(given[6], given[8])
            put_first(given[7], given[9])

    return task
