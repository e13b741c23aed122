"""Sums of vectors in float64, and roots that are as exact as a dtype can hold them."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import pytest
from ln_array_api_backends.numpy import doubles, simd
from ln_array_api_backends.numpy import vector_memory as vm

njit = numba.njit(error_model="numpy")

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@njit
def sums(values: Any, lanes_summed: Any, rounded: Any) -> None:
    """Of all vectors in memory: in lanes of float64, and lane by lane."""
    one = simd.ones(values)
    place, width = vm.data_pointer(values), simd.lanes(one)
    first, rest = doubles.zeros_float64(one), doubles.zeros_float64(one)
    for i in range(0, values.size, width):
        first, rest = doubles.accumulate(first, rest, vm.load(place, i, one))
    vm.store(vm.data_pointer(lanes_summed), 0, doubles.sum_in_float64(first, rest, one))
    vm.store(vm.data_pointer(rounded), 0, doubles.sum_in_dtype(first, rest, one))


@njit
def roots(values: Any, single: Any, results: Any) -> None:
    zero, one = doubles.zeros_float64(simd.ones(values)), simd.ones(single)
    root = doubles.reciprocal_sqrt(vm.load(vm.data_pointer(values), 0, zero), one)
    vm.store(vm.data_pointer(results), 0, doubles.from_float64(root, root, one))


@njit
def widened(values: Any, results: Any) -> None:
    one = simd.ones(values)
    low, high = doubles.to_float64(vm.load(vm.data_pointer(values), 0, one))
    vm.store(vm.data_pointer(results), 0, low)
    vm.store(vm.data_pointer(results), 8, high)


def summed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lanes, rounded = np.zeros(8), np.zeros(64 // values.itemsize, values.dtype)
    sums(values.ravel(), lanes, rounded)
    return lanes, rounded


@DTYPES
def test_a_sum_of_many_vectors_is_rounded_once(dtype: Any) -> None:
    width = 64 // np.dtype(dtype).itemsize
    values = np.random.default_rng(0).standard_normal((1000, width)).astype(dtype)
    values[3], values[700] = 1e6, -1e6  # beside which the others lose digits
    exact = np.asarray([math.fsum(column) for column in values.T.tolist()])
    lanes, rounded = summed(values)
    np.testing.assert_array_equal(rounded, exact.astype(dtype))
    assert (rounded != values.sum(axis=0)).any()
    np.testing.assert_allclose(lanes, exact.reshape(-1, 8).sum(axis=0), atol=1e-8)


@DTYPES
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_a_sum_with_an_infinity_is_infinite(dtype: Any, value: float) -> None:
    width = 64 // np.dtype(dtype).itemsize
    values = np.ones((5, width), dtype)
    values[2, 1] = value
    lanes, rounded = summed(values)
    assert rounded[1] == value == lanes[1]
    assert np.isfinite(np.delete(rounded, 1)).all()


@DTYPES
def test_a_sum_with_both_infinities_is_nan(dtype: Any) -> None:
    values = np.ones((5, 64 // np.dtype(dtype).itemsize), dtype)
    values[1, 0], values[2, 0] = np.inf, -np.inf
    lanes, rounded = summed(values)
    assert np.isnan([rounded[0], lanes[0]]).all()


@DTYPES
def test_roots_are_as_exact_as_their_dtype(dtype: Any) -> None:
    """Of numbers of all magnitudes for which the kernels ask for them."""
    rng = np.random.default_rng(3)
    reach = 99 if dtype == np.float32 else 890
    for _ in range(200):
        values = np.ldexp(rng.uniform(1, 2, 8), rng.integers(-reach, reach, 8))
        results = np.zeros(64 // np.dtype(dtype).itemsize, dtype)
        roots(values, results, results)
        exact = 1 / np.sqrt(values.astype(np.longdouble))
        ulp = np.spacing(exact.astype(dtype)).astype(np.float64)
        bound = 0.5 if dtype == np.float32 else 1.5  # of a root and a quotient, both rounded
        assert (abs(results[:8] - exact) <= bound * ulp).all()


@DTYPES
def test_halves_in_float64(dtype: Any) -> None:
    width, results = 64 // np.dtype(dtype).itemsize, np.zeros(16)
    values = np.random.default_rng(1).standard_normal(width).astype(dtype)
    widened(values, results)
    np.testing.assert_array_equal(results, np.resize(values, 16))
