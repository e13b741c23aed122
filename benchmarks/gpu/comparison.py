"""Measure cases one after the other, print progress, and write the report after each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import ln_array_api as ln

from . import machine, timing
from .cases import Case
from .conformance import Verdict
from .contenders import OURS, contenders
from .report import Progress, line, page

#: The clocks are read again after one case of so many.
CLOCKS_EVERY = 8


def compare(
    cases: Sequence[Case], end: float, output: Path, verdict: Verdict, *, sample: bool
) -> bool:
    """Measure the cases until `end`, a time of `time.monotonic`.

    Returns whether this library ran every case that was measured, and there was one.
    """
    found, absent = contenders()
    progress = Progress(verdict, sample, [machine.clocks()], absent, [], {})
    for name, reason in absent.items():
        print(f"{name} is not compared: {reason}", flush=True)
    output.write_text(page(progress), encoding="utf-8")
    longest, crashed = 0.0, False
    for number, case in enumerate(cases):
        begin = time.monotonic()
        why = "the time was up" if begin + longest > end else timing.does_not_fit(case)
        if not why:
            try:
                with ln.use_backend("cupy"):
                    progress.measured.append(timing.measure(case, found))
                print(line(progress.measured[-1]), flush=True)
            except Exception as error:  # the cases that are left must still be measured
                why, crashed = timing.summary(error), True
            timing.release()
            longest = max(longest, time.monotonic() - begin)
            if number % CLOCKS_EVERY == 0:
                progress.clocks.append(f"{case}: {machine.clocks()}")
        if why:
            progress.left_out[case] = why
            print(f"{case} is not measured: {why}", flush=True)
        output.write_text(page(progress), encoding="utf-8")
    print(f"{output} is written", flush=True)
    ran = [OURS in each.calls for each in progress.measured]
    return bool(ran) and all(ran) and not crashed
