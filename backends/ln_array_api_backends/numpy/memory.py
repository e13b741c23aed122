"""A pool of memory for large results.

Allocating an array of many MiB costs more than the kernel that fills it: the system maps its pages
one by one, clears each at its first use, and unmaps them when the array is deleted. Here memory is
returned to a pool when the last view of a result is deleted, and is reused for the next result of
about that size.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

#: Offsets of new memory in a page, in turn: aligned to 64 bytes, and different from those of the
#: system and of the last result. A load waits for a recent store whose address differs by whole
#: pages (4K aliasing): rows of 4096 bytes would take twice as long.
_PAGE, _PAGE_OFFSETS = 4096, itertools.cycle((2048, 3072, 1024))
_DEFAULT_LIMIT = 512 << 20
#: Smallest result whose memory comes from the pool.
POOLED_MIN_BYTES = 1 << 20


class PoolStats(NamedTuple):
    """The memory of a pool, and how often it was reused."""

    used_bytes: int
    """Bytes of arrays in use."""
    free_bytes: int
    """Bytes that are free for the next results."""
    hits: int
    """Results that took memory from the pool."""
    misses: int
    """Results that took new memory."""


class MemoryPool:
    """Memory of deleted results, kept for the next ones.

    Parameters
    ----------
    limit : int, default: 512 MiB
        Most bytes that are kept free for the next results. Memory in use does not count. 0 turns
        the pool off.

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
        self._free: list[_Buffer] = []  # longest unused first
        # An array can be deleted anywhere, also while this thread holds the lock. So returned
        # memory is put here, which needs no lock, and moved when the lock is free.
        self._returned: deque[_Buffer] = deque()
        self._used_bytes = self._free_bytes = self._hits = self._misses = 0

    @staticmethod
    def _checked(limit: int) -> int:
        if not isinstance(limit, int) or limit < 0:
            raise ValueError(f"limit must be a number of bytes, at least 0, not {limit!r}")
        return limit

    @property
    def limit(self) -> int:
        """Most bytes that are kept free. Lowering it frees memory beyond the new limit."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = self._checked(limit)
        self._reclaim()

    def stats(self) -> PoolStats:
        """Return the bytes in use and free, and how often memory was reused."""
        self._reclaim()
        with self._lock:
            stats = PoolStats(self._used_bytes, self._free_bytes, self._hits, self._misses)
        self._reclaim()
        return stats

    def free_all(self) -> None:
        """Return all memory that is not in use to the system."""
        self._reclaim()
        with self._lock:
            freed, self._free, self._free_bytes = self._free, [], 0
        del freed  # outside the lock, since it may take a while
        self._reclaim()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an uninitialised C-contiguous array, aligned to 64 bytes."""
        dtype = np.dtype(dtype)
        size = _rounded(math.prod(shape) * dtype.itemsize + _PAGE)
        if self._returned:
            self._reclaim()
        buffer = self._acquire(size)
        base = _PooledBase(size - _PAGE, np.uint8, buffer.aligned)
        base.pool, base.buffer = self, buffer
        return np.ndarray(shape, dtype, base)

    def _acquire(self, size: int) -> _Buffer:
        with self._lock:
            free = self._free
            for place in range(len(free) - 1, -1, -1):  # the latest is most likely in the cache
                if free[place].nbytes == size:
                    buffer = free.pop(place)
                    self._free_bytes -= size
                    self._hits += 1
                    break
            else:
                buffer = _Buffer(size)
                self._misses += 1
            self._used_bytes += size
        if self._returned:  # while this thread held the lock
            self._reclaim()
        return buffer

    def _give_back(self, buffer: _Buffer) -> None:
        self._returned.append(buffer)
        self._reclaim()

    def _reclaim(self) -> None:
        """Move returned buffers to the free ones, unless another thread holds the lock and will."""
        while (self._returned or self._free_bytes > self._limit) and self._lock.acquire(False):
            try:
                while self._returned:
                    buffer = self._returned.popleft()
                    self._used_bytes -= buffer.nbytes
                    self._free_bytes += buffer.nbytes
                    self._free.append(buffer)
                while self._free_bytes > self._limit:
                    self._free_bytes -= self._free.pop(0).nbytes
            finally:
                self._lock.release()

    def _after_fork(self) -> None:
        # Another thread of the parent may have held the lock. It does not exist here.
        self._lock = threading.Lock()


@lru_cache(256)
def _rounded(nbytes: int) -> int:
    """Round up by at most 1/8, so that results of about the same size reuse each other's memory."""
    step = 1 << max(nbytes.bit_length() - 4, 12)
    return -(-nbytes // step) * step


class _Buffer:
    """Memory that a pool has allocated."""

    aligned: Any  # an object with the buffer protocol
    nbytes: int
    __slots__ = ("aligned", "nbytes")

    def __init__(self, nbytes: int) -> None:
        buffer = np.empty(nbytes, np.uint8)
        offset = (next(_PAGE_OFFSETS) - buffer.ctypes.data) % _PAGE
        self.nbytes = nbytes
        # Not an array or a memoryview of one: views would have that array as their base instead.
        self.aligned = (ctypes.c_ubyte * (nbytes - offset)).from_buffer(buffer, offset)  # type: ignore[arg-type]


class _PooledBase(np.ndarray):
    """The base of a pooled array and of all its views; returns the memory when it is deleted."""

    pool: MemoryPool | None = None  # None for views and copies of the base
    buffer: _Buffer

    def __del__(self) -> None:
        if self.pool is not None:
            self.pool._give_back(self.buffer)


#: The pool of this backend's results.
memory_pool = MemoryPool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=memory_pool._after_fork)


def allocator(size: int) -> Callable[..., np.ndarray]:
    """Return a function that allocates an array of a shape and dtype, for results of this size."""
    return np.empty if size < POOLED_MIN_BYTES else memory_pool.empty
