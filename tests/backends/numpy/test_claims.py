"""Parts of tasks on threads of a pool: each is run once, and threads sleep and wake."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
from ln_array_api_backends.numpy import atomics, claims, tasks, threads
from ln_array_api_backends.numpy.compile import array_type, compiled
from numba import njit, types

AFFINITY = os.sched_getaffinity(0) if sys.platform == "linux" else set()
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@njit
def _count(counts: Any, delay: int, start: int, stop: int) -> None:
    for i in range(start, stop):
        counts[i] += 1
    if delay < 0:
        _sleep(-2 * delay if start else -delay)
    elif delay and stop == counts.size:
        _sleep(delay)
    elif delay:
        _sleep(delay // 40)


_sleep = types.ExternalFunction("usleep", types.int32(types.uint32))


def _count_task(kinds: str) -> Any:
    def task(words: Any, part: int, num_parts: int) -> None:
        _count(*tasks.arguments(words, kinds, part, num_parts))

    return task


def counting(count: int, delay: int = 0) -> tuple[np.ndarray, tasks.Task]:
    """An array of zeros, and a task that adds one to each; its last part sleeps for so many µs.

    The others sleep for a fortieth of that. Of a delay below 0, the first part sleeps for its
    magnitude, and each of the others for twice that.
    """
    counts = np.zeros(count)
    arguments = (array_type("float64", 1), counts.shape), (types.int64, delay)
    task = tasks.Task(_count_task, arguments, count)
    task.words[task.places[0]] = counts.ctypes.data
    return counts, task


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A pool of three threads beside this one."""
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 4)
    monkeypatch.setattr(threads, "thread_count", lambda: 4)
    monkeypatch.setattr(threads, "_alone_until", 0.0)
    own = threads._Pool()
    monkeypatch.setattr(threads, "_pool", own)
    yield own
    own.stop()


@pytest.mark.usefixtures("pool")
def test_each_part_is_run_once() -> None:
    for round_ in range(3000):
        counts, task = counting(1 + round_ % 50)
        threads.run_parallel(task.words.buffer_info()[0], 1 + round_ % 40)
        assert (counts == 1).all()
        if round_ % 500 == 0:
            time.sleep(0.01)  # so that threads fall asleep


def num_asleep(pool: Any) -> int:
    """Return how many threads of a pool sleep."""
    first = pool._first + claims.CLAIMS + claims.ASLEEP
    return sum(pool._memory[first + 8 * (helper + 1)] for helper in range(len(pool._threads)))


