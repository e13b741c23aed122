"""Define operators, and infer the shapes of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .registry import schema_of
from .schema import OperatorDef, Shape, pluralize


def create_operator(
    type: str,  # noqa: A002 - as OperatorDef calls it
    inputs: Sequence[str],
    outputs: Sequence[str],
    /,
    *,
    name: str = "",
    device_option: str | None = None,
    **arg: Any,
) -> OperatorDef:
    """Define an operator, checked against the schema of its type.

    Parameters
    ----------
    type : str
        For example ``"LayerNorm"``.
    inputs, outputs : sequence of str
        Names of the blobs that it reads and writes.
    name : str, optional
        Shown in error messages.
    device_option : {"cpu", "cuda"}, optional
        The device of its inputs; None allows any.
    **arg
        The operator's arguments; the others have their defaults.

    Returns
    -------
    op_def : OperatorDef

    Raises
    ------
    ValueError
        For an unknown type, argument or device, a wrong value of an argument, or a wrong number of
        inputs or outputs. A type that was registered without a schema allows any number of them,
        and any arguments.

    Examples
    --------
    >>> from ln_array_api import caffe2
    >>> caffe2.create_operator("LayerNorm", ["X"], ["Y", "mean", "stddev"], axis=1, epsilon=1e-5)
    OperatorDef(type='LayerNorm', inputs=('X',), outputs=('Y', 'mean', 'stddev'),
                arg={'axis': 1, 'epsilon': 1e-05}, device_option=None, name='')
    """
    # The dataclass converts these sequences to tuples.
    op_def = OperatorDef(type, inputs, outputs, arg, device_option, name)  # type: ignore[arg-type]
    validated_args(op_def)
    return op_def


def validated_args(op_def: OperatorDef) -> dict[str, Any]:
    """Return the arguments with the schema's defaults; raise if the definition is not valid."""
    schema = schema_of(op_def)
    return op_def.arg if schema is None else schema.check(op_def)


def tensor_inference_function(
    op_def: OperatorDef, input_shapes: Sequence[Sequence[int]]
) -> list[Shape]:
    """Infer the shapes of an operator's outputs from those of its inputs, without any data.

    Parameters
    ----------
    op_def : OperatorDef
        Of a type whose schema has `infer_shapes`.
    input_shapes : sequence of shapes
        One for each input.

    Returns
    -------
    output_shapes : list of tuples of int
        One for each output. For LayerNorm, the shape of X and twice that of mean and stddev,
        ``X.shape[:axis] + (1,)``; for LayerNormGradient, the shape of X and, with
        elementwise_affine, twice that of gamma; for Sum, the shape that all inputs have.

    Raises
    ------
    ValueError
        For a definition that its schema does not allow, shapes that the operator would reject, or
        a type whose schema has no `infer_shapes`.

    Examples
    --------
    >>> from ln_array_api import caffe2
    >>> op_def = caffe2.create_operator("LayerNorm", ["X"], ["Y", "mean", "stddev"], axis=-1)
    >>> caffe2.tensor_inference_function(op_def, [(2, 3, 4)])
    [(2, 3, 4), (2, 3, 1), (2, 3, 1)]
    """
    arguments, schema = validated_args(op_def), schema_of(op_def)
    if schema is None or schema.infer_shapes is None:
        raise ValueError(
            f"{op_def.label}: the shapes of its outputs cannot be inferred; register a schema with "
            "infer_shapes for it"
        )
    if len(input_shapes) != len(op_def.inputs):
        raise ValueError(
            f"{op_def.label}: {pluralize(len(input_shapes), 'shape')} given, but it has "
            f"{pluralize(len(op_def.inputs), 'input')}"
        )
    return schema.infer_shapes(op_def, arguments, [tuple(each) for each in input_shapes])
