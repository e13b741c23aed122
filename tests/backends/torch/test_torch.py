"""Torch tensors on the compiled kernels: bits, graphs, derivatives, and what must be traced."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ln_array_api as ln

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("numba", reason="Numba is not installed")

#: Torch compiles some of its own forward derivatives, and its tracer, by what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
#: Functions of x, gamma and beta, each with the length of its parameters for a shape of x.
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[Any], int]]] = {
    "layer": (ln.layer_norm_forward, lambda shape: shape[-1]),
    "rms": (lambda x, g, b: ln.rms_norm_forward(x, g), lambda shape: shape[-1]),
    "group": (lambda *a: ln.group_norm_forward(*a, num_groups=2), lambda shape: shape[1]),
    "instance": (ln.instance_norm_forward, lambda shape: shape[1]),
    "batch": (ln.batch_norm_forward, lambda shape: shape[1]),
}
NAMES = [*FUNCTIONS]


def call(name: str, *arrays: Any) -> Any:
    return FUNCTIONS[name][0](*arrays)


def values(name: str, shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> list[Any]:
    """X, gamma, beta and dy as NumPy arrays."""
    rng, n = np.random.default_rng(seed), FUNCTIONS[name][1](shape)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return [rng.standard_normal(each).astype(kind) for each in (shape, (n,), (n,), shape)]


def tensor(x: np.ndarray, **options: Any) -> Any:
    dtype = DTYPES[x.dtype.name]
    x = x.view(np.int16) if dtype is torch.bfloat16 else x
    return torch.from_numpy(x.copy()).view(dtype).requires_grad_(bool(options.get("grad")))


def bits(x: Any) -> Any:
    """An array's or a tensor's elements, as integers."""
    if isinstance(x, torch.Tensor):
        x = x.detach()
        x = x.view(torch.int16).numpy() if x.dtype is torch.bfloat16 else x.numpy()
    return np.ascontiguousarray(x).view(f"u{x.itemsize}")


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


@pytest.mark.parametrize("name", NAMES)
def test_autograd_keeps_the_statistics_and_nothing_else(name: str) -> None:
    x, gamma, beta, _ = (tensor(each, grad=True) for each in values(name, (16, 32, 256)))
    kept: dict[int, int] = {}

    def keep(each: Any) -> Any:
        storage = each.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return each

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        result = call(name, x, gamma, beta)
    for each in (x, gamma, beta):
        kept.pop(each.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) <= 0.05 * x.nbytes
    assert result.y.untyped_storage().data_ptr() not in kept


def plain(x: Any, gamma: Any, beta: Any) -> Any:
    """Layer norm by its formula."""
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d * d).mean(-1, keepdim=True) + 1e-5) * gamma + beta


def doubles(*shapes: tuple[int, ...]) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(each, generator=generator, dtype=torch.float64) for each in shapes]


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_first_and_second_order(name: str) -> None:
    n = FUNCTIONS[name][1]((3, 4, 5))
    inputs = [each.requires_grad_() for each in doubles((3, 4, 5), (n,), (n,))]
    if name == "rms":
        inputs.pop()

    def function(*given: Any) -> Any:
        result = call(name, *given, *[None] * (3 - len(given)))
        return tuple(each for each in result if each is not None)

    options = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(function, inputs, **options)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_derivatives_of_third_order_are_those_of_the_formula() -> None:
    """Torch's own layer norm has them wrong: https://github.com/pytorch/pytorch/issues/175754."""

    def third(function: Callable[..., Any]) -> Any:
        inputs = [each.requires_grad_() for each in doubles((2, 5), (5,), (5,))]
        value = function(*inputs).pow(3).sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
            value = sum(each.pow(2).sum() for each in gradients if each is not None)
        return value

    torch.testing.assert_close(third(ln.layer_norm), third(plain))


TRANSFORMATIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "vmap": lambda f: torch.func.vmap(f, in_dims=(0, None, None)),
    "vmap over gamma": lambda f: torch.func.vmap(f, in_dims=(None, 0, None)),
    "grad": lambda f: torch.func.grad(lambda *a: f(*a).pow(3).sum(), argnums=(0, 1, 2)),
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "hessian": lambda f: torch.func.hessian(lambda *a: f(*a).pow(3).sum()),
    "nested jvp": lambda f: (
        lambda x, *p: torch.func.jvp(
            lambda x: torch.func.jvp(lambda x: f(x, *p), (x,), (x.cos(),))[1], (x,), (x.sin(),)
        )
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations_are_those_of_the_formula(name: str) -> None:
    x, gamma, beta = doubles((2, 4), (4,), (4,))
    if name == "vmap":
        (x,) = doubles((3, 2, 4))
    elif name == "vmap over gamma":
        (gamma,) = doubles((3, 4))
    transformed = TRANSFORMATIONS[name]
    torch.testing.assert_close(
        transformed(ln.layer_norm)(x, gamma, beta), transformed(plain)(x, gamma, beta)
    )


def test_a_jacobian_of_batched_gradients() -> None:
    x, gamma, beta = doubles((2, 4), (4,), (4,))
    own, right = (
        torch.autograd.functional.jacobian(function, (x, gamma, beta), vectorize=True)
        for function in (ln.layer_norm, plain)
    )
    torch.testing.assert_close(own, right)


def test_a_gradient_that_is_expanded() -> None:
    x, gamma, beta = (each.requires_grad_() for each in doubles((3, 4), (4,), (4,)))
    own = torch.autograd.grad(ln.layer_norm(x, gamma, beta).sum(), (x, gamma, beta))
    right = torch.autograd.grad(plain(x, gamma, beta).sum(), (x, gamma, beta))
    torch.testing.assert_close(own, right)


@pytest.mark.parametrize("grad", ["x", "gamma", "beta", ""])
def test_what_needs_no_gradient_gets_none(grad: str) -> None:
    x, gamma, beta = doubles((3, 4), (4,), (4,))
    given = {"x": x, "gamma": gamma, "beta": beta}
    if grad:
        given[grad].requires_grad_()
    y = ln.layer_norm(*given.values())
    assert y.requires_grad == bool(grad)
    if grad:
        y.pow(2).sum().backward()
    assert [name for name, each in given.items() if each.grad is not None] == [grad][: bool(grad)]


def test_what_is_written_after_the_forward_pass_is_refused() -> None:
    x, gamma, beta = (each.requires_grad_() for each in doubles((3, 4), (4,), (4,)))
    wide = x * 2
    y = ln.layer_norm(wide, gamma, beta)
    wide.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_out_counts_as_written() -> None:
    x, out = doubles((3, 4), (3, 4))
    version = out._version
    assert ln.layer_norm(x, out=out) is out
    assert out._version == version + 1
    with torch.inference_mode():
        out = torch.empty_like(x)
        torch.testing.assert_close(ln.layer_norm(x, out=out), ln.layer_norm(x))


def test_statistics_can_be_differentiated() -> None:
    x, gamma, beta = (each.requires_grad_() for each in doubles((3, 4), (4,), (4,)))
    result = ln.layer_norm_forward(x, gamma, beta)
    (own,) = torch.autograd.grad(result.mean.sum() + result.rstd.sum(), x)
    mean, var = x.mean(-1), x.var(-1, correction=0)
    (right,) = torch.autograd.grad(mean.sum() + (var + 1e-5).rsqrt().sum(), x)
    torch.testing.assert_close(own, right)


def test_a_tensor_hook_is_called_once() -> None:
    (x,) = doubles((3, 4))
    x.requires_grad_()
    calls = []
    wide = x * 2
    wide.register_hook(calls.append)
    (gradient,) = torch.autograd.grad(ln.layer_norm(wide).pow(3).sum(), x, create_graph=True)
    assert len(calls) == 1
    assert gradient.requires_grad


def test_checkpoints_give_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    x, gamma, beta = (each.requires_grad_() for each in doubles((3, 4), (4,), (4,)))
    y = checkpoint(ln.layer_norm, x, gamma, beta, use_reentrant=False)
    own = torch.autograd.grad(y.pow(3).sum(), (x, gamma, beta))
    right = torch.autograd.grad(ln.layer_norm(x, gamma, beta).pow(3).sum(), (x, gamma, beta))
    torch.testing.assert_close(own, right, rtol=0, atol=0)


def test_modules_can_be_copied_and_frozen() -> None:
    gamma = torch.nn.Parameter(torch.ones(4))
    x = torch.randn(3, 4)
    assert torch.equal(ln.layer_norm(x, gamma), ln.layer_norm(x, copy.deepcopy(gamma)))
    with torch.inference_mode():
        assert ln.layer_norm(x, gamma).is_inference()


def operations(function: Callable[[Any], Any]) -> list[str]:
    """What torch sees of a call."""
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


def test_results_are_beside_x_wherever_tensors_are_made_by_default() -> None:
    x, gamma, beta = (each.requires_grad_() for each in doubles((3, 4), (4,), (4,)))
    with torch.device("meta"):
        result = ln.layer_norm_forward(x, gamma, beta)
        gradients = torch.autograd.grad(ln.layer_norm(x, gamma, beta).pow(2).sum(), (x, gamma))
        images = ln.batch_norm_forward(x, gamma, beta)
    assert {each.device.type for each in (*result, *gradients, *images[:3])} == {"cpu"}
    torch.testing.assert_close(result.y, plain(x, gamma, beta))


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("name", ["group", "instance", "batch"])
def test_channels_that_lie_last_come_back_so(name: str, rank: int) -> None:
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


def test_explain_says_whose_memory() -> None:
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


def test_what_does_not_fit_channels_that_lie_last_is_refused_by_name() -> None:
    x = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    statistics = torch.ones(4), torch.ones(4)
    with pytest.raises(TypeError, match="batch_norm_backward: dy is an array of numpy"):
        ln.batch_norm_backward(x.numpy(), x, *statistics)
    with pytest.raises(ValueError, match="batch_norm_backward: dy has shape"):
        ln.batch_norm_backward(x[0], x, *statistics)
