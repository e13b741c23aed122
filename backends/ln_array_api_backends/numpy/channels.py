"""Passes over channels that lie in pieces, one for each sample, for every dtype.

As in `forward` and `backward`, what is None is left out at compile time. A channel is swept twice,
and all of it by one thread: the second sweep mostly finds it in the cache.
"""

from __future__ import annotations

from numba import njit

from .access import data_pointer, fence, load_broadcast
from .backward import differentiate, sums
from .compile import CALLED, INLINE
from .doubles import accumulate, sum_in_float64, zeros_float64
from .moments import judged, mean_of, root_of, sums_of_pieces
from .simd import broadcast, first_lane, ones, range_scale, reduce_add, scalar_like
from .sweeps import normalise, rough_mean
from .tasks import arguments


@njit(**INLINE)
def guess(x, where, one):
    """A guess at the mean of a channel, from four pieces; exact if it is constant."""
    o, n, pieces, apart = where
    first = rough_mean(x, o, n, one)
    rest = first - first
    for quarter in range(1, 4):
        rest += rough_mean(x, o + pieces * quarter // 4 * apart, n, one) - first
    return first + rest * scalar_like(0.25, one)


@njit(**INLINE)
def keep(mean, var, rstd, channel, factor, rough, missed, variance, root):
    """Put the statistics of a channel, of which those given are of x times factor, into place."""
    mean[channel] = mean_of(factor, rough, missed)
    if var is not None:
        var[channel] = variance / factor / factor
    rstd[channel] = root * factor


@njit(**CALLED)
def forward(x, gamma, beta, y, mean, var, rstd, epsilon, streams, start, stop):
    """Channels start to stop. One whose squares leave the range of the dtype is scaled first."""
    samples, channels, n = x.shape
    x_, y_ = data_pointer(x), data_pointer(y)
    gamma_, beta_ = data_pointer(gamma), data_pointer(beta)
    one, centered = ones(rstd), data_pointer(mean)
    share = 1.0 / (samples * n)
    apart = channels * n
    ahead = apart if streams else 0  # while a piece is swept, the next one is fetched
    for channel in range(start, stop):
        where = (channel * n, n, samples, apart)
        rough = guess(x_, where, one)
        deviation, square = sums_of_pieces(x_, where, one, broadcast(-rough), ahead)
        factor, rough, missed, variance, root = judged(
            x_, where, share, one, centered, epsilon, rough, deviation, square
        )
        keep(mean, var, rstd, channel, factor, rough, missed, variance, root)
        g, b = load_broadcast(gamma_, channel, one), load_broadcast(beta_, channel, one)
        for sample in range(samples):
            normalise(
                x_, y_, channel * n + sample * apart, n, broadcast(factor), broadcast(-rough),
                broadcast(root), broadcast(-missed * root), g, b, 0, streams,
            )  # fmt: skip
    if streams:
        fence()


@njit(**CALLED)
def inference(x, mean, var, gamma, beta, y, epsilon, streams, start, stop):
    """Pieces start to stop, in the order of memory."""
    channels, n = x.shape[1:]
    x_, y_ = data_pointer(x), data_pointer(y)
    gamma_, beta_ = data_pointer(gamma), data_pointer(beta)
    one = ones(var)
    for piece in range(start, stop):
        channel = piece % channels
        root = root_of(var[channel], epsilon, one)
        g, b = load_broadcast(gamma_, channel, one), load_broadcast(beta_, channel, one)
        normalise(
            x_,
            y_,
            piece * n,
            n,
            one,
            broadcast(-mean[channel]),
            broadcast(root),
            None,
            g,
            b,
            0,
            streams,
        )
    if streams:
        fence()


@njit(**CALLED)
def backward(dy, x, mean, rstd, gamma, dx, dgamma, dbeta, streams, start, stop):
    """Channels start to stop."""
    samples, channels, n = x.shape
    dy_, x_, gamma_, dx_ = data_pointer(dy), data_pointer(x), data_pointer(gamma), data_pointer(dx)
    mean_, rstd_ = data_pointer(mean), data_pointer(rstd)
    one = ones(rstd)
    zero, share = zeros_float64(one), 1.0 / (samples * n)
    apart = channels * n
    ahead = apart if streams else 0
    for channel in range(start, stop):
        mu, r = load_broadcast(mean_, channel, one), load_broadcast(rstd_, channel, one)
        a, b, c, rest_a, rest_b, rest_c = zero, zero, zero, zero, zero, zero
        for sample in range(samples):
            o = channel * n + sample * apart
            aa, bb, cc = sums(dy_, x_, o, n, mu, r, None, 0, ahead)
            a, rest_a = accumulate(a, rest_a, aa)
            b, rest_b = accumulate(b, rest_b, bb)
            c, rest_c = accumulate(c, rest_c, cc)
        of_dy = reduce_add(sum_in_float64(b, rest_b, one))
        _, unscale = range_scale(r)
        # In units of x_hat, no part of which it is.
        missed = reduce_add(sum_in_float64(a, rest_a, one)) * share * first_lane(r * unscale)
        of_x_hat_dy = reduce_add(sum_in_float64(c, rest_c, one)) - missed * of_dy
        if dgamma is not None:
            dgamma[channel] = of_x_hat_dy
        if dbeta is not None:
            dbeta[channel] = of_dy
        if dx is not None:
            g = load_broadcast(gamma_, channel, one)
            minus_mean = broadcast(scalar_like(-of_dy * share, one))
            minus_projection = broadcast(scalar_like(-of_x_hat_dy * share, one))
            if gamma is not None:
                minus_mean, minus_projection = minus_mean * g, minus_projection * g
            this = (mu, r, broadcast(scalar_like(-missed, one)), minus_mean, minus_projection)
            for sample in range(samples):
                o = channel * n + sample * apart
                differentiate(dy_, x_, o, n, this, g, 0, dx_, None, None, 0, streams, 0)
    if streams:
        fence()


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task


def inference_task(kinds):
    """`inference` as a task."""

    def task(words, part, num_parts):
        inference(*arguments(words, kinds, part, num_parts))

    return task


def backward_task(kinds):
    """`backward` as a task."""

    def task(words, part, num_parts):
        backward(*arguments(words, kinds, part, num_parts))

    return task
