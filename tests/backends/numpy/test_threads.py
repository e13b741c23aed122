"""On any number of threads, busy or not, before and after a fork: the same bits."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from engine_arrays import threads_set_to
from ln_array_api_backends.numpy import array_tasks, atomics, claims, tasks, threads
from ln_array_api_backends.numpy.compile import array_type, compiled
from numba import njit, types

import ln_array_api as ln

AFFINITY = os.sched_getaffinity(0) if sys.platform == "linux" else set()
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

DIGEST = """
import hashlib
import os
import sys

import numpy as np

import ln_array_api as ln

SHAPES = [(512, 768, "f4"), (37, 5000, "f4"), (4000, 1100, "f4"), (700, 512, "f2")]


def digest(m, n, dtype):
    rng = np.random.default_rng([m, n])
    x, dy = rng.standard_normal((2, m, n)).astype(dtype)
    gamma, beta = rng.standard_normal((2, n)).astype(dtype)
    y, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
    gradients = ln.layer_norm_backward(dy, x, mean, rstd, gamma)
    sha = hashlib.sha256()
    for each in (y, mean, rstd, *gradients):
        sha.update(np.ascontiguousarray(each).tobytes())
    return sha.hexdigest()


def digests(shapes=SHAPES):
    return [digest(*shape) for shape in shapes]
"""


def run(directory: Path, script: str, **environment: str) -> list[str]:
    """The lines that a program prints, which can use what DIGEST has."""
    path = directory / "program.py"
    path.write_text(DIGEST + script, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_NUM_THREADS"}
    result = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert not result.stderr
    return result.stdout.split()


PRINT = """
if __name__ == "__main__":
    print(*digests())
"""


@functools.cache
def expected() -> list[str]:
    """Of this process, on one thread."""
    names: dict[str, Any] = {}
    exec(DIGEST, names)
    with threads_set_to(1):
        digests: list[str] = names["digests"]()
    return digests


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_bits_do_not_depend_on_threads(count: int, tmp_path: Path) -> None:
    assert run(tmp_path, PRINT, NUMBA_NUM_THREADS=str(count)) == expected()


MANY = """
from concurrent.futures import ThreadPoolExecutor
import threading

if __name__ == "__main__":
    shapes = [(512, 768, "f4"), (37, 5000, "f4"), (700, 512, "f2")]
    start = threading.Barrier(6)

    def work(seed):
        start.wait(60)
        return [digests(shapes) for _ in range(4)]

    with ThreadPoolExecutor(6) as pool:
        results = [each for some in pool.map(work, range(6)) for each in some]
    assert len(results) == 24
    print(*sorted({digest for result in results for digest in result}))
"""


@pytest.mark.parametrize("count", ["2", "5"])
def test_many_threads_at_once(count: str, tmp_path: Path) -> None:
    digests = run(tmp_path, MANY, NUMBA_NUM_THREADS=count)
    assert digests == sorted(each for place, each in enumerate(expected()) if place != 2)


def test_many_threads_of_this_process() -> None:
    x = np.random.default_rng(0).standard_normal((400, 300)).astype(np.float32)
    y = ln.layer_norm(x)
    assert x.nbytes >= array_tasks.PARALLEL_MIN_BYTES
    start = threading.Barrier(8)

    def work(_: int) -> bool:
        start.wait(20)
        return all(np.array_equal(ln.layer_norm(x), y) for _ in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


CHILDREN = """
import multiprocessing
from ln_array_api_backends.numpy import threads

def child(_):
    results = digests(SHAPES[:3])
    return results, sum(each.is_alive() for each in threads._pool._threads)

if __name__ == "__main__":
    if "{first}":
        digests()
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        results = pool.map(child, range(4), chunksize=1)
    for result, count in results:
        print(*result, count)
    assert digests()[:3] == results[0][0]
"""


@pytest.mark.parametrize("method", [pytest.param("fork", marks=FORKS), "spawn"])
@pytest.mark.parametrize("first", ["after a call", ""], ids=["after a call", "before"])
def test_children_have_threads_of_their_own(first: str, method: str, tmp_path: Path) -> None:
    script = CHILDREN.replace("{first}", first).replace("{method}", method)
    words = run(tmp_path, "import warnings\n" + QUIET + script, NUMBA_NUM_THREADS="2")
    assert words == [*expected()[:3], "1"] * 4


#: Python warns of a fork in a process that has threads.
QUIET = 'warnings.simplefilter("ignore", DeprecationWarning)\n'

GRANDCHILD = """
def fork():
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        sys.stdout.flush()
        os._exit(os.waitstatus_to_exitcode(status))

if __name__ == "__main__":
    before = digests(SHAPES[:1])
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert digests(SHAPES[:1]) == before
    else:
        fork()
        assert digests(SHAPES[:1]) == before
        print(*digests(SHAPES[:1]), flush=True)
        os._exit(0)
