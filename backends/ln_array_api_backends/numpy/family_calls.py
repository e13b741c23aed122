"""From a spec to the compiled kernels of operations that are neither rows nor channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ln_array_api.backend import FamilyPrimitive, FamilySpec

from . import window_calls

#: By primitive: what gives a kernel for a call, or None where it does not take such a call.
PREPARED: dict[FamilyPrimitive, Callable[[FamilySpec], Callable[..., Any] | None]] = {
    "windows_forward": window_calls.prepare_forward,
    "windows_backward": window_calls.prepare_backward,
}


def prepare(primitive: FamilyPrimitive, spec: FamilySpec) -> tuple[Callable[..., Any], str] | None:
    """What runs a call of a primitive, given the arrays alone, and a line for `explain`."""
    kernel = PREPARED[primitive](spec)
    return None if kernel is None else (kernel, f"compiled by Numba for {spec.dtype}")
