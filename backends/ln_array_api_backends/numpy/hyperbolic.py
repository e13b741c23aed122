"""Dynamic tanh, y = tanh(alpha * x) * gamma + beta, and its gradients, for every dtype.

As in `forward` and `backward`, what is None is left out at compile time. No element depends on
another, so x is cut as the parameters lie beside it: into rows of a length, and these into segments
of another. A row has one element of gamma and beta for all of it, or one for each column. A task
works on a range of segments; sums are kept apart for each segment, or for each block of rows, and
added up in order by who finishes last.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .access import (
    element,
    elements_to_alignment,
    fence,
    load,
    load_first,
    memory,
    store,
    store_first,
    stream,
)
from .atomics import increment
from .backward import times
from .column_sums import add_to, gather
from .compile import INLINE, OPTIONS
from .doubles import doubles, put_aside, put_together
from .gradient_sums import clear
from .simd import (
    I32,
    I64,
    at_most,
    call,
    fma,
    keep_first,
    lanes,
    magnitude,
    number,
    ones,
    splat,
    suffix,
    total,
    with_sign_of,
)
from .sweeps import plus, scaled_and_shifted, with_lost
from .tasks import FINISHED, arguments

#: Of float32 and float64: the coefficients of h(r), the lowest first, where expm1(r) is
#: r + r² (1/2 + r h(r)) for |r| up to ln(2) / 2. By the algorithm of Remez in 40 digits, with the
#: relative error of expm1 as the one to be least at most, then rounded: it is 1.4e-8 (0.23 * 2^-24)
#: and 2.4e-17 (0.22 * 2^-53).
_COEFFICIENTS = {
    types.float32: (
        float.fromhex("0x1.5554b8p-3"),
        float.fromhex("0x1.5555bap-5"),
        float.fromhex("0x1.122362p-7"),
        float.fromhex("0x1.6c5566p-10"),
    ),
    types.float64: (
        float.fromhex("0x1.555555555553ep-3"),
        float.fromhex("0x1.5555555553b15p-5"),
        float.fromhex("0x1.1111111118cf4p-7"),
        float.fromhex("0x1.6c16c179fbb17p-10"),
        float.fromhex("0x1.a01a0171b46c9p-13"),
        float.fromhex("0x1.a019b3a828099p-16"),
        float.fromhex("0x1.71de976b7f0e3p-19"),
        float.fromhex("0x1.289759018e07cp-22"),
        float.fromhex("0x1.ae4904cbcc2f5p-26"),
    ),
}
#: -ln(2), rounded to the dtype, and what that has lost.
_MINUS_LN2 = {
    types.float32: (float.fromhex("-0x1.62e430p-1"), float.fromhex("0x1.05c610p-29")),
    types.float64: (
        float.fromhex("-0x1.62e42fefa39efp-1"),
        float.fromhex("-0x1.abc9e3b39803fp-56"),
    ),
}
#: How many bits of a number follow its exponent, and a number whose last bit is worth 1.
_BITS = {types.float32: 23, types.float64: 52}
_UNIT = {kind: 1.5 * 2.0**bits for kind, bits in _BITS.items()}
#: In round numbers: from where on tanh is 1 to a dtype, and from where on its slope is 0.
_FLAT = {types.float32: (12.0, 60.0), types.float64: (24.0, 380.0)}


def _every(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


@intrinsic
def constants(typing: Any, like: Any) -> Any:
    """Of a dtype: `_UNIT`, both parts of `_MINUS_LN2`, both of `_FLAT`."""
    values = _UNIT[like.scalar], *_MINUS_LN2[like.scalar], *_FLAT[like.scalar]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = [_every(args[0].type, value) for value in values]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(like, len(values))(like), generate


@intrinsic
def polynomial(typing: Any, r: Any) -> Any:
    """H(r) by Horner's rule."""
    *rest, last = _COEFFICIENTS[r.scalar]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        result = _every(kind, last)
        for coefficient in reversed(rest):
            term = _every(kind, coefficient)
            result = call(builder, f"llvm.fma.{suffix(kind)}", kind, result, args[0], term)
        return result

    return r(r), generate


@intrinsic
def power_of_two(typing: Any, shifted: Any) -> Any:
    """2^n of an integer n in each lane, which `_UNIT` was added to: so n is in its last bits."""
    bits, integer = _BITS[shifted.scalar], I32 if shifted.scalar == types.float32 else I64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = ir.VectorType(integer, shifted.lanes)
        exponent = builder.shl(builder.bitcast(args[0], integers), _every(integers, bits))
        one = builder.bitcast(_every(args[0].type, 1.0), integers)
        return builder.bitcast(builder.add(exponent, one), args[0].type)

    return shifted(shifted), generate


