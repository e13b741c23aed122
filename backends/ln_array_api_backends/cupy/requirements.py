"""Check that this machine can compile and load CUDA kernels; if not, tell what to do."""

from __future__ import annotations

from typing import Any

from ln_array_api.errors import BackendError

INSTALL = (
    "`nvidia-smi` tells which CUDA the driver has; for CUDA 13: pip install "
    "'ln-array-api[cuda13]', for CUDA 12: pip install 'ln-array-api[cuda12]'"
)
#: NVRTC and headers go as well: CuPy for CUDA 12 would use those for CUDA 13 where it finds them.
CHANGE_TO_CUDA_12 = (
    "pip uninstall cupy-cuda13x nvidia-cuda-nvrtc nvidia-cuda-runtime, then pip install "
    "'ln-array-api[cuda12]'"
)
#: What CUDA reports for a kernel that was compiled for a newer driver or another GPU.
UNLOADABLE = {
    200,  # CUDA_ERROR_INVALID_IMAGE
    209,  # CUDA_ERROR_NO_BINARY_FOR_GPU
    218,  # CUDA_ERROR_INVALID_PTX
    222,  # CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    300,  # CUDA_ERROR_INVALID_SOURCE
}


def check() -> None:
    """Raise `BackendError` with the reason and the remedy unless a kernel compiles and loads."""
    try:
        import cupy
    except Exception as error:  # whatever it is, CuPy does not work as it is installed
        raise BackendError(
            f"CuPy cannot be imported ({_one_line(error.__cause__ or error)}). pip uninstall cupy "
            f"cupy-cuda13x cupy-cuda12x, then install it anew: {INSTALL}"
        ) from error
    if cupy.cuda.runtime.is_hip:
        raise BackendError("the kernels are CUDA C, and this CuPy is built for ROCm")
    _check_driver(cupy.cuda.runtime)
    _check_compiler()


def _check_driver(runtime: Any) -> None:
    """Raise `BackendError` without a GPU, or without a driver that is new enough for CuPy."""
    try:
        devices, reason = runtime.getDeviceCount(), "the driver has none"
    except runtime.CUDARuntimeError as error:
        devices, reason = 0, str(error)
    if devices:
        return
    driver, cuda = runtime.driverGetVersion(), runtime.runtimeGetVersion() // 1000
    if driver == 0:
        raise BackendError(
            "CuPy finds no NVIDIA driver. Install one; in a container, start the container with "
            f"access to the GPU. {INSTALL}"
        )
    if driver // 1000 < cuda:
        raise BackendError(
            f"CuPy is built for CUDA {cuda}, and the driver has CUDA {_version(driver)}. "
            f"{_update(driver, cuda)}"
        )
    raise BackendError(
        f"CuPy finds no GPU ({reason}). `nvidia-smi` lists those of this machine; "
        "CUDA_VISIBLE_DEVICES, where it is set, selects among them"
    )


def _check_compiler() -> None:
    """Raise `BackendError` unless a kernel with all headers compiles, and the driver loads it."""
    import cupy

    from . import kernel_launch

    runtime = cupy.cuda.runtime
    install = (
        "Install CUDA's compiler and headers: pip install "
        f"'ln-array-api[cuda{runtime.runtimeGetVersion() // 1000}]', or set CUDA_PATH to the "
        "folder of a CUDA toolkit"
    )
    try:
        major, minor = cupy.cuda.nvrtc.getVersion()
    except RuntimeError as error:
        reason = f"{type(error).__name__}: {_one_line(error).partition(',')[0]}"
        raise BackendError(
            f"CuPy finds no NVRTC, which compiles its kernels ({reason}). {install}"
        ) from error
    nvrtc = f"NVRTC {major}.{minor}"
    headers = kernel_launch.read_sources("accumulate.cuh", "common.cuh")
    source = headers + "\n__global__ void probe() {}\n"
    try:
        kernel_launch.get_kernel(source, "probe")
    except cupy.cuda.compiler.CompileException as error:
        line = next((each for each in str(error).splitlines() if "error" in each), "no reason")
        if "open source file" in line:
            reason = f"a header of CUDA is missing ({line}). {install}"
        elif "gpu-architecture" in line:
            reason = f"{nvrtc} does not know this GPU ({line}). If it is older: {CHANGE_TO_CUDA_12}"
        else:
            reason = f"{nvrtc} compiles no kernel ({line}). {install}"
        raise BackendError(reason) from error
    except (cupy.cuda.driver.CUDADriverError, runtime.CUDARuntimeError) as error:
        if error.status in UNLOADABLE:
            driver = runtime.driverGetVersion()
            raise BackendError(
                f"the driver, which has CUDA {_version(driver)}, does not load a kernel that "
                f"{nvrtc} compiled ({error}). {_update(driver, major)}"
            ) from error
        # Otherwise nothing is missing; memory may be short. Calls report it where it matters.
    except RuntimeError as error:
        if "CUDA headers" not in str(error) and "CUDA root directory" not in str(error):
            raise
        raise BackendError(
            f"CuPy finds no headers of CUDA, such as cuda_fp16.h. {install}"
        ) from error


def _update(driver: int, cuda: int) -> str:
    """Tell what to do where a driver is too old for what was built for a major version of CUDA."""
    change = f", or change to CUDA 12: {CHANGE_TO_CUDA_12}" if driver >= 12000 and cuda > 12 else ""
    return f"Update the driver{change}"


def _version(number: int) -> str:
    """Write a version of CUDA such as 13020 as "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
