"""From CUDA C to launches: kernels compiled for their template parameters, arguments made once."""

from __future__ import annotations

from collections.abc import Callable
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


def launcher(run: Any, grid: tuple[int, ...], threads: int, *constants: Any) -> Callable[..., None]:
    """A kernel with all but its arrays, which stand first; None is a null pointer."""
    block = (threads,)
    fixed = tuple(map(Constant, constants))

    def launch(*arrays: Any) -> None:
        run.kernel(grid, block, arrays + fixed)

    return launch
