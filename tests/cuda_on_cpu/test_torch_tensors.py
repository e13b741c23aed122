"""CUDA tensors of torch, replaced by CPU tensors: memory, streams, devices, derivatives."""

from __future__ import annotations

from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
import torch
from ln_array_api_backends.torch import cuda
from torch.fx.experimental.proxy_tensor import make_fx

import ln_array_api as ln

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's own modules
    pytest.mark.usefixtures("on_cuda"),
]


def tensors(m: int, n: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(m * n)
    shapes = ((m, n), (m, n), (n,), (n,))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def same(actual: Any, expected: Any) -> None:
    for own, right in zip(actual, expected, strict=True):
        assert (own is None) == (right is None)
        if own is not None:
            np.testing.assert_array_equal(own.numpy(), cupy.asnumpy(right))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n", [33, 768, 20_000])
def test_bits_are_those_of_cupy(n: int, dtype: torch.dtype) -> None:
    x, dy, gamma, beta = tensors(5, n, dtype)
    assert "CUDA C" in ln.explain(ln.layer_norm, x, gamma, beta).reason
    y, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
    gradients = ln.layer_norm_backward(dy, x, mean, rstd, gamma)
    if dtype is torch.bfloat16:
        return  # of which NumPy has no arrays
    arrays = [cupy.asarray(each.numpy()) for each in (x, dy, gamma, beta)]
    expected = [*ln.layer_norm_forward(arrays[0], *arrays[2:])]
    expected += ln.layer_norm_backward(arrays[1], arrays[0], *expected[1:], arrays[2])
    same((y, mean, rstd, *gradients), expected)


def test_channels_are_those_of_cupy() -> None:
    x = torch.randn(4, 6, 50)
    same(ln.batch_norm_forward(x)[:4], ln.batch_norm_forward(cupy.asarray(x.numpy()))[:4])


def test_nothing_is_allocated_by_cupy_and_nothing_waits(on_cuda: list[Any]) -> None:
    x, dy, gamma, beta = tensors(64, 48)
    for _ in range(2):  # the first compiles
        on_cuda.clear()
        before = cupy_on_cpu.counts()
        _, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
        ln.layer_norm_backward(dy, x, mean, rstd, gamma)
        after = cupy_on_cpu.counts()
    assert after["launches"] - before["launches"] == 3
    for name in ("allocations", "synchronisations", "copies_to_host", "copies_between_devices"):
        assert after[name] == before[name], name
    assert on_cuda == [x.device, "stream", x.device, "stream", "stream"]


@pytest.mark.parametrize("function", [ln.layer_norm, ln.rms_norm])
def test_derivatives(function: Any) -> None:
    x, dy, gamma, _ = (each.double().requires_grad_() for each in tensors(3, 7))
    y = function(x, gamma)
    assert "_Node" in type(y.grad_fn).__name__
    assert torch.autograd.gradcheck(function, (x, gamma))
    assert torch.autograd.gradgradcheck(function, (x, gamma))
    found = torch.autograd.grad(y, (x, gamma), dy.detach())
    with ln.use_backend("generic"):
        right = torch.autograd.grad(function(x, gamma), (x, gamma), dy.detach())
    for own, expected in zip(found, right, strict=True):
        torch.testing.assert_close(own, expected)


def test_tensors_saved_for_the_gradient() -> None:
    x, _, gamma, beta = (each.requires_grad_() for each in tensors(64, 48))
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ln.layer_norm(x, gamma, beta)
    inputs = {each.data_ptr() for each in (x, gamma, beta)}
    assert sum(each.nbytes for each in kept if each.data_ptr() not in inputs) == 2 * 64 * 4


def test_out_is_written() -> None:
    x, _, gamma, beta = tensors(5, 12)
    out = torch.empty_like(x)
    expected = ln.layer_norm(x, gamma, beta)
    assert ln.layer_norm(x, gamma, beta, out=out) is out
    assert torch.equal(out, expected)


def test_traced_calls_consist_of_operations() -> None:
    x, _, gamma, beta = tensors(5, 12)
    graph = make_fx(lambda *tensors: ln.layer_norm(*tensors))(x, gamma, beta).graph
    names = {node.target for node in graph.nodes if node.op == "call_function"}
    assert names
    assert not any("ln_array_api" in str(name) for name in names)


def test_without_cupy_calls_are_generic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "engine", lambda: None)
    assert ln.explain(ln.layer_norm, torch.ones(3, 4)).backend == "generic"
