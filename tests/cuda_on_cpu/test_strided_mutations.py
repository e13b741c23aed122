"""Faults planted in the kernels for strided arrays, each of which some check has to find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cupy
import cupy_on_cpu
import pytest
from ln_array_api_backends.cupy import strided_dispatch, strided_kernels
from planted_faults import ADDRESS, assert_reported, runs_under
from source_change import CHANGED
from test_kernels import bits
from test_strided import KINDS, VALUES, Case, Kind, check

from ln_array_api import backend


def columns(values: str | None = None, n: int = 700) -> None:
    """Check columns of many partial results of several chunks."""
    check(Case(Kind((n, 5), (0,)), values=VALUES.get(values or "")))


def off_center() -> None:
    columns("mean 1e6")


def large() -> None:
    columns("1e30")


def near_the_largest() -> None:
    check(Case(Kind((700, 5), (0,)), values=VALUES["near the largest"], affine=False))


def many_squares() -> None:
    """Check that y is right to one ulp where a thread has many chunks."""
    check(Case(Kind((700, 5), (0,)), values=VALUES["normal"], affine=False), steps=1)


def few_rows() -> None:
    columns(n=70)


def half_precision() -> None:
    """Check that sums of many partial sums are rounded once."""
    check(Case(Kind((3, 6000), (0,)), "float16"), steps=0.6)


def two_strides() -> None:
    check(Case(KINDS["two axes apart"]))
    check(Case(KINDS["inner rows"]))


def few_columns() -> None:
    """Check that columns have the same bits alone and among others."""
    case = Case(Kind((5000, 40), (0,)))
    whole = bits([each[:, :2] for each in case.run()[:3]])
    case.on_device = [each[:, :2] for each in case.on_device]
    assert bits(case.run()[:3]) == whole


class Fault(NamedTuple):
    """What is wrong, in which kernel, the code that makes it so, and the check that finds it."""

    what: str
    kernel: str
    old: str
    new: str
    check: Callable[[], None]


Planted = dict[tuple[str, Callable[[], None]], dict[str, tuple[str, str]]]


def faults(planted: Planted) -> list[Fault]:
    """Return faults, from the old and new code of each by the kernel and the check."""
    return [
        Fault(what, kernel, old, new, check)
        for (kernel, check), some in planted.items()
        for what, (old, new) in some.items()
    ]


FAULTS = faults(
    {
        ("reduce_partials_many", half_precision): {"sums in the dtype of the result": ("", "")},
        ("preamble", columns): {
            "moments merged without their difference": ("scaled * scaled * a.count", "0 * a.count"),
            "moments merged with half a weight": ("weight = b.count / count", "weight = A(0.5)"),
            "epsilon that is not scaled": (
                "max(scalbn(epsilon, -2 * exponent), min_epsilon)",
                "epsilon",
            ),
            "a stride too short": ("ptr += byte_step;", "ptr += byte_step - sizeof(T);"),
        },
        ("preamble", off_center): {
            "mean residual not merged": (
                "a.mean_residual + scalbn(mean.compensation, headroom)",
                "a.mean_residual",
            )
        },
        ("normalise", off_center): {
            "mean residual not subtracted": (", -mean_residual * rstd", ", A(0)")
        },
        ("dx", off_center): {"mean of x_hat not subtracted": (", -x_hat_mean)", ", A(0))")},
        ("preamble", many_squares): {
            "compensation of the sum of squares left out": (
                "{row.m2, row.m2_compensation}",
                "{row.m2, 0}",
            )
        },
        ("preamble", near_the_largest): {
            "a sum of large values": ("::max_summand ? 8 : 0", "::max_summand ? 0 : 0"),
            "a sum of large deviations": ("rstd < Limits<A>::min_rstd ?", "rstd < 0 ?"),
        },
        ("preamble", large): {
            "squares that are not scaled": ("exponent = exponent_of(max_deviation)", "exponent = 0")
        },
        ("preamble", few_rows): {
            "a last chunk as long as the others": (
                "int chunk_count = int(min(count, Index(CHUNK)));",
                "int chunk_count = CHUNK;",
            )
        },
        ("preamble", two_strides): {
            "an axis that does not end": ("ptr += wrap_step;", ""),
            "an axis that begins at 0": ("inner(index % length)", "inner(0)"),
        },
        ("reduce_partials_few", columns): {
            "a partial sum left out": ("partial < num_partials", "partial < num_partials - 1")
        },
        ("merge_moments_few", columns): {
            "moments of other rows merged": ("at += padded_outputs", "++at")
        },
        ("partial_moments", columns): {
            "partial results share an address": ("target = at.partial", "target = 0 * at.partial")
        },
        ("row_sums", columns): {
            "a partial sum of the wrong row": ("first = at.output", "first = at.partial")
        },
        ("column_sums", columns): {
            "one statistic for all rows": ("row_rstd = rstd[r]", "row_rstd = rstd[0]"),
            "dbeta in place of dgamma": ("dgamma_acc.add(d * x_hat)", "dgamma_acc.add(d)"),
        },
    }
)
#: Out-of-bounds accesses, which AddressSanitizer finds.
OUT_OF_BOUNDS = faults(
    {
        ("reduce_partials_few", columns): {
            "a partial sum too many": ("partial < num_partials", "partial <= num_partials")
        },
        ("column_sums", columns): {"a row too many": ("r < length", "r <= length")},
        ("row_sums", columns): {"a column too many": ("c < length", "c <= length")},
        ("partial_moments", columns): {
            "partial results too far apart": ("target + 5 * plane", "target + 6 * plane")
        },
    }
)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Fault]:
    make(request.param, monkeypatch)
    yield request.param
    clear_caches()


def make(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a fault."""
    if fault.kernel == "preamble":
        source = strided_kernels.preamble()
        assert source.count(fault.old) == 1, CHANGED
        monkeypatch.setattr(
            strided_kernels, "preamble", lambda: source.replace(fault.old, fault.new)
        )
    elif fault.kernel == "reduce_partials_many":
        monkeypatch.setattr(strided_dispatch, "reduce_partials_many", without_reduce_type)
    else:
        kernel = strided_kernels.ELEMENTWISE[fault.kernel]
        assert kernel.operation.count(fault.old) == 1, CHANGED
        changed = kernel._replace(operation=kernel.operation.replace(fault.old, fault.new))
        monkeypatch.setitem(strided_kernels.ELEMENTWISE, fault.kernel, changed)
    clear_caches()


