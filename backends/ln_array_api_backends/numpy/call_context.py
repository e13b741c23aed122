"""The common context of the tasks of a call: types of arrays, allocation, and threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from ln_array_api.backend import FamilySpec, Spec

from .array_tasks import bind, max_parts_of, use_threads
from .config import ITEMSIZE, accumulation_dtype
from .memory import allocator
from .tasks import ABSENT, Argument, Task, array_of


class CallContext:
    """The context of calls with one spec, whose kernels get arrays of one shape."""

    def __init__(
        self,
        spec: Spec | FamilySpec,
        shape: tuple[int, ...],
        parameters: int,
        *,
        non_temporal: bool,
    ) -> None:
        """Take the shape of arrays in the kernels, and the length of gamma and of beta."""
        self.spec, self.shape, self.non_temporal = spec, shape, non_temporal
        self.size = math.prod(shape) * ITEMSIZE[spec.dtype]
        self._acc_name = accumulation_dtype(spec.dtype)
        self.acc_dtype = np.dtype(self._acc_name)
        self.x, self.dy = array_of(spec.dtype, *shape), array_of(spec.dy, *shape)
        self.gamma, self.beta = array_of(spec.gamma, parameters), array_of(spec.beta, parameters)
        self.max_parts = numba.config.NUMBA_NUM_THREADS if use_threads(self.size) else 1
        self._new = allocator(self.size)

    def acc(self, *shape: int) -> Argument:
        """Return an array argument in the accumulation dtype."""
        return array_of(self._acc_name, *shape)

    def gradients(self, parameters: int) -> tuple[Argument, Argument, Argument]:
        """Return the arguments dx, dgamma and dbeta; those that are not needed are absent."""
        kinds = self.x, self.acc(parameters), self.acc(parameters)
        dx, dgamma, dbeta = (
            kind if need else ABSENT for kind, need in zip(kinds, self.spec.need, strict=True)
        )
        return dx, dgamma, dbeta

    def bind(
        self, make: Callable[[str], Any], count: int, *arguments: Argument
    ) -> Callable[..., None]:
        """Return a function of the leading array arguments, which runs a task of `count` items."""
        arrays = [isinstance(kind, types.Array) or kind == types.none for kind, _ in arguments]
        num_arrays = arrays.index(False) if False in arrays else len(arrays)
        task = Task(make, arguments, count)
        return bind(task, num_arrays, max_parts_of(count, self.size), self.size)

    def empty(self, dtype: Any) -> np.ndarray:
        """Allocate a result with the shape of x in the kernels."""
        return self._new(self.shape, dtype)

    def new(self, *shape: int) -> np.ndarray:
        """Allocate a result in the accumulation dtype."""
        return np.empty(shape, self.acc_dtype)
