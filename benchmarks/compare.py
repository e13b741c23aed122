"""Compare the speed of layer norm on NumPy arrays with other implementations.

All contenders work on the same memory and are timed in turn, round by round, so that a slow moment
affects all of them. A round in which other processes used the processor is discarded. The result is
the median of a contender's calls, and the ratio to the fastest of the others in the same rounds.

    python benchmarks/compare.py --threads 2 --output docs/benchmarks

writes a table (.md), the figures (.json) and a plot (.svg).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from options import parse_options

Contenders = dict[str, Callable[[], Any]]

THIS = "this library"
COPIES = ("copy", "streaming copy")  # limits set by the memory, not contenders
SECONDS_AT_MOST = 12.0


def forward_contenders(shape: tuple[int, int], threads: int) -> Contenders:
    """Return the contenders for layer norm with statistics."""
    import numpy as np
    from cases import arrays
    from peers import jax_forward, numpy_forward, onnxruntime_forward, streaming_copy, torch_forward

    import ln_array_api as ln

    x, gamma, beta, _ = arrays(shape)
    target = np.zeros_like(x)
    return {
        THIS: lambda: ln.layer_norm_forward(x, gamma, beta),
        "torch": torch_forward(x, gamma, beta),
        "onnxruntime": onnxruntime_forward(x, gamma, beta, threads),
        "JAX": jax_forward(x, gamma, beta),
        "NumPy": numpy_forward(x, gamma, beta),
        "copy": lambda: np.copyto(target, x),
        "streaming copy": streaming_copy(x, threads),
    }


def backward_contenders(shape: tuple[int, int], threads: int) -> Contenders:
    """Return the contenders for all three gradients; onnxruntime has none."""
    import numpy as np
    from cases import arrays
    from peers import jax_backward, numpy_backward, streaming_copy, torch_backward

    import ln_array_api as ln

    x, gamma, beta, dy = arrays(shape)
    _, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
    target = np.zeros_like(x)
    return {
        THIS: lambda: ln.layer_norm_backward(dy, x, mean, rstd, gamma),
        "torch": torch_backward(dy, x, mean, rstd, gamma, beta),
        "JAX": jax_backward(dy, x, mean, rstd, gamma),
        "NumPy": numpy_backward(dy, x, mean, rstd, gamma),
        "copy": lambda: np.copyto(target, x),
        "streaming copy": streaming_copy(x, threads),
    }


def other_contenders(what: str, threads: int) -> Contenders:
    """Yield RMS norm, and layer norm of 16-bit rows, at 4096x1024, with torch as contender."""
    from cases import arrays
    from peers import torch_forward, torch_rms_norm

    import ln_array_api as ln

    if what == "rms_norm":
        x, gamma, _, _ = arrays((4096, 1024))
        return {THIS: lambda: ln.rms_norm(x, gamma), "torch": torch_rms_norm(x, gamma)}
    x, gamma, beta, _ = arrays((4096, 1024), what)
    return {
        THIS: lambda: ln.layer_norm_forward(x, gamma, beta),
        "torch": torch_forward(x, gamma, beta),
    }


# --- Timing --------------------------------------------------------------------------------------


def busy() -> tuple[float, float]:
    """Return the processor time of all processes, and of this one, in seconds."""
    with Path("/proc/stat").open(encoding="ascii") as lines:
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, next(lines).split()[1:])
    everybody = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return everybody, own.user + own.system


def measure(contenders: Contenders, size: int, rounds: int) -> tuple[dict[str, float], int, int]:
    """Return median seconds of a call by contender, and how many rounds were kept and discarded."""
    calls = 20 if size < 1 << 20 else 6 if size < 4 << 20 else 2
    for call in contenders.values():
        call()
        call()
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    kept = thrown_away = 0
    gc.disable()
    until = time.monotonic() + SECONDS_AT_MOST
    while kept < rounds and (time.monotonic() < until or not kept):
        this_round, before, start = {}, busy(), time.monotonic()
        for contender, call in contenders.items():
            time.sleep(0.008)  # until the threads of the previous contender stop spinning
            this_round[contender] = list(timed(call, calls))
        after, seconds = busy(), time.monotonic() - start
        others = (after[0] - before[0]) - (after[1] - before[1])
        if others <= 0.03 * seconds + 0.01 or time.monotonic() > 2 * until:
            kept += 1
            for contender, values in this_round.items():
                times[contender] += values
        else:
            thrown_away += 1
            time.sleep(0.05)
    gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}, kept, thrown_away


def timed(call: Callable[[], Any], calls: int) -> Iterator[float]:
    """Yield seconds of calls, after as many to warm up. Results are freed before the next call."""
    for number in range(2 * calls):
        start = time.perf_counter()
        result = call()
        end = time.perf_counter()
        del result
        if number >= calls:
            yield end - start


# --- The report ----------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure all cases, and yield a row for each pass and shape."""
    from cases import SHAPES, name

    wanted = [shape for shape in SHAPES if not options.shapes or name(shape) in options.shapes]
    passes = {"forward": (forward_contenders, 2), "backward": (backward_contenders, 3)}
    for direction, (contenders, touched) in passes.items():
        for shape in wanted:
            size = 4 * shape[0] * shape[1]
            result = measure(contenders(shape, options.threads), size, options.rounds)
            yield row(direction, name(shape), touched * size, *result)
    if not options.shapes:
        for what, itemsize in (("rms_norm", 4), ("float16", 2), ("bfloat16", 2)):
            size = itemsize * 4096 * 1024
            result = measure(other_contenders(what, options.threads), size, options.rounds)
            yield row(what, "4096x1024", 2 * size, *result)


