"""The operations, as data: what the library's tables, pictures and tests of completeness name.

Each has three functions: of its own name, with ``_forward`` and with ``_backward``.
``python -m ln_array_api._support`` writes the tables that are made from this into the pages.
"""

from __future__ import annotations

from typing import NamedTuple


class Operation(NamedTuple):
    """An operation, and what docs/choosing.md tells of it. The defaults are for one over rows."""

    name: str
    over: str
    """What its statistics are taken over."""
    source: str
    statistics: str = "x's, 1 in place of `axis`"
    """Their shape."""
    parameters: str = "none"
    picture: str = "features"
    """The part of docs/normalized-axes.svg that shows it: see docs/normalized_axes.py."""
    primitive: str = "rows"
    """The kind of primitives that it uses."""
    without_kernels: str = "operations"
    """What it uses where no backend has kernels for its primitives."""
    forward: str = ""
    """What README.md remarks on its function that ends in ``_forward``."""


_CHANNELS = "gamma, beta: (C,)"

OPERATIONS = (
    Operation(
        "layer_norm",
        over="`axis`, for each place along the others",
        parameters="gamma, beta: the normalised axes",
        source="[Ba et al. 2016](https://arxiv.org/abs/1607.06450)",
    ),
    Operation(
        "rms_norm",
        over="the same, without the mean",
        parameters="gamma",
        source="[Zhang, Sennrich 2019](https://arxiv.org/abs/1910.07467)",
    ),
    Operation(
        "unit_norm",
        over="`axis`: the length",
        source="[Loshchilov et al. 2024](https://arxiv.org/abs/2410.01131)",
    ),
    Operation(
        "batch_norm",
        primitive="channels",
        over="B and S, for each channel",
        statistics="(C,)",
        parameters=f"{_CHANNELS}; running mean and variance",
        source="[Ioffe, Szegedy 2015](https://arxiv.org/abs/1502.03167)",
        picture="batch",
        forward=", for training: it computes them from x, and updates running statistics",
    ),
    Operation(
        "group_norm",
        over="a group of channels and S, for each sample",
        statistics="(B, groups)",
        parameters=_CHANNELS,
        source="[Wu, He 2018](https://arxiv.org/abs/1803.08494)",
        picture="groups",
    ),
    Operation(
        "instance_norm",
        over="S, for each channel of each sample",
        statistics="(B, C)",
        parameters=_CHANNELS,
        source="[Ulyanov et al. 2016](https://arxiv.org/abs/1607.08022)",
        picture="instances",
    ),
    Operation(
        "batch_instance_norm",
        primitive="instances",
        over="what batch norm and instance norm take theirs over",
        statistics="(C,) and (B, C)",
        parameters=f"rho, {_CHANNELS}",
        source="[Nam, Kim 2018](https://arxiv.org/abs/1805.07925)",
        picture="mixes",
    ),
    Operation(
        "switchable_norm",
        primitive="instances",
        over="instance, layer and batch",
        statistics="(B, C)",
        parameters=f"two of (3,); {_CHANNELS}",
        source="[Luo et al. 2018](https://arxiv.org/abs/1806.10779)",
        picture="mixes",
    ),
    Operation(
        "weight_norm",
        over="the weights of each output",
        statistics="(out,)",
        parameters="g: (out,)",
        source="[Salimans, Kingma 2016](https://arxiv.org/abs/1602.07868)",
        picture="weights",
    ),
    Operation(
        "weight_standardization",
        over="the weights of each output",
        statistics="(out,)",
        source="[Qiao et al. 2019](https://arxiv.org/abs/1903.10520)",
        picture="weights",
    ),
    Operation(
        "power_norm",
        primitive="powers",
        over="`axis`: the length of signed powers",
        source="Perronnin et al., ECCV 2010",
        without_kernels="rows",
    ),
    Operation(
        "local_contrast_norm",
        primitive="windows",
        over="a window about each element",
        statistics="x's",
        source="Jarrett et al., ICCV 2009",
        picture="window",
    ),
    Operation(
        "dynamic_tanh",
        primitive="tanh",
        over="nothing",
        statistics="none",
        parameters="alpha: one; gamma, beta: the axes named",
        source="[Zhu et al. 2025](https://arxiv.org/abs/2503.10622)",
        picture="elements",
    ),
)


def function_names() -> tuple[str, ...]:
    """Return the names of the functions of all operations."""
    return tuple(each.name + part for each in OPERATIONS for part in ("", "_forward", "_backward"))
