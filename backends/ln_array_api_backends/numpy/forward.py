"""The forward pass over rows, for every dtype, with and without mean, gamma and beta."""

from __future__ import annotations

import math

from numba import njit, prange

from .access import element, fence, invert_roots, memory, scratch
from .moments import judged, mean_of
from .simd import beside, number, ones, splat, total
from .sweeps import AHEAD, INLINE, OPTIONS, finish_row, normalise, rough_mean, sums

#: Bytes of a row up to which the cache holds it and the next.
LONG = 128 << 10
#: Rows that are taken at once, and bytes that these may be, so that they stay in the first cache.
AT_ONCE, AT_ONCE_BYTES = 16, 6144


@njit(**INLINE)
def keep(mean, rstd, row, factor, rough, missed, root):
    """Put the statistics of a row where they belong."""
    rstd[row, 0] = root * factor
    if mean is not None:
        mean[row, 0] = mean_of(factor, rough, missed)


@njit(**OPTIONS)
def forward(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams, start, stop):
    """Rows start to stop. A row whose squares leave the range of the dtype is scaled first."""
    n, size = x.shape[1], x.itemsize
    per_row = n if repeat is None else n // repeat
    x_, y_ = memory(x), memory(y)
    gamma_, beta_ = memory(gamma), memory(beta)
    ahead = AHEAD // size if streams else 0
    if streams and repeat is None and n * size <= LONG:
        one_by_one(x_, gamma_, beta_, y_, mean, rstd, n, epsilon, groups, ahead, start, stop)
    else:
        several_at_once(
            x_, gamma_, beta_, y_, mean, rstd, n, epsilon, groups, repeat, per_row, streams,
            ahead, max(1, min(AT_ONCE, AT_ONCE_BYTES // (n * size))),
            start, stop,
        )  # fmt: skip


@njit(**OPTIONS)
def one_by_one(x, gamma, beta, y, mean, rstd, n, epsilon, groups, ahead, start, stop):
    """Rows whose results leave the cache: one is written while the next is read."""
    one = ones(rstd)
    unit, share = number(1.0, one), number(1.0 / n, one)
    centered = memory(mean)
    o = start * n
    rough = total(one - one) if mean is None else rough_mean(x, o, n, one)
    deviation, square = sums(x, o, n, one, splat(-rough), 0, None)
    for row in range(start, stop):
        o, p = row * n, (row % groups) * n
        factor, rough, missed, _, spread = judged(
            x, (o, n, 1, n), share, one, centered, epsilon, rough, deviation, square
        )
        root = unit / math.sqrt(spread)
        keep(mean, rstd, row, factor, rough, missed, root)
        this = (
            y, o, splat(factor), splat(-rough), beside(centered, splat(missed)), splat(root),
            gamma, beta, p,
        )  # fmt: skip
        if row + 1 < stop:
            rough = total(one - one) if mean is None else rough_mean(x, o + n, n, one)
            deviation, square = sums(x, o + n, n, one, splat(-rough), ahead, this)
        else:
            finish_row(x, 0, n, this)
    fence()


@njit(**OPTIONS)
def several_at_once(
    x, gamma, beta, y, mean, rstd, n, epsilon, groups, repeat, per_row, streams, ahead, at_once,
    start, stop,
):  # fmt: skip
    """Rows, a step for several of them after the other.

    The chain of sums, root and quotient is long beside a short row, but those of several overlap.
    """
    one = ones(rstd)
    unit, zero, share = number(1.0, one), number(0.0, one), number(1.0 / n, one)
    centered = memory(mean)
    roughs, misses = scratch(one, AT_ONCE), scratch(one, AT_ONCE)
    roots, factors = scratch(one, AT_ONCE), scratch(one, AT_ONCE)
    for k in range(AT_ONCE):
        roughs[k], roots[k] = zero, unit
    for begin in range(start, stop, at_once):
        count = min(at_once, stop - begin)
        for k in range(count):
            roughs[k] = zero if mean is None else rough_mean(x, (begin + k) * n, n, one)
        for k in range(count):
            o = (begin + k) * n
            deviation, square = sums(x, o, n, one, splat(-roughs[k]), ahead, None)
            factors[k], roughs[k], misses[k], _, roots[k] = judged(
                x, (o, n, 1, n), share, one, centered, epsilon, roughs[k], deviation, square
            )
        invert_roots(roots, one, AT_ONCE)
        for k in range(count):
            row = begin + k
            rough, missed, root, factor = roughs[k], misses[k], roots[k], factors[k]
            keep(mean, rstd, row, factor, rough, missed, root)
            o, p = row * n, (row % groups) * per_row
            offset, rest = splat(-rough), beside(centered, splat(missed))
            if repeat is None:
                normalise(
                    x, y, o, n, splat(factor), offset, rest, splat(root), gamma, beta, p,
                    streams,
                )  # fmt: skip
            else:
                for segment in range(per_row):
                    g, b = element(gamma, p + segment, one), element(beta, p + segment, one)
                    normalise(
                        x, y, o + segment * repeat, repeat, splat(factor), offset, rest,
                        splat(root), g, b, 0, streams,
                    )  # fmt: skip
    if streams:
        fence()


@njit(parallel=True, **OPTIONS)
def forward_in_parallel(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams, parts):
    """All rows, in parts, which may run at the same time."""
    m = x.shape[0]
    for part in prange(parts):
        start, stop = m * part // parts, m * (part + 1) // parts
        forward(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams, start, stop)
