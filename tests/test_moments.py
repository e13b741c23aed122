"""Merged moments of parts, compared with moments of the whole."""

from __future__ import annotations

import functools
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api import Moments
from ln_array_api._arrays import library_of
from ln_array_api.kernels.moments import two_sum

MODULES = ("numpy", "torch", "jax.numpy", "array_api_strict", "dask.array")
ULP = 2.0**-23


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def plain(x: Any) -> np.ndarray:
    return np.asarray(x.compute(scheduler="synchronous") if hasattr(x, "compute") else x)


def exact(x: np.ndarray, axis: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and variance in wide arithmetic."""
    x = x.astype(np.longdouble)
    return x.mean(axis=axis), x.var(axis=axis)


def merged(x: np.ndarray, cuts: list[int]) -> Moments:
    """Return moments over the first axis, for parts along it."""
    return functools.reduce(Moments.merge, (Moments.of(each, axis=0) for each in np.split(x, cuts)))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("axis", [0, (0, 2), (-1, 0), [1], (0, 1, 2)], ids=str)
def test_parts_give_the_moments_of_the_whole(module: str, axis: Any) -> None:
    xp = importable(module)
    x = random(6, 3, 5).astype(np.float32) + 4
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    cut = min(each % 3 for each in axes)
    parts = [xp.asarray(each) for each in np.split(x, [2], axis=cut)]
    one, two = (Moments.of(each, axis=axis) for each in parts)
    mean, var = exact(x, axes)
    for whole in (one.merge(two), two.merge(one), Moments.of(xp.asarray(x), axis=axis)):
        assert whole.count == x.size // mean.size
        for each in (whole.mean, whole.m2, whole.missed, whole.var, whole.unbiased_var):
            assert library_of(each).name == library_of(parts[0]).name
        assert tuple(whole.mean.shape) == mean.shape
        np.testing.assert_allclose(plain(whole.mean), mean, rtol=3e-7)
        np.testing.assert_allclose(plain(whole.m2), var * whole.count, rtol=1e-6)
        np.testing.assert_allclose(plain(whole.var), var, rtol=1e-6)
        unbiased = var * whole.count / (whole.count - 1)
        np.testing.assert_allclose(plain(whole.unbiased_var), unbiased, rtol=1e-6)


@pytest.mark.parametrize("ratio", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("cuts", [[1], [500], [999], [7, 400, 401], list(range(1, 1000))], ids=len)
def test_the_error_does_not_grow_with_the_mean(ratio: float, cuts: list[int]) -> None:
    x = (random(1000, 16) + ratio).astype(np.float32)
    whole = merged(x, cuts)
    mean, var = exact(x, 0)
    np.testing.assert_allclose(whole.var, var, rtol=4 * ULP * max(1, len(cuts) ** 0.5))
    assert np.all(np.abs(whole.mean - mean) <= ULP * np.abs(mean) + 4 * ULP)
    rest = (whole.mean - mean) + np.asarray(whole.missed, np.longdouble)
    assert np.all(np.abs(rest) <= 4 * ULP * np.sqrt(var))
    if ratio == 1e6:  # what it would be without the rest of the means
        parts = [Moments.of(each, axis=0) for each in np.split(x, cuts)]
        bare = [Moments(each.count, each.mean, each.m2) for each in parts]
        naive = functools.reduce(lambda a, b: Moments(*_three(a.merge(b))), bare)
        assert np.max(np.abs(naive.var - var) / var) > 100 * ULP


def _three(moments: Moments) -> tuple[int, Any, Any]:
    return moments.count, moments.mean, moments.m2


def test_a_part_of_one_far_value() -> None:
    """Merging starts from the mean of the larger part, in either order."""
    x = random(1 << 16, 4).astype(np.float32)
    x[0] = 1e6
    mean, var = exact(x, 0)
    for cuts in ([1], [1, 2]):
        whole = merged(x, cuts)
        np.testing.assert_allclose(whole.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(whole.var, var, rtol=1e-6)


def test_the_mean_and_its_residual_are_exact() -> None:
    x = (random(64) + 1e6).astype(np.float32)
    one = Moments.of(x, axis=0)
    mean = sum(Fraction(float(each)) for each in x) / 64
    found = Fraction(float(one.mean)) + Fraction(float(one.missed))
    assert abs(found - mean) < 1e-6
    assert abs(Fraction(float(one.mean)) - mean) > 1e-4
    total, rest = two_sum(np.float32(1e8), np.float32(3.25))
    assert (total, rest) == (np.float32(1e8), np.float32(3.25))
    total, rest = two_sum(np.float32(3.25), np.float32(1e8))
    assert (total, rest) == (np.float32(1e8), np.float32(3.25))


@pytest.mark.parametrize("module", MODULES)
def test_no_values(module: str) -> None:
    xp = importable(module)
    x = xp.asarray(random(4, 3) + 2)
    some, none = Moments.of(x, axis=0), Moments.of(x[:0, :], axis=0)
    assert some.merge(none) is some
    assert none.merge(some) is some
    both = none.merge(none)
    assert none.count == both.count == 0
    for each in (none, both):
        np.testing.assert_array_equal(plain(each.m2), np.zeros(3))
        for nothing in (each.mean, each.var, each.unbiased_var):
            assert np.isnan(plain(nothing)).all()
    one = Moments.of(x[:1, :], axis=0)
    np.testing.assert_array_equal(plain(one.var), np.zeros(3))
    assert np.isnan(plain(one.unbiased_var)).all()
    assert tuple(Moments.of(x[:, :0], axis=0).mean.shape) == (0,)


def test_constants_are_exact_and_nan_affects_only_its_own_element() -> None:
    x = np.full((10, 3), 0.1, np.float32)
    whole = merged(x, [3, 4])
    np.testing.assert_array_equal(whole.mean, x[0])
    np.testing.assert_array_equal(whole.m2, 0)
    x[2, 1], x[8, 2] = np.nan, np.inf
    whole = merged(x, [3, 4])
    assert whole.mean[0] == x[0, 0]
    assert np.isnan(whole.m2[1:]).all()
    assert np.isnan(whole.mean[1])


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_magnitudes(scale: float) -> None:
    x = (random(100, 3) * scale).astype(np.float32)
    whole = merged(x, [40])
    mean, var = exact(x, 0)
    np.testing.assert_allclose(whole.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(whole.var, var, rtol=1e-5)


def test_means_whose_sum_is_out_of_range() -> None:
    x = np.full((8, 2), 3e38, np.float32)
    np.testing.assert_array_equal(Moments.of(x, axis=0).mean, x[0])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64",) * 2],
)
def test_dtypes(dtype: str, expected: str) -> None:
    x = np.asarray(random(9, 2), getattr(importable("ml_dtypes"), dtype, dtype))
    whole = merged(x, [4])
    mean, var = exact(x.astype(np.float64), 0)
    for each in (whole.mean, whole.m2, whole.missed, whole.var, whole.unbiased_var):
        assert each.dtype.name == expected
    np.testing.assert_allclose(whole.mean, mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(whole.var, var, rtol=1e-5)


def test_chunked_arrays_are_not_computed() -> None:
    dask, da = importable("dask"), importable("dask.array")
    x = random(8, 3, 4)

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("something was computed")

    with dask.config.set(scheduler=refuse):
        chunked = da.from_array(x, chunks=(2, 2, 3))
        whole = Moments.of(chunked[:5], axis=(0, 2)).merge(Moments.of(chunked[5:], axis=(0, 2)))
        assert whole.count == 32
    np.testing.assert_allclose(plain(whole.var), x.var(axis=(0, 2)))
    with pytest.raises(ValueError, match="length of axis 0 is not known"):
        Moments.of(chunked[chunked[:, 0, 0] > 0], axis=0)


def test_within_jit() -> None:
    jax = importable("jax")
    x = (random(64, 3) + 1e6).astype(np.float32)

    @jax.jit
    def var(x: Any) -> Any:
        return Moments.of(x[:20], axis=0).merge(Moments.of(x[20:], axis=0)).var

    np.testing.assert_allclose(var(x), exact(x, 0)[1], rtol=1e-6)


def test_moments_give_the_statistics_of_batch_norm() -> None:
    x = random(10, 3, 4, 4) + 5
    parts = np.split(x, [3, 7])
    whole = functools.reduce(Moments.merge, (Moments.of(part, axis=(0, 2, 3)) for part in parts))
    zero = np.zeros(3)
    expected = ln.batch_norm_forward(x, None, None, zero, zero, momentum=1)
    y = [ln.batch_norm(part, whole.mean, whole.var) for part in parts]
    np.testing.assert_allclose(np.concatenate(y), expected.y, atol=1e-13)
    np.testing.assert_allclose(whole.mean, expected.running_mean)
    np.testing.assert_allclose(whole.unbiased_var, expected.running_var)


def test_moments_travel_between_processes() -> None:
    one = Moments.of(random(5, 2), axis=0)
    other = pickle.loads(pickle.dumps(one))
    assert other.count == one.count
    np.testing.assert_array_equal(other.mean, one.mean)


def test_errors() -> None:
    x = random(4, 3)
    one = Moments.of(x, axis=0)
    with pytest.raises(TypeError, match=r"^Moments\.of: x has dtype int64"):
        Moments.of(x.astype(int), axis=0)
    with pytest.raises(ValueError, match=r"^Moments\.of: axis 2 is out of range"):
        Moments.of(x, axis=2)
    with pytest.raises(ValueError, match=r"^Moments\.of: axis=\(\) leaves nothing"):
        Moments.of(x, axis=())
    with pytest.raises(ValueError, match=r"^Moments\.merge: other\.mean has shape \(4,\)"):
        one.merge(Moments.of(x, axis=1))
    with pytest.raises(TypeError, match=r"^Moments\.merge: other\.mean has dtype float32"):
        one.merge(Moments.of(x.astype(np.float32), axis=0))
    with pytest.raises(TypeError, match=r"^Moments\.merge: other\.mean is an array of torch"):
        one.merge(Moments.of(importable("torch").asarray(x), axis=0))
    with pytest.raises(ValueError, match=r"^Moments\.merge: other\.m2 has shape"):
        one.merge(Moments(1, one.mean, one.m2[:2]))
    assert math.isclose(float(one.merge(one).mean[0]), float(one.mean[0]))
