"""`make gpu` on the device that is none, with rows so few that its times mean nothing."""

from __future__ import annotations

import os
import subprocess
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
    lines = gpu.table(times, {case: 1.5})
    assert lines[2].split(" | ")[2:] == [
        "1.0",
        "1.5",
        "2.0",
        f"{size / 2e-6 / 1e9:.0f}",
        "50%",
        "3.00 |",
    ]
    assert lines[-1] == "Geometric mean of the ratios to torch: 3.00."


def test_predictions_are_those_of_the_page() -> None:
    case = Case("forward", (4096, 768), "float32")
    page = gpu.PREDICTIONS.with_suffix(".md").read_text(encoding="utf-8")
    (row,) = (each for each in page.splitlines() if each.startswith("| forward | float32 4096x768"))
    for device, place in (("NVIDIA H100 80GB HBM3", 6), ("NVIDIA L4", 8)):
        predicted = gpu.predictions(device)[case]
        assert f", {predicted:.1f}; " in row.split("|")[place]
        (line,) = gpu.table(
            [Time(case, "ln_array_api", 1e-5), Time(case, "copy", 1e-5)], {case: predicted}
        )[2:]
        assert f" | {predicted:.1f} | " in line
    assert gpu.predictions("another") == {}


def run_without(hidden: str) -> subprocess.CompletedProcess[str]:
    """The program where some module is not installed, or no GPU is there."""
    code = f"""
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {hidden!r} else find(name, *rest)
sys.argv = [{gpu.__file__!r}]
runpy.run_path({gpu.__file__!r}, run_name="__main__")
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "LD_PRELOAD": ""}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("name", ["cupy", "mpmath"])
def test_what_is_missing_is_told(name: str) -> None:
    done = run_without(name)
    assert done.returncode == gpu.SOMETHING_MISSING
    assert f"pip install {gpu.NEEDED[name]}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gpu_that_is_missing_is_told() -> None:
    done = run_without("nothing")
    assert done.returncode == gpu.SOMETHING_MISSING
    assert "make gpu needs a GPU" in done.stderr
    assert "Traceback" not in done.stderr


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
