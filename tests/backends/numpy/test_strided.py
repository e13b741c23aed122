"""Rows along an axis that others follow, read where they lie: however they are cut, the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from engine_arrays import NEVER, needs_mprotect, run_before_a_hole, same, set_thresholds
from ln_array_api_backends.numpy import strided_dispatch

import ln_array_api as ln
from ln_array_api import backend as registry

DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}
FORWARD = {True: ln.layer_norm_forward, False: ln.rms_norm_forward}
BACKWARD = {True: ln.layer_norm_backward, False: ln.rms_norm_backward}


def arguments(shape: tuple[int, ...], dtype: Any, mean: float = 3.0) -> list[Any]:
    """X, dy, gamma and beta for rows along axis 1."""
    rng = np.random.default_rng([*shape])
    x, dy = mean + rng.standard_normal(shape), rng.standard_normal(shape)
    gamma, beta = 1 + 0.3 * rng.standard_normal(shape[1]), rng.standard_normal(shape[1])
    return [each.astype(dtype) for each in (x, dy, gamma, beta)]


def results(
    x: Any, dy: Any, gamma: Any, beta: Any, center: bool = True, axis: int = 1
) -> list[np.ndarray]:
    """All results and gradients."""
    parameters = (gamma, beta) if center else (gamma,)
    result = FORWARD[center](x, *parameters, axis=axis)
    gradients = BACKWARD[center](dy, x, *result[1:], gamma, axis=axis)
    return [each for each in (*result, *gradients) if each is not None]


def test_these_kernels_run() -> None:
    x = np.ones((2, 5, 16), np.float32)
    for axis in (1, -2, 0, (0, 1)):
        reason = ln.explain(ln.layer_norm, x, axis=axis).reason
        assert "by columns as they lie" in reason
    gradient = (x, x, *ln.layer_norm_forward(x, axis=1)[1:])
    assert "by columns as they lie" in ln.explain(ln.layer_norm_backward, *gradient, axis=1).reason


def test_others_are_copied_or_lie_as_rows() -> None:
    x = np.ones((2, 5, 16), np.float32)
    for array, axis in ((x, 2), (x, (0, 2)), (x[..., :3], 1), (x[..., ::2], 1), (x[:, :1], 1)):
        assert "as they lie" not in ln.explain(ln.layer_norm, array, axis=axis).reason


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 40, 300), (1, 70, 1024), (5, 3, 17)], ids=str)
def test_threads_stores_and_the_pool_change_no_bit(
    shape: tuple[int, int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(shape, DTYPES[dtype])
    set_thresholds(monkeypatch)
    expected = {center: results(*given, center=center) for center in (True, False)}
    for parallel, large in ((0, NEVER), (NEVER, 0), (0, 0)):
        set_thresholds(monkeypatch, parallel=parallel, non_temporal=large, pooled=large)
        registry.plans.clear()
        for center in (True, False):
            same(results(*given, center=center), expected[center])


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_tiles_are_cut_changes_no_bit_of_a_row(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So none depends on its place, nor on how many lie beside it."""
    x, dy, gamma, beta = arguments((3, 70, 300), DTYPES[dtype])
    expected = results(x, dy, gamma, beta)[:4]
    for vectors in (1, 2, 3, 5, 16, 24):
        monkeypatch.setattr(strided_dispatch, "FEW_VECTORS", vectors)
        most = dict.fromkeys(strided_dispatch.VECTORS, vectors)
        monkeypatch.setattr(strided_dispatch, "VECTORS", most)
        registry.plans.clear()
        same(results(x, dy, gamma, beta)[:4], expected)
    for some in (np.s_[:1], np.s_[1:, :, :], np.s_[:, :, :8], np.s_[:, :, 130:199]):
        part = results(x[some].copy(), dy[some].copy(), gamma, beta)[:4]
        same(part, [each[some] for each in expected])


