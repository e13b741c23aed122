"""What the tasks for a kind of call have in common: the types of arrays, memory, and threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from ln_array_api.backend import FamilySpec, Spec

from .array_tasks import bind, max_parts_of, use_threads
from .calls import ITEMSIZE, Argument, accumulation_dtype, allocator, array_of
from .tasks import Task

ABSENT: Argument = types.none, None


def integer(value: int) -> Argument:
    """An argument that is an integer."""
    return types.int64, value


def boolean(value: bool) -> Argument:
    """An argument that is true or false."""
    return types.boolean, value


class CallContext:
    """A kind of call, whose kernels get arrays of one shape."""

    def __init__(
        self,
        spec: Spec | FamilySpec,
        shape: tuple[int, ...],
        parameters: int,
        *,
        non_temporal: bool,
    ) -> None:
        """For arrays of a shape at the kernels, and so many elements of gamma and of beta."""
        self.spec, self.shape, self.non_temporal = spec, shape, non_temporal
        self.size = math.prod(shape) * ITEMSIZE[spec.dtype]
        self._acc_name = accumulation_dtype(spec.dtype)
        self.acc_dtype = np.dtype(self._acc_name)
        self.x, self.dy = array_of(spec.dtype, *shape), array_of(spec.dy, *shape)
        self.gamma, self.beta = array_of(spec.gamma, parameters), array_of(spec.beta, parameters)
        self.max_parts = numba.config.NUMBA_NUM_THREADS if use_threads(self.size) else 1
        self._new = allocator(self.size)

    def acc(self, *shape: int) -> Argument:
        """An argument that is an array in the accumulation dtype."""
        return array_of(self._acc_name, *shape)

    def gradients(self, parameters: int) -> tuple[Argument, Argument, Argument]:
        """The arguments dx, dgamma and dbeta, as far as they are needed."""
        kinds = self.x, self.acc(parameters), self.acc(parameters)
        dx, dgamma, dbeta = (
            kind if need else ABSENT for kind, need in zip(kinds, self.spec.need, strict=True)
        )
        return dx, dgamma, dbeta

    def bind(
        self, make: Callable[[str], Any], count: int, *arguments: Argument
    ) -> Callable[..., None]:
        """A function of the arrays that are the first arguments, which runs a task of `count`."""
        arrays = [isinstance(kind, types.Array) or kind == types.none for kind, _ in arguments]
        num_arrays = arrays.index(False) if False in arrays else len(arrays)
        task = Task(make, arguments, count)
        return bind(task, num_arrays, max_parts_of(count, self.size), self.size)

    def empty(self, dtype: Any) -> np.ndarray:
        """Memory for a result of the shape of x, as the kernels have it."""
        return self._new(self.shape, dtype)

    def new(self, *shape: int) -> np.ndarray:
        """Memory for a result in the accumulation dtype."""
        return np.empty(shape, self.acc_dtype)
