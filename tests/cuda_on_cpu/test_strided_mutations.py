"""Faults planted in the kernels for strided arrays, each of which some check has to find."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cupy
import cupy_on_cpu
import pytest
from ln_array_api_backends.cupy import strided, strided_kernels
from test_kernels import bits
from test_mutations import ADDRESS, CHANGED, REPORTS
from test_strided import KINDS, VALUES, Case, Kind, check

from ln_array_api import backend


def columns(values: str | None = None, n: int = 700) -> None:
    """Columns of many slots of several chunks, alone and with others."""
    check(Case(Kind((n, 5), (0,)), values=VALUES.get(values or "")))


def off_center() -> None:
    columns("mean 1e6")


def large() -> None:
    columns("1e30")


def near_the_largest() -> None:
    check(Case(Kind((700, 5), (0,)), values=VALUES["near the largest"], affine=False))


def many_squares() -> None:
    """Of many chunks, one after the other: y is right to one step."""
    check(Case(Kind((700, 5), (0,)), values=VALUES["normal"], affine=False), steps=1)


def few_rows() -> None:
    columns(n=70)


def half_precision() -> None:
    """Sums of many slots, rounded once."""
    check(Case(Kind((3, 6000), (0,)), "float16"), steps=0.6)


def two_strides() -> None:
    check(Case(KINDS["two axes apart"]))
    check(Case(KINDS["inner rows"]))


def few_columns() -> None:
    """The bits of columns, alone and among others."""
    case = Case(Kind((5000, 40), (0,)))
    whole = bits([each[:, :2] for each in case.run()[:3]])
    case.on_device = [each[:, :2] for each in case.on_device]
    assert bits(case.run()[:3]) == whole


class Fault(NamedTuple):
    """What is wrong, where, the code that makes it so, and the check that finds it."""

    what: str
    place: str
    old: str
    new: str
    check: Callable[[], None]


FAULTS = (
    Fault("sums in the dtype of the result", "add_up_many", "", "", half_precision),
    Fault(
        "moments merged without their difference",
        "preamble",
        "scaled * scaled * a.count",
        "0 * a.count",
        columns,
    ),
    Fault(
        "moments merged with half a weight",
        "preamble",
        "weight = b.count / count",
        "weight = A(0.5)",
        columns,
    ),
    Fault(
        "what a mean misses left out",
        "preamble",
        "a.missed + scalbn(mean.lost, room)",
        "a.missed",
        off_center,
    ),
    Fault(
        "what the mean of a row misses left out",
        "normalise",
        ", -missed * rstd",
        ", A(0)",
        off_center,
    ),
    Fault("what the saved mean misses left out", "dx", ", -missed)", ", A(0))", off_center),
    Fault(
        "what the sum of squares misses left out",
        "preamble",
        "{row.m2, row.m2_missed}",
        "{row.m2, 0}",
        many_squares,
    ),
    Fault(
        "a sum of large values", "preamble", "::large ? 8 : 0", "::large ? 0 : 0", near_the_largest
    ),
    Fault(
        "a sum of large deviations",
        "preamble",
        "rstd < Limits<A>::least_rstd ?",
        "rstd < 0 ?",
        near_the_largest,
    ),
    Fault(
        "squares that are not scaled",
        "preamble",
        "const int exponent = exponent_of(largest);",
        "const int exponent = 0;",
        large,
    ),
    Fault(
        "epsilon that is not scaled",
        "preamble",
        "max(scalbn(epsilon, -2 * exponent), floor)",
        "epsilon",
        columns,
    ),
    Fault(
        "the last chunk as long as the others",
        "preamble",
        "int few = int(min(count, Index(CHUNK)));",
        "int few = CHUNK;",
        few_rows,
    ),
    Fault(
        "a stride too short",
        "preamble",
        "place += advance;",
        "place += advance - sizeof(T);",
        columns,
    ),
    Fault("an axis that does not end", "preamble", "place += wrap;", "", two_strides),
    Fault(
        "an axis that begins at 0", "preamble", "inner(number % length)", "inner(0)", two_strides
    ),
    Fault("a slot left out", "add_up_few", "slot < slots", "slot < slots - 1", columns),
    Fault("rows side by side merged", "merge_few_moments", "at += padded", "++at", columns),
    Fault(
        "slots not told apart",
        "moments",
        "target = at.slot * padded",
        "target = 0 * padded",
        columns,
    ),
    Fault(
        "a slot of the wrong row",
        "sums_of_rows",
        "first = at.line * length",
        "first = at.slot * length",
        columns,
    ),
    Fault(
        "one statistic for all rows",
        "sums_of_columns",
        "inverse = rstd[r]",
        "inverse = rstd[0]",
        columns,
    ),
    Fault(
        "dbeta in place of dgamma",
        "sums_of_columns",
        "by_gamma.add(d * x_hat)",
        "by_gamma.add(d)",
        columns,
    ),
)


#: Beyond arrays, which AddressSanitizer finds.
BEYOND = (
    Fault("a slot too many", "add_up_few", "slot < slots", "slot <= slots", columns),
    Fault("a row too many", "sums_of_columns", "r < length", "r <= length", columns),
    Fault("a column too many", "sums_of_rows", "c < length", "c <= length", columns),
    Fault("parts too far apart", "moments", "target + 5 * plane", "target + 6 * plane", columns),
)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Fault]:
    make(request.param, monkeypatch)
    yield request.param
    forget()


def make(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant it."""
    if fault.place == "preamble":
        source = strided_kernels.preamble()
        assert source.count(fault.old) == 1, CHANGED
        monkeypatch.setattr(
            strided_kernels, "preamble", lambda: source.replace(fault.old, fault.new)
        )
    elif fault.place == "add_up_many":
        monkeypatch.setattr(strided, "add_up_many", without_reduce_type)
    else:
        kernel = strided_kernels.ELEMENTWISE[fault.place]
        assert kernel.operation.count(fault.old) == 1, CHANGED
        changed = kernel._replace(operation=kernel.operation.replace(fault.old, fault.new))
        monkeypatch.setitem(strided_kernels.ELEMENTWISE, fault.place, changed)
    forget()


