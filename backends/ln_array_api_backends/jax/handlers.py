"""Run tasks from XLA: one handler of its foreign function interface, for every task.

A call has arrays and attributes: the name of a task, the task's words without addresses, and the
index of each array's address among these words. Another process may run a program from XLA's cache,
so the name is a hash of what the task does, not an address.

The numbers are indices of words in the structures of ``xla/ffi/api/c_api.h``, which comes with
jaxlib, in version 0.1 of that interface. Later versions keep them.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from array import array
from typing import Any

import jax
import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from ln_array_api import __version__

from ..numpy.atomics import give_way, increment, load_acquire, words_at
from ..numpy.simd import I64
from ..numpy.tasks import TASK, Task, call_task

NAME = "ln_array_api.task"

#: The handler reads the address of a table here. A table is the number of its pairs, then pairs of
#: a task's name and address. It is never changed: a new table replaces it.
_table = array("q", [0])
_tables = [array("q", [0])]
_table[0] = _tables[0].buffer_info()[0]
_TABLE = _table.buffer_info()[0]
_lock = threading.Lock()

_UNKNOWN = ctypes.create_string_buffer(
    b"ln_array_api: this program was compiled in another process, with kernels that this process "
    b"does not have; compile it here"
)
_MESSAGE = ctypes.addressof(_UNKNOWN)
_FAILED_PRECONDITION = 9

# Words of a call.
_EXTENSION, _INTERFACE, _CONTEXT, _ARGUMENTS, _RESULTS, _ATTRIBUTES = 1, 2, 3, 7, 12, 20
_ADDRESS = 3
"""Of a buffer."""
# Functions of the interface.
_NEW_ERROR, _END_ERROR, _SCHEDULE, _NUMBER_OF_THREADS = 6, 8, 17, 18
#: Words before those of a task that runs on several threads: the next part, the number of finished
#: parts, of all parts, of threads that have left, and of all threads.
_NEXT, _DONE, _PARTS, _LEFT, _MEMBERS, _WORDS = range(6)


def name_of(task: Task) -> int:
    """Return the name of a task, the same in every process."""
    digest = hashlib.sha256(f"{__version__} {task.name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def make_known(task: Task) -> int:
    """Add a task to the table of the handler, and return its name."""
    name = name_of(task)
    with _lock:
        known = _tables[-1]
        if name not in known[1::2]:
            _tables.append(array("q", [known[0] + 1, *known[1:], name, task.words[TASK]]))
            _table[0] = _tables[-1].buffer_info()[0]
    return name


_allocate = types.ExternalFunction("malloc", types.int64(types.int64))
_free = types.ExternalFunction("free", types.void(types.int64))


@intrinsic
def _call_interface(typing: Any, function: Any, arguments: Any) -> Any:
    """Call a function of the interface with the address of its arguments; return an error or 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I64, [I64])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])

    return types.int64(types.int64, types.int64), generate


@njit
def _answered(call: Any) -> bool:
    """Answer with version 0.1 if XLA only asks for the version; return whether it does."""
    extension = call[_EXTENSION]
    if extension == 0 or words_at(extension)[1] & 0xFFFFFFFF != 1:
        return False
    words_at(words_at(extension)[3])[3] = 1 << 32
    return True


@njit
def _found(name: int) -> Any:
    """Return the address of a task, or 0."""
    table = words_at(words_at(_TABLE)[0])
    for i in range(table[0]):
        if table[1 + 2 * i] == name:
            return table[2 + 2 * i]
    return 0


@njit
def _error(call: Any) -> Any:
    arguments = np.array([32, 0, _MESSAGE, _FAILED_PRECONDITION], np.int64)
    return _call_interface(words_at(call[_INTERFACE])[_NEW_ERROR], arguments.ctypes.data)


