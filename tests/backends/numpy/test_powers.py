"""Power norm's kernels: ends of the range, exponents, and the same bits however a row is run."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from engine_arrays import DTYPES, SETTINGS, moved, set_thresholds

import ln_array_api as ln
from ln_array_api.backend import plans

#: Of each dtype, exponents that its kernels take.
EXPONENTS = {
    "float32": (0.5, 1, 0.3, 0.01, 0.999, 1.5, 3, 3.1, 17.3, 256),
    "float64": (0.5, 1),
    "float16": (0.5, 1, 0.3, 2.0, 30.0),
    "bfloat16": (0.5, 1, 0.3, 2.0, 30.0),
}
CALLS = [(dtype, each) for dtype, exponents in EXPONENTS.items() for each in exponents]
SHAPES = [(3, 1), (5, 7), (33, 16), (2, 35), (20, 56), (1, 4099), (7, 1000)]


class Arrays:
    """X and dy of a call."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        rng = np.random.default_rng([*shape])
        self.x = rng.standard_normal(shape).astype(DTYPES[dtype])
        self.dy = rng.standard_normal(shape).astype(DTYPES[dtype])

    def results(self, alpha: float, **options: Any) -> list[np.ndarray]:
        y, norm = ln.power_norm_forward(self.x, alpha=alpha, **options)
        options.pop("epsilon", None)
        return [y, norm, ln.power_norm_backward(self.dy, self.x, norm, alpha=alpha, **options).dx]


def accumulation(dtype: Any) -> Any:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def units(actual: np.ndarray, expected: np.ndarray, scale: np.ndarray | None = None) -> float:
    """The largest error in ulp of the accumulation dtype at a scale, after one last rounding."""
    wide, single = actual.astype(np.longdouble), accumulation(actual.dtype)
    size = np.abs(expected if scale is None else np.maximum(scale, np.abs(expected)))
    limit = np.maximum(size, np.longdouble(np.finfo(single).smallest_normal))
    ulp = np.ldexp(np.longdouble(np.finfo(single).eps), np.frexp(limit)[1] - 1)
    error = np.abs(wide - expected)
    if actual.dtype.itemsize == 2:
        info = ml_dtypes.finfo(actual.dtype)
        least = np.maximum(np.abs(expected), np.longdouble(info.smallest_normal))
        error -= np.ldexp(np.longdouble(info.eps), np.frexp(least)[1] - 1) * 0.501
    return float(np.max(np.where(np.isnan(error), np.inf, error) / ulp))


