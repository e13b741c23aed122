"""Check a node of a model against ONNX's schema of its operator.

Everything about a node and its inputs is checked here, except the shapes.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._arrays import Array, dtype_name
from .._dispatch import checks

if TYPE_CHECKING:
    from onnx import NodeProto

#: ONNX's names of dtypes, where they differ from NumPy's.
_DTYPES = {"float32": "float", "float64": "double"}


class ParsedNode(NamedTuple):
    """The call that a node describes."""

    operator: str
    version: int
    """The opset that introduced this version of the operator."""
    inputs: list[Array | None]
    """In the schema's order, None for an omitted one."""
    outputs: list[bool]
    """Which outputs are wanted, in the schema's order."""
    attributes: dict[str, Any]
    """The node's attributes, and the schema's defaults for the others."""


def parse_node(
    node: NodeProto, inputs: Sequence[Array], opset_version: int | None, known: Collection[str]
) -> ParsedNode:
    """Return the call that a node of a known operator describes; raise if it is invalid."""
    onnx = _import_onnx()
    schema = _schema(onnx, node, opset_version, known)
    _check_names(schema, "inputs", node.input, schema.inputs, schema.min_input)
    _check_names(schema, "outputs", node.output, schema.outputs, schema.min_output)
    if len(inputs) != sum(map(bool, node.input)):
        raise ValueError(
            f"{schema.name}: {len(inputs)} arrays were given for the inputs {list(node.input)}"
        )
    given = iter(inputs)
    arrays = [next(given) if name else None for name in node.input]
    _check_arrays(schema, arrays)
    wanted = list(map(bool, node.output))
    return ParsedNode(
        schema.name, schema.since_version, arrays, wanted, _attributes(onnx, schema, node)
    )


def _import_onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ModuleNotFoundError(
            "ln_array_api.onnx needs the package onnx: pip install 'ln-array-api[onnx]'",
            name="onnx",
        ) from None


def _schema(onnx: Any, node: NodeProto, opset: int | None, known: Collection[str]) -> Any:
    if node.domain not in ("", "ai.onnx") or node.op_type not in known:
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise ValueError(f"run_node: {operator} is not one of ONNX's {', '.join(known)}")
    newest = onnx.defs.onnx_opset_version()
    opset = newest if opset is None else opset
    if opset > newest:
        raise ValueError(f"run_node: onnx {onnx.__version__} knows opsets to {newest}, not {opset}")
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        raise ValueError(f"run_node: opset {opset} has no {node.op_type}") from None


def _check_names(
    schema: Any, kind: str, names: Sequence[str], parameters: Sequence[Any], required: int
) -> None:
    if not required <= len(names) <= len(parameters) or not all(names[:required]):
        raise ValueError(
            f"{schema.name}: the {kind} are {list(names)}, but must be "
            f"{', '.join(each.name for each in parameters)}; the first {required} are required"
        )


def _check_arrays(schema: Any, arrays: list[Array | None]) -> None:
    """Check that the arrays have one library and device, and dtypes that the operator allows."""
    allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
    first_of_type: dict[str, tuple[str, str]] = {}
    x, name_of_x = arrays[0], schema.inputs[0].name
    for parameter, given in zip(schema.inputs, arrays, strict=False):
        if given is None:
            continue
        checks.array(schema.name, parameter.name, given)
        checks.same_library(schema.name, parameter.name, given, x, name_of_x)
        checks.same_device(schema.name, parameter.name, given, x, name_of_x)
        dtype = dtype_name(given.dtype)
        if f"tensor({_DTYPES.get(dtype, dtype)})" not in allowed[parameter.type_str]:
            raise TypeError(
                f"{schema.name}: {parameter.name} has dtype {dtype}, which this operator does not "
                f"allow in its version of opset {schema.since_version}"
            )
        first, expected = first_of_type.setdefault(parameter.type_str, (parameter.name, dtype))
        if dtype != expected:
            raise TypeError(
                f"{schema.name}: {parameter.name} has dtype {dtype}, but must have that of "
                f"{first}, {expected}"
            )


def _attributes(onnx: Any, schema: Any, node: NodeProto) -> dict[str, Any]:
    value_of = onnx.helper.get_attribute_value
    attributes = {
        name: value_of(each.default_value)
        for name, each in schema.attributes.items()
        if each.default_value.name
    }
    for given in node.attribute:
        if given.name not in schema.attributes:
            raise ValueError(
                f"{schema.name}: there is no attribute {given.name} in the version of opset "
                f"{schema.since_version}, but {', '.join(sorted(schema.attributes))}"
            )
        expected = schema.attributes[given.name].type.name
        actual = onnx.AttributeProto.AttributeType.Name(given.type)
        if actual != expected:
            raise ValueError(f"{schema.name}: {given.name} must be {expected}, but is {actual}")
        attributes[given.name] = value_of(given)
    for name, each in schema.attributes.items():
        if each.required and name not in attributes:
            raise ValueError(f"{schema.name}: the attribute {name} is missing")
    return attributes
