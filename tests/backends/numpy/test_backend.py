"""What the backend tells of its kernels, and which calls it leaves to others."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import numba
import numpy as np
import pytest
from engine_arrays import DTYPES
from ln_array_api_backends.numpy import (
    backend,
    config,
    threads,
)

import ln_array_api as ln
from ln_array_api import backend as registry
from ln_array_api._dispatch.specs import FAMILY
from ln_array_api.kernels import rows

NEEDS = [need for need in itertools.product([True, False], repeat=3) if any(need)]


def reason(m: int, n: int, function: Any = ln.layer_norm, dtype: str = "float32") -> str:
    x = np.broadcast_to(DTYPES[dtype].type(0), (m, n))
    explanation = ln.explain(function, x)
    assert explanation.backend == "numpy"
    return explanation.reason


def test_explain_names_kernel_threads_stores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "thread_count", lambda: 7)
    small = "compiled by Numba for float32, 1 thread, cached stores, fresh memory"
    assert reason(8, 64) == small
    assert reason(8, 64, ln.rms_norm, "bfloat16") == small.replace("float32", "bfloat16")
    assert reason(255, 1024) == small.replace("1 thread", "7 threads")
    pooled = "compiled by Numba for float32, 7 threads, cached stores, memory from the pool"
    assert reason(2048, 1024) == pooled
    assert reason(4096, 1024) == pooled.replace("cached", "streaming")


def test_explain_tells_the_stores_of_short_rows_and_of_the_backward_pass() -> None:
    short, long = (
        (config.NON_TEMPORAL_MIN_BYTES // 256, 64),
        (config.NON_TEMPORAL_MIN_BYTES // 4096, 1024),
    )
    assert "cached stores" in reason(*short)
    assert "streaming stores" in reason(*long)
    x, statistic = (np.broadcast_to(np.float32(0), (long[0], n)) for n in (long[1], 1))
    gradients = ln.explain(ln.layer_norm_backward, x, x, statistic, statistic)
    assert "streaming stores" in gradients.reason
    gradients = ln.explain(ln.layer_norm_backward, x, x, statistic, statistic, need=("dgamma",))
    assert "cached stores" in gradients.reason


def test_explain_tells_that_a_row_or_a_block_of_them_goes_on_one_thread() -> None:
    assert ", 1 thread," in reason(1, 1 << 20)
    x, statistic = (np.broadcast_to(np.float32(0), (8, n)) for n in (1 << 20, 1))
    assert ", 1 thread," in ln.explain(ln.layer_norm_backward, x, x, statistic, statistic).reason


def test_the_thread_number_is_numbas(monkeypatch: pytest.MonkeyPatch) -> None:
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert ", 1 thread," in reason(512, 768)
    finally:
        numba.set_num_threads(before)
    registry.plans.clear()
    words = "1 thread" if before == 1 else f"{before} threads"
    assert f", {words}," in reason(512, 768)


def test_backends_shows_the_backend() -> None:
    (info,) = [each for each in ln.backends() if each.backend == "numpy"]
    assert info.library == "numpy"
    families = tuple(each for each in FAMILY if each in backend.family)
    assert {"windows_forward", "windows_backward"} <= set(families)
    assert info.accelerates == (*registry.GENERIC, *families)
    assert info.note == ""


def test_empty_calls_run_generically() -> None:
    for shape in ((0, 5), (5, 0)):
        assert ln.explain(ln.layer_norm, np.ones(shape)).backend == "generic"


def test_without_numba_calls_run_generically(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng([5, 64, 0]).standard_normal((5, 64)).astype(np.float32)
    found = importlib.util.find_spec

    def find_spec(name: str, *args: Any) -> Any:
        return None if name == "numba" else found(name, *args)

    entry = next(each for each in registry.BUILT_IN if each.name == "numpy")
    lacking = registry.Entry(
        "numpy", "numpy", entry._load, requires=entry._requires, extra=entry.extra
    )
    monkeypatch.setattr(registry, "_entries", {"numpy": lacking})
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    explanation = ln.explain(ln.layer_norm, x)
    assert explanation.backend == "generic"
    needs = "needs numba: pip install 'ln-array-api[cpu]'"
    assert explanation.reason == f"numpy: {needs}"
    (info,) = [each for each in ln.backends() if each.backend == "numpy"]
    assert (info.accelerates, info.note) == ((), needs)
    y = ln.layer_norm(x)
    generic, _, _ = rows.rows_forward(x, None, None, epsilon=1e-5, center=True)
    np.testing.assert_array_equal(y.view(np.uint32), generic.view(np.uint32))
