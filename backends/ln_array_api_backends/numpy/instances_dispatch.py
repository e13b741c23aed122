"""From a spec to compiled kernels for instances, which are rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ln_array_api.backend import FamilySpec

from . import instances
from .call_context import CallContext
from .config import ITEMSIZE, should_use_non_temporal
from .tasks import boolean, real

#: Smallest x that is prefetched, since it does not fit in the cache.
PREFETCH_MIN_BYTES = 12 << 20


def _context(spec: FamilySpec) -> CallContext:
    m, n = spec.shape
    size = m * n * ITEMSIZE[spec.dtype]
    return CallContext(spec, spec.shape, 0, non_temporal=should_use_non_temporal(m, size))


def _is_large(spec: FamilySpec) -> bool:
    return math.prod(spec.shape) * ITEMSIZE[spec.dtype] >= PREFETCH_MIN_BYTES


def statistics(spec: FamilySpec) -> Callable[..., Any]:
    """Return what runs ``instances_statistics``."""
    context, m = _context(spec), spec.shape[0]
    run = context.bind(
        instances.statistics_task,
        m,
        *(context.x, *[context.acc(m, 1)] * 4),
        *(real(spec.epsilon), boolean(_is_large(spec))),
    )

    def call(x: Any) -> tuple[np.ndarray, ...]:
        results = tuple(context.new(m, 1) for _ in range(4))
        run(x, *results)
        return results

    return call


def affine(spec: FamilySpec) -> Callable[..., Any]:
    """Return what runs ``instances_affine``."""
    context, m = _context(spec), spec.shape[0]
    run = context.bind(
        instances.affine_task,
        m,
        *(context.x, *[context.acc(m, 1)] * 5, context.x, boolean(context.non_temporal)),
    )

    def call(x: Any, *others: Any) -> np.ndarray:
        y = context.empty(x.dtype)
        run(x, *others, y)
        return y

    return call


def sums(spec: FamilySpec) -> Callable[..., Any]:
    """Return what runs ``instances_sums``."""
    context, m = _context(spec), spec.shape[0]
    run = context.bind(
        instances.sums_task,
        m,
        *(context.dy, context.x, *[context.acc(m, 1)] * 5, boolean(_is_large(spec))),
    )

    def call(*arrays: Any) -> tuple[np.ndarray, ...]:
        results = tuple(context.new(m, 1) for _ in range(3))
        run(*arrays, *results)
        return results

    return call


def gradient(spec: FamilySpec) -> Callable[..., Any]:
    """Return what runs ``instances_gradient``."""
    context, m = _context(spec), spec.shape[0]
    run = context.bind(
        instances.gradient_task,
        m,
        *(context.dy, context.x, *[context.acc(m, 1)] * 6, context.x),
        boolean(context.non_temporal),
    )

    def call(dy: Any, x: Any, *others: Any) -> np.ndarray:
        dx = context.empty(x.dtype)
        run(dy, x, *others, dx)
        return dx

    return call
