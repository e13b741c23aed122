"""The generic kernels over rows, with parameters of groups that repeat along rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from ln_array_api._arrays import library_of
from ln_array_api.kernels import rows

MODULES = ("numpy", "torch", "jax.numpy", "array_api_strict")

#: Rows, their length, groups and repeat; group norm of (B, C, S) has B * G, C // G * S, G and S.
CASES = {
    "layer norm": (5, 12, 1, 1),
    "group norm of (2, 6, 4) in 3 groups": (6, 8, 3, 4),
    "group norm of (3, 6, 1) in 2 groups": (6, 3, 2, 1),
    "group norm of (2, 6, 5) in 1 group": (2, 30, 1, 5),
    "instance norm of (2, 3, 7)": (6, 7, 3, 7),
    "one place in all": (4, 6, 1, 6),
    "one image": (4, 6, 4, 2),
}


class Exact(NamedTuple):
    """Compute in float64, element by element."""

    y: np.ndarray
    mean: np.ndarray
    rstd: np.ndarray
    dx: np.ndarray
    dgamma: np.ndarray
    dbeta: np.ndarray


def loop(
    x: np.ndarray,
    dy: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    *,
    epsilon: float,
    center: bool,
    groups: int,
    repeat: int,
) -> Exact:
    x, dy, gamma, beta = (each.astype(np.float64) for each in (x, dy, gamma, beta))
    m, n = x.shape
    y, dx = np.empty((m, n)), np.empty((m, n))
    mean, rstd = np.zeros((m, 1)), np.empty((m, 1))
    dgamma, dbeta = np.zeros(gamma.shape), np.zeros(beta.shape)
    for r in range(m):
        if center:
            mean[r] = sum(x[r]) / n
        d = x[r] - mean[r]
        rstd[r] = 1 / np.sqrt(sum(d * d) / n + epsilon)
        g = np.empty(n)
        for c in range(n):
            index = (r % groups) * (n // repeat) + c // repeat
            x_hat = d[c] * rstd[r, 0]
            y[r, c] = x_hat * gamma[index] + beta[index]
            g[c] = dy[r, c] * gamma[index]
            dgamma[index] += dy[r, c] * x_hat
            dbeta[index] += dy[r, c]
        x_hat = d * rstd[r]
        dx[r] = rstd[r] * (g - center * sum(g) / n - x_hat * sum(g * x_hat) / n)
    return Exact(y, mean, rstd, dx, dgamma, dbeta)


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def arrays(module: str, *values: np.ndarray) -> list[Any]:
    return [importable(module).asarray(each.copy()) for each in values]


def compiled(module: str, kernel: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return the kernel with its options, compiled in JAX, which is many times faster."""
    kernel = partial(kernel, **options)
    if module == "jax.numpy":
        jit: Callable[..., Any] = importable("jax").jit(kernel)
        return jit
    return kernel


