"""The choice of a backend for a kind of call, and the cache of plans."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sample_backends import Counting, Null, Register, X, entry

import ln_array_api as ln
from ln_array_api import backend, caffe2
from ln_array_api._dispatch import cache
from ln_array_api.backend import Entry, Layout, Primitive, RowsSpec


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


def test_the_spec_describes_the_call(register: Register) -> None:
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


def test_a_refused_call_goes_to_the_next_backend_and_then_to_the_generic_kernel(
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
    """Accepts arrays of any strides where the first axis is normalised."""

    def prepare_strided(
        self, primitive: Primitive, spec: RowsSpec, layout: Layout
    ) -> tuple[Callable[..., Any], str] | None:
        return (len, "as it lies") if layout.axes == (0,) else None


def test_a_backend_may_take_arrays_of_any_strides(register: Register) -> None:
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

    class caffe2_stages:  # noqa: N801 - in place of a module
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


def test_a_backend_asked_for_by_name_does_not_affect_other_libraries(register: Register) -> None:
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
        lambda: ln.layer_norm(X, X[:, :2]),
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
    monkeypatch.setattr(cache, "_MAX_PLANS", 4)
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
