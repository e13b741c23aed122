"""From a spec to a compiled kernel: what a call's shape, memory, threads and stores may change."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from engine_arrays import DTYPES, moved, same, set_thresholds
from ln_array_api_backends.numpy import (
    array_tasks,
    backend,
    memory,
    memory_pool,
    tasks,
)

import ln_array_api as ln
from ln_array_api.backend import RowsSpec
from ln_array_api.kernels import rows

NEEDS = [need for need in itertools.product([True, False], repeat=3) if any(need)]


def random(dtype: str, *shape: int, mean: float = 0.0) -> np.ndarray:
    """Other numbers around each mean."""
    rng = np.random.default_rng([*shape, round(mean * 100) % 1000])
    return (mean + rng.standard_normal(shape)).astype(DTYPES[dtype])


WAYS = [
    {},
    {"parallel": 0},
    {"pooled": 0},
    {"non_temporal": 0},
    {"pooled": 0, "non_temporal": 0},
    {"parallel": 0, "pooled": 0, "non_temporal": 0},
]


@pytest.mark.parametrize(
    ("dtype", "lengths"),
    [
        ("float32", (1, 33, 64, 100, 768, 1601)),
        ("float64", (33, 768)),
        ("float16", (33, 64, 768)),
        ("bfloat16", (33, 64, 768)),
    ],
)
def test_no_threshold_changes_a_bit(
    dtype: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for m, n, center in itertools.product((1, 9, 40), lengths, (True, False)):
        x, dy = random(dtype, m, n, mean=3), random(dtype, m, n, mean=-1)
        x[:, ::7] = -0.0
        gamma, beta = random(dtype, n), random(dtype, n, mean=0.5) if center else None
        expected = None
        for way in WAYS:
            set_thresholds(monkeypatch, **way)
            forward_results = backend.rows_forward(x, gamma, beta, epsilon=1e-5, center=center)
            gradients = backend.rows_backward(dy, x, *forward_results[1:], gamma, center=center)
            results = (*forward_results, *gradients)
            expected = expected or results
            same(results, expected)


def guess_far_off(row: np.ndarray) -> np.ndarray:
    """The same, but where the guess at a mean looks."""
    n = row.size
    row = row.copy()
    for quarter in range(4):
        row[quarter * (n // 4) : quarter * (n // 4) + 16] += 1000
    return row


ODD_ROWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "huge": lambda row: row * np.float32(1e30),
    "tiny": lambda row: row * np.float32(1e-30),
    "constant": lambda row: np.full_like(row, 3),
    "NaN": lambda row: np.where(np.arange(row.size) == 5, np.float32(np.nan), row),
    "infinite": lambda row: np.where(np.arange(row.size) == 5, np.float32(np.inf), row),
    "guess far off": guess_far_off,
}


@pytest.mark.parametrize("odd", ODD_ROWS)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("n", [64, 250, 1024])
def test_odd_rows_leave_those_beside_them_alone(
    odd: str, center: bool, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do they depend on how they are stored."""
    m = 37
    x, gamma = random("float32", m, n, mean=3), random("float32", n)
    x[:, ::7] = -0.0
    beta = random("float32", n) if center else None

    def results(x: np.ndarray, some: Any) -> list[np.ndarray]:
        every = backend.rows_forward(x, gamma, beta, epsilon=1e-5, center=center)
        return [each[some] for each in every if each is not None]

    for odd_rows in ([0], [16], [36], [3, 4, 20]):
        mixed, others = x.copy(), np.setdiff1d(np.arange(m), odd_rows)
        for row in odd_rows:
            mixed[row] = ODD_ROWS[odd](x[row])
        every = results(mixed, slice(None))
        same([each[others] for each in every], results(x, others))
        for row in odd_rows:
            here = slice(row, row + 1)
            same([each[here] for each in every], results(mixed[here], slice(None)))
        with monkeypatch.context() as patched:
            set_thresholds(patched, non_temporal=0)
            same(results(mixed, slice(None)), every)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_dbeta_does_not_depend_on_x(value: float) -> None:
    """Not where rstd is NaN or infinite either, as that of a constant group is without epsilon."""
    x = random("float32", 2, 4, 5, 7)
    x[0, :2] = value
    dy, gamma = np.ones_like(x), np.ones(4, np.float32)
    _, mean, rstd = ln.group_norm_forward(x, num_groups=2, epsilon=0.0)
    assert not np.isfinite(rstd).all()
    gradients = ln.group_norm_backward(dy, x, mean, rstd, gamma, num_groups=2)
    np.testing.assert_array_equal(gradients.dbeta, np.full(4, 70))
    statistics = np.zeros(4, np.float32), np.asarray([value, np.inf, 1, 1], np.float32)
    gradients = ln.batch_norm_backward(dy, x, *statistics, gamma)
    np.testing.assert_array_equal(gradients.dbeta, np.full(4, 70))


