"""What is installed, and kernels compiled before they are needed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import ln_array_api as ln

from .backend import entries

DTYPES = ("float32", "float64", "float16", "bfloat16")


def _both(forward: Any, backward: Any, x: Any, *parameters: Any, **options: Any) -> Any:
    def run() -> None:
        _, *saved = forward(x, *parameters, **options)
        saved = [each for each in saved if each is not None]  # no running statistics
        backward(x, x, *saved, *parameters, **options)

    return run


def calls(dtype: np.dtype[Any]) -> dict[str, Callable[[], Any]]:
    """Return calls that each need kernels of their own, for arrays of a dtype."""
    rows, image, gamma = np.ones((2, 16), dtype), np.ones((2, 16, 64), dtype), np.ones(16, dtype)
    layer = ln.layer_norm_forward, ln.layer_norm_backward
    rms = ln.rms_norm_forward, ln.rms_norm_backward
    group = ln.group_norm_forward, ln.group_norm_backward
    batch = ln.batch_norm_forward, ln.batch_norm_backward
    mixed = ln.batch_instance_norm_forward, ln.batch_instance_norm_backward
    tanh, alpha = (ln.dynamic_tanh_forward, ln.dynamic_tanh_backward), np.ones((), dtype)
    power = ln.power_norm_forward, ln.power_norm_backward
    contrast = ln.local_contrast_norm_forward, ln.local_contrast_norm_backward
    statistics = np.ones(16, np.float64 if dtype == np.float64 else np.float32)
    return {
        "layer norm": _both(*layer, rows, gamma, gamma),
        "layer norm without gamma and beta": _both(*layer, rows),
        "layer norm over an axis that others follow": _both(*layer, image, gamma, gamma, axis=1),
        "RMS norm": _both(*rms, rows, gamma),
        "RMS norm without gamma": _both(*rms, rows),
        "group norm": _both(*group, image, gamma, gamma, num_groups=4),
        "batch norm of rows": _both(*batch, rows, gamma, gamma),
        "batch norm of images": _both(*batch, np.ones((2, 16, 4096), dtype), gamma, gamma),
        "batch norm in use": lambda: ln.batch_norm(image, statistics, statistics, gamma, gamma),
        "batch-instance and switchable norm": _both(*mixed, image, gamma, gamma, gamma),
        "dynamic tanh of rows": _both(*tanh, rows, alpha, gamma, gamma),
        "dynamic tanh of images": _both(*tanh, image, alpha, gamma, gamma, axis=1),
        "power norm": _both(*power, rows),
        "local contrast norm": _both(*contrast, image),
    }


def _dtype(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    from ml_dtypes import bfloat16  # which only those have who need it

    dtype: np.dtype[Any] = np.dtype(bfloat16)
    return dtype


def compile_kernels(dtypes: Sequence[str]) -> None:
    """Compile what is not on the disk yet, and tell how long that takes."""
    for name in dtypes:
        for what, call in calls(_dtype(name)).items():
            print(f"{name}, {what}: ", end="", flush=True)
            begun = time.perf_counter()
            call()
            print(f"{time.perf_counter() - begun:.1f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ln_array_api", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("backends", help="show what is installed and accelerated (the default)")
    compiling = commands.add_parser("compile", help="compile the kernels for the CPU's memory")
    compiling.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], help="default: float32"
    )
    options = parser.parse_args(arguments)
    if options.command != "compile":
        print(ln.backends())
        return 0
    entry = entries()["numpy"]
    if entry.backend() is None:
        print(f"nothing can be compiled: {entry.unavailable_reason()}", file=sys.stderr)
        return 1
    compile_kernels(options.dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
