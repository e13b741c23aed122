"""Backward nets: their gradients, under the right names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from caffe2_nets import norm, product, total
from ln_array_api_conformance.libraries import Library

from ln_array_api import caffe2
from ln_array_api.caffe2 import OperatorDef, create_operator

Blobs = dict[str, np.ndarray]


# Nets against central differences.


def run(net: list[OperatorDef], blobs: Blobs) -> caffe2.Workspace:
    workspace = caffe2.Workspace()
    for name, values in blobs.items():
        workspace.feed_blob(name, values)
    workspace.run_net_once(net)
    return workspace


def central_differences(
    net: list[OperatorDef], inputs: Blobs, seeds: Blobs, h: float = 1e-5
) -> Blobs:
    """Differentiate the sum of seeds times outputs, using only the forward net."""

    def loss(blobs: Blobs) -> float:
        workspace = run(net, blobs)
        return sum(float(np.sum(seed * workspace.fetch_blob(y))) for y, seed in seeds.items())

    results = {}
    for name, values in inputs.items():
        results[name] = np.empty_like(values)
        for place in np.ndindex(*values.shape):
            step = np.zeros_like(values)
            step[place] = h
            up, down = (loss({**inputs, name: values + s}) for s in (step, -step))
            results[name][place] = (up - down) / (2 * h)
    return results


def random(**shapes: tuple[int, ...]) -> Blobs:
    rng = np.random.default_rng(21)
    return {name: 1 + rng.standard_normal(shape) for name, shape in shapes.items()}


DATA, PARAMETER = (3, 4), (4,)


NETS: dict[str, tuple[list[OperatorDef], Blobs, tuple[str, ...]]] = {
    "one operator": ([norm("X", out="Y")], random(X=DATA), ("Y",)),
    "with gamma and beta": (
        [norm("X", "g", "b", out="Y", epsilon=0.1)],
        random(X=DATA, g=PARAMETER, b=PARAMETER),
        ("Y",),
    ),
    "three dimensions": (
        [norm("X", "g", "b", out="Y", axis=-2)],
        random(X=(2, 3, 2), g=(3, 2), b=(3, 2)),
        ("Y",),
    ),
    "one after the other": (
        [norm("X", "g", "b", out="A"), norm("A", out="B", epsilon=0.5), product("B", "V", "Y")],
        random(X=DATA, g=PARAMETER, b=PARAMETER, V=DATA),
        ("Y",),
    ),
    "a residual connection": (
        [norm("X", "g", "b", out="A"), product("A", "V", "B"), total("X", "B", "Y")],
        random(X=DATA, g=PARAMETER, b=PARAMETER, V=DATA),
        ("Y",),
    ),
    "parameters shared by two layers": (
        [norm("X", "g", "b", out="A"), norm("A", "g", "b", out="Y", epsilon=0.5)],
        random(X=DATA, g=PARAMETER, b=PARAMETER),
        ("Y",),
    ),
    "a blob used by three operators": (
        [
            norm("X", out="A"),
            product("A", "X", "B"),
            product("A", "V", "C"),
            norm("A", "g", "b", out="D", epsilon=0.5),
            total("B", "C", "D", "Y"),
        ],
        random(X=DATA, V=DATA, g=PARAMETER, b=PARAMETER),
        ("Y",),
    ),
    "a blob that is two inputs at once": (
        [product("X", "X", "A"), total("A", "A", "X", "B"), norm("B", "g", "g", out="Y")],
        random(X=DATA, g=PARAMETER),
        ("Y",),
    ),
    "two outputs, one of which is used": (
        [norm("X", out="Y"), product("Y", "V", "Z")],
        random(X=DATA, V=DATA),
        ("Y", "Z"),
    ),
    "an operator that does not contribute": (
        [
            norm("X", out="Y"),
            product("Y", "V", "Z"),
            create_operator("NotDifferentiable", ["X", "Z"], ["W"]),
        ],
        random(X=DATA, V=DATA),
        ("Y",),
    ),
}


def differentiated(
    net: list[OperatorDef], inputs: Blobs, seeds: Blobs
) -> tuple[list[OperatorDef], caffe2.Workspace]:
    workspace = run(net, inputs)
    names = {blob: f"seed of {blob}" for blob in seeds}
    for blob, name in names.items():
        workspace.feed_blob(name, seeds[blob])
    backward = workspace.add_gradient_operators(net, names)
    workspace.run_net_once(backward)
    return backward, workspace


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_central_differences(name: str) -> None:
    net, inputs, outputs = NETS[name]
    rng = np.random.default_rng(22)
    forward = run(net, inputs)
    seeds = {y: rng.standard_normal(forward.fetch_blob(y).shape) for y in outputs}
    _, workspace = differentiated(net, inputs, seeds)
    for blob, expected in central_differences(net, inputs, seeds).items():
        if f"{blob}_grad" in workspace.blobs:
            actual = workspace.fetch_blob(f"{blob}_grad")
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7, err_msg=blob)
        else:
            np.testing.assert_array_equal(expected, 0.0, err_msg=blob)


def test_gradients_are_the_same_on_every_library(library: Library) -> None:
    net, inputs, _ = NETS["a blob used by three operators"]
    seeds = {"Y": np.random.default_rng(23).standard_normal(DATA)}
    _, expected = differentiated(net, inputs, seeds)
    theirs = {name: library.array(values) for name, values in inputs.items()}
    _, workspace = differentiated(net, theirs, {"Y": library.array(seeds["Y"])})
    assert workspace.blobs == expected.blobs
    for blob in workspace.blobs:
        assert library.is_array(workspace.fetch_blob(blob))
        actual = library.numpy(workspace.fetch_blob(blob))
        np.testing.assert_allclose(actual, expected.fetch_blob(blob), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_a_backward_net_writes_each_blob_once(name: str) -> None:
    """So it can be run again, and no part of a sum is lost."""
    net, _, outputs = NETS[name]
    seeds = {y: f"seed of {y}" for y in outputs}
    backward = caffe2.Workspace().add_gradient_operators(net, seeds)
    written = [blob for op_def in backward for blob in op_def.outputs]
    assert len(set(written)) == len(written)
    given = {blob for op_def in net for blob in (*op_def.inputs, *op_def.outputs)}
    assert not {*given, *seeds.values()} & set(written)


# Names.


def test_the_gradient_of_layer_norm() -> None:
    op_def = norm("X", "g", "b", out="Y", axis=2, epsilon=0.5, device_option="cpu", name="first")
    assert caffe2.get_gradient_defs(op_def, ["dY", None, None]) == (
        [
            OperatorDef(
                "LayerNormGradient",
                ("dY", "Y", "Y_mean", "Y_stddev", "X", "g"),
                ("X_grad", "g_grad", "b_grad"),
                {"axis": 2, "elementwise_affine": True},
                "cpu",
            )
        ],
        ["X_grad", "g_grad", "b_grad"],
    )
    (backward,), names = caffe2.get_gradient_defs(norm("X", out="Y"), ["dY", None, None])
    assert backward == create_operator(
        "LayerNormGradient",
        ["dY", "Y", "Y_mean", "Y_stddev", "X"],
        ["X_grad"],
        axis=1,
        elementwise_affine=False,
    )
    assert names == ["X_grad"]


def test_the_gradient_of_sum_is_that_of_its_output() -> None:
    op_def = total("a", "b", "a", "c")
    assert caffe2.get_gradient_defs(op_def, ["dc"]) == ([], ["dc", "dc", "dc"])


def test_no_gradients_in_no_gradients_out() -> None:
    assert caffe2.get_gradient_defs(norm("X", out="Y"), [None, None, None]) == ([], [None])
    op_def = create_operator("NotDifferentiable", ["a", "b"], ["c"])
    assert caffe2.get_gradient_defs(op_def, [None]) == ([], [None, None])


def test_a_blob_that_is_two_inputs_has_two_parts() -> None:
    (one, other), names = caffe2.get_gradient_defs(product("X", "X", "Y"), ["dY"])
    assert names == ["X_grad_autosplit_0", "X_grad_autosplit_1"]
    assert (one.inputs, one.outputs) == (("dY", "X"), ("X_grad_autosplit_0",))
    assert (other.inputs, other.outputs) == (("dY", "X"), ("X_grad_autosplit_1",))


def backward_of(net: list[OperatorDef], **seeds: str) -> list[tuple[Any, ...]]:
    backward = caffe2.Workspace().add_gradient_operators(net, seeds)
    return [(each.type, each.inputs, each.outputs) for each in backward]


def test_a_backward_net_in_reverse_order() -> None:
    net = [norm("X", out="A"), norm("A", out="Y")]
    assert backward_of(net, Y="Y_grad") == [
        ("LayerNormGradient", ("Y_grad", "Y", "Y_mean", "Y_stddev", "A"), ("A_grad",)),
        ("LayerNormGradient", ("A_grad", "A", "A_mean", "A_stddev", "X"), ("X_grad",)),
    ]


def test_parts_are_summed() -> None:
    net = [product("X", "V", "A"), product("X", "A", "Y")]
    assert backward_of(net, Y="dY") == [
        ("Product", ("dY", "A"), ("X_grad_autosplit_0",)),
        ("Product", ("dY", "X"), ("A_grad",)),
        ("Product", ("A_grad", "V"), ("X_grad_autosplit_1",)),
        ("Product", ("A_grad", "X"), ("V_grad",)),
        ("Sum", ("X_grad_autosplit_0", "X_grad_autosplit_1"), ("X_grad",)),
    ]


def test_existing_names_are_not_reused() -> None:
    net = [product("X", "X_grad_autosplit_0", "Y")]
    net.append(product("X", "Y", "Z"))
    parts = [each for each in backward_of(net, Z="dZ") if each[0] == "Sum"]
    assert parts == [("Sum", ("X_grad_autosplit_1", "X_grad_autosplit_2"), ("X_grad",))]


def test_operators_that_do_not_contribute_are_omitted() -> None:
    net = [norm("X", out="Y"), create_operator("NotDifferentiable", ["X", "Y"], ["Z"])]
    assert [each[0] for each in backward_of(net, Y="dY")] == ["LayerNormGradient"]
    assert backward_of(net) == []


def test_a_gradient_that_is_passed_on_gets_the_name_of_its_blob() -> None:
    assert backward_of([total("a", "b", "c")], c="dc") == [
        ("Sum", ("dc",), ("a_grad",)),
        ("Sum", ("dc",), ("b_grad",)),
    ]


def test_intermediate_blobs_of_a_gradient_get_unique_names() -> None:
    @caffe2.register_gradient("Twofold")
    def maker(op_def: OperatorDef, grads: list[str | None]) -> Any:
        (grad,), (x,) = grads, op_def.inputs
        backward = [OperatorDef("Sum", [grad], ["t"]), OperatorDef("Sum", ["t", "t"], ["d" + x])]
        return backward, ["d" + x]

    net = [OperatorDef("Twofold", ["t"], ["u"]), OperatorDef("Twofold", ["u"], ["Y"])]
    assert backward_of(net, Y="dY") == [
        ("Sum", ("dY",), ("t_autosplit_0",)),
        ("Sum", ("t_autosplit_0", "t_autosplit_0"), ("u_grad",)),
        ("Sum", ("u_grad",), ("t_autosplit_1",)),
        ("Sum", ("t_autosplit_1", "t_autosplit_1"), ("t_grad",)),
    ]


def test_an_input_without_gradient() -> None:
    @caffe2.register_gradient("Choose")
    def maker(op_def: OperatorDef, grads: list[str | None]) -> Any:
        return [], [grads[0], None]

    net = [total("I", "i"), total("X", "x"), OperatorDef("Choose", ["x", "i"], ["Y"])]
    assert backward_of(net, Y="dY") == [
        ("Sum", ("dY",), ("x_grad",)),
        ("Sum", ("x_grad",), ("X_grad",)),
    ]
