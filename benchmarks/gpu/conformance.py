"""The conformance suite on CuPy arrays, shared by several processes.

Most of its time goes to compiling kernels, about a second for each. So each process runs a part of
the tests, and compiles the kernels that these need; CuPy 14.2 caches compiled kernels on disk, for
all of them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from . import ROOMS, ROOT

PROCESSES_AT_MOST = 8
#: Memory of the device for each process: that of a context, and that of the largest test.
BYTES_PER_PROCESS = 2 << 30
#: In a sample, one test of so many is run.
SAMPLE = 8
RESULT = re.compile(r"^(.*::.*) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) +\[")
#: Seconds between lines that say how far the suite is.
INTERVAL = 5.0
SECONDS_TO_STOP = 5.0


class Verdict(NamedTuple):
    """The result of the suite."""

    passed: bool
    """Whether all tests that were to run have run, and none failed."""
    summary: str
    seconds: float
    failures: tuple[str, ...]
    """Names of tests that failed."""


class Process:
    """A pytest process whose lines are read as they are printed."""

    def __init__(self, shard: str, backend: str, arguments: Sequence[str]) -> None:
        paths = [*map(str, ROOMS), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        suite = ("--pyargs", "ln_array_api_conformance", "--library", "cupy", "--backend", backend)
        plugins = ("-p", "ln_array_api_conformance.plugin", "-p", "gpu.shard")
        options = ("-v", "--tb=short", "--shard", shard, "-c", os.devnull, "--rootdir", str(ROOT))
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pytest", *plugins, *suite, *options, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Interrupt pytest, so that it reports what it has found so far."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.lines.extend(lines)

    @property
    def results(self) -> list[tuple[str, str]]:
        """Return the names of tests that have run, and how each ended."""
        found = (RESULT.match(line) for line in self.lines)
        return [(each[1].rpartition("/")[2], each[2]) for each in found if each]

    def report(self) -> str:
        """Return pytest's report of failures, or all its output if there is none."""
        text = "".join(self.lines)
        for heading in ("= ERRORS =", "= FAILURES ="):
            if heading in text:
                return text[text.index(heading) :]
        return text


def number_of_processes() -> int:
    """Return the number of processors, up to a limit and the memory of the device."""
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    most = min(PROCESSES_AT_MOST, os.cpu_count() or 1, free // BYTES_PER_PROCESS)
    return max(1, int(most))


def run(
    seconds: float, *, backend: str = "cupy", sample: bool = False, arguments: Sequence[str] = ()
) -> Verdict:
    """Run the suite, or a sample of it, for so many seconds at most. Prints progress."""
    number, start = number_of_processes(), time.monotonic()
    step = number * (SAMPLE if sample else 1)
    what = f"one test of {SAMPLE}" if sample else "all tests"
    print(f"conformance of backend {backend}: {what}, {number} processes", flush=True)
    processes = [Process(f"{k}/{step}", backend, arguments) for k in range(number)]
    told, stopped = start, False
    while any(each.process.poll() is None for each in processes):
        time.sleep(0.1)
        now = time.monotonic()
        if now - start > seconds:
            stopped = True
            for each in processes:
                each.stop()
            break
        if now - told > INTERVAL:
            told = now
            print(f"  {now - start:3.0f} s: {_counts(processes)}", flush=True)
    for each in processes:
        each.process.wait()
        each.thread.join()
    took = time.monotonic() - start
    codes = [each.process.returncode for each in processes]
    failures = tuple(
        name
        for each in processes
        for name, result in each.results
        if result in ("FAILED", "ERROR", "XPASS")
    )
    # 5 is pytest's code for no tests, which a process may have where there are few.
    passed = not failures and set(codes) <= {0, 5} and 0 in codes
    summary = _counts(processes) + (f", stopped after {took:.0f} s" if stopped else "")
    for each, code in zip(processes, codes, strict=True):
        if code not in (0, 5):
            print(each.report(), flush=True)
    print(f"conformance {'passed' if passed else 'FAILED'} in {took:.0f} s: {summary}", flush=True)
    return Verdict(passed, summary, took, failures)


def _counts(processes: Sequence[Process]) -> str:
    counts = Counter(result for each in processes for _, result in each.results)
    return ", ".join(f"{number} {result.lower()}" for result, number in sorted(counts.items())) or (
        "no test has run"
    )