def right(
    arrays: Arrays, alpha: float, epsilon: float = 1e-12
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Y, norm, dx and the largest term of this in each row, of two axes without zeros."""
    x, dy = (each.astype(np.longdouble) for each in (arrays.x, arrays.dy))
    with np.errstate(divide="ignore", over="ignore"):
        # Logarithms, since powers may be beyond longdouble.
        z = 2 * np.longdouble(alpha) * np.log2(np.abs(x))
        norm = np.logaddexp2.reduce(z, axis=-1, keepdims=True)
        norm = np.logaddexp2(norm, np.log2(np.longdouble(epsilon))) / 2
        y = np.sign(x) * np.exp2(z / 2 - norm)
        norm = np.exp2(norm)
    slope = np.longdouble(alpha) * np.abs(y) / np.abs(x)
    dx = (dy - y * (dy * y).sum(-1, keepdims=True)) * slope
    terms = (np.abs(dy) + np.abs(y) * np.abs(dy * y).sum(-1, keepdims=True)) * slope
    return y, norm, dx, terms.max(-1, keepdims=True)


def check(arrays: Arrays, alpha: float, epsilon: float = 1e-12) -> None:
    """Elements of y and norms are right themselves, and elements of dx beside their row's terms."""
    y, norm, dx = arrays.results(alpha, epsilon=epsilon)
    of_y, of_norm, of_dx, terms = right(arrays, alpha, epsilon)
    assert units(y, of_y) <= 4
    largest = np.finfo(norm.dtype).max
    fits = of_norm < largest
    if fits.any():
        assert units(norm[fits], of_norm[fits]) <= 2
    assert np.isinf(norm[~fits]).all()
    fits = terms[:, 0] < float(ml_dtypes.finfo(dx.dtype).max) / 2
    if fits.any():
        assert units(dx[fits], of_dx[fits], np.broadcast_to(terms, dx.shape)[fits]) <= 8


def bits(arrays: list[Any]) -> list[tuple[Any, ...]]:
    return [(each.dtype, each.shape, each.tobytes()) for each in arrays]


@pytest.mark.parametrize(("dtype", "alpha"), CALLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_right(shape: tuple[int, int], dtype: str, alpha: float) -> None:
    check(Arrays(shape, dtype), alpha)


@pytest.mark.parametrize(("dtype", "alpha"), [each for each in CALLS if each[1] != 1])
@pytest.mark.parametrize("power", [-0.98, -0.5, 0.5, 0.98])
@pytest.mark.parametrize("epsilon", [0.0, 1e-12])
def test_every_magnitude(dtype: str, alpha: float, power: float, epsilon: float) -> None:
    """Sums and powers are beyond the dtype where results are not; x at the low end is denormal."""
    arrays = Arrays((5, 40), dtype)
    info = ml_dtypes.finfo(DTYPES[dtype])
    least, most = float(info.smallest_subnormal), float(info.max)
    end = 30 * least if power == -0.98 else most**power
    sizes = np.clip(np.abs(arrays.x.astype(np.longdouble)) * end, least, most)
    arrays.x = np.copysign(sizes, arrays.x.astype(np.longdouble)).astype(DTYPES[dtype])
    check(arrays, alpha, epsilon)


def test_sums_of_float64_beyond_float64() -> None:
    """Of each such row alone, among rows of other magnitudes, whatever their number."""
    arrays = Arrays((11, 300), "float64")
    arrays.x[[1, 2, 9]] *= 4e307
    arrays.x[4] *= 1e-320
    arrays.x[4, arrays.x[4] == 0] = 5e-324
    arrays.dy[4] *= 1e-10
    arrays.dy[2] *= 1e100
    check(arrays, 0.5)
    check(arrays, 0.5, 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.5, 0.3])
def test_one_outlier(dtype: str, alpha: float) -> None:
    """All others are rounded off beside it in a sum of the dtype, in one direction."""
    arrays = Arrays((2, 5000), dtype)
    arrays.x = np.full((2, 5000), 1.1, DTYPES[dtype])
    arrays.x[0, 1], arrays.x[1, 2500] = -3e4, 6e4
    if dtype != "float64" or alpha == 0.5:
        check(arrays, alpha)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_long_row_of_what_is_alike(dtype: str) -> None:
    arrays = Arrays((1, 2**20 + 3), dtype)
    arrays.x = np.where(arrays.x < 0, -0.7, 0.7).astype(dtype)
    check(arrays, 0.5)
    if dtype == "float32":
        check(arrays, 0.3)


@pytest.mark.parametrize(("dtype", "alpha"), CALLS)
def test_zeros(dtype: str, alpha: float) -> None:
    """Their signs are those of the generic kernel; their gradients are 0, unless alpha is 1."""
    arrays = Arrays((3, 21), dtype)
    arrays.x[0, [2, 20]], arrays.x[0, 5], arrays.x[1] = 0.0, -0.0, 0.0
    y, norm, dx = arrays.results(alpha)
    with ln.use_backend("generic"):
        expected = ln.power_norm(arrays.x, alpha=alpha)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(expected))
    np.testing.assert_array_equal(y[arrays.x == 0], 0)
    np.testing.assert_allclose(norm[1], 1e-6, rtol=1e-6)
    if alpha != 1:
        np.testing.assert_array_equal(dx[arrays.x == 0], 0)
    for epsilon in (1e-60, 1e-100):
        np.testing.assert_array_equal(ln.power_norm(arrays.x, alpha=alpha, epsilon=epsilon)[1], 0)
    spoiled = ln.power_norm(arrays.x, alpha=alpha, epsilon=0)
    assert np.isnan(spoiled[1]).all()
    assert np.isfinite(spoiled[[0, 2]]).all()


@pytest.mark.parametrize(("dtype", "alpha"), CALLS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_its_own_row(dtype: str, alpha: float, bad: float) -> None:
    arrays = Arrays((19, 21), dtype)
    clean = arrays.results(alpha)
    arrays.x[4, 20] = bad
    spoiled = arrays.results(alpha)
    assert np.isnan(spoiled[0][4, 20])
    assert np.isnan(spoiled[2][4, 20])
    assert not np.isfinite(spoiled[1][4])
    others = np.arange(19) != 4
    assert bits([each[others] for each in spoiled]) == bits([each[others] for each in clean])


@pytest.mark.parametrize("alpha", [0.5, 1, 0.3])
def test_dy_that_is_not_finite_spoils_its_own_row(alpha: float) -> None:
    arrays = Arrays((5, 33), "float32")
    clean = arrays.results(alpha)[2]
    arrays.dy[2, 7] = math.nan
    dx = arrays.results(alpha)[2]
    assert np.isnan(dx[2]).all()
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(dx[others], clean[others])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_small_beside_large(dtype: str) -> None:
    """No product on the way leaves the range of the dtype where the gradient does not."""
    info = np.finfo(dtype)
    tiny, huge = float(info.smallest_normal), float(info.max) / 4
    arrays = Arrays((4, 2), dtype)
    arrays.x = np.asarray([[tiny, huge], [-tiny, huge], [tiny, tiny], [huge, -huge]], dtype)
    small, large = huge**-0.6, huge**0.6
    arrays.dy = np.asarray([[small, 0.0], [large, 0], [tiny, -tiny], [large, 0.0]], dtype)
    dx = arrays.results(0.5, epsilon=0.0)[2]
    _, _, expected, terms = right(arrays, 0.5, 0.0)
    fits = np.broadcast_to(terms < info.max / 2, dx.shape)
    assert fits.all()
    # A row's larger element has a gradient that is far smaller.
    assert units(dx[:, 0], expected[:, 0]) <= 8


@pytest.mark.parametrize(("alpha", "magnitude"), [(3.0, 1e20), (3.0, 1e-20), (20.0, 1e10)])
def test_a_norm_out_of_range_is_that_of_powers(alpha: float, magnitude: float) -> None:
    arrays = Arrays((3, 21), "float32")
    arrays.x *= np.float32(magnitude)
    norm = arrays.results(alpha, epsilon=0.0)[1]
    assert set(np.unique(norm).tolist()) <= {0.0, math.inf}
    check(arrays, alpha, 0.0)


@pytest.mark.parametrize("epsilon", [0.0, 1e-300, 1e-12, 1.0, 1e30])
@pytest.mark.parametrize("alpha", [0.5, 0.3, 3.0, 30.0])
def test_every_epsilon(alpha: float, epsilon: float) -> None:
    for magnitude in (1e-30, 1e-5, 1.0):
        arrays = Arrays((3, 40), "float32")
        arrays.x *= np.float32(magnitude)
        y = ln.power_norm(arrays.x, alpha=alpha, epsilon=epsilon)
        assert units(y, right(arrays, alpha, epsilon)[0]) <= 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.5, 1, 0.3])
