"""The cost of a call on the host: launches, memory, synchronisation, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from ln_array_api_backends.cupy import rows_dispatch
from test_kernels import DTYPES, Case

import ln_array_api as ln
from ln_array_api import _arrays, backend
from ln_array_api._dispatch.rows import LAYER, forward_plan


def launches(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    before = cupy_on_cpu.counts()["launches"]
    function(*arguments, **options)
    return cupy_on_cpu.counts()["launches"] - before


def arrays(dtype: str, n: int) -> tuple[Any, ...]:
    """Return x, gamma and beta of layer norm, with few rows."""
    x = cupy.ones((3, n), DTYPES[dtype])
    return x, x[0], x[0]


@pytest.fixture
def _idle() -> Iterator[None]:
    cupy_on_cpu.driver.fake_cuda_set_idle(1)
    yield
    cupy_on_cpu.driver.fake_cuda_set_idle(0)


@pytest.mark.usefixtures("_idle")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 400, 3072, 4096, 32768, 65536])
def test_rows_of_64_kib_take_one_launch_forward_and_two_backward(dtype: str, size: int) -> None:
    """These are 16384 elements of float32 or of 16 bits, which are summed in float32."""
    n = size // max(4, np.dtype(DTYPES[dtype]).itemsize)
    x, gamma, beta = arrays(dtype, n)
    assert launches(ln.layer_norm, x, gamma, beta) == 1
    assert launches(ln.layer_norm_forward, x, gamma, beta) == 1
    assert launches(ln.rms_norm, x, gamma) == 1
    _, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
    assert launches(ln.layer_norm_backward, x, x, mean, rstd, gamma) <= 2
    assert launches(ln.rms_norm_backward, x, x, rstd, gamma) <= 2


@pytest.mark.usefixtures("_idle")
def test_longer_rows_take_two_launches_forward_and_three_backward() -> None:
    x, gamma, beta = arrays("float32", 40000)
    assert launches(ln.layer_norm, x, gamma, beta) == 2
    _, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
    assert launches(ln.layer_norm_backward, x, x, mean, rstd, gamma) == 3
    assert launches(ln.layer_norm_backward, x, x, mean, rstd, gamma, need=("dx",)) == 2


@pytest.mark.usefixtures("_idle")
@pytest.mark.parametrize("n", [40, 12000, 40000])
@pytest.mark.parametrize("need", list(product((False, True), repeat=3)))
def test_unneeded_gradients_are_not_launched(n: int, need: tuple[bool, bool, bool]) -> None:
    case = Case("float32", 700, n) if n == 40 else Case("float32", 7, n)
    count = launches(case.run, need=need) - (1 if n < 40000 else 2)
    of_rows = 0 if not (need[0] or need[1]) else 1 if n < 40000 else 2
    of_parameters = int(need[1] or need[2]) + (not of_rows and need[2] and n == 40)
    assert count == of_rows + of_parameters


#: Time of a call divided by that of an addition in CuPy: 1.5 where it was measured.
LIMIT = 2.0
LIMIT_OF_GUARD = 1e-6


@pytest.fixture
def _one_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make plans as with one device, which do not check the current device."""
    library = _arrays.library_of(cupy.empty(0))
    assert library.current_device is not None
    monkeypatch.setitem(_arrays._libraries, cupy.ndarray, library._replace(current_device=None))
    backend.plans.clear()
    yield
    backend.plans.clear()


def best_round(call: Callable[[], Any], rounds: int = 1) -> float:
    """Return the seconds of a call in the best of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(200):
            call()
        best = min(best, (time.perf_counter() - begin) / 200)
    return best


def cost(call: Callable[[], Any], patience: float = 30) -> float:
    """Return the time of a call divided by that of an addition in CuPy.

    An addition allocates its result and launches one kernel, too, so a slow machine changes little.
    Each is the best of many rounds; on a busy machine this may take `patience` seconds.
    """
    x, gamma, _ = arrays("float32", 64)
    give_up = time.monotonic() + patience
    best, addition = best_round(call), best_round(lambda: cupy.add(x, gamma))
    while best > LIMIT * addition and time.monotonic() < give_up:
        addition = min(addition, best_round(lambda: cupy.add(x, gamma)))
        best = min(best, best_round(call))
    return best / addition


def small_call(function: Callable[..., Any]) -> Callable[[], Any]:
    x, gamma, beta = arrays("float32", 64)
    return lambda: function(x, gamma, beta)


@pytest.fixture
def _pooled() -> Iterator[None]:
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):
        yield


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="a sanitizer takes its time")
@pytest.mark.usefixtures("_idle", "_pooled", "_one_device")
@pytest.mark.parametrize("function", [ln.layer_norm, ln.layer_norm_forward])
def test_a_call_costs_the_host_as_much_as_two_additions_at_most(
    function: Callable[..., Any],
) -> None:
    """The device only counts launches."""
    assert cost(small_call(function)) <= LIMIT


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="a sanitizer takes its time")
@pytest.mark.usefixtures("_idle", "_pooled")
def test_several_devices_add_a_microsecond_at_most(request: pytest.FixtureRequest) -> None:
    """The call is on the current device."""
    x, gamma, beta = arrays("float32", 64)
    call = ("layer_norm", LAYER, x, gamma, beta, -1, 1e-5)
    several = forward_plan(*call)
    request.getfixturevalue("_one_device")
    one = forward_plan(*call)
    best, give_up = {}, time.monotonic() + 30
    while not best or (best[several] > best[one] + LIMIT_OF_GUARD and time.monotonic() < give_up):
        for plan in (one, several):
            begin = time.perf_counter()
            for _ in range(200):
                plan.forward(x, gamma, beta, None)
            seconds = (time.perf_counter() - begin) / 200
            best[plan] = min(seconds, best.get(plan, seconds))
    assert best[several] <= best[one] + LIMIT_OF_GUARD


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="a sanitizer takes its time")
@pytest.mark.usefixtures("_idle", "_pooled", "_one_device")
def test_a_delay_of_a_call_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delay is that of one more allocation, conversion and launch."""

    def slow(*arguments: Any) -> Any:
        normal = launcher(*arguments)

        def launch(*arrays: Any) -> None:
            end = time.perf_counter() + delay
            while time.perf_counter() < end:
                pass
            normal(*arrays)

        return launch

    launcher, x = rows_dispatch.bind_launch, arrays("float32", 64)[0]
    delay = best_round(lambda: cupy.add(x, x), rounds=20)
    call = small_call(ln.layer_norm_forward)
    call()  # makes its plan
    monkeypatch.setattr(rows_dispatch, "bind_launch", slow)
    x, gamma, beta = arrays("float32", 65)
    delayed = cost(lambda: ln.layer_norm_forward(x, gamma, beta), patience=1)
    assert delayed > LIMIT >= cost(call)
