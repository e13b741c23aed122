"""Caffe2's stages on CuPy arrays: those of the backend compared with the generic ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import cupy_on_cpu
import ml_dtypes
import numpy as np
import pytest
from test_kernels import DTYPES, bits

import ln_array_api as ln
from ln_array_api import caffe2

#: Launches of each stage, by the generic kernels and by the backend, for float32 arrays.
LAUNCHES = {
    "sigma_and_fused_params": (6, 1),
    "forward": (4, 1),
    "internal_gradients": (5, 2),
    "fused_params": (14, 1),
    "backward": (5, 1),
    "gamma_beta": (5, 2),
}


def calls(dtype: str, m: int, n: int) -> dict[str, Callable[[], Any]]:
    """Return each stage, with arrays of a shape."""
    rng = np.random.default_rng([m, n])
    wide = np.float64 if dtype == "float64" else np.float32

    def draw(*shape: int, kind: Any = DTYPES[dtype]) -> Any:
        return cupy.asarray(rng.uniform(0.5, 2.0, shape).astype(kind))

    x, dy, gamma, beta = draw(m, n), draw(m, n), draw(n), draw(n)
    a, b, c, d = (draw(m, kind=wide) for _ in range(4))
    dyxx = draw(m, n, kind=wide)
    return {
        "sigma_and_fused_params": lambda: caffe2.compute_sigma_and_fused_params(a, b, 1e-5),
        "forward": lambda: caffe2.layer_norm_forward(x, a, b, gamma, beta),
        "internal_gradients": lambda: caffe2.compute_internal_gradients(dy, x, gamma),
        "fused_params": lambda: caffe2.compute_fused_params(a, b, c, d, n),
        "backward": lambda: caffe2.layer_norm_backward(dy, x, gamma, a, b, c),
        "gamma_beta": lambda: caffe2.gamma_beta_backward(dyxx, dy, a, b),
    }


def results(call: Callable[[], Any]) -> list[Any]:
    given = call()
    return list(given) if isinstance(given, tuple) else [given]


def cost(call: Callable[[], Any]) -> dict[str, int]:
    call()
    before = cupy_on_cpu.counts()
    call()
    return {name: count - before[name] for name, count in cupy_on_cpu.counts().items()}


@pytest.mark.parametrize("stage", LAUNCHES)
def test_launches(stage: str) -> None:
    """Nothing waits, and only results and partial sums are allocated."""
    call = calls("float32", 70, 40)[stage]
    with ln.use_backend("generic"):
        generic = cost(call)
    fused = cost(call)
    assert (generic["launches"], fused["launches"]) == LAUNCHES[stage]
    assert fused["allocations"] <= len(results(call)) + 1
    assert fused["synchronisations"] == fused["copies_to_host"] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(70, 40), (3, 1000), (1000, 3), (1, 1)])
def test_results_agree_with_the_generic_stages(dtype: str, m: int, n: int) -> None:
    for stage, call in calls(dtype, m, n).items():
        fused = results(call)
        with ln.use_backend("generic"):
            generic = results(call)
        for ours, theirs in zip(fused, generic, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            eps = float(ml_dtypes.finfo(ours.dtype).eps)
            right = theirs.get().astype(np.float64)
            np.testing.assert_allclose(
                ours.get().astype(np.float64),
                right,
                rtol=8 * eps,
                atol=8 * eps * np.max(abs(right)),
                err_msg=stage,
            )


def test_arrays_may_be_strided_or_broadcast() -> None:
    rng = np.random.default_rng(0)
    x = cupy.asarray(rng.standard_normal((40, 30)).astype(np.float32)).T
    dy = cupy.broadcast_to(cupy.ones((), np.float32), x.shape)
    dyxx, ds, db = caffe2.compute_internal_gradients(dy, x)
    dgamma, dbeta = caffe2.gamma_beta_backward(dyxx, dy, db, db)
    np.testing.assert_array_equal(dyxx.get(), x.get())
    np.testing.assert_allclose(ds.get(), x.get().sum(axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(db.get(), np.full(30, 40))
    np.testing.assert_array_equal(dbeta.get(), np.full(40, 30))
    right = 40 * (x.get().sum(axis=0) + 30)
    np.testing.assert_allclose(dgamma.get(), right, rtol=1e-5)


def test_empty_arrays_are_left_to_the_generic_stages() -> None:
    x, nothing = cupy.zeros((0, 3), np.float32), cupy.zeros(0, np.float32)
    dyxx, ds, _ = caffe2.compute_internal_gradients(x, x)
    dgamma, dbeta = caffe2.gamma_beta_backward(dyxx, x, nothing, ds)
    assert dgamma.get().tolist() == dbeta.get().tolist() == [0, 0, 0]


def test_all_stages_can_be_captured() -> None:
    stages = calls("float32", 70, 40).values()
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        warm = [array for call in stages for array in results(call)]
        expected = bits(warm)
        del warm  # returns memory to the pool
        before = cupy_on_cpu.counts()
        stream.begin_capture()
        captured = [array for call in stages for array in results(call)]
        graph = stream.end_capture()
        assert cupy_on_cpu.counts() == before
        graph.launch()
    assert bits(captured) == expected
