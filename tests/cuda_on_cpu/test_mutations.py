"""Faults planted in the kernels, each of which some check has to find.

Under AddressSanitizer, those that reach beyond an array are planted, and have to end the process;
otherwise those that make results wrong, or different in another order of threads, or hang.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import cupy
import cupy_on_cpu
import pytest
from ln_array_api_backends.cupy import calls
from test_kernels import Case, bits, check


class Fault(NamedTuple):
    """What is wrong, the code that makes it so, and a shape of x that shows it."""

    what: str
    old: str
    new: str
    dtype: str
    n: int
    options: dict[str, float] = {}  # noqa: RUF012 - of a tuple


BARRIER = "        __syncthreads();\n"
GATHERED = "#pragma unroll\n        for (int k = 0; k < K; ++k) values[k] = lane"
SHUFFLED = "value += __shfl_xor_sync(ALL_LANES, value, flip);"
TEAMS_LEFT = "values[i][j];\n            __syncthreads();\n"
TEAM_ADDED = "part[c] = sum;\n            }\n"
COLUMNS_LEFT = "of_teams[team][column] = sum.total();\n"

BLOCK, WARP = ("float32", 1600), ("float32", 40)
GROUPS, OFF_CENTER = ("float32", 48, {"groups": 3}), ("float32", 40, {"mean": 1e4})

FAULTS = (
    Fault("no barrier for the sums of warps", BARRIER + GATHERED, GATHERED, *BLOCK),
    Fault(
        "a barrier that only first lanes reach",
        "        }\n" + BARRIER + GATHERED,
        BARRIER + "        }\n" + GATHERED,
        *BLOCK,
    ),
    Fault("sums of warps in one buffer", "turn ^= 1;", "", *BLOCK),
    Fault("sums of warps that are not there", "lane < WARPS ? slots", "true ? slots", *BLOCK),
    Fault(
        "half of a warp's sum",
        "int flip = WARP / 2; flip",
        "int flip = WARP / 4; flip",
        "float32",
        100,
    ),
    Fault("a shuffle that one lane misses", SHUFFLED, f"if (threadIdx.x % WARP) {SHUFFLED}", *WARP),
    Fault("what the mean missed kept", "- of_row.missed", "", *OFF_CENTER),
    Fault(
        "what the saved mean missed kept", "CENTER ? rough - missed : rough", "rough", *OFF_CENTER
    ),
    Fault("teams not told apart", "of_teams[team_of_block][", "of_teams[0][", *WARP),
    Fault(
        "no barrier before teams are added up",
        TEAMS_LEFT,
        TEAMS_LEFT.replace("__syncthreads();", ""),
        *WARP,
    ),
    Fault(
        "no barrier before the next gradient of teams",
        TEAM_ADDED + "            __syncthreads();",
        TEAM_ADDED,
        *WARP,
    ),
    Fault(
        "no barrier before columns are added up",
        COLUMNS_LEFT + "    __syncthreads();",
        COLUMNS_LEFT,
        *WARP,
    ),
    Fault("parts laid out wrong", "partial + blockIdx.x * n", "partial + blockIdx.x * 9", *BLOCK),
    Fault("a part left out", "part < parts; part += T", "part < parts - 1; part += T", *BLOCK),
    Fault("rows of other residues", "residue + groups * (Index(slot)", "(Index(slot)", *GROUPS),
    Fault("parameters of residue 0", "place += residue *", "place += 0 *", *GROUPS),
    Fault(
        "elements not repeated",
        "place[(c + j) / C(repeat)]",
        "place[(c + j) % C(repeat)]",
        *("float32", 48, {"repeat": 4}),
    ),
)

ODD = ("float32", 41)
OVERRUNS = (
    Fault("an element too many", "j < count ? static_cast<A>(place", "true ? A(place", *ODD),
    Fault("a chunk beyond", "count == V) {\n        const", "true) {\n        const", *ODD),
    Fault(
        "a store beyond",
        "count == V) {\n        Pack<T, V> p",
        "true) {\n        Pack<T, V> p",
        *ODD,
    ),
    Fault("a row too many", "if (r >= m) return;", "if (r > m) return;", *ODD),
    Fault("a column too many", "if (c >= n) return;", "if (c > n) return;", "float32", 17001),
)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Fault]:
    fault: Fault = request.param
    source = calls.source()
    assert source.count(fault.old) >= 1, "the code has changed; plant this fault anew"
    monkeypatch.setattr(calls, "source", lambda: source.replace(fault.old, fault.new))
    calls.kernel.cache_clear()
    yield fault
    calls.kernel.cache_clear()
    cupy_on_cpu.set_order("forward")


def find(fault: Fault) -> str:
    """What gives a fault away, or nothing."""
    case = Case(fault.dtype, 12, fault.n, **fault.options)  # type: ignore[arg-type]
    results = []
    for order in cupy_on_cpu.ORDERS:
        cupy_on_cpu.set_order(order)
        try:
            results.append(bits(case.run()))
            check(case)
        except cupy.cuda.driver.CUDADriverError as error:
            return str(error)
        except AssertionError:
            return f"wrong in {order} order"
    return "" if all(each == results[0] for each in results) else "depends on the order"


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="reaches beyond arrays as well")
@pytest.mark.parametrize("plant", FAULTS, indirect=True, ids=lambda fault: fault.what)
def test_a_fault_is_found(plant: Fault) -> None:
    found = find(plant)
    print(f"{plant.what}: {found}")
    assert found


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "address", reason="needs AddressSanitizer")
@pytest.mark.parametrize("fault", OVERRUNS, ids=lambda fault: fault.what)
def test_an_overrun_is_found(fault: Fault) -> None:
    code = f"""
import cupy_on_cpu, test_kernels
from ln_array_api_backends.cupy import calls
source = calls.source().replace({fault.old!r}, {fault.new!r})
assert source != calls.source()
calls.source = lambda: source
test_kernels.Case({fault.dtype!r}, 5, {fault.n}).run()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AddressSanitizer" in result.stderr, result.stderr
    assert "kernel.cu" in result.stderr
