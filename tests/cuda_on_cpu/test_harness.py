"""The harness: that CuPy works on it, and that it finds what is wrong with a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _order() -> Iterator[None]:
    yield
    cupy_on_cpu.set_order("forward")


def test_kernels_of_every_kind() -> None:
    x = cupy.arange(1000, dtype=np.float32)
    square = cupy.ElementwiseKernel("T x", "T y", "y = x * x", "square")
    largest = cupy.ReductionKernel("T x", "T y", "x", "max(a, b)", "y = a", "0", "largest")
    double = cupy.RawKernel(
        'extern "C" __global__ void twice(const float* x, float* y) '
        "{ y[threadIdx.x] = 2 * x[threadIdx.x]; }",
        "twice",
    )
    y = cupy.empty(10, np.float32)
    double((1,), (10,), (x, y))
    plain = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(square(x).get(), plain * plain)
    assert float(largest(x)) == 999
    np.testing.assert_array_equal(y.get(), 2 * plain[:10])
    np.testing.assert_array_equal((x + y[0]).sum().get(), plain.sum())


def test_memory_that_nothing_was_written_to_is_nan() -> None:
    assert cupy.isnan(cupy.empty(100, np.float64)).all()


def test_what_a_call_costs_is_counted() -> None:
    x = cupy.zeros(3)
    before = cupy_on_cpu.counts()
    x += 1
    between = cupy_on_cpu.counts()
    assert between == {**before, "launches": before["launches"] + 1}
    x.get()
    after = cupy_on_cpu.counts()
    assert after["copies_to_host"] == between["copies_to_host"] + 1


def test_a_captured_graph_runs_when_it_is_launched() -> None:
    x = cupy.zeros(3, np.float32)
    y = cupy.ones(3, np.float32)
    x += 1
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        x += 1
        y[...] = x
        graph = stream.end_capture()
    assert (x.get() == 1).all()
    graph.launch(stream)
    graph.launch(stream)
    assert (x.get() == 3).all()
    assert (y.get() == 3).all()


@pytest.mark.parametrize(
    "forbidden",
    [lambda x: x.get(), lambda x: cupy.empty(9), lambda x: cupy.cuda.Device().synchronize()],
    ids=["a copy to the host", "an allocation", "a synchronisation"],
)
def test_what_a_capture_does_not_allow_is_refused(forbidden: Callable[[Any], Any]) -> None:
    x = cupy.zeros(3)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises((RuntimeError, MemoryError)):
                forbidden(x)
        finally:
            stream.end_capture()


def launch(body: str, threads: int = 64) -> np.ndarray:
    """What threads write to y, an array of an int for each."""
    code = f'extern "C" __global__ void kernel(int* y) {{ const int t = threadIdx.x; {body} }}'
    y = cupy.zeros(threads, np.int32)
    cupy.RawKernel(code, "kernel")((1,), (threads,), (y,))
    return np.asarray(y.get())


def test_shuffles_and_votes() -> None:
    t = np.arange(64)
    assert (launch("y[t] = __shfl_xor_sync(~0u, t, 5);") == t ^ 5).all()
    assert (launch("y[t] = __shfl_sync(~0u, t, 3);") == t // 32 * 32 + 3).all()
    down = launch("y[t] = __shfl_down_sync(~0u, t, 1);")
    assert (down == np.where(t % 32 == 31, t, t + 1)).all()
    assert (launch("y[t] = __ballot_sync(~0u, t % 2);").view(np.uint32) == 0xAAAAAAAA).all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (t < 32) __syncthreads();", "deadlock: 32 threads at __syncthreads"),
        ("if (t % 32) __syncwarp();", "deadlock"),
        ("if (t < 32) return; __syncthreads();", "deadlock"),
        ("if (t < 32) __syncthreads();\nelse __syncthreads();", "__syncthreads of lines 1 and 2"),
        ("if (t % 2) __syncwarp();\nelse __syncwarp();", "warp barriers of lines 2 and 1 met"),
        ("if (t < 4) y[t] = __shfl_sync(15, t, 9);", "shuffle from lane 9, which takes no part"),
        ("if (t < 4) __syncwarp(3);", "lane 2 is not in its own mask"),
        ("*reinterpret_cast<int4*>(y + 1) = int4{t};", "not aligned to 16 bytes"),
    ],
)
def test_what_a_gpu_would_not_do_is_reported(body: str, message: str) -> None:
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match=message):
        launch(body)


def test_a_missing_barrier_makes_a_difference_between_orders() -> None:
    body = "__shared__ int s[64]; s[t] = t; {} y[t] = s[63 - t];"
    results = {}
    for barrier in ("", "__syncthreads();"):
        for order in cupy_on_cpu.ORDERS:
            cupy_on_cpu.set_order(order)
            results[barrier, order] = launch(body.format(barrier)).tobytes()
    assert len({bits for (barrier, _), bits in results.items() if barrier}) == 1
    assert len({bits for (barrier, _), bits in results.items() if not barrier}) > 1


@pytest.mark.skipif(not cupy_on_cpu.FILLS_SHARED_MEMORY, reason="not with this compiler")
def test_shared_memory_that_nothing_was_written_to_is_filled() -> None:
    assert (launch("__shared__ int s[64]; if (t > 99) s[0] = 1; y[t] = s[t];") == -1).all()
