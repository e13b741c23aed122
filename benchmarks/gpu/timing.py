"""Time a case with every contender in turn: calls as users make them, and replayed graphs.

A call is timed by CUDA events before and after it, so for small arrays this is the time of Python.
A CUDA graph holds the calls for all sets of inputs; its replay takes the time of the device. Sets
of inputs are used in turn, and are together larger than L2.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import cupy

from .cases import ITEMSIZE, Case, Inputs, minimum_bytes
from .contenders import OURS, Call, Contender, as_array
from .machine import properties

SETS_AT_MOST = 64
#: Seconds that each contender's rounds may take for one case, and how many rounds there are.
SECONDS, FEWEST, MOST = 0.2, 5, 50
#: Calls in a graph, at least, so that the replay itself does not count.
CALLS_IN_GRAPH = 16
#: Bytes of a case from which the host takes no part of a call's time that could be measured.
LARGE_BYTES = 256 << 20
#: How far results may differ, as a share of the largest: enough for a wrong call to be noticed.
TOLERANCE = {"bfloat16": 5e-2, "float32": 1e-3}


class Measured(NamedTuple):
    """Seconds of a case by contender, and errors."""

    case: Case
    calls: dict[str, float]
    graphs: dict[str, float]
    """Empty where calls take so long that a graph would tell the same."""
    failures: dict[str, str]

    def best(self, name: str) -> float | None:
        """Return the time on the device, as far as it is known."""
        return self.graphs.get(name, self.calls.get(name))


def measure(case: Case, contenders: Mapping[str, Contender]) -> Measured:
    """Time a case with every contender; those that fail are left out, with the reason."""
    stream = cupy.cuda.Stream(non_blocking=True)
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(stream)
        if any(each.uses_torch for each in contenders.values()):
            import torch

            stack.enter_context(torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)))
        sets = [Inputs(case, number) for number in range(number_of_sets(case))]
        calls: dict[str, list[Call]] = {}
        expected: Any = None
        for name, contender in contenders.items():
            try:
                call_of = contender.prepare(case)
                calls[name] = [call_of(each) for each in sets]
                results, *_ = [call() for call in calls[name]]
                stream.synchronize()
                if name == OURS:
                    expected = results
                elif contender.computes and expected is not None:
                    check_results(case, results, expected)
            except Exception as error:  # another's failure must not end the comparison
                calls.pop(name, None)
                failures[name] = summary(error)
        direct = medians(calls, stream)
        graphs: dict[str, list[Call]] = {}
        if minimum_bytes(case) < LARGE_BYTES:
            for name in calls:
                try:
                    capture = capture_torch if contenders[name].uses_torch else capture_cupy
                    graphs[name] = [capture(repeated(calls[name]), stream)]
                except Exception as error:
                    failures[name] = f"in a graph: {summary(error)}"
        replayed = medians(graphs, stream)
        for name in replayed:
            replayed[name] /= len(repeated(calls[name]))
        stream.synchronize()
    return Measured(case, direct, replayed, failures)


def number_of_sets(case: Case) -> int:
    """Return how many sets of inputs are four times as large as L2."""
    return min(SETS_AT_MOST, 1 + 4 * properties()["l2CacheSize"] // minimum_bytes(case))


def repeated(calls: list[Call]) -> list[Call]:
    """Return all calls, repeated so often that a graph of them is long enough."""
    return calls * -(-CALLS_IN_GRAPH // len(calls))


def capture_cupy(calls: Sequence[Call], stream: Any) -> Call:
    """Capture calls of CuPy in a graph whose memory is a pool of its own."""
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        for call in calls:
            call()  # the pool gets what the calls need, as nothing can be allocated in a capture
        stream.synchronize()
        stream.begin_capture()
        try:
            for call in calls:
                call()
        finally:
            graph = stream.end_capture()

    def replay(pool: Any = pool) -> None:  # the graph writes to the pool's memory
        graph.launch(stream)

    return replay


def capture_torch(calls: Sequence[Call], stream: Any) -> Call:
    """Capture calls of torch in a graph."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for call in calls:
            call()
    replay: Call = graph.replay
    return replay


def medians(calls: Mapping[str, Sequence[Call]], stream: Any) -> dict[str, float]:
    """Return the median seconds of a call for each contender; they take turns."""
    if not calls:
        return {}
    slowest = max(_seconds(each[0], stream) for each in calls.values())
    longest = slowest * max(map(len, calls.values()))
    rounds = min(MOST, max(FEWEST, int(SECONDS / max(longest, 1e-6))))
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, each in calls.items():
            for call in each:
                start, end = cupy.cuda.Event(), cupy.cuda.Event()
                start.record(stream)
                call()
                end.record(stream)
                events[name].append((start, end))
        stream.synchronize()
    elapsed: Callable[..., float] = cupy.cuda.get_elapsed_time
    return {
        name: statistics.median(elapsed(*pair) for pair in pairs) / 1e3
        for name, pairs in events.items()
    }


def _seconds(call: Call, stream: Any) -> float:
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record(stream)
    call()
    end.record(stream)
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) / 1e3


def check_results(case: Case, results: Any, expected: Any) -> None:
    """Raise ValueError if y, or dx and dgamma, are far from those of this library."""
    results = results if isinstance(results, list | tuple) else [results]
    names = ("y",) if case.which == "forward" else ("dx", "dgamma")
    for name, result, right in zip(names, results, expected, strict=False):
        ours, theirs = (as_array(each) for each in (right, result))
        largest = float(cupy.abs(ours).max())
        difference = float(cupy.abs(ours - theirs).max())
        if not difference <= TOLERANCE[case.dtype] * largest:  # NaN included
            raise ValueError(f"its {name} differs by {difference:.3g}, of at most {largest:.3g}")


def does_not_fit(case: Case) -> str:
    """Return why the device's memory is too small for a case; empty if it is not."""
    m, n = case.shape
    free, _ = cupy.cuda.runtime.memGetInfo()
    # x, dy and dx or y, the results of two contenders that keep y, and float32 while x is made.
    least = m * n * (5 * ITEMSIZE[case.dtype] + 8)
    return "" if least <= free else f"needs {least >> 30} GiB, {free >> 30} are free"


def release() -> None:
    """Return unused memory to the device."""
    import gc

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def summary(error: BaseException) -> str:
    """Return an error in one line."""
    lines = [each for each in str(error).splitlines() if each.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:160] if lines else ''}"
