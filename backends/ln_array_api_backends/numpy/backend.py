"""What the NumPy backend is: which calls it takes, and how they run."""

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
    calls,
    channel_calls,
    column_calls,
    family_calls,
    layout,
    strided_calls,
    threads,
)


class NumPyBackend(RowsBackend, ChannelsBackend):
    """All primitives, for every dtype and option."""

    ascontiguous = staticmethod(layout.ascontiguous)
    family = frozenset(family_calls.PREPARED)

    def can_run(self, primitive: Primitive, spec: Spec) -> bool:
        return 0 not in spec.shape

    def prepare(self, primitive: Primitive, spec: Spec) -> Callable[..., Any]:
        if isinstance(spec, ChannelsSpec):
            return channel_calls.prepare(primitive, spec)
        return calls.prepare(primitive, spec)

    def prepare_strided(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout
    ) -> tuple[Callable[..., Any], str] | None:
        groups = column_calls.prepare_groups(primitive, spec, layout)
        return groups or strided_calls.prepare(primitive, spec, layout)

    def prepare_family(
        self, primitive: FamilyPrimitive, spec: FamilySpec
    ) -> tuple[Callable[..., Any], str] | None:
        return family_calls.prepare(primitive, spec)

    def describe(self, primitive: Primitive, spec: Spec) -> str:
        size = math.prod(spec.shape) * calls.ITEMSIZE[spec.dtype]
        count = threads.thread_count() if array_tasks.use_threads(size) else 1
        if isinstance(spec, ChannelsSpec):
            non_temporal = channel_calls.uses_non_temporal(spec)
            way = ", by columns" if channel_calls.is_by_columns(spec) else ", by channels"
        else:
            non_temporal, way = calls.uses_non_temporal(primitive, spec), ""
            count = min(count, calls.task_count(primitive, spec))
        return ", ".join(
            (
                f"compiled by Numba for {spec.dtype}{way}",
                "1 thread" if count == 1 else f"{count} threads",
                "streaming stores" if non_temporal else "cached stores",
                "memory from the pool" if size >= calls.POOLED_MIN_BYTES else "fresh memory",
            )
        )
