"""Arrays whose rows are not contiguous: results of the elementwise and reduction kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cupy
import cupy_on_cpu
import ml_dtypes
import numpy as np
import pytest
from test_kernels import DTYPES, bits

import ln_array_api as ln

Array = Any


def in_fortran_order(x: np.ndarray) -> Array:
    return cupy.asarray(np.ascontiguousarray(x.T)).T


def every_second(x: np.ndarray) -> Array:
    memory = cupy.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    memory[..., ::2] = cupy.asarray(x)
    return memory[..., ::2]


def backwards(x: np.ndarray) -> Array:
    return cupy.asarray(np.ascontiguousarray(x[..., ::-1]))[..., ::-1]


class Kind(NamedTuple):
    """A shape, the normalised axes, and a function that lays out x and dy."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    place: Callable[[np.ndarray], Array] = cupy.asarray


KINDS = {
    "columns": Kind((70, 9), (0,)),
    "one column": Kind((150, 1), (0,)),
    "columns of many partials": Kind((700, 5), (0,)),
    "more partials than one thread merges": Kind((5000, 3), (0,)),
    "channels": Kind((3, 40, 5), (1,)),
    "two axes apart": Kind((3, 7, 30, 6), (0, 2)),
    "two axes between others": Kind((4, 5, 6, 3), (1, 2)),
    "inner rows": Kind((3, 5, 70), (0, 2)),
    "Fortran order": Kind((9, 70), (1,), in_fortran_order),
    "every second": Kind((9, 70), (1,), every_second),
    "backwards": Kind((70, 9), (0,), backwards),
}


class Case:
    """The arrays for both passes, as NumPy arrays and on the device."""

    def __init__(
        self,
        kind: Kind,
        dtype: str = "float32",
        *,
        affine: bool = True,
        wide: bool = False,
        values: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None = None,
    ) -> None:
        rng = np.random.default_rng([*kind.shape])
        parameter = DTYPES["float64" if wide else dtype]
        self.axes = kind.axes
        shape = tuple(kind.shape[axis] for axis in kind.axes)
        x = 3 + rng.standard_normal(kind.shape) if values is None else values(rng, kind.shape)
        self.x = x.astype(DTYPES[dtype])
        self.dy = rng.standard_normal(kind.shape).astype(self.x.dtype)
        self.parameters = [rng.standard_normal(shape).astype(parameter) for _ in range(2)]
        if not affine:
            self.parameters = [None, None]
        self.on_device = [kind.place(each) for each in (self.x, self.dy)]
        self.given = [None if each is None else cupy.asarray(each) for each in self.parameters]

    def run(self, center: bool = True) -> list[Array]:
        x, dy = self.on_device
        return list(both(dy, x, self.given, self.axes, center))

    def expected(self, center: bool = True) -> list[np.ndarray]:
        """Return the results of the generic kernels on NumPy, in float64."""
        wide = [
            None if each is None else each.astype(np.float64)
            for each in (self.dy, self.x, *self.parameters)
        ]
        with ln.use_backend("generic"):
            return list(both(wide[0], wide[1], wide[2:], self.axes, center))


def both(dy: Array, x: Array, parameters: list[Array], axes: Any, center: bool) -> Iterator[Array]:
    gamma, beta = parameters
    if center:
        y, mean, rstd = ln.layer_norm_forward(x, gamma, beta, axis=axes)
        yield from (y, mean, rstd, *ln.layer_norm_backward(dy, x, mean, rstd, gamma, axis=axes))
    else:
        y, rstd = ln.rms_norm_forward(x, gamma, axis=axes)
        yield from (y, rstd, *ln.rms_norm_backward(dy, x, rstd, gamma, axis=axes))


def check(case: Case, steps: float = 8, center: bool = True) -> None:
    """Check results within some ulp at the largest magnitude of each."""
    results = case.run(center)
    rstd = results[1 + center]
    for actual, right in zip(results, case.expected(center), strict=True):
        if right is None:
            assert actual is None
            continue
        assert actual.shape == right.shape
        eps = max(float(ml_dtypes.finfo(each.dtype).eps) for each in (actual, rstd))
        values = actual.get().astype(np.float64)
        np.testing.assert_allclose(values, right, rtol=0, atol=steps * eps * np.max(abs(right)))


def reason(x: Array, axes: Any) -> str:
    return ln.explain(ln.layer_norm, x, axis=axes).reason


