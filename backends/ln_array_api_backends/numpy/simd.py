"""Vectors of 64 bytes for Numba, and their arithmetic.

Operations are executed in the order in which they are written, on every machine and in every
function that they are inlined into: the compiler may not reassociate sums, nor contract a product
and a sum to an `fma` that was not written. So results have the same bits for any number of rows
and of threads, and for either kind of store.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

BYTES = 64

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_MOST_FLOAT, _MOST_DOUBLE = (2 - 2.0**-23) * 2.0**127, (2 - 2.0**-52) * 2.0**1023
NUMBER = {types.float32: FLOAT, types.float64: DOUBLE}


class Vector(types.Type):  # type: ignore[misc]
    """A vector of 16 float32 or 8 float64."""

    def __init__(self, scalar: Any) -> None:
        self.scalar, self.lanes = scalar, BYTES * 8 // scalar.bitwidth
        super().__init__(name=f"Vector({scalar})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(NUMBER[fe_type.scalar], fe_type.lanes))


def _arithmetic(operation: Callable[..., Any], instruction: str) -> None:
    @type_callable(operation)
    def typing(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            return a if isinstance(a, Vector) and a == b else None

        return typer

    @lower_builtin(operation, Vector, Vector)
    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_operation, _instruction)


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Emit a call of an LLVM intrinsic by its name."""
    function = ir.FunctionType(result, [each.type for each in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def suffix(vector: Any) -> str:
    """Return the suffix of LLVM's intrinsics for a type of vectors."""
    names = {HALF: "f16", FLOAT: "f32", DOUBLE: "f64", I16: "i16", I8: "i8"}
    return f"v{vector.count}{names[vector.element]}"


def build_broadcast(builder: Any, value: Any, lanes: int) -> Any:
    """Emit a broadcast of a number to all lanes."""
    kind = ir.VectorType(value.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    )


def prefix_mask(builder: Any, count: Any, lanes: int) -> Any:
    """Emit a mask of the first `count` lanes."""
    numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    return builder.icmp_signed(
        "<", numbers, build_broadcast(builder, builder.trunc(count, I32), lanes)
    )


def lanewise(emit: Callable[..., Any]) -> Any:
    """Make an intrinsic of a function that emits a vector of the type of its last argument.

    The function takes the LLVM builder and the values of the arguments.
    """

    @wraps(emit)
    def intrinsic_(typing: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return emit(builder, *args)

        return arguments[-1](*arguments), generate

    return intrinsic(intrinsic_)


def call_lanewise(builder: Any, name: str, *args: Any) -> Any:
    """Emit a call of an LLVM intrinsic whose arguments and result are vectors of one type."""
    return call(builder, f"llvm.{name}.{suffix(args[0].type)}", args[0].type, *args)


@intrinsic
def ones(typing: Any, array: Any) -> Any:
    """Return a vector of ones in the dtype in which elements of an array are computed."""
    kind = Vector(types.float64 if array.dtype == types.float64 else types.float32)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return build_broadcast(builder, NUMBER[kind.scalar](1.0), kind.lanes)

    return kind(array), generate


@lanewise
def zeros(builder: Any, like: Any) -> Any:
    """Return a vector of zeros like another, which may hold NaN."""
    return ir.Constant(like.type, None)


@intrinsic
def broadcast(typing: Any, value: Any) -> Any:
    """Broadcast a number to all lanes of a vector of its dtype."""
    kind = Vector(value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return build_broadcast(builder, args[0], kind.lanes)

    return kind(value), generate


@intrinsic
def lanes(typing: Any, vector: Any) -> Any:
    """Return the number of lanes of a vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return I64(vector.lanes)

    return types.intp(vector), generate


@intrinsic
def scalar_like(typing: Any, value: Any, like: Any) -> Any:
    """Cast a number to the dtype of a vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[0], value, like.scalar)

    return like.scalar(value, like), generate


@intrinsic
def broadcast_like(typing: Any, value: Any, like: Any) -> Any:
    """Cast a number to the dtype of a vector, and broadcast it to as many lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.cast(builder, args[0], value, like.scalar)
        return build_broadcast(builder, number, like.lanes)

    return like(value, like), generate


@intrinsic
def dtype_limits(typing: Any, like: Any) -> Any:
    """Return the smallest normal number of a dtype, and the safe range of a mean square.

    Below that range, squares of the larger elements may have lost digits by underflow.
    """
    single, double = (2.0**-126, 2.0**-100, _MOST_FLOAT), (2.0**-1022, 2.0**-900, _MOST_DOUBLE)
    values = single if like.scalar == types.float32 else double

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_tuple(builder, signature.return_type, [DOUBLE(v) for v in values])

    return types.UniTuple(types.float64, 3)(like), generate


@intrinsic
def range_scale(typing: Any, rstd: Any) -> Any:
    """Return a power of two for each lane of rstd, by which deviations are scaled, and its inverse.

    It is 1 unless deviations are so large that their sum could leave the range of the dtype.
    """
    least = 2.0**-64 if rstd.scalar == types.float32 else 2.0**-512

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type

        def every(value: float) -> Any:
            return ir.Constant(kind, [value] * rstd.lanes)

        is_small = builder.fcmp_ordered("<", args[0], every(least))
        both = [builder.select(is_small, every(each), every(1.0)) for each in (least, 1 / least)]
        return context.make_tuple(builder, signature.return_type, both)

    return types.UniTuple(rstd, 2)(rstd), generate


@intrinsic
def if_present(typing: Any, other: Any, vector: Any) -> Any:
    """Return `vector` if `other` is not None, else None; decided at compile time."""
    if isinstance(other, types.NoneType):
        return other(other, vector), lambda context, builder, signature, args: args[0]
    return vector(other, vector), lambda context, builder, signature, args: args[1]


@intrinsic
def zero_tail(typing: Any, vector: Any, count: Any) -> Any:
    """Set the lanes from `count` on to 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None)
        return builder.select(prefix_mask(builder, args[1], vector.lanes), args[0], zero)

    return vector(vector, types.intp), generate


@lanewise
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once."""
    return call_lanewise(builder, "fma", a, b, c)


@lanewise
def negative(builder: Any, vector: Any) -> Any:
    """Negate each lane, also the sign of 0, which a subtraction from 0 does not."""
    return builder.fneg(vector)


@lanewise
def fmax(builder: Any, a: Any, b: Any) -> Any:
    """Return the larger of each pair of lanes; where one is NaN, the other."""
    return call_lanewise(builder, "maxnum", a, b)


@lanewise
def absolute(builder: Any, vector: Any) -> Any:
    """Return the absolute value of each lane."""
    return call_lanewise(builder, "fabs", vector)


@lanewise
def square_root(builder: Any, vector: Any) -> Any:
    """Return the square root of each lane."""
    return call_lanewise(builder, "sqrt", vector)


@lanewise
def with_sign_of(builder: Any, vector: Any, other: Any) -> Any:
    """Return each lane with the sign of another vector's lane, also that of 0."""
    return call_lanewise(builder, "copysign", vector, other)


@lanewise
def at_most(builder: Any, vector: Any, bound: Any) -> Any:
    """Return the smaller of each pair of lanes; NaN where the first is NaN."""
    return builder.select(builder.fcmp_ordered("<", bound, vector), bound, vector)


@lanewise
def at_least(builder: Any, vector: Any, bound: Any) -> Any:
    """Return the larger of each pair of lanes; NaN where the first is NaN."""
    return builder.select(builder.fcmp_ordered(">", bound, vector), bound, vector)


@lanewise
def where_not_zero(builder: Any, condition: Any, vector: Any) -> Any:
    """Return the lanes of `vector` where `condition` is not 0, and 0 elsewhere."""
    zero = ir.Constant(condition.type, None)
    return builder.select(builder.fcmp_unordered("!=", condition, zero), vector, zero)


@lanewise
def where_at_least(builder: Any, a: Any, b: Any, chosen: Any, other: Any) -> Any:
    """Return the lanes of `chosen` where a >= b, and those of `other` elsewhere, also for NaN."""
    return builder.select(builder.fcmp_ordered(">=", a, b), chosen, other)


def lanes_of(builder: Any, a: Any, b: Any, numbers: list[int]) -> Any:
    """Emit a shuffle of two vectors; lane numbers of the second follow those of the first."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(numbers)), numbers))


def _fold(builder: Any, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Emit a reduction of all lanes: combine halves until one lane is left."""
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        low, high = (
            lanes_of(builder, value, value, list(range(start, start + lanes)))
            for start in (0, lanes)
        )
        value = combine(low, high)
    return builder.extract_element(value, I32(0))


@intrinsic
def reduce_add(typing: Any, vector: Any) -> Any:
    """Return the horizontal sum: halves are added to halves."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _fold(builder, args[0], builder.fadd)

    return vector.scalar(vector), generate


def _fold_together(builder: Any, vectors: list[Any]) -> Any:
    """Emit the `reduce_add` of several vectors, each in an equal number of adjacent lanes.

    The bits are those of `reduce_add`. Four vectors take 13 instructions, one by one they take 32.
    """
    count = size = vectors[0].type.count  # size: lanes that hold the partial sums of one vector
    while size > 1:
        size //= 2
        if len(vectors) > 1:
            low = [lane for lane in range(2 * count) if lane // size % 2 == 0]
            high = [lane + size for lane in low]
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [
                builder.fadd(lanes_of(builder, *pair, low), lanes_of(builder, *pair, high))
                for pair in pairs
            ]
        else:
            (value,) = vectors
            swapped = lanes_of(builder, value, value, [lane ^ size for lane in range(count)])
            vectors = [builder.fadd(value, swapped)]
    return vectors[0]


@intrinsic
def reduce_add4(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Return the `reduce_add` of four vectors, each in a quarter of the lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _fold_together(builder, list(args))

    return a(a, b, c, d), generate


@intrinsic
def reduce_add_rows(typing: Any, numbers: Any, index: Any, like: Any) -> Any:
    """Return the `reduce_add` of consecutive vectors in memory, one per lane of the result."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(NUMBER[like.scalar], like.lanes)
        first = builder.bitcast(builder.gep(args[0], [args[1]]), kind.as_pointer())
        places = [builder.gep(first, [I64(i)], inbounds=True) for i in range(like.lanes)]
        align = like.scalar.bitwidth // 8
        return _fold_together(builder, [builder.load(each, align=align) for each in places])

    return like(numbers, types.intp, like), generate


@intrinsic
def all_at_most(typing: Any, a: Any, b: Any, count: Any) -> Any:
    """Return whether a <= b in each of the first `count` lanes; False if one is NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        above = builder.fcmp_unordered(">", *args[:2])
        among = builder.and_(above, prefix_mask(builder, args[2], a.lanes))
        mask = ir.IntType(a.lanes)
        return builder.icmp_unsigned("==", builder.bitcast(among, mask), mask(0))

    return types.boolean(a, b, types.intp), generate


@intrinsic
def first_lane(typing: Any, vector: Any) -> Any:
    """Return the first lane of a vector: the number itself if all lanes hold the same."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], I32(0))

    return vector.scalar(vector), generate


@intrinsic
def reduce_max(typing: Any, vector: Any) -> Any:
    """Return the largest lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return _fold(builder, args[0], larger)

    return vector.scalar(vector), generate
