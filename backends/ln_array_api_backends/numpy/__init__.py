"""NumPy: all primitives compiled by Numba, on several threads, with pooled memory.

``memory_pool`` keeps the memory of large results for the next ones, and tells how much that is.
"""

from __future__ import annotations

import numba

from ln_array_api.errors import BackendError

if numba.config.DISABLE_JIT:
    raise BackendError("Numba compiles nothing while NUMBA_DISABLE_JIT is set; unset it")

from .backend import NumPyBackend
from .memory import MemoryPool, memory_pool

__all__ = ["MemoryPool", "NumPyBackend", "backend", "memory_pool"]

backend = NumPyBackend()
