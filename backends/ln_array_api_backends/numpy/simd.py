"""Vectors for Numba: 64 bytes of numbers in a register, loaded, computed with, and stored.

What is written with these is computed in the order in which it is written, on every machine and in
every function that it is inlined into: the compiler may not reassociate a sum, nor contract a
product and a sum that were not asked for as `fma`. That is what makes results the same to the bit
whatever the number of rows, threads or the kind of store.

Memory is addressed by the number of an element, from 0, without checks. 16-bit elements are
converted in registers. Numba does not know their dtypes, so such arrays come as views: float16 as
int16, bfloat16 as uint16.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

BYTES = 64

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_HALF, _FLOAT, _DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_MOST_FLOAT, _MOST_DOUBLE = (2 - 2.0**-23) * 2.0**127, (2 - 2.0**-52) * 2.0**1023
_NUMBER = {types.float32: _FLOAT, types.float64: _DOUBLE}
#: How elements lie in memory.
_STORED = {
    types.float32: _FLOAT,
    types.float64: _DOUBLE,
    types.int16: _HALF,
    types.uint16: _I16,
}


class Vector(types.Type):  # type: ignore[misc]
    """As many float32 or float64 as fill 64 bytes."""

    def __init__(self, scalar: Any) -> None:
        self.scalar, self.lanes = scalar, BYTES * 8 // scalar.bitwidth
        super().__init__(name=f"Vector({scalar})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_NUMBER[fe_type.scalar], fe_type.lanes))


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
):
    _arithmetic(_operation, _instruction)


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function = ir.FunctionType(result, [each.type for each in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def _suffix(vector: Any) -> str:
    names = {_HALF: "f16", _FLOAT: "f32", _DOUBLE: "f64", _I16: "i16"}
    return f"v{vector.count}{names[vector.element]}"


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    kind = ir.VectorType(value.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    )


def _address(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.gep(pointer, [index], inbounds=True)


def _first(builder: Any, count: Any, lanes: int) -> Any:
    """A mask of the first `count` lanes."""
    numbers = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(count, _I32), lanes))


def _widen(builder: Any, value: Any, stored: Any, number: Any, lanes: int) -> Any:
    """Elements as they are stored, in the dtype that is computed in."""
    wide = ir.VectorType(number, lanes)
    if stored == types.uint16:
        whole = ir.VectorType(_I32, lanes)
        bits = builder.shl(builder.zext(value, whole), ir.Constant(whole, [16] * lanes))
        value, stored = builder.bitcast(bits, ir.VectorType(_FLOAT, lanes)), types.float32
    kind = value.type.element
    if kind == number:
        return value
    return builder.fptrunc(value, wide) if kind == _DOUBLE else builder.fpext(value, wide)


def _narrow(builder: Any, value: Any, stored: Any, lanes: int) -> Any:
    """Numbers as they will be stored, rounded to nearest, ties to even."""
    if stored == types.uint16:
        whole = ir.VectorType(_I32, lanes)

        def constant(each: int) -> Any:
            return ir.Constant(whole, [each] * lanes)

        bits = builder.bitcast(value, whole)
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)
        is_nan = builder.fcmp_unordered("uno", value, value)
        rounded = builder.select(is_nan, builder.or_(bits, constant(0x400000)), rounded)
        return builder.trunc(builder.lshr(rounded, constant(16)), ir.VectorType(_I16, lanes))
    if stored == types.int16:
        return builder.fptrunc(value, ir.VectorType(_HALF, lanes))
    return value


@intrinsic
def memory(typing: Any, array: Any) -> Any:
    """Where the elements of an array begin, without the array. None is just itself.

    What goes from function to function in place of the array, which is counted at each.
    """
    if isinstance(array, types.NoneType):
        return array(array), lambda context, builder, signature, args: args[0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def ones(typing: Any, array: Any) -> Any:
    """A vector of ones, in the dtype of an array."""
    kind = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = _NUMBER[array.dtype](1.0)
        return _splat(builder, one, kind.lanes)

    return kind(array), generate


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """A vector of one number, in its dtype."""
    kind = Vector(value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], kind.lanes)

    return kind(value), generate


@intrinsic
def lanes(typing: Any, vector: Any) -> Any:
    """How many numbers a vector holds."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _I64(vector.lanes)

    return types.intp(vector), generate


