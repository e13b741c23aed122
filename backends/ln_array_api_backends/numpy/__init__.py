"""NumPy: all primitives compiled by Numba, on several threads, with pooled memory.

``memory_pool`` keeps the memory of large results for the next ones, and tells how much that is.
"""

from __future__ import annotations

from .backend import NumPyBackend
from .memory import MemoryPool, memory_pool

__all__ = ["MemoryPool", "NumPyBackend", "backend", "memory_pool"]

backend = NumPyBackend()
