"""Checks of results and gradients against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

from . import operation_calls as calls
from . import reference, tolerances
from .inputs import generator
from .libraries import DTYPES, Layout, Library
from .operation_spec import Case, NumpyInputs, OperationSpec, gradient_of_y, make_inputs
from .row_view import RowView, row_inputs
from .tolerances import ACCUMULATION


@contextmanager
def told(**context: object) -> Iterator[None]:
    """Add to a failure what the test's name does not say."""
    try:
        yield
    except AssertionError as error:
        error.add_note(", ".join(f"{name} {value!r}" for name, value in context.items()))
        raise


def expected_y(
    spec: OperationSpec, np_inputs: NumpyInputs, options: dict[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    """Return y and the statistics, and for each element of y the scale of its tolerance.

    The scale is the largest of abs(gamma * x_hat) and abs(beta) among the elements that are
    normalised together.
    """
    expected = spec.evaluate(np_inputs, options)
    scale = abs(expected[spec.y])
    if np_inputs.get("beta") is not None:
        product = spec.evaluate({**np_inputs, "beta": None}, options)[spec.y]
        scale = np.maximum(abs(product), abs(expected[spec.y] - product))
    return expected, spec.group_max(np.asarray(scale, np.float64), options)


def check_results(
    spec: OperationSpec,
    np_inputs: NumpyInputs,
    options: dict[str, Any],
    results: dict[str, Any],
    dtype: str,
) -> None:
    """Check y and the statistics, as NumPy arrays by name, against the definition."""
    expected, scale = expected_y(spec, np_inputs, options)
    tolerances.assert_close(spec.y, results[spec.y], expected[spec.y], tolerances.Y, scale, dtype)
    x = abs(reference.inside(np_inputs[spec.x], options).astype(np.float64))
    axes = reference.axes_of(options.get("axis", -1), x.ndim) if spec.over_rows else None
    max_abs = np.max(x, axis=axes, keepdims=True) if spec.over_rows else np.max(x)
    for name in spec.statistics:
        before = np_inputs.get(name)
        if name in np_inputs and before is None:
            assert results[name] is None
            continue
        if before is not None:  # which enters it as x does
            max_abs = np.maximum(max_abs, np.max(abs(before.astype(np.float64))))
        own = spec.dtype_of(name, dtype)
        check_statistic(name, results[name], expected[name], max_abs, own)


def check_statistic(name: str, actual: Any, expected: Any, max_abs: Any, dtype: str) -> None:
    """Check a mean to so many ulp of `max_abs`, other statistics to a relative tolerance.

    Expected values beyond the range of the dtype have to be infinite.
    """
    assert actual.dtype == DTYPES[dtype]
    assert actual.shape == np.shape(expected)
    if name.endswith("mean"):
        tolerances.assert_close(name, actual, expected, tolerances.MEAN, max_abs, dtype)
        return
    ulps = tolerances.VARIANCE if name.endswith("var") else tolerances.RSTD
    expected64 = np.asarray(expected, np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(expected64.astype(actual.dtype).astype(np.float64))
    np.testing.assert_array_equal(np.isfinite(actual.astype(np.float64)), finite, err_msg=name)
    actual, expected64 = actual[finite].astype(np.float64), expected64[finite]
    tolerance = ulps * float(np.finfo(DTYPES[ACCUMULATION[dtype]]).eps) * abs(expected64)
    tolerance += tolerances.absolute_tolerance(0, expected64, expected64, dtype)
    error = abs(actual - expected64)
    assert np.all(error <= tolerance), (name, error)


def check_passes(
    spec: OperationSpec,
    library: Library,
    case: Case,
    np_inputs: NumpyInputs,
    result: Any,
    gradients: Any,
    dtype: str,
    *,
    sample: int | None = None,
) -> None:
    """Check y and the statistics of a call against the definition; the gradients unless None."""
    named = result._asdict()
    results = {name: None if each is None else library.numpy(each) for name, each in named.items()}
    check_results(spec, np_inputs, case.options, results, dtype)
    if gradients is not None:
        check_gradients(spec, library, case, np_inputs, gradients, dtype, sample=sample)


def spread(size: int, number: int) -> np.ndarray:
    """Return so many indices, from the first to the last."""
    return np.unique(np.linspace(0, size - 1, number).astype(int))


def gradient_dtype(gradient: np.ndarray, dtype: str) -> str:
    """Return the dtype that a gradient is as exact as: wider than x's for wider parameters."""
    return dtype if gradient.dtype == DTYPES[dtype] else ACCUMULATION[dtype]


def check_gradients(
    spec: OperationSpec,
    library: Library,
    case: Case,
    np_inputs: NumpyInputs,
    actual: Any,
    dtype: str,
    *,
    tolerance_factor: float = 1.0,
    sample: int | None = None,
) -> None:
    """Check the gradients of all inputs that are not None against those of the definition.

    `actual` holds all of them, or none. `sample` is the number of elements to check of each input.
    """
    dy = gradient_of_y(spec, case, dtype)
    # mpmath computes all of y for each element.
    number = 7 if dtype == "float64" and sample is None else sample
    gradients = calls.by_input(spec, actual)
    if "scaled rows" in spec.features and case.has_plain_rows:
        view = RowView(case.shapes["x"], case.options.get("axis"))
        columns = np.arange(view.n) if number is None else spread(view.n, number)
        check_row_gradients(
            spec,
            view.rows(dy),
            view.flat(np_inputs),
            case.options,
            view.results(library, {"d" + name: each for name, each in gradients.items()}),
            dtype,
            columns,
            tolerance_factor=tolerance_factor,
        )
        return

    def exact_of(name: str) -> reference.Gradient:
        present, flat_indices = np_inputs, None
        if np_inputs[name] is None:
            present = {**np_inputs, name: np.ones(case.shapes[name])}
        if number is not None:
            flat_indices = spread(present[name].size, number)
        return reference.gradient(
            lambda inputs: spec.define(inputs, case.options)[spec.y],
            dy,
            present,
            name,
            flat_indices=flat_indices,
            scaled_everywhere=sample is None,
        )

    for name, gradient in gradients.items():
        if np_inputs[name] is None:
            continue
        exact = exact_of(name)
        values = library.numpy(gradient)
        assert values.shape == np_inputs[name].shape
        condition = np.asarray(spec.condition(np_inputs) if spec.condition else 1.0)
        if name == spec.x:
            ulps = tolerances.DX
            group_max = spec.gradient_group_max or spec.group_max
            scale = condition * group_max(exact.scale, case.options)
            if "scaled rows" in spec.features:
                largest = reference.largest_terms(
                    lambda inputs: spec.define(inputs, case.options), dy, np_inputs, case.options
                )
                scale = np.maximum(scale, largest)
        else:
            ulps = tolerances.PARAMETER_GRADIENT
            scale = np.maximum(exact.scale, tolerances.MIN_X_HAT * np.max(exact.scale))
            other = spec.cancelling_gradients.get(name)
            if other is not None:
                scale = np.maximum(scale, exact_of(other).scale)
            scale = np.max(condition) * scale
        tolerances.assert_close(
            "d" + name,
            values.reshape(-1)[exact.flat_indices],
            exact.values,
            tolerance_factor * ulps,
            scale.reshape(-1)[exact.flat_indices],
            gradient_dtype(values, dtype),
        )


def check(
    spec: OperationSpec,
    library: Library,
    case: Case,
    values: str,
    dtype: str,
    *,
    without: str = "",
    gradients: bool = True,
    sample: int | None = None,
) -> None:
    """Run both passes and check the results, and unless they are left out, the gradients."""
    np_inputs = make_inputs(spec, case, values, dtype, without)
    dy = library.array(calls.nan_outside(gradient_of_y(spec, case, dtype), case.options))
    x = calls.nan_outside(np_inputs[spec.x], case.options)
    lib_inputs = calls.arrays(library, {**np_inputs, spec.x: x})
    result, actual = calls.forward_backward(spec, library, dy, lib_inputs, **case.options)
    checked = actual if gradients else None
    check_passes(spec, library, case, np_inputs, result, checked, dtype, sample=sample)


def columns_for(x: np.ndarray, sample: int) -> np.ndarray:
    """Return columns of x to check dx in: all, or some, and those of the largest elements.

    A complex step computes the whole rows for each column.
    """
    n = x.shape[-1]
    if n <= sample:
        return np.arange(n)
    some = np.sort(generator("columns", n).choice(n, size=sample, replace=False))
    return np.union1d(some, [0, n - 1, *np.argmax(abs(x[:5]), axis=-1)])


def check_row_gradients(
    spec: OperationSpec,
    dy: np.ndarray,
    np_inputs: NumpyInputs,
    options: dict[str, Any],
    gradients: dict[str, Any],
    dtype: str,
    columns: np.ndarray,
    *,
    tolerance_factor: float = 1.0,
    may_overflow: bool = False,
) -> None:
    """Check the gradients of rows, NumPy arrays by name, in some columns of dx.

    Gradients of absent parameters may be None. If gradients `may_overflow`, those that are beyond
    the dtype have to be at its limit or infinite.
    """
    options = {name: value for name, value in options.items() if name != "axis"}
    exact = reference.row_gradients(
        lambda inputs: spec.define(inputs, options), dy, np_inputs, columns
    )
    for name, (expected, scale) in exact.items():
        actual: Any = gradients.get("d" + name)
        if actual is None and (np_inputs[name] is None or "d" + name not in gradients):
            continue
        ulps = tolerance_factor * tolerances.PARAMETER_GRADIENT
        if name == spec.x:
            actual, ulps = actual[:, columns], tolerance_factor * tolerances.DX
        if may_overflow:
            most = float(ml_dtypes.finfo(actual.dtype).max)
            held = ~(abs(np.asarray(expected, np.float64)) > 0.99 * most)
            assert (abs(actual[~held].astype(np.float64)) > 0.98 * most).all(), name
            scale = np.broadcast_to(scale, held.shape)[held]
            actual, expected = actual[held], expected[held]
        tolerances.assert_close(
            "d" + name, actual, expected, ulps, scale, gradient_dtype(actual, dtype)
        )


def check_rows(
    spec: OperationSpec,
    library: Library,
    x: np.ndarray,
    dy: np.ndarray | None = None,
    *,
    view: RowView | None = None,
    present: str = "all",
    sample: int = 64,
    lay_out: Layout | None = None,
    only_gradients: bool = False,
    **options: Any,
) -> None:
    """Run forward on rows (M, N), and backward if there is a dy, and check all that they return.

    With `only_gradients`, the results of forward are not checked.

    `view` tells of what array they are the rows, `present` which parameters there are, `sample` in
    how many columns dx is checked, and `lay_out` makes the array.
    """
    view, dtype = view or RowView(x.shape), x.dtype.name
    context = {"dtype": dtype, "shape": view.shape, "parameters": present, **view.options}
    with told(**context, **options):
        np_inputs = row_inputs(spec, x, dtype, present)
        lib_inputs = view.arrays(library, np_inputs, lay_out)
        options_of_call = {**view.options, **options}
        result = calls.forward(spec, library, lib_inputs, **options_of_call)
        results = view.results(library, result._asdict())
        if not only_gradients:
            check_results(spec, np_inputs, options, results, dtype)
        if dy is not None:
            lib_dy = library.array(view.array(dy))
            actual = calls.backward(spec, library, lib_dy, lib_inputs, result, **options_of_call)
            gradients = view.results(library, actual._asdict())
            assert np.isfinite(gradients["dx"].astype(np.float64)).all()
            columns = columns_for(x, sample)
            check_row_gradients(spec, dy, np_inputs, options, gradients, dtype, columns)
