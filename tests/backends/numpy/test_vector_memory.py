"""Loads and stores: conversions of all bit patterns, the ends of memory, alignment."""

from __future__ import annotations

import mmap
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from engine_arrays import DTYPES, bits, needs_mprotect, run_before_a_hole, viewed
from ln_array_api_backends.numpy import simd
from ln_array_api_backends.numpy import vector_memory as vm
from numba import njit


def is_nan(array: np.ndarray) -> np.ndarray:
    """By their bits, since NumPy warns of signalling ones."""
    infinity = {"float16": 0x7C00, "bfloat16": 0x7F80}[array.dtype.name]
    return bits(array) & 0x7FFF > infinity


@njit
def copy(source: Any, target: Any, like: Any) -> None:
    one = simd.ones(like)
    for i in range(0, source.size, simd.lanes(one)):
        vm.store(
            vm.data_pointer(target),
            i,
            vm.load(vm.data_pointer(source), i, one),
        )


@njit
def copy_first(source: Any, target: Any, start: int, count: int, whole: Any) -> None:
    """Of `source`, `count` elements from `start` on to `target`; the vector itself to `whole`."""
    one = simd.ones(whole)
    vector = vm.load_vector(vm.data_pointer(source), start, count, one)
    vm.store(vm.data_pointer(whole), 0, vector)
    vm.store_masked(vm.data_pointer(target), start, vector, count)


@njit
def stream_all(source: Any, target: Any) -> None:
    one = simd.ones(source)
    for i in range(0, source.size, simd.lanes(one)):
        vm.store_non_temporal(
            vm.data_pointer(target),
            i,
            vm.load(vm.data_pointer(source), i, one),
        )
    vm.fence()


@njit
def ahead(array: Any, index: int, like: Any) -> int:
    return vm.elements_to_alignment(vm.data_pointer(array), index, simd.ones(like))


@njit
def from_scratch_to_alignment(like: Any) -> int:
    one = simd.ones(like)
    numbers, more = vm.stack_alloc(one, 3), vm.stack_alloc(one, 16)
    vm.store(more, 0, one)
    numbers[0] = more[0]
    lanes = simd.lanes(one)
    return vm.elements_to_alignment(numbers, 0, one) + lanes * vm.elements_to_alignment(
        more, 0, one
    )


