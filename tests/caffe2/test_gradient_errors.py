"""Gradients and backward nets that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from caffe2_nets import norm

from ln_array_api import caffe2
from ln_array_api.caffe2 import OperatorDef

# What is refused.


@pytest.mark.parametrize(
    ("op_def", "grads", "message"),
    [
        (
            norm("X", out="Y"),
            ["dY"],
            r"LayerNorm: 1 gradient given, but it has 3 outputs \(Y, Y_mean, Y_stddev\)",
        ),
        (
            norm("X", out="Y"),
            ["dY", "dmean", None],
            r"LayerNorm: 'dmean' is given as the gradient of its output mean \(Y_mean\)",
        ),
        (
            norm("X", out="Y"),
            [None, None, "ds"],
            r"LayerNorm: 'ds' is given as the gradient of its output stddev \(Y_stddev\)",
        ),
        (
            OperatorDef("NotDifferentiable", ["a", "b"], ["c"]),
            ["dc"],
            "NotDifferentiable: has no gradient; there are gradients of: .*LayerNorm",
        ),
        (
            OperatorDef("LayerNorm", ["X", "g"], ["Y", "m", "s"]),
            ["dY", None, None],
            "LayerNorm: 2 inputs given",
        ),
        (OperatorDef("Absent", ["X"], ["Y"]), ["dY"], "Absent: there is no such operator"),
    ],
)
def test_errors_of_gradients(op_def: OperatorDef, grads: list[str | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caffe2.get_gradient_defs(op_def, grads)


def test_a_gradient_must_name_one_gradient_for_each_input() -> None:
    caffe2.register_gradient("Short", lambda op_def, grads: ([], grads))
    with pytest.raises(ValueError, match="Short: its gradient names 1 gradient, but it has 2 in"):
        caffe2.get_gradient_defs(OperatorDef("Short", ["a", "b"], ["c"]), ["dc"])


@pytest.mark.parametrize(
    ("net", "seeds", "message"),
    [
        ([norm("X", out="X")], {"X": "dX"}, "LayerNorm overwrites X"),
        (
            [norm("X", out="Y"), norm("Z", out="Y")],
            {"Y": "dY"},
            "LayerNorm overwrites Y, so the values that its gradient needs would be lost",
        ),
        ([norm("X", out="Y"), norm("Z", out="X")], {"X": "dX"}, "overwrites X"),
        ([norm("X", out="Y")], {"X": "dX"}, "for 'X', which no operator of the net writes; its"),
        ([norm("X", out="Y")], {"Y": ""}, "the gradient of Y is '', but must be the name"),
        ([norm("X", out="Y")], {"Y": None}, "the gradient of Y is None, but must be the name"),
        (
            [norm("X", out="X_grad")],
            {"X_grad": "seed"},
            "the gradient of X would overwrite X_grad, which is a blob of the net",
        ),
        (
            [norm("X", out="Y"), norm("Y", out="Z")],
            {"Y": "Y_grad", "Z": "Z_grad"},
            "the gradient of Y would overwrite Y_grad, .* the name of a given gradient",
        ),
        ([norm("X", out="Y")], {"Y_mean": "dmean"}, "the gradient of its output mean"),
        ([OperatorDef("Sum", [], ["Y"])], {"Y": "dY"}, "Sum: 0 inputs given"),
    ],
)
def test_errors_of_nets(net: list[OperatorDef], seeds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caffe2.Workspace().add_gradient_operators(net, seeds)
