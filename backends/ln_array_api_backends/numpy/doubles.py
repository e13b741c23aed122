"""Sums of vectors in float64; sums of float64 vectors are compensated.

A sum is a pair of float64 vectors. For float32 terms, they are the sums of the lower and of the
upper halves. For float64 terms, they are the sum and its compensation.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import DOUBLE, FLOAT, Vector, build_broadcast, call, lanes_of, suffix


def _halves(builder: Any, value: Any) -> list[Any]:
    """Emit the conversion of both halves of a float32 vector to float64."""
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
    """Return a float64 vector of zeros, for a `like` of either dtype."""
    kind = Vector(types.float64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.VectorType(DOUBLE, kind.lanes), None)

    return kind(like), generate


@intrinsic
def to_float64(typing: Any, vector: Any) -> Any:
    """Convert both halves of a float32 vector to float64; return a float64 vector twice."""
    kind = Vector(types.float64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = vector.scalar == types.float64
        pair = [args[0], args[0]] if wide else _halves(builder, args[0])
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(kind, 2)(vector), generate


@intrinsic
def accumulate(typing: Any, sum_: Any, rest: Any, values: Any) -> Any:
    """Add a vector to a sum, the pair (`sum_`, `rest`).

    Float64 terms are added with two-sum: Knuth, The Art of Computer Programming 2, 4.2.2,
    theorem B.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, more, value = args
        if values.scalar == types.float32:
            first, last = _halves(builder, value)
            pair = builder.fadd(total, first), builder.fadd(more, last)
        else:
            new = builder.fadd(total, value)
            added = builder.fsub(new, total)
            compensation = builder.fadd(
                builder.fsub(total, builder.fsub(new, added)), builder.fsub(value, added)
            )
            pair = new, builder.fadd(more, compensation)
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(sum_, 2)(sum_, rest, values), generate


def _without_nan(builder: Any, compensation: Any) -> Any:
    """Emit a compensation with 0 in place of NaN, which it is where the sum is infinite."""
    known = builder.fcmp_ordered("ord", compensation, compensation)
    return builder.select(known, compensation, ir.Constant(compensation.type, None))


@intrinsic
def sum_in_float64(typing: Any, sum_: Any, rest: Any, like: Any) -> Any:
    """Return the sum that `accumulate` made of vectors like `like`, as lanes of float64.

    For float32 terms, the sums of the halves are added.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, more, _ = args
        if like.scalar == types.float64:
            more = _without_nan(builder, more)
        return builder.fadd(total, more)

    return sum_(sum_, rest, like), generate


@intrinsic
def sum_in_dtype(typing: Any, sum_: Any, rest: Any, like: Any) -> Any:
    """Return the sum that `accumulate` made of vectors like `like`, lane by lane in their dtype."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, more, value = args
        if like.scalar == types.float64:
            return builder.fadd(total, _without_nan(builder, more))
        return _joined(builder, total, more, value.type)

    return like(sum_, rest, like), generate


def _joined(builder: Any, first: Any, last: Any, kind: Any) -> Any:
    """Emit the float32 vector whose halves are two float64 vectors."""
    half = ir.VectorType(FLOAT, kind.count // 2)
    low, high = builder.fptrunc(first, half), builder.fptrunc(last, half)
    return lanes_of(builder, low, high, list(range(kind.count)))


@intrinsic
def from_float64(typing: Any, first: Any, last: Any, like: Any) -> Any:
    """Round two float64 vectors to the halves of a vector like `like`; `first` if it is float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[2].type
        return args[0] if kind.element == DOUBLE else _joined(builder, args[0], args[1], kind)

    return like(first, last, like), generate


@intrinsic
def reciprocal_sqrt(typing: Any, vector: Any, like: Any) -> Any:
    """Return 1 / sqrt of each float64 lane, as exact as the dtype of `like` can hold it.

    For float32 it is computed in float32, followed by one Newton step in float64.
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
