"""Unit norm: where epsilon is added, its range, and what runs it."""

from __future__ import annotations

import numpy as np
import pytest

import ln_array_api as ln


def test_epsilon_is_added_to_the_sum_of_squares() -> None:
    x = np.asarray([[1.0, 2.0, 2.0, 0.0]])
    np.testing.assert_allclose(ln.unit_norm(x, epsilon=7.0), x / 4)
    assert 2 / ln.unit_norm_forward(x, epsilon=7.0).rstd == pytest.approx(4.0)


@pytest.mark.parametrize("backend", ["numpy", "generic"])
def test_epsilon_of_small_rows_is_not_lost(backend: str) -> None:
    """Divided by many elements, it is far below what float32 adds to 1."""
    x = np.zeros((1, 4096), np.float32)
    x[0, 7] = 1e-6
    with ln.use_backend(backend):
        y, rstd = ln.unit_norm_forward(x, epsilon=1e-12)
    np.testing.assert_allclose(64 / rstd, np.sqrt(2) * 1e-6, rtol=1e-6)
    np.testing.assert_allclose(y[0, 7], np.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30, 1e37])
def test_rows_of_any_magnitude_have_length_one(scale: float) -> None:
    x = (np.random.default_rng(0).uniform(1, 3, (5, 100)) * scale).astype(np.float32)
    y, rstd = ln.unit_norm_forward(x, epsilon=0)
    np.testing.assert_allclose(np.linalg.norm(y.astype(np.float64), axis=1), 1, rtol=1e-6)
    exact = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(10 / rstd.astype(np.float64), exact, rtol=1e-6)


def test_a_row_of_zeros_stays_so_and_its_gradient_is_finite() -> None:
    x = np.zeros((2, 3))
    y, rstd = ln.unit_norm_forward(x)
    assert not y.any()
    gradient = ln.unit_norm_backward(np.ones((2, 3)), x, rstd).dx
    np.testing.assert_allclose(gradient, 1e6)


@pytest.mark.parametrize("function", [ln.unit_norm, ln.unit_norm_forward])
def test_rows_run_it(function: object) -> None:
    assert ln.explain(function, np.ones((4, 8))).primitive == "rows_forward"  # type: ignore[arg-type]


def test_wrong_arguments_are_named() -> None:
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"^unit_norm_backward: rstd has shape \(2,\)"):
        ln.unit_norm_backward(x, x, np.ones(2))
    with pytest.raises(ValueError, match=r"need must be a tuple of names out of \('dx',\)"):
        ln.unit_norm_backward(x, x, np.ones((2, 1)), need=("dgamma",))
