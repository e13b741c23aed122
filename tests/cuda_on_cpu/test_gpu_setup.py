"""The messages of `make gpu` where something is missing or broken."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import gpu
import pytest
from gpu import contenders, machine
from gpu.__main__ import SOMETHING_MISSING, main
from gpu_helpers import fail


def run_without(hidden: str) -> subprocess.CompletedProcess[str]:
    """Run the program without some module, and without a GPU."""
    code = f"""
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {hidden!r} else find(name, *rest)
sys.argv = ["gpu"]
runpy.run_module("gpu", run_name="__main__")
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "LD_PRELOAD": ""}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=gpu.ROOT / "benchmarks",
    )


@pytest.mark.parametrize("name", ["cupy", "mpmath"])
def test_a_package_that_is_missing_is_named(name: str) -> None:
    done = run_without(name)
    assert done.returncode == SOMETHING_MISSING
    assert "Traceback" not in done.stderr
    if name == "cupy":
        for cuda in ("12", "13"):
            assert f"pip install 'cupy-cuda{cuda}x[ctk]>=14" in done.stderr
        assert "nvidia-smi" in done.stderr
    else:
        assert f"pip install {machine.NEEDED[name]}" in done.stderr


def test_a_missing_gpu_is_reported() -> None:
    done = run_without("nothing")
    assert done.returncode == SOMETHING_MISSING
    assert "make gpu cannot run: backend 'cupy' cannot be had: CuPy finds no " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("broken", "said"),
    [(fail, "the first kernel failed: "), (lambda *_: None, "the first kernel is wrong: ")],
)
def test_a_first_kernel_that_fails_or_is_wrong_is_reported(
    broken: Any, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ln_array_api_backends.cupy import rows_dispatch

    monkeypatch.setattr(rows_dispatch, "get_kernel", lambda *_: _Broken(broken))
    rows_dispatch.kernel.cache_clear()
    contenders.ln.backend.plans.clear()
    try:
        assert main([]) == SOMETHING_MISSING
    finally:
        rows_dispatch.kernel.cache_clear()
        contenders.ln.backend.plans.clear()
    assert f"make gpu cannot run: {said}" in capsys.readouterr().err


class _Broken:
    def __init__(self, launch: Any) -> None:
        self.kernel = lambda *arguments: launch(None, None)