def row(
    what: str, shape: str, touched: int, seconds: dict[str, float], kept: int, thrown_away: int
) -> dict[str, Any]:
    """Return the figures of a case."""
    peers = {name: t for name, t in seconds.items() if name not in (THIS, *COPIES)}
    best = min(peers, key=peers.__getitem__)
    return {
        "what": what,
        "shape": shape,
        "ratio": peers[best] / seconds[THIS],
        "best peer": best,
        "GB/s": touched / seconds[THIS] / 1e9,
        "microseconds": {name: 1e6 * t for name, t in seconds.items()},
        "rounds": kept,
        "thrown away": thrown_away,
    }


def line(row: dict[str, Any]) -> str:
    """Format a row of the table."""
    times = row["microseconds"]
    peers = "; ".join(f"{n} {t:,.1f}" for n, t in times.items() if n != THIS)
    return (
        f"| {row['what']} | {row['shape']} | {times[THIS]:,.1f} | {row['ratio']:.2f} | "
        f"{row['best peer']} | {row['GB/s']:.1f} | {peers} | {row['rounds']}/{row['thrown away']} |"
    )


HEAD = (
    "| | shape | this, µs | ratio | to | GB/s | others, µs | rounds kept/thrown away |\n"
    "|---|---|---:|---:|---|---:|---|---:|"
)


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the geometric means of the ratios of the two passes."""
    ratios = [row["ratio"] for row in rows if row["what"] in ("forward", "backward")]
    mean = statistics.geometric_mean(ratios)
    return f"Geometric mean over {len(ratios)} cases: {mean:.2f}; the least: {min(ratios):.2f}."


def plot(rows: list[dict[str, Any]], threads: int, path: Path) -> None:
    """Plot ratios as bars, forward and backward; the line at 1 is the best of the others."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "ln_array_api", "svg.fonttype": "none", "font.size": 9})
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for place, (direction, colour) in enumerate((("forward", "#31688e"), ("backward", "#e08214"))):
        heights = {row["shape"]: row["ratio"] for row in rows if row["what"] == direction}
        where = [shapes.index(shape) + 0.4 * place - 0.2 for shape in heights]
        bars = axes.bar(where, list(heights.values()), 0.38, color=colour, label=direction)
        axes.bar_label(bars, fmt="%.1f", padding=1, fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(shapes)), shapes, fontsize=8)
    axes.set_ylabel("times the speed of the best peer")
    count = "one thread" if threads == 1 else f"{threads} threads"
    axes.set_title(f"Layer norm on float32 NumPy arrays, {count}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options = parse_options(parser, "where to write, without the ending")
    if options.threads == 1:  # JAX starts a thread for each processor
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(HEAD, flush=True)
    rows = []
    for each in compare(options):
        rows.append(each)
        print(line(each), flush=True)
    print(f"\n{summary(rows)}")
    if options.output:
        options.output.parent.mkdir(exist_ok=True)
        text = "\n".join((HEAD, *map(line, rows), "", summary(rows), ""))
        options.output.with_suffix(".md").write_text(text, encoding="utf-8")
        figures = {"threads": options.threads, "python": sys.version.split()[0], "cases": rows}
        options.output.with_suffix(".json").write_text(
            json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        plot(rows, options.threads, options.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
