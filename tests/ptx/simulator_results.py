"""Write what the fibers of `tests/cuda_on_cpu` make of all cases: ``fibers.py results.npz``.

In a process of its own: NVRTC, which the interpreter needs, does not work where the driver is fake.
"""

from __future__ import annotations

import sys

import cupy_on_cpu  # noqa: F401 - before CuPy

import cupy  # isort: skip
import numpy as np
from cases import cases
from ln_array_api_backends.cupy import backend, launch_config


def results() -> dict[str, np.ndarray]:
    found = {}
    for case in cases(launch_config):
        for name, array in case.run(backend, lambda values, name: cupy.asarray(values)).items():
            if array is not None:
                # Without bfloat16, which a file cannot have.
                found[f"{case}: {name}"] = array.get().astype(np.float64)
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **results())
