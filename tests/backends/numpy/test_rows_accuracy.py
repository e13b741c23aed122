"""Rows of all lengths, magnitudes and distributions are normalised accurately."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from engine_arrays import DTYPES, Forward, bits, parameters
from ln_array_api_backends.numpy import backend
from ln_array_api_conformance import tolerances
from ln_array_api_conformance.checks import expected_y
from ln_array_api_conformance.operations import OPERATIONS


def shifted(n: int, *means: float) -> np.ndarray:
    """A normally distributed row around each mean."""
    return np.random.default_rng(n).standard_normal((len(means), n)) + np.array(means)[:, None]


def expected_of(
    x: np.ndarray,
    center: bool,
    epsilon: float,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what the conformance suite expects, and the scale of the tolerance of y."""
    operation = OPERATIONS["layer_norm" if center else "rms_norm"]
    return expected_y(operation, {"x": x, "gamma": gamma, "beta": beta}, {"epsilon": epsilon})


def accurate(
    x: np.ndarray,
    result: Forward,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    epsilon: float = 1e-5,
) -> None:
    dtype = x.dtype.name
    expected, scale = expected_of(x, result.mean is not None, epsilon, gamma, beta)
    wide = tolerances.ACCUMULATION[dtype]
    info = np.finfo(wide)
    rstd = np.asarray(expected["rstd"], dtype=np.float64)
    # In rows that need no scaling, numbers are not known better than to the smallest there is.
    unscaled = np.minimum(rstd, 2.0**50 if wide == "float32" else 2.0**450)
    known = 2 * float(info.smallest_subnormal) * unscaled / float(info.eps)
    scale = np.maximum(scale, known)
    tolerances.assert_close("y", result.y, expected["y"], tolerances.Y, scale, dtype)
    error = abs(result.rstd - np.minimum(rstd, 1e308))
    assert (
        error <= tolerances.RSTD * float(info.eps) * rstd + 2 * float(info.smallest_subnormal)
    ).all()
    if result.mean is not None:
        largest = np.max(abs(x.astype(np.float64)), axis=1, keepdims=True)
        tolerances.assert_close(
            "mean", result.mean, expected["mean"], tolerances.MEAN, largest, wide
        )


def layer_norm(x: np.ndarray, *arrays: Any, epsilon: float = 1e-5, center: bool = True) -> Forward:
    gamma, beta = arrays or (None, None)
    return Forward(*backend.rows_forward(x, gamma, beta, epsilon=epsilon, center=center))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_length(dtype: str) -> None:
    around = [k * 4096 + d for k in (1, 2, 3) for d in (-65, -16, -1, 0, 1, 15, 17, 63)]
    lengths = [*range(1, 131), *around] if dtype == "float32" else [*range(1, 66), 4096, 4111]
    for n in lengths:
        x = shifted(n, 0, 30, -9).astype(DTYPES[dtype])
        given = parameters(dtype, n)
        for center in (True, False):
            accurate(x, layer_norm(x, *given, center=center), *given)


def test_every_length_in_float64() -> None:
    for n in (*range(1, 40), 63, 64, 65, 127, 129):
        x = shifted(n, 0, 30)
        given = parameters("float64", n)
        accurate(x, layer_norm(x, *given), *given)


