"""Unit norm: where epsilon is added, its range, and what runs it."""

from __future__ import annotations

import numpy as np
import pytest

import ln_array_api as ln


def test_epsilon_is_added_to_the_sum_of_squares() -> None:
    x = np.asarray([[1.0, 2.0, 2.0, 0.0]])
    np.testing.assert_allclose(ln.unit_norm(x, epsilon=7.0), x / 4)
    assert ln.unit_norm_forward(x, epsilon=7.0).norm == pytest.approx(4.0)


@pytest.mark.parametrize("backend", ["numpy", "generic"])
def test_epsilon_of_small_rows_is_not_lost(backend: str) -> None:
    """Divided by many elements, it is far below what float32 adds to 1."""
    x = np.zeros((1, 4096), np.float32)
    x[0, 7] = 1e-6
    with ln.use_backend(backend):
        y, norm = ln.unit_norm_forward(x, epsilon=1e-12)
    np.testing.assert_allclose(norm, np.sqrt(2) * 1e-6, rtol=1e-6)
    np.testing.assert_allclose(y[0, 7], np.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30, 1e37])
def test_rows_of_any_magnitude_have_length_one(scale: float) -> None:
    x = (np.random.default_rng(0).uniform(1, 3, (5, 100)) * scale).astype(np.float32)
    y, norm = ln.unit_norm_forward(x, epsilon=0)
    np.testing.assert_allclose(np.linalg.norm(y.astype(np.float64), axis=1), 1, rtol=1e-6)
    exact = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(norm, exact, rtol=1e-6)


def test_a_row_of_zeros_stays_so_and_its_gradient_is_finite() -> None:
    x = np.zeros((2, 3))
    y, norm = ln.unit_norm_forward(x)
    assert not y.any()
    gradient = ln.unit_norm_backward(np.ones((2, 3)), x, norm).dx
    np.testing.assert_allclose(gradient, 1e6)


@pytest.mark.parametrize("function", [ln.unit_norm, ln.unit_norm_forward])
def test_rows_run_it(function: object) -> None:
    assert ln.explain(function, np.ones((4, 8))).primitive == "rows_forward"  # type: ignore[arg-type]


def test_arguments_are_called_by_their_names_here() -> None:
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"^unit_norm_backward: norm has shape \(2,\)"):
        ln.unit_norm_backward(x, x, np.ones(2))
    with pytest.raises(ValueError, match=r"need must be a tuple of names out of \('dx',\)"):
        ln.unit_norm_backward(x, x, np.ones((2, 1)), need=("dgamma",))


@pytest.mark.parametrize("backend", ["numpy", "generic"])
def test_gradients_of_many_short_rows_are_off_by_ten_ulp_at_most(backend: str) -> None:
    """Of the largest term in a row, by a norm that is rounded to float32."""
    rng = np.random.default_rng(3)
    x = rng.lognormal(0, 1, (1 << 17, 6)).astype(np.float32)
    dy = rng.random(x.shape).astype(np.float32)
    with ln.use_backend(backend):
        dx = ln.unit_norm_backward(dy, x, ln.unit_norm_forward(x).norm).dx
    x64, dy64 = x.astype(np.float64), dy.astype(np.float64)
    norm = np.sqrt(np.sum(x64**2, axis=1, keepdims=True) + 1e-12)
    y = x64 / norm
    projection = np.sum(dy64 * y, axis=1, keepdims=True)
    terms = np.maximum(dy64, y * projection).max(axis=1, keepdims=True) / norm
    error = abs(dx - (dy64 - y * projection) / norm) / (terms * np.finfo(np.float32).eps)
    assert error.max() <= 10
