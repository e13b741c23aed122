"""Torch tensors on the compiled kernels: bits, layouts, threads, and traced calls."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

torch = pytest.importorskip("torch", reason="torch is not installed")


pytest.importorskip("numba", reason="Numba is not installed")
from torch_inputs import DTYPES, NAMES, bits, call, doubles, plain, tensor, values  # noqa: E402 - which imports torch

#: Torch compiles some of its own forward derivatives, and its tracer, by what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "shape"), [*((each, (3, 4, 5)) for each in DTYPES), ("float32", (64, 32, 80))]
)
def test_results_and_gradients_are_the_bits_of_numpy(
    name: str, dtype: str, shape: tuple[int, ...]
) -> None:
    x, gamma, beta, dy = values(name, shape, dtype)
    expected = call(name, x, gamma, beta)
    inputs = [tensor(each, grad=True) for each in (x, gamma, beta)]
    result = call(name, *inputs)
    for own, numpys in zip(result, expected, strict=True):
        if own is not None:
            np.testing.assert_array_equal(bits(own), bits(numpys))
    result.y.backward(tensor(dy))
    with_statistics = (dy, x, *expected[1:3]) if name != "rms" else (dy, x, expected.rstd)
    backward = {
        "layer": ln.layer_norm_backward,
        "rms": ln.rms_norm_backward,
        "group": lambda *a: ln.group_norm_backward(*a, num_groups=2),
        "instance": ln.instance_norm_backward,
        "batch": ln.batch_norm_backward,
    }[name]
    parameters = (gamma,) if name == "rms" else (gamma, beta)
    gradients = backward(*with_statistics, *parameters)
    for own, numpys in zip(inputs, gradients, strict=False):
        assert own.grad.dtype is own.dtype
        np.testing.assert_array_equal(bits(own.grad), bits(numpys))


def test_out_counts_as_written() -> None:
    x, out = doubles((3, 4), (3, 4))
    version = out._version
    assert ln.layer_norm(x, out=out) is out
    assert out._version == version + 1
    with torch.inference_mode():
        out = torch.empty_like(x)
        torch.testing.assert_close(ln.layer_norm(x, out=out), ln.layer_norm(x))


def test_modules_can_be_copied_and_frozen() -> None:
    gamma = torch.nn.Parameter(torch.ones(4))
    x = torch.randn(3, 4)
    assert torch.equal(ln.layer_norm(x, gamma), ln.layer_norm(x, copy.deepcopy(gamma)))
    with torch.inference_mode():
        assert ln.layer_norm(x, gamma).is_inference()


def operations(function: Callable[[Any], Any]) -> list[str]:
    """Return the names of the operations that torch sees in a call."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Mode():
        function(torch.ones(3, 4))
    return seen


def test_a_mode_sees_the_operations() -> None:
    assert any(name.startswith("sum") for name in operations(ln.layer_norm))


def test_fake_and_meta_tensors_have_results() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert ln.layer_norm(torch.ones(3, 4)).shape == (3, 4)
    assert ln.layer_norm(torch.ones(3, 4, device="meta")).device.type == "meta"


def test_a_traced_program_computes_with_its_own_inputs() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    first, second = torch.randn(3, 4), torch.randn(3, 4)
    graph = make_fx(lambda x: ln.layer_norm(x))(first)
    torch.testing.assert_close(graph(second), ln.layer_norm(second))


def test_a_subclass_sees_the_operations() -> None:
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            seen.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    y = ln.layer_norm(torch.ones(3, 4).as_subclass(Watched))
    assert type(y) is Watched
    assert "sqrt" in seen


def test_negated_views_and_other_layouts() -> None:
    (x,) = doubles((4, 6))
    negated = torch.complex(x, -x).conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(ln.layer_norm(negated), ln.layer_norm(x), rtol=0, atol=0)
    strided = torch.stack([x, x], -1)[..., 0]
    torch.testing.assert_close(ln.layer_norm(strided), ln.layer_norm(x), rtol=0, atol=0)
    torch.testing.assert_close(ln.layer_norm(x.T, axis=0).T, ln.layer_norm(x), rtol=0, atol=0)


