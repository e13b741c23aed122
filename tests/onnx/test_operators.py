"""ONNX's operators on ONNX's own test cases, and by its documentation where it has none."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from ln_array_api_conformance.libraries import DTYPES, LIBRARIES, Library
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

from ln_array_api.onnx import run_node
from ln_array_api.onnx.operators import _OPERATORS as OPERATORS

Case = tuple[Any, int, list[np.ndarray], list[np.ndarray]]
"""A node, its opset, its inputs and its outputs."""

# --- ONNX's own test cases -----------------------------------------------------------------------

MODULES = (
    "layernormalization",
    "rmsnormalization",
    "groupnormalization",
    "instance_normalization",
    "batch_normalization",
)


def is_ours(model: onnx.ModelProto) -> bool:
    return any(node.op_type in OPERATORS for node in model.graph.node)


def node_cases() -> Iterator[Any]:
    """Yield the cases of single nodes; loading the cases of all operators takes seven seconds."""
    node = importlib.import_module("onnx.backend.test.case.node")
    for module in MODULES:
        importlib.import_module(f"{node.__name__}.{module}")
    for case in node._NodeTestCases:
        if is_ours(case.model):
            for number, (inputs, outputs) in enumerate(case.data_sets):
                yield pytest.param(as_case(case.model, inputs, outputs), id=f"{case.name}-{number}")


def model_cases() -> Iterator[Any]:
    """Yield the cases that are models in files."""
    for kind in ("pytorch-converted", "pytorch-operator", "simple", "light"):
        for case in load_model_tests(kind=kind):
            model = onnx.load(Path(case.model_dir) / "model.onnx")
            if is_ours(model):
                for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
                    inputs, outputs = (
                        [
                            numpy_helper.to_array(onnx.load_tensor(each))
                            for each in files(folder, of)
                        ]
                        for of in ("input", "output")
                    )
                    yield pytest.param(
                        as_case(model, inputs, outputs), id=f"{case.name}-{folder.name[-1]}"
                    )


def files(folder: Path, of: str) -> list[Path]:
    return sorted(folder.glob(f"{of}_*.pb"))


def as_case(model: onnx.ModelProto, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> Case:
    [node], [opset] = model.graph.node, model.opset_import
    named = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    free = (each.name for each in model.graph.input if each.name not in named)
    named |= dict(zip(free, inputs, strict=True))
    return node, opset.version, [named[name] for name in node.input if name], outputs


CASES = [*node_cases(), *model_cases()]


@pytest.mark.parametrize("case", CASES)
def test_onnx_s_own_cases(library: Library, case: Case) -> None:
    node, opset, inputs, expected = case
    arrays = [library.array(each) for each in inputs]
    with library.forbid_compute():
        results = run_node(node, arrays, opset_version=opset)
    assert len(results) == len(expected)
    for result, right in zip(results, expected, strict=True):
        assert library.is_array(result)
        values = library.numpy(result)
        assert (values.dtype, values.shape) == (right.dtype, right.shape)
        np.testing.assert_allclose(values, right, rtol=1e-5, atol=1e-6)  # ONNX: 1e-3, 1e-7


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what makes ONNX's cases
def test_no_case_of_onnx_s_is_omitted() -> None:
    ours = [each for each in load_model_tests(kind="node") if is_ours(each.model)]
    sets = sum(len(each.data_sets) for each in ours)
    tested = [each.id for each in CASES]
    assert {each.name for each in ours} <= {name.rpartition("-")[0] for name in tested}
    assert sets == len(list(node_cases()))
    for operator in OPERATORS:
        assert any(case.values[0][0].op_type == operator for case in CASES), operator


# --- Beyond ONNX's cases -------------------------------------------------------------------------


EPSILON = float(np.float32(1e-5))  # ONNX's attributes are float32


def exact(
    x: np.ndarray, axes: tuple[int, ...], epsilon: float = EPSILON, center: bool = True
) -> np.ndarray:
    x = x.astype(np.float64)
    d = x - x.mean(axes, keepdims=True) if center else x
    return d / np.sqrt((d * d).mean(axes, keepdims=True) + epsilon)


def node(operator: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    others = {"RMSNormalization": "x s", "BatchNormalization": "x s b m v"}
    inputs = others.get(operator, "x s b").split()
    return onnx.helper.make_node(operator, inputs, outputs.split(" "), **attributes)


def drawn(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.asarray(np.random.default_rng(5).normal(1, 2, shape), dtype)


def test_axis_goes_on_to_the_end() -> None:
    x = drawn(2, 3, 4)
    for axis, axes in ((1, (1, 2)), (-1, (2,)), (0, (0, 1, 2)), (-2, (1, 2))):
        one = np.ones(x.shape[axes[0] :], np.float32)
        y, mean, rstd = run_node(
            node("LayerNormalization", "y mean rstd", axis=axis, epsilon=0.5), [x, one, one]
        )
        np.testing.assert_allclose(y, exact(x, axes, 0.5) + 1, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mean, x.mean(axes, keepdims=True), rtol=1e-5)
        np.testing.assert_allclose(rstd, (x.var(axes, keepdims=True) + 0.5) ** -0.5, rtol=1e-5)


@pytest.mark.parametrize(
    "shape", [(), (1,), (4,), (3, 1), (1, 3, 4), (2, 1, 1), (2, 3, 4)], ids=str
)
def test_scale_and_bias_are_broadcast(library: Library, shape: tuple[int, ...]) -> None:
    x, scale, bias = drawn(2, 3, 4), drawn(*shape), np.asarray(-drawn(*shape))
    arrays = list(map(library.array, (x, scale, bias)))
    with library.forbid_compute():
        (y,) = run_node(node("LayerNormalization", axis=1), arrays)
        (y_rms,) = run_node(node("RMSNormalization", axis=1), arrays[:2])
    right = exact(x, (1, 2)) * scale + bias
    np.testing.assert_allclose(library.numpy(y), right, rtol=1e-5, atol=1e-5)
    right = exact(x, (1, 2), center=False) * scale
    np.testing.assert_allclose(library.numpy(y_rms), right, rtol=1e-5, atol=1e-5)


def test_omitted_inputs_and_outputs() -> None:
    x, scale = drawn(3, 4), drawn(4)
    y, mean, rstd = run_node(
        onnx.helper.make_node("LayerNormalization", ["x", "s", ""], ["y", "", "rstd"]), [x, scale]
    )
    assert mean is None
    np.testing.assert_allclose(y, exact(x, (1,)) * scale, rtol=1e-5, atol=1e-6)
    assert rstd.shape == (3, 1)
    short = onnx.helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean"])
    assert [each.shape for each in run_node(short, [x, scale])] == [(3, 4), (3, 1)]


@pytest.mark.parametrize(
    ("stash", "least", "most"),
    [
        (TensorProto.DOUBLE, 0, 1e-15),
        (TensorProto.FLOAT, 1e-9, 1e-6),
        (TensorProto.FLOAT16, 1e-5, 2e-3),
        (TensorProto.BFLOAT16, 1e-4, 2e-2),
    ],
)
@pytest.mark.parametrize(
    "operator", ["LayerNormalization", "RMSNormalization", "GroupNormalization"]
)
def test_float64_goes_through_what_stash_type_names(
    operator: str, stash: int, least: float, most: float
) -> None:
    x, scale = drawn(2, 64, dtype=np.float64), np.ones(64)
    groups = {"num_groups": 1} if operator == "GroupNormalization" else {}
    chosen = node(operator, stash_type=stash, **groups)
    (y,) = run_node(chosen, [x, scale, 0 * scale][: len(chosen.input)])
    assert y.dtype == np.float64
    error = abs(y - exact(x, (1,), center=operator != "RMSNormalization")).max()
    assert least <= error <= 4 * most


@pytest.mark.parametrize(
    ("stash", "dtype"),
    [(1, np.float32), (10, np.float16), (11, np.float64), (16, ml_dtypes.bfloat16)],
)
@pytest.mark.parametrize("of_x", ["float16", "bfloat16", "float32", "float64"])
def test_statistics_have_the_dtype_of_stash_type(of_x: str, stash: int, dtype: Any) -> None:
    x = drawn(2, 8).astype(DTYPES[of_x])
    y, mean, rstd = run_node(
        node("LayerNormalization", "y mean rstd", stash_type=stash), [x, x[0], x[1]]
    )
    assert (y.dtype, mean.dtype, rstd.dtype) == (x.dtype, dtype, dtype)


def test_dtypes_that_a_library_lacks(library: Library) -> None:
    x = library.array(drawn(2, 8))
    chosen = node("LayerNormalization", "y mean", stash_type=TensorProto.BFLOAT16)
    if "bfloat16" in library.dtypes:
        _, mean = run_node(chosen, [x, x[0, :], x[1, :]])
        assert library.numpy(mean).dtype == ml_dtypes.bfloat16
    else:
        with pytest.raises(TypeError, match="array_api_strict has no bfloat16, which stash_type"):
            run_node(chosen, [x, x[0, :], x[1, :]])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    "operator", ["LayerNormalization", "RMSNormalization", "GroupNormalization"]
)
def test_16_bits_are_rounded_once(operator: str, dtype: Any) -> None:
    x, scale, bias = drawn(4, 64, dtype=dtype), drawn(64, dtype=dtype), drawn(64, dtype=dtype)
    groups = {"num_groups": 1} if operator == "GroupNormalization" else {}
    chosen = node(operator, **groups)
    (y,) = run_node(chosen, [x, scale, bias][: len(chosen.input)])
    center = operator != "RMSNormalization"
    right = exact(x, (1,), center=center) * scale.astype(float) + center * bias.astype(float)
    half = 2.0 ** (np.floor(np.log2(abs(right))) - ml_dtypes.finfo(dtype).nmant - 1)
    assert (abs(y.astype(float) - right) <= half + 1e-6).all()


def test_rms_norm_gives_the_dtype_of_scale() -> None:
    x = drawn(3, 8)
    right = exact(x, (1,), center=False)
    for dtype, tolerance in ((np.float64, 1e-6), (np.float16, 2e-3)):
        (y,) = run_node(node("RMSNormalization"), [x, np.full(8, 3, dtype)])
        assert y.dtype == dtype
        np.testing.assert_allclose(y, 3 * right, rtol=tolerance)


def test_scale_is_for_groups_before_opset_21_and_for_channels_since(library: Library) -> None:
    x, chosen = drawn(2, 6, 5), node("GroupNormalization", num_groups=3)
    normalised = exact(x.reshape(2, 3, 10), (2,)).reshape(x.shape)
    for opset, many, each in ((18, 3, 2), (20, 3, 2), (21, 6, 1), (None, 6, 1)):
        scale, bias = drawn(many), -drawn(many)
        arrays = list(map(library.array, (x, scale, bias)))
        with library.forbid_compute():
            (y,) = run_node(chosen, arrays, opset_version=opset)
        right = normalised * np.repeat(scale, each)[:, None] + np.repeat(bias, each)[:, None]
        np.testing.assert_allclose(library.numpy(y), right, rtol=1e-5, atol=1e-5)


def batch_case(*shape: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    """Return x, its parameters and statistics, results of training, and the variance of x."""
    x, scale, bias, mean, var = drawn(*shape), drawn(3), -drawn(3), drawn(3) / 2, drawn(3) ** 2
    axes = (0, *range(2, len(shape)))
    broadcast = (3, *(1 for _ in shape[2:]))
    y = exact(x, axes) * scale.reshape(broadcast) + bias.reshape(broadcast)
    return x, [scale, bias, mean, var], y, x.astype(float).var(axes)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2, 5)], ids=str)
def test_batch_norm_in_training(library: Library, shape: tuple[int, ...]) -> None:
    x, parameters, right, batch_var = batch_case(*shape)
    _, _, mean, var = parameters
    arrays = list(map(library.array, (x, *parameters)))
    chosen = node("BatchNormalization", "y mean var", training_mode=1, momentum=0.75)
    with library.forbid_compute():
        results = run_node(chosen, arrays)
    y, running_mean, running_var = map(library.numpy, results)
    np.testing.assert_allclose(y, right, rtol=1e-5, atol=1e-5)
    batch_mean = x.mean((0, *range(2, len(shape))))
    np.testing.assert_allclose(running_mean, 0.75 * mean + 0.25 * batch_mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(running_var, 0.75 * var + 0.25 * batch_var, rtol=1e-6)
    (alone,) = run_node(node("BatchNormalization", training_mode=1), arrays)
    np.testing.assert_array_equal(library.numpy(alone), y)


def test_batch_norm_with_dtypes_narrower_than_that_of_x(library: Library) -> None:
    narrow = "float32" if library.name == "strict" else "float16"
    wide = "float64" if library.name == "strict" else "float32"
    x, parameters, right, batch_var = batch_case(4, 3)
    x, *parameters = x.astype(wide), *(each.astype(narrow) for each in parameters)
    arrays = list(map(library.array, (x, *parameters)))
    chosen = node("BatchNormalization", "y mean var", training_mode=1, momentum=0.5)
    y, mean, var = map(library.numpy, run_node(chosen, arrays))
    assert (y.dtype, mean.dtype, var.dtype) == (wide, narrow, narrow)
    np.testing.assert_allclose(y, right, atol=1e-2)
    np.testing.assert_allclose(var, 0.5 * parameters[3] + 0.5 * batch_var, rtol=1e-3)
    (y,) = run_node(node("BatchNormalization"), arrays)
    scale, bias, mean, var = (each.astype(float) for each in parameters)
    right = (x - mean) / np.sqrt(var + EPSILON) * scale + bias
    np.testing.assert_allclose(library.numpy(y), right, rtol=1e-5, atol=1e-5)


def test_batch_norm_of_a_single_axis_has_one_channel() -> None:
    x, one = drawn(6), np.ones(1, np.float32)
    (y,) = run_node(node("BatchNormalization", training_mode=1), [x, one, one, one, one])
    np.testing.assert_allclose(y, exact(x, (0,)) + 1, rtol=1e-5, atol=1e-6)


def test_batch_norm_before_opset_9_might_have_a_channel_for_each_element() -> None:
    x, (scale, bias, mean) = drawn(4, 3, 2), drawn(3, 3, 2)
    var = mean**2
    inputs, chosen = [x, scale, bias, mean, var], node("BatchNormalization", spatial=0)
    (y,) = run_node(chosen, inputs, opset_version=7)
    right = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(y, right, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(3,\), but must have \(3, 2\)"):
        run_node(chosen, [x, *inputs[1:4], var[:, 0]], opset_version=7)
    with pytest.raises(ValueError, match="no attribute spatial in the version of opset 9"):
        run_node(chosen, inputs, opset_version=9)


def test_batch_norm_gives_running_statistics_only_in_training() -> None:
    x, parameters, *_ = batch_case(4, 3)
    inputs = [x, *parameters]
    with pytest.raises(ValueError, match="only training_mode=1 gives running statistics"):
        run_node(node("BatchNormalization", "y mean"), inputs)
    training = "training is supported from opset 14 on"
    with pytest.raises(ValueError, match=training):
        run_node(node("BatchNormalization", "y mean var"), inputs, opset_version=9)
    with pytest.raises(ValueError, match=training):
        run_node(node("BatchNormalization"), inputs, opset_version=6)  # is_test=0 by default
    run_node(node("BatchNormalization", is_test=1), inputs, opset_version=6)
    run_node(node("BatchNormalization"), inputs, opset_version=9)


def test_the_mean_costs_no_digits() -> None:
    x = (1e6 + np.random.default_rng(1).normal(size=(2, 4, 256))).astype(np.float32)
    scale, bias = np.ones(4, np.float32), np.zeros(4, np.float32)
    right = exact(x, (2,))
    for chosen in (node("GroupNormalization", num_groups=4), node("InstanceNormalization")):
        (y,) = run_node(chosen, [x, scale, bias])
        assert abs(y - right).max() < 4 * 2.0**-24 * abs(right).max()


def test_torch_differentiates_functions_that_return_only_y() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    torch = LIBRARIES["torch"]()
    x = torch.array(drawn(2, 6)).requires_grad_()
    (y,) = run_node(node("LayerNormalization"), [x, x.detach()[0], x.detach()[1]])
    (y * y).sum().backward()
    assert abs(x.grad.sum(1)).max() < 1e-5 < abs(x.grad).max()


def test_errors_name_the_operator_and_what_is_wrong() -> None:
    x, six, three = drawn(2, 6, 5), drawn(6), drawn(3)
    for opset in (18, 21):
        with pytest.raises(ValueError, match="num_groups=4 does not divide the 6 channels"):
            run_node(node("GroupNormalization", num_groups=4), [x, six, six], opset_version=opset)
        with pytest.raises(ValueError, match="num_groups=0 does not divide the 6 channels"):
            run_node(node("GroupNormalization", num_groups=0), [x, six, six], opset_version=opset)
    grouped = node("GroupNormalization", num_groups=3)
    with pytest.raises(ValueError, match=r"scale has shape \(6,\).*\(3,\), one for each group"):
        run_node(grouped, [x, six, three], opset_version=18)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\).*\(6,\), one for each channel"):
        run_node(grouped, [x, six, three], opset_version=21)
    with pytest.raises(ValueError, match=r"LayerNormalization: axis 3 is out of range for X"):
        run_node(node("LayerNormalization", axis=3), [x, six, six])
    with pytest.raises(ValueError, match=r"Scale has shape \(6,\), which cannot be broadcast to X"):
        run_node(node("LayerNormalization", axis=1), [x, six, six])
    with pytest.raises(ValueError, match=r"scale has shape \(2, 2, 6, 5\), which cannot"):
        run_node(node("RMSNormalization", axis=1), [x, drawn(2, 2, 6, 5)])
    with pytest.raises(ValueError, match=r"stash_type=7 is none of 1 \(float32\), 10 "):
        run_node(node("RMSNormalization", stash_type=7), [x, drawn(5)])
