"""Nodes and inputs that ONNX does not allow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from ln_array_api_conformance.libraries import LIBRARIES, Library
from onnx.helper import make_node

from ln_array_api import DeviceMismatchError
from ln_array_api.onnx import run_node

X, SCALE = np.ones((2, 3), np.float32), np.ones(3, np.float32)


def layer_norm(inputs: str = "x s b", outputs: str = "y", **attributes: object) -> onnx.NodeProto:
    return make_node("LayerNormalization", inputs.split(" "), outputs.split(" "), **attributes)


def test_other_operators() -> None:
    known = "is not one of ONNX's LayerNormalization, RMSNormalization"
    with pytest.raises(ValueError, match=f"Softmax {known}"):
        run_node(make_node("Softmax", ["x"], ["y"]), [X])
    foreign = make_node("LayerNormalization", ["x", "s"], ["y"], domain="com.example")
    with pytest.raises(ValueError, match=rf"com\.example\.LayerNormalization {known}"):
        run_node(foreign, [X, SCALE])
    run_node(make_node("LayerNormalization", ["x", "s"], ["y"], domain="ai.onnx"), [X, SCALE])


def test_opsets_without_the_operator() -> None:
    with pytest.raises(ValueError, match="opset 16 has no LayerNormalization"):
        run_node(layer_norm(), [X, SCALE, SCALE], opset_version=16)
    run_node(layer_norm(), [X, SCALE, SCALE], opset_version=17)
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(ValueError, match=f"knows opsets to {newest}, not {newest + 1}"):
        run_node(layer_norm(), [X, SCALE, SCALE], opset_version=newest + 1)


def test_numbers_of_inputs_and_outputs() -> None:
    message = "the inputs are .*, but must be X, Scale, B; the first 2 are required"
    for inputs in ("x", " s", "x ", "x s b c"):
        with pytest.raises(ValueError, match=message):
            run_node(layer_norm(inputs), [X, SCALE])
    for outputs in ("", " mean", "y mean rstd more"):
        with pytest.raises(ValueError, match=r"the outputs are .*, but must be Y, Mean, InvStdDev"):
            run_node(layer_norm(outputs=outputs), [X, SCALE, SCALE])
    with pytest.raises(ValueError, match=r"2 arrays were given for the inputs .'x', 's', 'b'."):
        run_node(layer_norm(), [X, SCALE])
    with pytest.raises(ValueError, match=r"3 arrays were given for the inputs .'x', 's', ''."):
        run_node(layer_norm("x s "), [X, SCALE, SCALE])


def test_attributes() -> None:
    with pytest.raises(ValueError, match="no attribute axes in the version of opset 17, but axis"):
        run_node(layer_norm(axes=1), [X, SCALE, SCALE])
    with pytest.raises(ValueError, match="axis must be INT, but is FLOAT"):
        run_node(layer_norm(axis=1.0), [X, SCALE, SCALE])
    grouped = make_node("GroupNormalization", ["x", "s", "b"], ["y"])
    with pytest.raises(ValueError, match="the attribute num_groups is missing"):
        run_node(grouped, [X, SCALE, SCALE])
    grouped = make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=1, stash_type=1)
    with pytest.raises(ValueError, match="no attribute stash_type in the version of opset 18"):
        run_node(grouped, [X, SCALE, SCALE], opset_version=20)


def test_the_default_epsilon_is_onnx_s() -> None:
    x = np.asarray([[0.0, 1e-3]], np.float32)
    (y,) = run_node(make_node("RMSNormalization", ["x", "s"], ["y"]), [x, SCALE[:2]])
    assert y[0, 1] == pytest.approx(1e-3 / np.sqrt(0.5e-6 + 1e-5), rel=1e-6)


def test_dtypes() -> None:
    with pytest.raises(TypeError, match="LayerNormalization: X has dtype int32"):
        run_node(layer_norm(), [X.astype(np.int32), SCALE, SCALE])
    with pytest.raises(TypeError, match="B has dtype float64, but must have that of X, float32"):
        run_node(layer_norm(), [X, SCALE, SCALE.astype(np.float64)])
    node = make_node("InstanceNormalization", ["x", "s", "b"], ["y"])
    halves = [each.astype(ml_dtypes.bfloat16) for each in (X, SCALE, SCALE)]
    run_node(node, halves, opset_version=22)
    with pytest.raises(TypeError, match="input has dtype bfloat16, which this operator does not"):
        run_node(node, halves, opset_version=21)


def test_libraries_and_devices(library: Library) -> None:
    x, scale = library.array(X), library.array(SCALE)
    other = LIBRARIES["strict" if library.name == "numpy" else "numpy"]()
    with pytest.raises(TypeError, match=r"B is an array of .*, but X is one of "):
        run_node(layer_norm(), [x, scale, other.array(SCALE)])
    with pytest.raises(TypeError, match="Scale: list is not an array"):
        run_node(layer_norm(), [x, [1.0], scale])
    elsewhere = library.on_second_device(SCALE)
    if elsewhere is not None:
        with pytest.raises(DeviceMismatchError, match=r"Scale is on .*, but X is on"):
            run_node(layer_norm(), [library.bound(X), elsewhere, scale])


def test_without_onnx_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    node = layer_norm()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ln-array-api\[onnx\]'"):
        run_node(node, [X, SCALE, SCALE])


def test_an_import_error_inside_onnx_is_raised_unchanged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = layer_norm()
    (tmp_path / "onnx.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run_node(node, [X, SCALE, SCALE])


def test_importing_the_module_imports_no_onnx() -> None:
    code = "import sys; import ln_array_api.onnx; print('onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
