"""JAX: the generic kernels, each compiled as one program by XLA instead of operation by operation.

Compiling changes neither the maths nor that the result can be differentiated, so this takes every
call. Inside a ``jit`` of the caller's own, it is compiled into that.
"""

from __future__ import annotations

from typing import Any

import jax

from ln_array_api.backend import Primitive, Spec
from ln_array_api.kernels import channels, rows

_forward = jax.jit(
    rows.rows_forward, static_argnames=("epsilon", "center", "groups", "repeat", "out")
)
_backward = jax.jit(rows.rows_backward, static_argnames=("center", "groups", "repeat", "need"))
_channels_forward = jax.jit(channels.channels_forward, static_argnames="epsilon")
_channels_inference = jax.jit(channels.channels_inference, static_argnames="epsilon")
_channels_backward = jax.jit(channels.channels_backward, static_argnames="need")


class JaxBackend:
    """All primitives, compiled once for each shape."""

    def can_run(self, primitive: Primitive, spec: Spec) -> bool:
        return True

    def describe(self, primitive: Primitive, spec: Spec) -> str:
        return "the generic kernel as one program, compiled by XLA for this shape"

    def rows_forward(self, *arrays: Any, **options: Any) -> Any:
        return _forward(*arrays, **options)

    def rows_backward(self, *arrays: Any, **options: Any) -> Any:
        return _backward(*arrays, **options)

    def channels_forward(self, *arrays: Any, **options: Any) -> Any:
        return _channels_forward(*arrays, **options)

    def channels_inference(self, *arrays: Any, **options: Any) -> Any:
        return _channels_inference(*arrays, **options)

    def channels_backward(self, *arrays: Any, **options: Any) -> Any:
        return _channels_backward(*arrays, **options)


backend = JaxBackend()
