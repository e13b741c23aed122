"""Vector loads and stores.

An address is a pointer and the index of an element, which is not checked. 16-bit elements are
converted in registers. Numba does not know their dtypes, so kernels get such arrays as views:
float16 as int16, bfloat16 as uint16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import INLINE
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
    lanes,
    prefix_mask,
    suffix,
)

#: The LLVM type of an element in memory, by the dtype that Numba sees.
_STORED = {
    types.float32: FLOAT,
    types.float64: DOUBLE,
    types.int16: HALF,
    types.uint16: I16,
}


def _address(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.gep(pointer, [index], inbounds=True)


def _widen(builder: Any, value: Any, stored: Any, number: Any, lanes: int) -> Any:
    """Convert a vector from the dtype in memory to the dtype of the computation."""
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
    """Convert a vector to the dtype in memory, rounded to nearest, ties to even."""
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
    """Return the pointer to the first element of an array, or None for None.

    Functions pass the pointer instead of the array, whose reference count would change each time.
    """
    if isinstance(array, types.NoneType):
        return array(array), lambda context, builder, signature, args: args[0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), generate


def _emit_load(builder: Any, elements: Any, like: Any, args: Any, count: Any = None) -> Any:
    """Emit a load from a pointer and an index, `args`: of a whole vector, or of `count` lanes."""
    kind = ir.VectorType(_STORED[elements.dtype], like.lanes)
    address = builder.bitcast(_address(builder, *args), kind.as_pointer())
    size = elements.dtype.bitwidth // 8
    if count is None:
        value = builder.load(address, align=size)
    else:
        mask, zero = prefix_mask(builder, count, like.lanes), ir.Constant(kind, None)
        name = f"llvm.masked.load.{suffix(kind)}.p0"
        value = call(builder, name, kind, address, I32(size), mask, zero)
    return _widen(builder, value, elements.dtype, NUMBER[like.scalar], like.lanes)


@intrinsic
def load(typing: Any, elements: Any, index: Any, like: Any) -> Any:
    """Load a vector from `index` on, in the dtype of the vector `like`.

    If `elements` is a vector, return it unchanged.
    """
    if isinstance(elements, Vector):
        return elements(elements, index, like), lambda context, builder, signature, args: args[0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _emit_load(builder, elements, like, args[:2])

    return like(elements, types.intp, like), generate


@intrinsic
def load_vector(typing: Any, elements: Any, index: Any, count: Any, like: Any) -> Any:
    """Load a whole vector if `count` is None, else its first lanes.

    The other lanes are 0, and their memory is not read. Vectors are as in `load`.
    """
    if isinstance(elements, Vector):
        signature = elements(elements, index, count, like)
        return signature, lambda context, builder, signature, args: args[0]
    is_whole = isinstance(count, types.NoneType)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _emit_load(builder, elements, like, args[:2], None if is_whole else args[2])

    return like(elements, types.intp, count if is_whole else types.intp, like), generate


@intrinsic
def where_true(typing: Any, mask: Any, index: Any, count: Any, vector: Any) -> Any:
    """Return the lanes of a vector where bytes from `index` on are not 0, and 0 elsewhere.

    Of `count` lanes, unless that is None; then the other lanes are 0.
    """
    is_whole = isinstance(count, types.NoneType)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _emit_bytes(builder, args, vector.lanes, is_whole=is_whole)
        is_true = builder.icmp_unsigned("!=", value, ir.Constant(value.type, None))
        return builder.select(is_true, args[3], ir.Constant(args[3].type, None))

    return vector(mask, types.intp, count if is_whole else types.intp, vector), generate


@intrinsic
def true_bits(typing: Any, mask: Any, index: Any, count: Any) -> Any:
    """Return a bit for each of BYTES bytes from `index` on: whether it is not 0.

    Of `count` bytes, unless that is None; then the other bits are 0.
    """
    is_whole = isinstance(count, types.NoneType)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _emit_bytes(builder, args, BYTES, is_whole=is_whole)
        is_true = builder.icmp_unsigned("!=", value, ir.Constant(value.type, None))
        return builder.bitcast(is_true, I64)

    return types.int64(mask, types.intp, count if is_whole else types.intp), generate


def _emit_bytes(builder: Any, args: Any, lanes: int, *, is_whole: bool) -> Any:
    """Emit a load of bytes from a pointer and an index, of all lanes or of a count of them."""
    kind = ir.VectorType(I8, lanes)
    address = builder.bitcast(_address(builder, *args[:2]), kind.as_pointer())
    if is_whole:
        return builder.load(address, align=1)
    some, name = prefix_mask(builder, args[2], lanes), f"llvm.masked.load.{suffix(kind)}.p0"
    return call(builder, name, kind, address, I32(1), some, ir.Constant(kind, None))


def _of_bits(name: str, *options: Any) -> Any:
    """Return an intrinsic for LLVM's function of this name of 64 bits."""

    def function(typing: Any, bits: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return call(builder, f"llvm.{name}.i64", I64, args[0], *options)

        return types.int64(types.int64), generate

    return intrinsic(function)


number_of_bits = _of_bits("ctpop")
#: The number of the lowest bit that is 1; 64 if there is none.
lowest_bit = _of_bits("cttz", ir.IntType(1)(0))


@intrinsic
def unrelated(typing: Any, index: Any) -> Any:
    """Return an index whose origin is hidden from the compiler.

    Where many fields are read and written at one index, LLVM's loop strength reduction takes
    seconds, without a gain.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", args, side_effect=False)

    return types.intp(types.intp), generate


@intrinsic
def load_field(typing: Any, elements: Any, field: Any, more: Any, index: Any, like: Any) -> Any:
    """Load a vector from field + more + index on; return None if field or more is None."""
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
def load_broadcast(typing: Any, elements: Any, index: Any, like: Any) -> Any:
    """Load one element and broadcast it to all lanes; return None for None."""
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
    """Allocate uninitialised stack memory for `length` numbers of the dtype of `like`.

    `length` is a literal. The result is a pointer, which can be indexed.
    """
    count = length.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = cgutils.alloca_once(builder, NUMBER[like.scalar], size=count)
        place.align = BYTES  # store forwarding fails for a vector that crosses two cache lines
        return place

    return types.CPointer(like.scalar)(like, length), generate


def _emit_store(
    builder: Any, elements: Any, args: Any, *, non_temporal: bool = False, count: Any = None
) -> None:
    """Emit a store of a vector, or of its first lanes; `args` are pointer, index and vector."""
    *place, vector = args
    lanes, size = vector.type.count, elements.dtype.bitwidth // 8
    value = _narrow(builder, vector, elements.dtype, lanes)
    address = builder.bitcast(_address(builder, *place), value.type.as_pointer())
    if count is not None:
        name, mask = (
            f"llvm.masked.store.{suffix(value.type)}.p0",
            prefix_mask(builder, count, lanes),
        )
        call(builder, name, ir.VoidType(), value, address, I32(size), mask)
        return
    instruction = builder.store(value, address, align=size * lanes if non_temporal else size)
    if non_temporal:
        instruction.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))


@intrinsic
def store(typing: Any, elements: Any, index: Any, vector: Any) -> Any:
    """Store a vector to the elements from `index` on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_store(builder, elements, args)
        return context.get_dummy_value()

    return types.void(elements, types.intp, vector), generate


@intrinsic
def store_non_temporal(typing: Any, elements: Any, index: Any, vector: Any) -> Any:
    """Store a vector with a non-temporal store.

    `elements_to_alignment` must be 0 for the address, and a `fence` must follow.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_store(builder, elements, args, non_temporal=True)
        return context.get_dummy_value()

    return types.void(elements, types.intp, vector), generate


@intrinsic
def store_masked(typing: Any, elements: Any, index: Any, vector: Any, count: Any) -> Any:
    """Store only the first `count` lanes of a vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_store(builder, elements, args[:3], count=args[3])
        return context.get_dummy_value()

    return types.void(elements, types.intp, vector, types.intp), generate


@intrinsic
def store_vector(
    typing: Any, elements: Any, index: Any, vector: Any, count: Any, non_temporal: Any
) -> Any:
    """Store the first `count` lanes, or the whole vector if that is None.

    A store of a whole vector is non-temporal if wanted.
    """
    is_whole = isinstance(count, types.NoneType)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if is_whole:
            with builder.if_else(args[4]) as (then, otherwise):
                with then:
                    _emit_store(builder, elements, args[:3], non_temporal=True)
                with otherwise:
                    _emit_store(builder, elements, args[:3])
        else:
            _emit_store(builder, elements, args[:3], count=args[3])
        return context.get_dummy_value()

    kinds = elements, types.intp, vector, count if is_whole else types.intp, types.boolean
    return types.void(*kinds), generate


@intrinsic
def prefetch(typing: Any, elements: Any, index: Any) -> Any:
    """Prefetch the cache line of an element into L2. The index may be out of bounds.

    L1 is needed for the rows that are being processed.
    """
    return _prefetch(elements, to_write=False)


@intrinsic
def prefetch_to_write(typing: Any, elements: Any, index: Any) -> Any:
    """Prefetch the cache line of an element that will be stored to."""
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
    """Make all earlier stores visible to all threads before later operations."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def elements_to_alignment(typing: Any, elements: Any, index: Any, like: Any) -> Any:
    """Count the elements from `index` to the next address that is aligned to a whole vector.

    Non-temporal stores need that alignment. The count is less than the number of lanes.
    """
    size = 0 if isinstance(elements, types.NoneType) else elements.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not size:
            return I64(0)
        address = builder.ptrtoint(_address(builder, args[0], args[1]), I64)
        gap = builder.and_(builder.neg(address), I64(size * like.lanes - 1))
        return builder.lshr(gap, I64(size.bit_length() - 1))

    return types.intp(elements, types.intp, like), generate


@njit(**INLINE)
def load_partial(elements, index, count, like):
    """Load a whole vector, or its first lanes if `count` is smaller; the others are 0."""
    if count >= lanes(like):
        return load(elements, index, like)
    return load_vector(elements, index, count, like)


@njit(**INLINE)
def store_partial(elements, index, vector, count, non_temporal):
    """Store the whole vector, or its first lanes if `count` is smaller."""
    if count < lanes(vector):
        store_masked(elements, index, vector, count)
    else:
        store_vector(elements, index, vector, None, non_temporal)