def test_threads_fall_asleep_and_wake_again(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a caller does not want as well."""
    counts, task = counting(64)
    for times in (2, 4, 6):
        for wanted in (4, 2):  # the second while all are awake
            monkeypatch.setattr(threads, "thread_count", lambda wanted=wanted: wanted)
            threads.run_parallel(task.words.buffer_info()[0], 64)
        assert (counts == times).all()
        deadline = time.perf_counter() + 30
        while num_asleep(pool) < 3 and time.perf_counter() < deadline:
            time.sleep(0.001)
        for _ in range(50):  # and stay asleep
            assert num_asleep(pool) == 3
            time.sleep(0.0005)


def test_a_task_that_came_while_a_thread_fell_asleep_is_not_missed() -> None:
    """A caller cannot wake who is not asleep yet, and who falls asleep looks again."""
    pool = threads._Pool()
    region = pool._first + claims.CLAIMS + 8  # of a thread that this test plays
    pool._memory[region + claims.LOCK] = atomics.new_lock()
    sleep, share, wake = (
        compiled(function, *[types.int64] * count)
        for function, count in ((claims.sleep, 3), (claims.share, 4), (claims.wake, 2))
    )
    _, task = counting(64)
    for number in (1, 2):
        share(pool.address, task.words.buffer_info()[0], 64, 1)
        assert pool._memory[pool._first + claims.NUMBER] == number
        before = threading.Thread(target=sleep, args=(pool.address, 0, number - 1), daemon=True)
        before.start()
        before.join(20)
        assert not before.is_alive()
        assert pool._memory[region + claims.ASLEEP] == 0
        after = threading.Thread(target=sleep, args=(pool.address, 0, number), daemon=True)
        after.start()
        after.join(0.1)
        assert after.is_alive()
        assert pool._memory[region + claims.ASLEEP] == 1
        wake(pool.address, 1)
        after.join(20)
        assert not after.is_alive()
        assert pool._memory[region + claims.ASLEEP] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells processors of threads")
def test_a_thread_is_kept_from_a_processor_and_gets_it_back() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        for processor in allowed:
            some = allowed - {processor}
            assert not atomics.allow_processor(0, processor, True)
            assert atomics.allow_processor(0, processor, False) == bool(some)
            assert os.sched_getaffinity(0) == (some or allowed)
            assert atomics.allow_processor(0, processor, True) == bool(some)
            assert os.sched_getaffinity(0) == allowed
        os.sched_setaffinity(0, {min(allowed)})
        assert not atomics.allow_processor(0, min(allowed), False)  # nor from the last one
        assert os.sched_getaffinity(0) == {min(allowed)}
        assert atomics.processor() == min(allowed)
        for processor in (-1, 1024):
            assert not atomics.allow_processor(0, processor, True)
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells processors of threads")
@pytest.mark.skipif(len(AFFINITY) < 2, reason="there is one processor")
def test_a_thread_does_not_wake_up_on_the_processor_of_its_caller() -> None:
    """Where one of the two would wait for the other."""
    pool = threads._Pool()
    region = pool._first + claims.CLAIMS + 8
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(20,))
    thread.start()
    pool._memory[region + claims.LOCK] = atomics.new_lock()
    pool._memory[region + claims.THREAD] = thread.native_id
    here = min(AFFINITY)
    os.sched_setaffinity(0, {here})
    try:
        for is_asleep in (0, 1):
            pool._memory[region + claims.ASLEEP] = is_asleep
            compiled(claims.wake, types.int64, types.int64)(pool.address, 1)
            kept_from = {here} if is_asleep else set()
            assert os.sched_getaffinity(thread.native_id) == AFFINITY - kept_from
        assert pool._memory[region + claims.AVOIDED] == here + 1
    finally:
        os.sched_setaffinity(0, AFFINITY)
        end.set()
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells processors of threads")
def test_threads_get_back_the_processors_they_were_kept_from(pool: Any) -> None:
    counts, task = counting(64)
    deadline = time.perf_counter() + 60
    for _ in range(5):
        threads._alone_until = 0.0
        threads.run_parallel(task.words.buffer_info()[0], 64)
        while num_asleep(pool) < 3 and time.perf_counter() < deadline:
            time.sleep(0.01)
    assert (counts == 5).all()
    for each in pool._threads:
        assert os.sched_getaffinity(each.native_id) == AFFINITY


def test_a_caller_does_not_wait_for_threads_that_do_not_run(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "start", lambda count: count)
    counts, task = counting(64)
    threads.run_parallel(task.words.buffer_info()[0], 64)
    assert (counts == 1).all()
    assert threads.helpers(9) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no usleep")
@pytest.mark.usefixtures("pool")
def test_who_has_waited_long_works_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_PAUSE_SECONDS", 60.0)
    counts, task = counting(4, delay=20_000)
    for attempt in range(1, 100):
        threads.run_parallel(task.words.buffer_info()[0], 4)
        assert (counts == attempt).all()
        if threads._alone_until:
            break
    assert threads.helpers(9) == 0
    threads._alone_until -= 60
    assert threads.helpers(9) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no usleep")
@pytest.mark.usefixtures("pool")
def test_long_parts_are_waited_for() -> None:
    """A caller whose own part took half as long goes on with threads."""
    long_waits = 0
    for _ in range(10):
        threads._alone_until = 0.0
        counts, task = counting(4, delay=-5_000)
        threads.run_parallel(task.words.buffer_info()[0], 4)
        assert (counts == 1).all()
        long_waits += threads._alone_until > 0
    assert long_waits < 4  # where other programs take the processors, some are


def test_a_pool_that_another_caller_has_is_left_to_it(pool: Any) -> None:
    owned = pool._memory[pool._first + claims.OWNED] = 1
    counts, task = counting(64)
    threads.run_parallel(task.words.buffer_info()[0], 64)
    assert (counts == 1).all()
    assert pool._memory[pool._first + claims.OWNED] == owned
    assert pool._memory[pool._first + claims.NUMBER] == 0


@pytest.mark.parametrize(("parts", "started"), [(9, 3), (3, 2)], ids=["all", "some"])
def test_a_pool_that_has_stopped_has_no_threads(pool: Any, parts: int, started: int) -> None:
    assert threads.helpers(parts) == started
    running = list(pool._threads)
    pool.stop()
    assert threads.helpers(9) == 0
    assert not any(each.is_alive() for each in running)
