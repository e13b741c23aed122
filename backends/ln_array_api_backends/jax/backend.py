"""The JAX backend: which calls it accepts, and how they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ln_array_api.backend import Layout, Primitive, RowsSpec, Spec
from ln_array_api.kernels import channels, rows

from . import calls
from .primitives import backward_p, bind, forward_p

_PARAMETERS = "groups", "repeat", "span"


class JaxBackend:
    """All primitives, compiled once for each shape."""

    whole_call = staticmethod(jax.jit)

    def can_run(self, primitive: Primitive, spec: Spec) -> bool:
        return True

    def prepare_strided(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout
    ) -> tuple[Callable[..., Any], str]:
        kernel = _forward(spec, layout) if primitive == "rows_forward" else _backward(spec, layout)
        return kernel, self.describe(primitive, spec)

    def describe(self, primitive: Primitive, spec: Spec) -> str:
        generic = "the generic kernel as one program, compiled by XLA for this shape"
        if not isinstance(spec, RowsSpec):
            return generic
        if calls.missing:
            return f"{generic} ({calls.missing})"
        return (
            "compiled by Numba and called by XLA, in programs for one CPU that are not exported; "
            f"otherwise {generic}"
        )

    rows_forward = staticmethod(
        jax.jit(rows.rows_forward, static_argnames=("epsilon", "center", *_PARAMETERS, "out"))
    )
    rows_backward = staticmethod(
        jax.jit(rows.rows_backward, static_argnames=("center", *_PARAMETERS, "need"))
    )
    channels_forward = staticmethod(jax.jit(channels.channels_forward, static_argnames="epsilon"))
    channels_inference = staticmethod(
        jax.jit(channels.channels_inference, static_argnames="epsilon")
    )
    channels_backward = staticmethod(jax.jit(channels.channels_backward, static_argnames="need"))


def _forward(spec: RowsSpec, layout: Layout) -> Callable[..., Any]:
    def kernel(x: Any, gamma: Any, beta: Any, out: None = None) -> Any:
        options = {"axes": layout.axes, "epsilon": spec.epsilon, "center": spec.center}
        y, *statistics = bind(forward_p, x, gamma, beta, **options)
        return y, statistics[0] if spec.center else None, statistics[-1]

    return kernel


def _backward(spec: RowsSpec, layout: Layout) -> Callable[..., Any]:
    def kernel(*arrays: Any) -> Any:
        found = iter(
            bind(
                *(backward_p, *arrays),
                axes=layout.axes,
                parameter_axes=layout.parameter_axes,
                need=spec.need,
            )
        )
        return tuple(next(found) if each else None for each in spec.need)

    return kernel


backend = JaxBackend()
