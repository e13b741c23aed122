"""The forward pass over rows, for every dtype, with and without mean, gamma and beta."""

from __future__ import annotations

from numba import njit

from .access import data_pointer, fence, load, load_broadcast, stack_alloc, store, store_masked
from .compile import CALLED, INLINE, ONCE
from .doubles import to_float64, zeros_float64
from .moments import judged, judged_together, mean_of, totals_in_doubles
from .simd import (
    broadcast,
    first_lane,
    if_present,
    lanes,
    negative,
    ones,
    reduce_add,
    reduce_add_rows,
    scalar_like,
)
from .sweeps import (
    AHEAD,
    finish_row,
    normalise,
    normalise_both,
    rough_mean,
    sample,
    sampled,
    start_row,
    sums,
    sums_in_lanes,
    sums_of_few,
)
from .tasks import arguments

#: Bytes of a row up to which the cache holds it and the next.
LONG = 128 << 10
#: Bytes of a row from which the next rows are prefetched, also if results are not streamed.
PREFETCHED = 1024
#: Bytes that rows that are taken at once may be: most of the first cache. There are as many as a
#: vector has lanes, at most.
AT_ONCE_BYTES = 24 << 10
#: Lanes of a vector at most, and numbers in so many vectors, and in so many of float64.
LANES, LANES_SQUARED, SUMS = 16, 256, 128