def random(dtype: str, size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal(size).astype(DTYPES[dtype])


def aligned(size: int, dtype: Any, ahead: int = 0) -> np.ndarray:
    """Zeros whose address is a multiple of 64, plus `ahead` bytes."""
    dtype = np.dtype(dtype)
    memory = np.zeros(size * dtype.itemsize + 128, np.uint8)
    start = -memory.ctypes.data % 64 + ahead
    return memory[start : start + size * dtype.itemsize].view(dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("wide", ["float32", "float64"])
def test_all_16_bit_numbers_widen_exactly(dtype: str, wide: str) -> None:
    source = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    target = np.empty(source.size, wide)
    copy(viewed(source), target, target)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        expected = source.astype(wide)
    np.testing.assert_array_equal(target, expected)
    np.testing.assert_array_equal(np.signbit(target), np.signbit(expected))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_16_bit_numbers_survive_a_load_and_a_store(dtype: str) -> None:
    source = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    target = np.empty_like(source)
    copy(viewed(source), viewed(target), np.empty(1, np.float32))
    nan = is_nan(source)
    np.testing.assert_array_equal(bits(target)[~nan], bits(source)[~nan])
    assert nan.sum() == (2 * 1023 if dtype == "float16" else 2 * 127)
    assert is_nan(target[nan]).all()


def around_each_boundary(dtype: str) -> np.ndarray:
    """float32 numbers at, halfway between, and next to halfway between numbers of a dtype."""
    if dtype == "bfloat16":
        high = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
        low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
        return (high | low).ravel().view(np.float32)
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    beyond = np.append(every[1:], np.float32(65536))
    middle = ((every.astype(np.float64) + beyond) / 2).astype(np.float32)
    positive = [every, middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)]
    positive.append(np.array([65504, 65519.996, 65520, 1e30, np.inf, np.nan, 1e-45], np.float32))
    values = np.concatenate(positive)
    values = np.concatenate([values, -values])
    return np.append(values, np.zeros(-values.size % 16, np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stores_round_to_nearest_even(dtype: str) -> None:
    source = around_each_boundary(dtype)
    target = np.empty(source.size, DTYPES[dtype])
    copy(source, viewed(target), source)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = source.astype(DTYPES[dtype])
    nan = np.isnan(source)
    np.testing.assert_array_equal(bits(target)[~nan], bits(expected)[~nan])
    assert nan.any()
    assert is_nan(target[nan]).all()
    np.testing.assert_array_equal(
        np.signbit(target[nan].astype(np.float32)), np.signbit(source[nan])
    )
    truncated = (source.view(np.uint32) >> 16).astype(np.uint16)
    assert dtype == "float16" or (bits(expected)[~nan] != truncated[~nan]).mean() > 0.2


def test_float64_rounds_to_nearest_when_loaded_as_float32() -> None:
    rng = np.random.default_rng(1)
    source = np.ldexp(rng.standard_normal(4096), rng.integers(-150, 130, 4096))
    source[:6] = [1 + 2.0**-24, 1 + 3 * 2.0**-24, np.nan, np.inf, -np.inf, 1e300]
    target = np.empty(source.size, np.float32)
    copy(source, target, target)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(target, source.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_elements_and_no_others(dtype: str) -> None:
    whole = np.empty(8 if dtype == "float64" else 16, "float64" if dtype == "float64" else "f4")
    source = random(dtype, 64)
    guard = DTYPES[dtype].type(7)
    for start in (0, 1, 5):
        for count in range(whole.size + 1):
            target = np.full(64, guard)
            copy_first(viewed(source), viewed(target), start, count, whole)
            given = source[start : start + count]
            np.testing.assert_array_equal(whole[:count], given.astype(whole.dtype))
            assert (whole[count:] == 0).all()
            np.testing.assert_array_equal(target[start : start + count], given)
            assert (target[:start] == guard).all()
            assert (target[start + count :] == guard).all()


AT_THE_END = """
from numba import njit
from ln_array_api_backends.numpy import simd
from ln_array_api_backends.numpy import vector_memory as vm

@njit
def first(source, target, start, count, like):
    one = simd.ones(like)
    vector = vm.load_vector(vm.data_pointer(source), start, count, one)
    vm.store_masked(vm.data_pointer(target), start, vector, count)

@njit
def whole(source, target, start, count, like):
    one = simd.ones(like)
    source_ptr = vm.data_pointer(source)
    vm.prefetch(source_ptr, source.size + 1000)
    vm.store(vm.data_pointer(target), 0, vm.load(source_ptr, start, one))

memory, target = before_a_hole(np.uint8), before_a_hole(np.uint8)
for kind, like in (("i2", "f4"), ("u2", "f4"), ("f4", "f4"), ("f8", "f8"), ("f8", "f4")):
    source, to = memory.view(kind), target.view(kind)
    source[-16:] = np.arange(1, 17) << (7 if kind == "u2" else 0)
    for count in range(1, 64 // np.dtype(like).itemsize):
        to[...] = 99
        {function}(source, to, source.size - count, count, np.empty(1, like))
        if like == kind:
            assert (to[-count:] == source[-count:]).all()
        assert (to[:-count] == 99).all()
print("done", flush=True)
"""


def at_the_end(function: str) -> subprocess.CompletedProcess[str]:
    script = AT_THE_END.replace("{function}", function)
    return run_before_a_hole(script)


@needs_mprotect
def test_the_first_elements_at_the_end_of_memory() -> None:
    result = at_the_end("first")
    assert (result.stdout, result.returncode) == ("done\n", 0), result.stderr


@needs_mprotect
def test_a_whole_vector_at_the_end_of_memory_would_fault() -> None:
    assert at_the_end("whole").returncode in (-signal.SIGSEGV, -signal.SIGBUS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vectors_in_scratch_memory_do_not_cross_lines(dtype: str) -> None:
    assert from_scratch_to_alignment(np.ones(1, dtype)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_to_alignment(dtype: str) -> None:
    size = DTYPES[dtype].itemsize
    lanes = 8 if dtype == "float64" else 16
    like = np.ones(1, "float64" if dtype == "float64" else "float32")
    for offset in range(0, 64, size):
        array = viewed(aligned(200, DTYPES[dtype], offset))
        for index in (0, 1, 7, 100):
            place = array.ctypes.data + index * size
            count = ahead(array, index, like)
            assert 0 <= count < lanes
            assert (place + count * size) % (lanes * size) == 0


def test_what_is_absent_is_aligned() -> None:
    assert ahead(None, 3, np.ones(1)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_streamed_bits_are_stored_bits(dtype: str) -> None:
    wide = np.float64 if dtype == "float64" else np.float32
    source = np.random.default_rng(4).standard_normal(1024).astype(wide)
    streamed, stored = aligned(1024, DTYPES[dtype]), aligned(1024, DTYPES[dtype])
    stream_all(source, viewed(streamed))
    copy(source, viewed(stored), source)
    np.testing.assert_array_equal(bits(streamed), bits(stored))
    assert stored.any()


@pytest.mark.skipif(sys.maxsize < 1 << 32, reason="needs an address space of 64 bits")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is lent beyond what there is by Linux")
def test_elements_beyond_2_to_the_31() -> None:
    far = (1 << 31) + 1000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    with mmap.mmap(-1, 4 * (far + 64), flags=flags) as memory:
        array = np.frombuffer(memory, np.float32)
        values, whole = random("float32", 32), np.empty(16, np.float32)
        array[far : far + 32] = values
        copy_first(array, array, far, 16, whole)
        np.testing.assert_array_equal(whole, values[:16])
        copy_first(array, array, far + 16, 5, whole)
        np.testing.assert_array_equal(whole[:5], values[16:21])
        assert ahead(array, far, array) == -(array.ctypes.data // 4 + far) % 16
        copy_far(array, far, far + 32)
        np.testing.assert_array_equal(array[far + 32 : far + 48], values[:16])
        wrapped = np.array([far, far + 16, far + 32]) - (1 << 31)
        assert not array[wrapped[0] : wrapped[-1] + 16].any()
        del array


@njit
def copy_far(array: Any, source: int, target: int) -> None:
    place = vm.data_pointer(array)
    vm.store(place, target, vm.load(place, source, simd.ones(array)))
