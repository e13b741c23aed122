"""Faults planted in the kernels over rows and channels, each of which a check has to find.

README.md lists them, with the checks that find each.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import channel_faults
import cupy
import cupy_on_cpu
import pytest
import row_faults
import test_channels
import test_kernels
from ln_array_api_backends.cupy import channels_dispatch, rows_dispatch
from planted_faults import (
    ORDER,
    RESULT,
    SANITIZERS,
    SIMULATOR,
    Fault,
    assert_reported,
    found_by,
    runs_under,
)
from source_change import CHANGED, change_source


class Kernels(NamedTuple):
    """Kernels, their faults, how to make and check a case, and the title of README.md's table."""

    dispatch: ModuleType
    faults: tuple[Fault, ...]
    case: Callable[..., Any]
    check: Callable[[Any], None]
    title: str


def row_case(fault: Fault, rows: int | None = None) -> test_kernels.Case:
    options = {"rows": 12 if fault.shape < 16000 else 3, **fault.options}
    if rows is not None:
        options["rows"] = rows
    return test_kernels.Case(fault.dtype, options.pop("rows"), fault.shape, **options)


def check_rows(case: test_kernels.Case) -> None:
    test_kernels.check(case)
    if case.x.dtype.itemsize == 2:
        test_kernels.check_rounding(case)


def channel_case(fault: Fault) -> test_channels.Case:
    return test_channels.Case(fault.dtype, fault.shape, **fault.options)


ROWS = Kernels(
    rows_dispatch, row_faults.FAULTS, row_case, check_rows, "fault in a kernel over rows"
)
CHANNELS = Kernels(
    *(channels_dispatch, channel_faults.FAULTS, channel_case, test_channels.check),
    "fault in a kernel over channels",
)
BOTH = {"rows": ROWS, "channels": CHANNELS}


def params(*checks: str) -> list[Any]:
    """Return the faults that some checks find, with the kernels that they are planted in."""
    return [
        pytest.param(kernels, fault, id=f"{name}: {fault.what}")
        for name, kernels in BOTH.items()
        for fault in found_by(kernels.faults, *checks)
    ]


def find(fault: Fault, kernels: Kernels) -> str:
    """Return the check that finds a fault, if any does."""
    case, results = kernels.case(fault), []
    for order in cupy_on_cpu.ORDERS:
        cupy_on_cpu.set_order(order)
        try:
            results.append(test_kernels.bits(case.run()))
            kernels.check(case)
        except cupy.cuda.driver.CUDADriverError:
            return SIMULATOR
        except AssertionError:
            return RESULT
    return "" if all(each == results[0] for each in results) else ORDER


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="a sanitizer may end the process first")
@pytest.mark.parametrize(("kernels", "fault"), params(RESULT, ORDER, SIMULATOR))
def test_a_fault_is_found(kernels: Kernels, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    change_source(monkeypatch, kernels.dispatch, fault.old, fault.new)
    monkeypatch.setattr(rows_dispatch, "split_row", fault.split)
    try:
        assert find(fault, kernels) in fault.by
    finally:
        kernels.dispatch.kernel.cache_clear()
        cupy_on_cpu.set_order("forward")


@pytest.mark.parametrize(("kernels", "fault"), params(*SANITIZERS.values()))
def test_the_code_that_a_fault_changes_is_present(kernels: Kernels, fault: Fault) -> None:
    assert fault.old in kernels.dispatch.source(), CHANGED


def run_with_fault(name: str, what: str) -> None:
    """Run a case with a fault, of which a sanitizer ends the process."""
    kernels = BOTH[name]
    (fault,) = (each for each in kernels.faults if each.what == what)
    change_source(pytest.MonkeyPatch(), kernels.dispatch, fault.old, fault.new)
    if kernels is ROWS:
        row_case(fault, rows=fault.options.get("rows", 5)).run()
    else:
        kernels.case(fault).run()


@pytest.mark.parametrize(
    ("sanitizer", "name", "what"),
    [
        pytest.param(sanitizer, name, fault.what, marks=runs_under(sanitizer))
        for sanitizer in SANITIZERS.values()
        for name, kernels in BOTH.items()
        for fault in found_by(kernels.faults, sanitizer)
    ],
)
def test_a_fault_is_reported(sanitizer: str, name: str, what: str) -> None:
    code = f"import cupy_on_cpu, test_mutations; test_mutations.run_with_fault({name!r}, {what!r})"
    assert_reported(sanitizer, code)


@pytest.mark.parametrize("kernels", BOTH.values(), ids=BOTH)
def test_the_readme_lists_these_faults(kernels: Kernels) -> None:
    rows = [f"| {fault.what} | {', '.join(fault.by)} |" for fault in kernels.faults]
    text = (cupy_on_cpu.HERE / "README.md").read_text(encoding="utf-8")
    _, _, table = text.partition(f"| {kernels.title} | found by |\n|---|---|\n")
    assert table.split("\n\n")[0].splitlines() == rows, "\n".join(rows)
