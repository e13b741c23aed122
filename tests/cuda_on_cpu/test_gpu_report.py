"""`make gpu` on the simulated device: the conformance suite and the report."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cupy
import pytest
from gpu import cases, conformance, machine, report
from gpu.__main__ import main
from gpu.cases import Case
from gpu.contenders import COPY, OURS
from gpu.timing import Measured

SUITE = ["--", "-p", "cupy_on_cpu", "-p", "no:cacheprovider"]


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance.os, "cpu_count", lambda: 2)


def run(folder: Path, *options: str) -> tuple[int, str]:
    output = folder / "report.md"
    code = main(["--output", str(output), "--shapes", "4x12", "3x40", *options])
    return code, output.read_text(encoding="utf-8")


def test_a_report_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, text = run(tmp_path, *SUITE, "-k", "test_out_may_be_x")
    assert code == 0
    assert "the CPU, 132 multiprocessors" in text
    assert re.search(r"backend passed in \d+ s: \d+ passed\.", text)
    for operation in cases.OPERATIONS:
        for case in (f"{operation} forward 4x12 float32", f"{operation} backward 3x40 bfloat16"):
            assert f"| {case} | 0.00 |" in text
    assert "torch is not compared: torch 2.13.0+cpu finds no GPU." in text
    said = capfd.readouterr().out
    assert "conformance of backend cupy: all tests, 2 processes" in said
    assert "rms_norm backward 3x40 float32:\n  ln_array_api: " in said


def test_the_suite_can_be_run_without_the_comparison(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--conformance-only", *SUITE, "-k", "test_out_may_be_x"]) == 0
    assert "ln_array_api: " not in capfd.readouterr().out


def test_no_test_is_a_failure(tmp_path: Path) -> None:
    code, text = run(tmp_path, *SUITE, "-k", "no_such_test")
    assert code == 1
    assert "backend FAILED" in text


def test_tests_that_fail_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "every_test_fails.py"
    plugin.write_text("def pytest_runtest_call(item):\n    raise ValueError('planted')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    code, text = run(tmp_path, *SUITE, "-p", "every_test_fails", "-k", "test_out_may_be_x")
    assert code == 1
    assert re.search(
        r"backend FAILED in \d+ s: \d+ failed\.\n- test_\w+.py::test_out_may_be_x\[", text
    )
    assert "ValueError: planted" in capfd.readouterr().out


def test_the_suite_is_stopped_when_its_time_is_up() -> None:
    verdict = conformance.run(0.5, arguments=SUITE[1:])
    assert not verdict.passed
    assert "stopped after" in verdict.summary
    assert verdict.seconds < 30


def collected(*options: str) -> set[str]:
    process = conformance.Process("0/1", "cupy", [*SUITE[1:], "--collect-only", "-qq", *options])
    process.process.wait()
    process.thread.join()
    return {line.strip() for line in process.lines if "::" in line}


def test_processes_share_the_tests() -> None:
    some = ("-k", "test_out_may_be_x or test_forward_lengths")
    everything = collected(*some)
    parts = [collected("--shard", f"{k}/3", *some) for k in range(3)]
    assert len(everything) > 6
    assert sum(map(len, parts)) == len(everything)
    assert set.union(*parts) == everything


def test_the_number_of_processes_depends_on_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance.os, "cpu_count", lambda: 64)
    free = 3 * conformance.BYTES_PER_PROCESS
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (free, 80 << 30))
    assert conformance.number_of_processes() == 3
    free = 0
    assert conformance.number_of_processes() == 1
    free = 80 << 30
    assert conformance.number_of_processes() == conformance.PROCESSES_AT_MOST


def test_minimum_bytes() -> None:
    rows, parameter, statistic = 8 * 64 * 2, 64 * 2, 8 * 4
    case = Case("layer_norm", "forward", (8, 64), "bfloat16")
    assert cases.minimum_bytes(case) == 2 * rows + 2 * parameter + 2 * statistic
    case = case._replace(which="backward")
    assert cases.minimum_bytes(case) == 3 * rows + 3 * parameter + 2 * statistic
    case = case._replace(operation="rms_norm")
    assert cases.minimum_bytes(case) == 3 * rows + 2 * parameter + statistic
    case = case._replace(which="forward")
    assert cases.minimum_bytes(case) == 2 * rows + parameter + statistic


def test_the_table() -> None:
    case = Case("layer_norm", "forward", (1000, 1000), "float32")
    size = cases.minimum_bytes(case)
    calls = {OURS: 4e-6, COPY: 3e-6, "torch": 6e-6, "Apex": 8e-6}
    graphs = {OURS: 2e-6, COPY: 1e-6, "torch": 5e-6}
    lines = report.table([Measured(case, calls, graphs, {})], {case: 1.5})
    assert lines[2].split(" | ")[2:] == [
        "1.0",
        "1.5",
        "2.0",
        "4.0",
        f"{size / 2e-6 / 1e9:.0f}",
        "50%",
        "2.50",
        "2.00c |",
    ]
    assert "Geometric mean of torch's 1 ratios: 2.50." in lines


def test_predictions_match_the_report() -> None:
    case = Case("layer_norm", "forward", (4096, 768), "float32")
    page = report.PREDICTIONS.with_suffix(".md").read_text(encoding="utf-8")
    (row,) = (each for each in page.splitlines() if each.startswith("| forward | float32 4096x768"))
    for device, place in (("NVIDIA H100 80GB HBM3", 6), ("NVIDIA L4", 10)):
        predicted = report.predictions(device)[case]
        assert f", {predicted:.1f}; " in row.split("|")[place]
        times = {OURS: 1e-5, COPY: 1e-5}
        _, _, line, *_ = report.table([Measured(case, times, {}, {})], {case: predicted})
        assert f" | {predicted:.1f} | " in line
    assert report.predictions("another") == {}


def test_every_prediction_is_measured() -> None:
    known, measured = report.predictions("NVIDIA L4"), cases.all_cases()
    assert set(known) <= set(measured)
    assert len(set(measured)) == len(measured)


def test_the_driver_and_clocks_are_those_of_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "  *driver_version*--id=0000:*) echo 580.159.03 ;;\n"
        "  *clocks.sm,clocks.mem,*--id=0000:*) echo 1980 MHz, 3201 MHz, 300.5 W, 41 ;;\n"
        "  *) exit 1 ;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.driver() == "driver 580.159.03, CUDA 13.2"
    assert machine.clocks() == "1980 MHz, memory 3201 MHz, 300.5 W, 41 °C"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.driver() == "CUDA 13.2"
    assert machine.clocks() == "not known"
