"""Faults planted in the kernels over windows, each of which some check has to find.

Under a sanitizer, the kernels as they are run as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from dtypes import DTYPES
from ln_array_api_backends.cupy import windows_dispatch
from planted_faults import ADDRESS, RESULT, SIMULATOR, THREAD, assert_reported, runs_under
from source_change import change_source
from window_cases import Case, an_edge, an_outlier, normal

from ln_array_api import backend


def large_at_the_end(shape: tuple[int, ...]) -> np.ndarray:
    """Return planes whose last columns are very large."""
    x = normal(shape)
    x[..., -3:] *= 1e30
    return x


#: Few blocks, because barriers are slow under ThreadSanitizer.
TILES, SCALED_TILES = Case((1, 18, 33), 9), Case((1, 18, 20), 5, magnitude=1e30, epsilon=0)
PLANES = Case((1, 45, 37), 89)
#: Windows that reach less far than the neighbours that a thread computes.
SMALL_TILES, SMALL_PLANES = Case((2, 6, 33), 3), Case((2, 2, 600), 401)
SINGLE_ELEMENTS = Case((1, 5, 33), 1)
TWO_TILES = Case((1, 9, 50), 9)
EDGE = Case((1, 20, 37), 9, values=an_edge)
#: The outlier is the anchor of other elements of its window.
OUTLIER = Case((1, 1, 2048), 2001, values=an_outlier)
#: Of two parts whose largest magnitudes are computed, to which the gradients are scaled.
TWO_PARTS = Case((1, 1, 17_000), 2301, values=large_at_the_end, epsilon=0)


class Fault(NamedTuple):
    """What is wrong, the code that makes it so, planes that show it, and what finds it."""

    what: str
    old: str
    new: str
    case: Case
    by: tuple[str, ...]


def faults(
    case: Case, planted: dict[str, tuple[str, str]], by: tuple[str, ...] = (RESULT,)
) -> list[Fault]:
    """Return faults that the same planes show, from the old and new code of each."""
    return [Fault(what, old, new, case, by) for what, (old, new) in planted.items()]


BARRIER = "__syncthreads();"
FAULTS = [
    *faults(
        TILES,
        {
            "no barrier before runs are merged": (
                f"radius_across, deviations, variances);\n    {BARRIER}",
                "radius_across, deviations, variances);",
            ),
            "no barrier before runs of deviations are merged": (
                f"radius_across, deviations, deviations);\n    {BARRIER}",
                "radius_across, deviations, deviations);",
            ),
            "no barrier before terms are added up": (
                f"        }});\n    {BARRIER}\n\n    const Extent<int> down = windows.down",
                "        });\n\n    const Extent<int> down = windows.down",
            ),
            "no barrier before sums of runs are merged": (
                f"    }});\n    {BARRIER}\n    by_neighbours(radius_down",
                "    });\n    by_neighbours(radius_down",
            ),
        },
        by=(RESULT, THREAD),
    ),
    *faults(
        TILES,
        {
            "no barrier after x is loaded": (
                f"warp_maxima[threadIdx.x / WARP] = max_abs;\n    {BARRIER}",
                "warp_maxima[threadIdx.x / WARP] = max_abs;",
            ),
        },
        by=(SIMULATOR, THREAD),
    ),
    *faults(
        SCALED_TILES,
        {
            "no barrier after x is scaled": (
                f"*= factor; }});\n        {BARRIER}",
                "*= factor; });",
            )
        },
        by=(RESULT, THREAD),
    ),
    *faults(
        TILES,
        {
            "a window that ends too early": (
                "min(first + axis.radius + 1, axis.end)",
                "min(first + axis.radius, axis.end)",
            ),
            "a window that begins too early": (
                "max(first + MORE - axis.radius, axis.begin)",
                "max(first + MORE - axis.radius - 1, axis.begin)",
            ),
            "an element before the core left out": (
                "head[j] = before + j >= axis.begin ?",
                "head[j] = before + j > axis.begin ?",
            ),
            "an element after the core left out": (
                "tail[j] = after + j < axis.end ?",
                "tail[j] = after + j + 1 < axis.end ?",
            ),
            "elements beyond the border counted": (
                "if (in_head ? before + j >= axis.begin : after + j < axis.end) count += 1;",
                "count += 1;",
            ),
            "variances beyond the border added": (
                "if (in_head ? k >= axis.begin : k < axis.end) {",
                "if (in_head || k < axis.end) {",
            ),
            "terms divided by the number of elements of a whole window": (
                "return min(k + axis.radius + 1, axis.end) - max(k - axis.radius, axis.begin);",
                "return 2 * axis.radius + 1;",
            ),
            "a halo that begins one element too late": (
                "int(max(-start, Index(0)))",
                "int(max(1 - start, Index(0)))",
            ),
            "no variance between runs": (
                "return d * d + runs.variance(k);",
                "return runs.variance(k);",
            ),
            "no variance in runs": ("return d * d + runs.variance(k);", "return d * d;"),
            "no variance between the core and a window": (
                "core_squares + shift * (core_count * shift - 2 * residual)",
                "core_squares",
            ),
            "the deviation of the first neighbour": ("(x[first + v] - anchor)", "A(0)"),
            "runs at another pitch": (
                "run_pitch = odd(tile.columns - 2 * radius_across)",
                "run_pitch = tile.columns - 2 * radius_across + 2",
            ),
            "last neighbours left out": (
                "(inner.end - inner.begin + COUNT - 1) / COUNT",
                "(inner.end - inner.begin) / COUNT",
            ),
            "sums before the core left out": (
                "if (k >= axis.begin) sum.add(sums_at(k));",
                "if (k > axis.begin) sum.add(sums_at(k));",
            ),
            "sums after the core left out": (
                "if (k < axis.end) tail.add(sums_at(k));",
                "if (k < axis.end - 1) tail.add(sums_at(k));",
            ),
            "sums of the last elements for the first neighbour": (
                "tail.add(sums_at(k));\n        sums[v].add(tail);",
                "tail.add(sums_at(k));\n        sums[v - 1].add(tail);",
            ),
            "x of another column": (
                "field + (i + radius_down) * pitch + radius_across;",
                "field + (i + radius_down) * pitch;",
            ),
        },
    ),
    *faults(
        TWO_TILES,
        {
            "a tile that ends at the border of another": (
                "int(min(length - start, Index(count)))",
                "int(min(length - start, Index(count - 1)))",
            ),
        },
    ),
    *faults(
        SMALL_TILES,
        {"planes that overlap": ("(plane * height + top) * width", "(plane + top) * width")},
    ),
    *faults(
        SCALED_TILES,
        {
            "rstd of the scaled plane": (": scaled_rstd * factor;", ": scaled_rstd;"),
            "mean of the scaled plane": ("(x - deviation) * (1 / factor)", "(x - deviation)"),
            "a tile that is not scaled": ("field[i * pitch + j] *= factor;", ""),
            "gradients that are not scaled back": ("* (1 / lift)", ""),
        },
    ),
    *faults(
        EDGE,
        {
            "an anchor without weight": ("if (!(weight >= other.weight)) {", "if (weight < 0) {"),
            "moments about another anchor": ("total * (old - anchor)", "total * (anchor - old)"),
        },
    ),
    *faults(
        OUTLIER,
        {
            "the rounding error of the mean of the core": (
                "A total = residual, count",
                "A total = 0, count",
            ),
        },
    ),
    *faults(
        SINGLE_ELEMENTS,
        {"a product that is not rounded": ("rounded(dy * (rstd * lift))", "dy * (rstd * lift)")},
    ),
    *faults(
        PLANES,
        {
            "runs of another column": (
                "RunMoments<A, Index>{deviations + at, variances + at, plane.width}",
                "RunMoments<A, Index>{deviations + at, variances + at, 1}",
            ),
            "elements of a row at the wrong distance": (
                "ScaledLine<T, A>{x + at, 1, plane.factor}",
                "ScaledLine<T, A>{x + at, 2, plane.factor}",
            ),
            "part of a long sum left out": ("        sum.add(some);\n", ""),
            "chunks of a long sum that overlap": (
                "for (; k < stop; ++k) {",
                "for (Position n = k; n <= stop && (k = n) < end; ++n) {",
            ),
            "threads that leave out columns": (
                "plane.unit - row * groups) * COUNT",
                "plane.unit - row * groups) * (COUNT + 1)",
            ),
        },
    ),
    *faults(
        SMALL_PLANES,
        {
            "a plane that begins in another": ("first = plane * height * width;", "first = plane;"),
            "blocks of other planes": ("blockIdx.x % blocks", "blockIdx.x"),
        },
    ),
    *faults(
        TWO_PARTS,
        {
            "the maximum of the first part": (
                "part < parts; part += WARP",
                "part < 1; part += WARP",
            ),
            "parts that overlap": ("blockIdx.x % parts * length", "0 * length"),
            "a part that ends early": (
                "k < end; k += PLANE_THREADS",
                "k < end - 400; k += PLANE_THREADS",
            ),
        },
    ),
]
OUT_OF_BOUNDS = [
    *faults(
        TILES,
        {
            "a row too many": ("if (loaded.row < rows) values", "if (loaded.row <= rows) values"),
            "a neighbour beyond the tile": ("if (first + v >= inner.end) break;", ""),
        },
        by=(ADDRESS,),
    ),
    *faults(
        PLANES,
        {
            "a row beyond the plane": ("if (row + v >= plane.height) break;", ""),
            "an element beyond the window": (
                "min(first + axis.radius + 1, axis.end)",
                "min(first + axis.radius + 1, axis.end + 1)",
            ),
        },
        by=(ADDRESS,),
    ),
]


def found_by(*checks: str) -> Callable[[Iterable[Fault]], list[Fault]]:
    return lambda some: [fault for fault in some if {*fault.by}.intersection(checks)]


RACES = found_by(THREAD)(FAULTS)


def plant(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    change_source(monkeypatch, windows_dispatch, fault.old, fault.new)
    backend.plans.clear()


def check_in_all_orders(case: Case) -> None:
    """Check the results, and that their bits do not depend on the order of threads."""
    case.check()
    if case.size == 1:
        assert not case.run()[3].any()
    bits = set()
    for order in cupy_on_cpu.ORDERS:
        cupy_on_cpu.set_order(order)
        bits.add(tuple(each.tobytes() for each in case.run()))
    cupy_on_cpu.set_order("forward")
    assert len(bits) == 1


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    plant(request.param, monkeypatch)
    yield request.param
    cupy_on_cpu.set_order("forward")
    windows_dispatch.kernel.cache_clear()
    backend.plans.clear()


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="some faults are out of bounds as well")
@pytest.mark.parametrize("planted", FAULTS, indirect=True, ids=lambda fault: fault.what)
def test_a_fault_is_found(planted: Fault) -> None:
    found = cupy.cuda.driver.CUDADriverError if SIMULATOR in planted.by else AssertionError
    with pytest.raises(found):
        check_in_all_orders(planted.case)


@pytest.mark.parametrize("fault", OUT_OF_BOUNDS, ids=lambda fault: fault.what)
def test_the_code_that_a_fault_changes_is_present(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(fault, monkeypatch)
    windows_dispatch.kernel.cache_clear()
    backend.plans.clear()


def report(sanitizer: str, fault: str) -> None:
    code = f"""