"""


@FORKS
def test_a_child_of_a_child(tmp_path: Path) -> None:
    assert run(tmp_path, "import warnings\n" + QUIET + GRANDCHILD) == expected()[:1]


def test_the_number_of_threads_is_numbas() -> None:
    most = numba.config.NUMBA_NUM_THREADS
    for count in {1, most}:
        with threads_set_to(count):
            assert threads.thread_count() == count
    assert threads.thread_count() == numba.get_num_threads()


COUNT = """
import threading
import numba
from ln_array_api_backends.numpy import threads

if __name__ == "__main__":
    numba.set_num_threads(3)
    print(threads.thread_count())
    print(*digests(SHAPES[:1]))
    print(ln.explain(ln.layer_norm, np.ones((512, 768), np.float32)).reason.split(", ")[1])
    counts = []
    other = threading.Thread(target=lambda: counts.append(threads.thread_count()))
    other.start()
    other.join()
    print(*counts)
"""


def test_set_num_threads_is_respected(tmp_path: Path) -> None:
    words = run(tmp_path, COUNT, NUMBA_NUM_THREADS="4")
    assert words == ["3", *expected()[:1], "3", "threads", "4"]


NUMBAS = """
from numba.np.ufunc import parallel
import ln_array_api_backends.numpy

if __name__ == "__main__":
    print(*digests(SHAPES[:1]))
    print(parallel._is_initialized)
"""


def test_the_threads_of_numba_are_not_started(tmp_path: Path) -> None:
    assert run(tmp_path, NUMBAS, NUMBA_NUM_THREADS="2") == [*expected()[:1], "False"]


COMPILED = """
from numba.core import event

class Log(event.Listener):
    functions = []

    def on_start(self, event):
        self.functions.append(str(event.data["dispatcher"]))

    def on_end(self, event):
        pass

if __name__ == "__main__":
    with event.install_listener("numba:compile", Log()):
        digests(SHAPES[:1])
    print(len(Log.functions))
"""


def test_a_first_parallel_call_of_a_process_compiles_nothing(tmp_path: Path) -> None:
    run(tmp_path, COMPILED, NUMBA_NUM_THREADS="2")  # this one may have to
    assert run(tmp_path, COMPILED, NUMBA_NUM_THREADS="2") == ["0"]


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


ENDING = """
import threading

if __name__ == "__main__":
    x = np.ones((512, 768), np.float32)
    ln.layer_norm(x)

    def work():
        while True:
            ln.layer_norm(x)

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    print("ends")
"""


def test_python_ends_while_threads_are_at_work(tmp_path: Path) -> None:
    for _ in range(3):
        assert run(tmp_path, ENDING, NUMBA_NUM_THREADS="3") == ["ends"]


ATTEMPTS = 15
FIRST_CALL = """
import time
begin, start = time.perf_counter(), time.thread_time()
import numpy as np
import ln_array_api as ln
middle = time.thread_time()
import numba
then = time.thread_time()
ln.layer_norm(np.ones((8, 64), np.float32))
print(time.perf_counter() - begin, time.thread_time() - start, then - middle)
assert ln.explain(ln.layer_norm, np.ones((8, 64), np.float32)).backend == "numpy"
"""


@pytest.mark.timing
def test_the_first_call_of_a_process_compiles_nothing() -> None:
    """In 0.6 s, or on a slower or busy machine in four times what it takes to import Numba.

    The first attempt may have to compile.
    """
    attempts = []
    for _ in range(ATTEMPTS):
        result = subprocess.run(
            [sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True
        )
        seconds, own, yardstick = map(float, result.stdout.split())
        if seconds < 0.6 or own < 4 * yardstick:
            return
        attempts.append((seconds, own, yardstick))
    pytest.fail(f"first calls took {attempts}")


FORK_BESIDE = """
import signal
import threading
import time

if __name__ == "__main__":
    np.random.default_rng(0)  # imported here, not by the thread
    first = threading.Thread(target=digests, args=(SHAPES[:1],))
    first.start()
    time.sleep({delay})
    child = os.fork()
    if child == 0:
        signal.alarm(250)
        digests(SHAPES[:1])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    first.join()
    print(os.waitstatus_to_exitcode(status), *digests(SHAPES[:1]))
"""


@FORKS
@pytest.mark.parametrize("delay", [0.001, 0.01, 0.1, 0.3])
def test_a_fork_while_another_thread_makes_its_first_call(delay: float, tmp_path: Path) -> None:
    script = "import warnings\n" + QUIET + FORK_BESIDE.replace("{delay}", str(delay))
    assert run(tmp_path, script) == ["0", *expected()[:1]]
