"""Windows around each element: as exact as their dtype is, and the same however planes are cut."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from engine_arrays import NEVER, needs_mprotect, run_before_a_hole, same, set_thresholds
from ln_array_api_backends.numpy import windows_dispatch

import ln_array_api as ln
from ln_array_api import backend as registry

SIZES = [1, 3, 5, 9, 15, 101]
PLANES = [(2, 17, 23), (1, 1, 70), (2, 40, 1), (3, 5, 33), (1, 32, 16), (2, 2, 3), (1, 1, 1)]
FEW = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def window(shape: tuple[int, ...], place: tuple[int, ...], size: int) -> tuple[Any, ...]:
    """The indices of the window around a place of a plane."""
    reach = size // 2
    return tuple(slice(max(i - reach, 0), i + reach + 1) for i in place)


class Exact:
    """Results of planes (P, H, W), window by window, and what their errors are to be held to."""

    def __init__(self, x: np.ndarray, size: int, epsilon: float = 1e-5) -> None:
        x = x.astype(np.longdouble)
        self.size, self.n, self.deviation = size, np.zeros(x.shape, int), np.empty(x.shape, object)
        self.y, self.mean, self.rstd = (np.empty_like(x) for _ in range(3))
        self.farthest, self.highest = np.empty_like(x), np.empty_like(x)
        for p, *place in np.ndindex(*x.shape):
            here = (p, *place)
            values = x[p][window(x.shape[1:], tuple(place), size)] - x[here]  # all of it exact
            self.deviation[here] = values - values.mean()
            variance = (self.deviation[here] ** 2).mean()
            self.mean[here] = x[here] + values.mean()
            self.rstd[here] = 1 / np.sqrt(variance + np.longdouble(epsilon))
            self.y[here] = -values.mean() * self.rstd[here]
            self.n[here] = values.size
            self.farthest[here] = abs(self.deviation[here]).max() * self.rstd[here]
            self.highest[here] = abs(values + x[here]).max()

    def check(self, y: Any, mean: Any, rstd: Any) -> None:
        """Y to 5 ulp of what is farthest in its window, the mean to 2 of the highest, rstd to 5."""
        for name, own, right, scale, ulps in (
            ("y", y, self.y, self.farthest, 5),
            ("mean", mean, self.mean, self.highest, 2),
            ("rstd", rstd, self.rstd, self.rstd, 5),
        ):
            unit = np.spacing(np.maximum(scale, np.finfo(own.dtype).tiny).astype(own.dtype))
            error = abs(own - right) / unit
            assert error.max() <= ulps, (name, error.max())

    def gradient(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dx, and the sum of the magnitudes of its terms."""
        dy = dy.astype(np.longdouble)
        dx, scale = dy * self.rstd, abs(dy * self.rstd)
        for p, *place in np.ndindex(*dy.shape):
            here, near = (p, *place), window(dy.shape[1:], tuple(place), self.size)
            share = dy[here] * self.rstd[here] / self.n[here]
            of_variance = self.y[here] * self.rstd[here] * self.deviation[here]
            dx[p][near] -= share * (1 + of_variance)
            scale[p][near] += abs(share) * (1 + abs(of_variance))
        return dx, scale


def check(x: np.ndarray, size: int, epsilon: float = 1e-5, seed: int = 0) -> None:
    """All results for planes in float32 or float64, and the gradient to 8 ulp of its terms."""
    exact = Exact(x, size, epsilon)
    y, mean, rstd = ln.local_contrast_norm_forward(x, size=size, epsilon=epsilon)
    exact.check(y, mean, rstd)
    alone = ln.local_contrast_norm(x, size=size, epsilon=epsilon)
    assert alone.tobytes() == y.tobytes()
    dy = np.random.default_rng(seed).standard_normal(x.shape).astype(x.dtype)
    dx = ln.local_contrast_norm_backward(dy, x, mean, rstd, size=size).dx
    right, scale = exact.gradient(dy)
    error = abs(dx - right) / np.spacing(np.maximum(scale, np.finfo(x.dtype).tiny).astype(x.dtype))
    assert error.max() <= 8, error.max()


def planes(shape: tuple[int, ...], dtype: Any = np.float32, mean: float = 0.0) -> np.ndarray:
    return (mean + np.random.default_rng([*shape]).standard_normal(shape)).astype(dtype)


