"""Chunked arrays whose chunks hold whole rows: one task per chunk, with its library's bits."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ln_array_api as ln

da = pytest.importorskip("dask.array", reason="dask is not installed")
dask = pytest.importorskip("dask", reason="dask is not installed")

SHAPE = (6, 4, 10)
#: Functions of x, gamma and beta and their gradients; the axes that chunks must hold; the length of
#: the parameters.
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[int, ...], Any]] = {
    "layer": (ln.layer_norm_forward, ln.layer_norm_backward, (2,), (10,)),
    "layer over two axes": (
        lambda *a: ln.layer_norm_forward(*a, axis=(0, 2)),
        lambda *a: ln.layer_norm_backward(*a, axis=(0, 2)),
        (0, 2),
        (6, 10),
    ),
    "layer over all axes": (
        lambda *a: ln.layer_norm_forward(*a, axis=(0, 1, 2)),
        lambda *a: ln.layer_norm_backward(*a, axis=(0, 1, 2)),
        (0, 1, 2),
        SHAPE,
    ),
    "group": (
        lambda *a: ln.group_norm_forward(*a, num_groups=2),
        lambda *a: ln.group_norm_backward(*a, num_groups=2),
        (1, 2),
        (4,),
    ),
    "group of channels last": (
        lambda *a: ln.group_norm_forward(*a, num_groups=2, channel_axis=-1),
        lambda *a: ln.group_norm_backward(*a, num_groups=2, channel_axis=-1),
        (1, 2),
        (10,),
    ),
    "instance": (ln.instance_norm_forward, ln.instance_norm_backward, (1, 2), (4,)),
}


def arrays(case: str, dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = (SHAPE, CASES[case][3], CASES[case][3], SHAPE)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def chunked(x: np.ndarray, whole: tuple[int, ...] = ()) -> Any:
    return da.from_array(x, chunks=tuple(n if k in whole else 2 for k, n in enumerate(x.shape)))


def equal(own: Any, right: Any) -> None:
    assert own.dtype == right.dtype
    assert own.shape == right.shape
    np.testing.assert_array_equal(own.compute(scheduler="synchronous"), right)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_rows_are_the_bits_of_numpy(case: str, dtype: Any) -> None:
    forward, backward, whole, _ = CASES[case]
    x, gamma, beta, dy = arrays(case, dtype)
    given = chunked(x, whole), chunked(gamma), chunked(beta)
    result, expected = forward(*given), forward(x, gamma, beta)
    assert result.y.chunks == given[0].chunks
    for own, right in zip(result, expected, strict=True):
        equal(own, right)
    gradients = backward(chunked(dy), given[0], *result[1:], *given[1:])
    right = backward(dy, x, *expected[1:], gamma, beta)
    equal(gradients.dx, right.dx)
    for name in ("dgamma", "dbeta"):  # which are added up in other blocks
        own, numpys = getattr(gradients, name).compute(), getattr(right, name)
        assert own.dtype == numpys.dtype
        tolerance = 4 * float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(
            own.astype("f8"), numpys.astype("f8"), rtol=tolerance, atol=8 * tolerance
        )


def test_weight_norm_pairs_slices_with_their_parameters() -> None:
    rng = np.random.default_rng(0)
    v, g, dw = (rng.standard_normal(each).astype("f4") for each in ((6, 4, 5), (6,), (6, 4, 5)))
    lazily = chunked(v, (1, 2)), chunked(g)
    result, expected = ln.weight_norm_forward(*lazily), ln.weight_norm_forward(v, g)
    for own, right in zip(result, expected, strict=True):
        equal(own, right)
    gradients = ln.weight_norm_backward(chunked(dw, (1, 2)), *lazily[:1], *result[1:], lazily[1])
    for own, right in zip(gradients, ln.weight_norm_backward(dw, v, *expected[1:], g), strict=True):
        np.testing.assert_allclose(own.compute(), right, rtol=1e-5, atol=1e-6)
    equal(ln.weight_standardization(lazily[0]), ln.weight_standardization(v))


def test_gradients_that_are_not_needed_are_none() -> None:
    x, gamma, beta, dy = arrays("layer")
    lazily = [chunked(each, (2,)) for each in (dy, x)]
    _, mean, rstd = ln.layer_norm_forward(lazily[1])
    found = ln.layer_norm_backward(*lazily, mean, rstd, need=("dbeta",))
    assert (found.dx, found.dgamma) == (None, None)
    np.testing.assert_allclose(found.dbeta.compute(), dy.sum((0, 1)), rtol=1e-5, atol=1e-5)
    assert ln.rms_norm_backward(*lazily, rstd, chunked(gamma), need=("dx",)).dgamma is None
    assert chunked(beta).ndim == 1


def test_a_task_for_each_chunk() -> None:
    x = da.ones((8, 4), chunks=(2, 4), dtype=np.float32)
    y = ln.layer_norm(x)
    (optimized,) = dask.optimize(y)
    assert len(optimized.dask) == 4
    result = ln.layer_norm_forward(x)
    calls = [0]

    def count(*args: Any) -> None:
        calls[0] += 1

    from dask.callbacks import Callback

    with Callback(posttask=count):
        dask.compute(*result, scheduler="synchronous")
    assert calls[0] <= 4 * 5  # a call and what is picked of its results, perhaps made apart


def test_lengths_that_are_not_known() -> None:
    x = np.random.default_rng(0).standard_normal((9, 5))
    lazily = da.from_array(x, chunks=(3, 5))
    lazily = lazily[lazily[:, 0] > -10.0]
    result, expected = ln.layer_norm_forward(lazily), ln.layer_norm_forward(x)
    for own, right in zip(result, expected, strict=True):
        np.testing.assert_array_equal(own.compute(), right)
    gradients = ln.layer_norm_backward(lazily, lazily, *result[1:])
    right = ln.layer_norm_backward(x, x, *expected[1:])
    np.testing.assert_array_equal(gradients.dx.compute(), right.dx)
    np.testing.assert_allclose(gradients.dbeta.compute(), right.dbeta, rtol=1e-12)


def test_the_requested_backend_reaches_the_chunks() -> None:
    x = np.random.default_rng(0).standard_normal((64, 100)).astype("f4")
    lazily = da.from_array(x, chunks=(16, 100))
    with ln.use_backend("generic"):
        y, right = ln.layer_norm(lazily), ln.layer_norm(x)
    equal(y, right)


def test_a_call_can_travel() -> None:
    y = ln.layer_norm(da.ones((4, 3), chunks=(2, 3)))
    again = pickle.loads(pickle.dumps(y))
    np.testing.assert_array_equal(again.compute(), np.zeros((4, 3)))


def test_there_are_no_warnings_where_numpy_gives_none() -> None:
    x = np.asarray([[np.inf, 1.0], [np.nan, 2.0], [3.0, 3.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = ln.layer_norm(da.from_array(x, chunks=(1, 2)), epsilon=0.0).compute()
    np.testing.assert_array_equal(y, ln.layer_norm(x, epsilon=0.0))
