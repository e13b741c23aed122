"""The devices of arrays, and the operators that may run there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ln_array_api_conformance.libraries import LIBRARIES, Library

from ln_array_api import DeviceMismatchError, caffe2
from ln_array_api.caffe2 import devices
from ln_array_api.caffe2.devices import device_kind, run_device

SUM = caffe2.create_operator("Sum", ["a", "b"], ["c"])


def test_arrays_on_this_machine(library: Library) -> None:
    expected = "cuda" if library.name == "cupy" else "cpu"
    assert device_kind(library.array(np.ones((2, 3)))) == expected


def test_torch_names_its_devices() -> None:
    torch = pytest.importorskip("torch")
    assert device_kind(torch.empty(2, device="meta")) == "meta"


@pytest.mark.parametrize(
    ("library", "device", "kind"),
    [
        ("jax", (SimpleNamespace(platform="gpu"),), "cuda"),
        ("jax", (SimpleNamespace(platform="cuda"),), "cuda"),
        ("jax", (SimpleNamespace(platform="tpu"),), "tpu"),
        ("jax", None, None),
        ("torch", SimpleNamespace(type="cuda", index=0), "cuda"),
        ("cupy", SimpleNamespace(id=0), "cuda"),
        ("numpy", "cpu", "cpu"),
    ],
)
def test_devices_that_are_not_here(
    monkeypatch: pytest.MonkeyPatch, library: str, device: Any, kind: str | None
) -> None:
    monkeypatch.setattr(devices, "library_of", lambda x: SimpleNamespace(name=library))
    monkeypatch.setattr(devices, "device_of", lambda x: device)
    assert device_kind(object()) == kind


def test_a_chunked_array_has_the_device_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "library_of", lambda x: SimpleNamespace(name=x.library))
    chunk = SimpleNamespace(library="cupy")
    assert device_kind(SimpleNamespace(library="dask", _meta=chunk)) == "cuda"


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Represent arrays by strings that name their devices."""
    monkeypatch.setattr(devices, "device_kind", lambda x: x)


@pytest.mark.usefixtures("placed")
@pytest.mark.parametrize("kind", ["cpu", "cuda", "tpu", None])
def test_inputs_decide(kind: str | None) -> None:
    assert run_device(SUM, (kind, kind)) == kind
    assert run_device(SUM, (kind, None)) == kind


@pytest.mark.usefixtures("placed")
def test_the_device_option_decides_where_inputs_do_not() -> None:
    for option in ("cpu", "cuda", None):
        op_def = caffe2.create_operator("Sum", ["a"], ["c"], device_option=option)
        assert run_device(op_def, (None,)) == option


@pytest.mark.usefixtures("placed")
def test_contradictions() -> None:
    for option, kind in (("cpu", "cuda"), ("cuda", "cpu"), ("cpu", "tpu")):
        op_def = caffe2.create_operator("Sum", ["a", "b"], ["c"], device_option=option)
        with pytest.raises(
            ValueError, match=f"Sum: device_option is '{option}', but b is on {kind}"
        ):
            run_device(op_def, (option, kind))
    with pytest.raises(DeviceMismatchError, match="Sum: a on cpu and b on cuda"):
        run_device(SUM, ("cpu", "cuda"))


def test_objects_that_are_not_arrays_are_refused() -> None:
    with pytest.raises(TypeError, match="Sum: b: list is not an array"):
        run_device(SUM, (np.ones(2), [1.0]))
    strict = LIBRARIES["strict"]()
    assert run_device(SUM, (strict.array(np.ones(2)), strict.on_second_device(np.ones(2)))) == "cpu"
