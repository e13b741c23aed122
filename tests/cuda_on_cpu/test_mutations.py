"""Faults planted in the kernels, each of which some check has to find.

Each names the checks that find it, and README.md tells of all. A sanitizer ends the process, so
there each fault has one to itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cupy
import cupy_on_cpu
import pytest
from ln_array_api_backends.cupy import calls
from ln_array_api_backends.cupy.shapes import Cut, row_cut
from test_kernels import Case, bits, check, check_rounding
from test_long_rows import joined

RESULT, ORDER, SIMULATOR = "a wrong result", "bits that depend on the order", "the simulator"
SANITIZERS = {
    "address": "AddressSanitizer",
    "undefined": "UndefinedBehaviorSanitizer",
    "thread": "ThreadSanitizer",
}
ADDRESS, UNDEFINED, THREAD = SANITIZERS.values()
#: How a report begins.
REPORTS = {ADDRESS: "AddressSanitizer", UNDEFINED: "runtime error", THREAD: "data race"}

CHANGED = "the code has changed; plant this fault anew"


class Fault(NamedTuple):
    """What is wrong, the code that makes it so, a shape of x that shows it, and what finds it."""

    what: str
    old: str
    new: str
    dtype: str
    n: int
    options: dict[str, float] = {}  # noqa: RUF012 - of a tuple
    cut: Callable[[str, int, int], Cut] = row_cut
    by: tuple[str, ...] = (RESULT,)


BARRIER = "        __syncthreads();\n"
GATHERED = "#pragma unroll\n        for (int k = 0; k < K; ++k) values[k] = lane"
SHUFFLED = "value += __shfl_xor_sync(ALL_LANES, value, flip);"
TEAMS_LEFT = "values[i][j];\n            __syncthreads();\n"
TEAM_ADDED = "part[c] = sum;\n            }\n"
COLUMNS_LEFT = "of_teams[team][column] = sum.total();\n"

BLOCK, WARP = ("float32", 1600), ("float32", 40)
LONG, LONG_REPEATED = ("float32", 40001), ("float32", 40000, {"repeat": 20})
GROUPS, OFF_CENTER = ("float32", 48, {"groups": 3}), ("float32", 40, {"mean": 1e4})
ODD = ("float32", 41)

FAULTS = (
    Fault(
        "no barrier for the sums of warps",
        BARRIER + GATHERED,
        GATHERED,
        *BLOCK,
        by=(RESULT, THREAD),
    ),
    Fault(
        "a barrier that only first lanes reach",
        "        }\n" + BARRIER + GATHERED,
        BARRIER + "        }\n" + GATHERED,
        *BLOCK,
        by=(SIMULATOR,),
    ),
    Fault("sums of warps in one buffer", "turn ^= 1;", "", *BLOCK, by=(RESULT, THREAD)),
    Fault("sums of warps that are not there", "lane < WARPS ? slots", "true ? slots", *BLOCK),
    Fault(
        "half of a warp's sum",
        "int flip = WARP / 2; flip",
        "int flip = WARP / 4; flip",
        "float32",
        100,
    ),
    Fault(
        "a shuffle that one lane misses",
        SHUFFLED,
        f"if (threadIdx.x % WARP) {SHUFFLED}",
        *WARP,
        by=(SIMULATOR,),
    ),
    Fault("what the mean missed kept", "- of_row.missed", "", *OFF_CENTER),
    Fault(
        "what the saved mean missed kept",
        "CENTER ? fma(deviation, rstd, -missed) : deviation * rstd",
        "deviation * rstd",
        *OFF_CENTER,
    ),
    Fault("teams not told apart", "of_teams[team_of_block][", "of_teams[0][", *WARP),
    Fault(
        "no barrier before teams are added up",
        TEAMS_LEFT,
        TEAMS_LEFT.replace("__syncthreads();", ""),
        *WARP,
        by=(RESULT, THREAD),
    ),
    Fault(
        "no barrier before the next gradient of teams",
        TEAM_ADDED + "            __syncthreads();",
        TEAM_ADDED,
        *WARP,
        by=(RESULT, THREAD),
    ),
    Fault(
        "no barrier before columns are added up",
        COLUMNS_LEFT + "    __syncthreads();",
        COLUMNS_LEFT,
        *WARP,
        by=(RESULT, THREAD),
    ),
    Fault(
        "parts laid out wrong", "partial + blockIdx.x * length", "partial + blockIdx.x * 9", *BLOCK
    ),
    Fault(
        "a part left out",
        "part < parts; part += Index(slots)",
        "part < parts - 1; part += Index(slots)",
        *BLOCK,
    ),
    Fault("rows of other residues", "residue + groups * (Index(slot)", "(Index(slot)", *GROUPS),
    Fault("parameters of residue 0", "place += residue * n", "place += 0 * n", *GROUPS),
    Fault(
        "elements not repeated",
        "place[(past + c + j) / repeat]",
        "place[(past + c + j) % repeat]",
        *("float32", 48, {"repeat": 3}),
    ),
    Fault(
        "chunks not repeated",
        "place[(past + c) / repeat]",
        "place[(past + c) % repeat]",
        *("float32", 48, {"repeat": 4}),
    ),
    Fault("a tile begun with a parameter", "unsigned(begin % repeat)", "0", *LONG_REPEATED),
    Fault("x and dy not read again", "if (!KEPT) read(i, of_row);", "", "float32", 12000),
    Fault(
        "segments too close",
        "blockIdx.x % segments * length, end",
        "blockIdx.x % segments * (length - 4), end",
        *LONG,
    ),
    Fault("moments of the first row", "of_segments + Index(r) * segments", "of_segments", *LONG),
    Fault(
        "a short segment as heavy as others",
        "A(min(length, n - thread * length))",
        "A(length)",
        *LONG,
    ),
    Fault(
        "no variance between segments",
        "share * (mine.variance + d * d)",
        "share * mine.variance",
        *LONG,
    ),
    Fault("a segment left out", "thread < segments) sums", "thread + 1 < segments) sums", *LONG),
    Fault("sums of segments laid out wrong", "(r * 3 + k) * seg", "(r * 2 + k) * seg", *LONG),
    Fault(
        "a tile of the wrong weight",
        "A(count) / A(tile + count - begin)",
        "A(0.25)",
        *LONG,
        cut=joined,
    ),
    Fault(
        "what a tile's mean has missed lost",
        "missed = (before - rough) + step;",
        "missed = 0;",
        *LONG,
        {"mean": 1e6},
        cut=joined,
    ),
    Fault(
        "the last tile left out",
        "min(Index(TILE), n - begin)",
        "n - begin < TILE ? 0 : TILE",
        *LONG,
    ),
    Fault("parameters of the first tile", "n, repeat, begin);", "n, repeat);", *LONG),
    Fault("parts of the first tile", "(unit * n + begin) / (V / S)", "unit * n / (V / S)", *LONG),
    Fault(
        "16 bits rounded twice",
        "result[j] *= parameters[j];",
        "result[j] = static_cast<A>(static_cast<T>(result[j] * parameters[j]));",
        *("bfloat16", 40),
    ),
    Fault(
        "sums in 16 bits",
        "sums[0] += g[j] * (deviation[kept][j] * of_row.rstd);",
        "sums[0] = A(static_cast<T>(sums[0] + g[j] * (deviation[kept][j] * of_row.rstd)));",
        *("float16", 3000),
    ),
    Fault(
        "sums in float16",
        SHUFFLED,
        "value = A(__half(float(value + __shfl_xor_sync(ALL_LANES, value, flip))));",
        *("float16", 40),
    ),
    Fault("a mean not written", "if (CENTER) mean[r] = of_row.mean();", "", *WARP),
    Fault("no tail", "j < count ? static_cast<A>(place[j])", "false ? A(place[j])", *ODD),
    Fault(
        "an element too many",
        "j < count ? static_cast<A>(place",
        "true ? A(place",
        *ODD,
        by=(ADDRESS,),
    ),
    Fault(
        "a chunk beyond",
        "count == V) {\n        const",
        "true) {\n        const",
        *ODD,
        by=(ADDRESS,),
    ),
    Fault(
        "a store beyond",
        "WORDS > 0 && aligned && count == V",
        "WORDS > 0 && aligned",
        *ODD,
        by=(ADDRESS,),
    ),
    Fault("a row too many", "if (r >= m) return;", "if (r > m) return;", *ODD, by=(ADDRESS,)),
    Fault(
        "a column too many",
        "if (c < width)",
        "if (c <= width)",
        *ODD,
        by=(ADDRESS,),
    ),
    Fault("shared memory too small", "2 * 3 * WARPS;", "2 * WARPS;", *BLOCK, by=(ADDRESS,)),
    Fault(
        "a vector where memory is not aligned",
        "if (aligned && count == V) {\n        const",
        "if (count == V) {\n        const",
        *("float32", 40, {"offset": 1}),
        by=(SIMULATOR,),
    ),
    Fault(
        "a thread's number that overflows",
        "WARPS == 1 ? threadIdx.x % WARP",
        "WARPS == 1 ? int(threadIdx.x % WARP) + 0x7fffffff - 0x7fffffff",
        *WARP,
        by=(UNDEFINED,),
    ),
    Fault(
        "a tile beyond a row",
        "int(min(Index(TILE), n - begin))",
        "TILE",
        "float32",
        40001,
        by=(ADDRESS,),
    ),
    Fault(
        "a segment too many",
        "thread < segments) {",
        "thread <= segments) {",
        "float32",
        40001,
        by=(ADDRESS,),
    ),
)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Fault]:
    fault: Fault = request.param
    source = calls.source()
    assert source.count(fault.old) >= 1, CHANGED
    monkeypatch.setattr(calls, "source", lambda: source.replace(fault.old, fault.new))
    monkeypatch.setattr(calls, "row_cut", fault.cut)
    calls.kernel.cache_clear()
    yield fault
    calls.kernel.cache_clear()
    cupy_on_cpu.set_order("forward")


def find(fault: Fault) -> tuple[str, str]:
    """The check that finds a fault, and what it says."""
    m = 12 if fault.n < 16000 else 3
    case = Case(fault.dtype, m, fault.n, **fault.options)  # type: ignore[arg-type]
    results = []
    for order in cupy_on_cpu.ORDERS:
        cupy_on_cpu.set_order(order)
        try:
            results.append(bits(case.run()))
            check(case)
            if fault.dtype in ("float16", "bfloat16"):
                check_rounding(case)
        except cupy.cuda.driver.CUDADriverError as error:
            return SIMULATOR, str(error)
        except AssertionError:
            return RESULT, f"in {order} order"
    return ("", "") if all(each == results[0] for each in results) else (ORDER, "")


def found_by(*checks: str) -> list[Fault]:
    return [fault for fault in FAULTS if {*fault.by}.intersection(checks)]


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="a sanitizer may end the process first")
@pytest.mark.parametrize(
    "plant", found_by(RESULT, ORDER, SIMULATOR), indirect=True, ids=lambda fault: fault.what
)
def test_a_fault_is_found(plant: Fault) -> None:
    check, message = find(plant)
    print(f"{plant.what}: found by {check} {message}")
    assert check in plant.by


@pytest.mark.parametrize("fault", found_by(*SANITIZERS.values()), ids=lambda fault: fault.what)
def test_the_code_is_there_of_which_a_sanitizer_finds_faults(fault: Fault) -> None:
    assert fault.old in calls.source(), CHANGED


@pytest.mark.parametrize(
    ("fault", "sanitizer"),
    [
        pytest.param(
            fault,
            name,
            id=f"{name}: {fault.what}",
            marks=pytest.mark.skipif(
                key not in cupy_on_cpu.SANITIZE.split(","), reason=f"runs under {name} alone"
            ),
        )
        for key, name in SANITIZERS.items()
        for fault in found_by(name)
    ],
)
def test_a_fault_is_reported(fault: Fault, sanitizer: str) -> None:
    code = f"""
import cupy_on_cpu, test_kernels
from ln_array_api_backends.cupy import calls
source = calls.source().replace({fault.old!r}, {fault.new!r})
assert source != calls.source()
calls.source = lambda: source
test_kernels.Case({fault.dtype!r}, 5, {fault.n}, **{fault.options!r}).run()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert REPORTS[sanitizer] in result.stderr, result.stderr
    assert "kernel.cu" in result.stderr


def test_the_table_of_faults_is_that_of_these() -> None:
    rows = [f"| {fault.what} | {', '.join(fault.by)} |" for fault in FAULTS]
    text = (cupy_on_cpu.HERE / "README.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| fault | found by |\n|---|---|\n")
    assert table.split("\n\n")[0].splitlines() == rows, "\n".join(rows)
