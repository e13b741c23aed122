"""Kernels that are called with one address, for arrays in any memory and on any thread.

A task gets the address of 64-bit words, the number of a part, and the number of parts. The words
hold the kernel's arguments; for an array, its address and its shape.
"""

from __future__ import annotations

import ctypes
import logging
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any, TypeAlias

from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils, event
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .atomics import WORDS, increment
from .compile import array_type
from .simd import I32, I64

#: Indices of words: the address of the task, those of functions that return the number of a thread
#: and the size of its team, the number of finished parts, the number of items, and the arguments.
TASK, THREAD, TEAM, FINISHED, COUNT, ARGUMENTS = range(6)
SIGNATURE = types.void(WORDS, types.int64, types.int64)

#: The type and the value of an argument of a task. The value of an array is its shape.
Argument: TypeAlias = tuple[Any, Any]
ABSENT: Argument = types.none, None

logger = logging.getLogger("ln_array_api")

_call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def array_of(dtype: str | None, *shape: int) -> Argument:
    """Return an array argument, which is absent if its dtype is None."""
    return ABSENT if dtype is None else (array_type(dtype, len(shape)), shape)


def integer(value: int) -> Argument:
    """Return an integer argument."""
    return types.int64, value


def boolean(value: bool) -> Argument:
    """Return a boolean argument."""
    return types.boolean, value


def real(value: float) -> Argument:
    """Return a float64 argument."""
    return types.float64, value


@intrinsic(prefer_literal=True)
def arguments(typing: Any, words: Any, kinds: Any, part: Any, num_parts: Any) -> Any:
    """Return a tuple of the arguments, whose types are `kinds`, and the bounds of a part."""
    if not isinstance(kinds, types.StringLiteral):
        return None
    each_type = [_kind(word) for word in kinds.literal_value.split()]
    result = types.Tuple([*each_type, types.int64, types.int64])

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = ARGUMENTS

        def word() -> Any:
            nonlocal place
            place += 1
            return builder.load(builder.gep(args[0], [I64(place - 1)]))

        values = [_value(context, builder, kind, word) for kind in each_type]
        count = builder.load(builder.gep(args[0], [I64(COUNT)]))
        bounds = [
            builder.sdiv(builder.mul(count, part), args[3])
            for part in (args[2], builder.add(args[2], I64(1)))
        ]
        return context.make_tuple(builder, signature.return_type, [*values, *bounds])

    return result(words, kinds, types.int64, types.int64), generate


def _value(context: Any, builder: Any, kind: Any, word: Callable[[], Any]) -> Any:
    """Emit the value of an argument from its words."""
    if kind == types.none:
        return context.get_dummy_value()
    if kind == types.float64:
        return builder.bitcast(word(), ir.DoubleType())
    if kind == types.boolean:
        return cgutils.is_not_null(builder, word())
    if kind == types.int64:
        return word()
    result = context.make_array(kind)(context, builder)
    element = context.get_data_type(kind.dtype)
    size = context.get_abi_sizeof(element)
    data = builder.inttoptr(word(), element.as_pointer())
    shape = [word() for _ in range(kind.ndim)]
    strides = [I64(size)]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    populate_array(
        result, data=data, shape=shape, strides=strides, itemsize=I64(size), meminfo=None
    )
    return result._getvalue()


def _kind(word: str) -> Any:
    name, _, rank = word.partition(":")
    kind = getattr(types, name)
    return types.Array(kind, int(rank), "C") if rank else kind


def kinds_of(arguments: Sequence[tuple[Any, Any]]) -> str:
    """Return the types of the arguments of a task as a string, a key of Numba's cache."""
    return " ".join(
        f"{kind.dtype}:{kind.ndim}"
        if isinstance(kind, types.Array)
        else "boolean"
        if kind == types.boolean
        else str(kind)
        for kind, _ in arguments
    )


# Templates of tasks; `task_of` supplies the globals `kernel`, `reduce` and indices of arguments.
# mypy: disable-error-code=name-defined
# ruff: noqa: F821


def _task(kinds: str) -> Callable[[Any, int, int], None]:
    def task(words: Any, part: int, num_parts: int) -> None:
        kernel(*arguments(words, kinds, part, num_parts))

    return task


def _task_of_one_part(kinds: str) -> Callable[[Any, int, int], None]:
    def task(words: Any, part: int, num_parts: int) -> None:
        kernel(*arguments(words, kinds, part, num_parts)[:-2])

    return task


def _reducing_task(kinds: str) -> Callable[[Any, int, int], None]:
    def task(words: Any, part: int, num_parts: int) -> None:
        given = arguments(words, kinds, part, num_parts)
        kernel(*(given[:withheld_first] + given[withheld_last:]))
        if increment(words, FINISHED) == num_parts - 1:
            reduce(words[COUNT], *given[first:last])

    return task