def random(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def close(result: Any, expected: np.ndarray) -> None:
    assert tuple(result.shape) == expected.shape
    values = np.asarray(result)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("center", [True, False], ids=["centred", "not centred"])
@pytest.mark.parametrize("module", MODULES)
def test_parameters_of_groups(module: str, center: bool, case: tuple[int, int, int, int]) -> None:
    m, n, groups, repeat = case
    parameters = (groups * n // repeat,)
    x, dy, gamma, beta = random(m * n, (m, n), (m, n), parameters, parameters)
    options = {"center": center, "groups": groups, "repeat": repeat}
    exact = loop(x + 3, dy, gamma, beta, epsilon=0.25, **options)
    own_x, own_dy, own_gamma, own_beta = arrays(module, x + 3, dy, gamma, beta)
    forward = compiled(module, rows.rows_forward, epsilon=0.25, **options)
    backward = compiled(module, rows.rows_backward, **options)
    y, mean, rstd = forward(own_x, own_gamma, own_beta)
    close(y, exact.y)
    close(rstd, exact.rstd)
    if center:
        close(mean, exact.mean)
    assert (mean is None) == (not center)
    dx, dgamma, dbeta = backward(own_dy, own_x, mean, rstd, own_gamma)
    close(dx, exact.dx)
    close(dgamma, exact.dgamma)
    close(dbeta, exact.dbeta)
    ours = type(own_x)
    assert all(isinstance(each, ours) for each in (y, rstd, dx, dgamma, dbeta))


@pytest.mark.parametrize("module", MODULES)
def test_group_norm_as_it_is_usually_written(module: str) -> None:
    """(B, C, S) becomes rows by a reshape."""
    b, c, s, g = 2, 6, 4, 3
    x, gamma, beta = random(7, (b, c, s), (c,), (c,))
    grouped = x.astype(np.float64).reshape(b, g, -1)
    x_hat = grouped - grouped.mean(axis=2, keepdims=True)
    x_hat /= np.sqrt(grouped.var(axis=2, keepdims=True) + 1e-5)
    expected = x_hat.reshape(b, c, s) * gamma[:, None] + beta[:, None]
    own, own_gamma, own_beta = arrays(module, x.reshape(b * g, -1), gamma, beta)
    options = {"epsilon": 1e-5, "center": True, "groups": g, "repeat": s}
    y, _, _ = compiled(module, rows.rows_forward, **options)(own, own_gamma, own_beta)
    close(y, expected.reshape(b * g, -1))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("groups", [1, 3])
def test_without_parameters(module: str, groups: int) -> None:
    x, dy, zero = random(8, (6, 8), (6, 8), (groups * 2,))
    options = {"center": True, "groups": groups, "repeat": 4}
    exact = loop(x, dy, zero * 0 + 1, zero * 0, epsilon=1e-5, **options)
    own, own_dy = arrays(module, x, dy)
    y, mean, rstd = compiled(module, rows.rows_forward, epsilon=1e-5, **options)(own, None, None)
    close(y, exact.y)
    backward = compiled(module, rows.rows_backward, **options, need=(True, False, False))
    dx, *others = backward(own_dy, own, mean, rstd, None)
    close(dx, exact.dx)
    assert others == [None, None]
    backward = compiled(module, rows.rows_backward, **options, need=(False, True, True))
    none, dgamma, dbeta = backward(own_dy, own, mean, rstd, None)
    assert none is None
    close(dgamma, exact.dgamma)
    close(dbeta, exact.dbeta)


@pytest.mark.parametrize("module", ["numpy", "torch", "array_api_strict"])
@pytest.mark.parametrize("groups", [1, 3])
def test_out(module: str, groups: int) -> None:
    x, gamma = random(9, (6, 8), (groups * 4,))
    own, own_gamma, out = arrays(module, x, gamma, np.zeros_like(x))
    options = {"epsilon": 1e-5, "center": True, "groups": groups, "repeat": 2}
    expected, _, _ = rows.rows_forward(own, own_gamma, None, **options)
    y, _, _ = rows.rows_forward(own, own_gamma, None, **options, out=out)
    assert y is out
    np.testing.assert_array_equal(np.asarray(out), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(own), x)
    y, _, _ = rows.rows_forward(own, own_gamma, None, **options, out=own)
    assert y is own
    np.testing.assert_array_equal(np.asarray(own), np.asarray(expected))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("m", "n"), [(0, 8), (6, 0), (0, 0)])
def test_empty_groups(module: str, m: int, n: int) -> None:
    gamma_length = 3 * n // 4
    x, gamma = arrays(module, *random(10, (m, n), (gamma_length,)))
    options = {"center": True, "groups": 3, "repeat": 4}
    forward = compiled(module, rows.rows_forward, epsilon=1e-5, **options)
    y, mean, rstd = forward(x, gamma, gamma)
    backward = compiled(module, rows.rows_backward, **options)
    dx, dgamma, dbeta = backward(y, x, mean, rstd, gamma)
    assert tuple(y.shape) == tuple(dx.shape) == (m, n)
    assert tuple(mean.shape) == tuple(rstd.shape) == (m, 1)
    assert np.isnan(np.asarray(mean)).all() == (n == 0 or m == 0)
    for gradient in (dgamma, dbeta):
        np.testing.assert_array_equal(np.asarray(gradient), np.zeros(gamma_length))


def test_scales_are_powers_of_two_that_bring_rows_into_range() -> None:
    """So multiplying is exact, and neither squares nor sums of 2**31 of them leave the range."""
    for dtype in (np.float32, np.float64):
        limits = np.finfo(dtype)
        exponents = np.arange(limits.minexp + limits.nmant, limits.maxexp)
        peaks = np.ldexp(np.ones((len(exponents), 1), dtype), exponents[:, None])
        xp = library_of(peaks).xp
        for epsilon in (0.0, 1e-5):
            scale, scaled_epsilon = rows.scaling(xp, peaks.dtype, peaks, (1,), epsilon)
            fraction, _ = np.frexp(scale)
            assert (fraction == 0.5).all()
            scaled = peaks.astype(np.longdouble) * scale
            assert (scaled**2 * 2**31 * 4 < limits.max).all()
            ulp = scaled * limits.eps
            assert (ulp**2 + scaled_epsilon > limits.smallest_normal).all()
            assert (np.asarray(scaled_epsilon) >= 0).all()
            plain = np.abs(exponents) < 8
            assert (scale[plain] == 1).all()


def test_float16_needs_no_scaling() -> None:
    x = np.ones((2, 3), np.float32)
    scale, epsilon = rows.scaling(np, np.dtype(np.float16), x, (1,), 1e-5)
    assert (scale, epsilon) == (None, 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1, 1e18, 1e30])
