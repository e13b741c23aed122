"""Local contrast norm: windows of all sizes, their locality, and chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

RNG = np.random.default_rng(0)


pytestmark = pytest.mark.usefixtures("each_backend")


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def exact(x: np.ndarray, size: int, epsilon: float = 1e-5) -> tuple[np.ndarray, ...]:
    """Normalise window by window, over both axes of an image."""
    x, reach = x.astype(np.longdouble), size // 2
    y, mean, rstd = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    for i, j in np.ndindex(*x.shape):
        window = x[max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1]
        mean[i, j] = window.mean()
        rstd[i, j] = 1 / np.sqrt(((window - mean[i, j]) ** 2).mean() + np.longdouble(epsilon))
        y[i, j] = (x[i, j] - mean[i, j]) * rstd[i, j]
    return y, mean, rstd


def exact_gradient(
    dy: np.ndarray, x: np.ndarray, size: int, epsilon: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:
    """Compute dx window by window, and the sum of the magnitudes of its terms."""
    dy, x, reach = dy.astype(np.longdouble), x.astype(np.longdouble), size // 2
    y, mean, rstd = exact(x, size, epsilon)
    dx, scale = dy * rstd, abs(dy * rstd)
    for i, j in np.ndindex(*x.shape):
        near = np.s_[max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1]
        share = dy[i, j] * rstd[i, j] / x[near].size
        of_var = y[i, j] * rstd[i, j] * (x[near] - mean[i, j])
        dx[near] -= share * (1 + of_var)
        scale[near] += abs(share) * (1 + abs(of_var))
    return dx, scale


def check_gradient(dy: np.ndarray, x: np.ndarray, size: int, epsilon: float = 1e-5) -> None:
    """Check that dx in float32 is within 8 ulp of the terms of each element."""
    _, mean, rstd = ln.local_contrast_norm_forward(x, size=size, epsilon=epsilon)
    dx = ln.local_contrast_norm_backward(dy, x, mean, rstd, size=size).dx
    expected, scale = exact_gradient(dy, x, size, epsilon)
    error = abs(dx - expected) / np.spacing(scale.astype(np.float32))
    assert error.max() <= 8, error.max()


def worst(actual: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(actual) - expected).max())


@pytest.mark.parametrize("size", [1, 3, 5, 7, 9, 11, 15, 31, 101])
def test_windows_of_all_sizes(size: int) -> None:
    x = RNG.standard_normal((13, 10))
    for own, right in zip(
        ln.local_contrast_norm_forward(x, size=size), exact(x, size), strict=True
    ):
        np.testing.assert_allclose(own, right.astype(float), rtol=1e-12, atol=1e-13)


def test_a_window_over_all_is_layer_norm() -> None:
    x, dy = RNG.standard_normal((2, 3, 4, 5))
    y, mean, rstd = ln.local_contrast_norm_forward(x, size=9)
    expected = ln.layer_norm_forward(x, axis=(1, 2))
    np.testing.assert_allclose(y, expected.y, rtol=1e-12, atol=1e-13)
    own = ln.local_contrast_norm_backward(dy, x, mean, rstd, size=9).dx
    right = ln.layer_norm_backward(dy, x, *expected[1:], axis=(1, 2)).dx
    np.testing.assert_allclose(own, right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mean", [0, 1e2, 1e4, 1e6])
def test_the_error_does_not_grow_with_the_mean(mean: float) -> None:
    x = (mean + RNG.standard_normal((24, 24))).astype(np.float32)
    dy = RNG.standard_normal((24, 24)).astype(np.float32)
    y, *statistics = ln.local_contrast_norm_forward(x)
    assert worst(y, exact(x, 9)[0]) < 1e-6
    wide = [each.astype(np.float64) for each in (dy, x)]
    saved = ln.local_contrast_norm_forward(wide[1])[1:]
    expected = ln.local_contrast_norm_backward(*wide, *saved).dx
    assert worst(ln.local_contrast_norm_backward(dy, x, *statistics).dx, expected) < 2e-6


def test_elements_outside_of_a_window_do_not_matter() -> None:
    """A bright half and a dark one: no sum over more than a window may be subtracted."""
    x = (1e-6 * RNG.standard_normal((16, 32))).astype(np.float32)
    x[:, 16:] += 1e6 * RNG.standard_normal((16, 16)).astype(np.float32)
    results, expected = ln.local_contrast_norm_forward(x, size=5, epsilon=0), exact(x, 5, 0)
    dark = np.s_[:, :14]
    for own, right, tolerance in zip(results, expected, (2e-6, 1e-12, 2), strict=True):
        assert worst(own[dark], right[dark]) < tolerance


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("step", [1e2, 1e4, 1e6])
def test_gradients_at_an_edge(step: float, turn: int) -> None:
    """Elements near an edge have terms of windows on either side, and of windows across it."""
    x, dy = RNG.standard_normal((2, 32, 32)).astype(np.float32)
    x[:, 16:] += np.float32(step)
    check_gradient(dy, np.rot90(x, turn), 9)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e20, 1e33, 3e38])
@pytest.mark.parametrize("epsilon", [1e-37, 1e-5, 1e4, 1e8, 1e37])
def test_gradients_of_constant_images(value: float, epsilon: float) -> None:
    """Epsilon determines rstd, and the magnitude of x does not matter."""
    dy = RNG.standard_normal((16, 16)).astype(np.float32)
    check_gradient(dy, np.full((16, 16), value, np.float32), 3, epsilon)


@pytest.mark.parametrize("value", [1e-30, 1e33])
def test_gradients_next_to_a_constant_half(value: float) -> None:
    x, dy = RNG.standard_normal((2, 16, 16))
    x[:, :8] = 0
    check_gradient(dy.astype(np.float32), (value * x).astype(np.float32), 3)


@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1e30, 1e36])
def test_gradients_of_an_outlier_of_any_magnitude(magnitude: float) -> None:
    x, dy = RNG.standard_normal((2, 32, 32))
    x[16, 15] = 100
    check_gradient(dy.astype(np.float32), (magnitude * x).astype(np.float32), 31, 0)


def test_gradients_close_to_the_smallest_number() -> None:
    """The terms of each are even smaller, and are not rounded to subnormal numbers."""
    x, dy = RNG.standard_normal((2, 32, 32))
    check_gradient((0.01 * dy).astype(np.float32), (1e37 * x).astype(np.float32), 31, 0)


@pytest.mark.parametrize("place", [(0, 0), (12, 12), (23, 5)])
def test_an_outlier(place: tuple[int, int]) -> None:
    x = RNG.standard_normal((24, 24)).astype(np.float32)
    x[place] = 1e4
    expected = exact(x, 9)[0]
    largest = np.float32(np.abs(expected).max())  # the outlier's, in each window that has it
    assert worst(ln.local_contrast_norm(x), expected) < 4 * np.spacing(largest)


@pytest.mark.parametrize("value", [1 / 3, 1e30, 1e-30, 0.0])
def test_constant_windows_are_exact(value: float) -> None:
    x = np.full((20, 20), value, np.float32)
    y, mean, rstd = ln.local_contrast_norm_forward(x)
    np.testing.assert_array_equal(y, 0 * x)
    np.testing.assert_array_equal(mean, x)
    np.testing.assert_allclose(rstd, 1e5**0.5, rtol=1e-6)
    dy = np.ones_like(x)
    assert np.isfinite(ln.local_contrast_norm_backward(dy, x, mean, rstd).dx).all()
    assert np.isnan(ln.local_contrast_norm(x, epsilon=0)).all()


@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1e30, 1e37])
def test_magnitudes(magnitude: float) -> None:
    x = (magnitude * RNG.standard_normal((24, 24))).astype(np.float32)
    y, mean, rstd = ln.local_contrast_norm_forward(x, epsilon=0)
    expected = exact(x, 9, 0)
    assert worst(y, expected[0]) < 1e-6
    np.testing.assert_allclose(rstd, expected[2].astype(float), rtol=1e-6)
    dy = RNG.standard_normal((24, 24)).astype(np.float32)
    dx = ln.local_contrast_norm_backward(dy, x, mean, rstd).dx
    wide = [each.astype(np.float64) for each in (dy, x)]
    saved = ln.local_contrast_norm_forward(wide[1], epsilon=0)[1:]
    right = ln.local_contrast_norm_backward(*wide, *saved).dx
    assert worst(dx, right) < 2e-6 * np.abs(right).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 3), (11, 12), (19, 19)])
def test_nan_and_infinity_affect_only_their_own_windows(bad: float, place: tuple[int, int]) -> None:
    x = RNG.standard_normal((20, 20)).astype(np.float32)
    clean = ln.local_contrast_norm(x, size=5)
    x[place] = bad
    y = ln.local_contrast_norm(x, size=5)
    near = np.zeros((20, 20), bool)
    near[max(place[0] - 2, 0) : place[0] + 3, max(place[1] - 2, 0) : place[1] + 3] = True
    assert np.isnan(y[near]).all()
    np.testing.assert_array_equal(y[~near], clean[~near])


@pytest.mark.parametrize("chunks", [(1, 3, 2), (2, 7, 4), (1, 20, 20), (2, 1, 20)], ids=str)
@pytest.mark.parametrize("size", [1, 3, 9, 51])
def test_dask_chunks_see_their_neighbours(chunks: tuple[int, ...], size: int) -> None:
    dask, da = importable("dask"), importable("dask.array")
    plain, dy = RNG.standard_normal((2, 2, 20, 20))
    x, own_dy = (da.from_array(each, chunks=chunks) for each in (plain, dy))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        forward = ln.local_contrast_norm_forward(x, size=size)
        gradients = ln.local_contrast_norm_backward(own_dy, x, *forward[1:], size=size)
    expected = ln.local_contrast_norm_forward(plain, size=size)
    right = ln.local_contrast_norm_backward(dy, plain, *expected[1:], size=size)
    for own, each in zip((*forward, *gradients), (*expected, *right), strict=True):
        assert own.shape == each.shape
        values = own.compute(scheduler="synchronous")
        np.testing.assert_allclose(values, each, rtol=1e-11, atol=1e-12)
    if min(chunks[1:]) > size // 2:
        assert forward.y.chunks == x.chunks


def test_dask_lengths_that_are_not_known_yet() -> None:
    da = importable("dask.array")
    x = da.from_array(RNG.standard_normal((6, 9, 8)), chunks=4)
    x = x[x[:, 0, 0] > 0]
    for axes in (0, (1, 2)):
        with pytest.raises(ValueError, match=r"^local_contrast_norm: the length of axis 0 is not"):
            ln.local_contrast_norm(x, spatial_axes=axes)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_empty_inputs(shape: tuple[int, int, int]) -> None:
    x = np.ones(shape)
    result = ln.local_contrast_norm_forward(x)
    assert {each.shape for each in result} == {shape}
    assert ln.local_contrast_norm_backward(x, x, *result[1:]).dx.shape == shape
