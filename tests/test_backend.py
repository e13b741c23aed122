"""The registry of backends, their loading, and `use_backend`."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from sample_backends import (
    Counting,
    Null,
    Register,
    X,
    broken,
    entry,
    installed,
    lacking,
    refuse_to_load,
)

import ln_array_api as ln
from ln_array_api import backend
from ln_array_api.backend import Entry


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


def test_the_reason_for_a_missing_cupy_names_an_extra_for_each_cuda(
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


def test_the_next_backend_is_used_after_a_broken_one(register: Register) -> None:
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


def test_use_backend_nests_and_is_undone(register: Register) -> None:
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


def test_use_backend_is_undone_after_an_exception(register: Register) -> None:
    register(entry("one", Null()))
    with pytest.raises(ZeroDivisionError), ln.use_backend("generic"):
        1 / 0  # noqa: B018
    assert backend.requested_backend() is None
    with ln.use_backend("one"):
        with pytest.raises(ln.BackendError), ln.use_backend("nobody"):
            pytest.fail("the block was entered")
        assert backend.requested_backend() == "one"


def test_use_backend_applies_to_its_thread_only(register: Register) -> None:
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


def test_use_backend_applies_to_its_task_only(register: Register) -> None:
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
