"""Kernels on instances: the right numbers wherever x is, and the same bits however a row is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_arrays import DTYPES, NEVER, SETTINGS, set_thresholds
from ln_array_api_backends.numpy import backend, instances_dispatch

import ln_array_api as ln
from ln_array_api.backend import FamilySpec

HALF_STEP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
#: Rows of few elements, with rests of vectors and of runs, and long.
SHAPES = [(6, 1), (5, 2), (3, 17), (7, 100), (4, 1000), (2, 40009)]
#: Of float32 and float64: the mean beside sigma, and a power of two that all is multiplied by.
PLACES = [(0, 0), (1e6, 0), (-1e4, 0), (3, 90), (3, -110), (1e3, 60)]

Long = np.longdouble


def accumulated(dtype: str) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == "float64" else np.float32)


def run(primitive: Any, dtype: str, *arrays: np.ndarray, **details: Any) -> Any:
    """A primitive on arrays, of which the first, or the second after dy, is x."""
    is_backward = primitive in ("instances_sums", "instances_gradient")
    dy = {"dy": arrays[0].dtype.name} if is_backward else {}
    shape = arrays[1 if is_backward else 0].shape
    spec = FamilySpec("numpy", "cpu", shape, dtype, **dy, **details)
    found = backend.prepare_family(primitive, spec)
    assert found is not None
    return found[0](*arrays)


class Case:
    """X and dy, with numbers of instances, and all that comes of them in more digits."""

    def __init__(
        self, shape: tuple[int, int], dtype: str, mean: float = 3.0, power: int = 0
    ) -> None:
        rng = np.random.default_rng([*shape, abs(int(mean)), abs(power)])
        self.dtype, single = dtype, accumulated(dtype)
        self.x = np.ldexp(mean + rng.standard_normal(shape), power).astype(DTYPES[dtype])
        self.dy = rng.standard_normal(shape).astype(DTYPES[dtype])
        x, dy = self.x.astype(Long), self.dy.astype(Long)
        self.mean = x.mean(1, keepdims=True).astype(single)
        self.exact_missed = (x - self.mean).mean(1, keepdims=True)
        self.missed = self.exact_missed.astype(single)
        deviation = (x - self.mean) - self.exact_missed
        self.epsilon = float(np.ldexp(1e-5, 2 * power))
        var = (deviation**2).mean(1, keepdims=True)
        self.rstd = (1 / np.sqrt(var + Long(self.epsilon))).astype(single)
        numbers = rng.standard_normal((3, shape[0], 1)).astype(single)
        self.weight, self.scale, self.shift = numbers
        self.exact_statistics = (
            self.mean + self.exact_missed,
            var,
            1 / np.sqrt(var + Long(self.epsilon)),
        )
        rstd = self.rstd.astype(Long)
        self.x_hat = ((x - self.mean) - self.missed.astype(Long)) * rstd
        self.exact_y = self.x_hat * self.scale + self.shift
        self.exact_sums = dy.sum(1, keepdims=True), (dy * deviation * rstd).sum(1, keepdims=1)
        self.exact_dx = rstd * (dy * self.weight + self.x_hat * self.scale + self.shift)

    def results(self) -> list[np.ndarray]:
        statistics = run("instances_statistics", self.dtype, self.x, epsilon=self.epsilon)
        given = self.mean, self.missed, self.rstd
        y = run("instances_affine", self.dtype, self.x, *given, self.scale, self.shift)
        sums = run("instances_sums", self.dtype, self.dy, self.x, self.mean, self.rstd)
        numbers = self.weight, self.scale, self.shift
        dx = run("instances_gradient", self.dtype, self.dy, self.x, *given, *numbers)
        return [*statistics, y, *sums, dx]


def check(what: str, dtype: str, actual: np.ndarray, exact: Any, scale: Any, ulps: float) -> None:
    """Within so many ulp of a scale, and half a step of 16 bits."""
    eps = float(np.finfo(accumulated(dtype)).eps)
    is_result = actual.dtype == DTYPES[dtype] and dtype in HALF_STEP
    allowed = ulps * eps * scale + (1.01 * HALF_STEP[dtype] * abs(exact) if is_result else 0)
    error = abs(actual.astype(Long) - exact)
    assert (error <= allowed).all(), (what, float((error / (eps * scale)).max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_right(shape: tuple[int, int], dtype: str) -> None:
    places = PLACES if dtype in ("float32", "float64") else [(0, 0), (30, 0)]
    for mean, power in places:
        case = Case(shape, dtype, mean, power)
        found_mean, missed, var, rstd, y, again, sum_dy, product, dx = case.results()
        largest = abs(case.x.astype(Long)).max(1, keepdims=True)
        sigma = 1 / case.exact_statistics[2]
        # The mean and what its rounding took are right to an ulp of sigma, where the mean is not.
        both = (found_mean.astype(Long) - case.mean) + missed.astype(Long)
        check("mean", dtype, found_mean, case.exact_statistics[0], largest, 1)
        check("missed", dtype, both, case.exact_missed, sigma, 2)
        exact_var = case.exact_statistics[1]
        if abs(power) > 60 and dtype == "float32":  # its squares are out of range
            with np.errstate(over="ignore", under="ignore"):
                np.testing.assert_array_equal(var, exact_var.astype(np.float32))
        else:
            check("var", dtype, var, exact_var, exact_var, 4)
        check("rstd", dtype, rstd, case.exact_statistics[2], case.exact_statistics[2], 2)
        top = abs(case.x_hat * case.scale).max(1, keepdims=True) + abs(case.shift)
        check("y", dtype, y, case.exact_y, top, 4)
        check("missed again", dtype, again, case.exact_missed, sigma, 2)
        terms = abs(case.dy.astype(Long)).sum(1, keepdims=True)
        check("sum of dy", dtype, sum_dy, case.exact_sums[0], terms, 1)
        terms = abs(case.dy * case.x_hat).sum(1, keepdims=True) + terms
        check("sum of dy * x̂", dtype, product, case.exact_sums[1], terms, 1)
        top = abs(case.dy.astype(Long)).max(1, keepdims=True) * abs(case.weight)
        top = top + abs(case.x_hat).max(1, keepdims=True) * abs(case.scale) + abs(case.shift)
        check("dx", dtype, dx, case.exact_dx, top * case.rstd, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_threshold_changes_a_bit(
    shape: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several threads, however many parts, streaming stores, prefetching and pooled memory."""
    case = Case(shape, dtype)
    expected = [each.tobytes() for each in case.results()]
    for settings in SETTINGS:
        set_thresholds(monkeypatch, **settings)
        non_temporal = settings.get("non_temporal", NEVER)
        monkeypatch.setattr(instances_dispatch, "PREFETCH_MIN_BYTES", non_temporal)
        assert [each.tobytes() for each in case.results()] == expected


