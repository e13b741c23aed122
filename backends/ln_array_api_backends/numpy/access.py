"""How vectors come from memory and go back there.

Memory is addressed by the number of an element, from 0, without checks. 16-bit elements are
converted in registers. Numba does not know their dtypes, so such arrays come as views: float16 as
int16, bfloat16 as uint16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import (
    BYTES,
    DOUBLE,
    FLOAT,
    HALF,
    I8,
    I16,
    I32,
    I64,
    NUMBER,
    Vector,
    build_broadcast,
    call,
    prefix_mask,
    suffix,
)

#: How elements lie in memory.
_STORED = {
    types.float32: FLOAT,
    types.float64: DOUBLE,
    types.int16: HALF,
    types.uint16: I16,
}


def _address(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.gep(pointer, [index], inbounds=True)


def _widen(builder: Any, value: Any, stored: Any, number: Any, lanes: int) -> Any:
    """Elements as they are stored, in the dtype that is computed in."""
    wide = ir.VectorType(number, lanes)
    if stored == types.uint16:
        whole = ir.VectorType(I32, lanes)
        bits = builder.shl(builder.zext(value, whole), ir.Constant(whole, [16] * lanes))
        value, stored = builder.bitcast(bits, ir.VectorType(FLOAT, lanes)), types.float32
    kind = value.type.element
    if kind == number:
        return value
    return builder.fptrunc(value, wide) if kind == DOUBLE else builder.fpext(value, wide)


def _narrow(builder: Any, value: Any, stored: Any, lanes: int) -> Any:
    """Numbers as they will be stored, rounded to nearest, ties to even."""
    if stored == types.uint16:
        whole = ir.VectorType(I32, lanes)

        def constant(each: int) -> Any:
            return ir.Constant(whole, [each] * lanes)

        bits = builder.bitcast(value, whole)
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)
        is_nan = builder.fcmp_unordered("uno", value, value)
        rounded = builder.select(is_nan, builder.or_(bits, constant(0x400000)), rounded)
        return builder.trunc(builder.lshr(rounded, constant(16)), ir.VectorType(I16, lanes))
    if stored == types.int16:
        return builder.fptrunc(value, ir.VectorType(HALF, lanes))
    return value


@intrinsic
def data_pointer(typing: Any, array: Any) -> Any:
    """Where the elements of an array begin, without the array. None is just itself.

    What goes from function to function in place of the array, which is counted at each.
    """
    if isinstance(array, types.NoneType):
        return array(array), lambda context, builder, signature, args: args[0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), generate


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
        return _widen(builder, value, elements.dtype, NUMBER[like.scalar], like.lanes)

    return like(elements, types.intp, like), generate


@intrinsic
def unrelated(typing: Any, index: Any) -> Any:
    """An index, of which the compiler is not to know how it follows from others.

    Where many fields are read and written at one index, it takes seconds to find out how to step
    through all of them, to no avail.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", args, side_effect=False)

    return types.intp(types.intp), generate


