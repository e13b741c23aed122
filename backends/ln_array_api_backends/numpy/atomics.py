"""Atomic operations on words of memory that threads share, locks, and processors of threads."""

from __future__ import annotations

import ctypes
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
_IS_POSIX, _IS_LINUX = sys.platform != "win32", sys.platform.startswith("linux")
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 0)
_sched_getcpu = types.ExternalFunction("sched_getcpu", types.int32())
_of_thread = types.int32(types.int32, types.intp, types.intp)
_sched_getaffinity = types.ExternalFunction("sched_getaffinity", _of_thread)
_sched_setaffinity = types.ExternalFunction("sched_setaffinity", _of_thread)
#: Size of a set of processors in bytes, and the bits of a word.
_SET_BYTES, _WORD_BITS = 128, 64
#: Python's locks, which need no interpreter. Any thread may release them.
_new_lock = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThread_allocate_lock", ctypes.pythonapi))
_take_lock = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(
    ("PyThread_acquire_lock", ctypes.pythonapi)
)
_acquire_lock = types.ExternalFunction(
    "PyThread_acquire_lock", types.int32(types.intp, types.int32)
)
_release_lock = types.ExternalFunction("PyThread_release_lock", types.void(types.intp))


@intrinsic
def words_at(typing: Any, address: Any) -> Any:
    """Return the words at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I64.as_pointer())

    return WORDS(types.int64), generate


@intrinsic
def load_acquire(typing: Any, words: Any, index: Any) -> Any:
    """Load a word; see everything that was stored before `store_release` stored it."""

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
    """Add one to a word; return its old value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.gep(args[0], [args[1]])
        return builder.atomic_rmw("add", word, I64(1), "acq_rel")

    return types.int64(words, types.intp), generate


@intrinsic
def compare_and_swap(typing: Any, words: Any, index: Any, expected: Any, value: Any) -> Any:
    """Store a word if its value is as expected; return whether it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.gep(args[0], [args[1]])
        result = builder.cmpxchg(word, args[2], args[3], "acq_rel", "acquire")
        return builder.extract_value(result, 1)

    return types.boolean(words, types.intp, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def stack_words(typing: Any, length: Any) -> Any:
    """Allocate words on the stack; their number is a literal."""
    if not isinstance(length, types.IntegerLiteral):
        return None
    count = length.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return cgutils.alloca_once(builder, I64, size=ir.Constant(I64, count))

    return WORDS(length), generate


@intrinsic
def address_of(typing: Any, words: Any) -> Any:
    """Return the address of words."""

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
    """Yield the processor to another thread, if the system supports it."""
    if _IS_POSIX:
        _sched_yield()
    else:
        pause()


@njit
def nanoseconds() -> Any:
    """Return the time of a monotonic clock, or 0 if the system has none."""
    if not _IS_POSIX:
        return 0
    parts = stack_words(2)
    _clock_gettime(_MONOTONIC, address_of(parts))
    return parts[0] * SECOND + parts[1]


def new_lock() -> int:
    """Return the address of a lock that is taken, and that stays until the process ends.

    `acquire_lock` would be compiled in each process to be called from Python.
    """
    lock: int | None = _new_lock()
    if lock is None:
        raise MemoryError("there is no memory for a lock")
    _take_lock(lock, 0)
    return lock


@njit
def acquire_lock(lock: int) -> None:
    """Block this thread until a lock is free, and take it."""
    _acquire_lock(lock, 1)


@njit
def release_lock(lock: int) -> None:
    """Free a lock, and wake a thread that waits for it."""
    _release_lock(lock)


@njit
def processor() -> int:
    """Return the processor that this thread runs on, or -1 if the system does not tell."""
    return _sched_getcpu() if _IS_LINUX else -1


@njit
def allow_processor(thread: int, processor: int, is_allowed: int) -> Any:
    """Allow a thread to use a processor, or forbid it; return whether that changed anything.

    The thread is given by its number in Linux; 0 is this thread.
    """
    if not _IS_LINUX or not 0 <= processor < _SET_BYTES * 8:
        return False
    allowed = stack_words(16)
    if _sched_getaffinity(thread, _SET_BYTES, address_of(allowed)) != 0:
        return False
    word, bit = processor // _WORD_BITS, 1 << processor % _WORD_BITS
    if (allowed[word] & bit != 0) == (is_allowed != 0):
        return False
    allowed[word] ^= bit
    return _sched_setaffinity(thread, _SET_BYTES, address_of(allowed)) == 0
