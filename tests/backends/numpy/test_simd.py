"""Vectors in Numba: conversions of all bit patterns, the ends of memory, the order of sums."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from ln_array_api_backends.numpy import simd
from ln_array_api_backends.numpy import vector_memory as vm
from numba import njit


@njit
def combine(a: Any, b: Any, c: Any, results: Any) -> None:
    width = a.size
    one = simd.ones(a)
    x, y, z = (
        vm.load(vm.data_pointer(a), 0, one),
        vm.load(vm.data_pointer(b), 0, one),
        vm.load(vm.data_pointer(c), 0, one),
    )
    to = vm.data_pointer(results)
    vm.store(to, 0, simd.fma(x, y, z))
    vm.store(to, width, x * y + z)
    vm.store(to, 2 * width, (x + y) - x)
    vm.store(to, 3 * width, simd.fmax(x, y))
    vm.store(to, 4 * width, simd.absolute(x))
    vm.store(to, 5 * width, simd.zero_tail(x, 3))
    vm.store(to, 6 * width, vm.load_broadcast(vm.data_pointer(a), 2, one))
    vm.store(to, 7 * width, simd.broadcast(simd.reduce_max(x)))
    vm.store(to, 8 * width, simd.negative(x))


@njit
def fold(a: Any) -> tuple[Any, Any]:
    vector = vm.load(vm.data_pointer(a), 0, simd.ones(a))
    return simd.reduce_add(vector), simd.reduce_max(vector)


@njit
def fold_four(rows: Any, results: Any) -> None:
    one, values, width = simd.ones(rows), vm.data_pointer(rows), rows.shape[1]
    a, b = vm.load(values, 0, one), vm.load(values, width, one)
    c, d = vm.load(values, 2 * width, one), vm.load(values, 3 * width, one)
    vm.store(vm.data_pointer(results), 0, simd.reduce_add4(a, b, c, d))


@njit
def fold_all(rows: Any, results: Any) -> None:
    one = simd.ones(rows)
    vm.store(
        vm.data_pointer(results),
        0,
        simd.reduce_add_rows(vm.data_pointer(rows), 0, one),
    )


@njit
def at_most(a: Any, b: Any, count: int) -> bool:
    one = simd.ones(a)
    first, second = (
        vm.load(vm.data_pointer(a), 0, one),
        vm.load(vm.data_pointer(b), 0, one),
    )
    return simd.all_at_most(first, second, count)


def halves(values: np.ndarray, combine: Callable[..., Any]) -> Any:
    while values.size > 1:
        values = combine(values[: values.size // 2], values[values.size // 2 :])
    return values[0]


@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 16), ("float64", 8)])
def test_lanes_are_added_in_halves(dtype: str, lanes: int) -> None:
    from_left = pairs = 0
    for seed in range(200):
        a = np.random.default_rng(seed).standard_normal(lanes).astype(dtype)
        total, peak = fold(a)
        assert total == halves(a, np.add)
        assert peak == a.max()
        from_left += total != np.cumsum(a)[-1]
        pairs += total != halves(a.reshape(2, -1).T.ravel(), np.add)
    assert min(from_left, pairs) > 20


@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 16), ("float64", 8)])
def test_four_vectors_are_folded_together_as_each_alone(dtype: str, lanes: int) -> None:
    results = np.empty(lanes, dtype)
    for seed in range(50):
        rows = np.random.default_rng(seed).standard_normal((4, lanes)).astype(dtype)
        fold_four(rows, results)
        alone = np.asarray([fold(row)[0] for row in rows])
        np.testing.assert_array_equal(results, np.repeat(alone, lanes // 4))


@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 16), ("float64", 8)])
def test_as_many_vectors_as_lanes_are_folded_together_as_each_alone(dtype: str, lanes: int) -> None:
    results = np.empty(lanes, dtype)
    for seed in range(50):
        rows = np.random.default_rng(seed).standard_normal((lanes, lanes)).astype(dtype)
        fold_all(rows, results)
        np.testing.assert_array_equal(results, [fold(row)[0] for row in rows])


def test_arithmetic_is_as_it_is_written() -> None:
    rng = np.random.default_rng(2)
    fused = 0
    for _ in range(50):
        a, b, c = rng.standard_normal((3, 16)).astype(np.float32)
        c = -a * b + c * np.float32(1e-6)
        a[5] = 0
        results = np.empty((9, 16), np.float32)
        combine(a, b, c, results.ravel())
        for each in range(16):
            exact = Fraction(float(a[each])) * Fraction(float(b[each])) + Fraction(float(c[each]))
            assert results[0, each] == np.float32(float(exact))
        np.testing.assert_array_equal(results[1], a * b + c)
        np.testing.assert_array_equal(results[2], (a + b) - a)
        np.testing.assert_array_equal(results[3], np.fmax(a, b))
        np.testing.assert_array_equal(results[4], abs(a))
        np.testing.assert_array_equal(results[5], np.where(np.arange(16) < 3, a, 0))
        assert (results[6] == a[2]).all()
        assert (results[7] == a.max()).all()
        np.testing.assert_array_equal(results[8].view("u4"), (-a).view("u4"))
        fused += (results[0] != results[1]).sum() + (results[2] != b).sum()
    assert fused > 400


def test_the_larger_is_a_number_beside_a_nan() -> None:
    a, b = np.ones((2, 16), np.float32)
    a[3], b[5], a[7], b[7] = np.nan, np.nan, np.nan, np.nan
    results = np.empty((9, 16), np.float32)
    combine(a, b, a, results.ravel())
    np.testing.assert_array_equal(results[3], np.fmax(a, b))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whether_all_lanes_are_at_most_others(dtype: str) -> None:
    lanes = 64 // np.dtype(dtype).itemsize
    for count in (1, 3, lanes):
        for lane in range(lanes):
            a, b = np.arange(lanes, dtype=dtype), np.arange(lanes, dtype=dtype)
            assert at_most(a, b, count)
            for array, value in ((a, lane + 0.5), (a, np.nan), (b, lane - 0.5), (b, np.nan)):
                array[lane] = value
                assert at_most(a, b, count) == (lane >= count)
                array[lane] = lane
