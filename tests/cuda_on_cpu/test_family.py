"""Kernels for instances, dynamic tanh and power norm: results, bits, special values."""

from __future__ import annotations

from itertools import product
from typing import Any

import cupy
import cupy_on_cpu
import ml_dtypes
import numpy as np
import pytest
from dtypes import DTYPES
from family_cases import Case, Instances, Powers, Tanh, Wide
from test_kernels import bits

import ln_array_api as ln

#: The largest errors that are allowed of the results of each kind, in ulp of their scales.
STEPS: dict[type[Case], tuple[float, ...]] = {
    Instances: (4, 1, 16, 8, 4, 1, 8, 8, 4),
    Tanh: (4, 8, 8, 8, 8),
    Powers: (4, 8, 8),
}
SHAPES = [(1, 1), (5, 63), (3, 700), (70, 9), (2, 4200), (2, 70_001)]
EXPONENTS = (0.5, 0.3, 0.01, 1.0, 1 + 2**-20, 2.0, 3.7, 10.0, 100.0)


def off(actual: Any, value: Any, scale: Any, dtype: str) -> float:
    """Return the largest error in ulp of a scale, beyond the rounding to 16 bits."""
    accumulation = np.finfo(np.float64 if dtype == "float64" else np.float32)
    values = actual.get()
    fits = np.abs(value) <= float(ml_dtypes.finfo(values.dtype).max)
    with np.errstate(invalid="ignore"):
        assert (np.isfinite(values.astype(Wide)) == fits).all()
        error = np.where(fits, np.abs(values.astype(Wide) - value), 0)
    if values.dtype.itemsize == 2:
        info = ml_dtypes.finfo(values.dtype)
        error -= np.maximum(np.abs(value) * float(info.eps), float(info.tiny)) / 2
    scale = np.clip(scale, Wide(accumulation.smallest_normal), Wide(accumulation.max))
    return float(np.max(error / (scale * accumulation.eps), initial=0))


def errors(case: Case) -> list[float]:
    results = case.run()
    return [
        off(actual, *right, case.dtype)
        for actual, right in zip(results, case.expected(results), strict=True)
        if actual is not None
    ]


def check(case: Case) -> None:
    found = errors(case)
    assert all(np.less_equal(found, STEPS[type(case)][: len(found)])), found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_results(dtype: str, m: int, n: int) -> None:
    check(Instances(dtype, m, n, mean=3, epsilon=1e-5))
    check(Tanh(dtype, m, n))
    check(Powers(dtype, m, n, exponent=0.5, epsilon=1e-12))
    check(Powers(dtype, m, n, exponent=3.0, epsilon=1e-12))


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_that_are_not_aligned_and_have_a_wider_dtype(dtype: str) -> None:
    for offset, wide_dy in ((1, False), (3, True)):
        options = {"offset": offset, "wide_dy": wide_dy}
        check(Instances(dtype, 5, 300, epsilon=1e-5, **options))
        check(Tanh(dtype, 5, 300, wide=wide_dy, **options))
        check(Powers(dtype, 5, 300, exponent=0.5, epsilon=0.0, **options))
        check(Powers(dtype, 5, 300, exponent=1.0, epsilon=0.0, **options))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mean", [0, -1e4, 1e6])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1.0])
def test_instances_far_from_zero(dtype: str, mean: float, epsilon: float) -> None:
    for n in (40, 5000):
        check(Instances(dtype, 3, n, mean=mean, epsilon=epsilon))


@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [("float32", 1e-30), ("float32", 1e18), ("float64", 1e-140), ("float64", 1e140)],
)
def test_instances_of_any_magnitude(dtype: str, magnitude: float) -> None:
    for n in (40, 5000):
        found = errors(Instances(dtype, 3, n, mean=1, magnitude=magnitude, epsilon=0.0))
        if magnitude == 1e-30:  # the variance is not a normal number
            found[2] = 0
        assert all(np.less_equal(found, STEPS[Instances])), found


def test_the_variance_may_overflow_where_rstd_does_not() -> None:
    case = Instances("float32", 3, 700, mean=1e4, magnitude=1e28, epsilon=0.0)
    results = case.run()
    assert np.isinf(results[2].get()).all()
    right = case.expected(results)
    for k in (0, 1, 3, 4, 5, 7, 8):
        assert off(results[k], *right[k], "float32") <= STEPS[Instances][k], k


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, -1e-30])
@pytest.mark.parametrize("n", [1, 700, 5000])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-90])
def test_constant_instances(value: float, n: int, epsilon: float) -> None:
    """The result is exactly the shift, and rstd is that of epsilon, if it is in range."""
    case = Instances("float32", 2, n, x=np.full((2, n), value), epsilon=epsilon)
    mean, residual, var, rstd, y, *others = (each.get() for each in case.run())
    assert (mean == np.float32(value)).all()
    assert not residual.any()
    assert not var.any()
    largest = np.finfo(np.float32).max
    np.testing.assert_allclose(rstd, min(epsilon**-0.5, float(largest)), rtol=1e-6)
    np.testing.assert_array_equal(y, np.broadcast_to(case.numbers[2], y.shape))
    if epsilon == 1e-5:
        assert all(np.isfinite(each).all() for each in others)


