"""On any number of threads, under any layer, before and after a fork: the same bits."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from ln_array_api_backends.numpy import calls, threads

import ln_array_api as ln

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
    kept = {name: value for name, value in os.environ.items() if name not in LAYERS}
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


LAYERS = {"NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY", "NUMBA_NUM_THREADS"}


@functools.cache
def available(layer: str) -> bool:
    """Whether Numba can run on a layer here, where a library may be missing."""
    script = (
        "import ln_array_api_backends.numpy, numba\n"
        "from numba.np.ufunc.parallel import _launch_threads\n"
        "_launch_threads()\n"
    )
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    return result.returncode == 0


def needs(layer: str) -> None:
    if layer and not available(layer):
        pytest.skip(f"Numba has no {layer} here")


PRINT = """
import numba
if __name__ == "__main__":
    print(*digests())
    print(numba.threading_layer() if numba.config.NUMBA_NUM_THREADS > 1 else "none")
"""


@functools.cache
def expected() -> list[str]:
    """Of this process, on one thread."""
    names: dict[str, Any] = {}
    exec(DIGEST, names)
    with threads_set_to(1):
        digests: list[str] = names["digests"]()
    return digests


@contextmanager
def threads_set_to(count: int) -> Iterator[None]:
    before = numba.get_num_threads()
    numba.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "layer"), [(1, ""), (2, ""), (4, "omp"), (3, "tbb"), (2, "workqueue")]
)
def test_bits_do_not_depend_on_threads_nor_on_their_layer(
    count: int, layer: str, tmp_path: Path
) -> None:
    needs(layer)
    environment = {"NUMBA_NUM_THREADS": str(count)}
    if layer:
        environment["NUMBA_THREADING_LAYER"] = layer
    *digests, used = run(tmp_path, PRINT, **environment)
    assert digests == expected()
    assert not layer or used == layer


MANY = """
import threading
from concurrent.futures import ThreadPoolExecutor

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
    import numba
    print(numba.threading_layer())
"""


@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_many_threads_at_once(layer: str, tmp_path: Path) -> None:
    needs(layer)
    environment = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    *digests, used = run(tmp_path, MANY, **environment)
    assert used == layer
    assert digests == sorted(each for place, each in enumerate(expected()) if place != 2)


def test_many_threads_of_this_process() -> None:
    x = np.random.default_rng(0).standard_normal((400, 300)).astype(np.float32)
    y = ln.layer_norm(x)
    assert x.nbytes >= calls.PARALLEL
    start = threading.Barrier(8)

    def work(_: int) -> bool:
        start.wait(20)
        return all(np.array_equal(ln.layer_norm(x), y) for _ in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


CHILDREN = """
import multiprocessing
import numba
from ln_array_api_backends.numpy import threads

def child(_):
    return digests(SHAPES[:3]), threads.number()

if __name__ == "__main__":
    if "{first}":
        digests()
        assert numba.threading_layer() == "{layer}"
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        results = pool.map(child, range(4), chunksize=1)
    for result, count in results:
        print(*result, count)
    assert digests()[:3] == results[0][0]
"""


@pytest.mark.parametrize("method", [pytest.param("fork", marks=FORKS), "spawn"])
@pytest.mark.parametrize("layer", ["omp", "tbb"])
@pytest.mark.parametrize("first", ["after a call", ""], ids=["after a call", "before"])
def test_children(layer: str, method: str, first: str, tmp_path: Path) -> None:
    """A child of a fork may not use GNU's OpenMP after its parent has."""
    needs(layer)
    script = CHILDREN
    for name, value in (("first", first), ("layer", layer), ("method", method)):
        script = script.replace(f"{{{name}}}", value)
    environment = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    words = run(tmp_path, script, **environment)
    alone = method == "fork" and layer == "omp" and bool(first)
    assert words == [*expected()[:3], "1" if alone else "2"] * 4


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
    assert run(tmp_path, GRANDCHILD) == expected()[:1]


ANOTHER = """
from numba import njit, prange, threading_layer
import ln_array_api_backends.numpy

@njit(parallel=True)
def total(x):
    sum_ = 0.0
    for i in prange(x.size):
        sum_ += x[i]
    return sum_

if __name__ == "__main__":
    total(np.ones(1000))
    assert threading_layer() == "omp"
    child = os.fork()
    if child == 0:
        print(*digests(SHAPES[:1]), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(status)
"""


@FORKS
def test_a_child_of_a_process_where_others_went_parallel(tmp_path: Path) -> None:
    needs("omp")
    words = run(tmp_path, ANOTHER, NUMBA_THREADING_LAYER="omp", NUMBA_NUM_THREADS="2")
    assert words == [*expected()[:1], "0"]


def test_the_number_of_threads_is_numbas() -> None:
    most = numba.config.NUMBA_NUM_THREADS
    for count in {1, most}:
        with threads_set_to(count):
            assert threads.number() == count
    assert threads.number() == numba.get_num_threads()


COUNT = """
import threading
import numba
from ln_array_api_backends.numpy import threads

if __name__ == "__main__":
    numba.set_num_threads(3)
    print(threads.number())
    print(*digests(SHAPES[:1]))
    print(ln.explain(ln.layer_norm, np.ones((512, 768), np.float32)).reason.split(", ")[1])
    counts = []
    other = threading.Thread(target=lambda: counts.append(threads.number()))
    other.start()
    other.join()
    print(*counts)
"""


