"""The registry, the choice of a backend, plans, and what a call costs outside its kernel."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import timeit
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api import _rows, backend, caffe2
from ln_array_api.backend import Entry, Layout, Primitive, RowsSpec
from ln_array_api.kernels import rows

X = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)

LIMIT = 2e-6  # seconds outside the kernel
YARDSTICK = 1e-6  # seconds that it takes where LIMIT is meant for


class Counting:
    """Takes what `takes` says, and counts; its results are those of the generic kernels."""

    def __init__(self, takes: Callable[[RowsSpec], bool] = lambda spec: True) -> None:
        self.takes = takes
        self.asked: list[tuple[str, RowsSpec]] = []
        self.calls: list[str] = []

    def can_run(self, primitive: str, spec: RowsSpec) -> bool:
        self.asked.append((primitive, spec))
        return self.takes(spec)

    def rows_forward(self, *arrays: Any, **options: Any) -> Any:
        self.calls.append("rows_forward")
        return rows.rows_forward(*arrays, **options)

    def rows_backward(self, *arrays: Any, **options: Any) -> Any:
        self.calls.append("rows_backward")
        return rows.rows_backward(*arrays, **options)


class Null:
    """Takes every call and does nothing."""

    def can_run(self, primitive: str, spec: RowsSpec) -> bool:
        return True

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        return x, None, None


def refuse_to_load() -> Any:
    raise OSError("libfast.so: wrong ELF class")


Register = Callable[..., None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """Put entries in place of all that are known."""
    known: dict[str, Entry] = {}
    monkeypatch.setattr(backend, "_entries", known)
    backend.plans.clear()

    def register(*entries: Entry) -> None:
        known.update({entry.name: entry for entry in entries})

    yield register
    backend.plans.clear()


def entry(name: str, instance: Any, library: str = "numpy") -> Entry:
    return Entry(name, library, lambda: instance)


def broken(name: str = "broken", library: str = "numpy") -> Entry:
    return Entry(name, library, refuse_to_load)


def lacking(name: str = "lacking", library: str = "numpy") -> Entry:
    requires = ("numpy", "no_such_module_a", "no_such_module_b")
    return Entry(name, library, refuse_to_load, requires=requires, extra="fast")


def installed(*names: str) -> list[EntryPoint]:
    return [EntryPoint(name, "json:decoder", backend.ENTRY_POINT_GROUP) for name in names]


def yardstick(given: Any = X) -> None:
    """Python code of the kind that finds a plan."""
    for name in ("x", "gamma", "beta"):
        find = {str: given.shape, int: given.dtype}
        hash((name, type(given), find[str], find.get(float), given.dtype, (name, -1, 1e-5, True)))


def fastest(call: Callable[[], Any]) -> float:
    """Seconds for one call, where nothing else had the processor."""
    return min(timeit.repeat(call, number=50, repeat=200)) / 50


def dispatch_cost(*parameters: np.ndarray) -> float:
    """Seconds that `layer_norm` spends outside the kernel, were other programs not there.

    What slows the yardstick down, a neighbour on the processor for one, slows everything down.
    """
    kernel = backend.entries()["null"].backend().rows_forward  # type: ignore[union-attr]
    options = {"epsilon": 1e-5, "center": True, "groups": 1, "repeat": 1, "out": None}
    gamma, beta = parameters or (None, None)
    trace = sys.gettrace()
    sys.settrace(None)  # a coverage measurement would be measured, too
    try:
        assert ln.layer_norm(X, *parameters) is X
        alone = fastest(lambda: kernel(X, gamma, beta, **options))
        whole = fastest(lambda: ln.layer_norm(X, *parameters))
        return (whole - alone) / max(1.0, fastest(yardstick) / YARDSTICK)
    finally:
        sys.settrace(trace)


def lowest_dispatch_cost(*parameters: np.ndarray) -> float:
    """The least of some tries, no more than are needed to find it low."""
    least = dispatch_cost(*parameters)
    for _ in range(9):
        if least > LIMIT:
            least = min(least, dispatch_cost(*parameters))
    return least


@pytest.mark.timing
@pytest.mark.parametrize("parameters", [(), (X[0], X[1])], ids=["x", "x, gamma, beta"])
def test_dispatch_costs_two_microseconds_at_most(
    register: Register, parameters: tuple[np.ndarray, ...]
) -> None:
    register(entry("null", Null()))
    assert lowest_dispatch_cost(*parameters) <= LIMIT


@pytest.mark.timing
def test_a_slower_dispatch_would_be_noticed(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(entry("null", Null()))
    planner, clock = _rows.forward_plan, timeit.default_timer

    def slow(*args: Any, **kwargs: Any) -> Any:
        until = clock() + 3e-6
        while clock() < until:
            pass
        return planner(*args, **kwargs)

    monkeypatch.setattr(_rows, "forward_plan", slow)
    assert lowest_dispatch_cost() > LIMIT


def test_entry_points_come_before_the_built_in_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def entry_points(**selection: str) -> list[EntryPoint]:
        asked.update(selection)
        return installed("numpy.toy", "jax.other", "plain")

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    monkeypatch.setattr(backend, "_entries", {})
    known = backend.entries()
    assert asked == {"group": "ln_array_api.backends"}
    assert list(known) == ["other", "toy", "plain", *(each.name for each in backend.BUILT_IN)]
    libraries = {name: known[name].library for name in ("other", "toy", "plain")}
    assert libraries == {"other": "jax", "toy": "numpy", "plain": "plain"}
    assert backend.entries() is known


def test_entry_points_are_read_once_and_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    times = []

    def entry_points(**selection: str) -> list[EntryPoint]:
        times.append(selection)
        return [EntryPoint("numpy.toy", "no_such_module_a:backend", "ln_array_api.backends")]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    monkeypatch.setattr(backend, "_entries", {})
    assert "toy" in backend.entries()
    backend.entries()
    assert len(times) == 1


def test_the_registry_is_not_read_until_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_installed", lambda: pytest.fail("it was read"))
    monkeypatch.setattr(backend, "_entries", {})
    backend.plans.clear()
    with ln.use_backend("generic"):
        ln.layer_norm(X[:5, :7])


def test_the_object_of_an_entry_point_is_the_backend(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    point = EntryPoint("numpy.toy", "json:decoder", "ln_array_api.backends")
    monkeypatch.setattr("json.decoder", counting)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    monkeypatch.setattr(backend, "BUILT_IN", ())
    ln.layer_norm(X)
    assert counting.calls == ["rows_forward"]


def test_a_missing_cupy_is_told_with_an_extra_for_each_cuda(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    built_in = {each.name: each for each in backend.BUILT_IN}["cupy"]
    register(Entry("cupy", "cupy", refuse_to_load, requires=("cupy",), extra=built_in.extra))
    expected = "needs cupy: pip install 'ln-array-api[cuda13]' or 'ln-array-api[cuda12]'"
    assert expected in str(ln.backends())
    with pytest.raises(ln.BackendError, match=re.escape(expected)), ln.use_backend("cupy"):
        pass


def test_a_built_in_backend_is_the_attribute_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.backend", counting := Counting(), raising=False)
    built_in = backend._built_in("fast", "numpy", "json", requires=("json",), extra="cpu")
    assert built_in.backend() is counting
    assert built_in.unavailable_reason() == ""


def test_a_backend_that_breaks_while_loading_is_reported_once(register: Register) -> None:
    register(broken())
    message = r"^backend 'broken' for numpy broke while loading: OSError: libfast.so: wrong ELF .*"
    with pytest.warns(ln.BackendWarning, match=message + "generic kernels instead$") as record:
        y = ln.layer_norm(X)
    assert len(record) == 1
    ln.layer_norm(X[:3])
    ln.layer_norm_forward(X, axis=0)
    with ln.use_backend("generic"):
        np.testing.assert_array_equal(y, ln.layer_norm(X))
    (info,) = [each for each in ln.backends() if each.backend == "broken"]
    assert info.note == "broke while loading: OSError: libfast.so: wrong ELF class"
    assert info.accelerates == ()
    assert info.note in ln.explain(ln.layer_norm, X).reason


def test_a_broken_backend_asked_for_by_name_is_an_error(register: Register) -> None:
    register(broken())
    match = "^backend 'broken' cannot be had: broke while loading: OSError: libfast"
    with (
        pytest.warns(ln.BackendWarning),
        pytest.raises(ln.BackendError, match=match),
        ln.use_backend("broken"),
    ):
        pytest.fail("the block was entered")
    with pytest.raises(ln.BackendError, match=match), ln.use_backend("broken"):
        pytest.fail("the block was entered")
    assert backend.requested_backend() is None


def test_a_backend_without_its_hardware_says_so_and_does_not_warn(register: Register) -> None:
    def load() -> Any:
        raise ln.BackendError("finds no GPU")

    register(Entry("fast", "numpy", load))
    ln.layer_norm(X)
    assert "fast: finds no GPU" in ln.explain(ln.layer_norm, X).reason
    match = "^backend 'fast' cannot be had: finds no GPU$"
    with pytest.raises(ln.BackendError, match=match), ln.use_backend("fast"):
        pytest.fail("the block was entered")


def test_a_broken_backend_does_not_stand_in_the_way_of_the_next(register: Register) -> None:
    counting = Counting()
    register(broken(), entry("counting", counting))
    with pytest.warns(ln.BackendWarning):
        ln.layer_norm(X)
    assert counting.calls == ["rows_forward"]


def test_an_unavailable_backend_gives_the_reason_and_the_command(register: Register) -> None:
    register(lacking())
    reason = "needs no_such_module_a, no_such_module_b: pip install 'ln-array-api[fast]'"
    with pytest.raises(ln.BackendError) as error, ln.use_backend("lacking"):
        pytest.fail("the block was entered")
    assert str(error.value) == f"backend 'lacking' cannot be had: {reason}"
    assert ln.explain(ln.layer_norm, X).reason == f"lacking: {reason}"
    (info,) = [each for each in ln.backends() if each.backend == "lacking"]
    assert info.note == reason
    ln.layer_norm(X)


def test_an_unknown_name_lists_the_known_ones(register: Register) -> None:
    register(entry("one", Null()), lacking("two"))
    known = "^there is no backend 'three'; known are: generic, one, two$"
    with pytest.raises(ln.BackendError, match=known), ln.use_backend("three"):
        pytest.fail("the block was entered")


def test_use_backend_nests_and_comes_back(register: Register) -> None:
    first, second = Counting(), Counting()
    register(entry("first", first), entry("second", second))

    def chosen() -> str:
        return ln.explain(ln.layer_norm, X).backend

    assert chosen() == "first"
    with ln.use_backend("second"):
        assert chosen() == "second"
        with ln.use_backend("generic"):
            assert chosen() == "generic"
            with ln.use_backend("first"):
                assert chosen() == "first"
            assert chosen() == "generic"
        assert chosen() == "second"
    assert chosen() == "first"


def test_use_backend_comes_back_after_an_exception(register: Register) -> None:
    register(entry("one", Null()))
    with pytest.raises(ZeroDivisionError), ln.use_backend("generic"):
        1 / 0  # noqa: B018
    assert backend.requested_backend() is None
    with ln.use_backend("one"):
        with pytest.raises(ln.BackendError), ln.use_backend("nobody"):
            pytest.fail("the block was entered")
        assert backend.requested_backend() == "one"


def test_use_backend_is_of_its_thread(register: Register) -> None:
    register(entry("one", Counting()))
    inside, done = threading.Event(), threading.Event()

    def hold() -> str:
        with ln.use_backend("generic"):
            inside.set()
            assert done.wait(10)
            return ln.explain(ln.layer_norm, X).backend

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(hold)
        assert inside.wait(10)
        here = ln.explain(ln.layer_norm, X).backend
        done.set()
        assert (here, other.result(10)) == ("one", "generic")


def test_use_backend_is_of_its_task(register: Register) -> None:
    register(entry("one", Counting()))

    async def hold(name: str, first: asyncio.Event, then: asyncio.Event) -> str:
        with ln.use_backend(name):
            first.set()
            await then.wait()
            return ln.explain(ln.layer_norm, X).backend

    async def both() -> list[str]:
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(hold("generic", a, b), hold("one", b, a))

    assert asyncio.run(both()) == ["generic", "one"]


def test_plans_do_not_leak_between_contexts(register: Register) -> None:
    first, second = Counting(), Counting()
    register(entry("first", first), entry("second", second))
    for _ in range(2):
        ln.layer_norm(X)
        with ln.use_backend("second"):
            ln.layer_norm(X)
        with ln.use_backend("generic"):
            ln.layer_norm(X)
    assert len(first.calls) == len(second.calls) == 2
    assert len(first.asked) == len(second.asked) == 1


def test_a_backend_is_asked_once_for_each_kind_of_call(register: Register) -> None:
    counting = Counting()
    register(entry("counting", counting))
    gamma = np.ones(64, np.float32)
    kinds: list[Callable[[], Any]] = [
        lambda: ln.layer_norm(X.copy()),
        lambda: ln.layer_norm(X[:4]),
        lambda: ln.layer_norm(X.astype(np.float64)),
        lambda: ln.layer_norm(X.astype(np.float16)),
        lambda: ln.layer_norm(X, gamma),
        lambda: ln.layer_norm(X, gamma.astype(np.float64)),
        lambda: ln.layer_norm(X, None, gamma),
        lambda: ln.layer_norm(X, epsilon=1e-3),
        lambda: ln.layer_norm(X, axis=0),
        lambda: ln.rms_norm(X, epsilon=1e-5),
        lambda: ln.layer_norm(X[:, ::2]),
        lambda: ln.layer_norm(np.asfortranarray(X)),
    ]
    for count, call in enumerate(kinds, start=1):
        for _ in range(3):
            call()
            assert len(counting.asked) == count
    assert len(counting.calls) == 3 * len(kinds)
    assert {primitive for primitive, _ in counting.asked} == {"rows_forward"}


def test_the_backward_pass_is_planned_by_what_is_needed(register: Register) -> None:
    counting = Counting()
    register(entry("counting", counting))
    gamma = np.ones(64, np.float32)
    _, mean, rstd = ln.layer_norm_forward(X)
    counting.asked.clear()
    for need in (("dx",), ("dgamma", "dbeta"), (), ("dx",)):
        ln.layer_norm_backward(X, X, mean, rstd, gamma, need=need)
    ln.layer_norm_backward(X, X, mean, rstd, need=("dx", "dgamma"))
    needs = [spec.need for _, spec in counting.asked]
    only_dx = (True, False, False)
    assert needs == [only_dx, (False, True, True), (False, False, False), only_dx]


def test_the_spec_says_what_the_call_is(register: Register) -> None:
    counting = Counting()
    register(entry("counting", counting))
    x = X.reshape(2, 4, 64).astype(np.float16)
    gamma, beta = np.ones((4, 64), np.float32), np.ones((4, 64), np.float16)
    _, mean, rstd = ln.layer_norm_forward(x, gamma, beta, axis=(1, 2), epsilon=0.5)
    ln.layer_norm_backward(x.astype(np.float64), x, mean, rstd, gamma, axis=(-1, 1))
    ln.rms_norm(x)
    (_, forward), (_, backward), (_, rms) = counting.asked
    common = {
        "library": "numpy",
        "device": "cpu",
        "shape": (2, 256),
        "dtype": "float16",
        "gamma": "float32",
        "center": True,
    }
    assert forward == RowsSpec(**common, beta="float16", epsilon=0.5)
    assert backward == RowsSpec(**common, beta=None, dy="float64")
    assert rms == RowsSpec(
        **common | {"shape": (8, 64), "gamma": None, "center": False}, beta=None, epsilon=1e-6
    )


def test_what_a_backend_does_not_take_goes_to_the_next_and_then_to_the_generic_kernel(
    register: Register,
) -> None:
    first = Counting(lambda spec: spec.dtype == "float32")
    second = Counting(lambda spec: spec.dtype != "float16")
    register(entry("first", first), entry("second", second))
    reasons = []
    for dtype in (np.float32, np.float64, np.float16):
        x = X.astype(dtype)
        ln.layer_norm(x)
        choice = ln.explain(ln.layer_norm, x)
        reasons.append((choice.backend, choice.reason))
    refused = "first: does not take such a call; second: does not take such a call"
    assert reasons == [("first", ""), ("second", ""), ("generic", refused)]
    assert (len(first.calls), len(second.calls)) == (1, 1)


def test_a_primitive_that_a_backend_lacks_is_not_asked_for(register: Register) -> None:
    register(entry("null", Null()))
    choice = ln.explain(ln.layer_norm_backward, X, X, X[:, :1], X[:, :1])
    assert choice.backend == "generic"
    assert choice.reason == "null: does not accelerate rows_backward"


class Strided(Counting):
    """Takes arrays as they lie where the first axis is normalised."""

    def prepare_strided(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout
    ) -> tuple[Callable[..., Any], str] | None:
        return (len, "as it lies") if layout.axes == (0,) else None


def test_a_backend_may_take_arrays_as_they_lie(register: Register) -> None:
    instance = Strided()
    register(Entry("strided", "numpy", lambda: instance))
    spec = RowsSpec("numpy", "cpu", (4, 3), "float32", None, None, True)
    columns, rows_of_it = (Layout((3, 4), (axis,), (axis,), (16, 4)) for axis in (0, 1))
    primitive: Primitive = "rows_forward"
    taken = backend.choose(primitive, spec, columns)
    assert (taken.kernel, taken.reason, taken.keeps_axes) == (len, "as it lies", True)
    assert not backend.choose(primitive, spec, rows_of_it).keeps_axes
    assert not backend.choose(primitive, spec).keeps_axes
    with ln.use_backend("generic"):
        assert not backend.choose(primitive, spec, columns).keeps_axes
    instance.takes = lambda spec: False
    assert not backend.choose(primitive, spec, columns).keeps_axes


class Stages(Counting):
    """Has one of the stages of Caffe2's operator."""

    class caffe2_stages:  # noqa: N801 - as a module, it is a name for functions
        @staticmethod
        def layer_norm_forward(*arrays: Any) -> str:
            return f"{sum(each is not None for each in arrays)} arrays"