def clear_caches() -> None:
    """Clear the caches of kernels and plans."""
    strided_kernels.elementwise.cache_clear()
    strided_kernels.merge_moments_many.cache_clear()
    backend.plans.clear()


def without_reduce_type() -> Any:
    return cupy.ReductionKernel(
        *("A partial", "R total", "partial", "a + b", "total = static_cast<R>(a)", "0"),
        "faulty_reduce_partials",
    )


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="some faults are out of bounds as well")
@pytest.mark.parametrize("plant", FAULTS, indirect=True, ids=lambda fault: fault.what)
def test_a_fault_is_found(plant: Fault) -> None:
    with pytest.raises(AssertionError):
        plant.check()


@pytest.mark.parametrize("fault", OUT_OF_BOUNDS, ids=lambda fault: fault.what)
def test_the_code_that_a_fault_changes_is_present(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(fault, monkeypatch)
    clear_caches()


@runs_under(ADDRESS)
@pytest.mark.parametrize(
    "index", range(len(OUT_OF_BOUNDS)), ids=[each.what for each in OUT_OF_BOUNDS]
)
def test_a_fault_is_reported(index: int) -> None:
    code = f"""
import cupy_on_cpu, pytest, test_strided_mutations
fault = test_strided_mutations.OUT_OF_BOUNDS[{index}]
test_strided_mutations.make(fault, pytest.MonkeyPatch())
fault.check()
"""
    assert_reported(ADDRESS, code, kernel="strided_")


def test_reductions_without_padding_would_depend_on_the_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CuPy's reductions take as many results at a time as are contiguous, up to 32."""
    few_columns()
    monkeypatch.setattr(strided_dispatch, "OUTPUTS_PER_BLOCK", 1)
    backend.plans.clear()
    try:
        with pytest.raises(AssertionError):
            few_columns()
    finally:
        backend.plans.clear()