SIZES = ((4096, 1024), (4100, 1037), (9, 700_001))


@pytest.mark.parametrize("shape", SIZES)
def test_large_rows_are_those_of_small_calls(shape: tuple[int, int]) -> None:
    """On several threads, streamed, from the pool."""
    m, n = shape
    x, dy = random("float32", m, n, mean=1), random("float32", m, n)
    gamma, beta = random("float32", n), random("float32", n)
    spec = RowsSpec("numpy", "cpu", shape, "float32", "float32", "float32", True)
    assert "streaming stores, memory from the pool" in backend.describe("rows_forward", spec)
    y, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
    dx, dgamma, dbeta = ln.layer_norm_backward(dy, x, mean, rstd, gamma)
    for first in (0, 1, m // 2, m - 3):
        few = slice(first, first + 3)
        forward_results = ln.layer_norm_forward(x[few], gamma, beta)
        same(forward_results, (y[few], mean[few], rstd[few]))
        gradients = ln.layer_norm_backward(dy[few], x[few], mean[few], rstd[few], gamma)
        same((gradients.dx,), (dx[few],))
    again = ln.layer_norm_backward(dy, x, mean, rstd, gamma)
    same(again, (dx, dgamma, dbeta))
    for need in (("dgamma", "dbeta"), ("dx",), ("dbeta",)):
        part = ln.layer_norm_backward(dy, x, mean, rstd, gamma, need=need)
        for name in need:
            same((getattr(part, name),), (getattr(again, name),))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("n", [1040, 1034])
def test_large_16_bit_rows_are_those_of_small_calls(dtype: str, n: int) -> None:
    m = (17 << 20) // (2 * n)
    x = random(dtype, m, n)
    decoy = ln.layer_norm(random(dtype, m, n, mean=5))
    del decoy
    y, mean, rstd = ln.layer_norm_forward(x)
    dx, _, _ = ln.layer_norm_backward(x, x, mean, rstd)
    few = slice(0, 64)
    same(ln.layer_norm_forward(x[few]), (y[few], mean[few], rstd[few]))
    small = ln.layer_norm_backward(x[few], x[few], mean[few], rstd[few])
    same((small.dx,), (dx[few],))


LAYOUTS = [
    (6, 12, 1, 1),
    (6, 8, 3, 4),
    (6, 3, 2, 1),
    (8, 34, 1, 17),
    (12, 64, 4, 16),
    (12, 130, 2, 65),
    (4, 96, 1, 96),
    (6, 49, 3, 49),
    (96, 500, 8, 25),
    (32, 12_800, 16, 1600),
]


def within(actual: Any, expected: np.ndarray, like: Any, ulps: float) -> None:
    """Within so many ulp of the largest, and half a step of a 16-bit dtype."""
    assert actual.shape == expected.shape
    wide = np.float64 if like == np.float64 else np.float32
    error = abs(actual.astype(np.float64) - expected)
    allowed = ulps * float(np.finfo(wide).eps) * abs(expected).max()
    if actual.dtype.itemsize == 2:
        allowed = allowed + abs(expected) * (2.0**-8 if actual.dtype.name == "bfloat16" else 2**-11)
    assert (error <= allowed).all(), (error / allowed).max()


def widened(*arrays: Any) -> list[Any]:
    return [None if each is None else each.astype(np.float64) for each in arrays]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "parameters", "center"),
    [
        *(("float32", which, center) for which in ("both", "none") for center in (True, False)),
        ("float32", "gamma", True),
        ("float32", "beta", True),
        *((dtype, "both", True) for dtype in ("float64", "float16", "bfloat16")),
        ("float16", "none", False),
    ],
)
def test_parameters_of_groups(
    dtype: str, parameters: str, center: bool, layout: tuple[int, int, int, int]
) -> None:
    m, n, groups, repeat = layout
    x, dy = random(dtype, m, n, mean=2), random(dtype, m, n, mean=1)
    gamma, beta = random(dtype, groups * n // repeat), random(dtype, groups * n // repeat, mean=1)
    gamma = gamma if parameters in ("both", "gamma") else None
    beta = beta if parameters in ("both", "beta") else None
    options = {"center": center, "groups": groups, "repeat": repeat}
    y, mean, rstd = backend.rows_forward(x, gamma, beta, epsilon=1e-5, **options)
    dx, dgamma, dbeta = backend.rows_backward(dy, x, mean, rstd, gamma, **options)
    wide = widened(x, gamma, beta, dy)
    exact = rows.rows_forward(*wide[:3], epsilon=1e-5, **options)
    exact_gradients = rows.rows_backward(wide[3], wide[0], *exact[1:], wide[1], **options)
    kind = DTYPES[dtype]
    assert (y.dtype, dx.dtype) == (kind, kind)
    within(y, exact[0], kind, 8)
    within(rstd, exact[2], kind, 8)
    assert (mean is None) == (not center)
    if center:
        within(mean, exact[1], kind, 8)
    within(dx, exact_gradients[0], kind, 16)
    within(dgamma, exact_gradients[1], kind, 60)
    within(dbeta, exact_gradients[2], kind, 30)
    for need in NEEDS if dtype == "float32" and parameters == "both" and center else ():
        part = backend.rows_backward(dy, x, mean, rstd, gamma, need=need, **options)
        same(
            part,
            [
                each if wanted else None
                for each, wanted in zip((dx, dgamma, dbeta), need, strict=True)
            ],
        )


def test_the_largest_of_these_layouts_goes_parallel() -> None:
    m, n, _, _ = LAYOUTS[-1]
    assert array_tasks.use_threads(m * n * 4) == (numba.config.NUMBA_NUM_THREADS > 1)


def test_large_groups_do_not_depend_on_what_is_needed() -> None:
    m, groups, per_row, repeat = 16, 4, 10, 29_001
    n = per_row * repeat
    x, dy = random("float32", m, n), random("float32", m, n, mean=1)
    gamma = random("float32", groups * per_row)
    options = {"center": True, "groups": groups, "repeat": repeat}
    _, mean, rstd = backend.rows_forward(x, gamma, None, epsilon=1e-5, **options)
    together = backend.rows_backward(dy, x, mean, rstd, gamma, **options)
    need = (False, True, True)
    alone = backend.rows_backward(dy, x, mean, rstd, gamma, need=need, **options)
    same(alone[1:], together[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [{}, {"pooled": 0, "non_temporal": 0}])
def test_out_may_lie_anywhere(
    dtype: str, threshold: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_thresholds(monkeypatch, **threshold)
    for n in (33, 64, 100):
        x, gamma = random(dtype, 7, n, mean=1), random(dtype, n)
        set_thresholds(monkeypatch)
        expected = backend.rows_forward(x, gamma, None, epsilon=1e-5, center=True)
        set_thresholds(monkeypatch, **threshold)
        size = x.itemsize
        for offset in (0, size, 12, 60):
            out = moved(np.zeros_like(x), offset)
            result = backend.rows_forward(
                moved(x, 60 - offset), gamma, None, epsilon=1e-5, center=True, out=out
            )
            assert result[0] is out
            same(result, expected)
        same(
            backend.rows_forward(own := x.copy(), gamma, None, epsilon=1e-5, center=True, out=own),
            expected,
        )


def compiled() -> int:
    """How many tasks this process has compiled, or loaded."""
    return tasks.compiled.cache_info().currsize


def test_read_only_arrays_are_not_compiled_for_anew() -> None:
    x, gamma = random("float32", 300, 200), random("float32", 200)
    y, mean, rstd = ln.layer_norm_forward(x, gamma, gamma)
    expected = ln.layer_norm_backward(y, x, mean, rstd, gamma)
    before = compiled()
    for each in (x, gamma, y, mean, rstd):
        each.flags.writeable = False
    same(ln.layer_norm_forward(x, gamma, gamma), (y, mean, rstd))
    same(ln.layer_norm_backward(y, x, mean, rstd, gamma), expected)
    same(backend.rows_forward(x, gamma, gamma, epsilon=1e-5, center=True), (y, mean, rstd))
    assert compiled() == before
    assert before > 0


def test_shapes_share_what_is_compiled() -> None:
    ln.layer_norm(random("float32", 10, 20))
    before = compiled()
    for m, n in ((1, 1), (3, 5), (7, 999), (40, 64)):
        ln.layer_norm(random("float32", m, n), epsilon=0.1 * n)
    assert compiled() == before


def test_mixed_dtypes() -> None:
    for dtype, wider in (("float16", "float32"), ("bfloat16", "float64"), ("float32", "float64")):
        x, dy = random(dtype, 20, 70), random(dtype, 20, 70, mean=1)
        gamma, beta = random(wider, 70), random(wider, 70, mean=1)
        y, mean, rstd = backend.rows_forward(x, gamma, beta, epsilon=1e-5, center=True)
        dx, dgamma, dbeta = backend.rows_backward(dy, x, mean, rstd, gamma, center=True)
        wide = widened(x, gamma, beta, dy)
        exact = rows.rows_forward(*wide[:3], epsilon=1e-5, center=True)
        gradients = rows.rows_backward(wide[3], wide[0], *exact[1:], wide[1], center=True)
        within(y, exact[0], DTYPES[dtype], 4)
        within(dx, gradients[0], DTYPES[dtype], 8)
        within(dgamma, gradients[1], DTYPES[dtype], 8)
        within(dbeta, gradients[2], DTYPES[dtype], 8)


@pytest.mark.parametrize("pooled", [True, False])
def test_large_results_come_from_the_pool(pooled: bool) -> None:
    m = memory.POOLED_MIN_BYTES // 4096 - (not pooled)
    x = random("float32", m, 1024)
    memory_pool.free_all()
    before = memory_pool.stats()
    y, mean, rstd = ln.layer_norm_forward(x)
    assert y.nbytes >= memory.POOLED_MIN_BYTES if pooled else y.nbytes < memory.POOLED_MIN_BYTES
    taken = memory_pool.stats().used_bytes - before.used_bytes
    assert (taken >= y.nbytes) == pooled
    assert pooled or taken == 0
    if pooled:
        assert y.ctypes.data % 64 == 0
    dx, _, _ = ln.layer_norm_backward(x, x, mean, rstd)
    assert (memory_pool.stats().used_bytes - before.used_bytes >= 2 * y.nbytes) == pooled
    address = y.ctypes.data
    del y
    if pooled:
        assert memory_pool.stats().free_bytes > 0
        assert ln.layer_norm(x).ctypes.data == address
    del dx


def test_results_survive_the_pool() -> None:
    x = random("float32", 2048, 1024)
    y = ln.layer_norm(x)
    expected = y.copy()
    memory_pool.free_all()
    others = [ln.layer_norm(x + 1) for _ in range(2)]
    view = y[5:9]
    del y
    memory_pool.free_all()
    others.append(ln.layer_norm(x - 1))
    same((view,), (expected[5:9],))


def test_terms_that_are_alike_along_a_row_are_added_up_with_what_is_lost() -> None:
    """Their mean is all of them, so that dx is what rounding leaves of it."""
    n = 1 << 20
    x = np.random.default_rng(0).standard_normal((1, n)).astype(np.float32)
    dy = np.full((1, n), 0.051, np.float32)
    _, mean, rstd = ln.layer_norm_forward(x)
    dx = ln.layer_norm_backward(dy, x, mean, rstd, need=("dx",)).dx
    assert np.max(abs(dx)) <= 8 * np.spacing(np.float32(0.051))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [1e-3, 3.0, 5e4])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-40, 1e-60, 1e-70])
def test_epsilon_alone_makes_the_rstd_of_a_constant_row(
    dtype: str, value: float, epsilon: float
) -> None:
    x = np.full((3, 100), value, dtype)
    rstd = ln.layer_norm_forward(x, epsilon=epsilon).rstd
    expected = min(epsilon**-0.5, float(np.finfo(rstd.dtype).max))
    np.testing.assert_allclose(rstd, expected, rtol=1e-6)
