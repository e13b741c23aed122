"""Masks: what is outside changes nothing, and what is inside is as exact as without a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ln_array_api as ln

RNG = np.random.default_rng(0)
DTYPES = {
    name: np.dtype(getattr(ml_dtypes if name == "bfloat16" else np, name))
    for name in ("float16", "bfloat16", "float32", "float64")
}
pytestmark = pytest.mark.usefixtures("each_backend")


def masked_rows(dtype: str, m: int, n: int, density: float = 0.6) -> tuple[Any, Any, Any]:
    """Return x, dy and a mask, whose first row has no elements, and the second one."""
    x, dy = RNG.standard_normal((2, m, n))
    where = RNG.random((m, n)) < density
    where[:2], where[1, n // 2] = False, True
    return x.astype(DTYPES[dtype]), dy.astype(DTYPES[dtype]), where


def both_passes(
    x: Any, dy: Any, gamma: Any, beta: Any, rms: bool = False, **options: Any
) -> list[Any]:
    """Return y, the statistics and the gradients."""
    if rms:
        result = ln.rms_norm_forward(x, gamma, **options)
        return [*result, *ln.rms_norm_backward(dy, x, result.rstd, gamma, **options)]
    result = ln.layer_norm_forward(x, gamma, beta, **options)
    statistics = result.mean, result.rstd
    return [*result, *ln.layer_norm_backward(dy, x, *statistics, gamma, beta, **options)]


def same_bits(actual: list[Any], expected: list[Any]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("n", [1, 7, 16, 33, 130, 2000])
def test_what_is_outside_changes_no_bit(dtype: str, rms: bool, n: int) -> None:
    x, dy, where = masked_rows(dtype, 9, n)
    gamma, beta = RNG.standard_normal((2, n)).astype(DTYPES[dtype])
    expected = both_passes(x, dy, gamma, beta, rms, where=where)
    for outside in (np.nan, np.inf, 0.0, float(ml_dtypes.finfo(DTYPES[dtype]).max)):
        other = np.asarray(outside, DTYPES[dtype])
        moved = (np.where(where, each, other) for each in (x, dy))
        same_bits(both_passes(*moved, gamma, beta, rms, where=where), expected)
    y, dx = expected[0], expected[2 if rms else 3]
    for each in (y, dx):
        assert not each[~where].any()
    for statistic in expected[1 : 2 if rms else 3]:
        assert statistic[0] == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_are_those_of_their_elements_alone(dtype: str, offset: float, scale: float) -> None:
    x, dy, where = masked_rows(dtype, 9, 300)
    x = (x.astype(np.float64) + offset) * scale
    x[3, where[3]] = 7.0 * scale
    x[4, np.argmax(where[4])] = 1e4 * scale
    x = x.astype(DTYPES[dtype])
    gamma, beta = RNG.standard_normal((2, 300)).astype(DTYPES[dtype])
    options = {"epsilon": 0.0 if scale < 1 else 1e-5}
    result = ln.layer_norm_forward(x, gamma, beta, where=where, **options)
    dx = ln.layer_norm_backward(dy, x, result.mean, result.rstd, gamma, where=where).dx
    eps = np.finfo(dtype).eps
    for row in range(2, 9):
        if row == 3 and scale < 1:
            continue  # without epsilon, a constant row is NaN
        some = where[row]
        given = x[row, some][None], gamma[some], beta[some]
        alone = ln.layer_norm_forward(*given, **options)
        np.testing.assert_allclose(result.rstd[row], alone.rstd[0], rtol=8 * eps)
        atol = 8 * eps * float(abs(given[0]).max())
        np.testing.assert_allclose(result.mean[row], alone.mean[0], rtol=0, atol=atol)
        atol = 8 * eps * float(abs(alone.y).max())
        np.testing.assert_allclose(result.y[row, some], alone.y[0], rtol=0, atol=atol)
        statistics = alone.mean, alone.rstd
        of_dy = dy[row, some][None]
        alone_dx = ln.layer_norm_backward(of_dy, given[0], *statistics, gamma[some]).dx
        largest = float(alone.rstd[0, 0]) * float(abs(of_dy * gamma[some]).max())
        np.testing.assert_allclose(dx[row, some], alone_dx[0], rtol=0, atol=16 * eps * largest)
    if scale >= 1:
        np.testing.assert_array_equal(result.y[3, where[3]], beta[where[3]])


@pytest.mark.parametrize("rms", [False, True])
def test_a_mask_of_everything_is_none(rms: bool) -> None:
    x, dy, _ = masked_rows("float32", 40, 70)
    gamma, beta = RNG.standard_normal((2, 70)).astype(np.float32)
    expected = both_passes(x, dy, gamma, beta, rms)
    for shape in ((40, 70), (1, 70), (40, 1), (1, 1), (70,), ()):
        actual = both_passes(x, dy, gamma, beta, rms, where=np.ones(shape, bool))
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, dy, where = masked_rows("float32", 500, 600)
    gamma, beta = RNG.standard_normal((2, 600)).astype(np.float32)
    y, mean, rstd, dx, *_ = both_passes(x, dy, gamma, beta, where=where)
    for rows in (slice(0, 1), slice(7, 9), slice(100, 350)):
        given = (np.ascontiguousarray(each[rows]) for each in (x, dy))
        alone = both_passes(*given, gamma, beta, where=where[rows])
        same_bits(alone[:4], [np.ascontiguousarray(e[rows]) for e in (y, mean, rstd, dx)])


def test_nan_inside_spoils_its_row_alone() -> None:
    x, dy, where = masked_rows("float32", 9, 50)
    gamma, beta = RNG.standard_normal((2, 50)).astype(np.float32)
    expected = both_passes(x, dy, gamma, beta, where=where)
    spoilt = x.copy()
    spoilt[5, np.argmax(where[5])] = np.nan
    y, mean, rstd, dx, *_ = both_passes(spoilt, dy, gamma, beta, where=where)
    assert np.isnan(y[5, where[5]]).all()
    assert not y[5, ~where[5]].any()
    others = np.arange(9) != 5
    for actual, of_x in zip((y, mean, rstd, dx), expected, strict=False):
        np.testing.assert_array_equal(actual[others], of_x[others])


@pytest.mark.parametrize("axis", [0, 1, (0, 2), -1])
def test_out(axis: Any) -> None:
    x = RNG.standard_normal((4, 5, 6)).astype(np.float32)
    where = RNG.random((5, 6)) < 0.5
    expected = ln.layer_norm(x, axis=axis, where=where)
    out = np.empty((4, 5, 12), np.float32)[..., ::2]
    assert ln.layer_norm(x, axis=axis, where=where, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert ln.layer_norm(x, axis=axis, where=where, out=x) is x
    np.testing.assert_array_equal(x, expected)


def test_masks_of_any_layout() -> None:
    x = RNG.standard_normal((6, 8)).astype(np.float32)
    where = RNG.random((6, 8)) < 0.5
    expected = ln.layer_norm(x, where=where).tobytes()
    for other in (np.asfortranarray(where), np.repeat(where, 2, axis=1)[:, ::2]):
        assert ln.layer_norm(x, where=other).tobytes() == expected


@pytest.mark.parametrize("function", [ln.layer_norm, ln.rms_norm])
def test_torch_differentiates(function: Callable[..., Any]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    gamma = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    where = torch.rand(4, 6) < 0.6
    where[0] = False

    def run(x: Any, gamma: Any) -> Any:
        return function(x, gamma, where=where, gamma_offset=1.0)

    assert torch.autograd.gradcheck(run, (x, gamma))
    assert torch.autograd.gradgradcheck(run, (x, gamma))
    nan = torch.where(where, x.detach(), torch.nan).requires_grad_()
    (dx,) = torch.autograd.grad(run(nan, gamma).sum(), nan)
    assert not dx[~where].any()
    assert torch.isfinite(dx).all()


def test_jax_differentiates() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    x, where = RNG.standard_normal((4, 6)).astype(np.float32), RNG.random((4, 6)) < 0.6
    where[0] = False
    gamma = RNG.standard_normal((4, 1)).astype(np.float32)

    def total(x: Any, gamma: Any) -> Any:
        return (ln.layer_norm(x, gamma, where=jax.numpy.asarray(where)) ** 2).sum()

    nan = np.where(where, x, np.float32(np.nan))
    gradients = jax.jit(jax.grad(total, (0, 1)))(jax.numpy.asarray(nan), jax.numpy.asarray(gamma))
    result = ln.layer_norm_forward(nan, gamma, where=where)
    given = 2 * result.y, nan, result.mean, result.rstd, gamma
    expected = ln.layer_norm_backward(*given, where=where)
    for actual, each in zip(gradients, expected, strict=False):
        np.testing.assert_allclose(actual, each, rtol=1e-4, atol=1e-4)
