"""Atomic operations on words of memory that several threads share, and waiting for such a word."""

from __future__ import annotations

import platform
import sys
import time
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import I32, I64

WORDS = types.CPointer(types.int64)

#: Nanoseconds in a second.
SECOND = 1_000_000_000

_WORD_BYTES = 8
_MACHINE = platform.machine().lower()
_sched_yield = types.ExternalFunction("sched_yield", types.int32())
_IS_POSIX = sys.platform != "win32"
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 0)


@intrinsic
def words_at(typing: Any, address: Any) -> Any:
    """The words at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I64.as_pointer())

    return WORDS(types.int64), generate


@intrinsic
def load_acquire(typing: Any, words: Any, index: Any) -> Any:
    """Load a word, and whatever was stored before `store_release` stored it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.gep(args[0], [args[1]])
        return builder.load_atomic(word, "acquire", _WORD_BYTES)

    return types.int64(words, types.intp), generate


@intrinsic
def store_release(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """Store a word after everything that was stored before it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.gep(args[0], [args[1]])
        builder.store_atomic(args[2], word, "release", _WORD_BYTES)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.int64), generate


@intrinsic
def increment(typing: Any, words: Any, index: Any) -> Any:
    """Add one to a word; gives its value before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.gep(args[0], [args[1]])
        return builder.atomic_rmw("add", word, I64(1), "acq_rel")

    return types.int64(words, types.intp), generate


@intrinsic
def compare_and_swap(typing: Any, words: Any, index: Any, expected: Any, value: Any) -> Any:
    """Store a word if it still is what was expected; gives whether it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.gep(args[0], [args[1]])
        result = builder.cmpxchg(word, args[2], args[3], "acq_rel", "acquire")
        return builder.extract_value(result, 1)

    return types.boolean(words, types.intp, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def stack_words(typing: Any, length: Any) -> Any:
    """So many words on the stack, a literal."""
    if not isinstance(length, types.IntegerLiteral):
        return None
    count = length.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return cgutils.alloca_once(builder, I64, size=ir.Constant(I64, count))

    return WORDS(length), generate


@intrinsic
def address_of(typing: Any, words: Any) -> Any:
    """The address of words."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], I64)

    return types.int64(words), generate


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this thread waits in a loop."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _MACHINE in ("x86_64", "amd64"):
            name, values = "llvm.x86.sse2.pause", []
        elif _MACHINE in ("aarch64", "arm64"):
            name, values = "llvm.aarch64.hint", [I32(1)]
        else:
            return context.get_dummy_value()
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in values])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)
        return context.get_dummy_value()

    return types.void(), generate


@njit
def give_way() -> None:
    """Let another thread have this processor, where the system can do that."""
    if _IS_POSIX:
        _sched_yield()
    else:
        pause()


@njit
def nanoseconds() -> Any:
    """The time of a clock that goes on evenly, or 0 where the system has another."""
    if not _IS_POSIX:
        return 0
    parts = stack_words(2)
    _clock_gettime(_MONOTONIC, address_of(parts))
    return parts[0] * SECOND + parts[1]
