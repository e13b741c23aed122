"""Layer norm on arrays of torch and JAX, on a CPU."""

from __future__ import annotations

from typing import Any, ClassVar

from cases import BY_NAME, arrays

import ln_array_api as ln

SHAPES = ["8x64", "512x768", "4096x1024", "65536x64"]


class Torch:
    """Time of forward without a graph, and of forward and backward by autograd."""

    params: ClassVar = SHAPES
    param_names: ClassVar = ["shape"]

    def setup(self, shape: str) -> None:
        import torch

        self.torch = torch
        tensors = [torch.from_numpy(each) for each in arrays(BY_NAME[shape])]
        *self.inputs, self.dy = tensors
        self.leaves = [each.clone().requires_grad_() for each in self.inputs]
        self.time_forward(shape)
        self.time_autograd(shape)

    def time_forward(self, shape: str) -> None:
        ln.layer_norm(*self.inputs)

    def time_autograd(self, shape: str) -> None:
        self.torch.autograd.grad(ln.layer_norm(*self.leaves), self.leaves, self.dy)


class JAX:
    """Time of forward, and of forward and the gradients of all inputs, compiled."""

    params: ClassVar = SHAPES
    param_names: ClassVar = ["shape"]

    def setup(self, shape: str) -> None:
        import jax

        *inputs, dy = map(jax.numpy.asarray, arrays(BY_NAME[shape]))
        self.inputs, self.dy, self.forward = inputs, dy, jax.jit(lambda *each: ln.layer_norm(*each))

        def gradients(dy: Any, *inputs: Any) -> Any:
            return jax.vjp(ln.layer_norm, *inputs)[1](dy)

        self.gradients = jax.jit(gradients)
        self.wait = jax.block_until_ready
        self.time_forward(shape)
        self.time_gradients(shape)

    def time_forward(self, shape: str) -> None:
        self.wait(self.forward(*self.inputs))

    def time_gradients(self, shape: str) -> None:
        self.wait(self.gradients(self.dy, *self.inputs))
