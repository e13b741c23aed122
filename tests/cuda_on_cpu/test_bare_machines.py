"""Machines on which something is missing that CUDA kernels need: one line with the remedy.

CuPy, the runtime in it, cuda-pathfinder and NVRTC are those that users have. Each process has a
virtual environment of links to the packages of this one, except what is missing. Where the system
has the same library, an invalid file hides it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import cupy
import cupy_on_cpu
import pytest
from ln_array_api_backends.cupy import kernel_launch, requirements

import ln_array_api as ln

HERE = Path(__file__).resolve().parent
PACKAGES = Path(sysconfig.get_path("purelib"))
LIBRARIES = ("cuda.so.1", "cudart.so.12", "cudart.so.13", "nvrtc.so.12", "nvrtc.so.13")
VARIABLES = ("CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH", "LD_PRELOAD")

FAKE_DEVICE = "import cupy_on_cpu\n"
#: The fake device with NVRTC and its headers, in place of a compiler for the CPU.
NVRTC = (
    FAKE_DEVICE
    + """
import importlib
from cupy.cuda import compiler
importlib.reload(compiler)
"""
)
OLD_GPU = NVRTC + "compiler._get_arch = lambda: '50'\n"
REPORT = """
import ln_array_api as ln
try:
    with ln.use_backend("cupy"):
        print("available")
except ln.BackendError as error:
    print(error)
