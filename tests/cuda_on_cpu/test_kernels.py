"""The CUDA kernels over rows, in every order of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from itertools import product
from typing import Any

import cupy
import cupy_on_cpu
import ml_dtypes
import numpy as np
import pytest
from dtypes import DTYPES
from ln_array_api_backends.cupy import backend
from ln_array_api_backends.cupy.launch_config import ParamIndexing, backward_shape, forward_shape

from ln_array_api.kernels import rows

EPSILON = 1e-5
#: A sanitizer finds faults in any order.
ORDERS = cupy_on_cpu.ORDERS[: 1 if cupy_on_cpu.SANITIZE else None]


@pytest.fixture(autouse=True)
def _order() -> Iterator[None]:
    yield
    cupy_on_cpu.set_order("forward")


def on_device(values: np.ndarray | None, offset: int) -> Any:
    """Return an array that begins `offset` elements after an aligned address, or None."""
    if values is None:
        return None
    memory = cupy.zeros(values.size + offset, values.dtype)
    array = memory[offset:].reshape(values.shape)
    array[...] = cupy.asarray(values)
    return array


class Case:
    """The arrays for both passes, on the device, and the options."""

    def __init__(
        self,
        dtype: str,
        m: int,
        n: int,
        *,
        center: bool = True,
        groups: int = 1,
        repeat: int = 1,
        wide: bool = False,
        offset: int = 0,
        mean: float = 3,
        magnitude: float = 1,
        epsilon: float = EPSILON,
        x: np.ndarray | None = None,
    ) -> None:
        rng = np.random.default_rng([m, n])
        parameter = "float64" if wide else dtype
        self.epsilon = epsilon
        self.options = {"center": center, "groups": groups, "repeat": repeat}
        size = groups * n // repeat
        draw = rng.standard_normal
        self.plain = [
            (magnitude * (mean + draw((m, n))) if x is None else x).astype(DTYPES[dtype]),
            draw(size).astype(DTYPES[parameter]),
            draw(size).astype(DTYPES[parameter]) if center else None,
            draw((m, n)).astype(DTYPES["float32" if wide and dtype != "float64" else dtype]),
        ]
        self.x, self.gamma, self.beta, self.dy = (on_device(each, offset) for each in self.plain)

    def run(self, need: tuple[bool, bool, bool] = (True, True, True), **options: Any) -> list[Any]:
        forward = backend.rows_forward(
            self.x, self.gamma, self.beta, epsilon=self.epsilon, **self.options, **options
        )
        gradients = backend.rows_backward(
            self.dy, self.x, *forward[1:], self.gamma, need=need, **self.options
        )
        return [*forward, *gradients]

    def expected(self) -> list[Any]:
        """Return the results of the generic kernels on NumPy, in float64."""
        x, gamma, beta, dy = (
            None if each is None else each.astype(np.float64) for each in self.plain
        )
        forward = rows.rows_forward(x, gamma, beta, epsilon=self.epsilon, **self.options)
        return [*forward, *rows.rows_backward(dy, x, *forward[1:], gamma, **self.options)]


def bits(results: list[Any]) -> list[bytes | None]:
    return [None if each is None else each.get().tobytes() for each in results]


def check(case: Case) -> None:
    accumulation = np.float64 if case.x.dtype == np.float64 else np.float32
    least = float(np.finfo(accumulation).eps)
    for actual, expected in zip(case.run(), case.expected(), strict=True):
        if expected is None:
            assert actual is None
        else:
            assert actual.shape == expected.shape
            eps = max(least, float(ml_dtypes.finfo(actual.dtype).eps))
            np.testing.assert_allclose(
                actual.get().astype(np.float64), expected, rtol=8 * eps, atol=32 * eps
            )


def in_every_order(case: Case) -> None:
    results = []
    for order in ORDERS:
        cupy_on_cpu.set_order(order)
        results.append(bits(case.run()))
    assert all(each == results[0] for each in results[1:])


def ordinals(values: Any) -> np.ndarray:
    """Return 16-bit numbers as integers, which are consecutive where the numbers are."""
    bits = values.get().view(np.int16).astype(np.int32)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def check_rounding(case: Case) -> None:
    """Check that y and dx of 16 bits are the float32 results, rounded."""
    single = copy(case)
    single.x, single.gamma, single.beta, single.dy = (
        None if each is None else each.astype(np.float32)
        for each in (case.x, case.gamma, case.beta, case.dy)
    )
    y, _, _, dx, *_ = case.run()
    exact_y, _, _, exact_dx, *_ = single.run()
    for actual, exact in ((y, exact_y), (dx, exact_dx)):
        off = np.abs(ordinals(actual) - ordinals(exact.astype(actual.dtype)))
        assert np.count_nonzero(off) <= off.size // 100
        # Close to 0, an ulp is less than the error of sums in another order.
        plain = exact.get()
        assert off[np.abs(plain) >= 2**-10].max() <= 1
        np.testing.assert_allclose(actual.get().astype(np.float32), plain, rtol=2**-7, atol=2**-20)


def lengths(dtype: str) -> list[int]:
    """Return a length for each block shape of a dtype, neither whole nor aligned."""
    each: dict[Any, int] = {}
    for bit in range(16):
        n = (1 << bit) + (1 << bit) // 3
        shapes = forward_shape(dtype, n), backward_shape(dtype, n, ParamIndexing.PER_ELEMENT)
        each.setdefault(shapes, n)
    return list(each.values())


KINDS = [(dtype, n) for dtype in DTYPES for n in lengths(dtype)]


@pytest.mark.parametrize(("dtype", "n"), KINDS)
@pytest.mark.parametrize("center", [True, False], ids=["layer norm", "RMS norm"])
def test_every_order_of_threads_gives_the_same_bits(dtype: str, n: int, center: bool) -> None:
    case = Case(dtype, 7, n, center=center)
    check(case)
    in_every_order(case)


@pytest.mark.parametrize("n", [12, 600, 3000, 12000, 36000])
@pytest.mark.parametrize(("groups", "repeat"), [(3, 1), (3, 4), (1, 3), (6, 12)])
def test_groups(n: int, groups: int, repeat: int) -> None:
    """Test group and instance norm."""
    case = Case("float32", 12, n, groups=groups, repeat=repeat)
    check(case)
    in_every_order(case)


@pytest.mark.parametrize(("dtype", "n"), KINDS)
def test_bits_of_a_row_do_not_depend_on_others(dtype: str, n: int) -> None:
    """Neither the number of rows nor a row's position may change its bits."""
    many, one = Case(dtype, 7, n), Case(dtype, 1, n)
    one.gamma, one.beta = many.gamma, many.beta
    results = many.run()[:4]
    for r in (0, 4, 6):
        one.x, one.dy = many.x[r : r + 1], many.dy[r : r + 1]
        assert bits(one.run()[:4]) == bits([each[r : r + 1] for each in results])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [40, 1600, 40000])