LAYOUTS = [
    (6, 8, 1, 1),
    (6, 8, 3, 1),
    (6, 40, 3, 40),
    (6, 40, 2, 8),
    (70, 1, 1, 1),
    (4, 4200, 4, 4200),
]


@pytest.mark.parametrize(("m", "n", "groups", "repeat"), LAYOUTS)
@pytest.mark.parametrize(("gamma", "beta"), list(product((True, False), repeat=2)))
def test_parameters_of_tanh(
    m: int, n: int, groups: int, repeat: int, gamma: bool, beta: bool
) -> None:
    case = Tanh("float32", m, n, groups=groups, repeat=repeat, gamma=gamma, beta=beta)
    check(case)


@pytest.mark.parametrize("need", list(product((True, False), repeat=4)))
@pytest.mark.parametrize("gamma", [True, False])
def test_gradients_of_tanh_that_are_needed(need: tuple[bool, ...], gamma: bool) -> None:
    """They have the same bits, whatever else is needed."""
    if not any(need):
        return
    case = Tanh("float32", 70, 90, gamma=gamma)
    _, *whole = case.run()
    _, *some = case.run(need)
    for wanted, part, all_of_it in zip(need, some, whole, strict=True):
        assert (part is not None) == wanted
        assert part is None or part.shape == all_of_it.shape
    changed = not gamma and not need[2] and not need[3]  # dalpha is a sum of another shape
    for part, all_of_it in zip(some[changed * 2 :], whole[changed * 2 :], strict=True):
        assert part is None or part.get().tobytes() == all_of_it.get().tobytes()
    if need[0]:
        assert some[0].get().tobytes() == whole[0].get().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", [0.0, -3.0, 1e-30, 1e30])
def test_steepness(dtype: str, alpha: float) -> None:
    """Slopes may be subnormal where gradients are not, and x may be very large."""
    scale = 1 / alpha if alpha else 1.0
    for magnitude in (1e-6, 1.0, 12.0):
        check(Tanh(dtype, 20, 30, alpha=alpha, magnitude=magnitude * scale))


def test_zeros_keep_their_sign() -> None:
    x = cupy.asarray(np.asarray([[0.0, -0.0]], np.float32))
    y = ln.dynamic_tanh(x, cupy.ones((), np.float32))
    assert np.signbit(y.get()).tolist() == [[False, True]]


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("epsilon", [0.0, 1e-60, 1e-12, 1.0])
@pytest.mark.parametrize(
    ("dtype", "magnitudes"),
    [("float32", (1e-37, 1e-30, 1, 1e30, 1e37)), ("float64", (1e-300, 1e-30, 1, 1e30, 1e300))],
)
def test_powers(exponent: float, epsilon: float, dtype: str, magnitudes: tuple[float, ...]) -> None:
    for magnitude, n in product(magnitudes, (7, 300)):
        check(Powers(dtype, 4, n, magnitude=magnitude, exponent=exponent, epsilon=epsilon))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_of_magnitudes_that_are_far_apart(dtype: str) -> None:
    """1e-30 ** 0.01 is about 0.5, so scaling x by its maximum would lose it."""
    large = 1e30 if dtype == "float32" else 1e300
    x = np.asarray([[large, 1 / large, -1e-7 / large, 0.0], [1 / large, 0.0, 1.0, -2.0]])
    for exponent, dy in product((0.01, 0.3, 0.5, 0.9, 2.0), (1, 1e-25, 1e25)):
        check(Powers(dtype, 2, 4, x=x, dy_magnitude=dy, exponent=exponent, epsilon=1e-12))


def test_powers_of_parts_that_are_far_apart() -> None:
    """Some threads have zeros only, others very small or very large numbers."""
    for n, k in product((700, 5000), (0, 1, 300)):
        x = np.zeros((3, n))
        x[0, k], x[1, :: n - 1], x[2] = 1e-30, 1e30, 1e-37
        x[2, k] = -1e-35
        for exponent in (0.3, 0.5, 3.0):
            check(Powers("float32", 3, n, x=x, exponent=exponent, epsilon=0.0))


