"""Write the report on predicted speed: ``report.py docs/predicted-speed`` writes .md and .json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from predict import (
    BANDWIDTH_FRACTION,
    BYTES_PER_CLOCK,
    GPUS,
    LATENCY_SECONDS,
    LAUNCH_SECONDS,
    LENGTHS,
    ROWS,
    SHAPES,
    WARPS_PER_CLOCK,
    predictions,
)

HEAD = """# Predicted speed of the CUDA kernels

**These are predictions: no GPU has run the kernels yet.** They follow from the memory accesses that
are counted when [the CPU runs the kernels' PTX](../tests/ptx/README.md), from the instructions of
their machine code, and from these assumptions:

- A launch takes {launch} µs, including the latency of one block's loads and sums. The cost of the
  host is not predicted.
- Memory reaches {achieved} of the bandwidth in its data sheet, about as much as a copy does:
  of {bandwidths}.
  A multiprocessor loads at most {bytes} bytes per clock, which limits launches of few blocks.
- Data of a row that is read again comes from L2 if all rows in flight fit into it, otherwise from
  memory. Arrays of up to a quarter of L2 come from memory once per launch. L2 holds nothing from
  one launch to the next.
- A multiprocessor issues {warps} instructions per clock, at {clocks}.
  Those are PTX instructions, or for kernels over rows as many for each element as [the page on the
  kernels](cuda-kernels.md) lists, by the machine code, if these are fewer. An assembler fuses some
  and adds others for addresses, so this is rough.
- Memory answers after {latency} µs. Until then a block has asked for no more than the vectors that
  its threads ask for before they wait, which [the page on the kernels](cuda-kernels.md) lists with
  the blocks that fit on a multiprocessor: bytes in flight divided by the latency limit the reads.
- All blocks of a launch are like the few blocks that were counted.

That a block computes nothing while it waits, where it is alone on its multiprocessor, and the tail
of the last blocks are left out, so the predictions are optimistic.

The least bytes are each input once and each output once. The moved bytes are those read from or
written to the memory of an {first}. The roofline is the time of the least bytes at the full
bandwidth, and the fraction is that time divided by the predicted time. The letter names the limit:
**m**emory, **i**nstructions, **w**aits for data, or the **l**aunch. Arrays of two axes are rows of
layer norm, those of three are (B, C, S) of batch norm in training.

![Predicted time and share of the bandwidth](predicted-speed.svg)

"""
PUBLISHED = """
## Compared with published measurements

None of these was measured here, and they are from different machines.

| what | published | predicted here |
|---|---|---|
| [QuACK][quack]: layer norm, bfloat16, 32768x32768, H100 | 2988 GB/s | {quack:,.0f} GB/s |
| torch: the same, by the same source | 2356 GB/s | |
| [cumo][cumo]: layer norm of a row of 768, fused | 2.9 µs | {row:.1f} µs, H100 |
| the same, not fused | 14.2 µs | |

[quack]: https://github.com/Dao-AILab/quack
[cumo]: https://github.com/sonots/cumo

`make predictions` writes this page, and `make test-cuda` checks that it matches the kernels.
"""


def report(rows: list[dict[str, Any]]) -> str:
    """Return the report in Markdown."""
    names = [gpu.name for gpu in GPUS]
    head = HEAD.format(
        launch=1e6 * LAUNCH_SECONDS,
        achieved=f"{BANDWIDTH_FRACTION:.0%}",
        bandwidths=", ".join(f"{1e-12 * gpu.bandwidth:.2f}" for gpu in GPUS) + " TB/s",
        bytes=BYTES_PER_CLOCK,
        warps=WARPS_PER_CLOCK,
        clocks=", ".join(f"{1e-9 * gpu.clock:.2f}" for gpu in GPUS) + " GHz",
        latency=f"{1e6 * LATENCY_SECONDS:.1f}",
        first=names[0],
    )
    gpus = " | ".join(f"{name}: roofline, predicted µs; fraction" for name in names)
    lines = [
        f"| | shape | launches | least, moved MB | instructions per element | {gpus} |",
        f"|---|---|---:|---:|---:{'|---:' * len(GPUS)}|",
        *map(line, rows),
    ]
    found = {(row["pass"], row["dtype"], row["shape"]): row for row in rows}
    quack = found["forward", "bfloat16", "32768x32768"]
    published = PUBLISHED.format(
        quack=1e-3 * quack["bytes"] / quack[names[0]]["predicted"],
        row=found["forward", "float32", "1x768"][names[0]]["predicted"],
    )
    return head + "\n".join(lines) + "\n" + published


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    moved = row[GPUS[0].name]["moved"]
    cells = [
        row["pass"],
        f"{row['dtype']} {row['shape']}",
        str(len(row["kernels"])),
        f"{1e-6 * row['bytes']:,.1f}, {1e-6 * moved:,.1f}",
        f"{row['instructions per element']:.0f}",
    ]
    for gpu in GPUS:
        of_gpu = row[gpu.name]
        times = f"{of_gpu['roofline']:,.1f}, {of_gpu['predicted']:,.1f}"
        cells.append(f"{times}; {of_gpu['fraction']:.0%} {of_gpu['limit'][0]}")
    return f"| {' | '.join(cells)} |"


def main(output: Path) -> None:
    rows = list(predictions(SHAPES))
    output.with_suffix(".md").write_text(report(rows), encoding="utf-8")
    curves = {
        "rows": list(predictions([("float32", *shape) for shape in ROWS])),
        "lengths": list(predictions([("bfloat16", *shape) for shape in LENGTHS])),
    }
    figures = {"table": rows, **curves}
    output.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