def test_a_row_does_not_depend_on_others() -> None:
    x = Case((9, 100), "float32").x
    x[4, 3], x[6] = np.nan, 1e38
    whole = run("instances_statistics", "float32", x, epsilon=1e-5)
    for row in range(9):
        alone = run("instances_statistics", "float32", x[row : row + 1].copy(), epsilon=1e-5)
        for each, one in zip(whole, alone, strict=True):
            assert each[row].tobytes() == one.tobytes()
    assert [np.isnan(each[:, 0]).tolist() for each in whole[:1]] == [[row == 4 for row in range(9)]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_the_largest_numbers(dtype: str) -> None:
    """Elements whose difference from the mean is no number are normalised all the same."""
    largest = np.finfo(dtype).max
    x = np.full((2, 40), largest, dtype)
    x[:, ::2] *= -1
    x[1, 5:] = largest
    mean, missed, _, rstd = run("instances_statistics", dtype, x, epsilon=1e-5)
    ones = np.ones_like(mean)
    y = run("instances_affine", dtype, x, mean, missed, rstd, ones, 0 * ones)
    scaled = x.astype(Long) / Long(largest)
    deviation = scaled - scaled.mean(1, keepdims=True)
    exact = deviation / np.sqrt((deviation**2).mean(1, keepdims=True))
    np.testing.assert_allclose(y, exact.astype(dtype), rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("value", [1 / 3, 1e30, 1e-30, 0.0])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-60, 0.0])
def test_constant_rows(value: float, epsilon: float) -> None:
    """The mean is exact, and rstd is what epsilon makes it, as far as float32 holds it."""
    x = np.full((2, 100), value, np.float32)
    mean, missed, var, rstd = run("instances_statistics", "float32", x, epsilon=epsilon)
    assert (mean == x[:, :1]).all()
    assert not missed.any()
    assert not var.any()
    largest = float(np.finfo(np.float32).max)
    expected = min(epsilon**-0.5, largest) if epsilon else np.inf
    np.testing.assert_allclose(rstd, np.full((2, 1), expected, np.float32), rtol=1e-7)


@pytest.mark.parametrize("n", [1, 5])
def test_what_runs_the_operations(n: int) -> None:
    """The kernels, of elements in any place."""
    x, rho, weights = (
        np.random.default_rng(0).standard_normal((2, n, 3)),
        np.ones(3) / 4,
        np.ones(3),
    )
    for function, parameters, primitive in (
        (ln.batch_instance_norm, (rho,), "instances_statistics"),
        (ln.switchable_norm, (weights, 0 * weights), "instances_statistics"),
    ):
        explanation = ln.explain(function, x, *parameters, channel_axis=-1)
        assert (explanation.backend, explanation.primitive) == ("numpy", primitive)
        assert explanation.shape == (6, n)
        y = function(x, *parameters, channel_axis=-1)
        with ln.use_backend("generic"):
            expected = function(x, *parameters, channel_axis=-1)
        np.testing.assert_allclose(y, expected, rtol=1e-12)
