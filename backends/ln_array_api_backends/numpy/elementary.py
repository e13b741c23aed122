"""Elementary functions of vectors; an element has the same bits in every lane.

- log2 and exp2 of float64 vectors are accurate enough for results in float32. Their polynomials
  agree with the function at the Chebyshev nodes of the interval, so their errors are near the least
  for their degree. The stated errors are the largest at 4000 points of the interval, with rounded
  coefficients.
- tanh and its slope are accurate to a few units in the last place of each dtype.

All coefficients were computed in 40 digits.
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
    at_least,
    at_most,
    broadcast,
    broadcast_like,
    call_lanewise,
    fma,
    lanewise,
    with_sign_of,
)

#: log2(1 + f) / f for 1 + f from 1 / sqrt(2) to sqrt(2). Times f, it is off by 2.4e-13.
_LOG2 = (
    1.4426950408892767,
    -0.7213475204230224,
    0.4808983466468056,
    -0.36067376647095917,
    0.2885390630797365,
    -0.24044867672015177,
    0.20609559789891455,
    -0.180352394846402,
    0.16041922068856115,
    -0.14408723643734014,
    0.12918126251416429,
    -0.11999522531685416,
    0.12624166234975334,
    -0.12216563305671267,
    0.06164348424505577,
)
#: 2**f for f from -0.5 to 0.5, off by 1.1e-12 of itself.
_EXP2 = (
    1.0,
    0.6931471805459335,
    0.2402265069581299,
    0.05550410941205933,
    0.009618129159402558,
    0.0013333450568000645,
    0.00015403455852453838,
    1.5310079402249296e-05,
    1.3255224878668817e-06,
)
#: Smallest and largest exponent of 2 for which results are normal numbers.
_LEAST, _MOST = -1022.0, 1023.0
#: A float64 number added to it is rounded to an integer, which is in the last bits of the sum.
_ROUNDER = 1.5 * 2.0**52

#: For each dtype: the coefficients of h(r), lowest order first, where expm1(r) is
#: r + r² (1/2 + r h(r)) for |r| up to ln(2) / 2. The Remez algorithm minimised the largest relative
#: error of expm1; with rounded coefficients it is 1.4e-8 (0.23 * 2^-24) and 2.4e-17 (0.22 * 2^-53).
_EXPM1 = {
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
#: -ln(2), rounded to the dtype, and the remainder.
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
#: Approximate arguments from which tanh rounds to 1, and from which its slope is 0.
_FLAT = {types.float32: (12.0, 60.0), types.float64: (24.0, 380.0)}

_BIAS = 1023 << 52
_ROOT_OF_HALF = 0x3FE6A09E667F3BCD
_TWO_TO_52 = 0x4330000000000000


def _constant_vector(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _polynomial(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    """Emit a polynomial by Horner's rule, for coefficients from the lowest order on."""
    result = _constant_vector(x.type, coefficients[-1])
    for each in reversed(coefficients[:-1]):
        result = call_lanewise(builder, "fma", result, x, _constant_vector(x.type, each))
    return result


@lanewise
def _log2(builder: Any, vector: Any) -> Any:
    """Return log2 of each lane, if it is a positive normal number; else a finite number."""
    int_type, float_type = ir.VectorType(I64, vector.type.count), vector.type
    bits = builder.bitcast(vector, int_type)
    # 2**exponent times a number from 1 / sqrt(2) to sqrt(2).
    moved = builder.add(bits, _constant_vector(int_type, _BIAS - _ROOT_OF_HALF))
    exponent = builder.lshr(moved, _constant_vector(int_type, 52))
    mantissa = builder.sub(bits, builder.shl(exponent, _constant_vector(int_type, 52)))
    mantissa = builder.bitcast(builder.add(mantissa, _constant_vector(int_type, _BIAS)), float_type)
    # An integer of 12 bits becomes a number as the last bits of 2**52.
    exponent = builder.bitcast(
        builder.or_(exponent, _constant_vector(int_type, _TWO_TO_52)), float_type
    )
    exponent = builder.fsub(exponent, _constant_vector(float_type, 2.0**52 + 1023))
    f = builder.fsub(mantissa, _constant_vector(float_type, 1.0))
    product = _polynomial(builder, f, _LOG2)
    return call_lanewise(builder, "fma", f, product, exponent)


@lanewise
def _exp2(builder: Any, vector: Any) -> Any:
    """Return 2 to the power of each lane, which is from `_LEAST` to `_MOST`, or NaN."""
    int_type, float_type = ir.VectorType(I64, vector.type.count), vector.type
    rounder = _constant_vector(float_type, _ROUNDER)
    shifted = builder.fadd(vector, rounder)
    f = builder.fsub(vector, builder.fsub(shifted, rounder))
    scale = builder.shl(builder.bitcast(shifted, int_type), _constant_vector(int_type, 52))
    scale = builder.bitcast(builder.add(scale, _constant_vector(int_type, _BIAS)), float_type)
    return builder.fmul(_polynomial(builder, f, _EXP2), scale)


@njit(**INLINE)
def log2(magnitudes):
    """Return log2 of each float64 lane; finite for 0, and NaN for what is not finite."""
    return _log2(magnitudes) + (magnitudes - magnitudes)


@njit(**INLINE)
def exp2(exponents):
    """Return 2 to the power of each float64 lane, clamped to the normal numbers."""
    return _exp2(at_most(at_least(exponents, broadcast(_LEAST)), broadcast(_MOST)))


@intrinsic
def dtype_constants(typing: Any, like: Any) -> Any:
    """Return `_UNIT`, both parts of `_MINUS_LN2`, and both of `_FLAT` for a dtype, as vectors."""
    values = _UNIT[like.scalar], *_MINUS_LN2[like.scalar], *_FLAT[like.scalar]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = [_constant_vector(args[0].type, value) for value in values]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(like, len(values))(like), generate


@intrinsic
def expm1_polynomial(typing: Any, r: Any) -> Any:
    """Return h(r)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _polynomial(builder, args[0], _EXPM1[r.scalar])

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
def exponential(a):
    """Return n + `_UNIT`, and p with exp(-2a) = 2^n * (1 + p).

    p is expm1 of -2a - n ln(2), which is at most ln(2) / 2; n is 0 where a is small.
    """
    unit, minus_ln2, minus_ln2_low, _, _ = dtype_constants(a)
    shifted = fma(a, broadcast_like(-2 / 0.6931471805599453, a), unit)
    n = shifted - unit
    r = fma(n, minus_ln2_low, fma(n, minus_ln2, a * broadcast_like(-2.0, a)))
    return shifted, fma(r * r, fma(r, expm1_polynomial(r), broadcast_like(0.5, a)), r)


@njit(**INLINE)
def tanh(u):
    """Return tanh of each lane, to 2 ulp: -e / (2 + e) with e = expm1(-2|u|)."""
    a = at_most(absolute(u), dtype_constants(u)[3])
    shifted, p = exponential(a)
    scale, one = power_of_two(shifted), broadcast_like(1.0, u)
    return with_sign_of(fma(scale, p, scale - one) / fma(scale, p, scale + one), u)


@njit(**INLINE)
def tanh_and_slope(u):
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
