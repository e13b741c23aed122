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
#: Exponents of 2 between which results are normal numbers.
_LEAST, _MOST = -1022.0, 1023.0
#: Beside it, a number of float64 is rounded to an integer, which stands in its last bits.
_ROUNDER = 1.5 * 2.0**52

_BIAS = 1023 << 52
_ROOT_OF_HALF = 0x3FE6A09E667F3BCD
_TWO_TO_52 = 0x4330000000000000


def _all(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _polynomial(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    """By Horner's rule."""
    result = _all(x.type, coefficients[-1])
    for each in reversed(coefficients[:-1]):
        constant = _all(x.type, each)
        result = call(builder, f"llvm.fma.{suffix(x.type)}", x.type, result, x, constant)
    return result


@intrinsic
def _log2(typing: Any, vector: Any) -> Any:
    """The logarithm of each lane, a positive normal number; finite of everything else."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole, number = ir.VectorType(I64, vector.lanes), args[0].type
        bits = builder.bitcast(args[0], whole)
        # 2**exponent times a number from 1 / sqrt(2) to sqrt(2).
        moved = builder.add(bits, _all(whole, _BIAS - _ROOT_OF_HALF))
        exponent = builder.lshr(moved, _all(whole, 52))
        rest = builder.sub(bits, builder.shl(exponent, _all(whole, 52)))
        rest = builder.bitcast(builder.add(rest, _all(whole, _BIAS)), number)
        # An integer of 12 bits becomes a number as the last bits of 2**52.
        exponent = builder.bitcast(builder.or_(exponent, _all(whole, _TWO_TO_52)), number)
        exponent = builder.fsub(exponent, _all(number, 2.0**52 + 1023))
        f = builder.fsub(rest, _all(number, 1.0))
        product = _polynomial(builder, f, _LOG2)
        return call(builder, f"llvm.fma.{suffix(number)}", number, f, product, exponent)

    return vector(vector), generate


@intrinsic
def _exp2(typing: Any, vector: Any) -> Any:
    """2 to the power of each lane, from `_LEAST` to `_MOST`, or NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole, number = ir.VectorType(I64, vector.lanes), args[0].type
        rounder = _all(number, _ROUNDER)
        beside = builder.fadd(args[0], rounder)
        f = builder.fsub(args[0], builder.fsub(beside, rounder))
        scale = builder.shl(builder.bitcast(beside, whole), _all(whole, 52))
        scale = builder.bitcast(builder.add(scale, _all(whole, _BIAS)), number)
        return builder.fmul(_polynomial(builder, f, _EXP2), scale)

    return vector(vector), generate


@njit(**INLINE)
def log2(magnitudes):
    """The logarithm of each lane of float64, a normal number; finite of 0, NaN of what is not."""
    return _log2(magnitudes) + (magnitudes - magnitudes)


@njit(**INLINE)
def exp2(exponents):
    """2 to the power of each lane of float64; the ends of the normal numbers beyond these."""
    return _exp2(at_most(at_least(exponents, broadcast(_LEAST)), broadcast(_MOST)))