def test_set_num_threads_is_respected(tmp_path: Path) -> None:
    words = run(tmp_path, COUNT, NUMBA_NUM_THREADS="4")
    assert words == ["3", *expected()[:1], "3", "threads", "4"]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("_layer", "_may_go_parallel", "_lock"):
        monkeypatch.setattr(threads, name, getattr(threads, name))
    return monkeypatch


@pytest.mark.parametrize(
    ("layer", "locked"), [("", True), ("workqueue", True), ("omp", False), ("tbb", False)]
)
def test_one_at_a_time_where_the_layer_wants_it(
    layer: str, locked: bool, state: pytest.MonkeyPatch
) -> None:
    state.setattr(threads, "_layer", layer)
    state.setattr(threads, "_may_go_parallel", True)
    state.setattr(numba, "threading_layer", lambda: layer or "tbb")
    seen = []
    assert threads.run(lambda *args: seen.append((threads._lock.locked(), args)), 1, 2)
    assert seen == [(locked, (1, 2))]
    assert not threads._lock.locked()
    assert threads._layer == (layer or "tbb")


def test_the_lock_is_free_after_a_kernel_that_raises(state: pytest.MonkeyPatch) -> None:
    state.setattr(threads, "_layer", "workqueue")
    with pytest.raises(ZeroDivisionError):
        threads.run(lambda: 1 / 0)
    assert not threads._lock.locked()


def test_nothing_runs_where_it_may_not(state: pytest.MonkeyPatch) -> None:
    state.setattr(threads, "_may_go_parallel", False)
    for layer in ("", "omp", "tbb", "workqueue"):
        state.setattr(threads, "_layer", layer)
        assert not threads.run(lambda: pytest.fail("it ran"))
        assert threads.number() == 1


@pytest.mark.parametrize(("layer", "parallel"), [("omp", False), ("tbb", True), ("", True)])
def test_after_a_fork(layer: str, parallel: bool, state: pytest.MonkeyPatch) -> None:
    def threading_layer() -> str:
        if not layer:
            raise ValueError("Threading layer is not initialized.")
        return layer

    state.setattr(threads, "_may_go_parallel", True)
    state.setattr(numba, "threading_layer", threading_layer)
    with threads._lock:
        threads._after_fork()
        assert not threads._lock.locked()
    assert threads._may_go_parallel is parallel


def test_where_it_may_not_go_parallel_results_are_the_same(state: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((400, 300)).astype(np.float32)
    y, mean, rstd = ln.layer_norm_forward(x)
    dx, _, dbeta = ln.layer_norm_backward(x, x, mean, rstd)
    state.setattr(threads, "_may_go_parallel", False)
    results = ln.layer_norm_forward(x)
    for a, b in zip(results, (y, mean, rstd), strict=True):
        np.testing.assert_array_equal(a, b)
    again = ln.layer_norm_backward(x, x, mean, rstd)
    np.testing.assert_array_equal(again.dx, dx)
    np.testing.assert_array_equal(again.dbeta, dbeta)


CONFIG = """
import numba
{before}
import ln_array_api_backends.numpy
if __name__ == "__main__":
    print(numba.config.THREADING_LAYER, *numba.config.THREADING_LAYER_PRIORITY)
"""


def config(directory: Path, before: str = "", **environment: str) -> list[str]:
    return run(directory, CONFIG.replace("{before}", before), **environment)


def test_openmp_comes_first_unless_somebody_has_chosen(tmp_path: Path) -> None:
    assert config(tmp_path) == ["default", "omp", "tbb", "workqueue"]


@pytest.mark.parametrize("layer", ["workqueue", "tbb", "omp", "threadsafe", "forksafe", "safe"])
def test_a_chosen_layer_stays(layer: str, tmp_path: Path) -> None:
    untouched = [layer, "tbb", "omp", "workqueue"]
    assert config(tmp_path, NUMBA_THREADING_LAYER=layer) == untouched
    if layer == "workqueue":
        assert config(tmp_path, f"numba.config.THREADING_LAYER = {layer!r}") == untouched


def test_a_chosen_priority_stays(tmp_path: Path) -> None:
    chosen = ["workqueue", "tbb", "omp"]
    words = config(tmp_path, NUMBA_THREADING_LAYER_PRIORITY=" ".join(chosen))
    assert words == ["default", *chosen]


@pytest.mark.parametrize("chosen", [["tbb", "workqueue", "omp"], ["tbb", "omp", "workqueue"]])
def test_a_chosen_priority_that_begins_with_tbb_stays(tmp_path: Path, chosen: list[str]) -> None:
    """If it is that of Numba itself, too."""
    words = config(tmp_path, NUMBA_THREADING_LAYER_PRIORITY=" ".join(chosen))
    assert words == ["default", *chosen]


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
import warnings

# Python warns of a fork in a process that has threads.
warnings.simplefilter("ignore", DeprecationWarning)

if __name__ == "__main__":
    np.random.default_rng(0)  # imported here, not by the thread
    first = threading.Thread(target=digests, args=(SHAPES[:1],))
    first.start()
    time.sleep({delay})
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        digests(SHAPES[:1])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    first.join()
    print(os.waitstatus_to_exitcode(status), *digests(SHAPES[:1]))
"""


@FORKS
@pytest.mark.parametrize("delay", [0.001, 0.01, 0.1, 0.3])
def test_a_fork_while_another_thread_makes_its_first_call(delay: float, tmp_path: Path) -> None:
    script = FORK_BESIDE.replace("{delay}", str(delay))
    assert run(tmp_path, script) == ["0", *expected()[:1]]
