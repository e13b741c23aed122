"""The torch backend: which calls it accepts, and how they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ln_array_api.backend import (
    ChannelsBackend,
    Layout,
    Primitive,
    RowsBackend,
    RowsSpec,
    Spec,
)

from .. import numpy as engine
from . import cuda, kernel, strided


class TorchBackend(RowsBackend, ChannelsBackend):
    """All primitives, for every dtype and option, on tensors in memory of the CPU or of CUDA."""

    def can_run(self, primitive: Primitive, spec: Spec) -> bool:
        if cuda.takes(spec.device):
            return cuda.can_run(primitive, spec)
        return spec.device == "cpu" and engine.backend.can_run(primitive, spec)

    def prepare(self, primitive: Primitive, spec: Spec) -> Callable[..., Any]:
        return kernel.prepare(primitive, spec)  # type: ignore[no-any-return]

    def prepare_strided(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout
    ) -> tuple[Callable[..., Any], str] | None:
        return strided.prepare(primitive, spec, layout)

    def describe(self, primitive: Primitive, spec: Spec) -> str:
        if cuda.takes(spec.device):
            return cuda.describe(primitive, spec)
        if not all(type(length) is int for length in spec.shape):
            return "compiled by Numba for each shape, on the memory of the tensor"
        return f"{engine.backend.describe(primitive, spec)}, on the memory of the tensor"
