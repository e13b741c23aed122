"""Dynamic tanh on compiled kernels: to the last places, in whatever memory, on whatever threads."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import rows_recorder
from engine_arrays import DTYPES, EXACT, FORMATS, NEVER, moved, set_thresholds, slope_of_tanh, unit
from ln_array_api_backends.numpy import tanh_dispatch

import ln_array_api as ln
from ln_array_api import backend as registry

WIDE = {name: np.float64 if name == "float64" else np.float32 for name in DTYPES}
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def reference(
    dy: np.ndarray, x: np.ndarray, alpha: Any, gamma: Any, beta: Any, axis: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each result in long double, and the sum of the absolute values of its terms."""
    wide = WIDE[x.dtype.name]
    axes = (axis,) if isinstance(axis, int) else axis
    axes = tuple(each % x.ndim for each in axes)
    beside = [n if each in axes else 1 for each, n in enumerate(x.shape)]
    others = tuple(each for each in range(x.ndim) if each not in axes)
    with np.errstate(all="ignore"):
        u = (x.astype(wide) * np.asarray(alpha).astype(wide)).astype(EXACT)
        t, slope, d = np.tanh(u), slope_of_tanh(u), dy.astype(EXACT)
        g = d if gamma is None else d * gamma.astype(wide).reshape(beside)
        y = t if gamma is None else t * gamma.astype(wide).reshape(beside)
        shift = EXACT(0) if beta is None else beta.astype(wide).astype(EXACT).reshape(beside)
        terms = {
            "dalpha": (g * (slope * x.astype(EXACT)), None),
            "dgamma": (d * t, others),
            "dbeta": (d, others),
        }
        results = {
            name: (each.sum(over), np.abs(each).sum(over)) for name, (each, over) in terms.items()
        }
        dx = g * slope * np.asarray(alpha).astype(wide)
    return {"y": (y + shift, np.abs(y) + np.abs(shift)), "dx": (dx, np.abs(dx)), **results}


