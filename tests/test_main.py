"""The command `python -m ln_array_api`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api import __main__ as command
from ln_array_api import backend
from ln_array_api._dispatch.specs import FAMILY


def test_backends_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["backends"]):
        assert command.main(arguments) == 0
        assert capsys.readouterr().out == f"{ln.backends()}\n"


def test_from_a_shell() -> None:
    line = [sys.executable, "-m", "ln_array_api", "--help"]
    result = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "compile" in result.stdout


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_all_calls_run(dtype: str) -> None:
    with ln.use_backend("generic"):
        for call in command.calls(np.dtype(dtype)).values():
            call()


def test_calls_reach_the_backend_with_all_primitives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()

    def choose(primitive: str, spec: backend.Spec, layout: backend.Layout | None = None) -> object:
        asked.add(primitive)
        return real(primitive, spec, layout)  # type: ignore[arg-type]

    def choose_family(primitive: Any, spec: backend.FamilySpec) -> object:
        asked.add(primitive)
        return "asked for"

    real = backend.choose
    for module in ("ln_array_api._dispatch.rows", "ln_array_api._dispatch.channels"):
        monkeypatch.setattr(f"{module}.choose", choose)
    monkeypatch.setattr("ln_array_api._dispatch.family.choose_family", choose_family)
    backend.plans.clear()
    with ln.use_backend("generic"):
        for call in command.calls(np.dtype(np.float32)).values():
            call()
    backend.plans.clear()
    assert asked == {*backend.GENERIC, *FAMILY}


def test_compiled_kernels_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "calls", lambda dtype: {"a kernel": lambda: None})
    command.compile_kernels(["float32", "float16"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["float32, a kernel: 0.0 s", "float16, a kernel: 0.0 s"]


def test_without_numba(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = backend.Entry("numpy", "numpy", lambda: None, requires=("no_such",), extra="cpu")  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(backend.entries(), "numpy", entry)
    assert command.main(["compile"]) == 1
    needed = "nothing can be compiled: needs no_such: pip install 'ln-array-api[cpu]'\n"
    assert capsys.readouterr().err == needed
