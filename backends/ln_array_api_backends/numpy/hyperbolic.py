"""Dynamic tanh, y = tanh(alpha * x) * gamma + beta, and its gradients, for every dtype.

As in `forward` and `backward`, what is None is left out at compile time. No element depends on
another, so x is cut as the parameters lie beside it: into rows of a length, of which the last may
be shorter, and these into segments. A row has one element of gamma and beta, or one in each column.
A part of a task is a range of segments. Sums are kept apart for each segment, or for each column of
a block of rows, and added up in order by who finishes last.
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
    store,
    store_masked,
    store_non_temporal,
)
from .atomics import increment
from .backward import times
from .column_sums import add_to, gather
from .compile import CALLED, INLINE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .gradient_sums import clear
from .simd import lanes, ones, reduce_add, zero_tail
from .sweeps import plus, scaled_and_shifted, with_lost
from .tangent import tangent, tangent_and_slope
from .tasks import FINISHED, arguments


@njit(**INLINE)
def squash(x, y, o, n, alpha, gamma, beta, p, streams):
    """Y for n elements from o on, whose parameters are from p on."""
    width = lanes(alpha)
    j = 0
    if streams:
        j = min(elements_to_alignment(y, o, alpha), n)
        if j:
            values = tangent(load_masked(x, o, j, alpha) * alpha)
            store_masked(y, o, scaled_and_shifted(values, gamma, beta, p, j), j)
    while j + width <= n:
        values = tangent(load(x, o + j, alpha) * alpha)
        values = scaled_and_shifted(values, gamma, beta, p + j, None)
        if streams:
            store_non_temporal(y, o + j, values)
        else:
            store(y, o + j, values)
        j += width
    if j < n:
        values = tangent(load_masked(x, o + j, n - j, alpha) * alpha)
        store_masked(y, o + j, scaled_and_shifted(values, gamma, beta, p + j, n - j), n - j)


@njit(**INLINE)
def bounds(i, size, length, segment):
    """Of a segment: its row, where it begins in that and in x, and how many elements it has."""
    segments = -(-length // segment)
    row, left = i // segments, i % segments * segment
    o = row * length + left
    return row, left, o, min(segment, length - left, size - o)


@njit(**CALLED)
def forward(x, alpha, gamma, beta, y, length, segment, parameters, streams, start, stop):
    """Segments start to stop. `parameters` is None if there is one for each column."""
    x_, y_ = data_pointer(x), data_pointer(y)
    gamma_, beta_ = data_pointer(gamma), data_pointer(beta)
    alpha_ = load_broadcast(data_pointer(alpha), 0, ones(x))
    for i in range(start, stop):
        row, left, o, n = bounds(i, x.size, length, segment)
        if parameters is None:
            squash(x_, y_, o, n, alpha_, gamma_, beta_, left, streams)
        else:
            place = row % parameters
            g, b = load_broadcast(gamma_, place, alpha_), load_broadcast(beta_, place, alpha_)
            squash(x_, y_, o, n, alpha_, g, b, 0, streams)
    if streams:
        fence()


@njit(**INLINE)
def differentiate(dy, x, i, count, alpha, gamma, p, dx, streams):
    """Dx of a vector from element i on, or of `count` elements of it.

    Gives the terms of dbeta, dgamma and dalpha.
    """
    if count is None:
        v, d = load(x, i, alpha), load(dy, i, alpha)
    else:
        v, d = load_masked(x, i, count, alpha), load_masked(dy, i, count, alpha)
    t, slope = tangent_and_slope(v * alpha)
    g = times(d, gamma, p, count, None)
    of_gamma, of_alpha = d * t, g * (slope * v)
    if dx is not None:
        values = g * (slope * alpha)
        if count is not None:
            store_masked(dx, i, values, count)
        elif streams:
            store_non_temporal(dx, i, values)
        else:
            store(dx, i, values)
    if count is not None:  # gamma and alpha may be infinite
        of_gamma, of_alpha = zero_tail(of_gamma, count), zero_tail(of_alpha, count)
    return d, of_gamma, of_alpha


@njit(**INLINE)
def streams_to(dx, o, streams, like):
    """Whether a segment of dx is streamed: vectors that began elsewhere had other sums."""
    return streams and elements_to_alignment(dx, o, like) == 0


@njit(**CALLED)
def backward(
    dy, x, alpha, gamma, dx, dalpha, dgamma, dbeta, length, segment, parameters, streams,
    start, stop,
):  # fmt: skip
    """Segments start to stop of rows with a parameter each, and their sums in float64."""
    dy_, x_, gamma_, dx_ = data_pointer(dy), data_pointer(x), data_pointer(gamma), data_pointer(dx)
    alpha_ = load_broadcast(data_pointer(alpha), 0, ones(x))
    zero, width = zeros_float64(alpha_), lanes(alpha_)
    for i in range(start, stop):
        row, _, o, n = bounds(i, x.size, length, segment)
        g = load_broadcast(gamma_, row % parameters, alpha_)
        streamed = streams_to(dx_, o, streams, alpha_)
        a, b, c, rest_a, rest_b, rest_c = zero, zero, zero, zero, zero, zero
        j = 0
        while j < n:
            if j + width <= n:
                aa, bb, cc = differentiate(dy_, x_, o + j, None, alpha_, g, 0, dx_, streamed)
            else:
                aa, bb, cc = differentiate(dy_, x_, o + j, n - j, alpha_, g, 0, dx_, streamed)
            a, rest_a = accumulate(a, rest_a, aa)
            b, rest_b = accumulate(b, rest_b, bb)
            c, rest_c = accumulate(c, rest_c, cc)
            j += width
        if dbeta is not None:
            dbeta[i] = reduce_add(sum_in_float64(a, rest_a, alpha_))
        if dgamma is not None:
            dgamma[i] = reduce_add(sum_in_float64(b, rest_b, alpha_))
        if dalpha is not None:
            dalpha[i] = reduce_add(sum_in_float64(c, rest_c, alpha_))
    if streams:
        fence()


@njit(**INLINE)
def add_first(sums, lost, i, values):
    """`add_to`, where there are sums."""
    if sums is not None:
        add_to(sums, lost, i, values)


@njit(**CALLED)
def backward_of_columns(
    dy, x, alpha, gamma, dx, dalpha, dgamma, dgamma_lost, dbeta, dbeta_lost, length, padded,
    segment, rows, streams, start, stop,
):  # fmt: skip
    """Segments of blocks of rows, start to stop, with a parameter for each column.

    A block has a table of `padded` sums for each parameter, and each segment of it a sum for alpha.
    """
    dy_, x_, gamma_, dx_ = data_pointer(dy), data_pointer(x), data_pointer(gamma), data_pointer(dx)
    dgamma_, dgamma_lost_ = data_pointer(dgamma), data_pointer(dgamma_lost)
    dbeta_, dbeta_lost_ = data_pointer(dbeta), data_pointer(dbeta_lost)
    alpha_ = load_broadcast(data_pointer(alpha), 0, ones(x))
    zero, width = zeros_float64(alpha_), lanes(alpha_)
    end = -(-x.size // length)
    for i in range(start, stop):
        block, left, _, _ = bounds(i, x.size, length, segment)
        q = block * padded + left
        clear(dgamma, q, min(segment, padded - left))
        clear(dgamma_lost, q, min(segment, padded - left))
        clear(dbeta, q, min(segment, padded - left))
        clear(dbeta_lost, q, min(segment, padded - left))
        c, rest = zero, zero
        for row in range(block * rows, min(end, (block + 1) * rows)):
            o = row * length + left
            n = min(segment, length - left, x.size - o)
            streamed = streams_to(dx_, o, streams, alpha_)
            j = 0
            while j < n:
                count = n - j
                if count >= width:
                    aa, bb, cc = differentiate(
                        dy_, x_, o + j, None, alpha_, gamma_, left + j, dx_, streamed
                    )
                else:
                    aa, bb, cc = differentiate(
                        dy_, x_, o + j, count, alpha_, gamma_, left + j, dx_, streamed
                    )
                add_first(dbeta_, dbeta_lost_, q + j, aa)
                add_first(dgamma_, dgamma_lost_, q + j, bb)
                c, rest = accumulate(c, rest, cc)
                j += width
        if dalpha is not None:
            dalpha[i] = reduce_add(sum_in_float64(c, rest, alpha_))
    if streams:
        fence()


@njit(**INLINE)
def fold(sums, size, trail, into):
    """Each parameter's sum of the first `size` sums, of which `trail` after each other are its."""
    for parameter in range(into.size):
        sum_, lost = 0.0, 0.0
        for first in range(parameter * trail, size, into.size * trail):
            for i in range(first, first + trail):
                sum_, lost = plus(sum_, lost, sums[i])
        into[parameter] = with_lost(sum_, lost)


