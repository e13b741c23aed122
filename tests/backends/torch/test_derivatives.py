"""Derivatives by torch, of every order and in both modes, and the tensors that they save."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ln_array_api as ln

torch = pytest.importorskip("torch", reason="torch is not installed")


pytest.importorskip("numba", reason="Numba is not installed")
from torch_inputs import FUNCTIONS, NAMES, call, doubles, plain, tensor, values  # noqa: E402 - which imports torch

#: Torch compiles some of its own forward derivatives, and its tracer, by what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


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
def test_a_tensor_that_needs_no_gradient_gets_none(grad: str) -> None:
    x, gamma, beta = doubles((3, 4), (4,), (4,))
    given = {"x": x, "gamma": gamma, "beta": beta}
    if grad:
        given[grad].requires_grad_()
    y = ln.layer_norm(*given.values())
    assert y.requires_grad == bool(grad)
    if grad:
        y.pow(2).sum().backward()
    assert [name for name, each in given.items() if each.grad is not None] == [grad][: bool(grad)]


def test_an_input_that_is_changed_after_the_forward_pass_is_refused() -> None:
    x, gamma, beta = (each.requires_grad_() for each in doubles((3, 4), (4,), (4,)))
    wide = x * 2
    y = ln.layer_norm(wide, gamma, beta)
    wide.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


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
