"""The torch backend: compiled kernels of the NumPy and CuPy backends on the memory of tensors."""

from __future__ import annotations

from .backend import TorchBackend

__all__ = ["TorchBackend", "backend"]

backend = TorchBackend()
