"""`make gpu` on the device that is none, with rows so few that its times mean nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu
from gpu import Case, Time

FEW = [
    "--shapes",
    "4x12",
    "3x40",
    "--rounds=2",
    "--",
    "-p",
    "cupy_on_cpu",
    "-p",
    "no:cacheprovider",
]


def run(folder: Path, *tests: str) -> tuple[int, str]:
    output = folder / "report.md"
    code = gpu.main(["--output", str(output), *FEW, "--rootdir", str(folder), *tests])
    return code, output.read_text(encoding="utf-8")


def test_a_report_is_written(tmp_path: Path) -> None:
    code, text = run(tmp_path, "-k", "test_out_may_be_x")
    assert code == 0
    assert "the CPU, 132 multiprocessors" in text
    assert "backend passed in" in text
    assert "passed" in text.partition("backend passed in")[2]
    for case in ("forward 4x12 float32", "backward 3x40 float16"):
        assert f"| {case} | 0.00 |" in text


def test_a_failure_of_the_suite_is_one(tmp_path: Path) -> None:
    code, text = run(tmp_path, "-k", "no such test")
    assert code == 1
    assert "FAILED" in text


def test_what_must_be_read_and_written() -> None:
    rows = 8 * 64 * 2
    forward = gpu.minimum_bytes(Case("forward", (8, 64), "float16"))
    assert forward == 2 * rows + 2 * 64 * 2 + 2 * 8 * 4
    backward = gpu.minimum_bytes(Case("backward", (8, 64), "float16"))
    assert backward == 3 * rows + 3 * 64 * 2 + 2 * 8 * 4


def test_the_table() -> None:
    case = Case("forward", (1000, 1000), "float32")
    size = gpu.minimum_bytes(case)
    times = [Time(case, "ln_array_api", 2e-6), Time(case, "copy", 1e-6), Time(case, "torch", 6e-6)]
    lines = gpu.table(times)
    assert lines[2].split(" | ")[2:] == ["1.0", "2.0", f"{size / 2e-6 / 1e9:.0f}", "50%", "3.00 |"]
    assert lines[-1] == "Geometric mean of the ratios to torch: 3.00."


@pytest.mark.parametrize("which", gpu.PASSES)
def test_sets_of_arrays_differ_and_are_larger_than_the_cache(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    maker = gpu.of_this_library

    def counted(case: Case, number: int) -> Any:
        made.append(number)
        return maker(case, number)

    monkeypatch.setattr(gpu, "contenders", lambda: {"ln_array_api": counted})
    monkeypatch.setattr(gpu, "properties", lambda: {"l2CacheSize": 4000})
    case = Case(which, (8, 64), "float32")
    gpu.measure([case], 1)
    assert made == list(range(len(made)))
    assert len(made) * gpu.minimum_bytes(case) > 4 * 4000
