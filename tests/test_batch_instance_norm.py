"""Batch-instance norm: both ends of its mix, constants, NaN and infinity."""

from __future__ import annotations

import numpy as np
import pytest

import ln_array_api as ln

RNG = np.random.default_rng(0)
X, DY = RNG.standard_normal((2, 3, 4, 5))
GAMMA, BETA = RNG.standard_normal((2, 4))
ONES = np.ones(4)


def test_rho_of_0_is_instance_norm() -> None:
    y, *statistics = ln.batch_instance_norm_forward(X, 0 * ONES, GAMMA, BETA)
    expected = ln.instance_norm_forward(X, GAMMA, BETA)
    np.testing.assert_allclose(y, expected.y, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(statistics[2], expected.mean, rtol=1e-13)
    own = ln.batch_instance_norm_backward(DY, X, *statistics, 0 * ONES, GAMMA)
    right = ln.instance_norm_backward(DY, X, *expected[1:], GAMMA)
    for each, other in zip((own.dx, own.dgamma, own.dbeta), right, strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-11, atol=1e-12)


def test_rho_of_1_is_batch_norm() -> None:
    y, *statistics = ln.batch_instance_norm_forward(X, ONES, GAMMA, BETA)
    expected = ln.batch_norm_forward(X, GAMMA, BETA)
    np.testing.assert_allclose(y, expected.y, rtol=1e-12, atol=1e-13)
    own = ln.batch_instance_norm_backward(DY, X, *statistics, ONES, GAMMA)
    right = ln.batch_norm_backward(DY, X, expected.mean, expected.rstd, GAMMA)
    for each, other in zip((own.dx, own.dgamma, own.dbeta), right, strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-11, atol=1e-12)


def test_constant_x_is_beta_exactly() -> None:
    for value in (1 / 3, 1e30, 1e-30):
        x = np.full((3, 4, 5), value, np.float32)
        y, *statistics = ln.batch_instance_norm_forward(x, ONES / 3, GAMMA, BETA)
        np.testing.assert_array_equal(y, np.broadcast_to(BETA[:, None], x.shape).astype("f4"))
        gradients = ln.batch_instance_norm_backward(DY, x, *statistics, ONES / 3, GAMMA)
        assert all(np.isfinite(each).all() for each in gradients)
        assert not gradients.dgamma.any()
        assert not gradients.drho.any()


def test_without_spatial_axes_an_instance_is_a_single_element() -> None:
    x = X[:, :, 0]
    y = ln.batch_instance_norm(x, ONES / 4)
    np.testing.assert_allclose(y, ln.batch_norm_forward(x).y / 4, rtol=1e-12)


def test_dtypes_of_gradients() -> None:
    """Each gradient has its input's dtype; dbeta that of beta, else of gamma, else of x."""
    x, dy = X.astype(np.float16), DY.astype(np.float32)
    rho, gamma, beta = ONES.astype(np.float32), GAMMA, BETA.astype(np.float16)
    y, *statistics = ln.batch_instance_norm_forward(x, rho, gamma, beta)
    assert [each.dtype for each in (y, *statistics)] == ["f2", "f4", "f4", "f4", "f4"]
    for parameters, expected in (
        ((rho, gamma, beta), ["f2", "f4", "f8", "f2"]),
        ((rho, gamma), ["f2", "f4", "f8", "f8"]),
    ):
        gradients = ln.batch_instance_norm_backward(dy, x, *statistics, *parameters)
        assert [each.dtype for each in gradients] == expected
    gradients = ln.batch_instance_norm_backward(dy, x, *statistics, rho)
    assert gradients.dgamma is None
    assert gradients.dbeta.dtype == np.float16


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 4, 0)])
def test_empty_inputs(shape: tuple[int, int, int]) -> None:
    x = np.ones(shape)
    y, *statistics = ln.batch_instance_norm_forward(x, ONES, GAMMA)
    assert y.shape == shape
    assert all(np.isnan(each).all() for each in statistics)
    dx, *others = ln.batch_instance_norm_backward(x, x, *statistics, ONES, GAMMA)
    assert dx.shape == shape
    for each in others:
        np.testing.assert_array_equal(each, np.zeros(4))
