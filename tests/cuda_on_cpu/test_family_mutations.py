"""Faults planted in the kernels for instances, dynamic tanh and power norm; checks find them."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import cupy_on_cpu
import numpy as np
import pytest
import test_family
from family_cases import Instances, Powers, Tanh
from ln_array_api_backends.cupy import (
    instances_dispatch,
    kernel_launch,
    powers_dispatch,
    strided_kernels,
    tanh_dispatch,
)
from planted_faults import ADDRESS, assert_reported, runs_under
from source_change import CHANGED
from test_strided_mutations import Fault, faults

#: The kernels, by the names that faults give them.
KERNELS = {
    "instances": instances_dispatch.INSTANCES,
    "powers": powers_dispatch.POWERS,
    "tanh": tanh_dispatch.TANH,
}
MODULES: tuple[ModuleType, ...] = (instances_dispatch, powers_dispatch, tanh_dispatch)


def instances() -> None:
    test_family.check(Instances("float32", 3, 700, mean=3, epsilon=1e-5))


def off_center() -> None:
    test_family.check(Instances("float32", 3, 5000, mean=1e6, epsilon=1e-5))


def constant() -> None:
    test_family.test_constant_instances(0.1, 700, 1e-90)


def tanh() -> None:
    test_family.check(Tanh("float32", 700, 9))


def slopes() -> None:
    """Check gradients where slopes are subnormal, also of dx alone."""
    x = np.linspace(45e-30, 50e-30, 120).reshape(3, 40)
    case = Tanh("float32", 3, 40, alpha=1e30, x=x)
    test_family.check(case)
    dx = case.run((True, False, False, False))[1]
    assert test_family.off(dx, *case.expected([])[1], "float32") <= 8


def far_apart() -> None:
    test_family.test_powers_of_magnitudes_that_are_far_apart("float32")


def cubes() -> None:
    test_family.check(Powers("float32", 3, 700, exponent=3.0, epsilon=1e-12))


def large_cubes() -> None:
    test_family.check(Powers("float32", 3, 700, magnitude=1e30, exponent=3.0, epsilon=1e-12))


FAULTS = faults(
    {
        ("instances.sums", off_center): {
            "mean of x_hat not subtracted": ("- x_hat_mean * sum_dy", "")
        },
        ("instances.sums", instances): {
            "a partial sum left out": ("at < plane", "at < plane - padded_outputs"),
            "sums of other rows": ("at += padded_outputs", "++at"),
        },
        ("instances.sums", test_family.test_the_variance_may_overflow_where_rstd_does_not): {
            "a residual that stays scaled": ("/ range_scale(rstd)", "")
        },
        ("instances.gradient", off_center): {
            "mean residual not subtracted": ("-mean_residual * rstd", "A(0)")
        },
        ("instances.gradient", instances): {
            "no shift": ("fma(x_hat, scale, shift)", "x_hat * scale")
        },
        ("tanh.gradients", tanh): {
            "one parameter for all": ("gamma[at.output]", "gamma[0]"),
            "gradients in one place": ("if (with_dgamma) target += plane;", ""),
            "partial sums in one place": ("at.partial * padded", "0 * padded"),
            "dbeta in place of dgamma": ("d * tanh(u)", "d"),
            "dx in the wrong place": ("dx[places[j]]", "dx[places[0]]"),
            "an element left out": ("left > 0; left", "left > 3; left"),
        },
        ("tanh.gradients", slopes): {
            "a subnormal slope": (
                "root_slope * steepness * root_slope",
                "root_slope * root_slope * steepness",
            )
        },
        ("tanh.dx", slopes): {
            "a subnormal slope, for dx alone": (
                "root_slope * steepness * root_slope",
                "root_slope * root_slope * steepness",
            )
        },
        ("powers.partial_sums", test_family.test_powers_of_parts_that_are_far_apart): {
            "a base of zeros": ("if (chunk.squares.sum != 0) ", "")
        },
        ("powers.partial_sums", cubes): {
            "a chunk of another thread": ("length, first + chunk_step", "length, first + 1"),
            "products without sign": (
                "copysign(powers.ratio(magnitude, reference), value)",
                "powers.ratio(magnitude, reference)",
            ),
        },
        ("powers.y", cubes): {
            "y without sign": ("copysign(ratio * y_scale, value)", "ratio * y_scale")
        },
        ("powers.dx", cubes): {
            "projection not subtracted": ("fma(-y, projection,", "fma(-y, A(0),")
        },
        ("powers.dx", test_family.test_a_row_of_zeros): {
            "logarithms of 0": ("magnitude == 0 ?", "magnitude < 0 ?")
        },
        ("source", far_apart): {
            "factors multiplied in one order": ("(a >= 1) == (b >= 1) ?", "true ?")
        },
        ("source", cubes): {
            "squares merged like products": (
                "other.squares, factor * factor",
                "other.squares, factor",
            ),
            "squares not merged": ("add_scaled(all.squares, other.squares, factor * factor);", ""),
        },
        ("source", large_cubes): {
            "a norm that overflows": ("const bool in_range =", "const bool in_range = true ||"),
            "1 / s not added": ("1 / total : s / total", "s / total : s / total"),
        },
        ("source", test_family.test_powers_close_to_the_largest): {
            "ratios rounded first": ("LARGE_RATIO = 0.9", "LARGE_RATIO = 2")
        },
        ("source", test_family.test_powers_that_are_subnormal): {
            "a power of few digits": ("half / root * half : power", "power / root : power")
        },
        ("preamble", constant): {"an infinite rstd": ("rstd = Limits<A>::max_finite;", ";")},
        ("preamble", instances): {
            "a variance of the wrong scale": ("inv_count, 2 * int(row.exponent)", "inv_count, 0")
        },
    }
)
#: Out-of-bounds accesses, which AddressSanitizer finds.
OUT_OF_BOUNDS = faults(
    {
        ("instances.sums", instances): {
            "a partial sum too many": ("at < plane", "at <= plane * 3")
        },
        ("tanh.gradients", tanh): {
            "a parameter too many": ("gamma[at.output]", "gamma[at.output + 1]")
        },
        ("powers.partial_sums", cubes): {
            "a chunk beyond the row": ("min(length, first + chunk_step)", "first + chunk_step")
        },
    }
)


def make(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a fault."""
    module, _, name = fault.kernel.partition(".")
    if module == "preamble":
        source = strided_kernels.preamble()
        assert source.count(fault.old) == 1, CHANGED
        changed = source.replace(fault.old, fault.new)
        for each in (strided_kernels, powers_dispatch):
            monkeypatch.setattr(each, "preamble", lambda: changed)
    elif module == "source":
        strided_kernels.preamble()  # has none of the faults
        source = kernel_launch.read_sources("family_common.cuh")
        assert source.count(fault.old) == 1, CHANGED
        for each in (strided_kernels, powers_dispatch):
            monkeypatch.setattr(
                each,
                "read_sources",
                lambda *names: source.replace(fault.old, fault.new) if names else "",
            )
    else:
        kernel = KERNELS[module][name]
        assert kernel.operation.count(fault.old) == 1, CHANGED
        changed = kernel._replace(operation=kernel.operation.replace(fault.old, fault.new))
        monkeypatch.setitem(KERNELS[module], name, changed)
    clear_caches()


def clear_caches() -> None:
    for module in MODULES:
        module.kernel.cache_clear()
    powers_dispatch.merge_sums_many.cache_clear()
    strided_kernels.elementwise.cache_clear()
    strided_kernels.merge_moments_many.cache_clear()


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Fault]:
    make(request.param, monkeypatch)
    yield request.param
    clear_caches()


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
import cupy_on_cpu, pytest, test_family_mutations
fault = test_family_mutations.OUT_OF_BOUNDS[{index}]
test_family_mutations.make(fault, pytest.MonkeyPatch())
fault.check()
"""
    assert_reported(ADDRESS, code, kernel="kernel.cu")
