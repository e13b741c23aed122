"""The CuPy backend: all primitives in CUDA C, which NVRTC compiles for the dtypes in use."""

from __future__ import annotations

from . import requirements

requirements.check()  # before the modules that import CuPy

from .backend import CuPyBackend  # noqa: E402

__all__ = ["CuPyBackend", "backend"]

backend = CuPyBackend()
