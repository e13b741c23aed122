"""Sums over any axes are as accurate over columns as over rows, also of chunked arrays."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from ln_array_api._arrays import library_of
from ln_array_api.kernels import reductions
from ln_array_api.kernels.reductions import BLOCK, largest_magnitude, sum_over

EPS = 2.0**-24
MODULES = ("numpy", "torch", "jax.numpy", "array_api_strict", "dask.array")


def library(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def given(module: str, values: np.ndarray, **options: Any) -> tuple[Any, Any]:
    """Return the namespace that kernels use, and an array of it."""
    x = library(module).asarray(values.copy(), **options)
    return library_of(x).xp, x


def plain(x: Any) -> np.ndarray:
    return np.asarray(x.compute(scheduler="synchronous") if hasattr(x, "compute") else x)


def subsets(ndim: int) -> list[tuple[int, ...]]:
    axes = range(ndim)
    return [each for length in axes for each in itertools.combinations(axes, length + 1)]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("axes", subsets(4), ids=str)
def test_any_axes(module: str, axes: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).standard_normal((3, 70, 2, 5)).astype(np.float32)
    options = {"chunks": (2, 33, 1, 4)} if module == "dask.array" else {}
    xp, x = given(module, values, **options)
    total, largest = sum_over, largest_magnitude
    if module == "jax.numpy":  # as one program, which is many times faster
        jit = library("jax").jit
        total, largest = (jit(each, static_argnums=(0, 2)) for each in (total, largest))
    result = plain(total(xp, x, axes))
    expected = values.astype(np.float64).sum(axis=axes, keepdims=True)
    magnitude = np.abs(values.astype(np.float64)).sum(axis=axes, keepdims=True)
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    assert np.all(np.abs(result - expected) <= 8 * EPS * magnitude)
    peak = plain(largest(xp, x, axes))
    np.testing.assert_array_equal(peak, np.abs(values).max(axis=axes, keepdims=True))


@pytest.mark.parametrize("module", MODULES)
def test_trailing_axes_of_which_one_has_length_one(module: str) -> None:
    xp, x = given(module, np.arange(30, dtype=np.float32).reshape(3, 2, 1, 5))
    result = plain(sum_over(xp, x, (0, 2, 3)))
    np.testing.assert_array_equal(result.reshape(-1), [180, 255])


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    "axes", [(0,), (0, 1), (1,), (0, 2)], ids=["first", "first two", "middle", "outer"]
)
def test_the_error_of_a_long_sum_over_columns_does_not_grow(
    module: str, axes: tuple[int, ...]
) -> None:
    shape = {(0,): (1 << 17, 1, 3), (1,): (2, 1 << 17, 2), (0, 1): (1 << 9, 1 << 8, 3)}
    values = np.random.default_rng(2).uniform(1, 2, shape.get(axes, (1 << 9, 3, 1 << 8)))
    values = values.astype(np.float32)
    exact = values.astype(np.float64).sum(axis=axes, keepdims=True)

    def error(result: np.ndarray) -> float:
        return float(np.max(np.abs(result.reshape(exact.shape) - exact) / exact) / EPS)

    xp, x = given(module, values)
    assert error(plain(sum_over(xp, x, axes))) <= 4
    if axes == (0,):  # else the bound would prove nothing
        assert error(np.add.reduce(values, axis=0)) > 4


@pytest.mark.parametrize(
    "rows", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, BLOCK**2, BLOCK**2 + 1]
)
@pytest.mark.parametrize("module", MODULES)
def test_every_row_counts_once(module: str, rows: int) -> None:
    values = np.zeros((rows, 3), np.float32)
    values[:, 0] = 1
    values[-1, 1] = values[0, 2] = 5
    xp, x = given(module, values)
    assert plain(sum_over(xp, x, (0,))).tolist() == [[rows, 5, 5]]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (4, 3, 0), (0, 0, 0)], ids=str)
def test_axes_of_length_zero(module: str, shape: tuple[int, ...]) -> None:
    xp, x = given(module, np.ones(shape, np.float32))
    for axes in subsets(3):
        result = plain(sum_over(xp, x, axes))
        expected = np.zeros(shape, np.float32).sum(axis=axes, keepdims=True)
        np.testing.assert_array_equal(result, expected, strict=True)


@pytest.mark.parametrize("module", MODULES)
def test_no_axes(module: str) -> None:
    xp, x = given(module, np.ones((2, 3), np.float32))
    assert sum_over(xp, x, ()) is x


@pytest.mark.parametrize("reduction", [sum_over, largest_magnitude])
def test_chunked_arrays_stay_lazy_and_are_not_rechunked_along_other_axes(reduction: Any) -> None:
    dask = library("dask")
    xp, x = given("dask.array", np.ones((6, 8, 4), np.float32), chunks=(2, 3, 4))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        result = reduction(xp, x, (1,))
        assert result.chunks == ((2, 2, 2), (1,), (4,))
        assert reduction(xp, x, (0, 1, 2)).chunks == ((1,), (1,), (1,))
        with pytest.raises(AssertionError, match="something was computed"):
            result.compute()
    assert result.dtype == np.float32


def test_a_sum_over_chunks_has_the_bits_that_its_chunks_say() -> None:
    """Partial sums are added in the order of the chunks, so two runs agree, threads or not."""
    values = np.random.default_rng(3).lognormal(0, 3, (1000, 7)).astype(np.float32)
    xp, x = given("dask.array", values, chunks=(90, 3))
    result = sum_over(xp, x, (0,))
    first = result.compute(scheduler="threads")
    np.testing.assert_array_equal(first, plain(result))
    partial = np.concatenate([values[i : i + 90].sum(axis=0)[None] for i in range(0, 1000, 90)])
    np.testing.assert_allclose(first, partial.sum(axis=0, keepdims=True), rtol=4 * EPS)


def test_unknown_lengths_along_other_axes() -> None:
    xp, x = given("dask.array", np.arange(24, dtype=np.float32).reshape(6, 4), chunks=(2, 2))
    x = x[x[:, 0] > 5]
    assert np.isnan(x.shape[0])
    np.testing.assert_array_equal(plain(sum_over(xp, x, (1,)))[:, 0], [38, 54, 70, 86])
    np.testing.assert_array_equal(plain(sum_over(xp, x, (0,)))[0], [56, 60, 64, 68])


@pytest.mark.parametrize("module", MODULES)
def test_largest_magnitude_of_special_values(module: str) -> None:
    values = np.asarray([[-3, 2, 0], [0, -0.0, 0], [-np.inf, 1, 2], [np.nan, -5, 5]], np.float32)
    xp, x = given(module, values)
    peak = plain(largest_magnitude(xp, x, (1,)))
    np.testing.assert_array_equal(peak, [[3], [0], [np.inf], [np.nan]])


@pytest.mark.parametrize("n", [reductions.CUPY_ROW + 1, 3 * reductions.CUPY_ROW])
def test_long_rows_in_blocks(n: int) -> None:
    """The sums for CuPy arrays, run on NumPy."""
    values = np.random.default_rng(2).lognormal(size=(2, n)).astype(np.float32)
    actual = reductions._sum_long_rows(*given("numpy", values), np.float32)
    np.testing.assert_allclose(actual, values.astype(np.float64).sum(axis=1), rtol=4 * EPS)
