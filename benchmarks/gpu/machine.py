"""Properties of this machine: the packages that are needed, a working GPU, its clocks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from . import ROOT

#: Modules that are needed besides CuPy, which is listed with its extras, and their distributions.
NEEDED = {
    "numpy": "numpy",
    "array_api_compat": "array-api-compat",
    "ml_dtypes": "ml_dtypes",
    "mpmath": "mpmath",
    "pytest": "pytest",
}


class MissingError(Exception):
    """Something that is needed is missing; the message says what to do."""


def cupy_requirements() -> dict[str, str]:
    """Return the requirements of the extras `cuda13` and `cuda12`, for `pip install`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return {name: " ".join(f"'{each}'" for each in extras[name]) for name in ("cuda13", "cuda12")}


def check_packages() -> None:
    """Raise `MissingError` if a module that is needed is not installed."""
    missing = [f"pip install {NEEDED[name]}" for name in NEEDED if find_spec(name) is None]
    if find_spec("cupy") is None:
        extras = cupy_requirements()
        missing += [
            "nvidia-smi  # tells which CUDA the driver has",
            f"pip install {extras['cuda13']}  # for CUDA 13",
            f"pip install {extras['cuda12']}  # for CUDA 12",
        ]
    if missing:
        lines = "\n".join(f"  {each}" for each in missing)
        raise MissingError(f"{sys.executable} lacks packages:\n{lines}")


def check_gpu() -> None:
    """Raise `MissingError` unless a first kernel runs on the current device and is right."""
    import ln_array_api as ln

    try:
        with ln.use_backend("cupy"):
            import cupy

            y = cupy.asnumpy(ln.layer_norm(cupy.asarray([[1.0, 3.0]]), epsilon=0))
    except ln.BackendError as error:  # which tells the remedy
        raise MissingError(str(error)) from error
    except Exception as error:  # whatever it is, no kernel can run
        reason = " ".join(str(error).split())
        raise MissingError(f"the first kernel failed: {type(error).__name__}: {reason}") from error
    if y.tolist() != [[-1.0, 1.0]]:
        raise MissingError(f"the first kernel is wrong: {y.tolist()} instead of [[-1.0, 1.0]]")


def properties() -> dict[str, Any]:
    """Return the properties of the current device, as CUDA names them."""
    import cupy

    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)  # type: ignore[no-any-return]


def device_name() -> str:
    """Return the name of the current device, such as "NVIDIA H100 80GB HBM3"."""
    name = properties()["name"]
    return str(name.decode() if isinstance(name, bytes) else name)


def query(*fields: str) -> list[str]:
    """Ask `nvidia-smi` for properties of the current device; empty if it cannot answer."""
    import cupy

    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [*command, f"--id={cupy.cuda.Device().pci_bus_id}"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, cupy.cuda.runtime.CUDARuntimeError):
        return []
    return [each.strip() for each in done.stdout.splitlines()[0].split(",")]


def clocks() -> str:
    """Return the current clocks of multiprocessors and memory, power and temperature."""
    found = query("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
    return "{}, memory {}, {}, {} °C".format(*found) if len(found) == 4 else "not known"


def driver() -> str:
    """Return the versions of the driver and of its CUDA."""
    import cupy

    cuda = cupy.cuda.runtime.driverGetVersion()
    found = query("driver_version")
    name = f"driver {found[0]}, " if found else ""
    return f"{name}CUDA {cuda // 1000}.{cuda % 1000 // 10}"


def versions() -> str:
    """Return the versions of Python and of the packages in use."""
    import cupy

    names = ("numpy", "torch", "triton", "quack-kernels", "liger-kernel", "apex")
    names += ("transformer-engine", "nvidia-cudnn-frontend")
    found = [f"Python {sys.version.split()[0]}", f"cupy {cupy.__version__}"]
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
