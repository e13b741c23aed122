"""From CUDA C to launches: kernels compiled for their template parameters, arguments made once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import cupy
import numpy as np
from cupy.cuda.function import CPointer

ACCUMULATION = {"float64": "float64"}
C_NAME = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
}


@cache
def read(*names: str) -> str:
    """The CUDA C of some files of this folder."""
    here = files(__package__)
    return "\n".join((here / name).read_text(encoding="utf-8") for name in names)


def expression(name: str, *parameters: str | int | bool) -> str:
    """A kernel for such template parameters, in C++."""
    arguments = ", ".join(
        str(each).lower() if isinstance(each, bool) else str(each) for each in parameters
    )
    return f"{name}<{arguments}>"


def compiled(source: str, wanted: str) -> Any:
    """A kernel of that source, compiled when it is first launched on a device."""
    module = cupy.RawModule(code=source, options=("-std=c++17",), name_expressions=(wanted,))
    return module.get_function(wanted)


class Constant(CPointer):  # type: ignore[misc]  # CuPy has no types
    """An argument of a kernel, converted once; CuPy would convert a number at every launch."""

    def __init__(self, value: Any) -> None:
        self.value = np.asarray(value)
        super().__init__(self.value.ctypes.data)


class CuPyMemory:
    """How kernels get at arrays of CuPy, and make new ones. Another library has a class like it."""

    dtype = staticmethod(np.dtype)

    @staticmethod
    def empty(shape: Sequence[int], dtype: Any, like: Any) -> Any:
        """A new array, on the device of another, which is the current one."""
        return cupy.ndarray(shape, dtype)

    @staticmethod
    def several(count: int, shape: Sequence[int], dtype: Any, like: Any) -> list[Any]:
        """So many of one shape, in one piece of memory."""
        nbytes = math.prod(shape) * dtype.itemsize
        memory = cupy.cuda.alloc(count * nbytes)
        arrays = [cupy.ndarray(shape, dtype, memory)]
        for k in range(1, count):
            arrays.append(cupy.ndarray(shape, dtype, memory + k * nbytes))
        return arrays

    @staticmethod
    def workspace(nbytes: int, like: Any) -> Any:
        """So many bytes, until the kernels that are launched on this stream have used them."""
        return cupy.cuda.alloc(nbytes)

    @staticmethod
    def launch(run: Any, grid: Any, block: Any, arrays: tuple[Any, ...], fixed: Any) -> None:
        """Launch a kernel on the current stream."""
        run.kernel(grid, block, arrays + fixed)


def launcher(
    memory: Any, run: Any, grid: tuple[int, ...], threads: int, *constants: Any
) -> Callable[..., None]:
    """A kernel with all but its arrays, which stand first; None is a null pointer."""
    launch, block = memory.launch, (threads,)
    fixed = tuple(map(Constant, constants))
    return lambda *arrays: launch(run, grid, block, arrays, fixed)
