"""From a spec to compiled kernels for instances, which are rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ln_array_api.backend import FamilySpec

from . import instances
from .call_context import CallContext
from .config import ITEMSIZE, should_use_non_temporal
from .tasks import Argument, boolean, real

#: Smallest x that is prefetched, since it does not fit in the cache.
PREFETCH_MIN_BYTES = 12 << 20


class _Instances:
    """The context of calls with one spec, and the arguments of tasks on its instances."""

    def __init__(self, spec: FamilySpec) -> None:
        m, n = spec.shape
        size = m * n * ITEMSIZE[spec.dtype]
        non_temporal = should_use_non_temporal(m, size)
        self.context = CallContext(spec, spec.shape, 0, non_temporal=non_temporal)
        self.number = self.context.acc(m, 1)
        """An argument with one number per instance."""
        self.is_large = boolean(size >= PREFETCH_MIN_BYTES)

    def numbers(
        self, make: Any, inputs: list[Argument], num_results: int, *options: Argument
    ) -> Callable[..., tuple[np.ndarray, ...]]:
        """Return a kernel that returns arrays of one number per instance."""
        context, m = self.context, self.context.shape[0]
        run = context.bind(make, m, *inputs, *[self.number] * num_results, *options)

        def call(*arrays: Any) -> tuple[np.ndarray, ...]:
            results = tuple(context.new(m, 1) for _ in range(num_results))
            run(*arrays, *results)
            return results

        return call

    def elements(
        self, make: Any, large: list[Argument], num_numbers: int
    ) -> Callable[..., np.ndarray]:
        """Return a kernel that returns an array like x, the last of its large inputs."""
        context, x_index = self.context, len(large) - 1
        arguments = *large, *[self.number] * num_numbers, context.x
        run = context.bind(make, context.shape[0], *arguments, boolean(context.non_temporal))

        def call(*arrays: Any) -> np.ndarray:
            result = context.empty(arrays[x_index].dtype)
            run(*arrays, result)
            return result

        return call


def statistics(spec: FamilySpec) -> Callable[..., Any]:
    """Return the kernel of ``instances_statistics``."""
    of = _Instances(spec)
    options = real(spec.epsilon), of.is_large
    return of.numbers(instances.statistics_task, [of.context.x], 4, *options)


def affine(spec: FamilySpec) -> Callable[..., Any]:
    """Return the kernel of ``instances_affine``."""
    of = _Instances(spec)
    return of.elements(instances.affine_task, [of.context.x], 5)


def sums(spec: FamilySpec) -> Callable[..., Any]:
    """Return the kernel of ``instances_sums``."""
    of = _Instances(spec)
    inputs = [of.context.dy, of.context.x, of.number, of.number]
    return of.numbers(instances.sums_of_rows_task, inputs, 3, of.is_large)


def gradient(spec: FamilySpec) -> Callable[..., Any]:
    """Return the kernel of ``instances_gradient``."""
    of = _Instances(spec)
    return of.elements(instances.gradient_task, [of.context.dy, of.context.x], 6)
