"""The memory accesses of the kernels are as designed, and faults are noticed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from cases import Case
from counters import Traffic
from fake_cupy import CuPyBackend, Device, Launch, launch_config, patched_device, rows_dispatch
from source_change import change_source

#: The limit allows for a row's first element and statistics, which each of its warps reads.
SLACK = 1.02
#: Full chunks of 16 bytes and full sectors; rows of other lengths cannot be coalesced.
CASES = [
    Case(dtype, m, n, center=center)
    for dtype in ("float16", "bfloat16", "float32", "float64")
    for m, n, center in (
        (37, 64, True),
        (9, 512, False),
        (9, 2048, True),
        (4, 12288, True),
        (2, 49152, True),
    )
]


@cache
def launches_of(case: Case) -> tuple[dict[str, int], list[Launch]]:
    """Return the same as `launches`, for unchanged kernels."""
    return launches(case)


def launches(case: Case) -> tuple[dict[str, int], list[Launch]]:
    """Return the sizes of all arrays, by their names in the traffic, and the launches."""
    with patched_device(Device()) as device:
        results = case.run(CuPyBackend(), device.memory.array)
    names = {array.data.ptr: name for name, array in results.items() if array is not None}
    sizes = {}
    for memory in device.memory.allocations:
        name = names.get(memory.begin, memory.name)
        sizes[name] = memory.bytes.size
        for launch in device.launches:
            for traffics in (launch.counters.reads, launch.counters.writes):
                if memory.name in traffics:
                    traffics[name] = traffics.pop(memory.name)
    return sizes, device.launches


def parameters(launch: Launch) -> list[str]:
    """Return a kernel's template parameters."""
    return launch.expression.partition("<")[2][:-1].split(", ")


def sweeps(launch: Launch) -> int:
    """Return how often a kernel reads x and dy: once, except where not kept in registers."""
    return 2 if launch.name == "rows_backward" and parameters(launch)[6] == "false" else 1


def problems(launched: tuple[dict[str, int], list[Launch]]) -> list[str]:
    """Return where accesses of kernels exceed their design."""
    sizes, each = launched
    return [problem for launch in each for problem in problems_of(launch, sizes)]


def problems_of(launch: Launch, sizes: dict[str, int]) -> Iterator[str]:
    counters = launch.counters
    shared = max(counters.shared_reads.ways, counters.shared_writes.ways)
    if shared > 2:
        yield f"{launch.name}: {shared}-way bank conflict"
    if counters.barriers != barriers(launch) * counters.blocks:
        yield f"{launch.name}: {counters.barriers / counters.blocks} barriers for each block"
    for kind, traffics in (("reads", counters.reads), ("writes", counters.writes)):
        for name, traffic in traffics.items():
            yield from problems_of_array(f"{launch.name} {kind} {name}", launch, traffic)
            if not name.startswith("allocation") and traffic.distinct != sizes[name]:
                yield f"{launch.name} {kind} {traffic.distinct} of {sizes[name]} bytes of {name}"


