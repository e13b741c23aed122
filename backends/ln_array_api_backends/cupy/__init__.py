"""CuPy: all primitives in CUDA C, compiled by NVRTC for the dtypes that are used."""

from __future__ import annotations

import cupy

from ln_array_api.errors import BackendError

from .calls import CuPyBackend

__all__ = ["CuPyBackend", "backend"]

try:
    _devices = cupy.cuda.runtime.getDeviceCount()
except cupy.cuda.runtime.CUDARuntimeError as error:
    raise BackendError(
        f"CuPy finds no GPU, or no driver that is new enough for it ({error}). `nvidia-smi` tells "
        "which CUDA the driver has; for CUDA 13: pip install 'ln-array-api[cuda13]', for CUDA 12: "
        "pip install 'ln-array-api[cuda12]'"
    ) from error
if _devices == 0:
    raise BackendError("CuPy finds no GPU")

backend = CuPyBackend()