PLACES = {
    "the first": (0,),
    "a quarter": (1,),
    "a half": (2,),
    "three quarters": (3,),
    "all": (0, 1, 2, 3),
    "two": (0, 3),
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("size", [1e2, -1e3, 1e4])
def test_outliers_where_the_mean_is_guessed_from(places: tuple[int, ...], size: float) -> None:
    for n in (5, 16, 63, 64, 100, 1000, 4099):
        for width in (1, 3, 16):
            x = shifted(n, 0, 1, -50, 1e3)
            for place in places:
                x[:, place * (n // 4) : place * (n // 4) + width] = size
            single = x.astype(np.float32)
            given = parameters("float32", n)
            accurate(single, layer_norm(single), epsilon=1e-5)
            accurate(single, layer_norm(single, *given), *given)


def test_an_outlier_of_ten_million_sigma() -> None:
    x = shifted(1000, 0, 1, -50, 1e3)
    x[:, 0] = -1e7
    accurate(x.astype(np.float32), layer_norm(x.astype(np.float32)))


def test_without_a_second_sweep_such_rows_would_be_wrong() -> None:
    x = (np.random.default_rng(1).standard_normal((4, 4099))).astype(np.float32)
    for place in range(4):
        x[:, place * (4099 // 4) : place * (4099 // 4) + 16] = 1e4
    accurate(x, layer_norm(x))
    guess = x[:, :1]
    d = x - guess
    missed = d.mean(axis=1, keepdims=True, dtype=np.float32)
    variance = (d * d).mean(axis=1, keepdims=True, dtype=np.float32) - missed * missed
    rstd = 1 / np.sqrt(variance + np.float32(1e-5))
    with pytest.raises(AssertionError, match="further off"):
        accurate(x, Forward((d - missed) * rstd, guess + missed, rstd))


SHAPES = {
    "ramp": lambda n: np.arange(n),
    "falling ramp": lambda n: np.arange(n)[::-1],
    "ramp far away": lambda n: 1e5 + np.arange(n) / n,
    "steps": lambda n: np.arange(n) // max(1, n // 4) * 100.0,
    "one outlier": lambda n: np.where(np.arange(n) == n // 3, 1e8, 0.1),
    "one outlier at the end": lambda n: np.where(np.arange(n) == n - 1, -1e20, 1),
    "mean a million sigma": lambda n: 1e6 + np.random.default_rng(n).standard_normal(n),
    "mean minus a million sigma": lambda n: np.random.default_rng(n).standard_normal(n) - 1e6,
    "alternating": lambda n: np.where(np.arange(n) % 2, 1e3, -1e3) + 1e3,
    "two values": lambda n: np.where(np.arange(n) < n // 2, 1, 1 + 2.0**-23),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_that_mislead_the_guess(shape: Any) -> None:
    for n in (2, 7, 63, 64, 250, 1024, 4097, 70_000):
        x = shape(n).astype(np.float32)[None]
        accurate(x, layer_norm(x, epsilon=1e-12), epsilon=1e-12)
        accurate(x, layer_norm(x, epsilon=1e-12, center=False), epsilon=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_a_constant_row_is_exact(dtype: str) -> None:
    values = np.array([1.1, -3.3, 1e-3, 6e4, 0, 7e-7, 1 / 3]).astype(DTYPES[dtype])
    for n in (1, 3, 64, 100, 777, 4100):
        x = np.repeat(values[:, None], n, axis=1)
        y, mean, rstd = layer_norm(x)
        assert not y.astype(np.float32).any()
        np.testing.assert_array_equal(mean[:, 0], values.astype(mean.dtype))
        np.testing.assert_array_equal(rstd, np.full_like(rstd, 1 / np.sqrt(1e-5)))


MAGNITUDES = [1e-45, 1e-44, 3e-42, 1e-39, 1e-38, 1e-30, 1e-20, 1e-15, 1, 1e15, 1e20, 1e30, 9e37]


@pytest.mark.parametrize(
    "epsilon",
    [
        0.0,
        1e-60,
        1e-40,
        *(1e-37, 1e-12, 1e-5, 1e6, 1e38),
    ],
)
@pytest.mark.parametrize("center", [True, False])
def test_rows_of_any_magnitude_in_one_call(epsilon: float, center: bool) -> None:
    for n in (2, 7, 64, 100, 1500):
        unit = np.random.default_rng(n).uniform(1, 3, (len(MAGNITUDES), n))
        unit[:, ::2] *= -1
        x = (unit * np.array(MAGNITUDES)[:, None]).astype(np.float32)
        result = layer_norm(x, epsilon=epsilon, center=center)
        spread = [row for row in range(len(x)) if len(set(x[row])) > 1]
        assert len(spread) == len(x)
        assert np.isfinite(result.y[spread]).all()
        chosen = Forward(*(None if each is None else each[spread] for each in result))
        with np.errstate(over="ignore"):
            within_reach(x[spread], chosen, epsilon)
        ordinary = MAGNITUDES.index(1)
        alone = layer_norm(x[[ordinary]], epsilon=epsilon, center=center)
        for own, right in zip(alone, result, strict=True):
            if right is not None:
                np.testing.assert_array_equal(bits(own), bits(right[[ordinary]]))


def within_reach(x: np.ndarray, result: Forward, epsilon: float) -> None:
    """Accurate, but for rstd where float32 cannot hold it: that is infinite."""
    exact = expected_of(x, result.mean is not None, epsilon)[0]["rstd"]
    held = exact < 3e38
    assert (result.rstd[exact > 4e38] == np.inf).all()
    rstd = np.where(held, result.rstd, exact.astype(np.float64))
    accurate(x, Forward(result.y, result.mean, rstd), epsilon=epsilon)


def test_float64_rows_of_any_magnitude_in_one_call() -> None:
    magnitudes = [5e-324, 1e-310, 1e-300, 1e-200, 1e-150, 1, 1e150, 1e200, 1e307]
    x = np.random.default_rng(5).uniform(1, 3, (len(magnitudes), 30))
    x[:, ::2] *= -1
    x *= np.array(magnitudes)[:, None]
    for center in (True, False):
        for epsilon in (0.0, 1e-300, 1e-5):
            result = layer_norm(x, epsilon=epsilon, center=center)
            rows = slice(2, None) if epsilon == 0 else slice(None)
            accurate(
                x[rows],
                Forward(*(None if each is None else each[rows] for each in result)),
                epsilon=epsilon,
            )
            assert np.isfinite(result.y).all()


def test_bfloat16_rows_of_any_magnitude() -> None:
    magnitudes = [1e-40, 1e-38, 1e-30, 1, 1e30, 1e38]
    x = np.random.default_rng(6).uniform(1, 3, (len(magnitudes), 50))
    x[:, ::2] *= -1
    x = (x * np.array(magnitudes)[:, None]).astype(ml_dtypes.bfloat16)
    accurate(x, layer_norm(x, epsilon=0.0)._replace(rstd=exact_rstd(x)), epsilon=0.0)


def exact_rstd(x: np.ndarray) -> np.ndarray:
    return np.asarray(expected_of(x, True, 0.0)[0]["rstd"])


def test_huge_and_tiny_elements_in_one_row() -> None:
    x = np.random.default_rng(7).standard_normal((6, 200)).astype(np.float32)
    x[0, 3], x[1, 199] = 3e38, -3e38
    x[2, :100] *= np.float32(1e-38)
    x[3] = np.where(np.arange(200) % 2, 3e38, -3e38)
    x[4], x[4, 0] = 0, 1e-44
    x[5] = 3.4e38
    x[5, 7] = 3.3e38
    for epsilon in (1e-5, 1e-30):
        accurate(x[:4], layer_norm(x[:4], epsilon=epsilon), epsilon=epsilon)
        result = layer_norm(x, epsilon=epsilon)
        accurate(x[5:], Forward(*(each[5:] for each in result)), epsilon=epsilon)
        assert np.isfinite(result.y).all()


def test_a_row_with_no_spread_and_epsilon_of_0_is_nan_and_spoils_no_other() -> None:
    x = np.random.default_rng(8).standard_normal((5, 33)).astype(np.float32)
    x[1], x[3] = 0, 1e-40
    x[4, 5] = np.inf
    y, _, _ = layer_norm(x, epsilon=0.0)
    assert np.isnan(y[[1, 3, 4]]).all()
    accurate(x[[0]], layer_norm(x[[0]], epsilon=0.0), epsilon=0.0)
    np.testing.assert_array_equal(bits(y[[0, 2]]), bits(layer_norm(x[[0, 2]], epsilon=0.0).y))


@pytest.mark.parametrize("epsilon", [1e-5, 1e-60, 5e-324])
def test_a_tiny_epsilon_keeps_0_over_0_away(epsilon: float) -> None:
    x = np.zeros((3, 40), np.float32)
    x[1], x[2] = 1e-42, 2.5
    y, mean, _ = layer_norm(x, epsilon=epsilon)
    assert not y.any()
    np.testing.assert_array_equal(mean[:, 0], x[:, 0])