def problems_of_array(what: str, launch: Launch, traffic: Traffic) -> Iterator[str]:
    times = traffic.bytes / traffic.distinct
    if "reads" not in what:
        most = 1.0
    elif what.endswith((" x", " dy")):
        most = sweeps(launch) * SLACK
    else:
        most = np.inf  # parameters and statistics are in caches
    if times > most:
        yield f"{what} {times:.2f} times"
    # Partial sums of 16-bit rows are 32 bytes for each thread, stored in halves.
    halves = "_backward writes allocation" in what and "<__" in launch.expression
    most_sectors = traffic.least_sectors * (2 if halves else 1)
    # Partial results of segments are few, and at any offset.
    if launch.name.startswith("segments_") and "reads allocation" in what:
        most_sectors += traffic.requests
    # The first elements of rows that share a warp are in sectors of their own, and statistics of
    # these rows in up to two.
    if launch.name.startswith("rows_") and what.endswith((" x", " mean", " rstd")):
        rows_of_a_warp = max(1, launch_config.WARP // row_threads(launch))
        most_sectors += (rows_of_a_warp - 1) * traffic.requests
    if traffic.sectors > most_sectors:
        yield f"{what} in {traffic.sectors / traffic.least_sectors:.1f} times the sectors"


def row_threads(launch: Launch) -> int:
    """Return how many threads a row has: the first number."""
    return int(next(filter(str.isdigit, parameters(launch))))


def shares_a_block(launch: Launch) -> bool:
    """Return whether a row has a warp or less."""
    return row_threads(launch) <= launch_config.WARP


def barriers(launch: Launch) -> int:
    """Return the barriers of a block with one row or tile: for reductions and shared memory."""
    given = parameters(launch)
    if launch.name == "rows_forward":
        return 0 if shares_a_block(launch) else 1 + (given[5] == "true")
    if launch.name == "rows_backward":
        return 4 if shares_a_block(launch) else 1  # two for each gradient, or one for each row
    return {
        "segment_moments": 2,
        "segments_forward": 3,
        "segment_sums": 1,
        "segments_backward": 1,
        "reduce_partials": 1,
    }[launch.name]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_accesses_are_as_designed(case: Case) -> None:
    assert problems(launches_of(case)) == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_in_registers_move_the_least_bytes(case: Case) -> None:
    """These are each input once, each output once, and partial sums."""
    wide = 8 if case.dtype == "float64" else 4
    for launch in launches_of(case)[1]:
        if launch.name not in ("rows_forward", "rows_backward") or sweeps(launch) > 1:
            continue
        arrays = 2 if launch.name == "rows_forward" else 3
        partials = 0 if launch.name == "rows_forward" else 2 * launch.grid[0] * case.n
        size = launch_config.ITEMSIZE[case.dtype]
        least = arrays * case.m * case.n * size + ((1 + case.center) * case.m + partials) * wide
        counters = launch.counters
        moved = sum(
            traffic.bytes
            for traffics in (counters.reads, counters.writes)
            for name, traffic in traffics.items()
            if name not in ("gamma", "beta")
        )
        assert least <= moved <= SLACK * least


def test_rows_that_do_not_begin_at_a_sector() -> None:
    """Most are loaded element by element, by the same threads: caches have to help."""
    case = Case("float32", 8, 1601)
    forward = launches(case)[1][0].counters.reads["x"]
    assert forward.distinct == case.m * case.n * 4
    assert forward.bytes <= SLACK * forward.distinct
    assert 3 < forward.sectors / forward.least_sectors < 4


class Fault(NamedTuple):
    """Code that wastes time but gives right results, and how the counters show it."""

    what: str
    old: str
    new: str
    case: Case
    seen: str


BLOCK, SHORT = Case("float32", 9, 1536), Case("float32", 37, 200)
FAULTS = (
    Fault(
        "contiguous chunks of a thread",
        "(i * THREADS + thread) * VEC",
        "(thread * CHUNKS + i) * VEC",
        BLOCK,
        "rows_forward reads x in",
    ),
    Fault(
        "elements loaded one by one",
        "const bool aligned = is_aligned<VEC>(ptr)",
        "const bool aligned = false",
        BLOCK,
        "rows_forward reads x in",
    ),
    Fault(
        "partial sums stored one by one",
        "if (aligned && n - c >= S)",
        "if (false)",
        BLOCK,
        "rows_backward writes allocation",
    ),
    Fault(
        "a row read again",
        "normalise(row, row_stats, gammas, betas, y + r * n);",
        "const RowTile<T, THREADS, CHUNKS> again(x_row, int(n), thread_group.thread());"
        "normalise(again, row_stats, gammas, betas, y + r * n);",
        BLOCK,
        "rows_forward reads x 2.00 times",
    ),
    Fault(
        "a result written twice",
        "store(y + c, count, result);",
        'store(y + c, count, result); asm volatile("" ::: "memory");store(y + c, count, scales);',
        BLOCK,
        "rows_forward writes",
    ),
    Fault("conflicting banks", "c + c / WARP;", "c;", SHORT, "rows_backward: 4-way bank conflict"),
    Fault(
        "a barrier too many",
        "buffer ^= 1;",
        "buffer ^= 1; __syncthreads();",
        BLOCK,
        "rows_forward: 4.0 barriers for each block",
    ),
    Fault(
        "half of the parameters",
        "if (betas.ptr)",
        "if (betas.ptr && c < row.n / 2)",
        BLOCK,
        "rows_forward reads 3072 of 6144 bytes of beta",
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_is_noticed(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(launches_of(fault.case)) == []
    change_source(monkeypatch, rows_dispatch, fault.old, fault.new)
    found = problems(launches(fault.case))
    assert any(fault.seen in problem for problem in found), found