def results(x: np.ndarray, dy: np.ndarray, **options: Any) -> list[np.ndarray]:
    """All results and the gradient."""
    forward = ln.local_contrast_norm_forward(x, **options)
    options.pop("epsilon", None)
    return [*forward, ln.local_contrast_norm_backward(dy, x, *forward[1:], **options).dx]


def test_these_kernels_run() -> None:
    x = np.ones((2, 3, 4), np.float32)
    functions: list[tuple[Any, int, str]] = [
        (ln.local_contrast_norm, 1, "windows_forward"),
        (ln.local_contrast_norm_forward, 1, "windows_forward"),
        (ln.local_contrast_norm_backward, 4, "windows_backward"),
    ]
    for function, count, primitive in functions:
        given = (x,) * count
        explanation = ln.explain(function, *given, size=3)
        assert explanation[1:6] == ("numpy", primitive, (2, 3, 4), "float32", "numpy")
        assert explanation.reason == "compiled by Numba for float32"
        assert ln.explain(function, *given, spatial_axes=1).shape == (8, 1, 3)
        by_three = ln.explain(function, *given, spatial_axes=(0, 1, 2))
        assert by_three[2:4] == ("-", x.shape)
        assert by_three.reason.endswith("windows extend along more than two axes")
        with ln.use_backend("generic"):
            assert ln.explain(function, *given).primitive == "-"
        with pytest.raises(TypeError, match=f"^{function.__name__}: "):
            ln.explain(function, *(x.astype(np.int32),) * count)
        with pytest.raises(ValueError, match="size must be odd"):
            ln.explain(function, *given, size=4)
    with pytest.raises(ValueError, match="epsilon"):
        ln.explain(ln.local_contrast_norm, x, epsilon=-1.0)
    with pytest.raises(ValueError, match="need"):
        ln.explain(ln.local_contrast_norm_backward, x, x, x, x, need=("dz",))


