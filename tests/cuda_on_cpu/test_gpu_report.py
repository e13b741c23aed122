"""`make gpu` on the simulated device, with rows so few that its times mean nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cupy
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu
from gpu import cases, comparison, conformance, contenders, machine, report, timing
from gpu.__main__ import SOMETHING_MISSING, main
from gpu.cases import Case
from gpu.conformance import Verdict
from gpu.contenders import COPY, OURS, Contender
from gpu.timing import Measured

SUITE = ["--", "-p", "cupy_on_cpu", "-p", "no:cacheprovider"]
PASSED = Verdict(True, "3 passed", 1.0, ())
FORWARD = Case("layer_norm", "forward", (4, 12), "float32")
BACKWARD = FORWARD._replace(which="backward")


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


def test_a_process_has_room_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance.os, "cpu_count", lambda: 64)
    free = 3 * conformance.BYTES_PER_PROCESS
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (free, 80 << 30))
    assert conformance.number_of_processes() == 3
    free = 0
    assert conformance.number_of_processes() == 1
    free = 80 << 30
    assert conformance.number_of_processes() == conformance.PROCESSES_AT_MOST


# The comparison


def compare(folder: Path, *which: Case, end: float = float("inf")) -> tuple[bool, str]:
    output = folder / "report.md"
    ran = comparison.compare(which, end, output, PASSED, sample=False)
    return ran, output.read_text(encoding="utf-8")


def contend(monkeypatch: pytest.MonkeyPatch, **others: Any) -> None:
    """Let functions of a case and inputs take part, with or in place of those that do."""
    found, absent = contenders.contenders()
    for name, call in others.items():

        def prepare(case: Case, call: Any = call) -> Any:
            return lambda inputs: lambda: call(case, inputs)

        found[name] = Contender(prepare, uses_torch=False)
    monkeypatch.setattr(comparison, "contenders", lambda: (found, absent))


def fail(case: Case, inputs: Any) -> Any:
    raise RuntimeError("planted\nand more lines")


def test_a_contender_that_fails_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contend(monkeypatch, other=fail)
    ran, text = compare(tmp_path, FORWARD, BACKWARD)
    assert ran
    for case in (FORWARD, BACKWARD):
        assert f"- {case}: other failed, RuntimeError: planted." in text
        assert f"| {case} |" in text


def test_a_contender_that_cannot_be_captured_is_compared_by_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(case: Case, inputs: Any) -> Any:
        y = contenders.ln.layer_norm(inputs.x, inputs.gamma, inputs.beta, epsilon=cases.EPSILON)
        cupy.cuda.Device().synchronize()
        return y

    contend(monkeypatch, other=waits)
    ran, text = compare(tmp_path, FORWARD)
    assert ran
    assert re.search(rf"\| {FORWARD} \|.* \d+\.\d\dc \|", text)
    assert f"- {FORWARD}: other failed, in a graph: " in text


@pytest.mark.parametrize("case", [FORWARD, BACKWARD, BACKWARD._replace(dtype="bfloat16")])
def test_a_contender_that_is_wrong_is_not_timed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(case: Case, inputs: Any) -> Any:
        call = contenders._ours(case)(inputs)
        results = list(call())
        results[-1 if case.which == "forward" else 1] *= 1.5
        results[0 if case.which == "forward" else 1] *= 1.5
        return results

    contend(monkeypatch, other=wrong)
    ran, text = compare(tmp_path, case)
    assert ran
    name = "y" if case.which == "forward" else "dgamma"
    assert f"- {case}: other failed, ValueError: its {name} differs by " in text


def test_a_failure_of_this_library_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contend(monkeypatch, **{OURS: fail})
    ran, text = compare(tmp_path, FORWARD)
    assert not ran
    assert f"- {FORWARD}: {OURS} failed, RuntimeError: planted." in text


def test_the_page_is_there_after_each_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, number = timing.measure, 0

    def interrupted(*arguments: Any) -> Measured:
        nonlocal number
        number += 1
        text = (tmp_path / "report.md").read_text(encoding="utf-8")
        assert "backend passed" in text
        assert text.count("| layer_norm forward 4x12") == number - 1
        if number == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(timing, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, FORWARD, FORWARD._replace(dtype="bfloat16"), BACKWARD)
    assert number == 3


def test_a_case_that_breaks_down_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = timing.measure

    def broken(case: Case, *rest: Any) -> Measured:
        if case == FORWARD:
            raise RuntimeError("an illegal memory access was encountered")
        return measure(case, *rest)

    monkeypatch.setattr(timing, "measure", broken)
    ran, text = compare(tmp_path, FORWARD, BACKWARD)
    assert not ran
    assert f"- {FORWARD} is not measured: RuntimeError: an illegal memory access" in text
    assert f"| {BACKWARD} |" in text


def test_cases_are_left_out_when_the_time_is_up(tmp_path: Path) -> None:
    ran, text = compare(tmp_path, FORWARD, BACKWARD, end=0.0)
    assert not ran
    for case in (FORWARD, BACKWARD):
        assert f"- {case} is not measured: the time was up." in text


def test_cases_that_do_not_fit_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (20 << 30, 24 << 30))
    large = FORWARD._replace(shape=(32768, 32768))
    assert timing.does_not_fit(large) == "needs 28 GiB, 20 are free"
    assert timing.does_not_fit(FORWARD) == ""
    _, text = compare(tmp_path, large)
    assert f"- {large} is not measured: needs 28 GiB" in text


@pytest.mark.parametrize("which", cases.PASSES)
def test_sets_of_inputs_differ_and_are_larger_than_the_cache(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    kind = timing.Inputs

    def counted(case: Case, number: int) -> Any:
        made.append(number)
        return kind(case, number)

    monkeypatch.setattr(timing, "Inputs", counted)
    monkeypatch.setattr(timing, "properties", lambda: {"l2CacheSize": 4000})
    case = Case("layer_norm", which, (8, 64), "float32")
    found, _ = contenders.contenders()
    timing.measure(case, {OURS: found[OURS]})
    assert made == list(range(len(made)))
    assert len(made) * cases.minimum_bytes(case) > 4 * 4000
    first, second = (kind(case, number) for number in (0, 1))
    assert (first.x != second.x).any()


# torch, whose tensors on the CPU share the memory of the simulated device


# torch warns of its own modules when they are imported.
of_torch = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def with_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let torch take part, as if its CPU were a GPU that has no graphs."""
    torch = pytest.importorskip("torch")
    import ctypes

    def as_tensor(x: Any) -> Any:
        memory = (ctypes.c_char * x.nbytes).from_address(x.data.ptr)
        dtype = getattr(torch, x.dtype.name)
        return torch.frombuffer(memory, dtype=dtype).reshape(x.shape)

    as_array = contenders.as_array

    def as_array_of_tensor(result: Any) -> Any:
        if isinstance(result, torch.Tensor):
            result = cupy.asarray(result.detach()[: contenders.FIRST].float().numpy())
        return as_array(result)

    class Current:
        def __init__(self, *arguments: Any) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *arguments: Any) -> None:
            pass

    monkeypatch.setattr(contenders, "as_tensor", as_tensor)
    monkeypatch.setattr(timing, "as_array", as_array_of_tensor)
    monkeypatch.setattr(torch.cuda, "stream", Current)
    monkeypatch.setattr(torch.cuda, "ExternalStream", Current)
    monkeypatch.setattr(contenders, "_why_no_torch", lambda: "")
    yield torch
    torch._dynamo.reset()


