"""Schemas of LayerNorm, LayerNormGradient and Sum, and the shapes that they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._dispatch import checks
from ..layer_norm import EPSILON
from .registry import register_schema
from .schema import AT_LEAST_ONE, OperatorDef, OperatorSchema, Shape, pluralize

#: The numbers of inputs and outputs, by type and elementwise_affine.
_COUNTS = {
    ("LayerNorm", False): (1, 3),
    ("LayerNorm", True): (3, 3),
    ("LayerNormGradient", False): (5, 1),
    ("LayerNormGradient", True): (6, 3),
}


class Shapes(NamedTuple):
    """The shapes of X, which is normalised from an axis on, and of the other inputs."""

    axes: tuple[int, ...]
    """The normalised axes."""
    data: Shape
    statistic: Shape
    parameter: Shape
    operands: dict[str, tuple[Shape, str]]
    """For each other input its shape, and a description of that shape."""

    @classmethod
    def of(cls, label: str, name: str, shape: Shape, axis: int) -> Shapes:
        """Return the shapes for an X of this name and shape; raise if the axis does not fit it."""
        if len(shape) < 2:
            raise ValueError(
                f"{label}: {name} has shape {shape}, but must have at least 2 dimensions"
            )
        (first,) = checks.axes(label, axis, shape)
        axes = checks.axes(label, tuple(range(first, len(shape))), shape)
        statistic, parameter = (*shape[:first], 1), shape[first:]
        by_names = {
            ("dY", "Y"): (shape, f"the shape of {name}"),
            ("mean", "stddev"): (statistic, f"the shape of {name} before axis {first}, and 1"),
            ("gamma", "beta"): (parameter, f"the shape of {name} from axis {first} on"),
        }
        operands = {each: shape_of for names, shape_of in by_names.items() for each in names}
        return cls(axes, shape, statistic, parameter, operands)


class _ShapeOnly(NamedTuple):
    """Stand-in for an array whose shape is known, but nothing else."""

    shape: Shape


def _check_shapes(
    op_def: OperatorDef,
    arguments: Mapping[str, Any],
    names: tuple[str, ...],
    input_shapes: Sequence[Shape],
    data: str,
) -> Shapes:
    """Return the shapes that follow from the input called `data`; raise if another differs."""
    given = dict(zip(names, input_shapes, strict=False))
    shapes = Shapes.of(op_def.label, data, given[data], arguments["axis"])
    for name, shape in given.items():
        if name != data:
            checks.same_shape(op_def.label, name, _ShapeOnly(shape), *shapes.operands[name])
    return shapes


def _verify(op_def: OperatorDef, arguments: Mapping[str, Any]) -> None:
    """Check epsilon, and the numbers of inputs and outputs."""
    affine = arguments["elementwise_affine"]
    names = {"input": op_def.inputs, "output": op_def.outputs}
    for (kind, given), wanted in zip(names.items(), _COUNTS[op_def.type, affine], strict=True):
        if len(given) != wanted:
            raise ValueError(
                f"{op_def.label}: {pluralize(len(given), kind)} given ({', '.join(given)}), but "
                f"with elementwise_affine={affine} it has {pluralize(wanted, kind)}"
            )
    if "epsilon" in arguments:
        checks.epsilon(op_def.label, arguments["epsilon"], np.dtype("float64"))


def _infer_layer_norm(
    op_def: OperatorDef, arguments: Mapping[str, Any], input_shapes: Sequence[Shape]
) -> list[Shape]:
    shapes = _check_shapes(op_def, arguments, LAYER_NORM.inputs, input_shapes, "input")
    return [shapes.data, shapes.statistic, shapes.statistic]


def _infer_gradient(
    op_def: OperatorDef, arguments: Mapping[str, Any], input_shapes: Sequence[Shape]
) -> list[Shape]:
    names = LAYER_NORM_GRADIENT.inputs
    shapes = _check_shapes(op_def, arguments, names, input_shapes, "X")
    return [shapes.data, shapes.parameter, shapes.parameter][: len(op_def.outputs)]


def _infer_sum(
    op_def: OperatorDef, arguments: Mapping[str, Any], input_shapes: Sequence[Shape]
) -> list[Shape]:
    first, *others = input_shapes
    for blob, shape in zip(op_def.inputs[1:], others, strict=True):
        shape_text = f"the shape of {op_def.inputs[0]}"
        checks.same_shape(op_def.label, blob, _ShapeOnly(shape), first, shape_text)
    return [first]


LAYER_NORM = register_schema(
    OperatorSchema(
        "LayerNorm",
        num_inputs=(1, 3),
        num_outputs=(3,),
        arguments={"axis": 1, "epsilon": EPSILON, "elementwise_affine": False},
        inputs=("input", "gamma", "beta"),
        outputs=("output", "mean", "stddev"),
        verify=_verify,
        infer_shapes=_infer_layer_norm,
        doc=(
            "Normalises its input to zero mean and unit variance from `axis` to the end: "
            "(input - mean) / stddev, with stddev = sqrt(variance + epsilon) and the biased "
            "variance; then, with elementwise_affine, times gamma, plus beta. Inputs are the "
            "array and, with elementwise_affine, gamma and beta, of its shape from `axis` on. "
            "Outputs are the result, mean and stddev."
        ),
    )
)

LAYER_NORM_GRADIENT = register_schema(
    OperatorSchema(
        "LayerNormGradient",
        num_inputs=(5, 6),
        num_outputs=(1, 3),
        arguments={"axis": 1, "elementwise_affine": False},
        inputs=("dY", "Y", "mean", "stddev", "X", "gamma"),
        outputs=("dX", "dgamma", "dbeta"),
        verify=_verify,
        infer_shapes=_infer_gradient,
        doc=(
            "The gradient of LayerNorm. Inputs are the gradient of its output, its three outputs, "
            "its input and, with elementwise_affine, gamma. Outputs are the gradients of its input "
            "and, with elementwise_affine, of gamma and beta."
        ),
    )
)

SUM = register_schema(
    OperatorSchema(
        "Sum",
        num_inputs=AT_LEAST_ONE,
        num_outputs=(1,),
        arguments={},
        outputs=("sum",),
        infer_shapes=_infer_sum,
        doc="The elementwise sum of one or more arrays of one shape and dtype.",
    )
)