@njit(**CALLED)
def forward(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams, start, stop):
    """Rows start to stop. A row whose squares leave the range of the dtype is scaled first."""
    n, size = x.shape[1], x.itemsize
    x_, y_ = data_pointer(x), data_pointer(y)
    gamma_, beta_ = data_pointer(gamma), data_pointer(beta)
    ahead = AHEAD // size if streams or n * size >= PREFETCHED else 0
    if streams and repeat is None and 4 * lanes(ones(rstd)) < n <= LONG // size:
        one_by_one(x_, gamma_, beta_, y_, mean, rstd, n, epsilon, groups, ahead, start, stop)
    else:
        several_at_once(
            x_, gamma_, beta_, y_, mean, rstd, n, epsilon, groups, repeat, streams, ahead,
            max(1, AT_ONCE_BYTES // (n * size) // 2 * 2), start, stop,
        )  # fmt: skip


@njit(**INLINE)
def settled(x, mean, rstd, row, n, one, epsilon, rough, deviation, square):
    """Put the statistics of a row in place. Gives its scale, and what `known` gives."""
    share, centered = 1.0 / n, data_pointer(mean)
    factor, rough, missed, _, root = judged(
        x, (row * n, n, 1, n), share, one, centered, epsilon, rough, deviation, square
    )
    rstd[row, 0] = root * factor
    if mean is not None:
        mean[row, 0] = mean_of(factor, rough, missed)
    minus_missed = if_present(centered, broadcast(-missed * root))
    return broadcast(factor), (broadcast(-rough), broadcast(root), minus_missed)


@njit(**CALLED)
def one_by_one(x, gamma, beta, y, mean, rstd, n, epsilon, groups, ahead, start, stop):
    """Rows whose results leave the cache: one is written while the next is read."""
    one = ones(rstd)
    line, o = stack_alloc(one, LANES), start * n
    rough = reduce_add(one - one) if mean is None else rough_mean(x, o, n, one)
    deviation, square = sums(x, o, n, one, broadcast(-rough), 0)
    for row in range(start, stop):
        o, p = row * n, (row % groups) * n
        scale, (offset, root, rest) = settled(
            x, mean, rstd, row, n, one, epsilon, rough, deviation, square
        )
        this = y, o, scale, offset, root, rest, gamma, beta, p, line, row == start
        if row + 1 < stop:
            rough = reduce_add(one - one) if mean is None else rough_mean(x, o + n, n, one)
            in_lanes = sums_in_lanes(x, o + n, n, one, broadcast(-rough), ahead, this)
            deviation, square = reduce_add(in_lanes[0]), reduce_add(in_lanes[1])
        else:
            count = finish_row(x, start_row(x, n, this), n, this)
            store_masked(y, o + n - count, load(line, 0, one), count)
    fence()


@njit(**ONCE)
def several_at_once(
    x, gamma, beta, y, mean, rstd, n, epsilon, groups, repeat, streams, ahead, at_once, start, stop
):
    """Rows, a step for several of them after the other: what is one number of each is a lane.

    The chain of sums, root and quotient is long beside a short row.
    """
    one = ones(rstd)
    width, share = lanes(one), 1.0 / n
    mean_, rstd_ = data_pointer(mean), data_pointer(rstd)
    roughs, roots, rests = stack_alloc(one, LANES), stack_alloc(one, LANES), stack_alloc(one, LANES)
    deviations = stack_alloc(zeros_float64(one), SUMS)
    squares = stack_alloc(zeros_float64(one), SUMS)
    samples, apart = stack_alloc(one, LANES_SQUARED), lanes(zeros_float64(one))
    at_once = min(at_once, width)
    store(roughs, 0, one - one)
    for begin in range(start, stop, at_once):
        count = min(at_once, stop - begin)
        if mean is not None:
            rough_means(x, begin * n, n, one, count, roughs, samples)
        if n <= 4 * width:
            deviation, square = sums_of_short_rows(x, begin * n, n, one, count, roughs, samples)
        else:
            for k in range(count):
                offset = negative(load_broadcast(roughs, k, one))
                in_lanes = sums_in_lanes(x, (begin + k) * n, n, one, offset, ahead, None)
                store(deviations, k * apart, in_lanes[0])
                store(squares, k * apart, in_lanes[1])
            deviation = totals_in_doubles(deviations, count, one)
            square = totals_in_doubles(squares, count, one)
        missed, root, good = judged_together(
            deviation, square, deviations, squares, share, one, mean_, epsilon, count
        )
        if good:
            if mean is not None:
                store_masked(mean_, begin, load(roughs, 0, one) + missed, count)
            store_masked(rstd_, begin, root, count)
            store(roots, 0, root)
            store(rests, 0, negative(missed * root))
            normalise_several(
                x, gamma, beta, y, mean_, n, groups, repeat, streams, begin, count, one,
                roughs, roots, rests,
            )  # fmt: skip
        else:
            each_alone(
                x, gamma, beta, y, mean, rstd, n, epsilon, groups, repeat, streams, begin, count,
                one, roughs, deviations, squares,
            )  # fmt: skip
    if streams:
        fence()


@njit(**ONCE)
def rough_means(x, o, n, one, count, roughs, sums):
    """The `rough_mean` of each of `count` rows from o on; sums is memory for those in lanes."""
    for k in range(count):
        first = load_broadcast(x, o + k * n, one)
        roughs[k] = first_lane(first)
        store(sums, k * lanes(one), sample(x, o + k * n, n, one, first))
    part = broadcast(scalar_like(1.0 / sampled(n, one), one))
    store(roughs, 0, load(roughs, 0, one) + reduce_add_rows(sums, 0, one) * part)


@njit(**ONCE)
def sums_of_short_rows(x, o, n, one, count, roughs, samples):
    """Sums of d and of d² of each of `count` rows from o on, in two vectors of float64 each.

    Of so few elements, sums in the dtype of these are good enough.
    """
    squares = stack_alloc(one, LANES_SQUARED)
    for k in range(count):
        deviation, square = sums_of_few(
            x, o + k * n, n, one, negative(load_broadcast(roughs, k, one))
        )
        store(samples, k * lanes(one), deviation)
        store(squares, k * lanes(one), square)
    return to_float64(reduce_add_rows(samples, 0, one)), to_float64(
        reduce_add_rows(squares, 0, one)
    )


@njit(**ONCE)
def normalise_several(
    x, gamma, beta, y, mean, n, groups, repeat, streams, begin, count, one, roughs, roots, rests
):  # fmt: skip
    """Y of `count` rows of which no more has to be known."""
    k = 0
    if repeat is None and groups == 1 and not streams:
        while k + 1 < count:
            first = known(mean, roughs, roots, rests, k, one)
            second = known(mean, roughs, roots, rests, k + 1, one)
            normalise_both(x, y, (begin + k) * n, n, one, first, second, gamma, beta)
            k += 2
    while k < count:
        row = known(mean, roughs, roots, rests, k, one)
        normalise_row(x, gamma, beta, y, n, groups, repeat, streams, begin + k, one, row)
        k += 1


@njit(**INLINE)
def known(mean, roughs, roots, rests, k, one):
    """Of a row: offset, rstd, and what the mean has missed, times minus rstd."""
    offset = negative(load_broadcast(roughs, k, one))
    return offset, load_broadcast(roots, k, one), if_present(mean, load_broadcast(rests, k, one))


@njit(**INLINE)
def normalise_row(x, gamma, beta, y, n, groups, repeat, streams, row, scale, known):
    """Y of a row."""
    offset, rstd, minus_missed = known
    o = row * n
    if repeat is None:
        p = (row % groups) * n
        normalise(x, y, o, n, scale, offset, rstd, minus_missed, gamma, beta, p, streams)
    else:
        segments = n // repeat
        for segment in range(segments):
            p = (row % groups) * segments + segment
            g, b = load_broadcast(gamma, p, scale), load_broadcast(beta, p, scale)
            i = o + segment * repeat
            normalise(x, y, i, repeat, scale, offset, rstd, minus_missed, g, b, 0, streams)


@njit(**ONCE)
def each_alone(
    x, gamma, beta, y, mean, rstd, n, epsilon, groups, repeat, streams, begin, count, one,
    roughs, deviations, squares,
):  # fmt: skip
    """Rows, for some of which the sums about a rough mean are not good enough."""
    for k in range(count):
        row = begin + k
        scale, this = settled(
            x, mean, rstd, row, n, one, epsilon, roughs[k], deviations[k], squares[k]
        )
        normalise_row(x, gamma, beta, y, n, groups, repeat, streams, row, scale, this)


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task