def test_any_layout(dtype: str, alpha: float) -> None:
    arrays = Arrays((4, 5, 6, 7), dtype)
    plain, order = arrays.results(alpha, axis=(1, 3)), (0, 2, 1, 3)
    moved = Arrays((4, 5, 6, 7), dtype)
    moved.x, moved.dy = (
        np.ascontiguousarray(each.transpose(order)) for each in (arrays.x, arrays.dy)
    )
    for own, each in zip(moved.results(alpha, axis=(2, 3)), plain, strict=True):
        np.testing.assert_array_equal(own.transpose(order), each)
    given = {
        "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
        "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
        "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
        "not aligned": lambda a: (
            np.frombuffer(b"0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)
        ),
    }
    for name, change in given.items():
        if name == "other byte order" and dtype == "bfloat16":
            continue  # which has none
        other = Arrays((4, 5, 6, 7), dtype)
        other.x, other.dy = change(arrays.x), change(arrays.dy)
        for own, each in zip(other.results(alpha, axis=(1, 3)), plain, strict=True):
            assert own.dtype == each.dtype
            np.testing.assert_array_equal(own, each, err_msg=name)


def test_wider_gradients_and_norms() -> None:
    """As if they had been of the accumulation dtype."""
    for alpha in (0.5, 1, 0.3):
        arrays = Arrays((9, 37), "float16")
        y, norm, dx = arrays.results(alpha)
        for dy, given in ((np.float32, np.float64), (np.float64, np.float32)):
            own = ln.power_norm_backward(
                arrays.dy.astype(dy), arrays.x, norm.astype(given), alpha=alpha
            )
            assert bits([own.dx]) == bits([dx])
        assert y.dtype == dx.dtype == np.float16
        assert norm.dtype == np.float32


@pytest.mark.parametrize(("dtype", "alpha"), CALLS)
@pytest.mark.parametrize("n", [1, 16, 35, 1000])
def test_a_row_has_its_bits_in_any_company(dtype: str, alpha: float, n: int) -> None:
    arrays = Arrays((21, n), dtype)
    together = arrays.results(alpha)
    for start, stop in ((0, 1), (20, 21), (3, 12), (1, 21)):
        some = Arrays((21, n), dtype)
        some.x, some.dy = arrays.x[start:stop], arrays.dy[start:stop]
        assert bits(some.results(alpha)) == bits([each[start:stop] for each in together])


@pytest.mark.parametrize(("dtype", "alpha"), CALLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_threshold_changes_a_bit(
    shape: tuple[int, int], dtype: str, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several threads, however many parts, streaming stores and pooled memory."""
    arrays = Arrays(shape, dtype)
    expected = bits(arrays.results(alpha))
    for settings in SETTINGS:
        set_thresholds(monkeypatch, **settings)
        plans.clear()
        assert bits(arrays.results(alpha)) == expected


@pytest.mark.parametrize("alpha", [0.5, 1, 0.3])
@pytest.mark.parametrize("shape", [(7, 5), (3, 1000)], ids=str)
def test_alignment_changes_no_bit(shape: tuple[int, int], alpha: float) -> None:
    arrays = Arrays(shape, "float32")
    expected = bits(arrays.results(alpha))
    for offset in (4, 36):
        for name in ("x", "dy"):
            setattr(arrays, name, moved(getattr(arrays, name), offset))
        assert bits(arrays.results(alpha)) == expected


def test_explain_tells_which_exponents_have_kernels() -> None:
    def told(dtype: str, alpha: float) -> str:
        explanation = ln.explain(ln.power_norm, np.ones((2, 3), DTYPES[dtype]), alpha=alpha)
        assert (explanation.backend == "numpy") == (explanation.primitive != "-")
        return explanation.primitive

    for dtype, alpha in CALLS:
        assert told(dtype, alpha) == "powers_forward"
    assert told("float64", 0.3) == "rows_forward"
    assert told("float64", 2) == told("float32", 257.0) == "-"
