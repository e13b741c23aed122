"""The registration of operators, gradients and schemas by other packages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ln_array_api import caffe2
from ln_array_api.caffe2 import registry


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the registry after a test."""
    for name in ("_operators", "_makers", "_schemas"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


class Doubled:
    def __init__(self, op_def: caffe2.OperatorDef) -> None:
        self.factor = op_def.arg.get("factor", 2)

    def run_on_device(self, x: Any) -> tuple[Any, ...]:
        return (self.factor * x,)


def run(op_def: caffe2.OperatorDef, x: Any) -> Any:
    workspace = caffe2.Workspace()
    workspace.feed_blob("X", x)
    workspace.run_operator_once(op_def)
    return workspace.fetch_blob("Y")


def test_a_class_can_be_registered_by_a_call() -> None:
    assert caffe2.register_cpu_operator("Doubled", Doubled) is Doubled
    op_def = caffe2.create_operator("Doubled", ["X"], ["Y"])
    np.testing.assert_array_equal(run(op_def, np.ones(2)), [2.0, 2.0])


def test_a_class_can_be_registered_by_a_decorator() -> None:
    assert caffe2.register_cpu_operator("Doubled")(Doubled) is Doubled
    op_def = caffe2.create_operator("Doubled", ["X"], ["Y"], factor=3)
    np.testing.assert_array_equal(run(op_def, np.ones(2)), [3.0, 3.0])


@pytest.mark.parametrize(
    ("register", "device"),
    [(caffe2.register_cpu_operator, "cpu"), (caffe2.register_cuda_operator, "cuda")],
)
def test_a_name_is_taken_once_on_each_device(register: Any, device: str) -> None:
    other = {"cpu": caffe2.register_cuda_operator, "cuda": caffe2.register_cpu_operator}[device]
    register("Doubled", Doubled)
    with pytest.raises(ValueError, match=f"'Doubled' is registered on {device} already"):
        register("Doubled", Doubled)
    with pytest.raises(ValueError, match=f"'Doubled' is registered on {device} already"):
        register("Doubled")(Doubled)
    other("Doubled", Doubled)
    with pytest.raises(ValueError, match=f"'LayerNorm' is registered on {device} already"):
        register("LayerNorm", Doubled)


def test_a_gradient_is_registered_once() -> None:
    def maker(op_def: Any, grads: Any) -> Any:
        return [], grads

    assert caffe2.register_gradient("Doubled", maker) is maker
    assert caffe2.register_gradient("Tripled")(maker) is maker
    for name in ("Doubled", "LayerNorm"):
        with pytest.raises(ValueError, match=f"register_gradient: '{name}' has a gradient"):
            caffe2.register_gradient(name, maker)


def test_a_schema_is_registered_once_and_holds() -> None:
    caffe2.register_cpu_operator("Doubled", Doubled)
    caffe2.create_operator("Doubled", ["X", "anything"], ["Y", "goes"], any=1)
    schema = caffe2.OperatorSchema("Doubled", (1,), (1,), {"factor": 2}, "Doubles.")
    assert caffe2.register_schema(schema) is schema is caffe2.operator_schema("Doubled")
    with pytest.raises(ValueError, match="Doubled: 2 inputs given"):
        caffe2.create_operator("Doubled", ["X", "Z"], ["Y"])
    with pytest.raises(ValueError, match="register_schema: 'Doubled' has a schema already"):
        caffe2.register_schema(schema)


def test_unknown_names_are_errors_that_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no schema of 'Layernorm'; .* LayerNorm, LayerNormG"):
        caffe2.operator_schema("Layernorm")
    with pytest.raises(
        ValueError, match="Layernorm: there is no such operator; known are:"
    ) as error:
        caffe2.create_operator("Layernorm", ["X"], ["Y"])
    known = str(error.value).partition("known are: ")[2].split(", ")
    assert {"LayerNorm", "LayerNormGradient", "Sum"} <= set(known)


def test_an_operator_does_not_run_where_it_is_not_registered() -> None:
    caffe2.register_cuda_operator("Doubled", Doubled)
    op_def = caffe2.create_operator("Doubled", ["X"], ["Y"])
    with pytest.raises(ValueError, match=r"Doubled: is not registered on cpu; .* on: cuda"):
        run(op_def, np.ones(2))
    caffe2.register_schema(caffe2.OperatorSchema("Nowhere", (1,), (1,), {}, "Does not run."))
    with pytest.raises(ValueError, match=r"Nowhere: is not registered on cpu; .* on: none"):
        run(caffe2.create_operator("Nowhere", ["X"], ["Y"]), np.ones(2))


@pytest.mark.parametrize(
    ("device", "chosen"), [("cpu", "cpu"), ("cuda", "cuda"), ("tpu", "cpu"), (None, "cpu")]
)
def test_the_class_is_that_of_the_device(device: str | None, chosen: str) -> None:
    class OnCPU(Doubled):
        pass

    class OnCUDA(Doubled):
        pass

    caffe2.register_cpu_operator("Doubled", OnCPU)
    caffe2.register_cuda_operator("Doubled", OnCUDA)
    op_def = caffe2.create_operator("Doubled", ["X"], ["Y"])
    expected = {"cpu": OnCPU, "cuda": OnCUDA}[chosen]
    assert registry.operator_class(op_def, device) is expected
