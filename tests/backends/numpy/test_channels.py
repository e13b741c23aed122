"""Batch norm's kernels: the same bits however a channel is run, and the right ones."""

from __future__ import annotations

import numpy as np
import pytest
from engine_arrays import DTYPES, SETTINGS, moved, same, set_thresholds
from ln_array_api_backends.numpy import backend, channels_dispatch

import ln_array_api as ln
from ln_array_api.backend import ChannelsSpec

#: (B, C, S) as pieces and as columns, with rests of vectors, blocks and runs of rows.
SHAPES = [
    (1, 3, 64),
    (5, 4, 100),
    (3, 2, 4099),
    (2, 1, 70),
    (70, 5, 1),
    (2500, 16, 1),
    (3, 33, 1),
    (130, 7, 9),
    (9, 20, 48),
]


class Arrays:
    """The arrays of a call, and all its results, as bytes."""

    def __init__(self, shape: tuple[int, int, int], dtype: str, *, mean: float = 3.0) -> None:
        rng = np.random.default_rng([*shape, int(mean)])
        self.shape, self.dtype = shape, DTYPES[dtype]
        spread = 1 + rng.random((1, shape[1], 1))
        self.x = (mean + spread * rng.standard_normal(shape)).astype(self.dtype)
        self.dy = rng.standard_normal(shape).astype(self.dtype)
        self.gamma = (1 + 0.3 * rng.standard_normal(shape[1])).astype(self.dtype)
        self.beta = rng.standard_normal(shape[1]).astype(self.dtype)
        single = np.float64 if dtype == "float64" else np.float32
        self.given_mean = rng.standard_normal(shape[1]).astype(single)
        self.given_var = (0.1 + rng.random(shape[1])).astype(single)

    def results(self, need: tuple[bool, bool, bool] = (True, True, True)) -> list[np.ndarray]:
        x, gamma, beta = self.x, self.gamma, self.beta
        y, mean, var, rstd = backend.channels_forward(x, gamma, beta, epsilon=1e-5)
        given = (x, self.given_mean, self.given_var, gamma, beta)
        inferred = backend.channels_inference(*given, epsilon=1e-5)
        gradients = backend.channels_backward(self.dy, x, mean, rstd, gamma, need=need)
        return [y, mean, var, rstd, inferred, *gradients]


