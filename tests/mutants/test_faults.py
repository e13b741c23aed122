"""The planted faults match the code, and the run reports their outcomes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import run
from fault import ROOT, Fault, suite, unit
from faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_changes_one_place_of_its_file(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    planted = fault.planted(text)
    assert planted != text
    compile(planted, fault.file, "exec")
    for argument in fault.by:
        assert not argument.startswith("tests/") or (ROOT / argument).exists()


def test_names_are_different() -> None:
    assert [
        name for name, count in Counter(each.name for each in FAULTS).items() if count > 1
    ] == []


def test_changed_code_is_reported() -> None:
    fault = Fault("a fault", "a file", "old", "new", unit("test_rows.py"))
    for text in ("", "old, old"):
        with pytest.raises(ValueError, match=r"^a fault: a file has \d times, not once"):
            fault.planted(text)


def test_selections() -> None:
    assert unit("test_rows.py", "out", "need") == ("tests/test_rows.py", "-k", "out or need")
    assert suite("test_out", backend="numpy")[-4:] == ("--backend", "numpy", "-k", "test_out")


OUTPUT = """
FAILED tests/test_rows.py::test_out[a - b] - AssertionError: no
1 failed in 0.01s
"""


@pytest.mark.parametrize(
    ("code", "output", "result", "by"),
    [
        (0, "1 passed", run.MISSED, ""),
        (1, OUTPUT, run.CAUGHT, "test_rows.py::test_out[a"),
        (
            1,
            "ERROR tests/test_rows.py::test_out - no fixture",
            run.ERROR,
            "exit code 1: ERROR tests",
        ),
        (2, "Interrupted", run.ERROR, "exit code 2: Interrupted"),
        (5, "1 deselected", run.ERROR, "exit code 5: 1 deselected"),
    ],
)
def test_outcomes(
    code: int, output: str, result: str, by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "file.py").write_text("old\n")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "PARTS", ("tests",))
    copy = run.Copy(tmp_path / "job")
    file = copy.folder / "tests" / "file.py"
    before = file.stat().st_mtime_ns

    def pytest_(arguments: tuple[str, ...], cache: object) -> tuple[int, str]:
        assert arguments == ("tests/file.py",)
        assert file.read_text() == "new\n"
        return code, output

    monkeypatch.setattr(copy, "pytest", pytest_)
    fault = Fault("a fault", "tests/file.py", "old", "new", unit("file.py"))
    outcome = run.run(fault, copy)
    assert outcome.result == result
    assert outcome.by.startswith(by)
    assert (file.read_text(), file.stat().st_mtime_ns) == ("old\n", before)
    assert f"| a fault | tests/file.py | {result} | " in run.table([outcome])