@njit
def _works(call: Any, function: int, arguments: Any) -> bool:
    """Call a function of the interface; return whether it succeeds."""
    interface = words_at(call[_INTERFACE])
    error = _call_interface(interface[function], arguments.ctypes.data)
    if error == 0:
        return True
    ended = np.array([24, 0, error], np.int64)
    _call_interface(interface[_END_ERROR], ended.ctypes.data)
    return False


@njit
def _threads(call: Any) -> int:
    """Return the number of threads that XLA has for one program."""
    number = np.ones(1, np.int64)
    arguments = np.array([32, 0, call[_CONTEXT], number.ctypes.data], np.int64)
    return number[0] if _works(call, _NUMBER_OF_THREADS, arguments) else 1


@njit
def _leave(job: Any, address: int) -> None:
    if increment(job, _LEFT) == job[_MEMBERS] - 1:
        _free(address)


@njit
def _work(job: Any, address: int) -> None:
    """Run parts that no other thread has taken, until all are taken."""
    words = words_at(address + 8 * _WORDS)
    part = increment(job, _NEXT)
    while part < job[_PARTS]:
        call_task(words, part, job[_PARTS])
        increment(job, _DONE)
        part = increment(job, _NEXT)


@cfunc(types.void(types.int64))
def _help(address: int) -> None:
    job = words_at(address)
    _work(job, address)
    _leave(job, address)


_HELP = _help.address


@njit
def _with_help(call: Any, job: Any, address: int, threads: int) -> None:
    """Run all parts of a task, with those threads of XLA that start in time."""
    job[_NEXT], job[_DONE], job[_LEFT], job[_MEMBERS] = 0, 0, 0, threads
    for _ in range(threads - 1):
        arguments = np.array([40, 0, call[_CONTEXT], _HELP, address], np.int64)
        if not _works(call, _SCHEDULE, arguments):
            _leave(job, address)
    _work(job, address)
    while load_acquire(job, _DONE) < job[_PARTS]:
        give_way()
    _leave(job, address)


@cfunc(types.int64(types.int64))
def _handler(frame: int) -> Any:
    call = words_at(frame)
    if _answered(call):
        return 0
    attributes = words_at(call[_ATTRIBUTES])  # in the order of their names
    parts = words_at(words_at(attributes[0])[1])[0]
    places = words_at(words_at(attributes[1])[2])
    name = words_at(words_at(attributes[2])[1])[0]
    size, template = words_at(attributes[3])[1], words_at(words_at(attributes[3])[2])
    task = _found(name)
    if task == 0:
        return _error(call)
    address = _allocate(8 * (_WORDS + size))
    job, words = words_at(address), words_at(address + 8 * _WORDS)
    for i in range(size):
        words[i] = template[i]
    words[TASK] = task
    given, results = call[_ARGUMENTS], call[_RESULTS]
    for i in range(given):
        words[places[i]] = words_at(words_at(call[_ARGUMENTS + 2])[i] + 8 * _ADDRESS)[0]
    for i in range(results):
        words[places[given + i]] = words_at(words_at(call[_RESULTS + 2])[i] + 8 * _ADDRESS)[0]
    threads = min(_threads(call), parts) if parts > 1 else 1
    job[_PARTS] = min(parts, 4 * threads)
    if threads > 1:
        _with_help(call, job, address, threads)
    else:
        call_task(words, 0, 1)
        _free(address)
    return 0


def call(task: Task, places: list[int], results: list[Any], parts: int) -> Any:
    """Return a function of arrays that runs a task in at most `parts` parts.

    `places` are the indices of the addresses of the arrays, then of the results, among the words;
    `results` have the shapes and dtypes of the results.
    """
    words = np.array(task.words, np.int64)
    words[TASK] = 0
    run = jax.ffi.ffi_call(NAME, results)

    def with_arrays(*arrays: Any) -> Any:
        return run(
            *arrays,
            parts=np.int64(parts),
            places=np.asarray(places, np.int64),
            task=np.int64(make_known(task)),
            words=words,
        )

    return with_arrays


jax.ffi.register_ffi_target(NAME, jax.ffi.pycapsule(_handler.ctypes), platform="cpu")
