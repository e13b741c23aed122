"""Power norm: zeros, extreme magnitudes and extreme powers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

RNG = np.random.default_rng(0)
X, DY = RNG.standard_normal((2, 4, 7))


pytestmark = pytest.mark.usefixtures("each_backend")


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def exact(x: np.ndarray, alpha: float, epsilon: float = 1e-12) -> np.ndarray:
    z = np.sign(x) * np.abs(x.astype(np.longdouble)) ** np.longdouble(alpha)
    return z / np.sqrt((z * z).sum(axis=-1, keepdims=True) + np.longdouble(epsilon))


def in_all_digits(
    dy: np.ndarray, x: np.ndarray, alpha: float, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute y, dx and the largest term of dx in each row, for x without zeros."""
    mpmath = importable("mpmath")
    with mpmath.workdps(50):
        exponent = mpmath.mpf(alpha)
        dy, x = (np.asarray([[mpmath.mpf(float(v)) for v in row] for row in a]) for a in (dy, x))
        z = np.frompyfunc(lambda v: mpmath.sign(v) * abs(v) ** exponent, 1, 1)(x)
        squares = np.sum(z * z, axis=-1, keepdims=True) + mpmath.mpf(epsilon)
        norm = np.frompyfunc(mpmath.sqrt, 1, 1)(squares)
        y, slope = z / norm, exponent * (z / x) / norm
        dx = (dy - y * np.sum(dy * y, axis=-1, keepdims=True)) * slope
        terms = (abs(dy) + abs(y) * np.sum(abs(dy * y), axis=-1, keepdims=True)) * slope
        with np.errstate(over="ignore"):
            y, dx, terms = (each.astype(float) for each in (y, dx, terms))
    return y, dx, terms.max(axis=-1, keepdims=True)


def off(actual: np.ndarray, expected: Any, scale: Any) -> float:
    """Return the largest error in ulp of a scale; 0 for empty arrays."""
    ulp = np.spacing(np.maximum(scale, np.finfo(actual.dtype).smallest_normal, dtype=actual.dtype))
    return float(np.max(np.abs(actual - expected) / ulp, initial=0))


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


@pytest.mark.parametrize("alpha", [1, 0.5, 0.1])
@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1e30, 1e37])
def test_magnitudes(magnitude: float, alpha: float) -> None:
    x = (X * magnitude).astype(np.float32)
    for epsilon in (0.0, 1e-12):
        y = ln.power_norm(x, alpha=alpha, epsilon=epsilon)
        np.testing.assert_allclose(y, exact(x, alpha, epsilon).astype(float), rtol=1e-6)


def test_powers_are_not_lost_between_magnitudes() -> None:
    """1e-30 ** 0.01 is about 0.5, so scaling x by its maximum would lose it."""
    x = np.asarray([[1e30, 1e-30, -1e-37]], np.float32)
    y = ln.power_norm(x, alpha=0.01)
    np.testing.assert_allclose(y, exact(x, 0.01).astype(float), rtol=1e-6)


def test_all_digits_of_alpha_count() -> None:
    """0.3 in float32 is off by 1e-8, and so is the logarithm of this by 69 times as much."""
    x = np.asarray([[1e-30, 1.0]], np.float32)
    for alpha in (0.1, 0.3, 0.7, 1.1):
        y, expected = ln.power_norm(x, alpha=alpha), exact(x, alpha)
        np.testing.assert_allclose(y, expected.astype(float), rtol=3e-7)


@pytest.mark.parametrize("alpha", [1 + 2**-20, 1.1, 2, 3, 10, 1e4])
@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1, 1e30, 1e37])
@pytest.mark.parametrize("epsilon", [0.0, 1e-60, 1e-12, 1.0])
def test_powers_above_the_first(alpha: float, magnitude: float, epsilon: float) -> None:
    """Powers and squares overflow float32, but results do not."""
    x, dy = (magnitude * X).astype(np.float32), DY.astype(np.float32)
    expected, right, scale = in_all_digits(dy, x, alpha, epsilon)
    y, norm = ln.power_norm_forward(x, alpha=alpha, epsilon=epsilon)
    assert off(y, expected, np.abs(expected).max(axis=-1, keepdims=True)) <= 4
    dx = ln.power_norm_backward(dy, x, norm, alpha=alpha).dx
    fits = np.abs(right) < np.finfo(np.float32).max
    np.testing.assert_array_equal(np.isfinite(dx), fits)
    scale = np.broadcast_to(np.minimum(scale, np.finfo(np.float32).max / 2), x.shape)
    assert off(dx[fits], right[fits], scale[fits]) <= 8


