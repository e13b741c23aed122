"""Power norm: zeros, magnitudes and powers at the ends of their range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

RNG = np.random.default_rng(0)
X, DY = RNG.standard_normal((2, 4, 7))


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def exact(x: np.ndarray, alpha: float, epsilon: float = 1e-12) -> np.ndarray:
    z = np.sign(x) * np.abs(x.astype(np.longdouble)) ** np.longdouble(alpha)
    return z / np.sqrt((z * z).sum(axis=-1, keepdims=True) + np.longdouble(epsilon))


def test_the_gradient_is_0_where_x_is_0() -> None:
    x = X.copy()
    x[1, 2], x[3] = 0, 0
    norm = ln.power_norm_forward(x).norm
    dx = ln.power_norm_backward(DY, x, norm).dx
    np.testing.assert_array_equal(dx == 0, x == 0)
    np.testing.assert_array_equal(norm[3], [1e-6])


def test_frameworks_differentiate_zeros_likewise() -> None:
    torch, jax = importable("torch"), importable("jax")
    x = X.astype(np.float32)
    x[1, 2], x[3] = 0, 0
    dy = DY.astype(np.float32)
    expected = ln.power_norm_backward(dy, x, ln.power_norm_forward(x).norm).dx
    given = torch.tensor(x, requires_grad=True)
    ln.power_norm(given).backward(torch.from_numpy(dy))
    np.testing.assert_allclose(given.grad.numpy(), expected, rtol=1e-4, atol=1e-5)
    own = jax.grad(lambda x: jax.numpy.sum(ln.power_norm(x) * dy))(jax.numpy.asarray(x))
    np.testing.assert_allclose(np.asarray(own), expected, rtol=1e-4, atol=1e-5)


def test_the_first_power_has_a_derivative_at_0() -> None:
    x = X.copy()
    x[1, 2] = 0
    y, norm = ln.power_norm_forward(x, alpha=1)
    np.testing.assert_allclose(y, x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-12)
    dx = ln.power_norm_backward(DY, x, norm, alpha=1).dx
    assert dx[1, 2] == pytest.approx(DY[1, 2] / norm[1, 0])


def test_the_zeroth_power_is_the_sign() -> None:
    x = np.asarray([[3.0, -0.5, 0.0, 7.0]])
    y, norm = ln.power_norm_forward(x, alpha=0)
    np.testing.assert_allclose(y, np.sign(x) / np.sqrt(3), rtol=1e-12)
    np.testing.assert_array_equal(ln.power_norm_backward(x, x, norm, alpha=0).dx, [[0, 0, 0, 0]])


@pytest.mark.parametrize("alpha", [1, 0.5, 0.1])
@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1e30, 1e37])
def test_magnitudes(magnitude: float, alpha: float) -> None:
    x = (X * magnitude).astype(np.float32)
    for epsilon in (0.0, 1e-12):
        y = ln.power_norm(x, alpha=alpha, epsilon=epsilon)
        np.testing.assert_allclose(y, exact(x, alpha, epsilon).astype(float), rtol=1e-6)


def test_powers_are_not_lost_between_magnitudes() -> None:
    """1e-30 ** 0.01 is half of 1: scaling x by its largest would leave nothing of it."""
    x = np.asarray([[1e30, 1e-30, -1e-37]], np.float32)
    y = ln.power_norm(x, alpha=0.01)
    np.testing.assert_allclose(y, exact(x, 0.01).astype(float), rtol=1e-6)


def test_rows_of_zeros() -> None:
    x = np.zeros((2, 3))
    np.testing.assert_array_equal(ln.power_norm(x), x)
    assert np.isnan(ln.power_norm(x, epsilon=0)).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_of_nothing(shape: tuple[int, int]) -> None:
    x = np.ones(shape)
    y, norm = ln.power_norm_forward(x)
    assert y.shape == ln.power_norm_backward(x, x, norm).dx.shape == shape
    assert norm.shape == (shape[0], 1)
    assert np.isnan(norm).all()


def test_dask_lengths_that_are_not_known_yet() -> None:
    da = importable("dask.array")
    keep = X[:, 0] > 0
    assert 0 < keep.sum() < 4
    x, dy = (da.from_array(each, chunks=3)[da.from_array(keep, chunks=3)] for each in (X, DY))
    y, norm = ln.power_norm_forward(x)
    dx = ln.power_norm_backward(dy, x, norm).dx
    expected = ln.power_norm_forward(X[keep])
    right = ln.power_norm_backward(DY[keep], X[keep], expected.norm).dx
    for own, each in ((y, expected.y), (norm, expected.norm), (dx, right)):
        np.testing.assert_allclose(own.compute(scheduler="synchronous"), each, rtol=1e-12)
    with pytest.raises(ValueError, match=r"^power_norm: the length of axis 0 is not known yet"):
        ln.power_norm(x, axis=0)
