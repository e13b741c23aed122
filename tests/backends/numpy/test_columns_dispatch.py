"""Groups of channels last, read where they lie: the same bits as ever, and the right ones."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from engine_arrays import NEVER, set_thresholds

import ln_array_api as ln
from ln_array_api import backend as registry

DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}
#: Shapes of x, the axis of its channels, and how many groups these are cut into.
KINDS = [((5, 7, 3, 12), -1, 3), ((4, 9, 70), -1, 70), ((3, 200, 33), 2, 1), ((4, 5, 6, 7), 2, 2)]


def results(x: Any, dy: Any, gamma: Any, beta: Any, axis: int, groups: int) -> list[np.ndarray]:
    options: dict[str, Any] = {"num_groups": groups, "channel_axis": axis}
    result = ln.group_norm_forward(x, gamma, beta, **options)
    return [*result, *ln.group_norm_backward(dy, x, *result[1:], gamma, **options)]


def arguments(shape: tuple[int, ...], axis: int, dtype: Any, mean: float = 3.0) -> list[Any]:
    rng = np.random.default_rng([*shape])
    x, dy = mean + rng.standard_normal(shape), rng.standard_normal(shape)
    gamma, beta = 1 + 0.3 * rng.standard_normal(shape[axis]), rng.standard_normal(shape[axis])
    return [each.astype(dtype) for each in (x, dy, gamma, beta)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis", "groups"), KINDS, ids=str)
def test_as_channels_first(shape: tuple[int, ...], axis: int, groups: int, dtype: str) -> None:
    """Where the mean is a million times sigma too, in float32."""
    for mean in (3.0, 1e6 if dtype == "float32" else 100.0):
        x, dy, gamma, beta = arguments(shape, axis, DTYPES[dtype], mean)
        first = (np.moveaxis(each, axis, 1).copy() for each in (x, dy))
        expected = results(*first, gamma, beta, 1, groups)
        actual = results(x, dy, gamma, beta, axis, groups)
        tolerance = {"float32": 2e-6, "float64": 4e-15, "bfloat16": 2.0**-6}[dtype]
        for k, (own, right) in enumerate(zip(actual, expected, strict=True)):
            wide = np.moveaxis(own, axis, 1) if own.ndim == x.ndim else own
            assert wide.dtype == right.dtype
            right = right.astype(np.float64)
            size = max(1.0, abs(right).max()) * (4 if k > 3 else 1)  # sums of many terms
            np.testing.assert_allclose(wide.astype(np.float64), right, atol=size * tolerance)


@pytest.mark.parametrize(("shape", "axis", "groups"), KINDS, ids=str)
def test_no_threshold_changes_a_bit(
    shape: tuple[int, ...], axis: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(shape, axis, np.float32)
    expected = results(*given, axis, groups)
    for threads, non_temporal in ((2, 1), (3, NEVER)):
        registry.plans.clear()
        set_thresholds(monkeypatch, parallel=1, non_temporal=non_temporal, threads=threads)
        for own, right in zip(results(*given, axis, groups), expected, strict=True):
            assert own.tobytes() == right.tobytes()


@pytest.mark.parametrize(("shape", "axis", "groups"), KINDS, ids=str)
def test_a_sample_does_not_mind_the_others(shape: tuple[int, ...], axis: int, groups: int) -> None:
    x, dy, gamma, beta = arguments(shape, axis, np.float32)
    together = results(x, dy, gamma, beta, axis, groups)
    for sample in range(shape[0]):
        one = slice(sample, sample + 1)
        alone = results(x[one], dy[one], gamma, beta, axis, groups)
        for own, right in zip(alone[:4], together[:4], strict=True):
            assert own.tobytes() == right[one].tobytes()


def test_parameters_of_any_layout() -> None:
    x, dy, gamma, beta = arguments((5, 7, 12), -1, np.float32)
    expected = results(x, dy, gamma, beta, -1, 3)
    apart = np.repeat(gamma, 2)[::2]
    swapped = beta.astype(">f4")
    for own, right in zip(results(x, dy, apart, swapped, -1, 3), expected, strict=True):
        np.testing.assert_array_equal(own, right)


def test_what_is_read_where_it_lies() -> None:
    def explained(x: Any, **options: Any) -> str:
        return str(ln.explain(ln.group_norm, x, num_groups=2, **options).reason)

    last = np.ones((4, 9, 6), np.float32)
    assert "as they lie" in explained(last, channel_axis=-1)
    assert "as they lie" not in explained(np.moveaxis(last, -1, 1).copy())  # rows already
    assert "as they lie" not in explained(last[:, ::-1], channel_axis=-1)  # copied anyway
    many = np.ones((1, 2, 40000), np.float32)
    assert "as they lie" not in explained(many, channel_axis=-1)  # beyond what tables may be
    statistics = ln.instance_norm_forward(last, channel_axis=-1)[1:]
    backward = ln.explain(ln.instance_norm_backward, last, last, *statistics, channel_axis=-1)
    assert "as they lie" in backward.reason


def test_columns_that_are_stored_past_the_cache() -> None:
    x = np.random.default_rng(0).standard_normal((6400, 512, 1)).astype(np.float32)
    assert "streaming stores" in ln.explain(ln.batch_norm_forward, x).reason
    wide = x.astype(np.float64)
    exact = (wide - wide.mean(axis=0)) / np.sqrt(wide.var(axis=0) + 1e-5)
    np.testing.assert_allclose(ln.batch_norm_forward(x).y, exact, rtol=1e-6, atol=2e-6)