def exact(arrays: Arrays) -> list[np.ndarray]:
    """What `Arrays.results` should be, in float64."""
    x, dy = arrays.x.astype(np.float64), arrays.dy.astype(np.float64)
    gamma, beta = (p.astype(np.float64)[:, None] for p in (arrays.gamma, arrays.beta))
    mean, var = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    rstd = 1 / np.sqrt(var + 1e-5)
    x_hat = (x - mean) * rstd
    given = arrays.given_mean.astype(np.float64)[:, None], arrays.given_var[:, None] + 1e-5
    inferred = (x - given[0]) / np.sqrt(given[1]) * gamma + beta
    dgamma, dbeta = (dy * x_hat).sum((0, 2), keepdims=True), dy.sum((0, 2), keepdims=True)
    n = x.shape[0] * x.shape[2]
    dx = gamma * rstd * (dy - dbeta / n - x_hat * dgamma / n)
    statistics = [each.reshape(-1) for each in (mean, var, rstd)]
    return [x_hat * gamma + beta, *statistics, inferred, dx, dgamma.ravel(), dbeta.ravel()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_right(shape: tuple[int, int, int], dtype: str) -> None:
    """As float64 has it, but for what the dtype rounds off."""
    arrays = Arrays(shape, dtype)
    n = shape[0] * shape[2]
    single = float(np.finfo(arrays.given_mean.dtype).eps)
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0.0)
    for name, actual, expected in zip(
        ("y", "mean", "var", "rstd", "inferred", "dx", "dgamma", "dbeta"),
        arrays.results(),
        exact(arrays),
        strict=True,
    ):
        size = np.maximum(abs(expected), np.max(abs(expected)) if expected.ndim == 3 else 1)
        if name in ("dgamma", "dbeta"):
            size = 2.0 * n
        error = abs(actual.astype(np.float64) - expected)
        rounding = half * abs(expected) if expected.ndim == 3 else 0
        assert (error <= 16 * single * size + 1.01 * rounding).all(), (name, (error / size).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_threshold_changes_a_bit(
    shape: tuple[int, int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several threads, however many parts, streaming stores and pooled memory."""
    arrays = Arrays(shape, dtype)
    expected = arrays.results()
    for settings in SETTINGS:
        set_thresholds(monkeypatch, **settings)
        same(arrays.results(), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_alignment_changes_no_bit(shape: tuple[int, int, int]) -> None:
    arrays = Arrays(shape, "float32")
    expected = arrays.results()
    for offset in (4, 36):
        for name in ("x", "dy"):
            setattr(arrays, name, moved(getattr(arrays, name), offset))
        same(arrays.results(), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_need(shape: tuple[int, int, int]) -> None:
    """Each gradient has the bits that it has among all."""
    arrays = Arrays(shape, "float32")
    every = arrays.results()[5:]
    for need in ((True, False, False), (False, True, False), (False, False, True)):
        some = arrays.results(need)[5:]
        same(some, [each if wanted else None for each, wanted in zip(every, need, strict=True)])


@pytest.mark.parametrize("shape", [(6, 5, 80), (300, 5, 1), (300, 5, 3)], ids=str)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_channel_spoils_no_other(shape: tuple[int, int, int], poison: float) -> None:
    arrays = Arrays(shape, "float32")
    clean = arrays.results()
    arrays.x[shape[0] // 2, 2, 0] = poison
    spoiled = arrays.results()
    others = [0, 1, 3, 4]
    for before, after in zip(clean, spoiled, strict=True):
        axis = 1 if before.ndim == 3 else 0
        same([after.take(others, axis)], [before.take(others, axis)])
    assert np.isnan(spoiled[0][:, 2]).all()
    assert np.isnan(spoiled[5][:, 2]).all()


@pytest.mark.parametrize("shape", [(6, 4, 80), (300, 4, 1), (300, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_channels_of_any_magnitude_in_one_call(shape: tuple[int, int, int], dtype: str) -> None:
    """Squares that overflow or vanish are of scaled numbers; no channel minds another."""
    far = 700 if dtype == "float64" else 100
    factors = np.asarray([2.0**-far, 1.0, 2.0**far, 2.0**-40])[:, None]
    arrays = Arrays(shape, dtype)
    plain = backend.channels_forward(arrays.x, None, None, epsilon=0.0)
    arrays.x = (arrays.x.astype(np.float64) * factors).astype(DTYPES[dtype])
    y, mean, var, rstd = backend.channels_forward(arrays.x, None, None, epsilon=0.0)
    np.testing.assert_allclose(y.astype(np.float64), plain[0].astype(np.float64), atol=2e-6)
    np.testing.assert_allclose(mean / factors[:, 0], plain[1], rtol=1e-6)
    np.testing.assert_allclose(rstd.astype(np.float64) * factors[:, 0], plain[3], rtol=1e-6)
    inside = factors[:, 0] == 1  # of the range of the dtype
    np.testing.assert_allclose(var[inside], plain[2][inside], rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 3, 80), (301, 3, 1), (300, 3, 3)], ids=str)
@pytest.mark.parametrize("value", [0.1, 333.3, 3e38, 1e-30])
def test_a_constant_channel_gives_beta(shape: tuple[int, int, int], value: float) -> None:
    arrays = Arrays(shape, "float32")
    arrays.x[:, 1] = value
    y, mean, var, _ = backend.channels_forward(arrays.x, arrays.gamma, arrays.beta, epsilon=1e-12)
    np.testing.assert_array_equal(y[:, 1], arrays.beta[1])
    assert mean[1] == np.float32(value)
    assert var[1] == 0


@pytest.mark.parametrize("shape", [(40, 3, 80), (6000, 3, 1), (600, 3, 3)], ids=str)
def test_channels_that_mislead_the_guess(shape: tuple[int, int, int]) -> None:
    """Where the mean is guessed from, everything is far from it."""
    arrays = Arrays(shape, "float32")
    samples = shape[0]
    places = {samples * k // 64 for k in range(64)} | {samples * k // 4 for k in range(4)}
    arrays.x[sorted(places), 1] += 1e4
    y, mean, _, rstd = backend.channels_forward(arrays.x, None, None, epsilon=0.0)
    wide = arrays.x[:, 1].astype(np.float64)
    expected = (wide - wide.mean()) / wide.std()
    np.testing.assert_allclose(y[:, 1], expected, atol=4 * np.finfo(np.float32).eps * 10)
    np.testing.assert_allclose(rstd[1], 1 / wide.std(), rtol=1e-6)
    np.testing.assert_allclose(mean[1], wide.mean(), rtol=1e-6)


def test_the_mean_far_from_zero_costs_no_digits() -> None:
    """Mean over sigma of a million, in float32, of pieces and of columns."""
    for shape in ((50, 4, 80), (4000, 4, 1)):
        arrays = Arrays(shape, "float32", mean=1e6)
        results, right = arrays.results(), exact(arrays)
        for k, tolerance in ((0, 3e-6), (5, 3e-6)):
            assert abs(results[k] - right[k]).max() < tolerance


def test_explain_tells_the_way_through_memory() -> None:
    images, features = np.ones((2, 3, 100, 100), np.float32), np.ones((50, 7), np.float32)
    assert "by channels" in ln.explain(ln.batch_norm_forward, images).reason
    assert "by columns" in ln.explain(ln.batch_norm_forward, features).reason


def test_what_is_swept_by_columns() -> None:
    def by_columns(*shape: int) -> bool:
        spec = ChannelsSpec("numpy", "cpu", shape, "float32", None, None)  # type: ignore[arg-type]
        return channels_dispatch.is_by_columns(spec)

    assert by_columns(32, 256, 1)
    assert by_columns(32, 256, 49)
    assert not by_columns(32, 2048, 49)
    assert by_columns(32, 2048, 4)
    assert not by_columns(32, 3, 64)
