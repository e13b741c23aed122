"""The NumPy backend: which calls it accepts, and which kernels run them."""

from __future__ import annotations

import math
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
    array_tasks,
    channels_dispatch,
    columns_dispatch,
    contiguous_copy,
    instances_dispatch,
    memory,
    powers_dispatch,
    rows_dispatch,
    strided_dispatch,
    tanh_dispatch,
    threads,
    windows_dispatch,
)
from .config import ITEMSIZE

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


class NumPyBackend(RowsBackend, ChannelsBackend):
    """All primitives, for every dtype and option."""

    ascontiguous = staticmethod(contiguous_copy.ascontiguous)
    family = frozenset(FAMILY)
    takes_where = True

    def can_run(self, primitive: Primitive, spec: Spec) -> bool:
        return 0 not in spec.shape

    def prepare(self, primitive: Primitive, spec: Spec) -> Callable[..., Any]:
        if isinstance(spec, ChannelsSpec):
            return channels_dispatch.prepare(primitive, spec)
        return rows_dispatch.prepare(primitive, spec)

    def prepare_strided(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout
    ) -> tuple[Callable[..., Any], str] | None:
        if spec.where:
            return None
        groups = columns_dispatch.prepare_groups(primitive, spec, layout)
        return groups or strided_dispatch.prepare(primitive, spec, layout)

    def prepare_family(
        self, primitive: FamilyPrimitive, spec: FamilySpec
    ) -> tuple[Callable[..., Any], str] | None:
        kernel = FAMILY[primitive](spec)
        return None if kernel is None else (kernel, f"compiled by Numba for {spec.dtype}")

    def describe(self, primitive: Primitive, spec: Spec) -> str:
        size = math.prod(spec.shape) * ITEMSIZE[spec.dtype]
        count = threads.thread_count() if array_tasks.use_threads(size) else 1
        if isinstance(spec, ChannelsSpec):
            non_temporal = channels_dispatch.uses_non_temporal(spec)
            way = ", by columns" if channels_dispatch.is_by_columns(spec) else ", by channels"
        else:
            non_temporal, way = rows_dispatch.uses_non_temporal(primitive, spec), ""
            count = min(count, rows_dispatch.task_count(primitive, spec))
        return ", ".join(
            (
                f"compiled by Numba for {spec.dtype}{way}",
                "1 thread" if count == 1 else f"{count} threads",
                "streaming stores" if non_temporal else "cached stores",
                "memory from the pool" if size >= memory.POOLED_MIN_BYTES else "fresh memory",
            )
        )