def test_powers_close_to_the_largest_are_not_rounded_first() -> None:
    """Rounding x / max(x) would be off by alpha times as much."""
    x = (1.37 - np.linspace(0, 0.01, 50)[None, :]).astype(np.float32)
    expected, _, _ = in_all_digits(x, x, 100, 1e-12)
    assert off(ln.power_norm(x, alpha=100), expected, expected.max()) <= 4


@pytest.mark.parametrize("alpha", [2, 1e40])
def test_only_the_largest_is_left_of_a_high_power(alpha: float) -> None:
    x = np.asarray([[1e-20, -3.0, 3.0, 1e-30]], np.float32)
    y = ln.power_norm(x, alpha=alpha)
    np.testing.assert_allclose(y, [[0, -(0.5**0.5), 0.5**0.5, 0]], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("alpha", [1.5, 2, 10])
def test_a_derivative_above_the_first_power_is_0_at_0(alpha: float) -> None:
    x = X.copy()
    x[1, 2], x[3] = 0, 0
    y, norm = ln.power_norm_forward(x, alpha=alpha)
    np.testing.assert_array_equal(y[x == 0], 0)
    np.testing.assert_allclose(norm[3], [1e-6])
    dx = ln.power_norm_backward(DY, x, norm, alpha=alpha).dx
    np.testing.assert_array_equal(dx == 0, x == 0)
    torch, jax = importable("torch"), importable("jax")
    given = torch.tensor(x, requires_grad=True)
    ln.power_norm(given, alpha=alpha).backward(torch.from_numpy(DY))
    np.testing.assert_allclose(given.grad.numpy(), dx, rtol=1e-12, atol=1e-12)
    with jax.enable_x64(True):
        total = jax.grad(lambda x: jax.numpy.sum(ln.power_norm(x, alpha=alpha) * DY))
        own = total(jax.numpy.asarray(x))
    np.testing.assert_allclose(np.asarray(own), dx, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 2])
def test_half_precision_overflows_without_a_warning(alpha: float) -> None:
    x = np.asarray([[1e-7, 2e-7]], np.float16)
    norm = ln.power_norm_forward(x, alpha=alpha).norm
    dx = ln.power_norm_backward(np.asarray([[6e4, -6e4]], np.float16), x, norm, alpha=alpha).dx
    assert np.isfinite(norm).all()
    assert not np.isnan(dx).any()


@pytest.mark.parametrize("alpha", [0, -1, 0.0, float("nan"), float("inf"), 10**400, True])
def test_alpha_is_finite_and_more_than_0(alpha: Any) -> None:
    for call in (
        lambda: ln.power_norm(X, alpha=alpha),
        lambda: ln.power_norm_forward(X, alpha=alpha),
        lambda: ln.power_norm_backward(DY, X, X[:, :1], alpha=alpha),
    ):
        with pytest.raises(
            ValueError, match=r"^power_norm\w*: alpha must be finite and more than 0"
        ):
            call()


def test_alpha_may_be_any_real_number() -> None:
    expected = ln.power_norm(X, alpha=2)
    for alpha in (2.0, np.float32(2), np.int64(2), Fraction(2)):
        np.testing.assert_array_equal(ln.power_norm(X, alpha=alpha), expected)


@pytest.mark.parametrize("alpha", [0.5, 1, 2])
def test_rows_of_zeros(alpha: float) -> None:
    for dtype, epsilons in ((np.float32, (1e-12, 1e-60, 1e-100)), (np.float64, (1e-12, 1e-60))):
        x = np.zeros((2, 3), dtype)
        for epsilon in epsilons:
            np.testing.assert_array_equal(ln.power_norm(x, alpha=alpha, epsilon=epsilon), x)
        assert np.isnan(ln.power_norm(x, alpha=alpha, epsilon=0)).all()


@pytest.mark.parametrize("alpha", [0.5, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_affect_only_their_own_row(bad: float, alpha: float) -> None:
    x, clean = X.copy(), ln.power_norm(X, alpha=alpha)
    x[2, 3] = bad
    y, norm = ln.power_norm_forward(x, alpha=alpha)
    assert np.isnan(y[2, 3])
    dx = ln.power_norm_backward(DY, x, norm, alpha=alpha).dx
    assert np.isnan(dx[2, 3])
    others = [0, 1, 3]
    np.testing.assert_array_equal(y[others], clean[others])
    assert np.isfinite(dx[others]).all()


@pytest.mark.parametrize("alpha", [0.5, 2])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_inputs(shape: tuple[int, int], alpha: float) -> None:
    x = np.ones(shape)
    y, norm = ln.power_norm_forward(x, alpha=alpha)
    assert y.shape == ln.power_norm_backward(x, x, norm, alpha=alpha).dx.shape == shape
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
