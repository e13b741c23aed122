"""Tensors normalised over an axis that is not the last: NumPy's bits, torch's derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("numba", reason="Numba is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SHAPE = (3, 20, 35)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def tensors(dtype: Any, shape: tuple[int, ...] = SHAPE) -> list[Any]:
    """Return x, dy, gamma and beta for rows along axis 1."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    gamma, beta = (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))
    return [x + 2, dy, gamma, beta]


def plain(x: Any, gamma: Any, beta: Any) -> Any:
    """Compute layer norm over axis 1 by its definition."""
    mean = x.mean(1, keepdim=True)
    var = ((x - mean) ** 2).mean(1, keepdim=True)
    y = (x - mean) / torch.sqrt(var + 1e-5)
    return y * gamma[:, None] + beta[:, None]


def test_these_kernels_run() -> None:
    x = tensors(torch.float32)[0]
    explained = ln.explain(ln.layer_norm, x, axis=1)
    assert explained.backend == "torch"
    assert "by columns as they lie" in explained.reason
    assert "memory of the tensor" in explained.reason


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_are_numpys(dtype: Any) -> None:
    x, dy, gamma, beta = given = tensors(dtype)
    result = ln.layer_norm_forward(x, gamma, beta, axis=1)
    actual = [*result, *ln.layer_norm_backward(dy, x, *result[1:], gamma, axis=1)]
    if dtype is torch.bfloat16:
        dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
        arrays = [each.view(torch.int16).numpy().view(dtypes.bfloat16) for each in given]
    else:
        arrays = [each.numpy() for each in given]
    x, dy, gamma, beta = arrays
    result = ln.layer_norm_forward(x, gamma, beta, axis=1)
    expected = [*result, *ln.layer_norm_backward(dy, x, *result[1:], gamma, axis=1)]
    for own, right in zip(actual, expected, strict=True):
        assert own.shape == right.shape
        as_bytes = own.contiguous().view(torch.uint8).numpy()
        assert as_bytes.tobytes() == np.ascontiguousarray(right).tobytes()


@pytest.mark.parametrize("center", [True, False])
def test_autograd_is_the_compiled_backward(center: bool) -> None:
    x, dy, gamma, beta = tensors(torch.float32)
    x.requires_grad_()
    gamma.requires_grad_()
    beta.requires_grad_()
    if center:
        y = ln.layer_norm(x, gamma, beta, axis=1)
        _, mean, rstd = ln.layer_norm_forward(x.detach(), axis=1)
        saved = [mean, rstd]
        backward, wanted = ln.layer_norm_backward, (x, gamma, beta)
    else:
        y = ln.rms_norm(x, gamma, axis=1)
        saved = [ln.rms_norm_forward(x.detach(), axis=1).rstd]
        backward, wanted = ln.rms_norm_backward, (x, gamma)
    gradients = torch.autograd.grad(y, wanted, dy)
    expected = backward(dy, x.detach(), *saved, gamma.detach(), axis=1)
    for own, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(own, right, rtol=0, atol=0)


def test_derivatives_of_every_kind() -> None:
    x, _, gamma, beta = (each.requires_grad_() for each in tensors(torch.float64, (2, 5, 9)))
    call = lambda *given: ln.layer_norm(*given, axis=1)  # noqa: E731 # gradcheck wants a function
    assert torch.autograd.gradcheck(call, (x, gamma, beta), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (x, gamma, beta))
    statistics = lambda x: ln.layer_norm_forward(x, axis=1)  # noqa: E731
    assert torch.autograd.gradcheck(statistics, (x,))
    given = [each.detach() for each in (x, gamma, beta)]
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        own, right = transform(call)(*given), transform(plain)(*given)
        torch.testing.assert_close(own, right)


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_as_operations(dynamic: bool) -> None:
    x, dy, gamma, beta = tensors(torch.float32)
    compiled = torch.compile(
        lambda *given: ln.layer_norm(*given, axis=1),
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    for samples in (3, 5):
        leaf = x[:1].repeat(samples, 1, 1).requires_grad_()
        y = compiled(leaf, gamma, beta)
        (dx,) = torch.autograd.grad(y, leaf, dy[:1].repeat(samples, 1, 1))
        right = plain(leaf, gamma, beta)
        torch.testing.assert_close(y, right)
        (expected,) = torch.autograd.grad(right, leaf, dy[:1].repeat(samples, 1, 1))
        torch.testing.assert_close(dx, expected)


def test_out_and_what_is_saved() -> None:
    x, _, gamma, beta = tensors(torch.bfloat16)
    y = ln.layer_norm(x, gamma, beta, axis=1)
    for out in (torch.empty_like(x), torch.empty(3, 35, 20, dtype=x.dtype).movedim(2, 1), x):
        version = out._version
        assert ln.layer_norm(x, gamma, beta, axis=1, out=out) is out
        assert torch.equal(out, y)
        assert out._version > version
    kept: list[Any] = []
    leaf = tensors(torch.float32, (3, 200, 350))[0].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ln.layer_norm(leaf, axis=1)
    others = [each for each in kept if each.data_ptr() != leaf.data_ptr()]
    assert sum(each.nbytes for each in others) <= 0.05 * leaf.nbytes


def test_views_of_other_layouts_are_copied() -> None:
    x = tensors(torch.float32)[0]
    for other in (x.mT, x[:, :, ::2], torch.complex(x, -x).conj().imag):
        assert "as they lie" not in ln.explain(ln.layer_norm, other, axis=1).reason
        torch.testing.assert_close(
            ln.layer_norm(other, axis=1), ln.layer_norm(other.clone(), axis=1)
        )
