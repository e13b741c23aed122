"""CuPy's wheel without a driver and a GPU, as on this machine when nothing stands in for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

USE = """
import ln_array_api as ln
with ln.use_backend("cupy"):
    pass
"""
TELL = """
import ln_array_api as ln
print(ln.backends())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "LD_PRELOAD": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=hidden)


@pytest.mark.parametrize("extra", ["cuda12", "cuda13"])
def test_asking_for_the_backend_tells_what_to_install(extra: str) -> None:
    said = run(USE).stderr.splitlines()[-1]
    assert said.startswith(
        "ln_array_api.errors.BackendError: backend 'cupy' cannot be had: CuPy finds no GPU, or no "
        "driver that is new enough for it (cudaError"
    )
    assert f"pip install 'ln-array-api[{extra}]'" in said


def test_the_table_of_backends_tells_it_too() -> None:
    done = run(TELL)
    assert done.stderr == ""
    (line,) = (each for each in done.stdout.splitlines() if "new enough" in each)
    assert line.split()[:3] == ["cupy", "14.2.0", "cupy"]
    assert "nvidia-smi" in line
