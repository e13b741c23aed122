"""The comparison with torch, whose CPU tensors share the memory of the simulated device."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cupy
import pytest
from gpu import cases, contenders, timing
from gpu.cases import Case
from gpu.contenders import COPY, OURS
from gpu_helpers import BACKWARD, compare

# torch warns of its own modules when they are imported.
of_torch = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def with_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Include torch, as if its CPU were a GPU that has no graphs."""
    torch = pytest.importorskip("torch")
    import ctypes

    def as_tensor(x: Any) -> Any:
        memory = (ctypes.c_char * x.nbytes).from_address(x.data.ptr)
        dtype = getattr(torch, x.dtype.name)
        return torch.frombuffer(memory, dtype=dtype).reshape(x.shape)

    as_array = contenders.as_array

    def as_array_of_tensor(result: Any) -> Any:
        if isinstance(result, torch.Tensor):
            result = cupy.asarray(result.detach()[: contenders.FIRST].float().numpy())
        return as_array(result)

    class Current:
        def __init__(self, *arguments: Any) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *arguments: Any) -> None:
            pass

    monkeypatch.setattr(contenders, "as_tensor", as_tensor)
    monkeypatch.setattr(timing, "as_array", as_array_of_tensor)
    monkeypatch.setattr(torch.cuda, "stream", Current)
    monkeypatch.setattr(torch.cuda, "ExternalStream", Current)
    monkeypatch.setattr(contenders, "_why_no_torch", lambda: "")
    yield torch
    torch._dynamo.reset()


@of_torch
def test_torch_is_compared(with_torch: Any, tmp_path: Path) -> None:
    which = [
        Case(operation, each, (4, 12), "float32")
        for operation in cases.OPERATIONS
        for each in cases.PASSES
    ]
    which.append(BACKWARD._replace(dtype="bfloat16"))
    ran, text = compare(tmp_path, *which)
    assert ran
    for case in which:
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {case} |"))
        assert re.search(r" \d+\.\d\dc \| \d+\.\d\dc \|$", row), text
        assert f"- {case}: torch failed, in a graph: " in text
    assert "QuACK is not compared: quack is not installed." in text
    for name in ("torch", "torch.compile"):
        assert f"Geometric mean of {name}'s 5 ratios: " in text


@of_torch
def test_torch_without_a_compiler_is_compared_uncompiled(
    with_torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        ran, text = compare(tmp_path, BACKWARD._replace(shape=(5, 13)))
    assert ran
    assert re.search(r": torch.compile failed, \w+: .*ompiler", text), text
    assert "Geometric mean of torch's 1 ratios" in text


def test_a_missing_or_broken_torch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    monkeypatch.setattr(contenders, "find_spec", lambda name: name)
    found, absent = contenders.contenders()
    assert list(found) == [OURS, COPY]
    assert absent["torch"].startswith("torch cannot be imported: ModuleNotFoundError: ")
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    _, absent = contenders.contenders()
    assert set(absent.values()) == {"torch is not installed"}


@of_torch
@pytest.mark.parametrize("name", ["torch", "torch.compile"])
def test_gradients_can_be_computed_again(name: str, with_torch: Any) -> None:
    contender, _ = contenders.WITH_TORCH[name]
    inputs = cases.Inputs(BACKWARD, 0)
    call = contender.prepare(BACKWARD)(inputs)
    first, second = call(), call()
    # On the CPU no buffer is donated, so that this would not fail otherwise.
    assert name == "torch" or not with_torch._functorch.config.donated_buffer
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