import cupy_on_cpu, pytest, test_window_mutations
fault = test_window_mutations.{fault}
test_window_mutations.plant(fault, pytest.MonkeyPatch())
fault.case.run()
"""
    assert_reported(sanitizer, code)


@runs_under(ADDRESS)
@pytest.mark.parametrize("index", range(len(OUT_OF_BOUNDS)))
def test_an_access_out_of_bounds_is_reported(index: int) -> None:
    report(ADDRESS, f"OUT_OF_BOUNDS[{index}]")


@runs_under(ADDRESS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_too_little_shared_memory_is_reported(backward: bool) -> None:
    name = "_backward_fields" if backward else "_forward_fields"
    code = f"""
import cupy_on_cpu, test_window_mutations
from ln_array_api_backends.cupy import windows_dispatch
count = windows_dispatch.{name}
windows_dispatch.{name} = lambda *shape: count(*shape) - 8
test_window_mutations.Case((1, 40, 40), 9).run()
"""
    assert_reported(ADDRESS, code)


@runs_under(THREAD)
@pytest.mark.parametrize("index", range(len(RACES)), ids=[each.what for each in RACES])
def test_a_race_is_reported(index: int) -> None:
    report(THREAD, f"RACES[{index}]")


CASES = [TILES, SCALED_TILES, SMALL_TILES, SINGLE_ELEMENTS, PLANES, SMALL_PLANES]


@runs_under(THREAD)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_there_are_no_races(index: int) -> None:
    CASES[index].check()


@runs_under(ADDRESS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_nothing_is_out_of_bounds(index: int, dtype: str) -> None:
    """In any dtype; x may not be representable in float16, which does not matter."""
    case = CASES[index]
    magnitude = 1e4 if case is SCALED_TILES else 1
    for dy in (dtype, "float64"):
        Case(case.shape, case.size, dtype, magnitude=magnitude, dy_dtype=dy).run()
