"""JAX: the CPU engine's kernels as foreign functions of XLA, and the generic kernels elsewhere.

Each operation over rows is a primitive of JAX, which keeps the axes of its arrays. Where a program
is for one CPU, it calls the kernels that NumPy arrays have. Where arrays may be sharded, on other
devices, and in programs that are exported, it consists of JAX's own operations.
"""

from .backend import JaxBackend, backend

__all__ = ["JaxBackend", "backend"]
