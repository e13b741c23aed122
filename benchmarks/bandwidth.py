"""Measure which share of the memory bandwidth operations on NumPy arrays reach, and their growth.

A call reads its large arrays and writes its result. The bandwidth is that of a copy by several
threads with non-temporal stores; the share is the bytes that a call has to read and write per
second, divided by it. The share may exceed 1 where arrays fit into a cache, since non-temporal
stores bypass the caches. As in `compare.py`, both are timed in turn.

    python benchmarks/bandwidth.py --threads 2 --output docs/bandwidth

writes a page (.md), and a plot (.svg) of how the time of layer norm grows with the number of rows
and with their length.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from options import parse_options

#: Large arrays that a pass reads and writes.
ARRAYS = {"forward": 2, "backward": 3}
#: The lengths and the numbers of rows of the plot.
GROWING = [2**k for k in range(3, 17)]
FIXED = 256


class Case(NamedTuple):
    """A call; `size` is the number of bytes of x and of each other large array."""

    what: str
    shape: str
    direction: str
    size: int
    call: Callable[[], Any]


def cases() -> Iterator[Case]:
    """Yield calls of layer norm over rows, over other axes and with `out`, and of the others."""
    import numpy as np
    from cases import SHAPES, arrays, name
    from suites.calls import AXES
    from suites.family import IMAGES, OPERATIONS, calls_of

    import ln_array_api as ln

    for shape in SHAPES:
        x, gamma, beta, dy = arrays(shape)
        out = np.empty_like(x)
        _, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
        calls = {
            ("layer_norm", "forward"): partial(ln.layer_norm_forward, x, gamma, beta),
            ("layer_norm, out=", "forward"): partial(ln.layer_norm, x, gamma, beta, out=out),
            ("layer_norm", "backward"): partial(
                ln.layer_norm_backward, dy, x, mean, rstd, gamma, beta
            ),
        }
        for (what, direction), call in calls.items():
            yield Case(what, name(shape), direction, x.nbytes, call)
    for text, (full, axis) in AXES.items():
        rng = np.random.default_rng(0)
        x, dy = (rng.standard_normal(full, np.float32) for _ in range(2))
        _, mean, rstd = ln.layer_norm_forward(x, axis=axis)
        shape, _, axes = text.partition(" ")
        what = f"layer_norm, {axes}"
        forward = partial(ln.layer_norm_forward, x, axis=axis)
        backward = partial(ln.layer_norm_backward, dy, x, mean, rstd, axis=axis)
        yield Case(what, shape, "forward", x.nbytes, forward)
        yield Case(what, shape, "backward", x.nbytes, backward)
    for operation in OPERATIONS:
        size = 4 * int(np.prod(IMAGES))
        for direction, call in calls_of(operation).items():
            yield Case(operation, "x".join(map(str, IMAGES)), direction, size, call)


HEAD = (
    "| | pass | shape | µs | GB/s | copy, GB/s | share of it |\n|---|---|---|---:|---:|---:|---:|"
)


def lines(options: argparse.Namespace) -> Iterator[str]:
    """Measure the cases, and yield the lines of the table."""
    import numpy as np
    from compare import THIS, measure
    from peers import streaming_copy

    for case in cases():
        if options.shapes and case.shape not in options.shapes:
            continue
        copy = streaming_copy(np.ones(case.size // 4, np.float32), options.threads)
        both = {THIS: case.call, "copy": copy}
        times, _, _ = measure(both, case.size, options.rounds)
        speed = ARRAYS[case.direction] * case.size / times[THIS] / 1e9
        of_copy = 2 * case.size / times["copy"] / 1e9
        yield (
            f"| {case.what} | {case.direction} | {case.shape} | {1e6 * times[THIS]:,.1f} | "
            f"{speed:.1f} | {of_copy:.1f} | {speed / of_copy:.2f} |"
        )


def growth(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Measure forward and backward for growing numbers of rows, and growing rows, in seconds."""
    from cases import arrays
    from compare import measure

    import ln_array_api as ln

    found: dict[str, dict[str, list[float]]] = {}
    for what in ("rows", "elements of a row"):
        times: dict[str, list[float]] = {direction: [] for direction in ARRAYS}
        for length in GROWING:
            shape = (length, FIXED) if what == "rows" else (FIXED, length)
            x, gamma, beta, dy = arrays(shape)
            _, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
            calls = {
                "forward": partial(ln.layer_norm_forward, x, gamma, beta),
                "backward": partial(ln.layer_norm_backward, dy, x, mean, rstd, gamma, beta),
            }
            medians, _, _ = measure(calls, x.nbytes, options.rounds)
            for direction, seconds in medians.items():
                times[direction].append(seconds)
        found[what] = times
    return found


def plot(found: dict[str, dict[str, list[float]]], threads: int, path: Path) -> None:
    """Plot times on logarithmic axes, with a line for proportional growth."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "ln_array_api", "svg.fonttype": "none", "font.size": 9})
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for panel, (what, times) in zip(panels, found.items(), strict=True):
        for (direction, seconds), colour in zip(times.items(), ("#31688e", "#e08214"), strict=True):
            micro = [1e6 * each for each in seconds]
            panel.loglog(GROWING, micro, "o-", color=colour, label=direction, markersize=3)
            in_proportion = [micro[-1] * each / GROWING[-1] for each in GROWING]
            panel.loglog(GROWING, in_proportion, ":", color=colour, linewidth=0.8)
        panel.set_xlabel(f"{what}, of {FIXED} {'elements' if what == 'rows' else 'rows'}")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("µs")
    panels[0].legend(frameon=False, title="dotted: in proportion", title_fontsize=8)
    figure.suptitle(f"Layer norm on float32 NumPy arrays, {threads} threads", fontsize=10)
    figure.savefig(path, metadata={"Date": None})


def machine() -> str:
    """Return the name of the processor, and versions."""
    import numba
    import numpy as np

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            each for each in cpuinfo.read_text().splitlines() if each.startswith("model name")
        ]
        name = models[0].partition(": ")[2] if models else name
    return (
        f"{name}, {os.cpu_count()} processors, {platform.system()}; Python "
        f"{platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}"
    )


def page(options: argparse.Namespace, table: list[str]) -> str:
    """Return the page, which shows the plot of the same name."""
    name = options.output.name
    return "\n".join(
        (
            "# The speed of the memory",
            "",
            f"Made by `python benchmarks/bandwidth.py --threads {options.threads}` on {machine()}.",
            "",
            "The share is the bytes that a call has to read and write in a second, its large",
            "arrays once each, beside those of a copy by as many threads past the cache. Arrays",
            "that fit into a cache are read and written faster than such a copy, so that shares of",
            "more than 1 mean little there. On machines that are shared, figures vary from one run",
            "to the next, by a quarter for large arrays.",
            "",
            HEAD,
            *table,
            "",
            "## Growth",
            "",
            f"![The time of layer norm over the number and the length of rows]({name}.svg)",
            "",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options = parse_options(parser, "where to write, without the ending")
    print(HEAD, flush=True)
    table = []
    for line in lines(options):
        table.append(line)
        print(line, flush=True)
    if options.output:
        plot(growth(options), options.threads, options.output.with_suffix(".svg"))
        text = page(options, table)
        options.output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