def test_a_backend_may_have_stages_of_caffe2(register: Register) -> None:
    register(Entry("stages", "numpy", Stages))
    vector = np.ones(8, np.float32)
    assert caffe2.layer_norm_forward(X, vector, vector) == "3 arrays"
    assert caffe2.compute_internal_gradients(X, X)[0].shape == X.shape
    assert caffe2.layer_norm_forward(X[:0], vector[:0], vector[:0]).shape == (0, 64)
    with pytest.raises(ValueError, match="scale"):
        caffe2.layer_norm_forward(X, vector[:3], vector)
    with ln.use_backend("generic"):
        assert caffe2.layer_norm_forward(X, vector, vector).shape == X.shape


def test_a_backend_without_stages_is_not_loaded_for_one(register: Register) -> None:
    def load() -> Any:
        pytest.fail("it was loaded")

    register(Entry("without", "numpy", load, may_have_stages=False))
    assert caffe2.compute_internal_gradients(X, X)[0].shape == X.shape


def test_a_backend_asked_for_by_name_leaves_other_libraries_alone(register: Register) -> None:
    xp = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    for_numpy, for_strict = Counting(), Counting()
    register(
        entry("for_numpy", for_numpy), entry("for_strict", for_strict, library="array_api_strict")
    )
    x = xp.asarray(X)
    with ln.use_backend("for_numpy"):
        ln.layer_norm(x)
        ln.layer_norm(X)
    assert for_numpy.calls == for_strict.calls == ["rows_forward"]
    assert [spec.library for _, spec in for_numpy.asked] == ["numpy"]
    assert [spec.library for _, spec in for_strict.asked] == ["array_api_strict"]


