"""The comparison that `make gpu` runs, on the simulated device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cupy
import pytest
from gpu import cases, contenders, timing
from gpu.cases import Case
from gpu.contenders import OURS
from gpu.timing import Measured
from gpu_helpers import BACKWARD, FORWARD, compare, contend, fail


def test_a_failing_contender_does_not_stop_the_comparison(
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


def test_a_failure_of_this_library_fails_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contend(monkeypatch, **{OURS: fail})
    ran, text = compare(tmp_path, FORWARD)
    assert not ran
    assert f"- {FORWARD}: {OURS} failed, RuntimeError: planted." in text


def test_the_report_is_written_after_each_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