@intrinsic
def load_field(typing: Any, elements: Any, field: Any, more: Any, index: Any, like: Any) -> Any:
    """The elements from field + more + index on. Where field or more is None, it is just None."""
    if isinstance(field, types.NoneType) or isinstance(more, types.NoneType):
        signature = types.none(elements, field, more, types.intp, like)
        return signature, lambda context, builder, signature, args: context.get_dummy_value()

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_STORED[elements.dtype], like.lanes)
        place = _address(builder, args[0], builder.add(args[1], args[2]))
        address = builder.bitcast(_address(builder, place, args[3]), kind.as_pointer())
        return builder.load(address, align=elements.dtype.bitwidth // 8)

    return like(elements, types.intp, types.intp, types.intp, like), generate


@intrinsic
def load_masked(typing: Any, elements: Any, index: Any, count: Any, like: Any) -> Any:
    """As `load`, but of the first `count` elements alone; the rest is 0, and is not read."""
    if isinstance(elements, Vector):
        signature = elements(elements, index, count, like)
        return signature, lambda context, builder, signature, args: args[0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_STORED[elements.dtype], like.lanes)
        address = _address(builder, args[0], args[1])
        value = call(
            builder,
            f"llvm.masked.load.{suffix(kind)}.p0",
            kind,
            builder.bitcast(address, kind.as_pointer()),
            I32(elements.dtype.bitwidth // 8),
            prefix_mask(builder, args[2], like.lanes),
            ir.Constant(kind, None),
        )
        return _widen(builder, value, elements.dtype, NUMBER[like.scalar], like.lanes)

    return like(elements, types.intp, types.intp, like), generate


@intrinsic
def load_broadcast(typing: Any, elements: Any, index: Any, like: Any) -> Any:
    """One element in every lane. None is just itself."""
    if isinstance(elements, types.NoneType):
        return elements(elements, index, like), lambda context, builder, signature, args: args[0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _STORED[elements.dtype]
        address = _address(builder, args[0], args[1])
        address = builder.bitcast(address, kind.as_pointer())
        value = builder.load(address, align=elements.dtype.bitwidth // 8)
        value = build_broadcast(builder, value, like.lanes)
        return _widen(builder, value, elements.dtype, NUMBER[like.scalar], like.lanes)

    return like(elements, types.intp, like), generate


@intrinsic(prefer_literal=True)
def stack_alloc(typing: Any, like: Any, length: Any) -> Any:
    """Memory on the stack for so many numbers, a literal; with indices, and no values yet."""
    count = length.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = cgutils.alloca_once(builder, NUMBER[like.scalar], size=count)
        place.align = BYTES  # where a vector would cross two lines, it would wait for its store
        return place

    return types.CPointer(like.scalar)(like, length), generate


def _store(elements: Any, vector: Any, *, non_temporal: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_STORED[elements.dtype], vector.lanes)
        address = _address(builder, args[0], args[1])
        address = builder.bitcast(address, kind.as_pointer())
        size = elements.dtype.bitwidth // 8
        value = _narrow(builder, args[2], elements.dtype, vector.lanes)
        instruction = builder.store(
            value, address, align=size * vector.lanes if non_temporal else size
        )
        if non_temporal:
            metadata = builder.module.add_metadata([ir.Constant(I32, 1)])
            instruction.set_metadata("nontemporal", metadata)
        return context.get_dummy_value()

    return types.void(elements, types.intp, vector), generate


@intrinsic
def store(typing: Any, elements: Any, index: Any, vector: Any) -> Any:
    """Put a vector to the elements from `index` on."""
    return _store(elements, vector, non_temporal=False)


@intrinsic
def store_non_temporal(typing: Any, elements: Any, index: Any, vector: Any) -> Any:
    """As `store`, past the cache; where `elements_to_alignment` is 0. A `fence` must follow."""
    return _store(elements, vector, non_temporal=True)


@intrinsic
def store_masked(typing: Any, elements: Any, index: Any, vector: Any, count: Any) -> Any:
    """As `store`, but of the first `count` lanes alone."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_STORED[elements.dtype], vector.lanes)
        address = _address(builder, args[0], args[1])
        call(
            builder,
            f"llvm.masked.store.{suffix(kind)}.p0",
            ir.VoidType(),
            _narrow(builder, args[2], elements.dtype, vector.lanes),
            builder.bitcast(address, kind.as_pointer()),
            I32(elements.dtype.bitwidth // 8),
            prefix_mask(builder, args[3], vector.lanes),
        )
        return context.get_dummy_value()

    return types.void(elements, types.intp, vector, types.intp), generate


@intrinsic
def prefetch(typing: Any, elements: Any, index: Any) -> Any:
    """Have the cache line of an element fetched, which may lie beyond the elements.

    Into the second cache: the first has its hands full with the rows that are being swept.
    """
    return _prefetch(elements, to_write=False)


@intrinsic
def prefetch_to_write(typing: Any, elements: Any, index: Any) -> Any:
    """As `prefetch`, of a line that will be stored to."""
    return _prefetch(elements, to_write=True)


def _prefetch(elements: Any, *, to_write: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.bitcast(builder.gep(args[0], [args[1]]), I8.as_pointer())
        writes, second_cache, data = I32(int(to_write)), I32(2), I32(1)
        call(builder, "llvm.prefetch.p0", ir.VoidType(), address, writes, second_cache, data)
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
            return I64(0)
        address = builder.ptrtoint(_address(builder, args[0], args[1]), I64)
        ahead = builder.and_(builder.neg(address), I64(size * like.lanes - 1))
        return builder.lshr(ahead, I64(size.bit_length() - 1))

    return types.intp(elements, types.intp, like), generate
