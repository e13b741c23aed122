"""Comparisons on cases so small that their times mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gpu import comparison, contenders
from gpu.cases import Case
from gpu.conformance import Verdict
from gpu.contenders import Contender

PASSED = Verdict(True, "3 passed", 1.0, ())
FORWARD = Case("layer_norm", "forward", (4, 12), "float32")
BACKWARD = FORWARD._replace(which="backward")


def compare(folder: Path, *which: Case, end: float = float("inf")) -> tuple[bool, str]:
    output = folder / "report.md"
    ran = comparison.compare(which, end, output, PASSED, sample=False)
    return ran, output.read_text(encoding="utf-8")


def contend(monkeypatch: pytest.MonkeyPatch, **others: Any) -> None:
    """Add contenders, or replace them by name: functions of a case and its inputs."""
    found, absent = contenders.contenders()
    for name, call in others.items():

        def prepare(case: Case, call: Any = call) -> Any:
            return lambda inputs: lambda: call(case, inputs)

        found[name] = Contender(prepare, uses_torch=False)
    monkeypatch.setattr(comparison, "contenders", lambda: (found, absent))


def fail(case: Case, inputs: Any) -> Any:
    raise RuntimeError("planted\nand more lines")
