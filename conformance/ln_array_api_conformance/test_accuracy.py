"""Every operation against its definition: values, shapes, options, absent inputs, derivatives."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from . import operation_calls as calls
from .checks import check, check_gradients, check_passes
from .inputs import rows
from .libraries import DTYPES, Library
from .operation_spec import Case, OperationSpec, gradient_of_y, make_inputs
from .operations import OPERATIONS
from .row_view import row_inputs
from .tolerances import ACCUMULATION

#: Magnitudes whose gradients cannot be judged in float64, in which their terms are added up.
BEYOND_FLOAT64 = ("1e250",)


def test_values(
    operation: OperationSpec, library: Library, dtype: str, extreme_values: str
) -> None:
    """Large means, outliers, large and small magnitudes, forward and backward."""
    if extreme_values in operation.overflowing_values:
        pytest.skip("the result, or a gradient, is no finite number")
    gradients = extreme_values not in BEYOND_FLOAT64
    check(operation, library, operation.main_case, extreme_values, dtype, gradients=gradients)


@pytest.mark.having("a mean")
@pytest.mark.parametrize("power", [0.9, -0.8])
def test_constant_values(
    operation: OperationSpec, library: Library, dtype: str, power: float
) -> None:
    """X of a power of the largest number: gradients are those of zeros, whatever epsilon is."""
    np_inputs = make_inputs(operation, operation.main_case, "normal", dtype)
    value = float(ml_dtypes.finfo(DTYPES[dtype]).max) ** power
    x = np_inputs[operation.x]
    constant = {**np_inputs, operation.x: np.full_like(x, value)}
    zeros = {**np_inputs, operation.x: np.zeros_like(x)}
    dy = library.array(gradient_of_y(operation, operation.main_case, dtype))
    for epsilon in (1e-5, 1e8):
        options = {**operation.main_case.options, "epsilon": epsilon}
        lib_inputs = calls.arrays(library, constant)
        _, gradients = calls.forward_backward(operation, library, dy, lib_inputs, **options)
        case = operation.main_case._replace(options=options)
        check_gradients(operation, library, case, zeros, gradients, dtype)


def test_cases(operation: OperationSpec, library: Library, dtype: str, case: str) -> None:
    """All places of the axes, and all options."""
    check(operation, library, operation.cases[case], "mean 100 sigma", dtype)
    if "alpha" in operation.cases[case].options:  # whose power may lose the sign
        check(operation, library, operation.cases[case], "normal", dtype, gradients=False)


@pytest.mark.having("scaled rows", "masks")
def test_masked_values(
    operation: OperationSpec, library: Library, dtype: str, extreme_values: str
) -> None:
    """As `test_values`, for the elements that a mask has, with NaN elsewhere."""
    gradients = extreme_values not in BEYOND_FLOAT64
    check(operation, library, operation.cases["a mask"], extreme_values, dtype, gradients=gradients)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 70)])
def test_a_small_epsilon_counts_beside_given_statistics(
    library: Library, dtype: str, shape: tuple[int, ...]
) -> None:
    """Beside a variance as small, or of 0."""
    spec = OPERATIONS["batch_norm"]
    case = Case({"x": shape, **dict.fromkeys(spec.parameters, shape[1:2])}, {"epsilon": 1e-10})
    np_inputs = make_inputs(spec, case, "normal", dtype)
    np_inputs["var"] = np.asarray([0.0, 1e-10, 1e-12]).astype(DTYPES[dtype])
    scale = np.asarray(2.0**-14).astype(DTYPES[dtype])  # so that y is no larger than 16 bits hold
    np_inputs["x"], np_inputs["mean"] = np_inputs["x"] * scale, np_inputs["mean"] * scale
    result = calls.forward(spec, library, calls.arrays(library, np_inputs), **case.options)
    check_passes(spec, library, case, np_inputs, result, None, dtype)


def test_without(operation: OperationSpec, library: Library, dtype: str) -> None:
    """Omit each optional input in turn."""
    for name in operation.optional:
        check(operation, library, operation.main_case, "normal", dtype, without=name)


@pytest.mark.having("parameters")
def test_wider_parameters(operation: OperationSpec, library: Library, dtype: str) -> None:
    """Parameters in a wider dtype than x: y has the dtype of x, gradients that of their input."""
    wide = ACCUMULATION[dtype] if ACCUMULATION[dtype] != dtype else "float64"
    case, options = operation.main_case, operation.main_case.options
    np_inputs = make_inputs(operation, case, "normal", wide)
    np_inputs[operation.x] = np_inputs[operation.x].astype(DTYPES[dtype])
    dy = library.array(gradient_of_y(operation, case, dtype))
    lib_inputs = calls.arrays(library, np_inputs)
    result, gradients = calls.forward_backward(operation, library, dy, lib_inputs, **options)
    assert library.numpy(result[0]).dtype == DTYPES[dtype]
    # The library computes with the parameters in the accumulation dtype.
    accumulation = DTYPES[ACCUMULATION[dtype]]
    np_inputs |= {name: np_inputs[name].astype(accumulation) for name in operation.parameters}
    for name in set(operation.statistics) & set(np_inputs):
        values = library.numpy(getattr(result, name))
        assert values.dtype == DTYPES[wide]
        result = result._replace(**{name: library.array(values.astype(DTYPES[dtype]))})
    check_passes(operation, library, case, np_inputs, result, gradients, dtype)
    for name, gradient in calls.by_input(operation, gradients).items():
        expected = dtype if name == operation.x else wide
        assert library.numpy(gradient).dtype == DTYPES[expected], name


@pytest.mark.needs("16 bits")
@pytest.mark.having("beta", "backward")
def test_dbeta_has_the_dtype_of_beta(operation: OperationSpec, library: Library) -> None:
    """Only shape and dtype of beta matter; dbeta is as exact as that dtype, which may be wider."""
    case = operation.main_case
    options = operation.options_of(operation.backward, case.options)
    for dtype in {"float16", "bfloat16"} & set(library.dtypes):
        np_inputs = make_inputs(operation, case, "normal", dtype)
        np_inputs["beta"] = np.zeros(case.shapes["beta"], np.float32)
        lib_inputs = calls.arrays(library, np_inputs)
        dy = library.array(gradient_of_y(operation, case, dtype))
        for without in ((), ("gamma",), ("gamma", "beta")):
            some = {**lib_inputs, **dict.fromkeys(without)}
            result = calls.forward(operation, library, some, **case.options)
            known = {**some, **result._asdict()}
            arrays = [known[name] for name in operation.saved if name != "beta"]
            call = (dy, *arrays, lib_inputs["beta"])
            gradients = operation.backward(*call, **options)
            assert library.numpy(gradients.dbeta).dtype == np.float32
            assert getattr(gradients.dgamma, "dtype", None) == getattr(some["gamma"], "dtype", None)
            check_gradients(
                operation, library, case, np_inputs | dict.fromkeys(without), gradients, dtype
            )
            alone = operation.backward(*call, **options, need=("dbeta",))
            dbeta = library.numpy(gradients.dbeta)
            assert library.numpy(alone.dbeta).tobytes() == dbeta.tobytes()


@pytest.mark.needs("transforms")
def test_traced(operation: OperationSpec, library: Library, dtype: str, transform: str) -> None:
    """Inside a compiled function, results are as right as outside."""
    case = operation.main_case
    np_inputs = make_inputs(operation, case, "mean 1e4 sigma", dtype)
    lib_inputs = calls.arrays(library, np_inputs)

    def run(dy, *arrays):  # type: ignore[no-untyped-def]
        named = dict(zip(lib_inputs, arrays, strict=True))
        return calls.forward_backward(operation, library, dy, named, **case.options)

    dy = library.array(gradient_of_y(operation, case, dtype))
    result, gradients = library.transforms()[transform](run)(dy, *lib_inputs.values())
    check_passes(operation, library, case, np_inputs, result, gradients, dtype)


def check_derivatives_of_the_library(
    operation: OperationSpec, library: Library, values: str, dtype: str
) -> None:
    case = operation.main_case
    np_inputs = make_inputs(operation, case, values, dtype)
    lib_inputs = calls.arrays(library, np_inputs)
    run, inputs = calls.differentiable(operation, library, lib_inputs, **case.options)
    dy = library.array(gradient_of_y(operation, case, dtype))
    gradients = library.vjp(run, inputs, dy)
    # A framework adds up more terms than the closed form has.
    check_gradients(operation, library, case, np_inputs, gradients, dtype, tolerance_factor=2)


@pytest.mark.needs("gradients")
def test_differentiated_by_the_library_itself(
    operation: OperationSpec, library: Library, dtype: str
) -> None:
    """The plain function goes through the library's own differentiation, as right as ours."""
    check_derivatives_of_the_library(operation, library, "normal", dtype)


