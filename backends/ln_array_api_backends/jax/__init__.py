"""The JAX backend: the NumPy backend's kernels as foreign functions of XLA, or the generic kernels.

Each operation over rows is a primitive of JAX, which keeps the axes of its arrays. In a program for
one CPU it calls the kernels of the NumPy backend. On other devices, where arrays may be sharded,
and in exported programs it consists of JAX's own operations.
"""

from .backend import JaxBackend, backend

__all__ = ["JaxBackend", "backend"]