print(*(info.note for info in ln.backends() if info.backend == "cupy"))
"""

Machine = Callable[..., list[str]]


def link(source: Path, target: Path, without: Sequence[str]) -> None:
    """Fill a new folder with links to the contents of another, except some paths."""
    target.mkdir(parents=True)
    for each in source.iterdir():
        inside = f"{each.name}/"
        below = [path.removeprefix(inside) for path in without if path.startswith(inside)]
        if below:
            link(each, target / each.name, below)
        elif each.name not in without:
            (target / each.name).symlink_to(each)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Make a machine, run code on it, and return the lines that it prints."""

    def run(code: str, without: Sequence[str] = (), driver: str = "") -> list[str]:
        base = Path(sys.executable).resolve()
        link(PACKAGES, tmp_path / PACKAGES.relative_to(sys.prefix), without)
        (tmp_path / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
        (tmp_path / "bin").mkdir()
        python = tmp_path / "bin" / "python"
        python.symlink_to(base)
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        for name in LIBRARIES:
            (hidden / f"lib{name}").write_text("not a library")
        if driver:
            library = str(hidden / "libcuda.so.1")
            command = [cupy_on_cpu.CXX, "-shared", "-fPIC", "-x", "c++", "-", "-o", library]
            subprocess.run(command, input=driver, text=True, check=True)
        environment = {name: os.environ[name] for name in os.environ if name not in VARIABLES}
        environment |= {"LD_LIBRARY_PATH": str(hidden), "PYTHONPATH": str(HERE)}
        done = subprocess.run(
            [python, "-W", "error", "-c", code], capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


def driver(version: int, error: int = 0) -> str:
    """Return C++ code of a driver with a version of CUDA and a result of its initialization."""
    return f"""
        extern "C" int cuDriverGetVersion(int* version) {{ *version = {version}; return 0; }}
        extern "C" int cuInit(unsigned) {{ return {error}; }}
    """


TO_CUDA_12 = (
    "change to CUDA 12: pip uninstall cupy-cuda13x nvidia-cuda-nvrtc nvidia-cuda-runtime, then "
    "pip install 'ln-array-api[cuda12]'"
)
EITHER = (
    "`nvidia-smi` tells which CUDA the driver has; for CUDA 13: pip install "
    "'ln-array-api[cuda13]', for CUDA 12: pip install 'ln-array-api[cuda12]'"
)
CUDA_13 = (
    "Install CUDA's compiler and headers: pip install 'ln-array-api[cuda13]', or set CUDA_PATH to "
    "the folder of a CUDA toolkit"
)
TOO_OLD = "CuPy is built for CUDA 13, and the driver has CUDA"


@pytest.mark.parametrize(
    ("code", "options", "begin", "end"),
    [
        ("", {}, "CuPy finds no NVIDIA driver. ", EITHER),
        ("", {"driver": driver(12040)}, f"{TOO_OLD} 12.4. Update the driver, or ", TO_CUDA_12),
        ("", {"driver": driver(11080)}, f"{TOO_OLD} 11.8. ", " Update the driver"),
        (
            "",
            {"driver": driver(13000, error=100)},
            "CuPy finds no GPU (cudaErrorNoDevice: ",
            ". `nvidia-smi` lists those of this machine; CUDA_VISIBLE_DEVICES, where it is set, "
            "selects among them",
        ),
        (
            NVRTC,
            {"without": ["nvidia/cu13/lib/libnvrtc.so.13"]},
            "CuPy finds no NVRTC, which compiles its kernels (DynamicLibNotFoundError: Failure "
            'finding "libnvrtc.so.13',
            f"). {CUDA_13}",
        ),
        (
            NVRTC,
            {"without": ["nvidia/cu13/include"]},
            "CuPy finds no headers of CUDA, such as cuda_fp16.h. ",
            f". {CUDA_13}",
        ),
        (
            NVRTC,
            {"without": ["nvidia/cu13/include/cuda_fp16.h"]},
            "a header of CUDA is missing (",
            f'open source file "cuda_fp16.h"). {CUDA_13}',
        ),
        (
            NVRTC,
            {"without": ["nvidia/cu13/lib/libnvrtc-builtins.so.13.5"]},
            "NVRTC 13.5 compiles no kernel (nvrtc: error: failed to open libnvrtc-builtins.so.13.5",
            f"). {CUDA_13}",
        ),
        (
            OLD_GPU,
            {},
            "NVRTC 13.5 does not know this GPU (",
            f"). If it is older: {TO_CUDA_12.partition(': ')[2]}",
        ),
        (
            NVRTC,  # the fake driver loads nothing that NVRTC compiles
            {},
            "the driver, which has CUDA 13.2, does not load a kernel that NVRTC 13.5 compiled (",
            f"). Update the driver, or {TO_CUDA_12}",
        ),
        (
            "",
            {"without": ["cupy_backends"]},
            "CuPy cannot be imported (No module named 'cupy_backends'). pip uninstall cupy "
            "cupy-cuda13x cupy-cuda12x, then install it anew: ",
            EITHER,
        ),
    ],
    ids=[
        "no driver",
        "a driver for CUDA 12",
        "a driver for CUDA 11",
        "no GPU",
        "no NVRTC",
        "no headers",
        "a header missing",
        "a part of NVRTC missing",
        "a GPU that NVRTC does not know",
        "a driver that does not load the kernel",
        "CuPy broken",
    ],
)
def test_the_message_names_the_remedy(
    machine: Machine, code: str, options: dict[str, str], begin: str, end: str
) -> None:
    asked_for, listed = machine(code + REPORT, **options)
    assert asked_for == f"backend 'cupy' cannot be had: {listed}"
    assert listed.startswith(begin)
    assert listed.endswith(end)


def test_explain_reports_what_is_missing(machine: Machine) -> None:
    code = """
import cupy
import ln_array_api as ln
print(ln.explain(ln.layer_norm, cupy.empty((2, 3), "float32")).reason)
"""
    (reason,) = machine(NVRTC + code, without=["nvidia/cu13/include"])
    assert reason == f"cupy: CuPy finds no headers of CUDA, such as cuda_fp16.h. {CUDA_13}"


def test_ml_dtypes_is_not_needed_for_other_dtypes(machine: Machine) -> None:
    code = """
import cupy
print(ln.layer_norm(cupy.asarray([[1.0, 3.0]]), epsilon=0))
"""
    lines = machine(FAKE_DEVICE + REPORT + code, without=["ml_dtypes"])
    assert lines == ["available", "", "[[-1.  1.]]"]


def test_the_check_launches_allocates_and_waits_for_nothing(machine: Machine) -> None:
    """So it may run while a graph is captured."""
    code = """
import ln_array_api as ln
before = cupy_on_cpu.counts()
with ln.use_backend("cupy"):
    print(before == cupy_on_cpu.counts())
"""
    assert machine(FAKE_DEVICE + code) == ["True"]


def test_cupy_for_rocm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy.cuda.runtime, "is_hip", True)
    with pytest.raises(ln.BackendError, match="this CuPy is built for ROCm"):
        requirements.check()


@pytest.mark.parametrize("kind", [cupy.cuda.driver.CUDADriverError, RuntimeError])
def test_other_errors_are_not_reported_as_missing(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA errors such as too little memory are left to the calls; unknown ones are raised."""

    def fail(source: str, name: str) -> None:
        raise kind(2)

    monkeypatch.setattr(kernel_launch, "get_kernel", fail)
    if kind is RuntimeError:
        with pytest.raises(RuntimeError, match=r"^2$"):
            requirements.check()
    else:
        requirements.check()