@of_torch
def test_torch_is_compared(with_torch: Any, tmp_path: Path) -> None:
    which = [
        Case(operation, each, (4, 12), "float32")
        for operation in cases.OPERATIONS
        for each in cases.PASSES
    ]
    which.append(BACKWARD._replace(dtype="bfloat16"))
    ran, text = compare(tmp_path, *which)
    assert ran
    for case in which:
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {case} |"))
        assert re.search(r" \d+\.\d\dc \| \d+\.\d\dc \|$", row), text
        assert f"- {case}: torch failed, in a graph: " in text
    assert "QuACK is not compared: quack is not installed." in text
    for name in ("torch", "torch.compile"):
        assert f"Geometric mean of {name}'s 5 ratios: " in text


@of_torch
def test_torch_without_a_compiler_is_compared_uncompiled(
    with_torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        ran, text = compare(tmp_path, BACKWARD._replace(shape=(5, 13)))
    assert ran
    assert re.search(r": torch.compile failed, \w+: .*ompiler", text), text
    assert "Geometric mean of torch's 1 ratios" in text


def test_no_torch_and_a_broken_one_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    monkeypatch.setattr(contenders, "find_spec", lambda name: name)
    found, absent = contenders.contenders()
    assert list(found) == [OURS, COPY]
    assert absent["torch"].startswith("torch cannot be imported: ModuleNotFoundError: ")
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    _, absent = contenders.contenders()
    assert set(absent.values()) == {"torch is not installed"}


@of_torch
@pytest.mark.parametrize("name", ["torch", "torch.compile"])
def test_gradients_can_be_taken_again(name: str, with_torch: Any) -> None:
    contender, _ = contenders.WITH_TORCH[name]
    inputs = cases.Inputs(BACKWARD, 0)
    call = contender.prepare(BACKWARD)(inputs)
    first, second = call(), call()
    # On the CPU no buffer is donated, so that this would not fail otherwise.
    assert name == "torch" or not with_torch._functorch.config.donated_buffer
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


# The page


def test_what_must_be_read_and_written() -> None:
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


def test_predictions_are_those_of_the_page() -> None:
    case = Case("layer_norm", "forward", (4096, 768), "float32")
    page = report.PREDICTIONS.with_suffix(".md").read_text(encoding="utf-8")
    (row,) = (each for each in page.splitlines() if each.startswith("| forward | float32 4096x768"))
    for device, place in (("NVIDIA H100 80GB HBM3", 6), ("NVIDIA L4", 8)):
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


# What is missing


def run_without(hidden: str) -> subprocess.CompletedProcess[str]:
    """The program where some module is not installed, and no GPU is there."""
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


def test_a_gpu_that_is_missing_is_told() -> None:
    done = run_without("nothing")
    assert done.returncode == SOMETHING_MISSING
    assert "make gpu cannot run: backend 'cupy' cannot be had: CuPy finds no " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("broken", "said"),
    [(fail, "the first kernel failed: "), (lambda *_: None, "the first kernel is wrong: ")],
)
def test_a_first_kernel_that_fails_or_is_wrong_is_told(
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
