"""Layer norm under the transformations of array libraries, and its use of memory."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api._arrays import library_of

SHAPE, AXIS = (5, 3, 8), (0, 2)
STATISTIC, PARAMETER = (1, 3, 1), (5, 8)


def random(seed: int, *shapes: tuple[int, ...], dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def exact(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Compute layer norm in float64, over AXIS."""
    x = x.astype(np.float64)
    d = x - x.mean(axis=AXIS, keepdims=True)
    d /= np.sqrt(x.var(axis=AXIS, keepdims=True) + 1e-5)
    return d * gamma[:, None, :] + beta[:, None, :]


X, DY, GAMMA, BETA = random(0, SHAPE, SHAPE, PARAMETER, PARAMETER)
X += 2
with ln.use_backend("generic"):
    FORWARD = ln.layer_norm_forward(X, GAMMA, BETA, axis=AXIS)
    GRADIENTS = ln.layer_norm_backward(DY, X, *FORWARD[1:], GAMMA, axis=AXIS)


def close(result: Any, expected: Any) -> None:
    assert tuple(result.shape) == tuple(expected.shape)
    np.testing.assert_allclose(np.asarray(result), expected, rtol=2e-5, atol=1e-5)


def test_forward_and_backward_in_numpy() -> None:
    close(FORWARD.y, exact(X, GAMMA, BETA))
    assert FORWARD.mean.shape == FORWARD.rstd.shape == STATISTIC
    h = 1e-3

    def loss(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> float:
        return float(np.sum(exact(x, gamma, beta) * DY))

    wide = [each.astype(np.float64) for each in (X, GAMMA, BETA)]
    for index, gradient in enumerate(GRADIENTS):
        for place in [(0, *each) for each in np.ndindex(2, 2)]:
            place = place[-gradient.ndim :]
            steps = []
            for sign in (1, -1):
                moved = [each.copy() for each in wide]
                moved[index][place] += sign * h
                steps.append(loss(*moved))
            assert gradient[place] == pytest.approx((steps[0] - steps[1]) / (2 * h), rel=1e-3)


def test_torch_differentiates_the_plain_function_as_the_backward_pass_does() -> None:
    torch = importable("torch")
    x, gamma, beta = (torch.tensor(each, requires_grad=True) for each in (X, GAMMA, BETA))
    ln.layer_norm(x, gamma, beta, axis=AXIS).backward(torch.from_numpy(DY))
    for each, gradient in zip((x, gamma, beta), GRADIENTS, strict=True):
        close(each.grad, gradient)
    plain = x.detach(), torch.tensor(GAMMA), torch.tensor(BETA)
    y, mean, rstd = ln.layer_norm_forward(*plain, axis=AXIS)
    given = torch.from_numpy(DY), plain[0], mean, rstd, plain[1]
    for own, gradient in zip(ln.layer_norm_backward(*given, axis=AXIS), GRADIENTS, strict=True):
        close(own, gradient)
    assert not y.requires_grad


def test_torch_differentiates_rows_as_torch_does() -> None:
    torch = importable("torch")
    values = random(1, (6, 16), (16,), (16,), (6, 16), dtype=np.float64)
    x, gamma, beta, dy = map(torch.from_numpy, values)
    inputs = [each.requires_grad_() for each in (x, gamma, beta)]
    ours = torch.autograd.grad(ln.layer_norm(*inputs), inputs, dy)
    theirs = torch.nn.functional.layer_norm(x, (16,), gamma, beta, 1e-5)
    for own, their in zip(ours, torch.autograd.grad(theirs, inputs, dy), strict=True):
        np.testing.assert_allclose(own.numpy(), their.numpy(), rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *each: ln.layer_norm(*each), inputs)


def test_torch_modules_and_vmap() -> None:
    torch = importable("torch")
    parameters = (torch.nn.Parameter(torch.tensor(each)) for each in (GAMMA, BETA))
    y = ln.layer_norm(torch.tensor(X), *parameters, axis=AXIS)
    assert y.requires_grad
    close(y.detach(), FORWARD.y)
    many = torch.tensor(np.stack([X, 2 * X, DY]))
    function = torch.func.vmap(lambda x: ln.layer_norm(x, axis=AXIS))
    close(function(many), ln.layer_norm(many, axis=(1, 3)))


def test_jax_transforms() -> None:
    jax = importable("jax")

    def loss(x: Any, gamma: Any, beta: Any) -> Any:
        return jax.numpy.sum(ln.layer_norm(x, gamma, beta, axis=AXIS) * DY)

    arrays = tuple(map(jax.numpy.asarray, (X, GAMMA, BETA)))
    gradient = jax.grad(loss, argnums=(0, 1, 2))
    for differentiate in (gradient, jax.jit(gradient)):
        for own, expected in zip(differentiate(*arrays), GRADIENTS, strict=True):
            close(own, expected)


def test_jax_compiles_and_maps_forward_and_backward() -> None:
    jax = importable("jax")

    def step(x: Any, dy: Any) -> Any:
        y, mean, rstd = ln.layer_norm_forward(x, axis=-1)
        return y, ln.layer_norm_backward(dy, x, mean, rstd, axis=-1).dx

    x, dy = jax.numpy.asarray(X), jax.numpy.asarray(DY)
    for function in (jax.jit(step), jax.vmap(step), jax.jit(jax.vmap(step))):
        for own, expected in zip(function(x, dy), step(x, dy), strict=True):
            close(own, expected)


def test_an_error_inside_jit_is_the_same_as_outside() -> None:
    jax = importable("jax")
    with pytest.raises(ValueError, match=r"^layer_norm: gamma has shape \(3,\)"):
        jax.jit(ln.layer_norm)(jax.numpy.ones((2, 4)), jax.numpy.ones(3))


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("something was computed")


@pytest.mark.parametrize("of_parameters", [-1, 3], ids=["whole parameters", "cut parameters"])
@pytest.mark.parametrize("chunks", [(2, 2, 3), (5, 3, 8), (1, 3, 4)], ids=str)
def test_dask_computes_nothing_until_asked(chunks: tuple[int, ...], of_parameters: int) -> None:
    dask, da = importable("dask"), importable("dask.array")
    x, dy = (da.from_array(each, chunks=chunks) for each in (X, DY))
    gamma, beta = (da.from_array(each, chunks=of_parameters) for each in (GAMMA, BETA))
    with dask.config.set(scheduler=refuse):
        y = ln.layer_norm(x, gamma, beta, axis=AXIS)
        forward = ln.layer_norm_forward(x, gamma, beta, axis=AXIS)
        gradients = ln.layer_norm_backward(dy, x, *forward[1:], gamma, axis=AXIS)
        with pytest.raises(AssertionError, match="something was computed"):
            y.compute()
    if of_parameters == -1:
        assert y.chunks == gradients.dx.chunks == x.chunks
    for own, expected in zip((*forward, *gradients), (*FORWARD, *GRADIENTS), strict=True):
        assert own.dtype == expected.dtype
        close(own.compute(scheduler="synchronous"), expected)
    np.testing.assert_array_equal(y.compute(scheduler="threads"), forward.y.compute())


def test_dask_lengths_that_are_not_known_yet() -> None:
    da = importable("dask.array")
    plain, dy, gamma = random(2, (12, 8), (12, 8), (8,))
    keep = plain[:, 0] > 0
    assert 0 < keep.sum() < 12
    mask = da.from_array(keep, chunks=5)
    x, own_dy = (da.from_array(each, chunks=(5, 4))[mask] for each in (plain, dy))
    own_gamma = da.from_array(gamma)
    assert np.isnan(x.shape[0])
    for axis in (0, (0, 1)):
        with pytest.raises(ValueError, match=r"^layer_norm: the length of axis 0 is not known yet"):
            ln.layer_norm(x, axis=axis)
    forward = ln.layer_norm_forward(x, own_gamma)
    gradients = ln.layer_norm_backward(own_dy, x, *forward[1:], own_gamma)
    expected = ln.layer_norm_forward(plain[keep], gamma)
    right = ln.layer_norm_backward(dy[keep], plain[keep], *expected[1:], gamma)
    for own, each in zip((*forward, *gradients), (*expected, *right), strict=True):
        close(own.compute(scheduler="synchronous"), each)


def test_dask_of_16_bits_with_wider_companions() -> None:
    da = importable("dask.array")
    plain, gamma = X.astype(np.float16), GAMMA.astype(np.float64)
    x, own_gamma = da.from_array(plain, chunks=2), da.from_array(gamma, chunks=3)
    y, mean, rstd = ln.layer_norm_forward(x, own_gamma, axis=AXIS)
    wide = mean.astype(np.float64), rstd.astype(np.float64)
    gradients = ln.layer_norm_backward(x, x, *wide, own_gamma, axis=AXIS)
    only = ln.layer_norm_backward(x, x, mean, rstd, axis=AXIS, need=("dgamma", "dbeta"))
    dtypes = [each.dtype for each in (y, mean, rstd, *gradients, only.dbeta)]
    assert dtypes == ["f2", "f4", "f4", "f2", "f8", "f8", "f2"]
    assert only.dx is only.dgamma is None
    for each in (y, mean, *gradients):
        values = each.compute(scheduler="synchronous")
        assert values.dtype == each.dtype
        assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("function", "temporaries"),
    [
        (lambda x, gamma: ln.layer_norm(x, gamma, gamma), 4),
        (lambda x, gamma: ln.layer_norm(x, gamma, gamma, out=x), 4),
        (lambda x, gamma: ln.layer_norm(x), 3),
        (lambda x, gamma: ln.rms_norm(x, gamma), 3),
    ],
    ids=["layer norm", "in place", "no parameters", "RMS norm"],
)
def test_memory_of_the_generic_forward_pass(
    function: Callable[[np.ndarray, np.ndarray], Any], temporaries: int
) -> None:
    """Peak memory in arrays of the size of x, with a thirtieth for columns."""
    x, gamma = random(3, (4096, 1024), (1024,))
    with ln.use_backend("generic"):
        function(x[:4].copy(), gamma)
        tracemalloc.start()
        try:
            function(x, gamma)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak <= (temporaries + 1 / 30) * x.nbytes