def test_results_of_extreme_rows_in_float32(scale: float) -> None:
    x, dy, gamma, beta = random(11, (4, 32), (4, 32), (32,), (32,))
    wide = x.astype(np.float64)
    options = {"center": True, "groups": 1, "repeat": 1}
    exact = loop(wide, dy, gamma, beta, epsilon=0, **options)
    y, mean, rstd = rows.rows_forward(
        (wide * scale).astype(np.float32), gamma, beta, epsilon=0.0, **options
    )
    close(y, exact.y)
    np.testing.assert_allclose(mean / scale, exact.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rstd * scale, exact.rstd, rtol=1e-6)


@pytest.mark.parametrize("module", MODULES)
def test_a_mean_that_is_some_ulp_off_makes_no_difference_to_gradients(module: str) -> None:
    x, dy, gamma = random(12, (4, 256), (4, 256), (256,))
    options = {"center": True, "groups": 1, "repeat": 1}
    x += 1e4
    exact = loop(x, dy, gamma, gamma, epsilon=1e-5, **options)
    off = (exact.mean + 4e-3).astype(np.float32)
    given = arrays(module, dy, x, off, exact.rstd.astype(np.float32), gamma)
    dx, dgamma, _ = compiled(module, rows.rows_backward, **options)(*given)
    np.testing.assert_allclose(np.asarray(dx), exact.dx, atol=1e-5)
    np.testing.assert_allclose(np.asarray(dgamma), exact.dgamma, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [0, 1])
def test_squares_that_are_alike(axis: int, dtype: Any) -> None:
    """Rows with many zeros have equal squares: a plain sum of them is off by 3.9 ulp here."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 127)).astype(dtype)
    x = np.where(x < 0.5, dtype(0), x)
    wide = x.astype(np.longdouble)
    d = wide - wide.mean(axis=1, keepdims=True)
    exact = d / np.sqrt((d * d).mean(axis=1, keepdims=True))
    given = np.ascontiguousarray(x.T) if axis == 0 else x
    y, *_ = rows.normalise(given, None, None, axes=(axis,), epsilon=0.0, center=True)
    ulp = np.spacing(abs(exact).max(axis=1, keepdims=True).astype(dtype))
    assert np.max(abs((y.T if axis == 0 else y) - exact) / ulp) < 3.0


@pytest.mark.parametrize("m", [1024, 65536])
def test_gradients_of_parameters_are_rounded_once(m: int) -> None:
    """Where rows of dy are equal, sums of them in float32 round in one direction."""
    (x,) = random(13, (m, 8))
    dy = np.broadcast_to(np.linspace(0.05, 0.4, 8, dtype=np.float32), (m, 8))
    options = {"center": False, "need": (False, True, True)}
    rstd = np.ones((m, 1), np.float32)  # so that x is x_hat
    _, dgamma, dbeta = rows.rows_backward(dy, x, None, rstd, None, **options)
    wide = dy.astype(np.float64)
    exact = wide.sum(axis=0)
    assert np.max(abs(dbeta - exact) / np.spacing(exact.astype(np.float32))) <= 0.5
    products = (dy * x).astype(np.float64)
    exact = products.sum(axis=0)
    assert np.max(abs(dgamma - exact) / np.spacing(abs(exact).astype(np.float32))) <= 0.5
