"""What results are made of: names, libraries, dtypes, `need`, `out`, laziness and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from . import calls, reference, tolerances
from .inputs import generator, rows
from .libraries import DTYPES, Library
from .operations import Operation


def test_results_are_of_the_library_and_dtype_of_x(
    operation: Operation, library: Library, dtype: str
) -> None:
    x = library.array(rows("normal", dtype, 4, 16))
    _, args = calls.make_params(operation, library, dtype, 16)
    result, gradients = calls.forward_backward(operation, library, x, x, args)
    statistic = tolerances.ACCUMULATION[dtype]
    assert result._fields == ("y", *operation.statistics)
    assert gradients._fields == operation.gradients
    for each in (*result, *gradients):
        assert library.is_array(each)
    assert result.y.dtype == gradients.dx.dtype == gradients.dgamma.dtype == x.dtype
    for each in result[1:]:
        assert library.numpy(each).dtype == DTYPES[statistic]
    with library.forbid_compute():
        y = operation.function(x, *args)
    assert calls.to_bytes(library.numpy(y)) == calls.to_bytes(library.numpy(result.y))


def test_gradients_of_absent_parameters(operation: Operation, library: Library) -> None:
    """Dgamma is None without gamma; dbeta depends on neither, and is always given."""
    x = library.array(rows("normal", "float32", 4, 16))
    result, gradients = calls.forward_backward(
        operation, library, x, x, [None, None][: len(operation.parameters)]
    )
    assert gradients.dgamma is None
    if "beta" in operation.parameters:
        assert gradients.dbeta.dtype == x.dtype
        assert tuple(gradients.dbeta.shape) == (16,)
    assert result.y.dtype == x.dtype


def test_need(operation: Operation, library: Library) -> None:
    """Each gradient alone has the bits that it has among all, and the others are None."""
    x = library.array(rows("normal", "float32", 9, 33))
    dy = library.array(rows("lognormal", "float32", 9, 33))
    _, args = calls.make_params(operation, library, "float32", 33)
    _, everything = calls.forward_backward(operation, library, dy, x, args)
    _, nothing = calls.forward_backward(operation, library, dy, x, args, need=())
    assert set(nothing) == {None}
    for name in operation.gradients:
        _, alone = calls.forward_backward(operation, library, dy, x, args, need=(name,))
        for other in operation.gradients:
            gradient = getattr(alone, other)
            if other != name:
                assert gradient is None
            else:
                expected = library.numpy(getattr(everything, name))
                np.testing.assert_allclose(library.numpy(gradient), expected, rtol=1e-6)


@pytest.mark.needs("writing")
def test_out(operation: Operation, library: Library, dtype: str) -> None:
    values = rows("normal", dtype, 6, 20)
    x = library.array(values)
    _, args = calls.make_params(operation, library, dtype, 20)
    expected = calls.to_bytes(library.numpy(operation.function(x, *args)))
    out = library.array(np.zeros_like(values))
    assert operation.function(x, *args, out=out) is out
    assert calls.to_bytes(library.numpy(out)) == expected
    result = operation.forward(x, *args, out=out)
    assert result.y is out


@pytest.mark.needs("writing")
def test_out_may_be_x(operation: Operation, library: Library, dtype: str) -> None:
    x = library.array(rows("normal", dtype, 6, 20))
    _, args = calls.make_params(operation, library, dtype, 20)
    expected = calls.to_bytes(library.numpy(operation.function(x, *args)))
    assert operation.function(x, *args, out=x) is x
    assert calls.to_bytes(library.numpy(x)) == expected


@pytest.mark.needs("writing")
@pytest.mark.parametrize("axis", [0, 1, (0, 2)], ids=str)
def test_out_of_any_layout(operation: Operation, library: Library, axis: int) -> None:
    values = generator("out").standard_normal((3, 4, 5)).astype(np.float32)
    x = library.array(values)
    expected = calls.to_bytes(library.numpy(operation.function(x, axis=axis)))
    padded = library.array(np.full((3, 4, 10), 7.0, np.float32))
    out = padded[..., ::2]
    assert operation.function(x, axis=axis, out=out) is out
    assert calls.to_bytes(library.numpy(out)) == expected
    np.testing.assert_array_equal(library.numpy(padded)[..., 1::2], 7.0)


@pytest.mark.needs("a second device")
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("sliced", [False, True])
def test_everything_runs_on_the_device_of_x(
    operation: Operation, library: Library, sliced: bool, axis: int
) -> None:
    """Whichever device is the default: the same bits as on that one."""
    np_inputs = {
        name: rows(kind, "float32", 8, 16) for name, kind in (("x", "normal"), ("dy", "ramp"))
    }
    parameters, _ = calls.make_params(operation, library, "float32", 8)

    def results(put: Callable[[np.ndarray], Any]) -> tuple[Any, list[Any]]:
        x, dy = (put(a)[:, :8] if sliced else put(a[:, :8]) for a in np_inputs.values())
        args = [None if a is None else put(a) for a in parameters][: len(operation.parameters)]
        results = [*operation.forward(x, *args, axis=axis)]
        results += operation.backward(dy, x, *results[1:], args[0], axis=axis)
        if library.writable:
            results.append(operation.function(x, *args, axis=axis, out=put(np_inputs["x"])[:, ::2]))
        return x, results

    _, expected = results(library.array)
    x, actual = results(library.on_second_device)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.device == x.device != theirs.device
        assert ours.shape == theirs.shape
        if library.second_device_has_values:
            assert calls.to_bytes(library.numpy(ours)) == calls.to_bytes(library.numpy(theirs))


@pytest.mark.needs("transforms")
def test_traced(operation: Operation, library: Library, dtype: str, transform: str) -> None:
    """Inside a compiled function, results are as right as outside."""
    trace = library.transforms()[transform]
    x = rows("mean 1e4 sigma", dtype, 5, 64)
    dy = rows("normal", dtype, 5, 64)
    np_params, args = calls.make_params(operation, library, dtype, 64)

    @trace
    def step(dy, x, *args):  # type: ignore[no-untyped-def]
        result = operation.forward(x, *args)
        return result, operation.backward(dy, x, *result[1:], args[0])

    result, gradients = step(library.array(dy), library.array(x), *args)
    epsilon = operation.epsilon
    expected = reference.forward(operation.reference, x, *np_params, epsilon)
    y = library.numpy(result.y)
    tolerances.assert_close("y", y, expected.y, tolerances.Y, expected.scale, dtype)
    exact = reference.gradients(operation.reference, dy, x, np_params[0], epsilon, np.arange(4))
    dx = library.numpy(gradients.dx)[:, :4]
    tolerances.assert_close("dx", dx, exact.dx, tolerances.DX, exact.dx_scale, dtype)


@pytest.mark.needs("gradients")
@pytest.mark.parametrize("kind", ["normal", "mean 1e4 sigma", "two values", "lognormal"])
def test_differentiated_by_the_library_itself(
    operation: Operation, library: Library, dtype: str, kind: str
) -> None:
    """The plain function goes through the library's own differentiation, as right as ours."""
    x, dy = rows(kind, dtype, 4, 48), rows("normal", dtype, 4, 48)
    np_params, args = calls.make_params(operation, library, dtype, 48)
    inputs = (library.array(x), *args)
    dx, dgamma, *dbeta = library.vjp(operation.function, inputs, library.array(dy))
    exact = reference.gradients(
        operation.reference,
        dy,
        x,
        np_params[0],
        operation.epsilon,
        np.arange(48 if dtype != "float64" else 4),
    )
    columns = exact.dx.shape[1]
    # A framework adds up more terms than the closed form has.
    ulps = 2 * tolerances.DX
    tolerances.assert_close(
        "dx", library.numpy(dx)[:, :columns], exact.dx, ulps, exact.dx_scale, dtype
    )
    ulps = 2 * tolerances.PARAMETER_GRADIENT
    tolerances.assert_close(
        "dgamma", library.numpy(dgamma), exact.dgamma, ulps, exact.dgamma_scale, dtype
    )
    for each in dbeta:
        tolerances.assert_close(
            "dbeta", library.numpy(each), exact.dbeta, ulps, exact.dbeta_scale, dtype
        )


@pytest.mark.needs("gradients")
def test_second_derivatives(operation: Operation, library: Library) -> None:
    """The derivative of dx along v, against the difference of dx on either side, in float64."""
    values = rows("normal", "float64", 3, 12)
    dy, v = (library.array(rows(kind, "float64", 3, 12)) for kind in ("lognormal", "ramp"))
    _, args = calls.make_params(operation, library, "float64", 12)

    def dx(x: Any) -> Any:
        return library.vjp(operation.function, (x, *args), dy)[0]

    (second,) = library.vjp(dx, (library.array(values),), v)
    h = 1e-5
    direction = library.numpy(v)

    def numeric(sign: int) -> np.ndarray:
        x = library.array(values + sign * h * direction)
        _, gradients = calls.forward_backward(operation, library, dy, x, args)
        return library.numpy(gradients.dx)

    expected = (numeric(1) - numeric(-1)) / (2 * h)
    # The Hessian is symmetric, so its product with v is the derivative along v.
    np.testing.assert_allclose(library.numpy(second), expected, rtol=1e-6, atol=1e-7)
