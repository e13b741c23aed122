"""Blobs, and nets that run on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ln_array_api_conformance.libraries import Library

from ln_array_api import caffe2
from ln_array_api.caffe2 import OperatorDef, create_operator, registry

NORM = create_operator("LayerNorm", ["X"], ["Y", "mean", "stddev"])


def with_x(x: Any) -> caffe2.Workspace:
    workspace = caffe2.Workspace()
    workspace.feed_blob("X", x)
    return workspace


def test_blobs_are_what_was_fed(library: Library) -> None:
    x = library.array(np.ones((2, 3)))
    workspace = with_x(x)
    assert workspace.fetch_blob("X") is x
    workspace.feed_blob("X", (other := library.array(np.zeros(2))))
    assert workspace.fetch_blob("X") is other
    workspace.feed_blob("A", x)
    assert workspace.blobs == ["A", "X"]


def test_workspaces_do_not_share_blobs() -> None:
    with_x(np.ones(2))
    assert caffe2.Workspace().blobs == []


def test_an_operator_runs_on_its_blobs(library: Library) -> None:
    x = library.array(np.random.default_rng(0).standard_normal((3, 5)))
    workspace = with_x(x)
    workspace.run_operator_once(NORM)
    assert workspace.blobs == ["X", "Y", "mean", "stddev"]
    for blob, expected in zip(NORM.outputs, caffe2.LayerNormOp(NORM).run_on_device(x), strict=True):
        np.testing.assert_array_equal(
            library.numpy(workspace.fetch_blob(blob)), library.numpy(expected)
        )


def test_operators_run_in_order_and_may_overwrite_blobs() -> None:
    workspace = with_x(np.ones(2))
    double = create_operator("Sum", ["X", "X"], ["X"])
    workspace.run_net_once([double, double, create_operator("Sum", ["X"], ["Y"]), double])
    np.testing.assert_array_equal(workspace.fetch_blob("Y"), [4.0, 4.0])
    np.testing.assert_array_equal(workspace.fetch_blob("X"), [8.0, 8.0])


def test_an_operator_without_inputs_runs_where_it_is_told() -> None:
    @caffe2.register_cpu_operator("Constant")
    class Constant:
        def __init__(self, op_def: OperatorDef) -> None:
            self.value = op_def.arg["value"]

        def run_on_device(self) -> tuple[Any, ...]:
            return (np.asarray(self.value),)

    workspace = caffe2.Workspace()
    workspace.run_operator_once(create_operator("Constant", [], ["c"], value=3.0))
    assert workspace.fetch_blob("c") == 3.0
    op_def = create_operator("Constant", [], ["c"], value=3.0, device_option="cuda")
    with pytest.raises(ValueError, match="Constant: is not registered on cuda"):
        workspace.run_operator_once(op_def)


@pytest.mark.parametrize("net", [[NORM, OperatorDef("Sum", ["Y", "Z"], ["W"])]])
def test_nothing_runs_where_a_blob_is_missing(net: list[OperatorDef]) -> None:
    workspace = with_x(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"Sum: there is no blob 'Z' .*: X, Y, mean, stddev"):
        workspace.run_net_once(net)
    assert workspace.blobs == ["X"]


def test_nothing_runs_where_a_definition_is_wrong() -> None:
    workspace = with_x(np.ones((2, 3)))
    for wrong, message in (
        (OperatorDef("Sum", ["Y"], ["W"], {"axis": 1}), "Sum: there is no argument 'axis'"),
        (OperatorDef("Absent", ["Y"], ["W"]), "Absent: there is no such operator"),
    ):
        with pytest.raises(ValueError, match=message):
            workspace.run_net_once([NORM, wrong])
    assert workspace.blobs == ["X"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.ones(2), ValueError, r"gave no tuple, but must give a tuple of 2 outputs \(Y, Z\)"),
        ((np.ones(2),), ValueError, "Given: run_on_device gave 1 output, but"),
        ((np.ones(2), [1.0]), TypeError, "Given: Z: list is not an array"),
    ],
)
def test_an_operator_that_gives_something_else(
    given: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Given:
        def __init__(self, op_def: OperatorDef) -> None:
            pass

        def run_on_device(self, x: Any) -> Any:
            return given

    monkeypatch.setattr(registry, "_operators", {("Given", "cpu"): Given})
    with pytest.raises(error, match=message):
        with_x(np.ones(2)).run_operator_once(create_operator("Given", ["X"], ["Y", "Z"]))


def test_a_device_option_that_contradicts_the_blobs() -> None:
    op_def = create_operator("LayerNorm", ["X"], ["Y", "m", "s"], device_option="cuda")
    with pytest.raises(ValueError, match="LayerNorm: device_option is 'cuda', but X is on cpu"):
        with_x(np.ones((2, 3))).run_operator_once(op_def)


def test_errors() -> None:
    workspace = caffe2.Workspace()
    with pytest.raises(ValueError, match="fetch_blob: there is no blob 'X'; there are: none"):
        workspace.fetch_blob("X")
    workspace.feed_blob("Y", np.ones(2))
    with pytest.raises(ValueError, match="fetch_blob: there is no blob 'X'; there are: Y"):
        workspace.fetch_blob("X")
    with pytest.raises(TypeError, match="feed_blob: X: list is not an array"):
        workspace.feed_blob("X", [1.0])
    for name in ("", 1):
        with pytest.raises(ValueError, match=f"feed_blob: the name is {name!r}, but must be"):
            workspace.feed_blob(name, np.ones(2))  # type: ignore[arg-type]
