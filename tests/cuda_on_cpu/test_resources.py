"""The check of resources finds kernels that need too much."""

from __future__ import annotations

import subprocess
import sys

import cupy_on_cpu
import pytest
import resources
from resources import ARCHITECTURES, Row, Usage, row_of

GOOD = Usage(0, 0, 64, 96, 128, 4, 8, 4)
KERNELS = """
template <int N>
__global__ void __launch_bounds__(1024) many_values(float* x) {
    float values[N];
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) x[threadIdx.x * N + i] = values[N - 1 - i] * values[i];
}
template <int N>
__global__ void any_value(float* x, int which) {
    float values[N] = {};
    for (int i = 0; i < N; ++i) values[i * which % N] += x[i];
    x[threadIdx.x] = values[threadIdx.x % N];
}
template <int N>
__global__ void vectors(float4* x) { x[threadIdx.x] = x[threadIdx.x + N]; }
"""


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stack": 8}, "a stack of 8 bytes"),
        ({"spilled": 4}, "4 bytes of registers spilled"),
        ({"registers": 129}, "room for 3 blocks, not 4"),
        ({"shared": 50000}, "room for 3 blocks, not 4"),
        ({"vector_loads": 0}, "no load of 128 bits"),
        ({"vector_stores": 0}, "no store of 128 bits"),
    ],
)
def test_faults(change: dict[str, int], fault: str) -> None:
    on = ARCHITECTURES["80"]
    assert GOOD.faults("rows<float>", on) == []
    assert GOOD._replace(**change).faults("rows<float>", on) == [fault]


@pytest.mark.parametrize("name", ["column_sums<float, {}, 4>", "plane_moments<__half, {}, 4, 8>"])
def test_only_full_vectors_are_expected(name: str) -> None:
    on, scalar = ARCHITECTURES["80"], GOOD._replace(vector_loads=0, vector_stores=0)
    assert scalar.faults(name.format(1), on) == []
    assert scalar.faults(name.format(4 if "float" in name else 8), on) == ["no load of 128 bits"]


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="the same under a sanitizer")
def test_compiler_output() -> None:
    names = ["many_values<128>", "any_value<100>", "vectors<9>"]
    usages = resources.measured(dict.fromkeys(names, KERNELS), ("-std=c++17",), names)
    assert usages.keys() == ARCHITECTURES.keys()
    for usage in usages.values():
        spilling, stacked, vectors = (usage[name] for name in names)
        assert spilling.spilled > 0
        assert spilling.threads == 1024
        assert stacked.stack > 0
        assert vectors.vector_loads == vectors.vector_stores == 1
        assert not vectors.spilled + vectors.stack


def test_every_dtype_and_kernel_is_found() -> None:
    # Alone, since the backend keeps the kernels that it was given, which are none.
    printed = subprocess.run(
        [sys.executable, "kernel_inventory.py"],
        cwd=cupy_on_cpu.HERE,
        capture_output=True,
        check=True,
    ).stdout
    rows = {row_of(name) for name in printed.decode().splitlines()}
    assert {row.dtype for row in rows} == {"float16", "bfloat16", "float32", "float64"}
    assert {row.parameters for row in rows} == {"", "wider"}
    assert {"rows_forward", "rows_backward"} <= {row.kernel for row in rows}
    assert {row.kernel for row in rows} >= resources.WITH_VECTOR_WIDTH


def test_rows() -> None:
    assert row_of("f<__half, __half, 4, 1, true>") == Row("f", "float16", "4, 1", "")
    assert row_of("f<float, double, 4, true>") == Row("f", "float32", "4", "wider")
