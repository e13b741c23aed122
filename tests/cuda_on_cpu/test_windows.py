"""The CUDA kernels over windows: the right numbers, and the same bits in every order of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from dtypes import DTYPES
from window_cases import TOLERANCES, Case, an_edge, an_outlier, far_from_zero, normal, window_at

import ln_array_api as ln

#: A sanitizer finds faults in any order.
ORDERS = cupy_on_cpu.ORDERS[: 1 if cupy_on_cpu.SANITIZE else None]
#: Several tiles, whose borders are inside of windows; windows that go through planes, beyond all
#: borders or not; few rows, few columns, single elements.
PLANES = [
    ((2, 40, 50), 1),
    ((2, 33, 70), 3),
    ((1, 35, 37), 5),
    ((2, 40, 50), 9),
    ((1, 64, 36), 31),
    ((1, 60, 70), 101),
    ((2, 30, 41), 59),
    ((3, 7, 5), 101),
    ((2, 1, 300), 9),
    ((2, 300, 1), 9),
    ((1, 1, 2100), 2001),
    ((2, 2, 150), 31),
    ((4, 3, 3), 3),
    ((3, 1, 1), 9),
]
#: Launches of a call forward and backward, where windows go through planes.
PLANE_LAUNCHES = 3, 5


@pytest.fixture(autouse=True)
def _order() -> Iterator[None]:
    yield
    cupy_on_cpu.set_order("forward")


def ids(value: Any) -> str:
    return getattr(value, "__name__", str(value))


def bits(results: list[np.ndarray]) -> list[bytes]:
    return [each.tobytes() for each in results]


def test_these_kernels_run() -> None:
    x: Any = cupy.ones((2, 3, 4), "float32")
    functions: list[tuple[Any, int, str]] = [
        (ln.local_contrast_norm, 1, "windows_forward"),
        (ln.local_contrast_norm_forward, 1, "windows_forward"),
        (ln.local_contrast_norm_backward, 4, "windows_backward"),
    ]
    for function, count, primitive in functions:
        explanation = ln.explain(function, *(x,) * count, size=3)
        assert explanation[1:6] == ("cupy", primitive, (2, 3, 4), "float32", "cupy")
        assert explanation.reason == "CUDA C for float32"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "size"), PLANES, ids=str)
def test_all_results(shape: tuple[int, int, int], size: int, dtype: str) -> None:
    Case(shape, size, dtype).check()


@pytest.mark.parametrize("values", [far_from_zero, an_outlier, an_edge], ids=ids)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "size"), PLANES[:8], ids=str)
def test_values_that_lose_digits(
    shape: tuple[int, int, int], size: int, dtype: str, values: Any
) -> None:
    Case(shape, size, dtype, values=values).check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "size"), PLANES, ids=str)
def test_the_order_of_threads_changes_no_bit(
    shape: tuple[int, int, int], size: int, dtype: str
) -> None:
    case, results = Case(shape, size, dtype, values=an_edge), []
    for order in ORDERS:
        cupy_on_cpu.set_order(order)
        results.append(bits(case.run()))
    assert all(each == results[0] for each in results)


MAGNITUDES = [("float32", each) for each in (1e-37, 1e-30, 1e-20, 1e15, 1e30, 1e37)]
MAGNITUDES += [("float64", each) for each in (1e-200, 1e-150, 1e150, 1e200)]


@pytest.mark.parametrize(("dtype", "magnitude"), MAGNITUDES)
@pytest.mark.parametrize(("shape", "size"), [((2, 20, 37), 5), ((1, 45, 37), 89)], ids=str)
def test_magnitudes(shape: tuple[int, int, int], size: int, dtype: str, magnitude: float) -> None:
    Case(shape, size, dtype, magnitude=magnitude, epsilon=0).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1 / 3, -1e30, 1e-30, 3e38])
@pytest.mark.parametrize("size", [1, 5, 89])
def test_constant_planes_are_exact(size: int, value: float, dtype: str) -> None:
    def constant(shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, min(max(value, -6e4), 6e4) if dtype == "float16" else value)

    case = Case((1, 45, 37), size, dtype, values=constant)
    y, mean, rstd, dx = case.run()
    np.testing.assert_array_equal(y, 0 * case.x)
    np.testing.assert_array_equal(mean, case.x.astype(mean.dtype))
    np.testing.assert_allclose(rstd, 1e5**0.5, rtol=1e-6)
    assert np.isfinite(dx.astype(float)).all()
    case.epsilon = 0
    y, _, rstd, _ = case.run()
    assert np.isnan(y.astype(float)).all()
    assert np.isposinf(rstd).all()


@pytest.mark.parametrize("size", [1, 101])
def test_dx_of_single_elements_is_0(size: int) -> None:
    shape = (50, 1, 1) if size > 1 else (1, 20, 30)
    for dtype in DTYPES:
        assert not Case(shape, size, dtype).run()[3].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("place", [(0, 0), (0, 11), (17, 31), (39, 40), (7, 33)], ids=str)
@pytest.mark.parametrize("size", [1, 5, 9, 29])
def test_what_is_not_finite_spoils_its_own_windows(
    size: int, place: tuple[int, int], bad: float
) -> None:
    """No other bit changes: of a gradient, in windows that reach twice as far."""
    case = Case((3, 40, 41), size)
    clean = case.run()
    at = (1, *place)
    case.x[at] = bad
    for name, result, before in zip(TOLERANCES, case.run(), clean, strict=True):
        spoilt = np.zeros(case.shape, bool)
        spoilt[window_at(case.shape, at, 2 * size - 1 if name == "dx" else size)] = True
        if name == "rstd":
            assert (np.isnan(result[spoilt]) | (result[spoilt] == 0)).all()
        elif name == "mean":
            assert not np.isfinite(result[spoilt]).any()
        else:
            assert np.isnan(result[spoilt]).all()
        assert result[~spoilt].tobytes() == before[~spoilt].tobytes()


@pytest.mark.parametrize("beyond", [1e6, 1e12])
@pytest.mark.parametrize("size", [3, 9, 21])
def test_what_is_outside_of_a_window_changes_no_bit(size: int, beyond: float) -> None:
    case = Case((1, 50, 60), size)
    expected = case.run()
    case.x[:, 35:, 40:] *= np.float32(beyond)
    for number, (result, before) in enumerate(zip(case.run(), expected, strict=True)):
        reach = size // 2 * (2 if number == 3 else 1)
        kept = np.ones(case.shape, bool)
        kept[:, 35 - reach :, 40 - reach :] = False
        assert result[kept].tobytes() == before[kept].tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("shape", "size"), [((2, 33, 40), 9), ((1, 60, 70), 101)], ids=str)
def test_16_bits_are_rounded_once(shape: tuple[int, int, int], size: int, dtype: str) -> None:
    case = Case(shape, size, dtype)
    results = case.run()
    case.x, case.dy = (each.astype("float32") for each in (case.x, case.dy))
    y, mean, rstd, dx = case.run()
    rounded = [y.astype(DTYPES[dtype]), mean, rstd, dx.astype(DTYPES[dtype])]
    assert bits(results) == bits(rounded)


@pytest.mark.parametrize(("shape", "size"), [((2, 33, 40), 5), ((1, 60, 70), 101)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dy_of_a_wider_dtype(dtype: str, shape: tuple[int, int, int], size: int) -> None:
    expected = bits(Case(shape, size, dtype).run())
    for wide in ("float32", "float64"):
        assert bits(Case(shape, size, dtype, dy_dtype=wide).run()) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "size"), [((7, 35, 40), 7), ((5, 60, 70), 101)], ids=str)
def test_planes_do_not_depend_on_each_other(
    shape: tuple[int, int, int], size: int, dtype: str
) -> None:
    def some_are_extreme(shape: tuple[int, ...]) -> np.ndarray:
        x = normal(shape)
        x[::2] *= 1e-30
        x[3] *= 1e30
        return x

    case = Case(shape, size, dtype, values=some_are_extreme, epsilon=0)
    expected, (x, dy) = case.run(), (case.x, case.dy)
    for some in (np.s_[:1], np.s_[3:4], np.s_[2:5], np.s_[::-1]):
        case.x, case.dy = x[some].copy(), dy[some].copy()
        assert bits(case.run()) == bits([each[some] for each in expected])


def test_more_planes_than_a_second_dimension_of_blocks_has() -> None:
    case = Case((70_000, 2, 2), 3)
    expected, (x, dy) = case.run(), (case.x, case.dy)
    case.x, case.dy = x[-3:], dy[-3:]
    assert bits(case.run()) == bits([each[-3:] for each in expected])


@pytest.mark.parametrize(
    ("shape", "size", "dtype", "launches"),
    [
        ((2, 40, 50), 9, "float32", (1, 1)),
        ((2, 40, 50), 19, "bfloat16", (1, 1)),
        ((2, 40, 50), 21, "float32", (1, PLANE_LAUNCHES[1])),
        ((2, 40, 50), 7, "float64", (1, 1)),
        ((2, 40, 50), 9, "float64", (1, PLANE_LAUNCHES[1])),
        ((2, 80, 90), 101, "float32", PLANE_LAUNCHES),
        ((2, 80, 90), 101, "float16", (PLANE_LAUNCHES[0] - 1, PLANE_LAUNCHES[1] - 1)),
    ],
    ids=str,
)
def test_launches(
    shape: tuple[int, int, int], size: int, dtype: str, launches: tuple[int, int]
) -> None:
    x = cupy.asarray(normal(shape).astype(DTYPES[dtype]))
    for _ in range(2):
        start = cupy_on_cpu.counts()
        forward = ln.local_contrast_norm_forward(x, size=size)
        middle = cupy_on_cpu.counts()
        ln.local_contrast_norm_backward(x, x, *forward[1:], size=size)
        end = cupy_on_cpu.counts()
    forward_counts = {name: middle[name] - start[name] for name in start}
    backward_counts = {name: end[name] - middle[name] for name in start}
    assert (forward_counts["launches"], backward_counts["launches"]) == launches
    for counted in (forward_counts, backward_counts):
        assert counted["synchronisations"] == counted["copies_to_host"] == 0
    # y, the statistics, dx; and a workspace where there are several launches.
    assert forward_counts["allocations"] == 2 + (launches[0] > 1)
    assert backward_counts["allocations"] == 1 + (launches[1] > 1)


def test_one_spatial_axis() -> None:
    x = cupy.asarray(normal((5, 70, 6)).astype("float32"))
    results = ln.local_contrast_norm_forward(x, size=9, spatial_axes=1)
    moved = cupy.ascontiguousarray(x.transpose(0, 2, 1)).reshape(30, 1, 70)
    for result, right in zip(results, ln.local_contrast_norm_forward(moved, size=9), strict=True):
        right = right.get().reshape(5, 6, 70).transpose(0, 2, 1)
        np.testing.assert_array_equal(result.get(), right)