@pytest.mark.parametrize("mean", [0, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", PLANES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_all_results(size: int, shape: tuple[int, int, int], dtype: Any, mean: float) -> None:
    """For sizes that are more than a plane has, and widths that are no multiple of a vector."""
    check(planes(shape, dtype, mean), size)


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("step", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("size", [3, 9])
def test_an_edge_between_levels(size: int, step: float, turn: int) -> None:
    x = planes((1, 20, 20))
    x[:, :, 9:] += np.float32(step)
    check(np.rot90(x, turn, (1, 2)).copy(), size)


@pytest.mark.parametrize("size", [3, 5, 9])
@pytest.mark.parametrize("beyond", [1e6, 1e12, np.inf, np.nan], ids=str)
def test_what_is_outside_of_a_window_changes_no_bit(beyond: float, size: int) -> None:
    """Of a gradient neither: an element is in windows that reach twice as far."""
    x, dy = planes((2, 30, 40)), planes((2, 30, 40), mean=1)
    expected = results(x, dy, size=size)
    changed = x.copy()
    changed[1, 20:, 25:] = beyond * (1 + abs(x[1, 20:, 25:]))
    for number, own in enumerate(results(changed, dy, size=size)):
        reach = size // 2 * (2 if number == 3 else 1)
        kept = np.ones(x.shape, bool)
        kept[1, 20 - reach :, 25 - reach :] = False
        assert own[kept].tobytes() == expected[number][kept].tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("place", [(0, 0), (0, 11), (8, 17), (19, 33), (7, 33)], ids=str)
@pytest.mark.parametrize("size", [1, 5, 9])
def test_what_is_not_finite_spoils_its_own_windows(
    size: int, place: tuple[int, int], bad: float
) -> None:
    x, dy = planes((3, 20, 34)), planes((3, 20, 34), mean=1)
    clean = results(x, dy, size=size)
    x[(1, *place)] = bad
    for number, (own, before) in enumerate(zip(results(x, dy, size=size), clean, strict=True)):
        spoilt = np.zeros(x.shape, bool)
        spoilt[1][window(x.shape[1:], place, 2 * size - 1 if number == 3 else size)] = True
        if number in (0, 3):
            assert np.isnan(own[spoilt]).all()
        elif number == 1:
            assert not np.isfinite(own[spoilt]).any()
        else:
            assert (np.isnan(own[spoilt]) | (own[spoilt] == 0)).all()
        assert own[~spoilt].tobytes() == before[~spoilt].tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_what_is_not_finite_in_dy_spoils_its_own_window(bad: float) -> None:
    x, dy = planes((2, 20, 34)), planes((2, 20, 34), mean=1)
    clean = results(x, dy, size=5)[3]
    dy[1, 7, 2] = bad
    own, spoilt = results(x, dy, size=5)[3], np.zeros(x.shape, bool)
    spoilt[1, 5:10, :5] = True
    assert np.isnan(own[spoilt]).all()
    assert own[~spoilt].tobytes() == clean[~spoilt].tobytes()


MAGNITUDES = [(np.float32, m) for m in (1e-37, 1e-30, 1e-20, 1e15, 1e30, 1e37)]
MAGNITUDES += [(np.float64, m) for m in (1e-200, 1e-150, 1e150, 1e200)]


@pytest.mark.parametrize(("dtype", "magnitude"), MAGNITUDES, ids=str)
@pytest.mark.parametrize("size", [5, 15])
def test_magnitudes(dtype: Any, magnitude: float, size: int) -> None:
    x = magnitude * planes((2, 14, 19), np.float64)
    check(x.astype(dtype), size, epsilon=0)


def test_planes_of_other_magnitudes_are_scaled_by_themselves() -> None:
    x = planes((4, 12, 20))
    factors = np.asarray([1e-30, 1, 1e30, 1e-37]).reshape(4, 1, 1)
    check((factors * x).astype(np.float32), 5, epsilon=0)


@pytest.mark.parametrize("size", [1, 3, 15])
@pytest.mark.parametrize("value", [0.0, 1 / 3, -1e30, 1e-30, 3e38])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_constant_windows_are_exact(dtype: Any, value: float, size: int) -> None:
    largest = float(np.finfo(dtype).max)
    x = np.full((2, 18, 20), min(max(value, -largest), largest), dtype)
    y, mean, rstd = ln.local_contrast_norm_forward(x, size=size)
    np.testing.assert_array_equal(y, 0 * x)
    np.testing.assert_array_equal(mean, x.astype(mean.dtype))
    np.testing.assert_allclose(rstd, 1e5**0.5, rtol=1e-6)
    dy = np.ones_like(x)
    assert np.isfinite(ln.local_contrast_norm_backward(dy, x, mean, rstd, size=size).dx).all()
    y, mean, rstd = ln.local_contrast_norm_forward(x, size=size, epsilon=0)
    assert np.isnan(y).all()
    assert np.isposinf(rstd).all()


@pytest.mark.parametrize("epsilon", [1e-45, 1e-37, 1e4, 1e37])
@pytest.mark.parametrize("value", [0.0, 1e20, 3e38])
def test_epsilon_alone_makes_rstd_of_constant_windows(value: float, epsilon: float) -> None:
    x = np.full((1, 6, 20), value, np.float32)
    y, _, rstd = ln.local_contrast_norm_forward(x, epsilon=epsilon)
    np.testing.assert_array_equal(y, 0 * x)
    np.testing.assert_allclose(rstd, epsilon**-0.5, rtol=3e-7)


@pytest.mark.parametrize("dtype", FEW)
@pytest.mark.parametrize("size", [1, 5, 9])
def test_16_bits_are_rounded_once(dtype: str, size: int) -> None:
    x, dy = (planes((3, 13, 27), mean=mean).astype(FEW[dtype]) for mean in (3, 0))
    own = results(x, dy, size=size)
    expected = results(x.astype(np.float32), dy.astype(np.float32), size=size)
    same(own, [expected[0].astype(x.dtype), *expected[1:3], expected[3].astype(x.dtype)])


@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_dy_of_a_wider_dtype(wide: Any) -> None:
    x, dy = planes((2, 12, 20)).astype(np.float16), planes((2, 12, 20), mean=1).astype(np.float16)
    same(results(x, dy.astype(wide), size=5), results(x, dy, size=5))


LARGE = [((5, 37, 90), 3), ((3, 50, 70), 9), ((2, 61, 45), 15), ((6, 1, 500), 9), ((2, 40, 30), 41)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "size"), LARGE, ids=str)
def test_tiles_threads_and_the_pool_change_no_bit(
    shape: tuple[int, int, int], size: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, dy = planes(shape, mean=3).astype(dtype), planes(shape, mean=1).astype(dtype)
    set_thresholds(monkeypatch)
    monkeypatch.setattr(windows_dispatch, "WORKSPACE", 1 << 40)
    expected = results(x, dy, size=size)
    for workspace, columns in ((1, 1), (1, 16), (1 << 15, 48), (1 << 40, 1 << 20)):
        monkeypatch.setattr(windows_dispatch, "WORKSPACE", workspace)
        monkeypatch.setattr(windows_dispatch, "COLUMNS", columns)
        for threshold in (0, NEVER):
            set_thresholds(monkeypatch, parallel=threshold, pooled=threshold)
            registry.plans.clear()
            same(results(x, dy, size=size), expected)


def test_planes_are_cut_where_they_are_large() -> None:
    shape = (1, 700, 900)
    down, across = windows_dispatch.axes_of(shape, 9, 4, 5, 0)
    assert down.tiles > 4
    assert across.tiles > 1
    x = planes(shape, np.float64, 3)
    dy = planes(shape, np.float64, 1)
    with ln.use_backend("generic"):
        expected = results(x, dy)
    for own, right in zip(results(x, dy), expected, strict=True):
        np.testing.assert_allclose(own, right, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_planes_do_not_depend_on_each_other(dtype: Any) -> None:
    x, dy = planes((7, 21, 34), dtype), planes((7, 21, 34), dtype, 1)
    x[::2] *= 1e-30
    x[3] *= 1e30
    expected = results(x, dy, size=7, epsilon=0)
    for some in (np.s_[:1], np.s_[3:4], np.s_[2:6], np.s_[::-1]):
        own = results(x[some].copy(), dy[some].copy(), size=7, epsilon=0)
        same(own, [each[some].copy() for each in expected])


def test_a_plane_may_lie_anyhow() -> None:
    x, dy = planes((2, 3, 12, 20)), planes((2, 3, 12, 20), mean=1)
    expected = results(x, dy, size=5)
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    views = [
        np.asfortranarray(x),
        np.repeat(x, 2, axis=3)[..., ::2],
        x[..., ::-1].copy()[..., ::-1],
        x.astype(">f4"),
        unaligned,
    ]
    for view in views:
        before = view.copy()
        same(results(view, dy, size=5), expected)
        np.testing.assert_array_equal(view, before)
    forward = ln.local_contrast_norm_forward(x, size=5)
    for lies in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2]):
        saved = [lies(each) for each in forward[1:]]
        dx = ln.local_contrast_norm_backward(lies(dy), x, *saved, size=5).dx
        assert dx.tobytes() == expected[3].tobytes()


@pytest.mark.parametrize("axes", [(1, 2), (-3, 0), (3, 1), (0, 3)], ids=str)
def test_spatial_axes_in_any_place(axes: tuple[int, int]) -> None:
    x, dy = planes((6, 9, 12, 20)), planes((6, 9, 12, 20), mean=1)
    own = results(x, dy, size=5, spatial_axes=axes)
    moved = [np.moveaxis(each, sorted(axis % 4 for axis in axes), (2, 3)) for each in (x, dy)]
    for each, right in zip(own, results(*moved, size=5), strict=True):
        back = np.moveaxis(right, (2, 3), sorted(axis % 4 for axis in axes))
        np.testing.assert_array_equal(each, back)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_spatial_axis(axis: int) -> None:
    x, dy = planes((11, 12, 20), mean=5), planes((11, 12, 20), mean=1)
    own = results(x, dy, size=9, spatial_axes=axis)
    rows = [np.moveaxis(each, axis, -1)[..., None, :] for each in (x, dy)]
    for each, right in zip(own, results(*rows, size=9), strict=True):
        np.testing.assert_array_equal(np.moveaxis(each, axis, -1)[..., None, :], right)
    plane = np.moveaxis(x, axis, -1).reshape(-1, 1, x.shape[axis])
    Exact(plane[:9], 9).check(
        *(np.moveaxis(each, axis, -1).reshape(plane.shape)[:9] for each in own[:3])
    )


AT_THE_END = """
import ln_array_api as ln

x, dy = (before_a_hole(np.float32)[-17 * 37:].reshape(17, 37) for _ in range(2))
x[...] = np.random.default_rng(0).standard_normal(x.shape)
for size in (1, 3, 9, 99):
    y, mean, rstd = ln.local_contrast_norm_forward(x, size=size)
    ln.local_contrast_norm_backward(dy, x, mean, rstd, size=size)
print("done", flush=True)
"""


@needs_mprotect
def test_nothing_is_read_behind_an_array() -> None:
    result = run_before_a_hole(AT_THE_END)
    assert (result.stdout, result.returncode) == ("done\n", 0), result.stderr
