"""Save the results of all cases on the simulator: ``simulator_results.py results.npz``.

This runs in a process of its own: NVRTC, which the interpreter needs, does not work with the fake
driver.
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
                # Not as bfloat16, which .npz files cannot hold.
                found[f"{case}: {name}"] = array.get().astype(np.float64)
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **results())
