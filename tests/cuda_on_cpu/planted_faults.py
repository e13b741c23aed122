"""Faults that are planted in the kernels, each of which a check has to find.

A sanitizer ends the process, so each fault that one reports runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import cupy_on_cpu
import pytest
from ln_array_api_backends.cupy.launch_config import RowSplit, split_row

RESULT, ORDER, SIMULATOR = "a wrong result", "bits that depend on the order", "the simulator"
SANITIZERS = {
    "address": "AddressSanitizer",
    "undefined": "UndefinedBehaviorSanitizer",
    "thread": "ThreadSanitizer",
}
ADDRESS, UNDEFINED, THREAD = SANITIZERS.values()
#: How a report begins.
REPORTS = {ADDRESS: "AddressSanitizer", UNDEFINED: "runtime error", THREAD: "data race"}


class Fault(NamedTuple):
    """What is wrong, the code that makes it so, arrays that show it, and what finds it."""

    what: str
    old: str
    new: str
    dtype: str
    shape: Any
    """The length of rows, or the shape of x with channels."""
    options: Mapping[str, Any]
    split: Callable[[str, int, int], RowSplit]
    by: tuple[str, ...]


def faults(
    dtype: str,
    shape: Any,
    planted: Mapping[str, tuple[str, str]],
    *,
    by: tuple[str, ...] = (RESULT,),
    split: Callable[[str, int, int], RowSplit] = split_row,
    **options: Any,
) -> list[Fault]:
    """Return faults that the same arrays show, from the old and new code of each."""
    return [
        Fault(what, old, new, dtype, shape, options, split, by)
        for what, (old, new) in planted.items()
    ]


def found_by(some: Iterable[Fault], *checks: str) -> list[Fault]:
    """Return the faults that any of some checks finds."""
    return [fault for fault in some if {*fault.by}.intersection(checks)]


def runs_under(sanitizer: str) -> pytest.MarkDecorator:
    """Skip a test unless a sanitizer is in use."""
    in_use = [SANITIZERS[each] for each in filter(None, cupy_on_cpu.SANITIZE.split(","))]
    return pytest.mark.skipif(sanitizer not in in_use, reason=f"runs only under {sanitizer}")


def assert_reported(sanitizer: str, code: str, kernel: str = "kernel.cu") -> None:
    """Run code in a process of its own, and check that a sanitizer reports a fault in a kernel."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert REPORTS[sanitizer] in result.stderr, result.stderr
    assert kernel in result.stderr
