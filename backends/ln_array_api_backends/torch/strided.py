"""Normalise over an axis that is not the last, by the NumPy backend's kernels for strided rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ln_array_api.backend import Layout, Primitive, RowsSpec
from ln_array_api.kernels import rows

from ..numpy import strided_dispatch
from .arrays import OnArrays
from .kernel import Forward, Kernel, Results
from .tracing import is_differentiated, is_traced


def prepare(
    primitive: Primitive, spec: RowsSpec, layout: Layout
) -> tuple[Callable[..., Any], str] | None:
    """Return a kernel that takes tensors with all their axes, or None for other layouts."""
    found = strided_dispatch.prepare(primitive, spec, layout) if spec.device == "cpu" else None
    if found is None:
        return None
    compiled, reason = found
    make = StridedForward if primitive == "rows_forward" else StridedBackward
    kernel = make(primitive, spec, layout, OnArrays(compiled, spec.dtype))
    return kernel, f"{reason}, on the memory of the tensor"


class StridedBackward(Kernel):
    """The backward primitive for a kind of call."""

    def __init__(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout, compiled: OnArrays
    ) -> None:
        super().__init__(primitive, spec)
        self.compiled = compiled
        self.generic = partial(
            rows.normalise_backward,
            axes=layout.axes,
            parameter_axes=layout.parameter_axes,
            center=spec.center,
            need=spec.need,
        )


class StridedForward(Forward):
    """The forward primitive for a kind of call; traced calls consist of operations of torch."""

    def __init__(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout, compiled: OnArrays
    ) -> None:
        super().__init__(primitive, spec)
        self._rows_spec, self._layout, self.compiled = spec, layout, compiled
        self.generic = partial(
            rows.forward_over, axes=layout.axes, epsilon=spec.epsilon, center=spec.center
        )

    def __call__(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, out: Tensor | None = None
    ) -> Any:
        if out is None:
            return super().__call__(x, gamma, beta)
        tensors = x, gamma, beta, out
        if is_traced(*tensors) or is_differentiated(*tensors) or out.is_neg():
            return self.generic(x, gamma, beta, out=out)
        _, *statistics = self.compiled.results(*tensors)
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)
        return out, *statistics

    def traced(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Results:
        results: Results = self.generic(x, gamma, beta)
        return results

    def backward(self, need: tuple[bool, ...]) -> Any:
        kernel = self._backward.get(need)
        if kernel is None:
            spec = self._rows_spec._replace(dy=self.spec.dtype, need=need)  # type: ignore[arg-type]
            layout = self._layout._replace(dy=self._layout.strides)
            found = strided_dispatch.prepare("rows_backward", spec, layout)
            assert found is not None  # since dy has the layout of x
            kernel = self._backward[need] = OnArrays(found[0], spec.dtype)
        return kernel