@njit(**INLINE)
def every(value, like):
    """A number in every lane of a vector like another."""
    return splat(number(value, like))


@njit(**INLINE)
def exponential(a):
    """N, with `_UNIT` added to it, and p with exp(-2a) = 2^n * (1 + p).

    P is expm1 of -2a - n ln(2), which is at most ln(2) / 2; n is 0 where a is small.
    """
    unit, minus_ln2, lost, _, _ = constants(a)
    shifted = fma(a, every(-2 / 0.6931471805599453, a), unit)
    n = shifted - unit
    r = fma(n, lost, fma(n, minus_ln2, a * every(-2.0, a)))
    return shifted, fma(r * r, fma(r, polynomial(r), every(0.5, a)), r)


@njit(**INLINE)
def tangent(u):
    """Tanh of each lane, to 2 units in the last place: -e / (2 + e) with e = expm1(-2|u|)."""
    a = at_most(magnitude(u), constants(u)[3])
    shifted, p = exponential(a)
    scale = power_of_two(shifted)
    e = fma(scale, p, scale - every(1.0, u))
    return with_sign_of(e / (e + every(2.0, u)), u)


@njit(**INLINE)
def tangent_and_slope(u):
    """The same, and 1 - tanh² = 4s / (1 + s)² with s = exp(-2|u|), also where s is subnormal.

    Its power of two comes in two factors, since it may be less than a normal number.
    """
    unit, _, _, _, vanishing = constants(u)
    one, two = every(1.0, u), every(2.0, u)
    shifted, p = exponential(at_most(magnitude(u), vanishing))
    half = fma(shifted - unit, every(0.5, u), unit)
    first, second = power_of_two(half), power_of_two(shifted - half + unit)
    scale = first * second
    e = fma(scale, p, scale - one)
    divisor = e + two
    slope = (one + p) * first / (divisor * divisor) * (second * every(4.0, u))
    return with_sign_of(e / divisor, u), slope


@njit(**INLINE)
def squash(x, y, o, n, alpha, gamma, beta, p, streams):
    """Y for n elements from o on, whose parameters are from p on."""
    width = lanes(alpha)
    j = 0
    if streams:
        j = min(elements_to_alignment(y, o, alpha), n)
        if j:
            values = tangent(load_first(x, o, j, alpha) * alpha)
            store_first(y, o, scaled_and_shifted(values, gamma, beta, p, j), j)
    while j + width <= n:
        values = tangent(load(x, o + j, alpha) * alpha)
        values = scaled_and_shifted(values, gamma, beta, p + j, None)
        if streams:
            stream(y, o + j, values)
        else:
            store(y, o + j, values)
        j += width
    if j < n:
        values = tangent(load_first(x, o + j, n - j, alpha) * alpha)
        store_first(y, o + j, scaled_and_shifted(values, gamma, beta, p + j, n - j), n - j)


