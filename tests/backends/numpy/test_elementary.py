"""Logarithms, powers of 2 and tanh of numbers of all magnitudes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from engine_arrays import DTYPES, EXACT, FORMATS, slope_of_tanh, unit
from ln_array_api_backends.numpy import elementary, simd
from ln_array_api_backends.numpy import vector_memory as vm
from numba import njit

import ln_array_api as ln

WIDE = {name: np.float64 if name == "float64" else np.float32 for name in DTYPES}
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def off_by(actual: np.ndarray, exact: np.ndarray) -> Any:
    """The largest error in units of the last place."""
    return np.max(np.abs(actual.astype(EXACT) - exact) / unit(exact, actual.dtype.name))


def magnitudes(dtype: str, most: float) -> np.ndarray:
    """Numbers of a dtype up to a bound: all of 16 bits, else from every binade, 0 included."""
    bits = np.dtype(DTYPES[dtype]).itemsize * 8
    if bits == 16:
        every = np.arange(1 << 15, dtype=np.uint16).view(DTYPES[dtype])
        return every[every.astype(np.float32) <= most]
    end = int(np.asarray(most, DTYPES[dtype]).view(f"u{bits // 8}"))
    of_bits = np.linspace(0, end, 300_001).astype(f"u{bits // 8}").view(DTYPES[dtype])
    near = np.geomspace(1e-4, most, 300_000).astype(DTYPES[dtype])
    return np.concatenate([of_bits, near, np.linspace(0, 20, 300_000).astype(DTYPES[dtype])])


@every_dtype
def test_tanh_of_all_magnitudes(dtype: str) -> None:
    values = magnitudes(dtype, 1e3)
    one = np.asarray(1, DTYPES[dtype])
    bounds = {"float32": 2.0, "float64": 2.2}
    for x in (values, -values):
        y = ln.dynamic_tanh(x, one)
        assert off_by(y, np.tanh(x.astype(EXACT))) < bounds.get(dtype, 0.502)
        np.testing.assert_array_equal(np.signbit(y), np.signbit(x))
        assert np.all(np.abs(y.astype(np.float64)) <= 1)


@every_dtype
def test_slopes_of_all_magnitudes(dtype: str) -> None:
    """Down to where they are subnormal, and then 0."""
    values = magnitudes(dtype, 400)
    one = np.asarray(1, DTYPES[dtype])
    for x in (values, -values):
        dx = ln.dynamic_tanh_backward(np.ones_like(x), x, one, need=("dx",)).dx
        exact = slope_of_tanh(x.astype(EXACT))
        assert off_by(dx, exact) < (4.1 if dtype in ("float32", "float64") else 0.502)
        assert np.all(dx.astype(np.float64) >= 0)
    least = np.min(dx.astype(np.float64), where=dx.astype(np.float64) > 0, initial=1)
    bits, normal = FORMATS[dtype]
    assert least < np.ldexp(1.0, normal - bits + 4)  # far below the least normal number


@njit
def functions_of(values: Any, logs: Any, exponents: Any, powers: Any) -> None:
    one = simd.ones(values)
    for i in range(0, values.size, simd.lanes(one)):
        each = vm.load(vm.data_pointer(values), i, one)
        vm.store(vm.data_pointer(logs), i, elementary.log2(each))
        each = vm.load(vm.data_pointer(exponents), i, one)
        vm.store(vm.data_pointer(powers), i, elementary.exp2(each))


def test_logarithms_and_powers_of_2() -> None:
    rng, count = np.random.default_rng(0), 1 << 16
    values = np.exp2(rng.uniform(-1, 1, count))
    values[::2] = np.exp2(rng.uniform(-1022, 1023, count // 2))
    values[:16] = np.nextafter(2.0 ** np.arange(-8, 8), np.inf)
    values[16:32] = np.nextafter(0.5**0.5, (0.0, 1.0))[rng.integers(0, 2, 16)]
    exponents = rng.uniform(-1022, 1023, count)
    exponents[::2] /= 1023
    exponents[:8] = (-1022.0, 1023.0, 0.5, -0.5, 1.5, -1.5, 0.0, -0.0)
    logs, powers = np.empty(count), np.empty(count)
    functions_of(values, logs, exponents, powers)
    expected = np.log2(values.astype(np.longdouble))
    assert (np.abs(logs - expected) <= 3e-13 + 2.0**-52 * np.abs(expected)).all()
    expected = np.exp2(exponents.astype(np.longdouble))
    assert (np.abs(powers / expected - 1) <= 2e-12).all()


def test_the_ends_of_logarithms_and_powers_of_2() -> None:
    values = np.asarray([0.0, math.inf, math.nan, 1.0, 2.0, 0.5, 2.0**-1022, 2.0**1023])
    exponents = np.asarray([-1e300, 1e300, -math.inf, math.inf, math.nan, 0.0, 1.0, -1.0])
    logs, powers = np.empty(8), np.empty(8)
    functions_of(values, logs, exponents, powers)
    assert np.isfinite(logs[0])
    np.testing.assert_array_equal(logs[1:], [math.nan, math.nan, 0, 1, -1, -1022, 1023])
    ends = [2.0**-1022, 2.0**1023]
    np.testing.assert_allclose(powers, [*ends, *ends, math.nan, 1, 2, 0.5], rtol=2e-12)
