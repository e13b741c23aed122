"""Draw the figure of the report on predicted speed: ``plot.py docs/predicted-speed``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

COLOURS = {"B200": "#3b528b", "H100 SXM": "#440154", "A100 80GB": "#21918c", "L4": "#e08214"}
STYLES = {"forward": "-", "backward": "--"}


def curves(axes: Any, rows: list[dict[str, Any]], along: str, figure: str) -> None:
    for gpu, colour in COLOURS.items():
        for direction, style in STYLES.items():
            some = [row for row in rows if row["pass"] == direction]
            axes.plot(
                [row[along] for row in some],
                [row[gpu][figure] for row in some],
                style,
                color=colour,
                label=f"{gpu}, {direction}",
            )


def plot(figures: dict[str, Any], path: Path) -> None:
    """Plot predicted time by the number of rows, and the fraction of the bandwidth by length."""
    mpl.rcParams.update({"svg.hashsalt": "ln_array_api", "svg.fonttype": "none", "font.size": 9})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    curves(left, figures["rows"], "m", "predicted")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xlabel("rows of 768, float32")
    left.set_ylabel("predicted µs")
    left.set_title("Time")
    left.legend(frameon=False, fontsize=8)
    curves(right, figures["lengths"], "n", "fraction")
    right.set_xscale("log", base=2)
    right.set_ylim(0, 1)
    right.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    right.set_xlabel("length of a row, bfloat16, of 64 Mi elements in all")
    right.set_title("Share of the bandwidth, counting the least bytes")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Predicted, not measured", fontsize=10)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    output = Path(sys.argv[1])
    plot(json.loads(output.with_suffix(".json").read_text()), output.with_suffix(".svg"))