def test_bits_do_not_depend_on_alignment(dtype: str, n: int) -> None:
    aligned = bits(Case(dtype, 5, n).run())
    for offset in (1, 2):
        assert bits(Case(dtype, 5, n, offset=offset).run()) == aligned


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("n", [40, 3000, 40000])
def test_wider_parameters_and_dy(dtype: str, n: int) -> None:
    check(Case(dtype, 5, n, wide=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("parameter", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("n", [40, 3000, 18000])
def test_16_bits_are_rounded_once(dtype: str, parameter: str, n: int) -> None:
    case = Case(dtype, 5, n)
    case.gamma, case.beta = (each.astype(DTYPES[parameter]) for each in (case.gamma, case.beta))
    check_rounding(case)


@pytest.mark.parametrize("n", [40, 12000, 18000])
@pytest.mark.parametrize("need", list(product((False, True), repeat=3)))
def test_only_what_is_needed(n: int, need: tuple[bool, bool, bool]) -> None:
    """Other gradients are None; dx has the same bits, whichever others are needed."""
    case = Case("float32", 70, n)
    some = case.run(need=need)[3:]
    everything = case.run()[3:]
    assert [each is not None for each in some] == list(need)
    assert not need[0] or bits(some[:1]) == bits(everything[:1])
    for part, whole in zip(some[1:], everything[1:], strict=True):
        if part is not None:
            np.testing.assert_allclose(part.get(), whole.get(), rtol=1e-5, atol=1e-5)


def test_out_may_be_x() -> None:
    for n in (40, 3000, 70000):
        case = Case("float32", 5, n)
        y, *_ = bits(case.run())
        backend.rows_forward(
            case.x, case.gamma, case.beta, epsilon=EPSILON, out=case.x, **case.options
        )
        assert case.x.get().tobytes() == y


@pytest.mark.parametrize("n", [40, 3000, 40000])
def test_nothing_waits_for_the_device(n: int) -> None:
    """There is no synchronisation and no copy to the host, and a call can be captured."""
    case = Case("float32", 70, n)
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        case.run()
        before = cupy_on_cpu.counts()
        case.run()
        between = cupy_on_cpu.counts()
        assert between == {**before, "launches": between["launches"]}
        stream.begin_capture()
        try:
            case.run()
        finally:
            stream.end_capture()
        assert cupy_on_cpu.counts() == between


KEPT: list[Any] = []


@pytest.mark.parametrize(
    "harm",
    [
        lambda x: x.get(),
        lambda x: KEPT.append(cupy.empty(999)),
        lambda x: cupy.cuda.Stream.null.synchronize(),
        lambda x: cupy.cuda.get_current_stream().synchronize(),
        lambda x: float(x[0, 0]),
    ],
    ids=["copy", "allocation", "wait", "wait for its stream", "value"],
)
def test_forbidden_operations_of_a_call_are_noticed(
    harm: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = backend.rows_forward

    def harmful(x: Any, *arrays: Any, **options: Any) -> Any:
        harm(x)
        return forward(x, *arrays, **options)

    monkeypatch.setattr(backend, "rows_forward", harmful)
    with pytest.raises(AssertionError):
        test_nothing_waits_for_the_device(40)
    KEPT.clear()


@pytest.mark.parametrize("n", [40, 3000, 40000])
def test_nothing_is_allocated_but_results_and_a_workspace(n: int) -> None:
    case = Case("float32", 70, n)
    case.run()
    before = cupy_on_cpu.counts()["allocations"]
    results = case.run()
    assert cupy_on_cpu.counts()["allocations"] - before <= len(results) + 1


@pytest.mark.parametrize("n", [40, 3000, 40000])
def test_the_rounded_mean_is_not_trusted(n: int) -> None:
    check(Case("float32", 5, n, mean=1e4))


@pytest.mark.parametrize(("m", "n", "groups", "repeat"), [(70000, 3, 1, 1), (3000, 20, 300, 5)])
def test_sums_over_many_rows(m: int, n: int, groups: int, repeat: int) -> None:
    case = Case("float32", m, n, groups=groups, repeat=repeat)
    terms = m * repeat // groups
    for actual, expected in zip(case.run()[4:], case.expected()[4:], strict=True):
        np.testing.assert_allclose(actual.get(), expected, rtol=0, atol=terms * 1e-6)


@pytest.mark.parametrize("n", [7, 16, 23, 64])
def test_y_of_many_short_rows(n: int) -> None:
    """Few elements do not average out roundings, and among many rows some have all of them."""
    m = 60000
    case = Case("float32", m, n, mean=0)
    plain, gamma, beta = (each.astype(np.float64) for each in case.plain[:3])
    x_hat, _, _ = rows.rows_forward(plain, None, None, epsilon=EPSILON, **case.options)
    y, _, _ = backend.rows_forward(case.x, case.gamma, case.beta, epsilon=EPSILON, **case.options)
    scale = np.maximum(np.abs(x_hat * gamma).max(1), np.abs(beta).max())
    ulp = np.spacing(scale.astype(np.float32)).astype(np.float64)[:, None]
    assert (np.abs(y.get() - (x_hat * gamma + beta)) / ulp).max() <= 4
