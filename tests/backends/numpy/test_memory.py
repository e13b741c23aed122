"""The pool: nobody's memory is anybody else's, none is lost, and the limit holds."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ln_array_api_backends.numpy import memory
from ln_array_api_backends.numpy.memory import MemoryPool

KIB = 1 << 10
SIZES = (1, 100, 4000, 4096, 5000, 70_000, 100_000)


def interval(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.ctypes.data + array.nbytes


def disjoint(arrays: list[np.ndarray]) -> bool:
    intervals = sorted(interval(each) for each in arrays if each.nbytes)
    return all(a[1] <= b[0] for a, b in itertools.pairwise(intervals))


class Walk:
    """Allocates, takes views of, and drops arrays, each filled with a number of its own."""

    def __init__(self, pool: MemoryPool) -> None:
        self.pool = pool
        self.alive: list[tuple[np.ndarray, int]] = []
        self.count = 0

    def step(self, action: int, size: int) -> None:
        if action < 2 or not self.alive:
            self.count += 1
            array = self.pool.empty((size,), np.uint32)
            array[...] = self.count
            self.alive.append((array, self.count))
        elif action == 2:
            place = size % len(self.alive)
            array, mark = self.alive[place]
            self.alive[place] = (array[array.size // 2 :], mark)
        else:
            del self.alive[size % len(self.alive)]

    def check(self) -> None:
        assert disjoint([array for array, _ in self.alive])
        for array, mark in self.alive:
            assert (array == mark).all()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0, 100 * KIB, 1 << 30]),
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(SIZES)), max_size=40),
)
def test_live_arrays_share_no_memory(limit: int, steps: list[tuple[int, int]]) -> None:
    pool = MemoryPool(limit)
    walk = Walk(pool)
    for action, size in steps:
        walk.step(action, size)
        walk.check()
        stats = pool.stats()
        assert stats.free_bytes <= limit
        assert stats.used_bytes >= sum(array.nbytes for array, _ in walk.alive)
    assert pool.stats().hits + pool.stats().misses == walk.count
    walk.alive.clear()
    assert pool.stats().used_bytes == 0


def test_live_arrays_of_many_threads_share_no_memory() -> None:
    pool = MemoryPool(300 * KIB)
    start = threading.Barrier(6)
    before = sys.getswitchinterval()

    def work(seed: int) -> Walk:
        rng = np.random.default_rng(seed)
        walk = Walk(pool)
        start.wait(20)
        for action, place in rng.integers([5, len(SIZES)], size=(250, 2)):
            walk.step(int(action), SIZES[place])
            if action == 0:
                walk.check()
        return walk

    try:
        sys.setswitchinterval(1e-5)
        with ThreadPoolExecutor(6) as threads:
            walks = list(threads.map(work, range(6)))
    finally:
        sys.setswitchinterval(before)
    assert disjoint([array for walk in walks for array, _ in walk.alive])
    for walk in walks:
        walk.check()
    stats = pool.stats()
    assert stats.hits + stats.misses == sum(walk.count for walk in walks)
    assert stats.hits > 0
    assert stats.free_bytes <= pool.limit
    for walk in walks:
        walk.alive.clear()
    assert pool.stats().used_bytes == 0


def test_memory_that_is_given_back_too_early_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(self: MemoryPool, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        block = self._acquire(memory._rounded(shape[0] * 4 + memory._PAGE))
        self._give_back(block)
        return np.ndarray(shape, dtype, block.aligned)

    monkeypatch.setattr(MemoryPool, "empty", empty)
    walk = Walk(MemoryPool())
    walk.step(0, 100)
    walk.check()
    walk.step(0, 100)
    with pytest.raises(AssertionError):
        walk.check()


VIEWS = {
    "rows": lambda x: x[3:5],
    "transposed": lambda x: x.T[1:],
    "bytes": lambda x: x.reshape(-1)[7:].view(np.uint8),
    "every second": lambda x: x[::2],
    "memoryview": lambda x: np.asarray(memoryview(x)),
    "strided": lambda x: np.lib.stride_tricks.as_strided(x, (2, 2), (8, 4)),
    "buffer": lambda x: np.frombuffer(x, np.float32)[5:],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_keeps_the_memory(view: Any) -> None:
    pool = MemoryPool()
    x = pool.empty((50, 100), np.float32)
    x[...] = np.arange(100)
    part = view(x)
    expected = part.copy()
    used = pool.stats().used_bytes
    del x
    gc.collect()
    assert pool.stats().used_bytes == used
    other = pool.empty((50, 100), np.float32)
    other[...] = -1
    assert not np.shares_memory(part, other)
    np.testing.assert_array_equal(part, expected)
    del part
    gc.collect()
    assert pool.stats()[:2] == (used, used)


def test_the_next_result_of_that_size_takes_the_memory() -> None:
    pool = MemoryPool()
    x = pool.empty((100, 100), np.float64)
    address = x.ctypes.data
    assert pool.stats()[1:] == (0, 0, 1)
    del x
    y = pool.empty((20_000 - 40,), np.float32)
    assert y.ctypes.data == address
    assert pool.stats()[1:] == (0, 1, 1)
    z = pool.empty((100, 100), np.float64)
    assert z.ctypes.data != address
    assert pool.stats()[2:] == (1, 2)


def test_other_sizes_do_not_take_it() -> None:
    pool = MemoryPool()
    pool.empty((100_000,), np.uint8)
    for size in (50_000, 200_000):
        assert pool.empty((size,), np.uint8).nbytes == size
    assert pool.stats().hits == 0


def test_the_one_that_has_waited_longest_is_freed_first() -> None:
    pool = MemoryPool(250 * KIB)
    arrays = [pool.empty((100 * KIB - 64,), np.uint8) for _ in range(3)]
    addresses = [each.ctypes.data for each in arrays]
    while arrays:
        del arrays[0]
    again = [pool.empty((100 * KIB - 64,), np.uint8) for _ in range(2)]
    assert [each.ctypes.data for each in again] == addresses[:0:-1]
    assert pool.stats().hits == 2


def test_a_limit_of_0_turns_the_pool_off() -> None:
    pool = MemoryPool(0)
    for _ in range(3):
        x = pool.empty((10_000,), np.float32)
        assert pool.stats().used_bytes >= x.nbytes
        del x
        assert pool.stats()[:2] == (0, 0)
    assert pool.stats()[2:] == (0, 3)
    assert not pool._free


def test_lowering_the_limit_frees_what_is_beyond() -> None:
    pool = MemoryPool()
    arrays = [pool.empty((50_000,), np.uint8) for _ in range(4)]
    arrays.clear()
    free = pool.stats().free_bytes
    assert free >= 200_000
    pool.limit = free // 2
    assert pool.limit == free // 2
    assert 0 < pool.stats().free_bytes <= free // 2
    pool.limit = 1
    assert pool.stats().free_bytes == 0
    assert sum(each.nbytes for each in pool._free) == 0
    pool.limit = 1 << 30
    assert pool.limit == 1 << 30


def test_free_all_frees_what_nobody_uses() -> None:
    pool = MemoryPool()
    kept, dead = (pool.empty((50_000,), np.uint8) for _ in range(2))
    kept[...] = 3
    del dead
    used = pool.stats().used_bytes
    assert pool.stats().free_bytes > 0
    pool.free_all()
    assert pool.stats()[:2] == (used, 0)
    assert (kept == 3).all()
    del kept
    assert pool.stats()[:2] == (0, used)


@pytest.mark.parametrize("limit", [-1, 1.5, "64 MiB", None, float("inf")])
def test_a_wrong_limit_is_an_error(limit: Any) -> None:
    match = f"^limit must be a number of bytes, at least 0, not {limit!r}$"
    with pytest.raises(ValueError, match=match):
        MemoryPool(limit)
    pool = MemoryPool(5)
    with pytest.raises(ValueError, match=match):
        pool.limit = limit
    assert pool.limit == 5


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, "float32"]
)
def test_arrays_are_aligned_writable_and_in_c_order(dtype: Any) -> None:
    pool = MemoryPool()
    for shape in ((1,), (3, 5), (1000, 77), (2, 3, 4), ()):
        kept = []
        for _ in range(3):
            x = pool.empty(shape, dtype)
            assert type(x) is np.ndarray
            assert (x.shape, x.dtype) == (shape, np.dtype(dtype))
            assert x.flags.c_contiguous
            assert x.flags.writeable
            assert x.flags.aligned
            assert x.ctypes.data % 64 == 0
            x[...] = 1.5
            assert (x == x.dtype.type(1.5)).all()
            kept.append(x)
        assert disjoint(kept)


def test_results_begin_elsewhere_in_a_page_than_what_they_are_computed_from() -> None:
    """A load waits for a store before it whose address differs from its own by whole pages."""
    pool = MemoryPool()
    of_the_system = np.empty(1 << 26, np.uint8)  # so large that it never comes from a heap
    assert of_the_system.ctypes.data % 4096 <= 64
    results = [of_the_system, *(pool.empty((1 << 20,), np.float32) for _ in range(7))]
    places = [each.ctypes.data % 4096 for each in results]
    for before, after in itertools.pairwise(places):
        assert 1024 - 64 <= abs(after - before) <= 4096 - 1024


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 70_001, 10**6, 123_456_789, 1 << 33])
def test_sizes_are_rounded_up_by_an_eighth_at_most(nbytes: int) -> None:
    rounded = memory._rounded(nbytes)
    assert nbytes <= rounded <= max(nbytes * 9 / 8, nbytes + 4096)


def test_an_array_may_die_in_every_method() -> None:
    """Where the collector runs at every allocation, cycles of arrays die inside the pool."""
    pool = MemoryPool(100 * KIB)
    before = gc.get_threshold()
    try:
        gc.set_threshold(1)
        for step in range(200):
            cycle: list[Any] = [pool.empty((4000 + step,), np.float32)]
            cycle.append(cycle)
            del cycle
            if step % 7 == 0:
                pool.free_all()
            if step % 11 == 0:
                pool.limit = 100 * KIB + step
            pool.stats()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    stats = pool.stats()
    assert stats.used_bytes == 0
    assert stats.free_bytes <= pool.limit


def test_the_limit_holds_without_another_call() -> None:
    pool = MemoryPool(0)
    arrays = [pool.empty((10_000,), np.float32)]

    class Waiting(list[Any]):
        def __len__(self) -> int:
            arrays.clear()  # an array dies while the pool looks for memory, with its lock held
            return super().__len__()

    pool._free = Waiting()
    pool.empty((10_000,), np.float32)
    assert not arrays
    assert not pool._returned
    assert pool.stats().free_bytes == 0


def test_views_and_copies_of_the_base_give_nothing_back() -> None:
    pool = MemoryPool()
    y = pool.empty((1000,), np.float32)
    for other in (y.base[10:], y.base.copy(), y.base.view()):
        assert other.nbytes
    del other
    assert pool.stats().used_bytes > 0
    view = y.base[:4000]
    del y
    assert pool.stats().used_bytes > 0
    del view
    assert pool.stats().used_bytes == 0


def test_a_failed_allocation_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool()

    def empty(*args: Any) -> Any:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(memory.np, "empty", empty)
        with pytest.raises(MemoryError):
            pool.empty((10,), np.float32)
    assert pool.stats() == (0, 0, 0, 0)
    assert pool.empty((10,), np.float32).size == 10


def test_the_pool_of_the_backend_has_a_default_limit() -> None:
    assert memory.memory_pool.limit == MemoryPool().limit == 512 << 20