def task_of(kernel: Any, *, has_parts: bool = True) -> Callable[[str], Any]:
    """Return a function that makes a task of a kernel, for arguments of given types.

    The kernel gets all arguments of the task, and the bounds of a part if the task has parts.
    """
    return _from_template(_task if has_parts else _task_of_one_part, kernel)


def reducing_task_of(
    kernel: Any, reduce: Any, *, withheld: tuple[int, int], reduced: tuple[int, int]
) -> Callable[[str], Any]:
    """Return what `task_of` does; the thread that finishes the last part calls `reduce`.

    `reduce` gets the number of items of the task and the arguments from `reduced[0]` to
    `reduced[1]` (exclusive). The kernel gets all arguments except those in the range `withheld`.
    """
    names = ("withheld_first", "withheld_last", "first", "last")
    indices = dict(zip(names, withheld + reduced, strict=True))
    return _from_template(_reducing_task, kernel, reduce=reduce, **indices)


def _from_template(template: Any, kernel: Any, **others: Any) -> Callable[[str], Any]:
    """Return a function that makes a task by a template.

    Numba finds a task on disk by its file, line, name and closure. The kernel is a global of the
    task, since a closure over it would be different in each process. File, line and name are those
    of the kernel.
    """
    code, name = kernel.py_func.__code__, f"{kernel.__name__}_task"
    make_task = FunctionType(template.__code__, {**globals(), "kernel": kernel, **others})

    def make(kinds: str) -> Any:
        task = make_task(kinds)
        task.__code__ = task.__code__.replace(
            co_filename=code.co_filename, co_firstlineno=code.co_firstlineno
        )
        task.__name__ = task.__qualname__ = name
        return task

    make.__name__, make.__module__ = name, kernel.__module__
    return make


class _CompileLog(event.Listener):  # type: ignore[misc]
    """Log that a task is compiled, if it is not in the cache on disk."""

    def __init__(self, what: str) -> None:
        self._what, self.has_begun = what, False

    def on_start(self, event: Any) -> None:
        if not self.has_begun:
            self.has_begun = True
            logger.info("compiling %s, which takes seconds, and is kept on disk", self._what)

    def on_end(self, event: Any) -> None:
        """Do nothing: the end of the compilation is logged by `compiled`."""


@cache
def compiled(make: Callable[[str], Callable[[Any], None]], kinds: str) -> Any:
    """Compile a task for arguments of given types and any shapes, or take it from the cache."""
    module = make.__module__.rpartition(".")[2]
    what = f"{module}.{make.__name__.removesuffix('_task')} for {kinds}"
    log, begun = _CompileLog(what), time.perf_counter()
    with event.install_listener("numba:compile", log):
        task = cfunc(SIGNATURE, cache=True)(make(kinds))
    if log.has_begun:
        logger.info("compiled %s in %.1f s", what, time.perf_counter() - begun)
    return task


class Task:
    """A compiled task, and its words without the addresses of arrays."""

    def __init__(
        self,
        make: Callable[[str], Callable[[Any], None]],
        arguments: Sequence[tuple[Any, Any]],
        count: int,
        *,
        room: int = 0,
    ) -> None:
        """Compile the task that `make` returns for the types of the arguments.

        `count` is the number of items that are divided into parts; `room` is a number of bytes to
        reserve after the words.
        """
        words = [0] * COUNT + [count]
        self.places: list[int] = []
        """The index of the first word of each argument (an array's address); -1 if it is absent."""
        for kind, value in arguments:
            self.places.append(-1 if kind == types.none else len(words))
            if kind == types.none:
                continue
            if isinstance(kind, types.Array):
                words += [0, *value]
            elif kind == types.float64:
                words += struct.unpack("q", struct.pack("d", value))
            else:
                words.append(int(value))
        self.room = len(words) * 8
        """The offset of the reserved bytes from the first word, in bytes."""
        self.words = array("q", [*words, *[0] * -(-room // 8)])
        """Callers copy them; the address of a copy is the first item of its ``buffer_info()``."""
        kinds = kinds_of(arguments)
        self.name = f"{make.__name__} {kinds}"
        address = compiled(make, kinds).address
        self.words[TASK] = address
        self.call = _call(address)


@intrinsic
def call_task(typing: Any, words: Any, part: Any, parts: Any) -> Any:
    """Call the task whose words these are."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [args[0].type, I64, I64])
        task = builder.load(builder.gep(args[0], [I64(TASK)]))
        builder.call(builder.inttoptr(task, kind.as_pointer()), args)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), generate


@intrinsic
def _call_for_number(typing: Any, function: Any) -> Any:
    """Call the C function ``int (*)(void)`` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, [])
        number = builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return builder.sext(number, I64)

    return types.int64(types.int64), generate


@cfunc(types.void(WORDS), cache=True)
def in_team(words: Any) -> None:
    """Run one thread's part of a task; each thread of an OpenMP team calls it."""
    call_task(words, _call_for_number(words[THREAD]), _call_for_number(words[TEAM]))