@njit(**INLINE)
def fold_segments(sums, segments, into):
    """`fold` of what segments have summed, of which a row has so many."""
    if into is not None:
        fold(sums, sums.size, segments, into)


@njit(**INLINE)
def fold_columns(sums, lost, padded, length, repeat, into):
    """`fold` of what blocks have summed of each column, of which so many share a parameter."""
    if into is not None:
        gather(sums, lost, padded)
        fold(sums, length, repeat, into)


@njit(**CALLED)
def finish(dalpha, dgamma, dbeta, into_dalpha, into_dgamma, into_dbeta, length, segment):
    """Add up what `backward` has summed."""
    segments = -(-length // segment)
    fold_segments(dalpha, 1, into_dalpha)
    fold_segments(dgamma, segments, into_dgamma)
    fold_segments(dbeta, segments, into_dbeta)


@njit(**CALLED)
def finish_columns(
    dalpha, dgamma, dgamma_lost, dbeta, dbeta_lost, into_dalpha, into_dgamma, into_dbeta,
    repeat, length, padded,
):  # fmt: skip
    """Add up what `backward_of_columns` has summed."""
    fold_segments(dalpha, 1, into_dalpha)
    fold_columns(dgamma, dgamma_lost, padded, length, repeat, into_dgamma)
    fold_columns(dbeta, dbeta_lost, padded, length, repeat, into_dbeta)


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task


def backward_task(kinds):
    """`backward` as a task, and where sums go in the end. Who finishes last adds them up."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        backward(*(given[:8] + given[11:]))
        if increment(words, FINISHED) == num_parts - 1:
            finish(*given[5:13])

    return task


def backward_of_columns_task(kinds):
    """`backward_of_columns` as a task, and where sums go in the end."""

    def task(words, part, num_parts):
        given = arguments(words, kinds, part, num_parts)
        backward_of_columns(*(given[:10] + given[14:]))
        if increment(words, FINISHED) == num_parts - 1:
            finish_columns(*given[5:16])

    return task
