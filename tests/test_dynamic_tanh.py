"""Dynamic tanh where it is flat, NaN and infinity."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

import ln_array_api as ln


def test_the_slope_where_tanh_is_almost_flat() -> None:
    """1 - tanh² would be 0 from 19 on."""
    x = np.asarray([0.5, 5.0, 15.0, 30.0, 100.0, 300.0])
    dx = ln.dynamic_tanh_backward(np.ones(6), x, np.asarray(1.0)).dx
    expected = [float(mpmath.sech(float(each)) ** 2) for each in x]
    np.testing.assert_allclose(dx, expected, rtol=1e-13)


def test_nan_infinity_and_products_that_overflow() -> None:
    x = np.asarray([[np.inf, -np.inf, np.nan], [1e30, -1e30, 0.0]], np.float32)
    alpha, gamma = np.asarray(1e10, np.float32), np.asarray([2, 3, 4], np.float32)
    y = ln.dynamic_tanh(x, alpha, gamma)
    np.testing.assert_array_equal(y, [[2, -3, np.nan], [2, -3, 0]])
    gradients = ln.dynamic_tanh_backward(np.ones_like(x), x[1:].repeat(2, 0), alpha, gamma)
    np.testing.assert_array_equal(gradients.dx, [[0, 0, 4e10]] * 2)
    assert gradients.dalpha == 0


def test_alpha_is_one_number() -> None:
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"^dynamic_tanh: alpha has shape \(1,\), but must have"):
        ln.dynamic_tanh(x, np.ones(1))
    with pytest.raises(TypeError, match=r"^dynamic_tanh: alpha: float is not an array"):
        ln.dynamic_tanh(x, 0.5)
    y = ln.dynamic_tanh(x, np.float64(0.5))
    assert type(y) is np.ndarray


def test_empty_inputs() -> None:
    x, alpha, gamma = np.ones((0, 3)), np.asarray(0.5), np.ones(3)
    gradients = ln.dynamic_tanh_backward(x, x, alpha, gamma)
    assert gradients.dx.shape == (0, 3)
    assert gradients.dalpha.shape == ()
    assert gradients.dalpha == 0
    np.testing.assert_array_equal(gradients.dgamma, np.zeros(3))
