"""The report that `make gpu` writes: measurements, next to predictions."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import ROOT
from .cases import Case, minimum_bytes
from .conformance import Verdict
from .contenders import COPY, OURS
from .machine import device_name, driver, properties, versions
from .timing import Measured

PREDICTIONS = ROOT / "docs" / "predicted-speed.json"
#: Names of devices in that file, by CUDA's names.
PREDICTED = {
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H200": "H200 SXM",
    "NVIDIA B200": "B200",
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA L4": "L4",
}
LEGEND = """
Medians, in µs, of several sets of inputs in turn, together larger than the second-level cache.
*Graph* is the device's time: calls captured in a CUDA graph that is replayed. *Call* is a call as
a user makes it, with CUDA events on both sides: memory for the results and what Python takes
included. *Predicted* is by predicted-speed.md, where that has the case and this GPU. *At least* is
the time for reading each input and writing each output once, at the rate of the fastest copy here;
*of a copy* is the time of a copy of as many bytes as a share of ours. The other columns are the
others' times as multiples of ours: by graphs, or by calls where a graph has failed (marked c) or
calls take so long that a graph tells the same.
"""


class Progress(NamedTuple):
    """Everything that the report contains."""

    verdict: Verdict
    sample: bool
    """Whether only a sample of the suite was run."""
    clocks: Sequence[str]
    absent: Mapping[str, str]
    """Contenders that cannot be compared here, and why."""
    measured: Sequence[Measured]
    left_out: Mapping[Case, str]
    """Cases that were not measured, and why."""


def predictions(device: str) -> dict[Case, float]:
    """Return microseconds on a device, for the cases over rows in docs/predicted-speed.md."""
    if device not in PREDICTED:
        return {}
    everything = json.loads(PREDICTIONS.read_text(encoding="utf-8"))
    return {
        Case("layer_norm", each["pass"], (each["m"], each["n"]), each["dtype"]): each[
            PREDICTED[device]
        ]["predicted"]
        for each in everything["table"]
        if each["shape"] == f"{each['m']}x{each['n']}"
    }


def table(measured: Sequence[Measured], predicted: Mapping[Case, float]) -> list[str]:
    """Return a row for each case that this library has run, then geometric means of ratios."""
    measured = [each for each in measured if OURS in each.calls]
    if not measured:
        return ["No case was measured."]
    others = list(dict.fromkeys(name for each in measured for name in each.calls))
    others = [name for name in others if name not in (OURS, COPY)]
    heads = ["case", "MB", "at least", "predicted", "graph", "call", "GB/s", "of a copy"]
    lines = [f"| {' | '.join([*heads, *others])} |", "|---|" + "---:|" * (len(heads + others) - 1)]
    rates = [minimum_bytes(each.case) / each.best(COPY) for each in measured if each.best(COPY)]
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for each in measured:
        size, own, copy = minimum_bytes(each.case), each.best(OURS), each.best(COPY)
        assert own is not None
        guess = predicted.get(each.case)
        cells = [f"{size / 1e6:.2f}", f"{size / max(rates) * 1e6:.1f}" if rates else ""]
        cells += ["" if guess is None else f"{guess:.1f}"]
        cells += [_microseconds(each.graphs.get(OURS)), _microseconds(each.calls[OURS])]
        cells += [f"{size / own / 1e9:.0f}", "" if copy is None else f"{copy / own:.0%}"]
        for name in others:
            ratio, mark = _ratio(each, name)
            cells.append("" if ratio is None else f"{ratio:.2f}{mark}")
            ratios[name] += [] if ratio is None else [ratio]
        lines.append(f"| {each.case} | {' | '.join(cells)} |")
    for name, found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        lines += ["", f"Geometric mean of {name}'s {len(found)} ratios: {mean:.2f}."]
    return lines


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def _ratio(measured: Measured, name: str) -> tuple[float | None, str]:
    """Return the ratio of another's time to ours, marked where only calls can be compared."""
    ours, theirs = measured.graphs.get(OURS), measured.graphs.get(name)
    if ours is not None and theirs is not None:
        return theirs / ours, ""
    if name in measured.calls:
        return measured.calls[name] / measured.calls[OURS], "c" if measured.graphs else ""
    return None, ""


def line(measured: Measured) -> str:
    """Return the measurements of a case, in one line for each contender."""
    lines = [f"{measured.case}:"]
    for name, seconds in measured.calls.items():
        graph = measured.graphs.get(name)
        replayed = "" if graph is None else f", {graph * 1e6:.1f} µs in a graph"
        lines.append(f"  {name}: {seconds * 1e6:.1f} µs a call{replayed}")
    lines += [f"  {name}: failed, {reason}" for name, reason in measured.failures.items()]
    return "\n".join(lines)


def page(progress: Progress) -> str:
    """Return the report, as far as it can be written."""
    device, verdict = properties(), progress.verdict
    lines = [
        "# On a GPU",
        "",
        f"{device_name()}, {device['multiProcessorCount']} multiprocessors, "
        f"{device['l2CacheSize'] / 2**20:.0f} MiB of second-level cache; {driver()}; {versions()}. "
        "Made by `make gpu`.",
        "",
        f"Conformance with the CuPy backend{', a sample of it,' if progress.sample else ''} "
        f"{'passed' if verdict.passed else 'FAILED'} in {verdict.seconds:.0f} s: "
        f"{verdict.summary}.",
        *(f"- {name} failed." for name in verdict.failures),
        LEGEND,
        *table(progress.measured, predictions(device_name())),
        "",
        *(f"- {name} is not compared: {reason}." for name, reason in progress.absent.items()),
        *(f"- {case} is not measured: {reason}." for case, reason in progress.left_out.items()),
        *(
            f"- {each.case}: {name} failed, {reason}."
            for each in progress.measured
            for name, reason in each.failures.items()
        ),
        "",
        "Clocks of the multiprocessors before the comparison and after cases:",
        "",
        *(f"- {each}" for each in progress.clocks),
    ]
    return "\n".join(lines) + "\n"
