"""CuPy: all primitives in CUDA C, compiled by NVRTC for the dtypes that are used."""

from __future__ import annotations

from . import requirements

requirements.check()  # before the modules that import CuPy

from .calls import CuPyBackend  # noqa: E402

__all__ = ["CuPyBackend", "backend"]

backend = CuPyBackend()
