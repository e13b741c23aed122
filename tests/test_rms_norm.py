"""RMS norm under the transformations of array libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

RNG = np.random.default_rng(0)
X, DY = (RNG.standard_normal((4, 6, 5)).astype(np.float32) for _ in range(2))
GAMMA = RNG.standard_normal((6,)).astype(np.float32)


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def close(result: Any, expected: Any) -> None:
    assert tuple(result.shape) == tuple(expected.shape)
    np.testing.assert_allclose(np.asarray(result), expected, rtol=2e-5, atol=1e-5)


def exact() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute y, rstd, dx and dgamma in float64, over axis 1."""
    x, dy, gamma = X.astype(np.float64), DY.astype(np.float64), GAMMA[:, None]
    rstd = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6)
    x_hat = x * rstd
    g = dy * gamma
    dx = rstd * (g - x_hat * (g * x_hat).mean(axis=1, keepdims=True))
    return x_hat * gamma, rstd, dx, (dy * x_hat).sum(axis=(0, 2))


@pytest.mark.parametrize(
    "module", ["numpy", "torch", "jax.numpy", "array_api_strict", "dask.array"]
)
def test_forward_and_backward(module: str) -> None:
    x, dy, gamma = (importable(module).asarray(each.copy()) for each in (X, DY, GAMMA))
    forward = ln.rms_norm_forward(x, gamma, axis=1)
    gradients = ln.rms_norm_backward(dy, x, forward.rstd, gamma, axis=1)
    assert type(forward) is ln.RMSForward
    assert type(gradients) is ln.RMSGradients
    for own, expected in zip((*forward, *gradients), exact(), strict=True):
        close(own, expected)
    close(ln.rms_norm(x, gamma, axis=1), exact()[0])


def test_gradients_by_torch_and_by_jax() -> None:
    torch, jax = importable("torch"), importable("jax")
    _, _, dx, dgamma = exact()
    x, gamma = (torch.tensor(each, requires_grad=True) for each in (X, GAMMA))
    ln.rms_norm(x, gamma, axis=1).backward(torch.from_numpy(DY))
    close(x.grad, dx)
    close(gamma.grad, dgamma)

    def loss(x: Any, gamma: Any) -> Any:
        return jax.numpy.sum(ln.rms_norm(x, gamma, axis=1) * DY)

    own = jax.jit(jax.grad(loss, argnums=(0, 1)))(jax.numpy.asarray(X), jax.numpy.asarray(GAMMA))
    close(own[0], dx)
    close(own[1], dgamma)


def test_rows_as_torch_has_them() -> None:
    torch = importable("torch")
    x, gamma = torch.from_numpy(X.astype(np.float64)), torch.ones(5, dtype=torch.float64) / 3
    theirs = torch.nn.functional.rms_norm(x, (5,), gamma, 1e-6)
    np.testing.assert_allclose(ln.rms_norm(x, gamma).numpy(), theirs.numpy(), rtol=1e-12)


def test_dask_lengths_that_are_not_known_yet() -> None:
    da = importable("dask.array")
    keep = X[:, 0, 0] > 0
    assert 0 < keep.sum() < 4
    x = da.from_array(X, chunks=2)[da.from_array(keep)]
    with pytest.raises(ValueError, match=r"^rms_norm: the length of axis 0 is not known yet"):
        ln.rms_norm(x, axis=0)
    gamma = da.from_array(GAMMA, chunks=4)
    close(ln.rms_norm(x, gamma, axis=1).compute(scheduler="synchronous"), exact()[0][keep])


def test_the_mean_is_not_subtracted() -> None:
    x = np.full((2, 4), 3.0)
    np.testing.assert_array_equal(ln.rms_norm(x, epsilon=0), np.ones((2, 4)))
    assert np.isnan(ln.layer_norm(x, epsilon=0)).all()