def test_a_backend_for_numpy_is_not_asked_about_torch(register: Register) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    register(Entry("counting", "numpy", lambda: pytest.fail("it was loaded")))
    x = torch.from_numpy(X.copy())
    y = ln.layer_norm(x)
    assert type(y) is torch.Tensor
    assert ln.explain(ln.layer_norm, x).reason == "no backend is known for torch"


def test_a_refused_call_leaves_no_plan(register: Register) -> None:
    register(entry("counting", Counting()))
    wrong: list[Callable[[], Any]] = [
        lambda: ln.layer_norm(X, epsilon=-1),
        lambda: ln.layer_norm(X, X),
        lambda: ln.layer_norm(X, axis=2),
        lambda: ln.layer_norm(X.astype(np.int32)),
        lambda: ln.layer_norm_backward(X, X, X[:, :1], X[:1, :1]),
    ]
    for call in wrong:
        for _ in range(2):
            with pytest.raises((ValueError, TypeError)):
                call()
    assert not backend.plans


def test_the_cache_of_plans_is_bounded(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register(entry("counting", Counting()))
    monkeypatch.setattr(backend, "_PLANS_AT_MOST", 4)
    sizes = []
    for n in range(1, 12):
        y = ln.layer_norm(X[:, :n])
        with ln.use_backend("generic"):
            np.testing.assert_array_equal(y, ln.layer_norm(X[:, :n]))
        sizes.append(len(backend.plans))
    assert max(sizes) == 4
    assert min(sizes[3:]) < 4


def test_plans_hold_no_arrays() -> None:
    x, gamma = X[:, :13].copy(), np.ones(13, np.float32)
    y, mean, rstd = ln.layer_norm_forward(x, gamma)
    ln.layer_norm_backward(y, x, mean, rstd, gamma)
    arrays = [weakref.ref(each) for each in (x, gamma, y, mean, rstd)]
    del x, gamma, y, mean, rstd
    assert [each() for each in arrays] == [None] * 5


def test_a_backend_is_loaded_once_though_two_threads_need_it_first(register: Register) -> None:
    counting, loads = Counting(), []
    start, slowly = threading.Barrier(2), threading.Event()

    def load() -> Counting:
        loads.append(threading.get_ident())
        slowly.wait(0.1)
        return counting

    register(Entry("slow", "numpy", load))

    def call() -> str:
        start.wait(10)
        ln.layer_norm(X)
        return ln.explain(ln.layer_norm, X).backend

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(call) for _ in range(2)]
        assert [each.result(10) for each in both] == ["slow", "slow"]
    assert len(loads) == 1
    assert len(counting.calls) == 2


def test_the_registry_is_read_once_though_two_threads_need_it_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "_entries", {})
    start, slowly, reads = threading.Barrier(2), threading.Event(), []

    def entry_points(group: str) -> list[EntryPoint]:
        reads.append(group)
        slowly.wait(0.2)
        return installed("numpy.toy")

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)

    def find() -> Entry:
        start.wait(10)
        return backend.entries()["toy"]

    with ThreadPoolExecutor(2) as pool:
        one, other = [pool.submit(find) for _ in range(2)]
        assert one.result(10) is other.result(10)
    assert len(reads) == 1
