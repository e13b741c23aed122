"""From CUDA C to launches: kernels for template parameters, arguments converted once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import cupy
import numpy as np
from cupy.cuda.function import CPointer

C_NAME = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
}


def accumulation_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype that values of a dtype are computed in."""
    return np.dtype("float64" if dtype == "float64" else "float32")


@cache
def read_sources(*names: str) -> str:
    """Return the CUDA C of some files of this folder, one after the other."""
    here = files(__package__)
    return "\n".join((here / name).read_text(encoding="utf-8") for name in names)


def name_expression(name: str, *parameters: str | int | bool) -> str:
    """Return the C++ name of a kernel, with template parameters if it is a template."""
    if not parameters:
        return name
    arguments = ", ".join(
        str(each).lower() if isinstance(each, bool) else str(each) for each in parameters
    )
    return f"{name}<{arguments}>"


def get_kernel(source: str, name: str, *parameters: str | int | bool) -> Any:
    """Return a kernel of a source, which is compiled when it is first launched on a device."""
    expression = name_expression(name, *parameters)
    module = cupy.RawModule(code=source, options=("-std=c++17",), name_expressions=(expression,))
    return module.get_function(expression)


class ScalarArg(CPointer):  # type: ignore[misc]  # CuPy has no types
    """A kernel argument, converted once; CuPy would convert a number at every launch."""

    def __init__(self, value: Any) -> None:
        self.value = np.asarray(value)
        super().__init__(self.value.ctypes.data)


class CuPyMemory:
    """How kernels access CuPy arrays, and create new ones. Another library has a class like it."""

    dtype = staticmethod(np.dtype)

    @staticmethod
    def empty(shape: Sequence[int], dtype: Any, like: Any) -> Any:
        """Return a new array on the device of another array, which is the current device."""
        return cupy.ndarray(shape, dtype)

    @staticmethod
    def several(count: int, shape: Sequence[int], dtype: Any, like: Any) -> list[Any]:
        """Return several arrays of one shape, in one piece of memory."""
        nbytes = math.prod(shape) * dtype.itemsize
        memory = cupy.cuda.alloc(count * nbytes)
        arrays = [cupy.ndarray(shape, dtype, memory)]
        for k in range(1, count):
            arrays.append(cupy.ndarray(shape, dtype, memory + k * nbytes))
        return arrays

    @staticmethod
    def cast(values: Any, dtype: Any) -> Any:
        """Return values in another dtype."""
        result = cupy.ndarray(values.shape, dtype)
        result[...] = values
        return result

    @staticmethod
    def workspace(nbytes: int, like: Any) -> Any:
        """Return memory that is used only by the kernels launched next on this stream."""
        return cupy.cuda.alloc(nbytes)

    @staticmethod
    def launch(run: Any, grid: Any, block: Any, arrays: tuple[Any, ...], fixed: Any) -> None:
        """Launch a kernel on the current stream."""
        run.kernel(grid, block, arrays + fixed)


def bind_launch(
    memory: Any, run: Any, grid: tuple[int, ...], threads: int, *scalars: Any
) -> Callable[..., None]:
    """Return a launch that takes a kernel's arrays, which come first. None is a null pointer."""
    launch, block = memory.launch, (threads,)
    fixed = tuple(map(ScalarArg, scalars))
    return lambda *arrays: launch(run, grid, block, arrays, fixed)
