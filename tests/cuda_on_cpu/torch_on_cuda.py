"""Torch's CPU tensors in place of CUDA tensors: their memory is that of the simulated device.

A pytest plugin (``-p torch_on_cuda``): all calls on tensors go to the CUDA kernels.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import cupy_on_cpu  # noqa: F401 # before CuPy
import torch
from ln_array_api_backends.torch import cuda

import ln_array_api as ln


def _stream() -> Any:
    import cupy

    return SimpleNamespace(ptr=cupy.cuda.get_current_stream().ptr)


cuda.takes = lambda device: device == "cpu"  # type: ignore[assignment]
cuda._current_device = lambda device: nullcontext()  # type: ignore[assignment,misc]
cuda._Stream = _stream  # type: ignore[assignment,misc]
assert "CUDA C" in ln.explain(ln.layer_norm, torch.ones(3, 4)).reason
