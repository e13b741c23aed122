"""Write the page of predictions: ``page.py docs/predicted-speed`` makes the .md and its .json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from predict import (
    ACHIEVED,
    BYTES_A_CLOCK,
    GPUS,
    LAUNCH,
    LENGTHS,
    RESIDENT,
    ROWS,
    SHAPES,
    WARPS_A_CLOCK,
    predictions,
)

HEAD = """# Predicted speed of the CUDA kernels

**These are predictions: no GPU has run the kernels yet.** They come from counts of what the kernels
ask for, when [the CPU runs their PTX](../tests/ptx/README.md), and from these assumptions:

- A launch takes {launch} µs, which includes one block's chain of loads and sums. Nothing is said of
  the host.
- Memory gives {achieved} of its bandwidth by data sheet, about what a copy gets:
  of {bandwidths}.
  A multiprocessor takes at most {bytes} bytes a clock, which limits launches of few blocks.
- What a row reads again comes from the second-level cache if all rows in flight fit in it, else
  from memory. Arrays of up to a quarter of the cache come from memory once a launch. Nothing is
  left in the cache from one launch to the next.
- A multiprocessor issues {warps} instructions a clock, at {clocks}.
  They are PTX, of which an assembler fuses some and spends others on addresses: rough.
- All blocks of a launch are like the few of them that were counted.

Of occupancy, no more is known than the {resident} threads that launch bounds ensure. Latency that
is not hidden, and the tail that last blocks leave, are left out. So this is what can be hoped for.

Least bytes are each input once and each output once, moved ones those from and to the memory of an
{first}. The roofline is the time of the least bytes at all of the bandwidth, and the fraction is
that time by the predicted one. The letter says what takes longest: **m**emory, **i**nstructions, or
the **l**aunch.

![Predicted time and share of the bandwidth](predicted-speed.svg)

"""
PUBLISHED = """
## Next to what others have published

None of this was measured here, nor on one machine.

| what | published | predicted here |
|---|---|---|
| [QuACK][quack]: layer norm, bfloat16, 32768x32768, H100 | 2988 GB/s | {quack:,.0f} GB/s |
| torch: the same, by the same source | 2356 GB/s | |
| [cumo][cumo]: layer norm of a row of 768, fused | 2.9 µs | {row:.1f} µs, H100 |
| the same, not fused | 14.2 µs | |

[quack]: https://github.com/Dao-AILab/quack
[cumo]: https://github.com/sonots/cumo

The page is made by `make predictions`, and held to the kernels by `make test-cuda`.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The text, in Markdown."""
    names = [gpu.name for gpu in GPUS]
    head = HEAD.format(
        launch=1e6 * LAUNCH,
        achieved=f"{ACHIEVED:.0%}",
        bandwidths=", ".join(f"{1e-12 * gpu.bandwidth:.2f}" for gpu in GPUS) + " TB/s",
        bytes=BYTES_A_CLOCK,
        warps=WARPS_A_CLOCK,
        clocks=", ".join(f"{1e-9 * gpu.clock:.2f}" for gpu in GPUS) + " GHz",
        resident=RESIDENT,
        first=names[0],
    )
    gpus = " | ".join(f"{name}: roofline, predicted µs; fraction" for name in names)
    lines = [
        f"| | shape | launches | least, moved MB | instructions per element | {gpus} |",
        f"|---|---|---:|---:|---:{'|---:' * len(GPUS)}|",
        *map(line, rows),
    ]
    found = {(row["pass"], row["dtype"], row["m"], row["n"]): row for row in rows}
    quack = found["forward", "bfloat16", 32768, 32768]
    published = PUBLISHED.format(
        quack=1e-3 * quack["bytes"] / quack[names[0]]["predicted"],
        row=found["forward", "float32", 1, 768][names[0]]["predicted"],
    )
    return head + "\n".join(lines) + "\n" + published


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    moved = row[GPUS[0].name]["moved"]
    cells = [
        row["pass"],
        f"{row['dtype']} {row['m']}x{row['n']}",
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
    output.with_suffix(".md").write_text(page(rows), encoding="utf-8")
    curves = {
        "rows": list(predictions([("float32", *shape) for shape in ROWS])),
        "lengths": list(predictions([("bfloat16", *shape) for shape in LENGTHS])),
    }
    figures = {"table": rows, **curves}
    output.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
