"""Plant one fault at a time in a copy of the library, and check that a test fails.

``make mutants`` runs this, with options in ``ARGUMENTS=``. A fault is caught if a test fails, but
not if the tests cannot run. First the same tests run without a fault, and must pass.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fault import NUMPY, ROOT, Fault
from faults import FAULTS

#: The parts of the repository that the tests need.
PARTS = ("ln_array_api", "backends", "conformance", "tests", "pyproject.toml")
#: Decorators of functions that Numba compiles.
COMPILED = ("@njit", "@intrinsic", "@overload")
#: Most seconds for the tests of one fault.
LIMIT = 900

CAUGHT, MISSED, ERROR = "caught", "NOT CAUGHT", "error"


class Outcome(NamedTuple):
    """The outcome of a fault."""

    fault: Fault
    result: str
    """`CAUGHT`, `MISSED` or `ERROR`."""
    by: str
    """The first test that failed, or what went wrong."""
    seconds: float


class Copy:
    """A copy of the library and its tests, with a cache for Numba, for one fault at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder / "copy", folder / "cache"
        self.folder.mkdir(parents=True)
        ignore = shutil.ignore_patterns("__pycache__", "*.nb[ic]", ".hypothesis")
        for part in PARTS:
            source, target = ROOT / part, self.folder / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=ignore)
            else:
                shutil.copy2(source, target)

    def pytest(self, arguments: tuple[str, ...], cache: Path) -> tuple[int, str]:
        """Run tests up to the first failure; return the exit code and the output."""
        folders = [self.folder, self.folder / "backends", self.folder / "conformance"]
        environment = {
            **os.environ,
            "COLUMNS": "240",  # to print full names of tests
            "NUMBA_CACHE_DIR": str(cache),
            "PYTHONDONTWRITEBYTECODE": "1",  # bytecode may be stale if written within a second
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
        }
        environment.pop("PYTEST_ADDOPTS", None)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "--no-header"]
        try:
            result = subprocess.run(
                [*command, "-p", "no:cacheprovider", *arguments],
                capture_output=True,
                text=True,
                cwd=self.folder,
                env=environment,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return -1, f"took more than {LIMIT} s"
        return result.returncode, result.stdout + result.stderr

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[Path]:
        """Plant a fault within the context; yield the folder of Numba's cache for it."""
        file = self.folder / fault.file
        text, times = file.read_text(encoding="utf-8"), file.stat()
        # The cache does not notice changes of functions that are inlined in those of other files.
        compiles = fault.file.startswith(NUMPY) and any(word in text for word in COMPILED)
        cache = self.cache.with_name("cache of a fault") if compiles else self.cache
        file.write_text(fault.planted(text), encoding="utf-8")
        try:
            yield cache
        finally:
            file.write_text(text, encoding="utf-8")
            os.utime(
                file, ns=(times.st_atime_ns, times.st_mtime_ns)
            )  # or everything would be recompiled
            if cache != self.cache:
                shutil.rmtree(cache, ignore_errors=True)


def first_failure(output: str) -> str:
    """Return the name of the first failed test, or an empty string."""
    for line in output.splitlines():
        if line.startswith("FAILED "):
            path, _, test = line.removeprefix("FAILED ").partition(" - ")[0].partition("::")
            return f"{path.rpartition('/')[2]}::{test}"
    return ""


def last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "").strip()


def run(fault: Fault, copy: Copy) -> Outcome:
    """Plant a fault in a copy, and run the tests that have to catch it."""
    begin = time.perf_counter()
    try:
        with copy.planted(fault) as cache:
            code, output = copy.pytest(fault.by, cache)
    except (OSError, ValueError) as error:
        return Outcome(fault, ERROR, str(error), time.perf_counter() - begin)
    seconds, failed = time.perf_counter() - begin, first_failure(output)
    if code == 0:
        return Outcome(fault, MISSED, "", seconds)
    if code == 1 and failed:
        return Outcome(fault, CAUGHT, failed, seconds)
    return Outcome(fault, ERROR, f"exit code {code}: {last_line(output)}", seconds)


def healthy(arguments: tuple[str, ...], copy: Copy) -> str:
    """Run tests without a fault; return the failure, or an empty string if they pass."""
    code, output = copy.pytest(arguments, copy.cache)
    if code == 0:
        return ""
    return f"{' '.join(arguments)}: {first_failure(output) or last_line(output)}"


def table(outcomes: Iterable[Outcome]) -> str:
    """Format all outcomes in Markdown."""
    lines = ["| fault | file | result | by | s |", "|---|---|---|---|---:|"]
    for fault, result, by, seconds in outcomes:
        cells = fault.name, fault.file, result, by.replace("|", "\\|"), f"{seconds:.0f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the faults that the command line selects; return 1 if one is not caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="faults with TEXT in name or file"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many faults at the same time")
    parser.add_argument(
        "--no-baseline", action="store_true", help="do not run tests without faults"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the table")
    options = parser.parse_args()
    faults = [each for each in FAULTS if options.only in each.name or options.only in each.file]
    if not faults:
        parser.error(f"no fault has {options.only!r} in its name or in that of its file")
    with tempfile.TemporaryDirectory(prefix="mutants") as temporary:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for job in range(max(options.jobs, 1)):
            copies.put(Copy(Path(temporary) / str(job)))

        def with_a_copy(call: Callable[[Any, Copy], Any], argument: Any) -> Any:
            copy = copies.get()
            try:
                return call(argument, copy)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
            if not options.no_baseline:
                selections = list(dict.fromkeys(each.by for each in faults))
                print(f"{len(selections)} selections of tests without a fault", flush=True)
                checks = [pool.submit(with_a_copy, healthy, each) for each in selections]
                wrong = [each for each in (check.result() for check in checks) if each]
                if wrong:
                    print("\n".join(["these fail without a fault:", *wrong]))
                    return 1
            running = [pool.submit(with_a_copy, run, each) for each in faults]
            for count, future in enumerate(as_completed(running), 1):
                fault, result, by, seconds = future.result()
                progress = f"{count}/{len(faults)} {result}: {fault.name}"
                print(f"{progress} ({by or 'no test failed'}, {seconds:.0f} s)", flush=True)
            outcomes = [each.result() for each in running]
    text = table(outcomes)
    print(f"\n{text}")
    if options.output is not None:
        options.output.write_text(f"{text}\n", encoding="utf-8")
    missed = [each for each in outcomes if each.result != CAUGHT]
    print(f"\n{len(outcomes) - len(missed)} of {len(outcomes)} faults are caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
