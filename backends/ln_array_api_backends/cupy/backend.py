"""The CuPy backend: what it can run, and where its kernels are prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ln_array_api.backend import (
    ChannelsBackend,
    ChannelsSpec,
    FamilyPrimitive,
    FamilySpec,
    Layout,
    Primitive,
    RowsBackend,
    RowsSpec,
    Spec,
)

from . import (
    caffe2_stages,
    channels_dispatch,
    instances_dispatch,
    powers_dispatch,
    rows_dispatch,
    tanh_dispatch,
    windows_dispatch,
)
from .kernel_dtypes import kernel_spec, prepare_with_casts
from .kernel_launch import CuPyMemory
from .strided_dispatch import prepare_strided

#: For each family primitive: a function that returns the kernel for a spec, or None if there is
#: none.
FAMILY: dict[FamilyPrimitive, Callable[[FamilySpec], Callable[..., Any] | None]] = {
    "tanh_forward": tanh_dispatch.forward,
    "tanh_backward": tanh_dispatch.backward,
    "powers_forward": powers_dispatch.forward,
    "powers_backward": powers_dispatch.backward,
    "windows_forward": windows_dispatch.forward,
    "windows_backward": windows_dispatch.backward,
    "instances_statistics": instances_dispatch.statistics,
    "instances_affine": instances_dispatch.affine,
    "instances_sums": instances_dispatch.sums,
    "instances_gradient": instances_dispatch.gradient,
}


class CuPyBackend(RowsBackend, ChannelsBackend):
    """All primitives, for every dtype and option."""

    caffe2_stages = caffe2_stages
    family = frozenset(FAMILY)

    def can_run(self, primitive: Primitive, spec: Spec) -> bool:
        can_run: bool = _dispatch(spec).can_run(spec)
        return can_run

    def prepare(
        self, primitive: Primitive, spec: Spec, memory: Any = CuPyMemory
    ) -> Callable[..., Any]:
        """Return a function that runs such calls on arrays of the library that `memory` is for."""
        return prepare_with_casts(_dispatch(spec).PREPARE, primitive, spec, memory)

    def prepare_strided(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout
    ) -> tuple[Callable[..., Any], str] | None:
        return prepare_strided(primitive, spec, layout)

    def prepare_family(
        self, primitive: FamilyPrimitive, spec: FamilySpec
    ) -> tuple[Callable[..., Any], str] | None:
        kernel = FAMILY[primitive](spec)
        return None if kernel is None else (kernel, f"CUDA C for {spec.dtype}")

    def describe(self, primitive: Primitive, spec: Spec) -> str:
        kernel = kernel_spec(spec)
        return f"CUDA C for {spec.dtype}, {_dispatch(kernel).describe(primitive, kernel)}"


def _dispatch(spec: Spec) -> Any:
    return channels_dispatch if isinstance(spec, ChannelsSpec) else rows_dispatch
