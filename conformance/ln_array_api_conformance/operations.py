"""What is tested, as data. A new operation joins the suite by a description here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ln_array_api as ln

from . import reference


class Operation(NamedTuple):
    """An operation, its reference, and how they are called."""

    name: str
    function: Callable[..., Any]
    """``function(x, *parameters, axis=, epsilon=, out=)``"""
    forward: Callable[..., Any]
    """The same, which gives y and the statistics."""
    backward: Callable[..., Any]
    """``backward(dy, x, *statistics, gamma, axis=, need=)``"""
    parameters: tuple[str, ...]
    statistics: tuple[str, ...]
    epsilon: float
    """The documented default."""
    reference: reference.Forward
    """Rows in, (y, mean, rstd) out, in whatever arithmetic the rows come."""

    @property
    def gradients(self) -> tuple[str, ...]:
        return ("dx", *("d" + name for name in self.parameters))


LAYER_NORM = Operation(
    "layer_norm",
    ln.layer_norm,
    ln.layer_norm_forward,
    ln.layer_norm_backward,
    parameters=("gamma", "beta"),
    statistics=("mean", "rstd"),
    epsilon=1e-5,
    reference=reference.layer_norm,
)
RMS_NORM = Operation(
    "rms_norm",
    ln.rms_norm,
    ln.rms_norm_forward,
    ln.rms_norm_backward,
    parameters=("gamma",),
    statistics=("rstd",),
    epsilon=1e-6,
    reference=reference.rms_norm,
)
OPERATIONS = (LAYER_NORM, RMS_NORM)
