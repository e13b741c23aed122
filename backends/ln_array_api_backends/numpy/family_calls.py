"""From a spec to the compiled kernels of operations that are neither rows nor channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ln_array_api.backend import FamilyPrimitive, FamilySpec

from . import hyperbolic_calls, instance_calls, power_calls, window_calls

#: By primitive: what gives a kernel for a call, or None where it does not take such a call.
PREPARED: dict[FamilyPrimitive, Callable[[FamilySpec], Callable[..., Any] | None]] = {
    "tanh_forward": hyperbolic_calls.forward,
    "tanh_backward": hyperbolic_calls.backward,
    "powers_forward": power_calls.forward,
    "powers_backward": power_calls.backward,
    "windows_forward": window_calls.forward,
    "windows_backward": window_calls.backward,
    "instances_statistics": instance_calls.statistics,
    "instances_affine": instance_calls.affine,
    "instances_sums": instance_calls.sums,
    "instances_gradient": instance_calls.gradient,
}


def prepare(primitive: FamilyPrimitive, spec: FamilySpec) -> tuple[Callable[..., Any], str] | None:
    """What runs a call of a primitive, given the arrays alone, and a line for `explain`."""
    kernel = PREPARED[primitive](spec)
    return None if kernel is None else (kernel, f"compiled by Numba for {spec.dtype}")
