"""Logarithms and powers of 2 of vectors of float64, good enough for results in float32.

The coefficients below were computed in 40 digits: polynomials that agree with the function at the
Chebyshev nodes of its interval, whose errors are nearly the least that their degree allows. Errors
given are the largest at 4000 places of the interval, with the coefficients as they are rounded.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit
from numba.extending import intrinsic

from .compile import INLINE
from .simd import I64, at_least, at_most, broadcast, call, suffix

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

_BIAS = 1023 << 52
_ROOT_OF_HALF = 0x3FE6A09E667F3BCD
_TWO_TO_52 = 0x4330000000000000


def _constant_vector(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _polynomial(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    """By Horner's rule."""
    result = _constant_vector(x.type, coefficients[-1])
    for each in reversed(coefficients[:-1]):
        constant = _constant_vector(x.type, each)
        result = call(builder, f"llvm.fma.{suffix(x.type)}", x.type, result, x, constant)
    return result


@intrinsic
def _log2(typing: Any, vector: Any) -> Any:
    """Return log2 of each lane, if it is a positive normal number; else a finite number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        int_type, float_type = ir.VectorType(I64, vector.lanes), args[0].type
        bits = builder.bitcast(args[0], int_type)
        # 2**exponent times a number from 1 / sqrt(2) to sqrt(2).
        moved = builder.add(bits, _constant_vector(int_type, _BIAS - _ROOT_OF_HALF))
        exponent = builder.lshr(moved, _constant_vector(int_type, 52))
        mantissa = builder.sub(bits, builder.shl(exponent, _constant_vector(int_type, 52)))
        mantissa = builder.bitcast(
            builder.add(mantissa, _constant_vector(int_type, _BIAS)), float_type
        )
        # An integer of 12 bits becomes a number as the last bits of 2**52.
        exponent = builder.bitcast(
            builder.or_(exponent, _constant_vector(int_type, _TWO_TO_52)), float_type
        )
        exponent = builder.fsub(exponent, _constant_vector(float_type, 2.0**52 + 1023))
        f = builder.fsub(mantissa, _constant_vector(float_type, 1.0))
        product = _polynomial(builder, f, _LOG2)
        return call(builder, f"llvm.fma.{suffix(float_type)}", float_type, f, product, exponent)

    return vector(vector), generate


@intrinsic
def _exp2(typing: Any, vector: Any) -> Any:
    """Return 2 to the power of each lane, which is from `_LEAST` to `_MOST`, or NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        int_type, float_type = ir.VectorType(I64, vector.lanes), args[0].type
        rounder = _constant_vector(float_type, _ROUNDER)
        shifted = builder.fadd(args[0], rounder)
        f = builder.fsub(args[0], builder.fsub(shifted, rounder))
        scale = builder.shl(builder.bitcast(shifted, int_type), _constant_vector(int_type, 52))
        scale = builder.bitcast(builder.add(scale, _constant_vector(int_type, _BIAS)), float_type)
        return builder.fmul(_polynomial(builder, f, _EXP2), scale)

    return vector(vector), generate


@njit(**INLINE)
def log2(magnitudes):
    """Return log2 of each float64 lane; finite for 0, and NaN for what is not finite."""
    return _log2(magnitudes) + (magnitudes - magnitudes)


@njit(**INLINE)
def exp2(exponents):
    """Return 2 to the power of each float64 lane, clamped to the normal numbers."""
    return _exp2(at_most(at_least(exponents, broadcast(_LEAST)), broadcast(_MOST)))
