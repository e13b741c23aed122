"""Definitions and the schemas that they are checked against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ln_array_api.caffe2 import OperatorDef, OperatorSchema, create_operator, operator_schema

OUTPUTS = ["Y", "mean", "stddev"]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "arguments"),
    [
        ("LayerNorm", (1, 3), (3,), {"axis": 1, "epsilon": 1e-5, "elementwise_affine": False}),
        ("LayerNormGradient", (5, 6), (1, 3), {"axis": 1, "elementwise_affine": False}),
    ],
)
def test_operator_schema(
    name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], arguments: dict[str, Any]
) -> None:
    schema = operator_schema(name)
    assert schema.type == name
    assert (schema.num_inputs, schema.num_outputs) == (inputs, outputs)
    assert schema.arguments == arguments
    assert len(schema.inputs) == max(inputs)
    assert len(schema.outputs) == max(outputs)
    assert schema.doc


def test_the_schema_of_sum() -> None:
    schema = operator_schema("Sum")
    assert [n in schema.num_inputs for n in (0, 1, 2, 1000)] == [False, True, True, True]
    assert (schema.num_outputs, dict(schema.arguments)) == ((1,), {})


def test_a_definition_keeps_what_it_is_given() -> None:
    op_def = create_operator(
        "LayerNorm", ["X"], OUTPUTS, axis=2, epsilon=0.5, device_option="cpu", name="first"
    )
    assert op_def == OperatorDef(
        "LayerNorm", ("X",), tuple(OUTPUTS), {"axis": 2, "epsilon": 0.5}, "cpu", "first"
    )


def test_arguments_of_a_definition_are_its_own() -> None:
    arg = {"axis": 2}
    op_def = OperatorDef("LayerNorm", ["X"], OUTPUTS, arg)
    arg["axis"] = 3
    assert op_def.arg == {"axis": 2}


def test_numpy_numbers_are_numbers() -> None:
    op_def = create_operator(
        "LayerNorm",
        ["X"],
        OUTPUTS,
        axis=np.int64(1),
        epsilon=np.float32(0.5),
        elementwise_affine=np.False_,
    )
    arguments = operator_schema("LayerNorm").check(op_def)
    assert arguments == {"axis": 1, "epsilon": 0.5, "elementwise_affine": False}
    assert [type(each) for each in arguments.values()] == [int, float, bool]
    assert create_operator("LayerNorm", ["X"], OUTPUTS, epsilon=0).arg == {"epsilon": 0}


@pytest.mark.parametrize(
    ("inputs", "outputs", "options", "message"),
    [
        (["X", "g"], OUTPUTS, {}, r"LayerNorm: 2 inputs given \(X, g\), .* must be 1 or 3"),
        (["X"], ["Y"], {}, r"LayerNorm: 1 output given \(Y\), .* must be 3"),
        (["X"], OUTPUTS, {"axes": 1}, "no argument 'axes'; allowed are: axis, epsilon, element"),
        (
            ["X", "g", "b"],
            OUTPUTS,
            {},
            r"3 inputs given \(X, g, b\), but with elementwise_affine=False it has 1 input$",
        ),
        (
            ["X"],
            OUTPUTS,
            {"elementwise_affine": True},
            "1 input given .* with elementwise_affine=True it has 3 inputs$",
        ),
        (["X"], OUTPUTS, {"axis": 1.0}, "axis is 1.0, but must be an int"),
        (["X"], OUTPUTS, {"axis": True}, "axis is True, but must be an int"),
        (["X"], OUTPUTS, {"epsilon": "small"}, "epsilon is 'small', but must be a real number"),
        (["X"], OUTPUTS, {"epsilon": True}, "epsilon is True, but must be a real number"),
        (["X"], OUTPUTS, {"epsilon": -1.0}, "epsilon must be finite and at least 0, not -1.0"),
        (["X"], OUTPUTS, {"epsilon": math.inf}, "epsilon must be finite"),
        (["X"], OUTPUTS, {"epsilon": math.nan}, "epsilon must be finite"),
        (["X"], OUTPUTS, {"elementwise_affine": 1}, "elementwise_affine is 1, but must be a bool"),
        (["X"], OUTPUTS, {"device_option": "gpu"}, "device_option is 'gpu', .*'cpu', 'cuda'"),
        (["X"], ["Y", "m", "m"], {}, "outputs name m more than once"),
        (["X"], ["Y", "m", ""], {}, "outputs has '', but a blob's name"),
        ([1], OUTPUTS, {}, "inputs has 1, but a blob's name"),
        ("X", OUTPUTS, {}, "inputs is 'X', but must be a list of names"),
    ],
)
def test_errors(inputs: Any, outputs: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^LayerNorm: .*{message.removeprefix('LayerNorm: ')}"):
        create_operator("LayerNorm", inputs, outputs, **options)


@pytest.mark.parametrize(
    ("n", "outputs", "affine", "message"),
    [
        (5, ["dX", "dg", "db"], False, "3 outputs given .* elementwise_affine=False it has 1 out"),
        (6, ["dX"], False, "6 inputs given .* elementwise_affine=False it has 5 inputs"),
        (6, ["dX"], True, "1 output given .* elementwise_affine=True it has 3 outputs"),
        (5, ["dX", "dg", "db"], True, "5 inputs given .* elementwise_affine=True it has 6 inputs"),
        (4, ["dX"], False, "must be 5 or 6"),
        (5, ["dX", "dg"], False, "must be 1 or 3"),
    ],
)
def test_counts_of_the_gradient(n: int, outputs: list[str], affine: bool, message: str) -> None:
    inputs = ["dY", "Y", "mean", "stddev", "X", "gamma"][:n]
    with pytest.raises(ValueError, match=f"^LayerNormGradient: .*{message}"):
        create_operator("LayerNormGradient", inputs, outputs, elementwise_affine=affine)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, r"Sum: 0 inputs given \(\), but the number of inputs must be 1 or more"),
        (["a"], {"axis": 1}, "Sum: there is no argument 'axis'; allowed are: none"),
    ],
)
def test_errors_of_sum(inputs: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_operator("Sum", inputs, ["s"], **options)


def test_a_schema_may_allow_a_range_and_arguments_of_any_kind() -> None:
    schema = OperatorSchema("Join", range(2, 5), (1,), {"separator": ""}, "Joins.")
    given = OperatorDef("Join", ["a", "b"], ["c"], {"separator": None}, name="last")
    assert schema.check(given) == {"separator": None}
    with pytest.raises(ValueError, match=r"^Join 'last': .* must be 2 to 4"):
        schema.check(OperatorDef("Join", ["a"], ["c"], name="last"))