FEW = ["columns of many partials", "inner rows"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in KINDS for dtype in DTYPES if name in FEW or dtype == "float32"],
)
def test_results(name: str, dtype: str) -> None:
    case = Case(KINDS[name], dtype)
    assert reason(case.on_device[0], case.axes).endswith("on x in place")
    check(case)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("center", [True, False], ids=["layer norm", "RMS norm"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_options(name: str, center: bool, affine: bool) -> None:
    check(Case(KINDS[name], affine=affine), center=center)
    if affine:
        check(Case(KINDS[name], "float16", wide=True), center=center)


@pytest.mark.parametrize("name", FEW)
def test_every_order_of_threads_gives_the_same_bits(name: str) -> None:
    case, results = Case(KINDS[name]), []
    try:
        for order in cupy_on_cpu.ORDERS:
            cupy_on_cpu.set_order(order)
            results.append(bits(case.run()))
    finally:
        cupy_on_cpu.set_order("forward")
    assert all(each == results[0] for each in results[1:])


def test_dy_may_have_another_layout() -> None:
    case = Case(KINDS["channels"])
    expected = bits(case.run())
    case.on_device[1] = in_fortran_order(case.dy)
    assert bits(case.run()) == expected


@pytest.mark.parametrize("n", [1, 60, 1000, 5000])
def test_the_bits_of_a_column_do_not_depend_on_the_others(n: int) -> None:
    """Neither if the others are absent, nor if they are between."""
    case = Case(Kind((n, 70), (0,)))
    x, dy = case.on_device
    whole = case.run()[:4]
    for columns in (slice(0, 1), slice(3, 5), slice(7, 40), slice(69, 70)):
        for place in (lambda a: a, lambda a: cupy.asarray(a.get().copy())):
            case.on_device = [place(x[:, columns]), place(dy[:, columns])]
            assert bits(case.run()[:4]) == bits([each[:, columns] for each in whole])


def outlier(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    x[0] = 1e4
    return x


def near_the_largest(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return values of which a sum of a few is more than float32 holds."""
    later = np.arange(shape[0]) >= shape[0] // 4
    return 1e38 * np.where(later, 1, -1)[:, None] * (1 + rng.standard_normal(shape) / 100)


VALUES: dict[str, Any] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "mean 1e4": lambda rng, shape: 1e4 + rng.standard_normal(shape),
    "mean 1e6": lambda rng, shape: 1e6 + rng.standard_normal(shape),
    "first an outlier": outlier,
    "lognormal": lambda rng, shape: rng.lognormal(0, 2, shape),
    "1e-30": lambda rng, shape: 1e-30 * rng.standard_normal(shape),
    "1e30": lambda rng, shape: 1e30 * rng.standard_normal(shape),
    "near the largest": near_the_largest,
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("n", [40, 1000])
def test_the_error_does_not_grow_with_mean_or_magnitude(n: int, values: Any) -> None:
    check(Case(Kind((n, 6), (0,)), values=values, affine=False))


def test_magnitudes_that_float64_can_hold() -> None:
    for magnitude in (1e-250, 1e250):
        case = Case(KINDS["columns"], "float64", affine=False)
        x = cupy.asarray(case.x * magnitude)
        y, mean, rstd = ln.layer_norm_forward(x, axis=0, epsilon=0.0)
        right = ln.layer_norm_forward(case.x, axis=0, epsilon=0.0)
        np.testing.assert_allclose(y.get(), right.y, rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(mean.get() / magnitude, right.mean, rtol=1e-14)
        np.testing.assert_allclose(rstd.get() * magnitude, right.rstd, rtol=1e-14)


def test_long_columns() -> None:
    """There are many partial results, each of several chunks."""
    check(Case(Kind((70_000, 3), (0,)), values=VALUES["lognormal"]))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, -1e-30])
def test_a_constant_column_gives_beta(value: float) -> None:
    case = Case(KINDS["columns of many partials"], values=lambda rng, shape: np.full(shape, value))
    y, mean, rstd, dx, *_ = case.run()
    assert (y.get() == case.parameters[1][:, None]).all()
    assert (mean.get() == np.float32(value)).all()
    np.testing.assert_allclose(rstd.get(), 1e-5**-0.5, rtol=1e-6)
    assert np.isfinite(dx.get()).all()


def test_epsilon_of_zero() -> None:
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    x[:, 1] = 5
    y, _, rstd = ln.layer_norm_forward(cupy.asarray(x), axis=0, epsilon=0.0)
    assert np.isnan(y.get()[:, 1]).all()
    assert np.isposinf(rstd.get()[0, 1])
    assert np.isfinite(y.get()[:, [0, 2]]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_value_affects_only_its_column(value: float) -> None:
    case = Case(KINDS["columns of many partials"])
    before = [each.get() for each in case.run()[:4]]
    case.on_device[0][300, 2] = value
    for a, b in zip(case.run()[:4], before, strict=True):
        assert np.isnan(a.get()[:, 2]).all()
        others = [0, 1, 3, 4]
        np.testing.assert_array_equal(a.get()[:, others], b[:, others])


def test_three_strides_are_copied() -> None:
    kind = Kind((3, 4, 5, 2, 3, 2), (0, 2, 4))
    case = Case(kind)
    assert reason(case.on_device[0], kind.axes).startswith("CUDA C")
    check(case)