def test_powers_that_are_subnormal() -> None:
    """The norm is the root of epsilon."""
    for n in (7, 5000):
        check(Powers("float64", 3, n, magnitude=1e-157, exponent=2.0, epsilon=1e-300))
        check(Powers("float32", 3, n, magnitude=1e-20, exponent=2.0, epsilon=1e-30))


def test_powers_close_to_the_largest() -> None:
    """Rounding x / max(x) would be off by the exponent times as much."""
    x = 1.37 - np.linspace(0, 0.01, 50)[None, :]
    for dtype, exponent in product(("float32", "float64"), (100.0, 1e4)):
        check(Powers(dtype, 1, 50, x=x, exponent=exponent, epsilon=1e-12))


def test_a_row_of_zeros() -> None:
    for dtype, exponent, n in product(("float32", "float64"), (0.3, 0.5, 2.0), (3, 5000)):
        case = Powers(dtype, 2, n, x=np.zeros((2, n)), exponent=exponent, epsilon=1e-12)
        y, norm, dx = (each.get() for each in case.run())
        assert not y.any()
        assert not dx.any()
        np.testing.assert_allclose(norm, 1e-6, rtol=1e-6)
        without = Powers(dtype, 2, n, x=np.zeros((2, n)), exponent=exponent, epsilon=0.0)
        assert np.isnan(without.run()[0].get()).all()


def test_the_largest_exponents_are_left_to_generic_kernels() -> None:
    for dtype, exponent, accepted in (
        ("float32", 2.0**16, True),
        ("float32", 2.0**17, False),
        ("float64", 2.0**100, True),
    ):
        x = cupy.ones((2, 3), DTYPES[dtype])
        explanation = ln.explain(ln.power_norm, x, alpha=exponent)
        assert (explanation.backend == "cupy") == accepted
        np.testing.assert_allclose(ln.power_norm(x, alpha=exponent).get(), 3**-0.5, rtol=1e-6)


#: A case of each kind, with a few partial results and with many, by m and n.
KINDS: dict[str, Any] = {
    "instances": lambda *shape, **given: Instances("float32", *shape, epsilon=1e-5, **given),
    "tanh": lambda *shape, **given: Tanh("float32", *shape, **given),
    "square roots": lambda *shape, **given: Powers(
        "float32", *shape, exponent=0.5, epsilon=1e-12, **given
    ),
    "cubes": lambda *shape, **given: Powers(
        "float32", *shape, exponent=3.0, epsilon=1e-12, **given
    ),
    "cubes in float64": lambda *shape, **given: Powers(
        "float64", *shape, exponent=3.0, epsilon=1e-12, **given
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(9, 70), (2, 4200), (4200, 2)])
def test_every_order_of_threads_gives_the_same_bits(kind: str, shape: tuple[int, int]) -> None:
    case, results = KINDS[kind](*shape), []
    try:
        for order in cupy_on_cpu.ORDERS:
            cupy_on_cpu.set_order(order)
            results.append(bits(case.run()))
    finally:
        cupy_on_cpu.set_order("forward")
    assert all(each == results[0] for each in results[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 60, 1000, 5000])
def test_the_bits_of_a_row_do_not_depend_on_the_others(kind: str, n: int) -> None:
    whole = KINDS[kind](70, n)
    kept = [each for each in whole.run() if each is not None and each.shape[:1] == (70,)]
    for rows in (slice(0, 1), slice(3, 5), slice(7, 40), slice(69, 70)):
        part = KINDS[kind](70, n)
        part.x, part.dy = part.x[rows].copy(), part.dy[rows].copy()
        if kind == "instances":
            part.numbers = part.numbers[:, rows].copy()
        some = [
            each for each in part.run() if each is not None and each.shape[:1] == part.x.shape[:1]
        ]
        assert bits(some[: len(kept)]) == bits([each[rows] for each in kept])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_value_affects_only_its_row(kind: str, value: float) -> None:
    for n in (90, 5000):
        case = KINDS[kind](4, n)
        before = [each.get() for each in case.run() if each is not None and each.ndim == 2]
        case.x[2, n // 3] = value
        after = [each.get() for each in case.run() if each is not None and each.ndim == 2]
        for a, b in zip(after, before, strict=True):
            np.testing.assert_array_equal(a[[0, 1, 3]], b[[0, 1, 3]])
        if kind != "tanh" and np.isnan(value):
            assert all(np.isnan(each[2]).all() for each in after[: 1 if "s" in kind else 0])
