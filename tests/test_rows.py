"""The arrays that kernels over rows get, and the conversion of their results."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from rows_recorder import (
    AXES,
    LAYOUTS,
    SHAPE,
    Recorder,
    Subclass,
    assert_same,
    frozen,
    over,
    unaligned,
    values,
)
from sample_backends import Looking, Register, entry

import ln_array_api as ln
from ln_array_api import backend
from ln_array_api._arrays import library_of
from ln_array_api._dispatch.rows import LAYER, RMS, backward_plan, forward_plan


@pytest.fixture
def recorder(register: Register) -> Recorder:
    instance = Recorder()
    register(entry("recorder", instance))
    return instance


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_get_contiguous_rows_for_every_layout(
    recorder: Recorder, layout: str, dtype: Any, axis: int | tuple[int, ...]
) -> None:
    lay = LAYOUTS[layout]
    shape = tuple(SHAPE[each] for each in over(axis, SHAPE))
    x, dy = values(*SHAPE, dtype=dtype), values(*SHAPE, dtype=dtype, seed=1)
    gamma, beta = values(*shape, dtype=dtype, seed=2), values(*shape, dtype=np.float64, seed=3)
    expected = ln.layer_norm_forward(x, gamma, beta, axis=axis)
    gradients = ln.layer_norm_backward(dy, x, *expected[1:], gamma, axis=axis)
    assert len(recorder.calls) == 2
    recorder.calls.clear()

    result = ln.layer_norm_forward(lay(x), lay(gamma), lay(beta), axis=axis)
    assert_same(result, expected)
    statistics = [lay(each) for each in expected[1:]]
    assert_same(
        ln.layer_norm_backward(lay(dy), lay(x), *statistics, lay(gamma), axis=axis), gradients
    )
    y, rstd = ln.rms_norm_forward(lay(x), lay(gamma), axis=axis)
    ln.rms_norm_backward(lay(dy), lay(x), lay(rstd), lay(gamma), axis=axis)
    assert len(recorder.calls) == 4
    if dtype is not ml_dtypes.bfloat16:
        assert type(y) is np.ndarray


@pytest.mark.parametrize("odd", range(5), ids=["dy", "x", "mean", "rstd", "gamma"])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
def test_one_array_of_another_layout_is_made_contiguous(
    recorder: Recorder, layout: str, odd: int
) -> None:
    x, dy, gamma = values(6, 8), values(6, 8, seed=1), values(8, seed=2)
    _, mean, rstd = ln.layer_norm_forward(x, gamma)
    arrays = [dy, x, mean, rstd, gamma]
    expected = ln.layer_norm_backward(*arrays)
    arrays[odd] = LAYOUTS[layout](arrays[odd])
    assert_same(ln.layer_norm_backward(*arrays), expected)
    y = ln.layer_norm(arrays[1], gamma, arrays[4])
    np.testing.assert_array_equal(y, ln.layer_norm(x, gamma, gamma))


@pytest.mark.parametrize("wide", range(4), ids=["dy", "mean", "rstd", "gamma"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_wider_companions(recorder: Recorder, dtype: Any, wide: int) -> None:
    x = values(6, 8, dtype=dtype)
    dy, gamma = values(6, 8, dtype=dtype, seed=1), values(8, dtype=dtype, seed=2)
    _, mean, rstd = ln.layer_norm_forward(x, gamma)
    arrays = [dy, mean, rstd, gamma]
    expected = ln.layer_norm_backward(dy, x, mean, rstd, gamma)
    arrays[wide] = arrays[wide].astype(np.float64)
    gradients = ln.layer_norm_backward(arrays[0], x, *arrays[1:])
    assert gradients.dx.dtype == dtype
    assert gradients.dgamma.dtype == gradients.dbeta.dtype == arrays[3].dtype
    for result, right in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(result.astype(right.dtype), right)


class InGammasDtype(Recorder):
    """Returns dgamma and dbeta in the dtype of gamma, as a backend may."""

    def rows_backward(self, *arrays: Any, **options: Any) -> Any:
        *_, x, _, _, gamma = arrays
        dtype = x.dtype if gamma is None else gamma.dtype
        dx, dgamma, dbeta = super().rows_backward(*arrays, **options)
        return dx, *(None if each is None else each.astype(dtype) for each in (dgamma, dbeta))


@pytest.mark.parametrize("with_gamma", [False, True])
def test_dbeta_of_a_wider_beta_has_its_digits(register: Register, with_gamma: bool) -> None:
    register(entry("narrow", InGammasDtype()))
    x, dy = (values(6, 8, dtype=np.float16, seed=seed) for seed in (0, 1))
    gamma = values(8, dtype=np.float16, seed=2) if with_gamma else None
    _, mean, rstd = ln.layer_norm_forward(x, gamma)
    beta = values(8, dtype=np.float32, seed=3)
    dbeta = ln.layer_norm_backward(dy, x, mean, rstd, gamma, beta).dbeta
    assert dbeta.dtype == np.float32
    np.testing.assert_allclose(dbeta, dy.astype(np.float64).sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1), (1, 5), (5, 1)], ids=str)
def test_empty_and_tiny_rows_reach_the_kernel_in_shape(
    recorder: Recorder, shape: tuple[int, int]
) -> None:
    m, n = shape
    for x, axis in ((values(m, n), -1), (values(n, m), 0), (values(m, 1, n), (1, 2))):
        y, mean, rstd = ln.layer_norm_forward(x, values(n).reshape(y_shape(x, axis)), axis=axis)
        ln.layer_norm_backward(y, x, mean, rstd, axis=axis)
        assert y.shape == x.shape
        assert mean.size == rstd.size == m
    assert len(recorder.calls) == 6
    assert {call.arrays[0].shape for call in recorder.calls} == {shape}


def y_shape(x: np.ndarray, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x.shape[each] for each in over(axis, x.shape))


def test_a_broadcast_row_and_a_vector(recorder: Recorder) -> None:
    row = values(8)
    repeated = np.broadcast_to(row, (6, 8))
    assert_same(ln.layer_norm_forward(repeated), ln.layer_norm_forward(repeated.copy()))
    y = ln.layer_norm(row)
    np.testing.assert_array_equal(y, ln.layer_norm(repeated)[0])
    assert recorder.spec.shape == (1, 8)
    assert y.shape == (8,)


@pytest.mark.parametrize(
    ("x", "axis"),
    [
        (values(6, 8), -1),
        (values(3, 4, 5), -1),
        (values(3, 4, 5), (1, 2)),
        (values(3, 4, 5), (2, 1, 0)),
        (values(8), 0),
        (values(8, 6).T, 0),
        (np.moveaxis(values(3, 4, 5), 0, -1), (0, 1)),
        (frozen(values(6, 8)), 1),
    ],
    ids=[
        "rows",
        "last of three",
        "last two",
        "all",
        "vector",
        "first of a transposed",
        "first two of a moved",
        "read-only",
    ],
)
def test_contiguous_arrays_are_not_copied(
    recorder: Recorder, x: np.ndarray, axis: int | tuple[int, ...]
) -> None:
    gamma = values(*y_shape(x, axis))
    _, mean, rstd = ln.layer_norm_forward(x, gamma, gamma, axis=axis)
    ln.layer_norm_backward(x, x, mean, rstd, gamma, axis=axis)
    forward, backward = recorder.calls
    given = (x, gamma, gamma), (x, x, mean, rstd, gamma)
    for call, arrays in zip((forward, backward), given, strict=True):
        for seen, own in zip(call.arrays, arrays, strict=True):
            assert np.shares_memory(seen, own)


def test_a_plan_for_contiguous_rows_is_not_used_for_other_layouts(recorder: Recorder) -> None:
    """The recorder fails for arrays that are not contiguous."""
    x, wide = values(6, 8), values(6, 16)
    for each in (x, wide[:, ::2], x[:, ::-1], x.view(Subclass), unaligned(x), x):
        ln.layer_norm(each)
        _, mean, rstd = ln.layer_norm_forward(each)
        ln.layer_norm_backward(x, each, mean, rstd)
        columns = np.repeat(mean, 2, axis=1)[:, ::2], np.repeat(rstd, 2, axis=1)[:, ::2]
        ln.layer_norm_backward(x, each, *columns)
    assert len(recorder.calls) == 24


@pytest.mark.parametrize("module", ["torch", "array_api_strict"])
def test_torch_shares_memory_and_the_standard_gets_rows(register: Register, module: str) -> None:
    xp = pytest.importorskip(module, reason=f"{module} is not installed")
    looking = Looking()
    register(entry("looking", looking, module))
    plain, scale = values(3, 4, 5), values(4, 5)
    x, gamma = xp.asarray(plain.copy()), xp.asarray(scale.copy())
    with ln.use_backend("generic"):
        expected = ln.layer_norm(plain, scale, axis=(1, 2))
    y = ln.layer_norm(x, gamma, axis=(1, 2))
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-5, atol=1e-6)
    permute_dims = library_of(x).xp.permute_dims
    backwards, flat = permute_dims(x, (2, 1, 0)), permute_dims(gamma, (1, 0))
    y = ln.layer_norm(backwards, flat, axis=(0, 1))
    np.testing.assert_allclose(np.asarray(y), expected.T, rtol=1e-5, atol=1e-6)
    seen = looking.seen
    assert [tuple(each.shape) for each, _ in seen] == [(3, 20), (3, 20)]
    assert all(gamma.ndim == 1 for _, gamma in seen)
    if module == "torch":
        assert seen[0][0].data_ptr() == x.data_ptr()
        assert seen[0][1].data_ptr() == gamma.data_ptr()
        assert all(each.is_contiguous() for pair in seen for each in pair)


def test_the_gradient_that_is_not_needed_is_not_computed(
    recorder: Recorder, sums: list[tuple[int, ...]]
) -> None:
    x, gamma = values(6, 8), values(8)
    _, mean, rstd = ln.layer_norm_forward(x)
    counts = {}
    for need in ((), ("dbeta",), ("dgamma",), ("dx",), ("dx", "dgamma", "dbeta")):
        sums.clear()
        ln.layer_norm_backward(x, x, mean, rstd, gamma, need=need)
        counts[need] = len(sums)
    assert counts == {
        (): 0,
        ("dbeta",): 1,
        ("dgamma",): 2,
        ("dx",): 3,
        ("dx", "dgamma", "dbeta"): 5,
    }


def test_wrong_calls_are_refused_before_the_kernel(recorder: Recorder) -> None:
    x = values(6, 8)
    for out in (values(6, 7), frozen(x), x[::-1], values(6, 8, dtype=np.float64)):
        with pytest.raises(ValueError, match=r"^layer_norm: out "):
            ln.layer_norm(x, out=out)
    ln.layer_norm(x, out=np.empty_like(x))
    with pytest.raises(ValueError, match=r"^layer_norm: out is read-only"):
        ln.layer_norm(x, out=frozen(x))  # with a plan from the call before
    assert len(recorder.calls) == 1


def test_options_in_other_forms_find_the_same_plan(recorder: Recorder) -> None:
    x = values(*SHAPE)
    expected = ln.layer_norm(x, axis=(1, 2))
    plans = len(backend.plans)
    for axis in ([1, 2], np.asarray([1, 2]), (np.int64(1), np.int8(2)), iter((1, 2))):
        np.testing.assert_array_equal(ln.layer_norm(x, axis=axis), expected)  # type: ignore[arg-type]
    assert len(backend.plans) == plans
    _, mean, rstd = ln.layer_norm_forward(x)
    some = ln.layer_norm_backward(x, x, mean, rstd, need=["dbeta", "dx"])  # type: ignore[arg-type]
    assert some.dx is not None
    assert some.dbeta is not None
    assert some.dgamma is None


def test_an_unhashable_option_is_refused_by_the_checks() -> None:
    x = values(2, 3)
    with pytest.raises(TypeError, match=r"^layer_norm: epsilon must be a real number, not array"):
        ln.layer_norm(x, epsilon=np.asarray(1e-5))  # type: ignore[arg-type]


def test_a_plan_is_for_the_backend_that_is_asked_for() -> None:
    """A cached plan for another backend is not used, forward and backward."""
    x, column = np.ones((2, 4), np.float32), np.ones((2, 1), np.float32)
    forward = ("layer_norm", LAYER, x, None, None, -1, 1e-5)
    backward = ("layer_norm_backward", LAYER, x, x, column, column, None, None, -1, ("dx",))
    for _ in range(2):
        with ln.use_backend("generic"):
            assert forward_plan(*forward).choice.backend == "generic"
            assert backward_plan(*backward).choice.backend == "generic"
        assert "use_backend" not in forward_plan(*forward).choice.reason
        assert "use_backend" not in backward_plan(*backward).choice.reason


def test_a_plan_is_for_rows_with_a_mean_or_without() -> None:
    x, column = np.ones((2, 4), np.float32), np.ones((2, 1), np.float32)
    for operation in (LAYER, RMS, LAYER):
        plan = forward_plan("norm", operation, x, None, None, -1, 1e-5)
        assert plan.spec.center == operation.center
        mean = column if operation.center else None
        arrays = (x, x, mean, column, None, None, -1, ("dx",))
        plan = backward_plan("norm_backward", operation, *arrays)
        assert plan.spec.center == operation.center


def test_planners_name_the_function_that_was_called() -> None:
    x = values(2, 3)
    for name in ("layer_norm", "rms_norm_forward"):
        with pytest.raises(ValueError, match=f"^{name}: axis 5 is out of range"):
            forward_plan(name, LAYER, x, None, None, 5, 1e-5)
