"""The CUDA kernels over channels, in every order of threads, compared with float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from channel_cases import ChannelCase, Shape
from kernel_inventory import channel_calls, kernels_requested_by
from ln_array_api_backends.cupy import backend, channels_dispatch
from ln_array_api_backends.cupy.launch_config import CHUNK_BYTES, ITEMSIZE
from resources import row_of
from test_host import launches
from test_kernels import DTYPES, EPSILON, ORDERS, bits, on_device

from ln_array_api.backend import ChannelsSpec, Primitive


@pytest.fixture(autouse=True)
def _order() -> Iterator[None]:
    yield
    cupy_on_cpu.set_order("forward")


class Case(ChannelCase):
    """A case with its arrays on the device, `offset` elements after an aligned address."""

    def __init__(self, dtype: str, shape: Shape, *, offset: int = 0, **options: Any) -> None:
        super().__init__(dtype, shape, **options)
        self.x, self.gamma, self.beta, self.dy = (on_device(each, offset) for each in self.plain)
        self.given = [on_device(each, offset) for each in self.plain_given]

    def run(self, need: tuple[bool, bool, bool] = (True, True, True)) -> list[Any]:
        arrays = (self.x, self.gamma, self.beta, self.dy)
        return self.call(backend, arrays, self.given, need)  # type: ignore[no-any-return]


def check(case: Case) -> None:
    case.check([each.get() for each in case.run()])


def in_every_order(case: Case) -> None:
    results = []
    for order in ORDERS:
        cupy_on_cpu.set_order(order)
        results.append(bits([*case.run(), *case.run(need=(False, False, True))]))
    assert all(each == results[0] for each in results[1:])


def shapes(dtype: str) -> list[Shape]:
    """Return shapes for each kernel of a dtype: each vector width, few vectors and many."""
    max_width = CHUNK_BYTES // ITEMSIZE[dtype]
    widths = [1 << power for power in range(max_width.bit_length())]
    # Long extents, of few and many vectors; short extents; contiguous channels.
    extent = channels_dispatch.MIN_PLANE_BYTES // ITEMSIZE[dtype]
    found: list[Shape] = [(3, 2, extent + width) for width in widths]
    found += [(5, 3, 640 * width + (width if width < max_width else 0)) for width in widths]
    found += [(70, width, 3) for width in widths] + [(130, 3 * width, 1) for width in widths]
    return [*found, (9000, 3, 1), (1, 5, 2), (6, 1, 7)]


KINDS = [(dtype, shape) for dtype in DTYPES for shape in shapes(dtype)]


@pytest.mark.parametrize(("dtype", "shape"), KINDS)
def test_every_order_of_threads_gives_the_same_bits(dtype: str, shape: Shape) -> None:
    case = Case(dtype, shape)
    check(case)
    in_every_order(case)


def test_every_kernel_is_among_these() -> None:
    """The cases choose every kernel for arrays of one dtype."""
    every = kernels_requested_by(call for dtype in DTYPES for call in channel_calls(dtype)).calls
    calls: list[tuple[Primitive, ChannelsSpec]] = []
    for dtype, shape in KINDS:
        spec = ChannelsSpec("cupy", "0", shape, dtype, dtype, dtype, EPSILON)
        backward = spec._replace(beta=None, dy=dtype)
        calls += [("channels_forward", spec), ("channels_inference", spec)]
        calls += [("channels_backward", backward)]
        calls += [("channels_backward", backward._replace(need=(False, False, True)))]
    missing = {name for name in every if not row_of(name).parameters} - kernels_requested_by(
        calls
    ).calls.keys()
    assert not missing


SOME: list[Shape] = [(3, 2, 100), (5, 3, 3000), (70, 12, 3), (300, 20, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SOME)
def test_bits_do_not_depend_on_alignment(dtype: str, shape: Shape) -> None:
    aligned = bits(Case(dtype, shape).run())
    for offset in (1, 2):
        assert bits(Case(dtype, shape, offset=offset).run()) == aligned


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", SOME)
def test_wider_parameters_and_dy(dtype: str, shape: Shape) -> None:
    check(Case(dtype, shape, wide=True))


@pytest.mark.parametrize("shape", SOME)
def test_without_parameters(shape: Shape) -> None:
    check(Case("float32", shape, affine=False))


@pytest.mark.parametrize("shape", SOME)
@pytest.mark.parametrize("need", list(product((False, True), repeat=3)))
def test_only_what_is_needed(shape: Shape, need: tuple[bool, bool, bool]) -> None:
    """Other gradients are None; those that are needed have the same bits."""
    case = Case("float32", shape)
    some, everything = case.run(need=need), case.run()
    for wanted, part, whole in zip(need, some[4:7], everything[4:7], strict=True):
        assert bits([part]) == (bits([whole]) if wanted else [None])


def test_launches() -> None:
    """There are two launches for each pass, and one over all of x."""
    for shape in SOME:
        case = Case("float32", shape)
        _, mean, var, rstd = case.run()[:4]
        x, gamma, beta, dy = case.x, case.gamma, case.beta, case.dy
        assert launches(backend.channels_forward, x, gamma, beta, epsilon=EPSILON) == 3
        assert launches(backend.channels_inference, x, mean, var, gamma, beta, epsilon=0) == 1
        arrays = (dy, x, mean, rstd, gamma)
        for need in product((False, True), repeat=3):
            count = launches(backend.channels_backward, *arrays, need=need)
            assert count == (3 if need[0] else 2 if any(need) else 0)


@pytest.mark.parametrize("shape", SOME)
def test_nothing_waits_for_the_device(shape: Shape) -> None:
    """There is no synchronisation and no copy to the host, and a call can be captured."""
    case = Case("float32", shape)
    _, mean, var, rstd = case.run()[:4]

    def calls() -> None:
        backend.channels_forward(case.x, case.gamma, case.beta, epsilon=EPSILON)
        backend.channels_inference(case.x, mean, var, case.gamma, case.beta, epsilon=EPSILON)
        need = (True, True, True)
        backend.channels_backward(case.dy, case.x, mean, rstd, case.gamma, need=need)

    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        calls()
        before = cupy_on_cpu.counts()
        calls()
        between = cupy_on_cpu.counts()
        assert between == {**before, "launches": before["launches"] + 7}
        stream.begin_capture()
        try:
            calls()
        finally:
            stream.end_capture()
        assert cupy_on_cpu.counts() == between


@pytest.mark.parametrize("shape", SOME)
def test_nothing_is_allocated_but_results_and_a_workspace(shape: Shape) -> None:
    case = Case("float32", shape)
    case.run()
    before = cupy_on_cpu.counts()["allocations"]
    results = case.run()
    # Statistics are one allocation, and two calls have a workspace.
    assert cupy_on_cpu.counts()["allocations"] - before == len(results)


def normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.standard_normal(shape)


def with_part(factor: float) -> Callable[[np.random.Generator, Shape], np.ndarray]:
    """Return values of which a part has another magnitude."""

    def values(rng: np.random.Generator, shape: Shape) -> np.ndarray:
        x = normal(rng, shape)
        x[: shape[0] // 3] *= factor
        return x

    return values


def signs(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    x = np.ones(shape)
    x[: shape[0] // 2] = -1
    return x


VALUES: dict[str, Callable[[np.random.Generator, Shape], np.ndarray]] = {
    "normal": normal,
    "mean 1e4": lambda rng, shape: 1e4 + normal(rng, shape),
    "mean 1e6": lambda rng, shape: 1e6 + normal(rng, shape),
    "1e30": lambda rng, shape: 1e30 * normal(rng, shape),
    "1e-30": lambda rng, shape: 1e-30 * normal(rng, shape),
    "mean 1e30": lambda rng, shape: 1e30 + 1e24 * normal(rng, shape),
    "a part of 1e30": with_part(1e30),
    "a part of 1e-30": with_part(1e-30),
    "plus and minus 1e30": lambda rng, shape: 1e30 * signs(rng, shape),
    "plus and minus 1e-30": lambda rng, shape: 1e-30 * signs(rng, shape),
    "a slope": lambda rng, shape: (
        np.linspace(-1e6, 1e6, shape[0])[:, None, None] + normal(rng, shape)
    ),
    "an outlier": lambda rng, shape: (
        normal(rng, shape) + 1e4 * (np.arange(shape[0]) == 2)[:, None, None]
    ),
    "an outlier first": lambda rng, shape: (
        normal(rng, shape) + 1e4 * (np.arange(shape[0]) == 0)[:, None, None]
    ),
}
PARTS: list[Shape] = [(9, 2, 1100), (9, 2, 1025), (70, 12, 3), (9000, 3, 1), (6, 7, 1)]
"""Of which channels have several parts, or one."""


@pytest.mark.parametrize("epsilon", [1e-5, 0])
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("shape", PARTS)
def test_accuracy(kind: str, shape: Shape, epsilon: float) -> None:
    """Test any magnitude, also one that differs between parts, and any mean."""
    x = VALUES[kind](np.random.default_rng(1), shape)
    case = Case("float32", shape, epsilon=epsilon, x=x)
    check(case)


@pytest.mark.parametrize("shape", PARTS)
@pytest.mark.parametrize("value", [0, 0.1, 1e30, -1e-30])
def test_a_constant_channel_gives_beta(shape: Shape, value: float) -> None:
    case = Case("float32", shape, x=np.full(shape, value))
    y, mean, var, rstd, dx, *_ = case.run()
    assert (y == case.beta[:, None]).all()
    assert (mean == np.float32(value)).all()
    assert (var == 0).all()
    np.testing.assert_allclose(rstd.get(), 1e-5**-0.5, rtol=1e-6)
    assert cupy.isfinite(dx).all()


@pytest.mark.parametrize("shape", PARTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_value_affects_only_its_channel(shape: Shape, value: float) -> None:
    x = normal(np.random.default_rng(1), shape)
    x[shape[0] // 2, 1, -1] = value
    y, _, _, rstd, dx, dgamma, *_ = (each.get() for each in Case("float32", shape, x=x).run())
    others = np.arange(shape[1]) != 1
    for each in (y, dx):
        assert np.isnan(each[:, 1]).any()
        assert np.isfinite(each[:, others]).all()
    assert not rstd[1] > 0
    assert np.isfinite(dgamma[others]).all()


def test_one_value_for_each_channel() -> None:
    case = Case("float32", (1, 300, 1))
    y, _, var, _, dx, *_ = case.run()
    assert (y[0, :, 0] == case.beta).all()
    assert (var == 0).all()
    assert (dx == 0).all()


@pytest.mark.parametrize("shape", [(100_000, 3, 1), (70, 3, 5000)])
def test_sums_over_many_elements(shape: Shape) -> None:
    check(Case("float32", shape))
