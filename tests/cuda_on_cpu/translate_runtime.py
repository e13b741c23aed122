"""Translate CuPy's wrapper of the CUDA runtime to C++, as CuPy's own build would for CUDA 13.2."""

from __future__ import annotations

import os
import sys

import Cython
from Cython.Compiler import Errors
from Cython.Compiler.Main import CompilationOptions, default_options
from Cython.Compiler.Main import compile as translate

CONSTANTS = {
    "CUPY_USE_CUDA_PYTHON": False,
    "CUPY_CUFFT_STATIC": False,
    "CUPY_CYTHON_VERSION": Cython.__version__,
    "CUPY_CUDA_VERSION": 13020,
    "CUPY_HIP_VERSION": 0,
}

if __name__ == "__main__":
    Errors.LEVEL = 9  # CuPy's source is what it is; only errors concern us
    os.chdir(sys.argv[1])
    result = translate(
        "cupy_backends/cuda/api/runtime.pyx",
        CompilationOptions(
            default_options,
            language_level=3,
            cplus=True,
            include_path=["."],
            compile_time_env=CONSTANTS,
        ),
        full_module_name="cupy_backends.cuda.api.runtime",
    )
    sys.exit(bool(result.num_errors))
