"""Test conformance and speed of the CUDA kernels on a GPU, and write docs/gpu-report.md.

Runs from a checkout that is not installed. The exit status is 0; 1 where conformance or this
library failed; 2 where something is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import ROOT, conformance, machine
from .cases import QUICK, all_cases, cases_of

#: Seconds for everything, and how many of them the suite may take.
SECONDS, QUICK_SECONDS = 480, 120
SUITE_SECONDS, QUICK_SUITE_SECONDS = 300, 50
#: Seconds that the suite may take if nothing else is run.
SUITE_ALONE_SECONDS = 360
SOMETHING_MISSING = 2


def shape_of(text: str) -> tuple[int, int]:
    """Parse a shape such as 4096x768."""
    m, n = map(int, text.split("x"))
    return m, n


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="gpu", description=__doc__.partition("\n")[0])
    made.add_argument("--output", type=Path, default=ROOT / "docs" / "gpu-report.md")
    made.add_argument("--quick", action="store_true", help="two minutes: a sample, three shapes")
    made.add_argument("--conformance-only", action="store_true", help="run the whole suite only")
    made.add_argument("--backend", choices=("cupy", "generic"), default="cupy")
    made.add_argument("--shapes", type=shape_of, nargs="+", metavar="MxN")
    made.add_argument("--seconds", type=float, help="for everything")
    made.add_argument("tests", nargs="*", help="for pytest, after --")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return the exit status."""
    start, given = time.monotonic(), parser().parse_args(arguments)
    try:
        machine.check_packages()
        machine.check_gpu()
    except machine.MissingError as error:
        print(f"make gpu cannot run: {error}", file=sys.stderr)
        return SOMETHING_MISSING
    print(f"{machine.device_name()}; {machine.driver()}; {machine.versions()}", flush=True)
    if given.conformance_only:
        seconds = given.seconds or SUITE_ALONE_SECONDS
        verdict = conformance.run(seconds, backend=given.backend, arguments=given.tests)
        return int(not verdict.passed)
    from .comparison import compare  # imports CuPy, so it comes after the checks

    seconds = given.seconds or (QUICK_SECONDS if given.quick else SECONDS)
    limit = min(seconds, QUICK_SUITE_SECONDS if given.quick else SUITE_SECONDS)
    verdict = conformance.run(limit, sample=given.quick, arguments=given.tests)
    shapes = tuple(given.shapes or (QUICK if given.quick else ()))
    cases = cases_of(shapes) if shapes else all_cases()
    ran = compare(cases, start + seconds, given.output, verdict, sample=given.quick)
    return int(not (ran and verdict.passed))


if __name__ == "__main__":
    sys.exit(main())
