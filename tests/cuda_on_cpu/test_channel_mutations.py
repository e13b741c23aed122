"""Faults planted in the kernels over channels, each of which some check has to find.

As in `test_mutations`: README.md tells of all.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import cupy
import cupy_on_cpu
import pytest
from ln_array_api_backends.cupy import channels
from test_channels import Case, Shape, check
from test_kernels import bits
from test_mutations import ADDRESS, ORDER, REPORTS, RESULT, SANITIZERS, SIMULATOR, THREAD, UNDEFINED


class Fault(NamedTuple):
    """What is wrong, the code that makes it so, arrays that show it, and what finds it."""

    what: str
    old: str
    new: str
    dtype: str
    shape: Shape
    mean: float = 3
    by: tuple[str, ...] = (RESULT,)


#: By planes of one part, of several; by columns, of one channel each, of a channel in several.
PLANE, PARTS = ("float32", (3, 2, 100)), ("float32", (5, 3, 3001))
COLUMN, FOLDED = ("float32", (70, 12, 3)), ("float32", (1300, 3, 1))
SHORT_RUNS, SIDE_BY_SIDE = ("float32", (9, 2, 100)), ("float32", (70, 36, 1))
LEFT = "of_teams.set(threadIdx.x, j, moments_of(column, A(epsilon)));\n        }\n    }\n"
SUMS_LEFT = "of_teams[k].at(threadIdx.x, j) = sums[k][j];\n"
BARRIER = "    __syncthreads();\n"

FAULTS = (
    Fault(
        "no barrier before moments of columns are merged",
        LEFT + BARRIER,
        LEFT,
        *COLUMN,
        by=(RESULT, THREAD),
    ),
    Fault(
        "no barrier before sums of columns are added up",
        SUMS_LEFT + BARRIER,
        SUMS_LEFT,
        *COLUMN,
        by=(RESULT, THREAD),
    ),
    Fault(
        "a barrier that only threads with rows reach",
        "if (count > 0) {\n#pragma unroll 1",
        "if (count > 0) {\n__syncthreads();\n#pragma unroll 1",
        *("float32", (3, 12, 3)),
        by=(SIMULATOR,),
    ),
    Fault("a run that does not end", "place += wrap;", "", *SHORT_RUNS),
    Fault("a stride that is too short", "place += advance;", "place += ahead;", *SHORT_RUNS),
    Fault(
        "parts too close",
        "blockIdx.x / channels * length",
        "blockIdx.x / channels * (length - 1)",
        *PARTS,
    ),
    Fault("no tail of a plane", "for (; word < end; word += THREADS)", "if (false)", *PLANE),
    Fault("no tail of a column", "for (; r < own.end; r += own.teams)", "if (false)", *COLUMN),
    Fault(
        "elements of the next channel",
        "(batch * channels + channel) * run + in_run",
        "(batch * channels + (channel + 1) % channels) * run + in_run",
        *PLANE,
    ),
    Fault(
        "parameters of the first channel",
        "channel = run - quotient(run, channels) * channels",
        "channel = 0",
        *PLANE,
    ),
    Fault("parameters of the channel before", "left = spatial - past", "left = spatial", *COLUMN),
    Fault("columns of the next channel", "first(channel * spatial)", "first(channel)", *COLUMN),
    Fault("a fold left out", "entries(parts * per_line)", "entries(parts * spatial)", *FOLDED),
    Fault(
        "a short part as heavy as others",
        "count = min(length, rows - (column >= ragged) - part * length)",
        "count = length",
        *FOLDED,
    ),
    Fault(
        "a team as heavy as others",
        "(height - team + own.teams - 1) / own.teams",
        "(height + own.teams - 1) / own.teams",
        *SIDE_BY_SIDE,
    ),
    Fault(
        "a team left out", "team < own.teams; ++team)\n", "team < own.teams - 1; ++team)\n", *COLUMN
    ),
    Fault(
        "no variance between means",
        "((other.variance - all.variance) + difference * difference * (1 - share))",
        "(other.variance - all.variance)",
        *PARTS,
    ),
    Fault(
        "no variance between threads",
        "share * (mine.variance + d * d)",
        "share * mine.variance",
        *PARTS,
    ),
    Fault(
        "what a mean has missed lost",
        "all.missed = (before - all.rough) + step;",
        "all.missed = 0;",
        *PARTS,
        mean=1e6,
    ),
    Fault("what the mean missed kept", "- rough[c] - missed[c]", "- rough[c]", *PLANE, mean=1e4),
    Fault(
        "what the saved mean missed kept",
        "rstds[c], -missed[c]",
        "rstds[c], A(0)",
        *PLANE,
        mean=1e4,
    ),
    Fault(
        "what it missed kept in dgamma",
        "sums[PRODUCT] - of_channel.missed * sums[DY]",
        "sums[PRODUCT]",
        *PLANE,
        mean=1e5,
    ),
    Fault("sums laid out wrong", "of_parts[k * parts * line + place]", "of_parts[place]", *PLANE),
    Fault(
        "moments in float16",
        "square += d * d;",
        "square = A(__half(float(square + d * d)));",
        *("float16", (5, 3, 3001)),
    ),
    Fault(
        "sums in float16",
        "here[PRODUCT][j] += d[j] * (deviation * rstds[j]);",
        "here[PRODUCT][j] = A(__half(float(here[PRODUCT][j] + d[j] * (deviation * rstds[j]))));",
        *("float16", (70, 12, 3)),
    ),
    Fault(
        "16 bits rounded twice",
        "values[j] = x_hat * gammas[c] + betas[c];",
        "values[j] = A(T(x_hat * gammas[c])) + betas[c];",
        *("bfloat16", (70, 12, 3)),
    ),
    Fault("a variance not written", "var[channel] = scalbn", "if (false) var[0] = scalbn", *PLANE),
    Fault(
        "the last rows not normalised",
        "r < own.end; r += own.teams) {\n            A values[W];",
        "r < own.end - 1; r += own.teams) {\n            A values[W];",
        *COLUMN,
    ),
    Fault(
        "columns that are not there",
        "rows - (column >= ragged)) : begin",
        "rows) : begin",
        *FOLDED,
        by=(ADDRESS,),
    ),
    Fault("a line too long", "column < line ? min", "true ? min", *COLUMN, by=(ADDRESS,)),
    Fault(
        "a word beyond",
        "for (; word < end; word",
        "for (; word <= end; word",
        *PLANE,
        by=(ADDRESS,),
    ),
    Fault(
        "a channel too many",
        "if (channel >= channels)",
        "if (channel > channels)",
        *PLANE,
        by=(UNDEFINED,),
    ),
    Fault(
        "a vector where memory is not aligned",
        "reinterpret_cast<size_t>(place) % WORD_ALIGNMENT<T, W> == 0",
        "true",
        *("float32", (3, 2, 100)),
        by=(SIMULATOR,),
    ),
)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Fault]:
    fault: Fault = request.param
    source = channels.source()
    assert source.count(fault.old) >= 1, "the code has changed; plant this fault anew"
    monkeypatch.setattr(channels, "source", lambda: source.replace(fault.old, fault.new))
    channels.kernel.cache_clear()
    yield fault
    channels.kernel.cache_clear()
    cupy_on_cpu.set_order("forward")


def find(fault: Fault) -> str:
    """The check that finds a fault."""
    case = Case(fault.dtype, fault.shape, mean=fault.mean, offset=SIMULATOR in fault.by)
    results = []
    for order in cupy_on_cpu.ORDERS:
        cupy_on_cpu.set_order(order)
        try:
            results.append(bits(case.run()))
            check(case)
        except cupy.cuda.driver.CUDADriverError:
            return SIMULATOR
        except AssertionError:
            return RESULT
    return "" if all(each == results[0] for each in results) else ORDER


def found_by(*checks: str) -> list[Fault]:
    return [fault for fault in FAULTS if {*fault.by}.intersection(checks)]


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="a sanitizer may end the process first")
@pytest.mark.parametrize(
    "plant", found_by(RESULT, ORDER, SIMULATOR), indirect=True, ids=lambda fault: fault.what
)
def test_a_fault_is_found(plant: Fault) -> None:
    assert find(plant) in plant.by


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
import cupy_on_cpu, test_channels
from ln_array_api_backends.cupy import channels
source = channels.source().replace({fault.old!r}, {fault.new!r})
assert source != channels.source()
channels.source = lambda: source
test_channels.Case({fault.dtype!r}, {fault.shape!r}, mean={fault.mean}).run()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert REPORTS[sanitizer] in result.stderr, result.stderr
    assert "kernel.cu" in result.stderr


def test_the_table_of_faults_is_that_of_these() -> None:
    rows = [f"| {fault.what} | {', '.join(fault.by)} |" for fault in FAULTS]
    text = (cupy_on_cpu.HERE / "README.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| fault in a kernel over channels | found by |\n|---|---|\n")
    assert table.split("\n\n")[0].splitlines() == rows, "\n".join(rows)
