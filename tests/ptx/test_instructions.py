"""What each instruction computes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from instructions import DTYPES, OPERATIONS


def compute(form: str, *values: Any) -> np.ndarray[Any, Any]:
    operation = OPERATIONS[form]
    return operation.compute(*map(np.atleast_1d, values))


def doubles(count: int, spread: int, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return np.ldexp(rng.standard_normal(count), rng.integers(-spread, spread, count))


@pytest.mark.parametrize("spread", [2, 60, 500, 1020])
def test_fma_of_doubles_is_rounded_once(spread: int) -> None:
    a, b, c = (doubles(3000, spread, seed) for seed in range(3))
    with np.errstate(over="ignore"):
        c[:1000] = -(a * b)[:1000]  # leaves the rounding error of the product
    c[1000:1200] = 0
    kept = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    a, b, c = a[kept], b[kept], c[kept]
    with np.errstate(all="ignore"):
        actual = compute("fma.rn.f64", a, b, c)
    for each in zip(a, b, c, actual, strict=True):
        x, y, z, found = map(float, each)
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        try:
            right = float(exact)
        except OverflowError:
            right = float("inf") if exact > 0 else float("-inf")
        assert found == right


def test_fma_of_singles_is_rounded_once() -> None:
    a, b, c = (doubles(100_000, 40, seed).astype("f4") for seed in range(3))
    # The product is halfway between two float32, except for a term below 2**-53.
    a[0], b[0], c[0] = 1 + 2**-12, 1 + 2**-12, 2**-60
    actual = compute("fma.rn.f32", a, b, c)
    twice = (a.astype("f8") * b + c).astype("f4")
    assert actual[0] != twice[0]
    wide = a.astype("g") * b.astype("g")  # 64 bits hold the product
    exact = np.abs(wide + c - actual)
    for neighbour in (np.inf, -np.inf):
        assert np.all(exact <= np.abs(wide + c - np.nextafter(actual, np.float32(neighbour))))


def test_fma_of_non_finite_values() -> None:
    inf, nan = np.inf, np.nan
    a, b, c = np.array([inf, inf, 1, nan, 0, 2]), np.array([1, 0, 1, 1, 5, inf]), np.ones(6)
    c[2] = -inf
    with np.errstate(all="ignore"):
        for form, dtype in (("fma.rn.f32", "f4"), ("fma.rn.f64", "f8")):
            actual = compute(form, *(each.astype(dtype) for each in (a, b, c)))
            np.testing.assert_array_equal(actual, [inf, nan, -inf, nan, 1, inf])


def test_conversions() -> None:
    every = np.arange(1 << 16, dtype="u2")
    singles = compute("cvt.f32.bf16", every)
    np.testing.assert_array_equal(singles, every.view(ml_dtypes.bfloat16).astype("f4"))
    with np.errstate(all="ignore"):
        values = doubles(100_000, 140, 7).astype("f4")
        values = np.append(values, np.float32([np.inf, -np.inf, np.nan]))
        halfway = values.astype("f2").astype("f4") * np.float32(1 + 2**-11)
        values = np.append(values, halfway)
        halves = compute("cvt.rn.f16.f32", values)
        np.testing.assert_array_equal(halves, values.astype("f8").astype("f2"))
    bfloats = compute("cvt.rn.bf16.f32", values).view(ml_dtypes.bfloat16).astype("f4")
    np.testing.assert_array_equal(bfloats, values.astype(ml_dtypes.bfloat16).astype("f4"))


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_conversions_of_pairs(half: str) -> None:
    low, high = doubles(1000, 8, 3).astype("f4"), doubles(1000, 8, 4).astype("f4")
    pairs = compute(f"cvt.rn.{half}x2.f32", high, low)
    for shift, values in ((0, low), (16, high)):
        one = compute(f"cvt.rn.{half}.f32", values).view("u2")
        np.testing.assert_array_equal(pairs >> np.uint32(shift) & np.uint32(0xFFFF), one)


def test_approximate_rsqrt_errs_within_its_tolerance() -> None:
    a = np.abs(doubles(10_000, 30, 1))
    for form, values, most in (
        ("rsqrt.approx.ftz.f32", a.astype("f4"), 2**-22.9),
        ("rsqrt.approx.f64", a, 2**-52),
    ):
        exact = 1 / np.sqrt(values.astype("g"))
        error = np.abs(compute(form, values) - exact) / exact
        assert error.max() < most
        assert np.any(compute(form, values) != exact.astype(values.dtype))
    with np.errstate(all="ignore"):
        assert compute("rsqrt.approx.ftz.f32", np.float32(1e-40)) == np.inf


@pytest.mark.parametrize(
    ("form", "operands", "result"),
    [
        ("div.s32", (-7, 2), -3),
        ("div.s32", (7, -2), -3),
        ("rem.s32", (-7, 2), -1),
        ("div.u32", (0xFFFFFFF9, 2), 0x7FFFFFFC),
        ("add.s32", (0x7FFFFFFF, 1), -0x80000000),
        ("mul.wide.s32", (-3, 1 << 30), -3 << 30),
        ("mul.wide.u32", (0xFFFFFFFF, 2), 0x1FFFFFFFE),
        ("mul.lo.s64", (-3, 5), -15),
        ("mad.lo.s32", (-3, 5, 7), -8),
        ("shl.b32", (1, 32), 0),
        ("shr.s32", (-8, 40), -1),
        ("shr.u32", (0x80000000, 31), 1),
        ("clz.b32", (1,), 31),
        ("clz.b32", (0,), 32),
        ("clz.b64", (1 << 40,), 23),
        ("bfi.b32", (0xF, 0xFFFF0000, 8, 8), 0xFFFF0F00),
        ("bfi.b64", (3, 5, 32, 32), (3 << 32) | 5),
        ("cvt.s64.s32", (-1,), -1),
        ("cvt.u64.u32", (0xFFFFFFFF,), 0xFFFFFFFF),
        ("cvt.u32.u64", (0x100000005,), 5),
        ("cvt.u16.u32", (0x10005,), 5),
        ("cvt.rn.f32.s16", (-103,), -103),
        ("setp.eq.s16", (-1, 1), False),
        ("cvt.rzi.s32.f32", (-2.75,), -2),
        ("cvt.rzi.s32.f64", (1e300,), 0x7FFFFFFF),
        ("cvt.rzi.s32.f32", (np.nan,), 0),
        ("rcp.rn.f32", (3,), np.float32(1) / np.float32(3)),
        ("div.rn.f64", (1, 3), 1 / 3),
        ("setp.lt.s32", (-1, 0), True),
        ("setp.lt.u32", (0xFFFFFFFF, 0), False),
        ("setp.ne.f32", (np.nan, 1), False),
        ("setp.gtu.f32", (np.nan, 1), True),
        ("setp.leu.f64", (2, 1), False),
        ("setp.num.f32", (1, np.inf), True),
        ("setp.num.f64", (1, np.nan), False),
        ("setp.nan.f32", (np.nan, 1), True),
        ("setp.nan.f64", (2, 1), False),
        ("max.f32", (np.nan, 1), 1),
        ("neg.f32", (1,), -1),
        ("selp.f32", (1, 2, False), 2),
    ],
)
def test_operations(form: str, operands: tuple[Any, ...], result: Any) -> None:
    operation = OPERATIONS[form]
    given = [np.array([v], DTYPES[t]) for v, t in zip(operands, operation.sources, strict=True)]
    actual = operation.compute(*given)
    assert actual.dtype == DTYPES[operation.result]
    assert actual[0] == result
