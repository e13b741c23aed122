"""Primitives on tensors, and their derivatives.

The compiled kernels of the NumPy backend work on the memory of tensors, so results have the same
bits as on NumPy. Where torch keeps a graph, the kernel is a node of it, which saves the inputs and
the statistics; its backward pass is a compiled kernel too. Derivatives of gradients and of
statistics use the generic kernels, which consist of operations of torch, as do calls that torch
traces or transforms.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ln_array_api.backend import GENERIC, Primitive, RowsSpec, Spec

from .. import numpy as engine
from . import cuda, rows
from .arrays import OnArrays
from .tracing import is_batched, is_differentiated, is_traced, is_transformed

Results: TypeAlias = tuple[Tensor | None, ...]

#: How many inputs a forward primitive has before its statistics: x, gamma and beta.
INPUTS = 3


def prepare(primitive: Primitive, spec: Spec) -> Any:
    """Return a function of the tensors and `out` that runs a call of a primitive."""
    if primitive == "rows_forward":
        return RowsForward(primitive, spec)
    if primitive == "channels_forward":
        return Forward(primitive, spec)
    return Kernel(primitive, spec)


def compiled(primitive: Primitive, spec: Any) -> Any:
    """Return the compiled kernel for a kind of call; its `results` runs the primitive."""
    if cuda.takes(spec.device):
        return cuda.Kernel(primitive, spec)
    if primitive == "rows_forward":
        return rows.Forward(spec)
    if primitive == "rows_backward":
        return rows.Backward(spec)
    return OnArrays(engine.backend.prepare(primitive, spec), spec.dtype)


class _Primitive:
    """A primitive for a kind of call, run by the generic kernel or a compiled one."""

    def __init__(self, primitive: Primitive, spec: Spec) -> None:
        self.primitive, self.spec = primitive, spec
        self.is_on_cuda = cuda.takes(spec.device)
        self.generic = partial(GENERIC[primitive], **spec.options(primitive))

    @cached_property
    def compiled(self) -> Any:
        """The compiled kernel, made when first needed: traced calls may have symbolic lengths."""
        return compiled(self.primitive, self.spec)


class Kernel(_Primitive):
    """A primitive that torch differentiates through the generic kernel."""

    def __call__(self, *tensors: Tensor | None) -> Any:
        if is_traced(*tensors) or is_differentiated(*tensors):
            return self.generic(*tensors)
        return self.compiled.results(*tensors)


class Forward(_Primitive):
    """A forward primitive for a kind of call, a node of its own in torch's graph."""

    backward_primitive: Primitive = "channels_backward"

    def __init__(self, primitive: Primitive, spec: Spec) -> None:
        super().__init__(primitive, spec)
        self._backward: dict[tuple[bool, ...], Any] = {}

    def __call__(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Any:
        if is_traced(x, gamma, beta):
            return self.traced(x, gamma, beta)
        if is_differentiated(x, gamma, beta):
            return _Node.apply(self, False, x, gamma, beta)
        return self.compiled.results(x, gamma, beta)

    def traced(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Results:
        """Call an operator where torch compiles, and the generic kernel elsewhere."""
        is_compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        # An operator has only a first derivative. On CUDA the compiler fuses operations.
        if not is_compiled or is_transformed() or self.is_on_cuda:
            return self.generic(x, gamma, beta)  # type: ignore[no-any-return]
        from .operators import Node  # a slow import, which few programs need

        kind, spec = self.primitive.removesuffix("_forward"), self.spec
        rows: tuple[Any, ...] = ()
        if isinstance(spec, RowsSpec):
            rows = spec.center, spec.groups, spec.repeat, spec.span
        y, mean, *others = Node.apply(kind, x, gamma, beta, spec.epsilon, *rows)
        return y, mean if rows[:1] != (False,) else None, *others

    def backward(self, need: tuple[bool, ...]) -> Any:
        """Return the compiled backward kernel for a dy of x's dtype and these gradients."""
        kernel = self._backward.get(need)
        if kernel is None:
            spec = self.spec._replace(dy=self.spec.dtype, need=need)  # type: ignore[arg-type]
            kernel = self._backward[need] = compiled(self.backward_primitive, spec)
        return kernel

    def gradients(
        self, need: tuple[bool, ...], dy: Tensor, inputs: Results, statistics: Results
    ) -> Results:
        """Compute gradients of the inputs by the compiled kernel, from what a node has saved."""
        x, gamma, _ = inputs
        mean, *_, rstd = statistics
        return self.backward(need).results(dy, x, mean, rstd, gamma)  # type: ignore[no-any-return]

    def differentiate(
        self, inputs: Results, gradients: Results, need: tuple[bool, ...], create_graph: bool
    ) -> Results:
        """Compute gradients of the inputs by the generic kernel, to be differentiated again."""
        with torch.enable_grad():
            # Views, because the inputs' own hooks must not be called here.
            views = [None if each is None else each.view_as(each) for each in inputs]
            known = [
                (result, gradient)
                for result, gradient in zip(self.generic(*views), gradients, strict=False)
                if gradient is not None
            ]
            wanted = [view for view, is_needed in zip(views, need, strict=True) if is_needed]
            found = iter(
                torch.autograd.grad(
                    [result for result, _ in known],
                    wanted,
                    [gradient for _, gradient in known],
                    create_graph=create_graph,
                    allow_unused=True,
                )
            )
        return tuple(next(found) if is_needed else None for is_needed in need)


class RowsForward(Forward):
    """A forward primitive over rows, which can write y to `out`."""

    backward_primitive: Primitive = "rows_backward"

    def __call__(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, out: Tensor | None = None
    ) -> Any:
        if out is None:
            return super().__call__(x, gamma, beta)
        if is_traced(x, gamma, beta, out) or is_differentiated(x, gamma, beta, out):
            return self.generic(x, gamma, beta, out=out)
        results = self.compiled.results(x, gamma, beta, out)
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)
        return results

    def without_statistics(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, out: Tensor | None = None
    ) -> Any:
        """Return only y, in a tuple."""
        if out is not None or self.is_on_cuda or is_traced(x, gamma, beta):
            return self(x, gamma, beta, out)
        if is_differentiated(x, gamma, beta):
            return (_Node.apply(self, True, x, gamma, beta),)
        return (self.compiled.y(x, gamma, beta),)

    def gradients(
        self, need: tuple[bool, ...], dy: Tensor, inputs: Results, statistics: Results
    ) -> Results:
        x, gamma, _ = inputs
        kernel = self.backward(need)
        if len(statistics) > 1:
            return kernel.results(dy, x, *statistics, gamma)  # type: ignore[no-any-return]
        mean = statistics[0].data_ptr()  # type: ignore[union-attr]
        return kernel.gradients(dy, x, mean, mean + self.compiled.after, gamma)  # type: ignore[no-any-return]


class _Node(torch.autograd.Function):  # type: ignore[misc]
    """A forward primitive in torch's graph, with its statistics as results, or without."""

    @staticmethod
    def forward(ctx: Any, kernel: Any, only_y: bool, *inputs: Tensor | None) -> Any:
        ctx.kernel = kernel
        ctx.set_materialize_grads(False)
        if only_y:
            statistics = kernel.compiled.statistics(inputs[0])
            y = kernel.compiled.y(*inputs, statistics)
            ctx.save_for_backward(*inputs, statistics)
            return y
        results = kernel.compiled.results(*inputs)
        ctx.save_for_backward(*inputs, *results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, dy: Any, *others: Tensor | None) -> Any:
        kernel, need, saved = ctx.kernel, ctx.needs_input_grad[2:], ctx.saved_tensors
        inputs, statistics = saved[:INPUTS], saved[INPUTS:]
        of_statistics = any(each is not None for each in others) if others else False
        if dy is None and not of_statistics:
            return None, None, *[None] * INPUTS
        create_graph = torch.is_grad_enabled()
        if create_graph or of_statistics or is_batched() or is_traced(dy, inputs[0]):
            return None, None, *kernel.differentiate(inputs, (dy, *others), need, create_graph)
        if not dy.is_contiguous() or dy.is_neg():
            dy = dy.contiguous().resolve_neg()
        # Torch converts each to the dtype of its input.
        return None, None, *kernel.gradients(need, dy, inputs, statistics)