@intrinsic
def number(typing: Any, value: Any, like: Any) -> Any:
    """A number in the dtype of a vector's lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[0], value, like.scalar)

    return like.scalar(value, like), generate


@intrinsic
def load(typing: Any, elements: Any, index: Any, like: Any) -> Any:
    """The elements from `index` on, in the dtype of the vector `like`. A vector is just itself."""
    if isinstance(elements, Vector):
        return elements(elements, index, like), lambda context, builder, signature, args: args[0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_STORED[elements.dtype], like.lanes)
        address = _address(builder, args[0], args[1])
        address = builder.bitcast(address, kind.as_pointer())
        value = builder.load(address, align=elements.dtype.bitwidth // 8)
        return _widen(builder, value, elements.dtype, _NUMBER[like.scalar], like.lanes)

    return like(elements, types.intp, like), generate


@intrinsic
def load_first(typing: Any, elements: Any, index: Any, count: Any, like: Any) -> Any:
    """As `load`, but of the first `count` elements alone; the rest is 0, and is not read."""
    if isinstance(elements, Vector):
        signature = elements(elements, index, count, like)
        return signature, lambda context, builder, signature, args: args[0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_STORED[elements.dtype], like.lanes)
        address = _address(builder, args[0], args[1])
        value = _call(
            builder,
            f"llvm.masked.load.{_suffix(kind)}.p0",
            kind,
            builder.bitcast(address, kind.as_pointer()),
            _I32(elements.dtype.bitwidth // 8),
            _first(builder, args[2], like.lanes),
            ir.Constant(kind, None),
        )
        return _widen(builder, value, elements.dtype, _NUMBER[like.scalar], like.lanes)

    return like(elements, types.intp, types.intp, like), generate


@intrinsic
def element(typing: Any, elements: Any, index: Any, like: Any) -> Any:
    """One element in every lane. None is just itself."""
    if isinstance(elements, types.NoneType):
        return elements(elements, index, like), lambda context, builder, signature, args: args[0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _STORED[elements.dtype]
        address = _address(builder, args[0], args[1])
        address = builder.bitcast(address, kind.as_pointer())
        value = builder.load(address, align=elements.dtype.bitwidth // 8)
        value = _splat(builder, value, like.lanes)
        return _widen(builder, value, elements.dtype, _NUMBER[like.scalar], like.lanes)

    return like(elements, types.intp, like), generate


@intrinsic(prefer_literal=True)
def scratch(typing: Any, like: Any, length: Any) -> Any:
    """Memory on the stack for so many numbers, a literal; with indices, and no values yet."""
    count = length.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return cgutils.alloca_once(builder, _NUMBER[like.scalar], size=count)

    return types.CPointer(like.scalar)(like, length), generate


@intrinsic(prefer_literal=True)
def invert_roots(typing: Any, numbers: Any, like: Any, length: Any) -> Any:
    """Take 1 / sqrt of each of so many numbers in `scratch` memory, a literal."""
    count = length.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = _splat(builder, _NUMBER[like.scalar](1.0), like.lanes)
        for first in range(0, count, like.lanes):
            address = builder.gep(args[0], [_I64(first)], inbounds=True)
            address = builder.bitcast(address, one.type.as_pointer())
            value = builder.load(address, align=like.scalar.bitwidth // 8)
            root = _call(builder, f"llvm.sqrt.{_suffix(one.type)}", one.type, value)
            builder.store(builder.fdiv(one, root), address, align=like.scalar.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(numbers, like, length), generate


@intrinsic
def limits(typing: Any, like: Any) -> Any:
    """Of a dtype: its smallest normal number; the least and most that a mean of squares may be.

    Below the least, squares of the larger elements may have lost digits by underflow.
    """
    single, double = (2.0**-126, 2.0**-100, _MOST_FLOAT), (2.0**-1022, 2.0**-900, _MOST_DOUBLE)
    values = single if like.scalar == types.float32 else double

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_tuple(builder, signature.return_type, [_DOUBLE(v) for v in values])

    return types.UniTuple(types.float64, 3)(like), generate


@intrinsic
def beside(typing: Any, other: Any, vector: Any) -> Any:
    """A vector where `other` is present, else None; decided when compiling."""
    if isinstance(other, types.NoneType):
        return other(other, vector), lambda context, builder, signature, args: args[0]
    return vector(other, vector), lambda context, builder, signature, args: args[1]


def _store(elements: Any, vector: Any, *, stream: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_STORED[elements.dtype], vector.lanes)
        address = _address(builder, args[0], args[1])
        address = builder.bitcast(address, kind.as_pointer())
        size = elements.dtype.bitwidth // 8
        value = _narrow(builder, args[2], elements.dtype, vector.lanes)
        instruction = builder.store(value, address, align=size * vector.lanes if stream else size)
        if stream:
            metadata = builder.module.add_metadata([ir.Constant(_I32, 1)])
            instruction.set_metadata("nontemporal", metadata)
        return context.get_dummy_value()

    return types.void(elements, types.intp, vector), generate


@intrinsic
def store(typing: Any, elements: Any, index: Any, vector: Any) -> Any:
    """Put a vector to the elements from `index` on."""
    return _store(elements, vector, stream=False)


@intrinsic
def stream(typing: Any, elements: Any, index: Any, vector: Any) -> Any:
    """As `store`, past the cache; where `elements_to_alignment` is 0. A `fence` must follow."""
    return _store(elements, vector, stream=True)


@intrinsic
def store_first(typing: Any, elements: Any, index: Any, vector: Any, count: Any) -> Any:
    """As `store`, but of the first `count` lanes alone."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_STORED[elements.dtype], vector.lanes)
        address = _address(builder, args[0], args[1])
        _call(
            builder,
            f"llvm.masked.store.{_suffix(kind)}.p0",
            ir.VoidType(),
            _narrow(builder, args[2], elements.dtype, vector.lanes),
            builder.bitcast(address, kind.as_pointer()),
            _I32(elements.dtype.bitwidth // 8),
            _first(builder, args[3], vector.lanes),
        )
        return context.get_dummy_value()

    return types.void(elements, types.intp, vector, types.intp), generate


@intrinsic
def keep_first(typing: Any, vector: Any, count: Any) -> Any:
    """The first `count` lanes, and 0 in the others."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None)
        return builder.select(_first(builder, args[1], vector.lanes), args[0], zero)

    return vector(vector, types.intp), generate


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """A * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fma.{_suffix(args[0].type)}", args[0].type, *args)

    return a(a, b, c), generate


@intrinsic
def largest(typing: Any, a: Any, b: Any) -> Any:
    """The larger of each pair of lanes; not NaN where one of them is a number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, f"llvm.maxnum.{_suffix(args[0].type)}", args[0].type, *args)

    return a(a, b), generate


@intrinsic
def magnitude(typing: Any, vector: Any) -> Any:
    """The absolute value of each lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fabs.{_suffix(args[0].type)}", args[0].type, *args)

    return vector(vector), generate


def _fold(builder: Any, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """All lanes combined: halves with halves, until one is left."""
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        low, high = (
            builder.shuffle_vector(
                value,
                ir.Constant(value.type, ir.Undefined),
                ir.Constant(ir.VectorType(_I32, lanes), list(range(start, start + lanes))),
            )
            for start in (0, lanes)
        )
        value = combine(low, high)
    return builder.extract_element(value, _I32(0))


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """The sum of the lanes: halves added to halves."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _fold(builder, args[0], builder.fadd)

    return vector.scalar(vector), generate


@intrinsic
def peak(typing: Any, vector: Any) -> Any:
    """The largest lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return _fold(builder, args[0], larger)

    return vector.scalar(vector), generate


@intrinsic
def prefetch(typing: Any, elements: Any, index: Any) -> Any:
    """Have the cache line of an element fetched. It may lie beyond the elements."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.bitcast(builder.gep(args[0], [args[1]]), _I8.as_pointer())
        read, everywhere, data_cache = _I32(0), _I32(3), _I32(1)
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), address, read, everywhere, data_cache)
        return context.get_dummy_value()

    return types.void(elements, types.intp), generate


@intrinsic
def fence(typing: Any) -> Any:
    """Have all stores seen by every thread before what follows."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def elements_to_alignment(typing: Any, elements: Any, index: Any, like: Any) -> Any:
    """How many elements from `index` on lie before one where a vector of them can be streamed to.

    They are fewer than a vector has.
    """
    size = 0 if isinstance(elements, types.NoneType) else elements.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not size:
            return _I64(0)
        address = builder.ptrtoint(_address(builder, args[0], args[1]), _I64)
        ahead = builder.and_(builder.neg(address), _I64(size * like.lanes - 1))
        return builder.lshr(ahead, _I64(size.bit_length() - 1))

    return types.intp(elements, types.intp, like), generate
