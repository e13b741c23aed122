"""NaN, infinities, constant rows, empty arrays and rows of one element."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from . import operation_calls as calls
from .inputs import generator, rows
from .libraries import DTYPES, Library
from .operation_spec import NumpyInputs, OperationSpec, gradient_of_y, make_inputs
from .row_view import RowView, row_inputs


def run_rows(
    operation: OperationSpec, library: Library, x: np.ndarray, dy: np.ndarray, **options: Any
) -> tuple[dict[str, Any], NumpyInputs]:
    """Return results and gradients of rows by name, and the inputs."""
    np_inputs = row_inputs(operation, x, x.dtype.name)
    lib_inputs = calls.arrays(library, np_inputs)
    result, gradients = calls.forward_backward(
        operation, library, library.array(dy), lib_inputs, **options
    )
    both = {**result._asdict(), **gradients._asdict()}
    return {name: library.numpy(each) for name, each in both.items()}, np_inputs


def beta_of(np_inputs: NumpyInputs) -> np.ndarray:
    """Return y of x_hat 0."""
    x = np_inputs["x"]
    return np.broadcast_to(np_inputs.get("beta", np.zeros((), x.dtype)), x.shape)


@pytest.mark.having("rows")
@pytest.mark.parametrize("bad_value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, 63])
def test_a_bad_row_spoils_itself_alone(
    operation: OperationSpec, library: Library, dtype: str, bad_value: float, place: int
) -> None:
    x = rows("normal", dtype, 5, 64)
    dy = generator("dy").standard_normal(x.shape).astype(DTYPES[dtype])
    clean, _ = run_rows(operation, library, x, dy)
    x[2, place] = bad_value
    spoiled, _ = run_rows(operation, library, x, dy)
    others = [0, 1, 3, 4]
    for name in ("y", "dx"):
        before, after = clean[name], spoiled[name]
        assert calls.to_bytes(before[others]) == calls.to_bytes(after[others])
        if np.isnan(bad_value) or "mean" in operation.statistics:
            assert np.isnan(after[2].astype(np.float64)).all()
        else:  # x / inf is 0, except for the infinity itself
            assert np.isnan(after[2].astype(np.float64)[place])


@pytest.mark.parametrize("bad_value", [np.nan, np.inf, -np.inf])
def test_a_bad_element_spoils_what_is_normalised_with_it(
    operation: OperationSpec, library: Library, bad_value: float
) -> None:
    """A NaN makes all of it NaN, an infinity what the definition says; all else keeps its bits."""
    case, dtype = operation.main_case, "float32"
    np_inputs = make_inputs(operation, case, "normal", dtype)
    dy = library.array(gradient_of_y(operation, case, dtype))
    x = np_inputs[operation.x].copy()
    x[tuple(length // 2 for length in x.shape)] = bad_value
    bad_inputs = {**np_inputs, operation.x: x}
    clean, spoiled = (
        calls.forward_backward(operation, library, dy, calls.arrays(library, each), **case.options)
        for each in (np_inputs, bad_inputs)
    )
    for of_gradient in (False, True) if operation.has_backward else (False,):
        group_max = (of_gradient and operation.gradient_group_max) or operation.group_max
        affected = group_max((~np.isfinite(x)).astype(float), case.options) > 0
        before, after = (library.numpy(each[of_gradient][0]) for each in (clean, spoiled))
        np.testing.assert_array_equal(before[~affected], after[~affected])
        if np.isnan(bad_value):
            assert np.isnan(after[affected]).all()
        elif not of_gradient:
            with np.errstate(all="ignore"):
                exact = operation.evaluate(bad_inputs, case.options)[operation.y]
            np.testing.assert_allclose(after[affected], exact[affected], rtol=1e-6, atol=1e-6)


@pytest.mark.having("rows", "mean")
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 333.3, 6e4, 1e-6])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-12, 1e-60])
def test_constant_rows_give_beta(
    operation: OperationSpec, library: Library, dtype: str, value: float, epsilon: float
) -> None:
    """X_hat is exactly 0, however small epsilon is, and gradients are finite."""
    x = np.full((3, 100), value).astype(DTYPES[dtype])
    dy = rows("normal", dtype, 3, 100)
    actual, np_inputs = run_rows(operation, library, x, dy, epsilon=epsilon)
    np.testing.assert_array_equal(actual["y"], beta_of(np_inputs))
    np.testing.assert_array_equal(actual["mean"], x[:, :1])
    if epsilon > (1e-6 if dtype == "float16" else 1e-38):  # else dx is beyond the dtype itself
        for name in operation.gradients:
            assert np.isfinite(actual["d" + name].astype(np.float64)).all()


@pytest.mark.having("rows", "mean", "rstd")
@pytest.mark.parametrize("power", [0.4, 0.8, 0.999, -0.8])
def test_constant_rows_far_from_one(
    operation: OperationSpec, library: Library, dtype: str, power: float
) -> None:
    """Of a power of the largest number: epsilon alone makes rstd, and so dx."""
    value = float(ml_dtypes.finfo(DTYPES[dtype]).max) ** power
    x = np.full((2, 50), value).astype(DTYPES[dtype])
    dy = rows("normal", dtype, 2, 50)
    actual, np_inputs = run_rows(operation, library, x, dy, epsilon=1e-5)
    np.testing.assert_array_equal(actual["y"], beta_of(np_inputs))
    np.testing.assert_allclose(actual["rstd"], 1e5**0.5, rtol=1e-6)
    g = dy.astype(np.float64) * np_inputs.get("gamma", np.ones(50)).astype(np.float64)
    expected = (g - g.mean(-1, keepdims=True)) * 1e5**0.5
    dx = actual["dx"].astype(np.float64)
    eps = max(float(ml_dtypes.finfo(DTYPES[dtype]).eps), 1e-7)
    np.testing.assert_allclose(dx, expected, rtol=4 * eps, atol=4 * eps * np.abs(expected).max())


@pytest.mark.having("rows", "epsilon")
def test_without_epsilon_a_constant_row_is_nan(
    operation: OperationSpec, library: Library, dtype: str
) -> None:
    """As the maths says: 0 / 0. Where no mean is subtracted, the constant is 0."""
    constant = 3.0 if "mean" in operation.statistics else 0.0
    x = np.stack([np.full(8, constant), np.arange(8.0)]).astype(DTYPES[dtype])
    inputs = {"x": library.array(x), **dict.fromkeys(operation.parameters)}
    y = library.numpy(calls.forward(operation, library, inputs, epsilon=0.0).y)
    assert np.isnan(y[0].astype(np.float64)).all()
    assert np.isfinite(y[1].astype(np.float64)).all()


@pytest.mark.having("rows")
@pytest.mark.parametrize("repeat", [1, 100])
@pytest.mark.parametrize("inner", [1, 2], ids=["rows", "columns"])
def test_magnitudes_up_to_the_largest(
    operation: OperationSpec, library: Library, inner: int, repeat: int
) -> None:
    """The sums would overflow, and the results do not."""
    x = np.asarray([[3e38, -3e38, 1e38, 0.0], [3e38, 3e38, 3e38, 2.9e38]], np.float32)
    x = x.repeat(repeat, axis=-1)
    view = RowView.of_columns(x, inner)
    np_inputs = row_inputs(operation, x, "float32", "none")
    lib_inputs = view.arrays(library, np_inputs)
    y = calls.forward(operation, library, lib_inputs, **view.options).y
    expected = operation.evaluate(np_inputs, {})["y"]
    np.testing.assert_allclose(view.rows(library.numpy(y)), expected, rtol=1e-6)


@pytest.mark.having("rows", "mean")
def test_one_element(operation: OperationSpec, library: Library, dtype: str) -> None:
    """The mean is the element, so y is beta and dx is 0."""
    x = rows("mean 100 sigma", dtype, 6, 1)
    actual, np_inputs = run_rows(operation, library, x, np.ones_like(x))
    np.testing.assert_array_equal(actual["y"], beta_of(np_inputs))
    np.testing.assert_array_equal(actual["dx"].astype(np.float64), 0.0)


def check_zeros(library: Library, gradients: dict[str, Any], np_inputs: NumpyInputs) -> None:
    """Check that gradients, by the name of the input, have its shape, and are all 0."""
    for name, gradient in gradients.items():
        values = library.numpy(gradient).astype(np.float64)
        np.testing.assert_array_equal(values, np.zeros(np_inputs[name].shape), err_msg=name)


def test_nothing_to_normalise(
    operation: OperationSpec, library: Library, dtype: str, empty: str
) -> None:
    """Any axis empty: so is y, statistics of nothing are NaN, gradients are sums of nothing.

    There is no warning.
    """
    case = operation.empty_cases[empty]
    np_inputs = make_inputs(operation, case, "normal", dtype)
    lib_inputs, dy = calls.arrays(library, np_inputs), library.array(np_inputs[operation.x])
    result, gradients = calls.forward_backward(operation, library, dy, lib_inputs, **case.options)
    shape = case.shapes[operation.x]
    assert library.numpy(result[0]).shape == shape
    for name in operation.statistics:
        statistic = library.numpy(getattr(result, name))
        assert np.isnan(statistic.astype(np.float64)).all()
        assert not operation.over_rows or statistic.shape == (*shape[:-1], 1)
    check_zeros(library, calls.by_input(operation, gradients), np_inputs)


@pytest.mark.needs("gradients")
def test_nothing_is_differentiated_by_the_library_itself(
    operation: OperationSpec, library: Library, empty: str
) -> None:
    """An empty y depends on all inputs, and their gradients are 0."""
    case = operation.empty_cases[empty]
    np_inputs = make_inputs(operation, case, "normal", "float32")
    lib_inputs, dy = calls.arrays(library, np_inputs), library.array(np_inputs[operation.x])
    run, inputs = calls.differentiable(operation, library, lib_inputs, **case.options)
    gradients = library.vjp(run, inputs, dy)
    check_zeros(library, dict(zip(operation.gradients, gradients, strict=True)), np_inputs)