ODD: dict[str, Callable[[np.ndarray], Any]] = {
    "huge": lambda row: row * 1e30,
    "tiny": lambda row: row * 1e-30,
    "constant": lambda row: np.full_like(row, 3),
    "a mean far from where it is looked for": lambda row: (
        row + 1e4 * (np.arange(row.size) % 5 == 0)
    ),
    "NaN": lambda row: np.where(np.arange(row.size) == 5, np.nan, row),
    "infinite": lambda row: np.where(np.arange(row.size) == 5, np.inf, row),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("center", [True, False])
def test_odd_rows_leave_those_beside_them_alone(odd: str, center: bool) -> None:
    """And have the bits that they have among others of their kind."""
    x, dy, gamma, beta = arguments((2, 80, 100), np.float32)
    plain = results(x, dy, gamma, beta, center)
    changed = x.copy()
    changed[1, :, 7] = ODD[odd](x[1, :, 7])
    statistics = 3 if center else 2
    rows = [0, *range(1, statistics + 1)]  # y, statistics and dx
    among = results(changed, dy, gamma, beta, center)
    kept = np.ones(x.shape, bool)
    kept[1, :, 7] = False
    for place in rows:
        mask = kept[:, : plain[place].shape[1]]
        assert among[place][mask].tobytes() == plain[place][mask].tobytes()
    alone = np.broadcast_to(changed[1:, :, 7:8], (1, 80, 100)).copy()
    of_alone = np.broadcast_to(dy[1:, :, 7:8], (1, 80, 100)).copy()
    same(
        [each[1:, :, 7] for each in among[: len(rows)]],
        [each[:, :, 3] for each in results(alone, of_alone, gamma, beta, center)[: len(rows)]],
    )
    lies = [np.moveaxis(each, 1, 2).copy() for each in (changed, dy)]
    as_rows = results(*lies, gamma, beta, center, axis=2)
    for place in rows:
        own, right = among[place][1:, :, 7], np.moveaxis(as_rows[place], 2, 1)[1:, :, 7]
        size = np.max(abs(right), where=np.isfinite(right), initial=1e-37)
        np.testing.assert_allclose(own, right, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("value", [0.051, 0.1, 0.399])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_terms_that_are_alike_lose_no_digits(dtype: str, value: float) -> None:
    """Dbeta is the number of rows times dy: of many in a tile, of many tiles, of many samples."""
    for shape in ((1, 9, 70_000), (3000, 9, 16), (70, 9, 784)):
        x = arguments(shape, DTYPES[dtype])[0]
        dy = np.full(shape, value, DTYPES[dtype])
        gamma = np.ones(shape[1], DTYPES[dtype])
        _, mean, rstd = ln.layer_norm_forward(x, axis=1)
        dbeta = ln.layer_norm_backward(dy, x, mean, rstd, gamma, axis=1).dbeta
        exact = dy[0, 0, 0].astype(np.longdouble) * (shape[0] * shape[2])
        assert np.all(abs(dbeta - exact) <= 8 * np.spacing(DTYPES[dtype](exact)))


@pytest.mark.parametrize("need", [("dx",), ("dgamma",), ("dbeta",), ("dgamma", "dbeta")], ids=str)
def test_what_is_not_needed_changes_no_bit(need: tuple[str, ...]) -> None:
    x, dy, gamma, beta = arguments((4, 33, 50), np.float32)
    _, mean, rstd = ln.layer_norm_forward(x, gamma, beta, axis=1)
    whole = ln.layer_norm_backward(dy, x, mean, rstd, gamma, axis=1)
    some = ln.layer_norm_backward(dy, x, mean, rstd, gamma, axis=1, need=need)
    for name, own, right in zip(whole._fields, some, whole, strict=True):
        assert (own is None) == (name not in need)
        assert own is None or own.tobytes() == right.tobytes()


def test_out_anywhere() -> None:
    """In place, in order, and in an array that lies otherwise."""
    x, _, gamma, beta = arguments((3, 40, 50), np.float32)
    y = ln.layer_norm(x, gamma, beta, axis=1)
    memory = np.zeros((3, 50, 40), np.float32)
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    for out in (np.empty_like(x), memory.transpose(0, 2, 1), unaligned, x):
        assert ln.layer_norm(x, gamma, beta, axis=1, out=out) is out
        assert out.tobytes() == y.tobytes()


def test_what_goes_with_x_may_lie_anyhow() -> None:
    x, dy, gamma, beta = arguments((3, 40, 50), np.float32)
    expected = results(x, dy, gamma, beta)
    twice = np.repeat(gamma, 2)[::2]
    result = ln.layer_norm_forward(x, twice, beta.astype(">f4"), axis=1)
    saved = [np.repeat(each, 2, axis=2)[..., ::2] for each in result[1:]]
    same([*result, *ln.layer_norm_backward(dy, x, *saved, twice, axis=1)], expected)
    for lies in (np.asfortranarray(dy), np.repeat(dy, 2, axis=2)[..., ::2], dy.astype(">f4")):
        gradients = ln.layer_norm_backward(lies, x, *result[1:], gamma, axis=1)
        for own, right in zip(gradients, expected[3:], strict=True):
            np.testing.assert_allclose(own, right, rtol=0, atol=4e-6 * abs(right).max())


AT_THE_END = """
import ln_array_api as ln

x, dy = (before_a_hole(np.float32)[-17 * 60:].reshape(17, 60) for _ in range(2))
x[...] = np.random.default_rng(0).standard_normal(x.shape)
y, mean, rstd = ln.layer_norm_forward(x, axis=0)
ln.layer_norm_backward(dy, x, mean, rstd, axis=0)
ln.layer_norm(x, axis=0, out=x)
assert (x == y).all()
print("done", flush=True)
"""


@needs_mprotect
def test_nothing_is_read_behind_an_array() -> None:
    result = run_before_a_hole(AT_THE_END)
    assert (result.stdout, result.returncode) == ("done\n", 0), result.stderr


def test_columns_lie_in_order_in_the_result() -> None:
    x = arguments((3, 40, 50), np.float32)[0]
    result = ln.layer_norm_forward(x, axis=1)
    assert result.y.flags.c_contiguous
    assert result.mean.shape == result.rstd.shape == (3, 1, 50)
