"""A pool of memory for large results.

A fresh array of many MiB costs more than the kernel that fills it: the system hands out its memory
page by page, each cleared at its first use, and takes it back when the array dies. Here memory is
given back to a pool when the last view of a result dies, and the next result of about that size
takes it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import threading
from collections import deque
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

#: Where new memory begins in a page, in turn: aligned to 64 bytes, and not where the system's does,
#: nor that of the result before. A processor takes a load for one of what was just stored if their
#: addresses differ by whole pages, and waits: rows of 4096 bytes next to theirs take twice as long.
_PAGE, _PLACES = 4096, itertools.cycle((2048, 3072, 1024))
_DEFAULT_LIMIT = 512 << 20


class PoolStats(NamedTuple):
    """What a pool holds and has done."""

    used_bytes: int
    """In arrays that are alive."""
    free_bytes: int
    """Waiting for the next result."""
    hits: int
    """Results that took memory from the pool."""
    misses: int
    """Results that took new memory."""


class MemoryPool:
    """Memory of dead results, kept for the next ones.

    Parameters
    ----------
    limit : int, default: 512 MiB
        Bytes that may wait for the next result. What is in use does not count. 0 turns the pool
        off.

    Examples
    --------
    >>> from ln_array_api_backends.numpy.memory import MemoryPool
    >>> pool = MemoryPool(limit=64 << 20)
    >>> y = pool.empty((1024, 4096), "float32")
    >>> pool.stats().used_bytes >= y.nbytes
    True
    >>> del y
    >>> pool.stats().free_bytes > 0
    True
    >>> pool.free_all()
    >>> pool.stats().free_bytes
    0
    """

    def __init__(self, limit: int = _DEFAULT_LIMIT) -> None:
        self._limit = self._checked(limit)
        self._lock = threading.Lock()
        self._free: list[_Memory] = []  # the one that has waited longest first
        # An array can die anywhere, while this thread holds the lock too. So memory that comes
        # back is put here, where that needs no lock, and sorted in as soon as nobody holds it.
        self._returned: deque[_Memory] = deque()
        self._used_bytes = self._free_bytes = self._hits = self._misses = 0

    @staticmethod
    def _checked(limit: int) -> int:
        if not isinstance(limit, int) or limit < 0:
            raise ValueError(f"limit must be a number of bytes, at least 0, not {limit!r}")
        return limit

    @property
    def limit(self) -> int:
        """Bytes that may wait for the next result. Lowering it frees what is beyond."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = self._checked(limit)
        self._settle()

    def stats(self) -> PoolStats:
        """Bytes in use and free, and how often the pool had what was wanted."""
        self._settle()
        with self._lock:
            stats = PoolStats(self._used_bytes, self._free_bytes, self._hits, self._misses)
        self._settle()
        return stats

    def free_all(self) -> None:
        """Give all memory that is not in use back to the system."""
        self._settle()
        with self._lock:
            freed, self._free, self._free_bytes = self._free, [], 0
        del freed  # outside the lock, since it may take a while
        self._settle()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array in C order, aligned to 64 bytes, whose values are whatever was there."""
        dtype = np.dtype(dtype)
        size = _rounded(math.prod(shape) * dtype.itemsize + _PAGE)
        if self._returned:
            self._settle()
        memory = self._take(size)
        loan = _Loan(size - _PAGE, np.uint8, memory.aligned)
        loan.pool, loan.memory = self, memory
        return np.ndarray(shape, dtype, loan)

    def _take(self, size: int) -> _Memory:
        with self._lock:
            free = self._free
            for place in range(len(free) - 1, -1, -1):  # the latest is warmest
                if free[place].nbytes == size:
                    memory = free.pop(place)
                    self._free_bytes -= size
                    self._hits += 1
                    break
            else:
                memory = _Memory(size)
                self._misses += 1
            self._used_bytes += size
        if self._returned:  # while this thread held the lock
            self._settle()
        return memory

    def _give_back(self, memory: _Memory) -> None:
        self._returned.append(memory)
        self._settle()

    def _settle(self) -> None:
        """Sort in what has been returned, unless somebody is in there and will do so after that."""
        while (self._returned or self._free_bytes > self._limit) and self._lock.acquire(False):
            try:
                while self._returned:
                    memory = self._returned.popleft()
                    self._used_bytes -= memory.nbytes
                    self._free_bytes += memory.nbytes
                    self._free.append(memory)
                while self._free_bytes > self._limit:
                    self._free_bytes -= self._free.pop(0).nbytes
            finally:
                self._lock.release()

    def _after_fork(self) -> None:
        # Another thread of the parent may have held the lock. It does not exist here.
        self._lock = threading.Lock()


@lru_cache(256)
def _rounded(nbytes: int) -> int:
    """Up to 1/8 more, so that results of about the same size can take each other's memory."""
    step = 1 << max(nbytes.bit_length() - 4, 12)
    return -(-nbytes // step) * step


class _Memory:
    """A piece of memory that a pool has taken from the system."""

    aligned: Any  # what has the buffer protocol
    nbytes: int
    __slots__ = ("aligned", "nbytes")

    def __init__(self, nbytes: int) -> None:
        memory = np.empty(nbytes, np.uint8)
        ahead = (next(_PLACES) - memory.ctypes.data) % _PAGE
        self.nbytes = nbytes
        # No array or memoryview of one: a loan's views would have that array as their base instead.
        self.aligned = (ctypes.c_ubyte * (nbytes - ahead)).from_buffer(memory, ahead)  # type: ignore[arg-type]


class _Loan(np.ndarray):
    """Memory on loan from a pool: the base of an array, and so of all its views."""

    pool: MemoryPool | None = None  # views of the loan and copies have none
    memory: _Memory

    def __del__(self) -> None:
        if self.pool is not None:
            self.pool._give_back(self.memory)


#: The pool of this backend's results.
memory_pool = MemoryPool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=memory_pool._after_fork)
