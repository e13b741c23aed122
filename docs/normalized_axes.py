"""Draw which elements of an array each operation normalises together.

python docs/normalized_axes.py docs/normalized-axes.svg
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ln_array_api._operations import OPERATIONS

SIZE = 4  # elements along each axis of a cube
STATISTIC = ("#9ecae1", "#3182bd", "#6baed6")  # the top, the right and the left of an element
PARAMETER = ("#fdd0a2", "#e6722b", "#fd9f56")
OTHER = ("#fafafa", "#e3e3e3", "#efefef")

Elements = Callable[[int, int, int], bool]
"""Whether an element is selected, given its indices along the three axes."""


class Panel(NamedTuple):
    """A part of the picture, for some operations."""

    picture: str
    """Its name in the table of operations."""
    axes: tuple[str, str, str]
    """Names of the array's axes: to the front along the right edge, along the left one, and up."""
    statistic: Elements | None
    statistic_text: str
    parameter: Elements | None
    parameter_text: str
    variant: str = ""
    """The title, where this is a variant of an operation that another panel shows."""

    @property
    def title(self) -> str:
        """Return the names of the operations that it shows, two on a line."""
        names = [each.name for each in OPERATIONS if each.picture == self.picture]
        lines = (", ".join(names[i : i + 2]) for i in range(0, len(names), 2))
        return self.variant or ",\n".join(lines)


LAST = SIZE - 1


def slab(axis: int) -> Elements:
    """Select the elements at the visible end of an axis."""
    return lambda *place: place[axis] == LAST


def of_channels(picture: str, statistic: Elements, statistic_text: str) -> Panel:
    """Return the panel of an operation with a gamma and a beta for each channel."""
    return Panel(picture, ("B", "C", "S"), statistic, statistic_text, slab(1), "gamma, beta: (C,)")


PANELS = (
    of_channels("batch", slab(1), "over the batch and space\nmean, rstd: (C,)"),
    of_channels("instances", lambda b, c, s: b == c == LAST, "over space\nmean, rstd: (B, C)"),
    of_channels(
        "groups",
        lambda b, c, s: b == LAST and c >= SIZE // 2,
        "over space and a group of channels\nmean, rstd: (B, groups)",
    ),
    Panel(
        "samples",
        ("B", "C", "S"),
        slab(0),
        "over all of a sample\nmean, rstd: (B, 1, 1)",
        lambda b, c, s: c == s == LAST,
        "gamma, beta: (C, S)",
        variant="layer_norm, axis=(1, 2)",
    ),
    Panel(
        "features",
        ("B", "T", "F"),
        lambda b, t, f: b == t == LAST,
        "over the features of each token\nrstd (and mean) or norm: (B, T, 1)",
        slab(2),
        "gamma (and beta): (F,)\nunit_norm, power_norm: none",
    ),
    Panel(
        "window",
        ("B, C", "W", "H"),
        lambda b, w, h: b == LAST and w >= 1 and h >= 1,
        "over a window about each element\nmean, rstd: (B, C, H, W)",
        None,
        "no parameters",
    ),
    Panel(
        "weights",
        ("out", "in", "k"),
        slab(0),
        "over the weights of each output\nnorm; or mean, rstd: (out,)",
        slab(0),
        "weight_norm: g (out,)\nweight_standardization: none",
    ),
    Panel(
        "elements",
        ("B", "T", "F"),
        None,
        "over nothing: each element alone\nno statistics",
        slab(2),
        "gamma, beta: (F,)\nalpha: one for all",
    ),
)


def faces(chosen: Elements | None, colours: tuple[str, str, str]) -> Iterator[tuple[Any, str]]:
    """Yield the visible faces of all elements, as corners on paper, with their colours."""

    def paper(left: float, right: float, up: float) -> tuple[float, float]:
        return 0.866 * (right - left), up - 0.5 * (left + right)

    for one in range(SIZE):
        for other in range(SIZE):
            square = ((0, 0), (1, 0), (1, 1), (0, 1))
            for side, place, corner in (
                (0, (one, other, LAST), lambda p, q: (p, q, SIZE)),
                (1, (one, LAST, other), lambda p, q: (p, SIZE, q)),
                (2, (LAST, one, other), lambda p, q: (SIZE, p, q)),
            ):
                corners = [paper(*corner(one + p, other + q)) for p, q in square]
                meant = chosen is not None and chosen(*place)
                yield corners, (colours if meant else OTHER)[side]


def draw_cube(
    axes: Any, names: tuple[str, str, str], chosen: Elements | None, colours: tuple[str, str, str]
) -> None:
    """Draw a cube of elements; the selected ones have the given colours."""
    polygons, fills = zip(*faces(chosen, colours), strict=True)
    from matplotlib.collections import PolyCollection

    axes.add_collection(
        PolyCollection(polygons, facecolors=fills, edgecolors="#8c8c8c", linewidths=0.5)
    )
    for name, x, y, side in zip(
        names, (2.0, -2.0, -3.75), (-3.35, -3.35, 0.1), ("left", "right", "right"), strict=True
    ):
        axes.text(x, y, name, ha=side, va="center", color="#666666", fontstyle="italic")
    axes.set(xlim=(-4.8, 4.8), ylim=(-4.2, 4.2), aspect="equal")
    axes.axis("off")


def draw(path: Path) -> None:
    """Draw all panels, in two rows: shared statistics above, shared parameters below."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "ln_array_api", "svg.fonttype": "none", "font.size": 8})
    figure = plt.figure(figsize=(9.6, 9.6))
    width, height = 1 / 4, 0.155
    for number, panel in enumerate(PANELS):
        row, column = divmod(number, 4)
        top = 0.92 - 0.495 * row
        title = (width * (column + 0.5), top + 0.012)
        figure.text(
            *title, panel.title, ha="center", fontsize=9, fontweight="bold", family="monospace"
        )
        for place, (chosen, text, colours) in enumerate(
            (
                (panel.statistic, panel.statistic_text, STATISTIC),
                (panel.parameter, panel.parameter_text, PARAMETER),
            )
        ):
            bottom = top - height - 0.205 * place
            axes = figure.add_axes((width * column, bottom, width, height))
            draw_cube(axes, panel.axes, chosen, colours)
            where = (width * (column + 0.5), bottom - 0.005)
            figure.text(*where, text, ha="center", va="top", linespacing=1.3)
    for x, colours, text in (
        (0.1, STATISTIC, "elements that share a mean and a variance (or a norm)"),
        (0.58, PARAMETER, "elements that share a gamma and a beta (or a g)"),
    ):
        figure.text(x - 0.01, 0.972, "■", color=colours[1], fontsize=14, ha="right", va="center")
        figure.text(x, 0.973, text, fontsize=9, va="center")
    mixes = (
        "batch_instance_norm mixes batch and instance norm; "
        "switchable_norm mixes batch, instance and layer norm"
    )
    figure.text(0.5, 0.504, mixes, ha="center", fontsize=9, color="#444444")
    figure.add_artist(
        mpl.lines.Line2D((0.03, 0.97), (0.487, 0.487), color="#dddddd", linewidth=0.8)
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