def given(
    shape: tuple[int, ...], axis: Any, dtype: str, wider: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Arguments by name, dtypes other than x's where `wider` is one."""
    rng = np.random.default_rng(seed)
    axes = sorted(each % len(shape) for each in ((axis,) if isinstance(axis, int) else axis))
    parameter = [shape[each] for each in axes]
    other = DTYPES[wider or dtype]
    return {
        "dy": rng.standard_normal(shape).astype(other),
        "x": (2 * rng.standard_normal(shape)).astype(DTYPES[dtype]),
        "alpha": np.asarray(0.7, other),
        "gamma": (1 + 0.5 * rng.standard_normal(parameter)).astype(other),
        "beta": rng.standard_normal(parameter).astype(other),
        "axis": axis,
    }


def results(
    dy: Any, x: Any, alpha: Any, gamma: Any, beta: Any, axis: Any, **options: Any
) -> dict[str, Any]:
    """Y and all gradients, by kernels."""
    assert ln.explain(ln.dynamic_tanh, x, alpha, gamma, beta, axis=axis).backend == "numpy"
    y = ln.dynamic_tanh(x, alpha, gamma, beta, axis=axis)
    of_gradients = (dy, x, alpha, gamma, beta)
    if options.get("need") != ():
        how = ln.explain(ln.dynamic_tanh_backward, *of_gradients, axis=axis, **options)
        assert how.backend == "numpy"
    gradients = ln.dynamic_tanh_backward(*of_gradients, axis=axis, **options)
    return {"y": y, **gradients._asdict()}


def same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same bits, dtypes and shapes."""
    for name, own in actual.items():
        right = expected[name]
        assert (own is None) == (right is None), name
        if own is not None:
            assert (own.dtype, own.shape) == (right.dtype, right.shape), name
            assert own.tobytes() == right.tobytes(), name


def check(arguments: dict[str, Any]) -> None:
    """Compare all results with those in long double."""
    actual, expected = results(**arguments), reference(**arguments)
    of_x, parameter = arguments["x"], arguments["gamma"]
    if parameter is None:
        parameter = arguments["beta"]
    for name, (exact, size) in expected.items():
        own = actual[name]
        if name == "dgamma" and arguments["gamma"] is None:
            assert own is None
            continue
        beta = arguments["beta"] if name == "dbeta" else None
        like = {"y": of_x, "dx": of_x, "dalpha": arguments["alpha"]}.get(
            name, parameter if beta is None else beta
        )
        assert own.dtype == (of_x if like is None else like).dtype, name
        assert own.shape == (exact.shape if name != "dbeta" or beta is None else beta.shape), name
        bound = 7 * EXACT(2) ** -FORMATS[WIDE[of_x.dtype.name].__name__][0] * size
        bound = bound + 0.5 * unit(exact, own.dtype.name)
        assert np.all(np.abs(own.astype(EXACT) - exact) <= bound), name


@every_dtype
@pytest.mark.parametrize("count", [1, 7, 8, 16, 50])
def test_what_is_not_finite(dtype: str, count: int) -> None:
    """In every lane, and beside numbers that it leaves alone."""
    smallest = float(np.asarray(1, f"u{np.dtype(DTYPES[dtype]).itemsize}").view(DTYPES[dtype]))
    odd = [np.inf, -np.inf, np.nan, 0.0, -0.0, smallest, -smallest, 1.0]
    x = np.resize(odd, (8, count * 8))[:, :count].astype(DTYPES[dtype])
    x = np.stack([np.roll(x[0], shift) for shift in range(8)])
    one = np.asarray(1, x.dtype)
    y = ln.dynamic_tanh(x, one)
    exact = np.tanh(x.astype(np.float64))
    places = 2 * float(ml_dtypes.finfo(x.dtype).eps)
    np.testing.assert_allclose(y.astype(np.float64), exact, rtol=places)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))
    dx = ln.dynamic_tanh_backward(np.ones_like(x), x, one, need=("dx",)).dx
    expected = slope_of_tanh(x.astype(np.float64))
    np.testing.assert_allclose(dx.astype(np.float64), expected, rtol=2 * places)
    np.testing.assert_array_equal(dx[np.isinf(x)], np.zeros_like(dx[np.isinf(x)]))


@pytest.mark.parametrize("length", [5, 40])
def test_what_lies_behind_the_last_element_is_no_part_of_a_sum(length: int) -> None:
    """There, gamma or alpha times nothing would be NaN if they are infinite."""
    x = np.ones((2, 3, length), np.float32)
    infinite = np.full(3, np.inf, np.float32)
    for alpha, gamma, expected in ((1.0, infinite, np.inf), (np.inf, np.ones_like(infinite), 0)):
        gradients = ln.dynamic_tanh_backward(
            x, x, np.asarray(alpha, np.float32), gamma, axis=1, need=("dalpha", "dgamma", "dbeta")
        )
        assert gradients.dalpha == expected
        np.testing.assert_allclose(gradients.dgamma, 2 * length * np.tanh(alpha), rtol=1e-6)
        np.testing.assert_array_equal(gradients.dbeta, 2 * length)


#: Shapes and axes, by how x is cut for them.
LAYOUTS: dict[str, tuple[tuple[int, ...], Any]] = {
    "rows": ((3, 5, 40), 1),
    "rows of several segments": ((2, 3, 9001), 1),
    "rows of whole vectors": ((5, 2, 4, 32), (1, 2)),
    "a row for each parameter": ((6, 50), 0),
    "one parameter": ((2, 1, 300), 1),
    "columns": ((70, 130), -1),
    "columns of several segments": ((3, 1100), -1),
    "columns of several blocks": ((2500, 70), -1),
    "columns of rows together": ((200, 40), -1),
    "columns of one row": ((4,), 0),
    "columns that share parameters": ((9, 3, 7), 1),
    "many columns that share parameters": ((9, 300, 3), 1),
    "columns of two axes": ((7, 3, 5), (1, 2)),
    "columns, one for all rows": ((300, 1), -1),
    "axes in between": ((4, 3, 5, 2, 3), (1, 2)),
    "axes apart": ((3, 40, 5), (0, 2)),
    "all axes": ((3, 4, 20), (0, 1, 2)),
    "leading axes": ((3, 4, 20), (0, 1)),
    "one element": ((1, 1), -1),
}


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout(layout: str, dtype: str) -> None:
    check(given(*LAYOUTS[layout], dtype))


@pytest.mark.parametrize("absent", [("gamma",), ("beta",), ("gamma", "beta")], ids="and".join)
@pytest.mark.parametrize("layout", ["rows", "columns of rows together", "axes apart"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_absent_parameters(layout: str, absent: tuple[str, ...], dtype: str) -> None:
    check({**given(*LAYOUTS[layout], dtype), **dict.fromkeys(absent)})


@pytest.mark.parametrize(
    ("dtype", "wider"),
    [("float16", "float32"), ("bfloat16", "float64"), ("float32", "float64")],
)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_wider_dtypes_beside_x(layout: str, dtype: str, wider: str) -> None:
    check(given(*LAYOUTS[layout], dtype, wider))


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [("rows", "float32"), ("columns", "float64"), ("columns that share parameters", "float32")],
)
def test_what_is_needed_alone_has_the_same_bits(layout: str, dtype: str) -> None:
    arguments = given(*LAYOUTS[layout], dtype)
    every = results(**arguments)
    names = ("dx", "dalpha", "dgamma", "dbeta")
    for need in ((), *((name,) for name in names), ("dx", "dbeta"), ("dalpha", "dgamma")):
        expected = {name: every[name] if name in need else None for name in names}
        same(results(**arguments, need=need), {"y": every["y"], **expected})


@every_dtype
@pytest.mark.parametrize("layout", ["rows of several segments", "columns of several blocks"])
def test_threads_stores_and_the_pool_change_no_bit(
    layout: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = given(*LAYOUTS[layout], dtype)
    set_thresholds(monkeypatch)
    expected = results(**arguments)
    for parallel, large in ((0, NEVER), (NEVER, 0), (0, 0)):
        set_thresholds(monkeypatch, parallel=parallel, non_temporal=large, pooled=large)
        registry.plans.clear()
        for _ in range(3):
            same(results(**arguments), expected)


@every_dtype
def test_an_element_has_its_bits_anywhere(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among any others, at any place, and however x is cut."""
    arguments = given((40, 90), -1, dtype)
    arguments["gamma"][:], arguments["beta"][:] = 1.5, -0.25
    expected = results(**arguments)
    shifted = np.random.default_rng(1).permutation(3600)
    for shape, axis in (((40, 90), -1), ((3600,), 0), ((1, 36, 100), 1), ((900, 4), -1)):
        parameter = np.zeros(shape[axis], DTYPES[dtype])
        others = {"gamma": parameter + parameter.dtype.type(1.5), "beta": parameter - 0.25}
        others = {name: each.astype(DTYPES[dtype]) for name, each in others.items()}
        moved = {name: arguments[name].ravel()[shifted].reshape(shape) for name in ("x", "dy")}
        for segment in (16, 4096):
            monkeypatch.setattr(tanh_dispatch, "SEGMENT", segment)
            monkeypatch.setattr(tanh_dispatch, "SEGMENT_OF_SUMS", segment)
            registry.plans.clear()
            own = results(**moved, alpha=arguments["alpha"], **others, axis=axis)
            for name in ("y", "dx"):
                right = expected[name].ravel()[shifted].reshape(shape)
                assert own[name].tobytes() == right.tobytes()
    for rows in (np.s_[:1], np.s_[7:8], np.s_[3:30]):
        own = results(**{**arguments, "x": arguments["x"][rows], "dy": arguments["dy"][rows]})
        same(
            {name: own[name] for name in ("y", "dx")},
            {n: each[rows] for n, each in expected.items() if n in ("y", "dx")},
        )


#: How else the same numbers may lie in memory.
LIES = rows_recorder.LAYOUTS | {"at odd multiples": lambda values: moved(values, values.itemsize)}


@pytest.mark.parametrize("lies", LIES)
@pytest.mark.parametrize("layout", ["rows", "columns", "axes apart"])
def test_whatever_lies_anyhow(layout: str, lies: str) -> None:
    arguments = given(*LAYOUTS[layout], "float32")
    axis = arguments.pop("axis")
    expected = results(**arguments, axis=axis)
    lie = LIES[lies]
    laid = {name: lie(a) if a.ndim else lie(a[None])[0, ...] for name, a in arguments.items()}
    before = {name: each.copy() for name, each in laid.items()}
    same(results(**laid, axis=axis), expected)
    for name, each in before.items():
        np.testing.assert_array_equal(laid[name], each)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (3, 0, 2)])
