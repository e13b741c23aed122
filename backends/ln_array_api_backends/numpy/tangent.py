"""The hyperbolic tangent of vectors, and its slope, to a few units in the last place.

Written as the other vectors are, so that an element has the same bits in every lane.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .compile import INLINE
from .simd import (
    I32,
    I64,
    absolute,
    at_most,
    broadcast,
    call,
    fma,
    scalar_like,
    suffix,
    with_sign_of,
)

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
#: -ln(2), rounded to the dtype, and the rest.
_MINUS_LN2 = {
    types.float32: (float.fromhex("-0x1.62e430p-1"), float.fromhex("0x1.05c610p-29")),
    types.float64: (
        float.fromhex("-0x1.62e42fefa39efp-1"),
        float.fromhex("-0x1.abc9e3b39803fp-56"),
    ),
}
#: The number of mantissa bits, and a number whose last bit is worth 1.
_BITS = {types.float32: 23, types.float64: 52}
_UNIT = {kind: 1.5 * 2.0**bits for kind, bits in _BITS.items()}
#: Roughly, the arguments from which on tanh rounds to 1, and from which on its slope is 0.
_FLAT = {types.float32: (12.0, 60.0), types.float64: (24.0, 380.0)}


def _constant_vector(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


@intrinsic
def dtype_constants(typing: Any, like: Any) -> Any:
    """Return `_UNIT`, both parts of `_MINUS_LN2`, and both of `_FLAT` for a dtype, as vectors."""
    values = _UNIT[like.scalar], *_MINUS_LN2[like.scalar], *_FLAT[like.scalar]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = [_constant_vector(args[0].type, value) for value in values]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(like, len(values))(like), generate


@intrinsic
def polynomial(typing: Any, r: Any) -> Any:
    """Return h(r) by Horner's rule."""
    *rest, last = _COEFFICIENTS[r.scalar]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        result = _constant_vector(kind, last)
        for coefficient in reversed(rest):
            term = _constant_vector(kind, coefficient)
            result = call(builder, f"llvm.fma.{suffix(kind)}", kind, result, args[0], term)
        return result

    return r(r), generate


@intrinsic
def power_of_two(typing: Any, shifted: Any) -> Any:
    """Return 2^n for n + `_UNIT` in each lane, where the integer n is in the last bits."""
    bits, integer = _BITS[shifted.scalar], I32 if shifted.scalar == types.float32 else I64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = ir.VectorType(integer, shifted.lanes)
        exponent = builder.shl(builder.bitcast(args[0], integers), _constant_vector(integers, bits))
        one = builder.bitcast(_constant_vector(args[0].type, 1.0), integers)
        return builder.bitcast(builder.add(exponent, one), args[0].type)

    return shifted(shifted), generate


@njit(**INLINE)
def broadcast_like(value, like):
    """Broadcast a number to a vector like another."""
    return broadcast(scalar_like(value, like))


@njit(**INLINE)
def exponential(a):
    """Return n + `_UNIT`, and p with exp(-2a) = 2^n * (1 + p).

    p is expm1 of -2a - n ln(2), which is at most ln(2) / 2; n is 0 where a is small.
    """
    unit, minus_ln2, minus_ln2_low, _, _ = dtype_constants(a)
    shifted = fma(a, broadcast_like(-2 / 0.6931471805599453, a), unit)
    n = shifted - unit
    r = fma(n, minus_ln2_low, fma(n, minus_ln2, a * broadcast_like(-2.0, a)))
    return shifted, fma(r * r, fma(r, polynomial(r), broadcast_like(0.5, a)), r)


@njit(**INLINE)
def tangent(u):
    """Return tanh of each lane, to 2 ulp: -e / (2 + e) with e = expm1(-2|u|)."""
    a = at_most(absolute(u), dtype_constants(u)[3])
    shifted, p = exponential(a)
    scale, one = power_of_two(shifted), broadcast_like(1.0, u)
    return with_sign_of(fma(scale, p, scale - one) / fma(scale, p, scale + one), u)


@njit(**INLINE)
def tangent_and_slope(u):
    """Return tanh and its slope 1 - tanh² = 4s / (1 + s)² with s = exp(-2|u|).

    The power of two in s has two factors, since it may be subnormal.
    """
    unit, _, _, _, vanishing = dtype_constants(u)
    one = broadcast_like(1.0, u)
    shifted, p = exponential(at_most(absolute(u), vanishing))
    half = fma(shifted - unit, broadcast_like(0.5, u), unit)
    first, second = power_of_two(half), power_of_two(shifted - half + unit)
    scale = first * second
    e, divisor = fma(scale, p, scale - one), fma(scale, p, scale + one)
    slope = (one + p) * first / (divisor * divisor) * (second * broadcast_like(4.0, u))
    return with_sign_of(e / divisor, u), slope