def test_results_are_on_the_device_of_x_for_any_default_device() -> None:
    x, gamma, beta = (each.requires_grad_() for each in doubles((3, 4), (4,), (4,)))
    with torch.device("meta"):
        result = ln.layer_norm_forward(x, gamma, beta)
        gradients = torch.autograd.grad(ln.layer_norm(x, gamma, beta).pow(2).sum(), (x, gamma))
        images = ln.batch_norm_forward(x, gamma, beta)
    assert {each.device.type for each in (*result, *gradients, *images[:3])} == {"cpu"}
    torch.testing.assert_close(result.y, plain(x, gamma, beta))


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("name", ["group", "instance", "batch"])
def test_results_keep_the_channels_last_memory_format(name: str, rank: int) -> None:
    shape, last = ((2, 4, 3, 5), torch.channels_last)
    if rank == 5:
        shape, last = ((2, 4, 3, 5, 2), torch.channels_last_3d)
    x, gamma, beta, dy = (
        tensor(each, grad=number < 3) for number, each in enumerate(values(name, shape))
    )
    moved = x.detach().to(memory_format=last).requires_grad_()
    found = []
    for each in (x, moved):
        result = call(name, each, gamma, beta)
        found.append((*result, *torch.autograd.grad(result.y, (each, gamma, beta), dy)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert found[1][0].is_contiguous(memory_format=last)
    assert not found[1][0].is_contiguous()
    backward = {
        "group": lambda *a: ln.group_norm_backward(*a, num_groups=2),
        "instance": ln.instance_norm_backward,
        "batch": ln.batch_norm_backward,
    }[name]
    statistics = [each.detach() for each in found[1][1:3]]
    with torch.no_grad():
        dx = backward(dy, moved, *statistics, gamma).dx
    assert dx.is_contiguous(memory_format=last)
    torch.testing.assert_close(dx, found[0][-3], rtol=1e-5, atol=1e-5)


def test_explain_says_that_the_memory_of_the_tensor_is_used() -> None:
    explanation = ln.explain(ln.layer_norm, torch.ones(3, 4))
    assert explanation.backend == "torch"
    assert explanation.reason.endswith("on the memory of the tensor")


@pytest.mark.parametrize("has_openmp", [False, True])
def test_many_threads_give_the_bits_of_one(
    monkeypatch: pytest.MonkeyPatch, has_openmp: bool
) -> None:
    from ln_array_api_backends.torch import threads

    inputs = [tensor(each, grad=True) for each in values("layer", (4096, 80))[:3]]
    found = []
    for count in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        if not has_openmp:
            monkeypatch.setattr(threads, "_library", None)
        y = ln.layer_norm(*inputs)
        found.append((y, *torch.autograd.grad(y.pow(3).sum(), inputs)))
    for one, many in zip(*found, strict=True):
        np.testing.assert_array_equal(bits(one), bits(many))


FORKED = """
import os
import torch
import ln_array_api as ln

x = torch.randn(4096, 64)
y = ln.layer_norm(x)
child = os.fork()
if child == 0:
    same = ln.layer_norm(x).numpy() == y.numpy()  # torch's own comparison would wait forever
    os._exit(0 if same.all() else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_of_a_fork_computes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "0"


def test_errors_name_the_operand_for_channels_last_tensors() -> None:
    x = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    statistics = torch.ones(4), torch.ones(4)
    with pytest.raises(TypeError, match="batch_norm_backward: dy is an array of numpy"):
        ln.batch_norm_backward(x.numpy(), x, *statistics)
    with pytest.raises(ValueError, match="batch_norm_backward: dy has shape"):
        ln.batch_norm_backward(x[0], x, *statistics)
