"""Run the CUDA kernels on the memory of CUDA tensors, on torch's current stream.

CuPy compiles and launches the kernels. Results and workspaces come from torch's allocator, and no
array of CuPy is made. No call synchronises with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ln_array_api.backend import Primitive, Spec, entries


def engine() -> Any:
    """Return the backend that has the CUDA kernels, or None where it is not available."""
    return entries()["cupy"].backend()


def takes(device: str) -> bool:
    """Whether the kernels work on tensors of a device."""
    return device.startswith("cuda")


def can_run(primitive: Primitive, spec: Spec) -> bool:
    """Whether there is a kernel for a call, and CuPy to launch it."""
    known = all(type(length) is int for length in spec.shape)
    return known and engine() is not None and engine().can_run(primitive, spec)


_current_device = torch.cuda.device


class _Stream:
    """Torch's current stream, as CuPy takes it."""

    __slots__ = ("ptr",)

    def __init__(self) -> None:
        self.ptr = torch.cuda.current_stream().cuda_stream


class _Workspace:
    """Memory that kernels share. Adding a number of bytes to it gives an address."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self.address = tensor, tensor.data_ptr()

    def __add__(self, nbytes: int) -> Any:
        return self.address + nbytes


def _address(values: Tensor | _Workspace | int | None) -> Any:
    if isinstance(values, Tensor):
        return values.data_ptr()
    return values.address if isinstance(values, _Workspace) else values


class TensorMemory:
    """How launches create tensors and pass their addresses."""

    @staticmethod
    def dtype(name: str) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    @staticmethod
    def empty(shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
        """Return a new tensor on the device of another."""
        return torch.empty(shape, dtype=dtype, device=like.device)

    @classmethod
    def several(
        cls, count: int, shape: Sequence[int], dtype: torch.dtype, like: Tensor
    ) -> list[Tensor]:
        """Return `count` new tensors of one shape."""
        return [cls.empty(shape, dtype, like) for _ in range(count)]

    @staticmethod
    def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
        """Return values in another dtype."""
        return values.to(dtype)

    @staticmethod
    def workspace(nbytes: int, like: Tensor) -> _Workspace:
        """Return memory that kernels launched on this stream before its release may use."""
        return _Workspace(torch.empty(nbytes, dtype=torch.uint8, device=like.device))

    @staticmethod
    def launch(run: Any, grid: Any, block: Any, arrays: Sequence[Any], fixed: Any) -> None:
        """Launch a kernel on torch's current stream."""
        addresses = tuple(map(_address, arrays))
        run.kernel(grid, block, addresses + fixed, stream=_Stream())


class Kernel:
    """A primitive for a kind of call."""

    def __init__(self, primitive: Primitive, spec: Spec) -> None:
        self._run: Callable[..., Any] = engine().prepare(primitive, spec, TensorMemory)

    def results(self, *tensors: Tensor | None) -> Any:
        """Return the results of the primitive, on the device of the tensors."""
        (first, *_) = tensors
        with _current_device(first.device):  # type: ignore[union-attr]
            return self._run(*tensors)


def describe(primitive: Primitive, spec: Spec) -> str:
    """Describe how a call runs."""
    return f"{engine().describe(primitive, spec)}, on the memory of the tensor"
