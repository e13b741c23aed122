"""The generic kernels over channels, compared with loops in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from ln_array_api.kernels import channels

MODULES = ("numpy", "torch", "jax.numpy", "array_api_strict")
SHAPES = [(4, 3, 5), (2, 3, 1), (6, 4, 1), (1, 3, 7), (9, 1, 1), (70, 2, 3), (2, 1, 70)]
STATISTICS = ("mean", "var", "rstd")


def exact(
    x: np.ndarray, dy: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float
) -> dict[str, np.ndarray]:
    """Compute in wide arithmetic, channel by channel."""
    x, dy, gamma, beta = (each.astype(np.longdouble) for each in (x, dy, gamma, beta))
    names = ("y", "dx", "mean", "var", "rstd", "dgamma", "dbeta")
    found: dict[str, Any] = {name: np.empty_like(x) for name in names[:2]}
    found |= {name: np.empty(x.shape[1], np.longdouble) for name in names[2:]}
    for c in range(x.shape[1]):
        values, gradient = x[:, c], dy[:, c]
        mean, var = values.mean(), values.var()
        rstd = 1 / np.sqrt(var + epsilon)
        x_hat = (values - mean) * rstd
        g = gradient * gamma[c]
        found["y"][:, c] = x_hat * gamma[c] + beta[c]
        found["dx"][:, c] = rstd * (g - g.mean() - x_hat * (g * x_hat).mean())
        for name, value in (("mean", mean), ("var", var), ("rstd", rstd)):
            found[name][c] = value
        found["dgamma"][c] = (gradient * x_hat).sum()
        found["dbeta"][c] = gradient.sum()
    return found


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def arrays(module: str, *values: np.ndarray) -> list[Any]:
    return [importable(module).asarray(each.copy()) for each in values]


def random(*shape: int) -> list[np.ndarray]:
    """Return x, dy, gamma and beta."""
    rng = np.random.default_rng(shape)
    shapes = (shape, shape, shape[1:2], shape[1:2])
    return [rng.standard_normal(each).astype(np.float32) for each in shapes]


def close(result: Any, expected: np.ndarray, rtol: float = 1e-5, atol: float = 3e-6) -> None:
    assert tuple(result.shape) == expected.shape
    values = np.asarray(result)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("module", MODULES)
def test_forward_inference_and_backward(module: str, shape: tuple[int, int, int]) -> None:
    given = random(*shape)
    right = exact(*given, epsilon=0.25)
    x, dy, gamma, beta = arrays(module, *given)
    y, *statistics = channels.channels_forward(x, gamma, beta, epsilon=0.25)
    close(y, right["y"])
    for values, name in zip(statistics, STATISTICS, strict=True):
        close(values, right[name])
    mean, var, rstd = statistics
    y = channels.channels_inference(x, mean, var, gamma, beta, epsilon=0.25)
    close(y, right["y"])
    for gradient, name in zip(
        channels.channels_backward(dy, x, mean, rstd, gamma),
        ("dx", "dgamma", "dbeta"),
        strict=True,
    ):
        close(gradient, right[name], atol=1e-5)
        assert type(gradient) is type(x)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_channels_on_any_axis(axis: int) -> None:
    """Channels may be on any axis, as for chunked arrays."""
    x, dy, gamma, beta = random(6, 3, 8)
    plain, dys = (np.moveaxis(each.reshape(6, 3, 2, 4), 1, axis) for each in (x, dy))
    y, *statistics = channels.channels_forward(plain, gamma, beta, epsilon=1e-5, axis=axis)
    expected, *of_three = channels.channels_forward(x, gamma, beta, epsilon=1e-5)
    close(np.moveaxis(y, axis, 1).reshape(x.shape), expected)
    for values, right in zip(statistics, of_three, strict=True):
        close(values, right)
    mean, var, rstd = statistics
    y = channels.channels_inference(plain, mean, var, gamma, beta, epsilon=1e-5, axis=axis)
    close(np.moveaxis(y, axis, 1).reshape(x.shape), expected)
    dx, *others = channels.channels_backward(dys, plain, mean, rstd, gamma, axis=axis)
    right, *rights = channels.channels_backward(dy, x, mean, rstd, gamma)
    close(np.moveaxis(dx, axis, 1).reshape(x.shape), right)
    for values, own in zip(others, rights, strict=True):
        close(values, own, atol=1e-5)


@pytest.mark.parametrize("module", MODULES)
def test_without_parameters_and_with_some_gradients(module: str) -> None:
    x, dy, *_ = random(5, 3, 4)
    right = exact(x, dy, np.ones(3), np.zeros(3), epsilon=1e-5)
    own, own_dy = arrays(module, x, dy)
    y, mean, var, rstd = channels.channels_forward(own, None, None, epsilon=1e-5)
    close(y, right["y"])
    close(channels.channels_inference(own, mean, var, None, None, epsilon=1e-5), right["y"])
    for needed in range(8):
        need = (bool(needed & 1), bool(needed & 2), bool(needed & 4))
        gradients = channels.channels_backward(own_dy, own, mean, rstd, None, need=need)
        names = ("dx", "dgamma", "dbeta")
        for name, wanted, gradient in zip(names, need, gradients, strict=True):
            assert (gradient is not None) == wanted
            if wanted:
                close(gradient, right[name], atol=1e-5)


def test_a_gradient_that_is_not_needed_costs_nothing(sums: list[tuple[int, ...]]) -> None:
    x, dy, gamma, _ = random(5, 3, 4)
    _, mean, _, rstd = channels.channels_forward(x, gamma, None, epsilon=1e-5)
    backward = partial(channels.channels_backward, dy, x, mean, rstd, gamma)
    counts = []
    for need in ((False,) * 3, (False, False, True), (False, True, False), (True,) * 3):
        sums.clear()
        backward(need=need)
        counts.append(len(sums))
    assert counts == [0, 1, 2, 3]


@pytest.mark.parametrize("module", ["numpy", "torch"])
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
def test_the_error_does_not_grow_with_the_mean(module: str, ratio: float) -> None:
    x, dy, gamma, beta = random(8, 4, 33)
    x += np.float32(ratio)
    right = exact(x, dy, gamma, beta, epsilon=1e-5)
    own, own_dy, own_gamma, own_beta = arrays(module, x, dy, gamma, beta)
    y, mean, var, rstd = channels.channels_forward(own, own_gamma, own_beta, epsilon=1e-5)
    close(y, right["y"], atol=1.5e-6)
    close(var, right["var"], rtol=1e-6, atol=0)
    close(rstd, right["rstd"], rtol=1e-6, atol=0)
    close(mean, right["mean"], rtol=1.2e-7, atol=0)
    dx, dgamma, dbeta = channels.channels_backward(own_dy, own, mean, rstd, own_gamma)
    close(dx, right["dx"], atol=1e-6)
    close(dgamma, right["dgamma"], atol=1e-5)
    close(dbeta, right["dbeta"], atol=1e-5)
    # As wrong as a float32 mean may be, or as one from another machine.
    off = mean + ratio * 2.0**-22
    for gradient, name in zip(
        channels.channels_backward(own_dy, own, off, rstd, own_gamma),
        ("dx", "dgamma", "dbeta"),
        strict=True,
    ):
        close(gradient, right[name], atol=1e-5)


@pytest.mark.parametrize("module", MODULES)
def test_constant_channels_and_a_nan(module: str) -> None:
    x, dy, gamma, beta = random(6, 4, 5)
    x[:, 1], x[3, 2, 4] = np.float32(0.1), np.nan
    own, own_dy, own_gamma, own_beta = arrays(module, x, dy, gamma, beta)
    y, mean, var, rstd = map(
        np.asarray, channels.channels_forward(own, own_gamma, own_beta, epsilon=1e-5)
    )
    np.testing.assert_array_equal(y[:, 1], beta[1])
    assert (mean[1], var[1]) == (x[0, 1, 0], 0)
    for values in (mean, var, rstd):
        np.testing.assert_array_equal(np.isnan(values), [False, False, True, False])
    np.testing.assert_array_equal(np.isnan(y).any(axis=(0, 2)), [False, False, True, False])
    mean, rstd = arrays(module, mean, rstd)
    dx, dgamma, dbeta = map(
        np.asarray, channels.channels_backward(own_dy, own, mean, rstd, own_gamma)
    )
    assert np.isfinite(dx[:, 1]).all()
    np.testing.assert_array_equal(np.isnan(dx).any(axis=(0, 2)), [False, False, True, False])
    assert (dgamma[1], np.isnan(dgamma[2]), np.isfinite(dbeta).all()) == (0, True, True)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_magnitudes(scale: float) -> None:
    x, dy, gamma, beta = random(6, 4, 5)
    scaled = (x.astype(np.float64) * scale).astype(np.float32)
    right = exact(scaled, dy, gamma, beta, epsilon=0)
    y, mean, var, rstd = channels.channels_forward(scaled, gamma, beta, epsilon=0.0)
    close(y, right["y"])
    close(mean / np.float32(scale), right["mean"] / scale)
    close(rstd * np.float32(scale), right["rstd"] * scale)
    with np.errstate(over="ignore"):
        close(var, right["var"].astype(np.float32), atol=0)
    dx, dgamma, _ = channels.channels_backward(dy, scaled, mean, rstd, gamma)
    close(dx * np.float32(scale), right["dx"] * scale, atol=1e-5)
    close(dgamma, right["dgamma"], atol=1e-5)


def test_epsilon_that_float32_cannot_hold_keeps_constants_finite() -> None:
    x = np.full((4, 2, 3), 7, np.float32)
    _, mean, var, _ = channels.channels_forward(x, None, None, epsilon=1e-60)
    for values in (
        channels.channels_forward(x, None, None, epsilon=1e-60)[0],
        channels.channels_inference(x, mean, var, None, None, epsilon=1e-60),
    ):
        np.testing.assert_array_equal(values, 0)
    assert np.isnan(channels.channels_inference(x, mean, var, None, None, epsilon=0.0)).all()


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty(module: str, shape: tuple[int, int, int]) -> None:
    x, dy, gamma, beta = arrays(module, *random(*shape))
    y, mean, var, rstd = channels.channels_forward(x, gamma, beta, epsilon=1e-5)
    assert tuple(y.shape) == shape
    for values in (mean, var, rstd):
        assert np.isnan(np.asarray(values)).all()
        assert tuple(values.shape) == shape[1:2]
    y = channels.channels_inference(x, gamma, gamma, gamma, beta, epsilon=1e-5)
    assert tuple(y.shape) == shape
    dx, dgamma, dbeta = channels.channels_backward(dy, x, gamma, gamma, gamma)
    assert tuple(dx.shape) == shape
    for values in (dgamma, dbeta):
        np.testing.assert_array_equal(np.asarray(values), np.zeros(shape[1:2]))


def test_one_value_for_each_channel() -> None:
    x, dy, gamma, beta = random(1, 3, 1)
    y, mean, var, rstd = channels.channels_forward(x, gamma, beta, epsilon=1e-5)
    np.testing.assert_array_equal(y[0, :, 0], beta)
    np.testing.assert_array_equal(mean, x[0, :, 0])
    np.testing.assert_array_equal(var, 0)
    dx, dgamma, dbeta = channels.channels_backward(dy, x, mean, rstd, gamma)
    np.testing.assert_array_equal(dx, 0)
    np.testing.assert_array_equal(dgamma, 0)
    np.testing.assert_array_equal(dbeta, dy[0, :, 0])


def test_results_share_no_memory_with_arguments() -> None:
    for shape in ((1, 3, 4), (1, 3, 1), (4, 3, 1)):
        x, dy, gamma, beta = random(*shape)
        y, mean, var, rstd = channels.channels_forward(x, gamma, beta, epsilon=1e-5)
        other = channels.channels_inference(x, mean, var, gamma, beta, epsilon=1e-5)
        gradients = channels.channels_backward(dy, x, mean, rstd, gamma)
        for result in (y, other, *gradients):
            assert not any(np.shares_memory(result, each) for each in (x, dy, gamma, beta))


def test_gradients_of_parameters_are_rounded_once() -> None:
    """Where dy is equal along a channel, its sums in float32 round in one direction."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 8, 1000)).astype(np.float32)
    dy = np.broadcast_to(np.linspace(0.05, 0.4, 8, dtype=np.float32)[:, None], x.shape)
    _, mean, _, rstd = channels.channels_forward(x, None, None, epsilon=1e-5)
    _, _, dbeta = channels.channels_backward(dy, x, mean, rstd, None)
    exact = dy.astype(np.float64).sum(axis=(0, 2))
    assert np.max(abs(dbeta - exact) / np.spacing(exact.astype(np.float32))) <= 0.5