@njit(**INLINE)
def bounds(i, size, length, segment):
    """Of a segment: its row, where it begins in that and in x, and how many elements it has."""
    segments = -(-length // segment)
    row, left = i // segments, i % segments * segment
    o = row * length + left
    return row, left, o, min(segment, length - left, size - o)


@njit(**OPTIONS)
def forward(x, alpha, gamma, beta, y, length, segment, parameters, streams, start, stop):
    """Segments start to stop. `parameters` is None if there is one for each column."""
    x_, y_, gamma_, beta_ = memory(x), memory(y), memory(gamma), memory(beta)
    alpha_ = element(memory(alpha), 0, ones(x))
    for i in range(start, stop):
        row, left, o, n = bounds(i, x.size, length, segment)
        if parameters is None:
            squash(x_, y_, o, n, alpha_, gamma_, beta_, left, streams)
        else:
            g, b = (
                element(gamma_, row % parameters, alpha_),
                element(beta_, row % parameters, alpha_),
            )
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
        v, d = load_first(x, i, count, alpha), load_first(dy, i, count, alpha)
    t, slope = tangent_and_slope(v * alpha)
    g = times(d, gamma, p, count, None)
    of_gamma, of_alpha = d * t, g * (slope * v)
    if dx is not None:
        values = g * (slope * alpha)
        if count is not None:
            store_first(dx, i, values, count)
        elif streams:
            stream(dx, i, values)
        else:
            store(dx, i, values)
    if count is not None:  # gamma and alpha may be infinite
        of_gamma, of_alpha = keep_first(of_gamma, count), keep_first(of_alpha, count)
    return d, of_gamma, of_alpha


@njit(**INLINE)
def streams_to(dx, o, streams, like):
    """Whether a segment of dx is streamed: vectors that began elsewhere had other sums."""
    return streams and elements_to_alignment(dx, o, like) == 0


@njit(**OPTIONS)
def backward(
    dy, x, alpha, gamma, dx, dalpha, dgamma, dbeta, length, segment, parameters, streams,
    start, stop,
):  # fmt: skip
    """Segments start to stop of rows with a parameter each, and their sums in float64."""
    dy_, x_, gamma_, dx_ = memory(dy), memory(x), memory(gamma), memory(dx)
    alpha_ = element(memory(alpha), 0, ones(x))
    zero, width = doubles(alpha_), lanes(alpha_)
    for i in range(start, stop):
        row, _, o, n = bounds(i, x.size, length, segment)
        g = element(gamma_, row % parameters, alpha_)
        streamed = streams_to(dx_, o, streams, alpha_)
        a, b, c, rest_a, rest_b, rest_c = zero, zero, zero, zero, zero, zero
        j = 0
        while j < n:
            if j + width <= n:
                aa, bb, cc = differentiate(dy_, x_, o + j, None, alpha_, g, 0, dx_, streamed)
            else:
                aa, bb, cc = differentiate(dy_, x_, o + j, n - j, alpha_, g, 0, dx_, streamed)
            a, rest_a = put_aside(a, rest_a, aa)
            b, rest_b = put_aside(b, rest_b, bb)
            c, rest_c = put_aside(c, rest_c, cc)
            j += width
        if dbeta is not None:
            dbeta[i] = total(put_together(a, rest_a, alpha_))
        if dgamma is not None:
            dgamma[i] = total(put_together(b, rest_b, alpha_))
        if dalpha is not None:
            dalpha[i] = total(put_together(c, rest_c, alpha_))
    if streams:
        fence()


@njit(**INLINE)
def add_first(sums, lost, i, values):
    """`add_to`, where there are sums."""
    if sums is not None:
        add_to(sums, lost, i, values)


@njit(**OPTIONS)
def backward_of_columns(
    dy, x, alpha, gamma, dx, dalpha, dgamma, dgamma_lost, dbeta, dbeta_lost, length, padded,
    segment, rows, streams, start, stop,
):  # fmt: skip
    """Segments of blocks of rows, start to stop, with a parameter for each column.

    A block has a table of `padded` sums for each parameter, and each segment of it a sum for alpha.
    """
    dy_, x_, gamma_, dx_ = memory(dy), memory(x), memory(gamma), memory(dx)
    dgamma_, dgamma_lost_ = memory(dgamma), memory(dgamma_lost)
    dbeta_, dbeta_lost_ = memory(dbeta), memory(dbeta_lost)
    alpha_ = element(memory(alpha), 0, ones(x))
    zero, width = doubles(alpha_), lanes(alpha_)
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
                c, rest = put_aside(c, rest, cc)
                j += width
        if dalpha is not None:
            dalpha[i] = total(put_together(c, rest, alpha_))
    if streams:
        fence()


@njit(**INLINE)
def fold(sums, size, trail, into):
    """Each parameter's sum of the first `size` sums, of which `trail` after each other are its."""
    if into is not None:
        apart = into.size * trail
        for parameter in range(into.size):
            sum_, lost = 0.0, 0.0
            for first in range(parameter * trail, size, apart):
                for i in range(first, first + trail):
                    sum_, lost = plus(sum_, lost, sums[i])
            into[parameter] = with_lost(sum_, lost)


@njit(**INLINE)
def fold_rows(sums, segments, into):
    """`fold` of what the segments of rows have summed."""
    if into is not None:
        fold(sums, sums.size, segments, into)


@njit(**INLINE)
def fold_all(sums, into):
    """The sum of all sums."""
    if into is not None:
        fold(sums, sums.size, sums.size, into)


@njit(**INLINE)
def fold_columns(sums, lost, padded, length, repeat, into):
    """The same as `fold` of what the blocks have summed, of which a parameter has more columns."""
    if into is not None:
        gather(sums, lost, padded)
        fold(sums, length, repeat, into)


@njit(**OPTIONS)
def finish(dalpha, dgamma, dbeta, into_dalpha, into_dgamma, into_dbeta, length, segment):
    """Add up what `backward` has summed."""
    segments = -(-length // segment)
    fold_all(dalpha, into_dalpha)
    fold_rows(dgamma, segments, into_dgamma)
    fold_rows(dbeta, segments, into_dbeta)


@njit(**OPTIONS)
def finish_columns(
    dalpha, dgamma, dgamma_lost, dbeta, dbeta_lost, into_dalpha, into_dgamma, into_dbeta,
    repeat, length, padded,
):  # fmt: skip
    """Add up what `backward_of_columns` has summed."""
    fold_all(dalpha, into_dalpha)
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
