"""Operators for nets in tests; one has its own gradient, one has none."""

from __future__ import annotations

from typing import Any

from ln_array_api.caffe2 import OperatorDef, create_operator

# An operator of a third party, with a gradient of its own.


class Product:
    """The elementwise product of its two inputs."""

    def __init__(self, op_def: OperatorDef) -> None:
        self.op_def = op_def

    def run_on_device(self, a: Any, b: Any) -> tuple[Any, ...]:
        return (a * b,)


def product_gradient(
    op_def: OperatorDef, grad_outputs: list[str | None]
) -> tuple[list[OperatorDef], list[str | None]]:
    (grad,), (a, b) = grad_outputs, op_def.inputs
    assert grad is not None
    backward = [
        create_operator("Product", [grad, b], [f"{a}_grad"]),
        create_operator("Product", [grad, a], [f"{b}_grad"]),
    ]
    return backward, [f"{a}_grad", f"{b}_grad"]


def product(a: str, b: str, c: str) -> OperatorDef:
    return create_operator("Product", [a, b], [c])


def total(*blobs: str) -> OperatorDef:
    return create_operator("Sum", list(blobs[:-1]), [blobs[-1]])


def norm(*inputs: str, out: str, **options: Any) -> OperatorDef:
    affine = len(inputs) > 1
    outputs = [out, f"{out}_mean", f"{out}_stddev"]
    return create_operator("LayerNorm", inputs, outputs, elementwise_affine=affine, **options)