@pytest.mark.needs("gradients")
@pytest.mark.having("scaled rows")
@pytest.mark.parametrize("kind", ["mean 1e4 sigma", "two values", "lognormal"])
def test_rows_differentiated_by_the_library_itself(
    operation: OperationSpec, library: Library, dtype: str, kind: str
) -> None:
    check_derivatives_of_the_library(operation, library, kind, dtype)


@pytest.mark.needs("gradients")
@pytest.mark.having("scaled rows")
def test_second_derivatives(operation: OperationSpec, library: Library) -> None:
    """The derivative of dx along v, against the difference of dx on either side, in float64."""
    values = rows("normal", "float64", 3, 12)
    dy, v = (library.array(rows(kind, "float64", 3, 12)) for kind in ("lognormal", "ramp"))
    lib_inputs = calls.arrays(library, row_inputs(operation, values, "float64"))
    _, *args = lib_inputs.values()

    def dx(x: Any) -> Any:
        return library.vjp(operation.function, (x, *args), dy)[0]

    (second,) = library.vjp(dx, (lib_inputs["x"],), v)
    h = 1e-5
    direction = library.numpy(v)

    def numeric(sign: int) -> np.ndarray:
        x = library.array(values + sign * h * direction)
        _, gradients = calls.forward_backward(operation, library, dy, {**lib_inputs, "x": x})
        return library.numpy(gradients.dx)

    expected = (numeric(1) - numeric(-1)) / (2 * h)
    # The Hessian is symmetric, so its product with v is the derivative along v.
    np.testing.assert_allclose(library.numpy(second), expected, rtol=1e-6, atol=1e-7)
