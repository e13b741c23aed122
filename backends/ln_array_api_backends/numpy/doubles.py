"""Sums of vectors in float64, or of float64 with what their rounding loses; and back from these."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import DOUBLE, FLOAT, Vector, build_broadcast, call, lanes_of, suffix


def _halves(builder: Any, value: Any) -> list[Any]:
    """Both halves of a vector of float32, in float64."""
    half = value.type.count // 2
    return [
        builder.fpext(
            lanes_of(builder, value, value, list(range(start, start + half))),
            ir.VectorType(DOUBLE, half),
        )
        for start in (0, half)
    ]


@intrinsic
def zeros_float64(typing: Any, like: Any) -> Any:
    """A vector of zeros in float64, whatever another is of."""
    kind = Vector(types.float64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.VectorType(DOUBLE, kind.lanes), None)

    return kind(like), generate


@intrinsic
def to_float64(typing: Any, vector: Any) -> Any:
    """Both halves of a vector of float32, in float64; a vector of float64, and it again."""
    kind = Vector(types.float64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = vector.scalar == types.float64
        pair = [args[0], args[0]] if wide else _halves(builder, args[0])
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(kind, 2)(vector), generate


@intrinsic
def accumulate(typing: Any, sum_: Any, rest: Any, values: Any) -> Any:
    """A sum of vectors in two vectors of float64, with another added to it.

    Of float32, they are the sums of the halves. Of float64, they are the sum, and what its rounding
    has lost, by Knuth, The Art of Computer Programming 2, 4.2.2, theorem B.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, more, value = args
        if values.scalar == types.float32:
            first, last = _halves(builder, value)
            pair = builder.fadd(total, first), builder.fadd(more, last)
        else:
            new = builder.fadd(total, value)
            added = builder.fsub(new, total)
            lost = builder.fadd(
                builder.fsub(total, builder.fsub(new, added)), builder.fsub(value, added)
            )
            pair = new, builder.fadd(more, lost)
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(sum_, 2)(sum_, rest, values), generate


def _without_nan(builder: Any, lost: Any) -> Any:
    """What a sum has lost: nothing where that is NaN, as it is beside an infinity."""
    known = builder.fcmp_ordered("ord", lost, lost)
    return builder.select(known, lost, ir.Constant(lost.type, None))


@intrinsic
def sum_in_float64(typing: Any, sum_: Any, rest: Any, like: Any) -> Any:
    """The sum that `accumulate` has made of vectors like another, so much in each lane of float64.

    Of float32, half of the lanes are added to the other half.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, more, _ = args
        if like.scalar == types.float64:
            more = _without_nan(builder, more)
        return builder.fadd(total, more)

    return sum_(sum_, rest, like), generate


@intrinsic
def sum_in_dtype(typing: Any, sum_: Any, rest: Any, like: Any) -> Any:
    """The sum that `accumulate` has made of vectors like another, lane by lane, in their dtype."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, more, value = args
        if like.scalar == types.float64:
            return builder.fadd(total, _without_nan(builder, more))
        return _joined(builder, total, more, value.type)

    return like(sum_, rest, like), generate


def _joined(builder: Any, first: Any, last: Any, kind: Any) -> Any:
    """The vector of float32 whose halves these of float64 are."""
    half = ir.VectorType(FLOAT, kind.count // 2)
    low, high = builder.fptrunc(first, half), builder.fptrunc(last, half)
    return lanes_of(builder, low, high, list(range(kind.count)))


@intrinsic
def from_float64(typing: Any, first: Any, last: Any, like: Any) -> Any:
    """The vector whose halves these are, rounded to the dtype of another; `first` if of float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[2].type
        return args[0] if kind.element == DOUBLE else _joined(builder, args[0], args[1], kind)

    return like(first, last, like), generate


@intrinsic
def reciprocal_sqrt(typing: Any, vector: Any, like: Any) -> Any:
    """1 / sqrt of each lane of float64, as exact as another vector's dtype can hold it.

    For float32 it is computed in that, and made up for by a step of Newton's method.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[0]
        wide = value.type
        one = build_broadcast(builder, DOUBLE(1.0), wide.count)
        if like.scalar == types.float64:
            return builder.fdiv(one, call(builder, f"llvm.sqrt.{suffix(wide)}", wide, value))
        kind = ir.VectorType(FLOAT, wide.count)
        narrow = builder.fptrunc(value, kind)
        root = call(builder, f"llvm.sqrt.{suffix(kind)}", kind, narrow)
        root = builder.fdiv(build_broadcast(builder, FLOAT(1.0), wide.count), root)
        root = builder.fpext(root, wide)
        error = builder.fsub(one, builder.fmul(builder.fmul(value, root), root))
        half = build_broadcast(builder, DOUBLE(0.5), wide.count)
        return builder.fadd(root, builder.fmul(builder.fmul(root, half), error))

    return vector(vector, like), generate