def test_of_nothing(shape: tuple[int, ...]) -> None:
    x, alpha, gamma = np.ones(shape), np.asarray(0.5), np.ones(shape[-1])
    assert ln.dynamic_tanh(x, alpha, gamma).shape == shape
    gradients = ln.dynamic_tanh_backward(x, x, alpha, gamma, gamma)
    assert gradients.dalpha == 0
    np.testing.assert_array_equal(gradients.dbeta, np.zeros(shape[-1]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 3, 512), (64, 70), (3, 3, 5000), (4096, 40)], ids=str)
def test_sums_of_which_nearly_nothing_is_left(shape: tuple[int, ...], dtype: str) -> None:
    """Terms that cancel exactly, beside small ones, in random order."""
    rng = np.random.default_rng(2)
    count, parameters = math.prod(shape) // shape[1], shape[1]
    large = 1e12 if dtype == "float64" else 1e6
    half = (large * rng.standard_normal((count // 4, parameters))).astype(DTYPES[dtype])
    small = rng.standard_normal((count - 2 * len(half), parameters)).astype(DTYPES[dtype])
    dy = rng.permuted(np.concatenate([half, -half, small]), axis=0)
    columns = dy.T.tolist()
    if len(shape) == 3:
        dy = np.moveaxis(dy.reshape(shape[0], shape[2], parameters), -1, 1).copy()
    gamma, one = np.ones(parameters, dy.dtype), np.asarray(1, dy.dtype)
    x = np.full_like(dy, 0.75)
    actual = ln.dynamic_tanh_backward(dy, x, one, gamma, gamma, axis=1)
    sums = np.asarray([math.fsum(column) for column in columns])
    epsilon, rest = float(np.finfo(dtype).eps), np.abs(small.astype(float)).sum(0)
    # What sums in float64 lose; of float64, those of blocks and those of lanes.
    one_block = dtype == "float64" and shape == (64, 70)
    lost = 0 if one_block else 2.0**-53 * large * count
    np.testing.assert_allclose(actual.dbeta, sums, rtol=2 * epsilon, atol=lost)
    # Products are rounded alike, so that those that cancel do so.
    t = float(ln.dynamic_tanh(x.ravel()[:1], one)[0])
    assert np.all(np.abs(actual.dgamma - t * sums) <= 4 * epsilon * rest + lost)
    exact = 0.75 * float(slope_of_tanh(EXACT(0.75))) * math.fsum(sums)
    bound = 8 * epsilon * rest.sum() + parameters * 2.0**-53 * large * count
    assert abs(float(actual.dalpha) - exact) <= bound


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dalpha_of_many_elements(dtype: str) -> None:
    """All of one sign and alike, so that rounding would go in one direction."""
    x = np.full((3, 1_000_001), 0.3, DTYPES[dtype])
    alpha = np.asarray(0.5, np.float64 if dtype == "float64" else np.float32)
    gradients = ln.dynamic_tanh_backward(np.ones_like(x), x, alpha, need=("dalpha",))
    one = ln.dynamic_tanh_backward(np.ones_like(x[:1, :1]), x[:1, :1], alpha, need=("dalpha",))
    np.testing.assert_allclose(
        float(gradients.dalpha), x.size * float(one.dalpha), rtol=float(np.finfo(alpha.dtype).eps)
    )


def test_without_parameters_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever axis they would have."""
    x = given((3, 4, 5), 0, "float32")["x"]
    alpha = np.asarray(2.0, np.float32)
    expected = ln.dynamic_tanh(x, alpha)
    monkeypatch.setattr(np, "permute_dims", lambda *_: pytest.fail("axes were permuted"))
    for axis in (0, 1, (0, 2), -1):
        np.testing.assert_array_equal(ln.dynamic_tanh(x, alpha, axis=axis), expected)
        gradients = ln.dynamic_tanh_backward(x, x, alpha, axis=axis, need=("dx", "dalpha"))
        assert gradients.dx.shape == x.shape
