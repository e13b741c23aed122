"""The check of resources finds kernels that need too much."""

from __future__ import annotations

import subprocess
import sys

import cupy_on_cpu
import pytest
import resources
from ln_array_api_backends.cupy import launch_config, rows_dispatch
from ln_array_api_backends.cupy.launch_config import forward_shape
from machine_code import FastPath
from resources import ARCHITECTURES, Row, Usage, row_of
from row_kernels import RowKernel

GOOD = Usage(0, 0, 64, 96, 128, 4, 8, 4, 4, 0)
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


@pytest.mark.parametrize(
    ("name", "vectors"),
    [
        ("rows_forward<float, float, 256, 1, 4, true, PER_ELEMENT>", 4),
        ("segment_moments<__nv_bfloat16, 512, 4, false>", 4),
        ("rows_backward<__half, __half, float, 512, 1, 2, true, false, REPEATED>", 4),
        ("rows_backward<float, float, float, 512, 1, 8, false, true, PER_ELEMENT>", 4),
        ("segments_backward<float, float, float, 512, 4, true, PER_CHUNK>", 8),
        ("rows_backward<__half, float, float, 32, 4, 2, true, true, PER_ELEMENT>", 4),
        ("rows_backward<double, double, double, 256, 1, 4, true, true, PER_ELEMENT>", 1),
        ("reduce_partials<float, float, float, 32, 32>", 0),
    ],
)
def test_vectors_of_a_row(name: str, vectors: int) -> None:
    row = RowKernel.of(name)
    assert (row.vectors_in_flight if row else 0) == vectors
    usage = GOOD._replace(registers=32, threads=128, in_flight=vectors, instructions=100)
    assert usage.faults(name, ARCHITECTURES["80"]) == []
    if vectors:
        fault = f"a wait for {vectors - 1} vectors, not {vectors}"
        fewer = usage._replace(in_flight=vectors - 1)
        assert fewer.faults(name, ARCHITECTURES["80"]) == [fault]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rows_backward<__half, __half, __half, 32, 4, 1, true, true, PER_CHUNK>", False),
        ("rows_backward<__half, __half, __half, 128, 1, 2, true, true, REPEATED>", True),
        ("rows_backward<__half, __half, __half, 512, 1, 4, false, true, PER_CHUNK>", False),
        ("rows_forward<float, float, 256, 1, 4, true, PER_ELEMENT>", False),
    ],
)
def test_which_kernels_load_the_next_row(name: str, expected: bool) -> None:
    row = RowKernel.of(name)
    assert row is not None
    assert row.loads_next_row == expected


def test_instructions_of_a_row() -> None:
    name = "rows_forward<__half, float, 256, 1, 4, true, PER_ELEMENT>"
    row = RowKernel.of(name)
    assert row is not None
    assert (row.elements, row.path) == (32, FastPath(loads=20, stores=4))
    most = row.most_instructions
    for instructions, faults in ((most, []), (most + 1, [f"{most + 1} instructions, not {most}"])):
        usage = GOOD._replace(registers=32, threads=256, claimed=2, instructions=instructions)
        assert usage.faults(name, ARCHITECTURES["80"]) == faults


#: Changes after which a kernel waits more than once for a row, or executes too much.
SLOW_CODE = {
    "a load used early": (
        "chunks[i].load(ptr + c);",
        "{ chunks[i].load(ptr + c); if (chunks[i].vectors[0].x == 7) chunks[i].vectors[0].y = 0; }",
    ),
    "a conversion in a branch": (
        "chunks[i].load(ptr + c);",
        "{ float v[VEC]; load_vec<true>(ptr + c, v); "
        "for (int j = 0; j < VEC; ++j) chunks[i].elements[j] = T(v[j]); }",
    ),
    "a quotient for each element": (
        "row_stats.x_hat(values[j])",
        "row_stats.x_hat(values[j]) / (1 + row_stats.rstd())",
    ),
}


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="the same under a sanitizer")
@pytest.mark.parametrize("what", SLOW_CODE)
def test_slow_code_is_found(what: str) -> None:
    name = "rows_forward<__nv_bfloat16, __nv_bfloat16, 256, 1, 4, true, PER_ELEMENT>"
    right, (old, new) = rows_dispatch.source(), SLOW_CODE[what]
    assert right.count(old) == 1
    for source, is_right in ((right, True), (right.replace(old, new), False)):
        usages = resources.compiled(source, ("-std=c++17",), (name,), "90")
        assert (usages[name].faults(name, ARCHITECTURES["90"]) == []) == is_right


@pytest.mark.parametrize(("dtype", "n"), [("bfloat16", 1 << 15), ("float32", 1 << 15)])
def test_rows_that_a_block_can_hold_are_read_once(
    dtype: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "a block of 32 warps" in str(forward_shape(dtype, n))
    assert forward_shape(dtype, n + 1) is None
    monkeypatch.setattr(launch_config, "FORWARD_CHUNKS", 2)
    assert forward_shape(dtype, n) is None  # a launch too many would be found


@pytest.mark.parametrize("name", ["column_sums<float, {}, 4>", "plane_moments<__half, {}, 4, 8>"])
def test_only_full_vectors_are_expected(name: str) -> None:
    on, scalar = ARCHITECTURES["80"], GOOD._replace(vector_loads=0, vector_stores=0)
    assert scalar.faults(name.format(1), on) == []
    assert scalar.faults(name.format(4 if "float" in name else 8), on) == ["no load of 128 bits"]


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="the same under a sanitizer")
def test_compiler_output() -> None:
    names = ["many_values<128>", "any_value<100>", "vectors<9>"]
    sources, on = dict.fromkeys(names, KERNELS), dict.fromkeys(ARCHITECTURES, names)
    usages = resources.measured(sources, ("-std=c++17",), on)
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
    names = printed.decode().splitlines()
    rows = {row_of(name) for name in names}
    assert {row.dtype for row in rows} == {"float16", "bfloat16", "float32", "float64"}
    assert {row.parameters for row in rows} == {"", "wider"}
    assert {"rows_forward", "rows_backward"} <= {row.kernel for row in rows}
    assert {row.kernel for row in rows} >= resources.WITH_VECTOR_WIDTH
    # Arrays of float64 are cast unless x has that dtype.
    assert all(row_of(name).dtype == "float64" for name in names if "double" in name)


def test_rows() -> None:
    assert row_of("f<__half, __half, 4, 1, true>") == Row("f", "float16", "4, 1", "")
    assert row_of("f<float, double, 4, true>") == Row("f", "float32", "4", "wider")
