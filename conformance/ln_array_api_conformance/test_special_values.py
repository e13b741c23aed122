"""NaN, infinities, constant rows, empty arrays and rows of one element."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from . import calls
from .inputs import generator, rows
from .libraries import DTYPES, Library
from .operations import LAYER_NORM, RMS_NORM, Operation


@pytest.mark.parametrize("bad_value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, 63])
def test_a_bad_row_spoils_itself_alone(
    operation: Operation, library: Library, dtype: str, bad_value: float, place: int
) -> None:
    x = rows("normal", dtype, 5, 64)
    dy = generator("dy").standard_normal(x.shape).astype(DTYPES[dtype])
    _, args = calls.make_params(operation, library, dtype, 64)
    clean = calls.forward_backward(operation, library, library.array(dy), library.array(x), args)
    x[2, place] = bad_value
    spoiled = calls.forward_backward(operation, library, library.array(dy), library.array(x), args)
    for before, after in ((clean[0].y, spoiled[0].y), (clean[1].dx, spoiled[1].dx)):
        before, after = library.numpy(before), library.numpy(after)
        others = [0, 1, 3, 4]
        assert calls.to_bytes(before[others]) == calls.to_bytes(after[others])
        if not (operation is RMS_NORM and np.isinf(bad_value)):
            assert np.isnan(after[2].astype(np.float64)).all()
        else:  # x / inf is 0, but for the infinity itself
            assert np.isnan(after[2].astype(np.float64)[place])


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 333.3, 6e4, 1e-6])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-12, 1e-60])
def test_constant_rows_give_beta(
    library: Library, dtype: str, value: float, epsilon: float
) -> None:
    """X_hat is exactly 0, however small epsilon is, and gradients are finite."""
    x = np.full((3, 100), value).astype(DTYPES[dtype])
    dy = rows("normal", dtype, 3, 100)
    np_params, args = calls.make_params(LAYER_NORM, library, dtype, 100)
    result, gradients = calls.forward_backward(
        LAYER_NORM, library, library.array(dy), library.array(x), args, epsilon=epsilon
    )
    assert np_params[1] is not None
    np.testing.assert_array_equal(library.numpy(result.y), np.broadcast_to(np_params[1], x.shape))
    np.testing.assert_array_equal(library.numpy(result.mean), x[:, :1])
    if epsilon > (1e-6 if dtype == "float16" else 1e-38):  # else dx is beyond the dtype itself
        for each in gradients:
            assert np.isfinite(library.numpy(each).astype(np.float64)).all()


@pytest.mark.parametrize("power", [0.4, 0.8, 0.999, -0.8])
def test_constant_rows_far_from_one(library: Library, dtype: str, power: float) -> None:
    """Of a power of the largest number: epsilon alone makes rstd, and so dx."""
    value = float(ml_dtypes.finfo(DTYPES[dtype]).max) ** power
    x = np.full((2, 50), value).astype(DTYPES[dtype])
    dy = rows("normal", dtype, 2, 50)
    np_params, args = calls.make_params(LAYER_NORM, library, dtype, 50)
    result, gradients = calls.forward_backward(
        LAYER_NORM, library, library.array(dy), library.array(x), args, epsilon=1e-5
    )
    gamma, beta = np_params
    assert gamma is not None
    assert beta is not None
    np.testing.assert_array_equal(library.numpy(result.y), np.broadcast_to(beta, x.shape))
    np.testing.assert_allclose(library.numpy(result.rstd), 1e5**0.5, rtol=1e-6)
    g = dy.astype(np.float64) * gamma.astype(np.float64)
    expected = (g - g.mean(-1, keepdims=True)) * 1e5**0.5
    dx = library.numpy(gradients.dx).astype(np.float64)
    eps = max(float(ml_dtypes.finfo(DTYPES[dtype]).eps), 1e-7)
    np.testing.assert_allclose(dx, expected, rtol=4 * eps, atol=4 * eps * np.abs(expected).max())


def test_without_epsilon_a_constant_row_is_nan(library: Library, dtype: str) -> None:
    """As the maths says: 0 / 0."""
    x = np.stack([np.full(8, 3.0), np.arange(8.0)]).astype(DTYPES[dtype])
    y = calls.forward(LAYER_NORM, library, library.array(x), [None, None], epsilon=0.0)["y"]
    assert np.isnan(y[0].astype(np.float64)).all()
    assert np.isfinite(y[1].astype(np.float64)).all()


@pytest.mark.parametrize("repeat", [1, 100])
@pytest.mark.parametrize("row_layout", [1, 2], ids=["rows", "columns"])
def test_magnitudes_up_to_the_largest(library: Library, row_layout: int, repeat: int) -> None:
    """The sums would overflow, and the results do not."""
    x = np.asarray([[3e38, -3e38, 1e38, 0.0], [3e38, 3e38, 3e38, 2.9e38]], np.float32)
    x, lie = x.repeat(repeat, axis=-1), calls.RowLayout(row_layout)
    with library.forbid_compute():
        result = LAYER_NORM.forward(lie.array(library, x), None, None, **lie.options)
    y = lie.back(library, result.y)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(-1, keepdims=True)) / x64.std(-1, keepdims=True)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_one_element(library: Library, dtype: str) -> None:
    """The mean is the element, so y is beta and dx is 0."""
    x = rows("mean 100 sigma", dtype, 6, 1)
    np_params, args = calls.make_params(LAYER_NORM, library, dtype, 1)
    dy = library.array(np.ones_like(x))
    result, gradients = calls.forward_backward(LAYER_NORM, library, dy, library.array(x), args)
    assert np_params[1] is not None
    np.testing.assert_array_equal(library.numpy(result.y), np.broadcast_to(np_params[1], x.shape))
    np.testing.assert_array_equal(library.numpy(gradients.dx).astype(np.float64), 0.0)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 3, 5)])
def test_no_rows(
    operation: Operation, library: Library, dtype: str, shape: tuple[int, ...]
) -> None:
    """Results are empty; gradients of parameters are sums of nothing."""
    x = library.array(np.zeros(shape, DTYPES[dtype]))
    _, args = calls.make_params(operation, library, dtype, 5)
    result, gradients = calls.forward_backward(operation, library, x, x, args)
    assert library.numpy(result.y).shape == shape
    assert library.numpy(result.rstd).shape == (*shape[:-1], 1)
    assert library.numpy(gradients.dx).shape == shape
    for name in operation.gradients[1:]:
        gradient = library.numpy(getattr(gradients, name))
        np.testing.assert_array_equal(gradient.astype(np.float64), np.zeros(5))


@pytest.mark.needs("gradients")
@pytest.mark.parametrize("shape", [(3, 0), (0, 5), (2, 0, 5)])
def test_nothing_is_differentiated_by_the_library_itself(
    operation: Operation, library: Library, shape: tuple[int, ...]
) -> None:
    """An empty y depends on all inputs, and their gradients are 0."""
    x = library.array(np.zeros(shape, np.float32))
    inputs = (x, *calls.make_params(operation, library, "float32", shape[-1])[1])
    for each, gradient in zip(inputs, library.vjp(operation.function, inputs, x), strict=True):
        expected = np.zeros(tuple(each.shape))
        np.testing.assert_array_equal(library.numpy(gradient), expected)


@pytest.mark.parametrize("shape", [(3, 0), (0, 0), (2, 3, 0)])
def test_no_elements(
    operation: Operation, library: Library, dtype: str, shape: tuple[int, ...]
) -> None:
    """Y is empty, the statistics of nothing are NaN, and there is no warning."""
    x = library.array(np.zeros(shape, DTYPES[dtype]))
    _, args = calls.make_params(operation, library, dtype, 0)
    result, gradients = calls.forward_backward(operation, library, x, x, args)
    assert library.numpy(result.y).shape == shape
    for each in result[1:]:
        statistic = library.numpy(each)
        assert statistic.shape == (*shape[:-1], 1)
        assert np.isnan(statistic).all()
    assert library.numpy(gradients.dx).shape == shape
    assert library.numpy(gradients.dgamma).shape == (0,)
