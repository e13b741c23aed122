"""How Numba compiles kernels, and the types of arrays that they take."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import from_dtype, types

OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
#: For functions that only kernels call. Without entry points for Python and C, they compile in a
#: sixth less time.
CALLED: dict[str, Any] = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
#: For functions with a single call: they are compiled only as part of their caller.
ONCE: dict[str, Any] = {**CALLED, "inline": "always"}
#: For functions that are inlined by LLVM.
INLINE: dict[str, Any] = {**CALLED, "forceinline": True}
#: For functions whose argument is a function: in each process they would have another key on disk.
MAP: dict[str, Any] = {**INLINE, "cache": False}
#: For small tasks, which take less time than releasing the interpreter's lock.
WITH_GIL: dict[str, Any] = {**OPTIONS, "nogil": False}

#: The dtypes as which Numba gets 16-bit arrays, since it does not know theirs.
STORAGE_DTYPES = {"float16": np.int16, "bfloat16": np.uint16}


@cache
def compiled(kernel: Any, *arguments: Any) -> Callable[..., Any]:
    """Return a kernel compiled for arguments of these types only.

    Numba's own dispatch by the types of each call takes longer than a small kernel.
    """
    kernel.compile(arguments)
    entry: Callable[..., Any] = kernel.overloads[arguments].entry_point
    return entry


def array_type(dtype: str | None, ndim: int) -> Any:
    """Return Numba's type of a contiguous array, or of None if the dtype is None."""
    if dtype is None:
        return types.none
    return types.Array(from_dtype(np.dtype(STORAGE_DTYPES.get(dtype, dtype))), ndim, "C")
