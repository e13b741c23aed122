"""Inferred shapes, compared with the shapes of operators' results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ln_array_api import caffe2

OUTPUTS = ["Y", "mean", "stddev"]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 6), 1), ((2, 3, 4), 1), ((2, 3, 4), -1), ((2, 3, 4), 0), ((2, 3, 4), -3), ((0, 3), 1)],
)
def test_inferred_shapes_are_the_real_ones(shape: tuple[int, ...], axis: int, affine: bool) -> None:
    rng = np.random.default_rng(0)
    parameters = [rng.standard_normal(shape[axis % len(shape) :]) for _ in range(2 * affine)]
    op_def = caffe2.create_operator(
        "LayerNorm",
        ["X", "gamma", "beta"][: 1 + 2 * affine],
        OUTPUTS,
        axis=axis,
        elementwise_affine=affine,
    )
    inputs = [rng.standard_normal(shape), *parameters]
    outputs = caffe2.LayerNormOp(op_def).run_on_device(*inputs)
    told = caffe2.tensor_inference_function(op_def, [each.shape for each in inputs])
    assert told == [each.shape for each in outputs]
    assert told[1] == (*shape[: axis % len(shape)], 1)

    (backward,), _ = caffe2.get_gradient_defs(op_def, ["dY", None, None])
    inputs = [rng.standard_normal(shape), *outputs, *inputs[:2]]
    gradients = caffe2.LayerNormGradientOp(backward).run_on_device(*inputs)
    told = caffe2.tensor_inference_function(backward, [list(each.shape) for each in inputs])
    assert told == [each.shape for each in gradients]


def test_sum() -> None:
    op_def = caffe2.create_operator("Sum", ["a", "b"], ["c"])
    assert caffe2.tensor_inference_function(op_def, [(2, 3), (2, 3)]) == [(2, 3)]


LAYER_NORM = caffe2.create_operator("LayerNorm", ["X", "g", "b"], OUTPUTS, elementwise_affine=True)
GRADIENT = caffe2.create_operator("LayerNormGradient", ["dY", "Y", "mean", "stddev", "X"], ["dX"])


@pytest.mark.parametrize(
    ("op_def", "shapes", "message"),
    [
        (LAYER_NORM, [(2, 3)], "LayerNorm: 1 shape given, but it has 3 inputs"),
        (LAYER_NORM, [(3,), (3,), (3,)], r"LayerNorm: input has shape \(3,\), but must have at"),
        (LAYER_NORM, [(2, 3), (3, 1), (3,)], r"LayerNorm: gamma has shape \(3, 1\), but must"),
        (LAYER_NORM, [(2, 3), (3,), (2,)], r"LayerNorm: beta has shape \(2,\), but must"),
        (GRADIENT, [(2, 3), (2, 3), (2,), (2, 1), (2, 3)], r"Gradient: mean has shape \(2,\)"),
        (GRADIENT, [(2, 3), (3,), (2, 1), (2, 1), (2, 3)], r"Gradient: Y has shape \(3,\)"),
        (
            caffe2.create_operator("LayerNorm", ["X"], OUTPUTS, axis=2),
            [(2, 3)],
            "LayerNorm: axis 2 is out of range",
        ),
        (
            caffe2.create_operator("Sum", ["a", "b"], ["c"]),
            [(2, 3), (3,)],
            r"Sum: b has shape \(3,\), but must have \(2, 3\), the shape of a",
        ),
        (caffe2.OperatorDef("Sum", ["a"], ["c"], {"axis": 1}), [(2,)], "Sum: there is no argument"),
        (caffe2.OperatorDef("Some", ["a"], ["c"]), [(2,)], "Some: there is no such operator"),
    ],
)
def test_errors(op_def: caffe2.OperatorDef, shapes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caffe2.tensor_inference_function(op_def, shapes)


def test_a_type_without_shape_inference() -> None:
    @caffe2.register_cpu_operator("Untold")
    class Untold:
        def __init__(self, op_def: caffe2.OperatorDef) -> None:
            pass

        def run_on_device(self, x: Any) -> tuple[Any, ...]:
            return (x,)

    op_def = caffe2.create_operator("Untold", ["X"], ["Y"])
    with pytest.raises(ValueError, match="Untold: the shapes of its outputs cannot be inferred"):
        caffe2.tensor_inference_function(op_def, [(2,)])
