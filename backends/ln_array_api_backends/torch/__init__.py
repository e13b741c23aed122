"""torch: CPU tensors on the compiled kernels of the NumPy backend, as views of their memory."""

from __future__ import annotations

from .backend import TorchBackend

__all__ = ["TorchBackend", "backend"]

backend = TorchBackend()
