"""Switchable norm: both ends of its mixes, distant means, constants, NaN and infinity."""

from __future__ import annotations

import numpy as np
import pytest

import ln_array_api as ln

RNG = np.random.default_rng(0)
X, DY = RNG.standard_normal((2, 3, 4, 5))
GAMMA, BETA = RNG.standard_normal((2, 4))
EVEN = np.zeros(3)


def exact(x: np.ndarray, mean_weights: np.ndarray, var_weights: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    kinds = [(2,), (1, 2), (0, 2)]
    means = [x.mean(axis=axes, keepdims=True) for axes in kinds]
    variances = [x.var(axis=axes, keepdims=True) for axes in kinds]
    mixed = []
    for weights, values in ((mean_weights, means), (var_weights, variances)):
        weights = np.exp(weights.astype(np.longdouble))
        weights /= weights.sum()
        mixed.append(sum(w * each for w, each in zip(weights, values, strict=True)))
    return (x - mixed[0]) / np.sqrt(mixed[1] + np.longdouble(1e-5))


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_one_kind_with_all_of_the_weight(kind: int) -> None:
    weights = np.where(np.arange(3) == kind, 0.0, -1e4)
    expected = [
        lambda: ln.instance_norm(X),
        lambda: ln.layer_norm(X, axis=(1, 2)),
        lambda: ln.batch_norm_forward(X).y,
    ][kind]()
    y, mean, var = ln.switchable_norm_forward(X, weights, weights)
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(mean, X.mean(axis=2), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(var, X.var(axis=2), rtol=1e-12)
    gradients = ln.switchable_norm_backward(DY, X, mean, var, weights, weights)
    np.testing.assert_array_equal(gradients.dmean_weights, np.zeros(3))


@pytest.mark.parametrize("apart", ["samples", "channels"])
def test_instances_whose_means_are_far_apart(apart: str) -> None:
    """The mix contains their variance too, with a small weight."""
    far = np.zeros((3, 4, 1))
    if apart == "samples":
        far[1] = 1e6
    else:
        far[:, 2] = 1e6
    x = (X + far).astype(np.float32)
    weights = np.asarray([0.0, -30.0, -30.0])
    for mean_weights in (weights, EVEN):
        y = ln.switchable_norm(x, mean_weights, weights)
        expected = exact(x, mean_weights, weights)
        scale = np.abs(expected).max(axis=2, keepdims=True)
        assert (np.abs(y - expected) / scale).max() < 1e-6


def test_adding_a_constant_to_all_weights_changes_nothing() -> None:
    weights = RNG.standard_normal(3)
    y = ln.switchable_norm(X, weights, weights)
    for shift in (1000.0, -1000.0):
        moved = ln.switchable_norm(X, weights + shift, weights - shift)
        np.testing.assert_allclose(moved, y, rtol=1e-10)


@pytest.mark.parametrize("value", [1 / 3, 1e18, 1e-30])
def test_constant_x_is_beta_exactly(value: float) -> None:
    x = np.full((3, 4, 5), value, np.float32)
    y, mean, var = ln.switchable_norm_forward(x, EVEN, EVEN, GAMMA, BETA)
    np.testing.assert_array_equal(y, np.broadcast_to(BETA[:, None], x.shape).astype("f4"))
    np.testing.assert_array_equal(mean, np.full((3, 4), value, np.float32))
    assert not var.any()
    gradients = ln.switchable_norm_backward(DY, x, mean, var, EVEN, EVEN, GAMMA)
    assert all(np.isfinite(each).all() for each in gradients)


def test_an_epsilon_too_small_for_float32_still_keeps_0_over_0_away() -> None:
    x = np.full((3, 4, 5), 7, np.float32)
    np.testing.assert_array_equal(ln.switchable_norm(x, EVEN, EVEN, epsilon=1e-60), 0 * x)
    assert np.isnan(ln.switchable_norm(x, EVEN, EVEN, epsilon=0)).all()


def test_a_nan_affects_its_sample_and_its_channel() -> None:
    x = X.copy()
    x[1, 2, 3] = np.nan
    y, clean = ln.switchable_norm(x, EVEN, EVEN), ln.switchable_norm(X, EVEN, EVEN)
    spoiled = np.zeros((3, 4), bool)
    spoiled[1], spoiled[:, 2] = True, True
    assert np.isnan(y[spoiled]).all()
    np.testing.assert_array_equal(y[~spoiled], clean[~spoiled])


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 4, 0)])
def test_empty_inputs(shape: tuple[int, int, int]) -> None:
    x = np.ones(shape)
    y, mean, var = ln.switchable_norm_forward(x, EVEN, EVEN, GAMMA)
    assert y.shape == shape
    assert np.isnan(mean).all()
    assert np.isnan(var).all()
    dx, *others = ln.switchable_norm_backward(x, x, mean, var, EVEN, EVEN, GAMMA)
    assert dx.shape == shape
    for each in others:
        np.testing.assert_array_equal(each, np.zeros(each.shape))
