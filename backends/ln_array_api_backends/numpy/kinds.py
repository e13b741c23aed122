"""What the kernels for a kind of call have in common: memory, threads, and what is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from ln_array_api.backend import Spec

from . import threads
from .calls import (
    ACCUMULATION,
    ITEMSIZE,
    array_type,
    compiled,
    empty_for,
    may_pay,
    viewed_as,
)


class Kind:
    """A kind of call, for kernels that run a part of their tasks: ``kernel(*, start, stop)``."""

    def __init__(self, spec: Spec, shape: tuple[int, ...], streams: bool) -> None:
        """For arrays of a shape at the kernels; `streams` is whether stores pass the cache."""
        self.spec, self.shape, self.streams = spec, shape, streams
        self.size = math.prod(shape) * ITEMSIZE[spec.dtype]
        accumulation = ACCUMULATION.get(spec.dtype, "float32")
        self.single = np.dtype(accumulation)
        self.x, self.dy = array_type(spec.dtype, len(shape)), array_type(spec.dy, len(shape))
        self.single_type = array_type(accumulation, 1)
        self.gamma, self.beta = array_type(spec.gamma, 1), array_type(spec.beta, 1)
        self.view, self.view_dy = viewed_as(spec.dtype), viewed_as(spec.dy)
        self.view_gamma, self.view_beta = viewed_as(spec.gamma), viewed_as(spec.beta)
        self.empty = empty_for(shape, self.size)
        self.pays = may_pay(self.size)
        self.at_once = numba.config.NUMBA_NUM_THREADS if self.pays else 1

    def over(self, kernel: Any, parallel: Any, *arguments: Any) -> Callable[..., None]:
        """A function of how many tasks there are, and of the kernels' other arguments."""
        alone = compiled(kernel, *arguments, types.int64, types.int64)
        together = compiled(parallel, *arguments, types.int64, types.int64) if self.pays else None

        def run(count: int, *given: Any) -> None:
            parts = min(count, self.at_once)
            if together is None or not threads.run(together, *given, count, parts):
                alone(*given, 0, count)

        return run

    def new(self, length: int) -> np.ndarray:
        """An array of the accumulation dtype."""
        return np.empty(length, self.single)

    def gradient_types(self) -> tuple[Any, Any, Any]:
        """The types of dx, dgamma and dbeta, as far as they are needed."""
        kinds = (self.x, self.single_type, self.single_type)
        dx, dgamma, dbeta = (
            each if need else types.none for each, need in zip(kinds, self.spec.need, strict=True)
        )
        return dx, dgamma, dbeta
