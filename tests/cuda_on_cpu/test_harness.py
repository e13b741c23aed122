"""The harness: CuPy works with it, and it finds faults of a kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from cupy._util import PerformanceWarning


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


@pytest.mark.parametrize("order", cupy_on_cpu.ORDERS)
@pytest.mark.parametrize("size", [1, 24, 31, 33, 511, 512, 513, 5000])
def test_cumulative_sums_and_masks_agree_with_numpy(size: int, order: str) -> None:
    """CuPy's kernels for these depend on the warp size that the device reports."""
    cupy_on_cpu.set_order(order)
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    mask = x > 0
    on_device, chosen = cupy.asarray(x), cupy.asarray(mask)
    np.testing.assert_array_equal(cupy.cumsum(chosen).get(), np.cumsum(mask))
    np.testing.assert_array_equal(on_device[chosen].get(), x[mask])
    on_device[chosen] = 2 * on_device[chosen]
    np.testing.assert_array_equal(on_device.get(), np.where(mask, 2 * x, x))
    on_device[chosen] = cupy.nan
    np.testing.assert_array_equal(on_device.get(), np.where(mask, np.nan, x))


def test_unwritten_memory_is_nan() -> None:
    assert cupy.isnan(cupy.empty(100, np.float64)).all()


def test_costs_of_a_call_are_counted() -> None:
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
def test_a_capture_refuses_forbidden_calls(forbidden: Callable[[Any], Any]) -> None:
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
    """Return what threads write to y, an array with an int for each."""
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
def test_errors_of_a_gpu_are_reported(body: str, message: str) -> None:
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
def test_unwritten_shared_memory_is_filled() -> None:
    assert (launch("__shared__ int s[64]; if (t > 99) s[0] = 1; y[t] = s[t];") == -1).all()


FILL = cupy.RawKernel(
    'extern "C" __global__ void fill(float* y) { y[threadIdx.x] = threadIdx.x; }', "fill"
)
SQUARE = cupy.ElementwiseKernel("T x", "T y", "y = x * x", "square")


def zeros_on(device: int) -> cupy.ndarray:
    with cupy.cuda.Device(device):
        return cupy.zeros(64, np.float32)


def test_memory_belongs_to_the_device_that_was_current() -> None:
    x = zeros_on(1)
    assert cupy_on_cpu.memory_device(x.data.ptr) == x.device.id == 1
    assert cupy_on_cpu.memory_device(cupy.zeros(3).data.ptr) == 0
    assert cupy_on_cpu.memory_device(np.zeros(3).ctypes.data) == -1
    assert cupy.cuda.runtime.pointerGetAttributes(x.data.ptr).device == 1


def test_each_thread_has_a_current_device() -> None:
    with cupy.cuda.Device(1), ThreadPoolExecutor(1) as thread:
        assert thread.submit(cupy.cuda.runtime.getDevice).result() == 0
        assert cupy.cuda.runtime.getDevice() == 1
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidDevice"):
        cupy.cuda.Device(2).use()


def test_kernels_run_on_the_current_device() -> None:
    x = zeros_on(1)
    with cupy.cuda.Device(1):
        FILL((1,), (64,), (x,))
        y = SQUARE(x)
    assert y.device.id == 1
    np.testing.assert_array_equal(y.get(), np.arange(64, dtype=np.float32) ** 2)


@pytest.mark.parametrize("captured", [False, True])
def test_a_kernel_cannot_reach_memory_of_another_device(captured: bool) -> None:
    x, stream = zeros_on(1), cupy.cuda.Stream(non_blocking=True)
    with stream:
        if captured:
            stream.begin_capture()
        try:
            for arguments in ((x,), (x.data + 4,)):
                with pytest.raises(
                    cupy.cuda.driver.CUDADriverError,
                    match="a kernel on device 0 got a pointer to memory of device 1",
                ):
                    FILL((1,), (8,), arguments)
        finally:
            if captured:
                stream.end_capture()
    assert not x.get().any()


def test_an_array_that_is_passed_by_value_is_recognised() -> None:
    """Elementwise kernels take arrays by value."""
    code = """
    struct Array { float* data; long long size; };
    extern "C" __global__ void fill(Array x) { x.data[threadIdx.x] = x.size; }
    """
    kernel, y = cupy.RawKernel(code, "fill"), zeros_on(0)
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="ILLEGAL_ADDRESS"):
        kernel((1,), (64,), (zeros_on(1),))
    kernel((1,), (64,), (y,))
    assert (y.get() == 64).all()


def test_handles_of_another_device_are_refused() -> None:
    with cupy.cuda.Device(1):
        function, stream, event = FILL.kernel, cupy.cuda.Stream(), cupy.cuda.Event()
        event.record(stream)
    y = zeros_on(0)
    for launch in (
        lambda: function((1,), (64,), (y,)),
        lambda: FILL((1,), (64,), (y,), stream=stream),
    ):
        with pytest.raises(cupy.cuda.driver.CUDADriverError, match="CUDA_ERROR_INVALID_HANDLE"):
            launch()
    for use in (
        lambda: event.record(cupy.cuda.Stream()),
        lambda: cupy.cuda.get_elapsed_time(event, cupy.cuda.Stream().record()),
    ):
        with pytest.raises(
            cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidResourceHandle"
        ):
            use()
    assert not y.get().any()


def test_copies_between_devices_are_counted() -> None:
    x = zeros_on(1)
    before = cupy_on_cpu.counts()["copies_between_devices"]
    assert x.copy().device.id == 0
    assert cupy_on_cpu.counts()["copies_between_devices"] == before + 1


def test_peer_access_lets_kernels_reach_memory_of_another_device() -> None:
    x = zeros_on(1)
    with pytest.raises(ValueError, match="Peer access is unavailable"):
        SQUARE(x)
    cupy_on_cpu.driver.fake_cuda_set_peer_access(1)
    try:
        with pytest.raises(cupy.cuda.driver.CUDADriverError, match="ILLEGAL_ADDRESS"):
            FILL((1,), (64,), (x,))  # without enabling access
        with pytest.warns(PerformanceWarning, match="activated automatically"):
            assert SQUARE(x).device.id == 0
        FILL((1,), (64,), (x,))
    finally:
        cupy_on_cpu.driver.fake_cuda_set_peer_access(0)
    assert x.get().any()
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="ILLEGAL_ADDRESS"):
        FILL((1,), (64,), (x,))


@pytest.mark.parametrize("count", [1, 3])
def test_the_number_of_devices(count: int) -> None:
    code = "import cupy_on_cpu, cupy; print(cupy.cuda.runtime.getDeviceCount())"
    environment = {**os.environ, "CUDA_ON_CPU_DEVICES": str(count)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(result.stdout) == count
