"""Rows that are split over blocks: merged moments are right at any magnitude."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cupy_on_cpu
import numpy as np
import pytest
from ln_array_api_backends.cupy import rows_dispatch
from ln_array_api_backends.cupy.launch_config import (
    FORWARD_CHUNKS,
    TARGET_WARPS,
    WARP,
    RowSplit,
    ceil_div,
    split_row,
)
from test_kernels import Case, check, in_every_order

N = 40001
"""Five tiles, the last of which is no whole number of chunks."""
EPS = 2.0**-23


@pytest.fixture(autouse=True)
def _order() -> Iterator[None]:
    yield
    cupy_on_cpu.set_order("forward")


def two_tile_segments(dtype: str, n: int, chunks: int) -> RowSplit:
    """Split a row into segments of two tiles, as very long rows are."""
    cut = split_row(dtype, n, chunks)
    length = 2 * cut.length
    return cut._replace(length=length, segments=ceil_div(n, length))


@pytest.fixture(params=[split_row, two_tile_segments], ids=["a tile", "two tiles"])
def _segment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the tiles of a segment."""
    monkeypatch.setattr(rows_dispatch, "split_row", request.param)


def normal(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, N))


def with_part(factor: float) -> Callable[[np.random.Generator], np.ndarray]:
    """Return values of which a part has another magnitude."""

    def values(rng: np.random.Generator) -> np.ndarray:
        x = normal(rng)
        x[:, 9000:17000] *= factor
        return x

    return values


def signs() -> np.ndarray:
    return np.tile(np.where(np.arange(N) < 20000, 1.0, -1.0), (2, 1))


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": normal,
    "mean 1e6": lambda rng: 1e6 + normal(rng),
    "1e30": lambda rng: 1e30 * normal(rng),
    "1e-30": lambda rng: 1e-30 * normal(rng),
    "mean 1e30": lambda rng: 1e30 + 1e24 * normal(rng),
    "a part of 1e30": with_part(1e30),
    "a part of 1e-30": with_part(1e-30),
    "plus and minus 1e30": lambda rng: 1e30 * signs(),
    "plus and minus 1e-30": lambda rng: 1e-30 * signs(),
    "a slope": lambda rng: np.linspace(-1e6, 1e6, N) + normal(rng),
    "an outlier": lambda rng: normal(rng) + 1e4 * (np.arange(N) == 30000),
}  # fmt: skip


def largest(values: np.ndarray) -> np.ndarray:
    """Return the largest value of each row."""
    return np.max(values, axis=1, keepdims=True)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("_segment")
@pytest.mark.parametrize("epsilon", [1e-5, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy(kind: str, epsilon: float) -> None:
    """The tolerance is in ulp of the largest term of a row, as for shorter rows."""
    case = Case("float32", 2, N, epsilon=epsilon, x=KINDS[kind](np.random.default_rng(1)))
    y, mean, rstd, dx, dgamma, dbeta = (each.get().astype(np.float64) for each in case.run())
    true = case.expected()
    x, gamma, beta, dy = (each.astype(np.float64) for each in case.plain)  # type: ignore[union-attr]
    x_hat = np.abs((x - true[1]) * true[2])
    # An x_hat close to 0 has the absolute error of an x_hat of 1.
    terms = [
        (y, true[0], 4, largest(np.maximum(np.abs(gamma * x_hat), np.abs(beta)))),
        (mean, true[1], 4, largest(np.abs(x))),
        (rstd, true[2], 8, true[2]),
        (dx, true[3], 8, largest(np.abs(dy * gamma) * np.maximum(x_hat, 1)) * true[2]),
        (dgamma, true[4], 8, (np.abs(dy) * np.maximum(x_hat, 1)).sum(0)),
        (dbeta, true[5], 8, np.abs(dy).sum(0)),
    ]
    for actual, expected, ulps, size in terms:
        assert (np.abs(actual - expected) <= ulps * EPS * size).all()


@pytest.mark.usefixtures("_segment")
def test_every_order_of_threads_gives_the_same_bits() -> None:
    case = Case("float32", 3, N)
    check(case)
    in_every_order(case)


@pytest.mark.usefixtures("_segment")
@pytest.mark.parametrize("value", [0, 0.1, 1e30, -1e-30])
def test_a_constant_row_gives_beta(value: float) -> None:
    case = Case("float32", 2, N, x=np.full((2, N), value))
    y, mean, rstd, *_ = case.run()
    assert (y == case.beta).all()
    assert (mean == np.float32(value)).all()
    np.testing.assert_allclose(rstd.get(), 1e-5**-0.5, rtol=1e-6)


@pytest.mark.usefixtures("_segment")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_value_affects_only_its_row(value: float) -> None:
    x = normal(np.random.default_rng(1))
    x[0, 20000] = value
    y, _, rstd, dx, *_ = Case("float32", 2, N, x=x).run()
    for each in (y, dx):
        assert np.isnan(each[0].get()).any()
        assert np.isfinite(each[1].get()).all()
    assert not (rstd[0] > 0).any()


def test_few_long_rows_fill_a_gpu() -> None:
    cut = split_row("float32", 1 << 18, FORWARD_CHUNKS)
    assert 16 * min(cut.segments, cut.tiles) * cut.threads >= TARGET_WARPS * WARP


@pytest.mark.parametrize("n", [16385, 1 << 22, (1 << 22) + 1, (1 << 31) + 1, 1 << 40])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_thread_has_at_most_one_segment(dtype: str, n: int) -> None:
    cut = split_row(dtype, n, 2)
    tile = cut.length if cut.segments == cut.tiles else ceil_div(n, cut.tiles)
    assert cut.segments <= cut.threads
    assert (cut.segments - 1) * cut.length < n <= cut.segments * cut.length
    assert (cut.tiles - 1) * tile < n