def forget() -> None:
    """What was made before is not used."""
    strided_kernels.elementwise.cache_clear()
    strided_kernels.merge_moments.cache_clear()
    backend.plans.clear()


def without_reduce_type() -> Any:
    return cupy.ReductionKernel(
        "A part", "R total", "part", "a + b", "total = static_cast<R>(a)", "0", "faulty_add_up"
    )


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="reaches beyond arrays as well")
@pytest.mark.parametrize("plant", FAULTS, indirect=True, ids=lambda fault: fault.what)
def test_a_fault_is_found(plant: Fault) -> None:
    with pytest.raises(AssertionError):
        plant.check()


@pytest.mark.parametrize("fault", BEYOND, ids=lambda fault: fault.what)
def test_the_code_is_there_of_which_a_sanitizer_finds_faults(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(fault, monkeypatch)
    forget()


@pytest.mark.skipif("address" not in cupy_on_cpu.SANITIZE, reason=f"runs under {ADDRESS} alone")
@pytest.mark.parametrize("place", range(len(BEYOND)), ids=[fault.what for fault in BEYOND])
def test_a_fault_is_reported(place: int) -> None:
    code = f"""
import cupy_on_cpu, pytest, test_strided_mutations
fault = test_strided_mutations.BEYOND[{place}]
test_strided_mutations.make(fault, pytest.MonkeyPatch())
fault.check()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert REPORTS[ADDRESS] in result.stderr, result.stderr
    assert "strided_" in result.stderr


def test_slots_side_by_side_in_fewer_lines_would_depend_on_the_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CuPy's reductions take as many results at once as lie side by side, up to 32."""
    few_columns()
    monkeypatch.setattr(strided, "LINE", 1)
    backend.plans.clear()
    try:
        with pytest.raises(AssertionError):
            few_columns()
    finally:
        backend.plans.clear()