def test_many_threads_get_what_one_gets() -> None:
    arrays = random(4, *[(m, n) for m in (1, 5, 9) for n in (3, 17, 64)])
    expected = [ln.layer_norm(each) for each in arrays]
    start = threading.Barrier(4)

    def work(offset: int) -> list[np.ndarray]:
        start.wait(10)
        turned = [*arrays[offset:], *arrays[:offset]]
        for _ in range(20):
            results = [ln.layer_norm(each) for each in turned]
        return results[len(arrays) - offset :] + results[: len(arrays) - offset]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            for result, right in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, right)


def test_results_are_named() -> None:
    assert type(FORWARD) is ln.Forward
    assert type(GRADIENTS) is ln.Gradients
    assert FORWARD._fields == ("y", "mean", "rstd")
    assert GRADIENTS._fields == ("dx", "dgamma", "dbeta")


@pytest.mark.parametrize("module", ["numpy", "torch", "array_api_strict"])
def test_out_without_the_copy_that_would_hide_an_overlap(module: str) -> None:
    xp = importable(module)
    memory = xp.asarray(random(5, (6, 8))[0])
    x, out = memory[:4, :], memory[2:, :]
    with pytest.raises(ValueError, match=r"^layer_norm: out overlaps x"):
        ln.layer_norm(x, out=out)
    assert library_of(x).writable
    expected = np.asarray(ln.layer_norm(x))
    y = ln.layer_norm(x, out=x)
    assert y is x
    np.testing.assert_array_equal(np.asarray(memory)[:4], expected)


@pytest.mark.parametrize("shape", [(3, 0), (0, 5), (0, 0)], ids=str)
def test_an_empty_result_is_a_part_of_the_graph_of_torch(shape: tuple[int, int]) -> None:
    torch = importable("torch")
    x, gamma, beta = (torch.ones(n, requires_grad=True) for n in (shape, shape[1:], shape[1:]))
    ln.layer_norm(x, gamma, beta).sum().backward()
    for each in (x, gamma, beta):
        assert torch.equal(each.grad, torch.zeros_like(each))
    assert ln.layer_norm(x).grad_fn is not None
