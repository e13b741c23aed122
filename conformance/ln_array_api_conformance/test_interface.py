"""What results are made of: names, libraries, dtypes, devices, `need` and `out`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from . import operation_calls as calls
from .inputs import generator, rows
from .libraries import DTYPES, Library
from .operation_spec import OperationSpec, gradient_of_y, make_inputs
from .row_view import row_inputs


def test_results(operation: OperationSpec, library: Library, dtype: str) -> None:
    """Names, libraries and dtypes; and the plain function gives what forward gives."""
    dy, lib_inputs = calls.right_call(operation, library, dtype)
    options = operation.main_case.options
    result, gradients = calls.forward_backward(operation, library, dy, lib_inputs, **options)
    assert result._fields == (operation.y, *operation.statistics)
    if operation.has_backward:
        assert gradients._fields == tuple("d" + name for name in operation.gradients)
    for each in (*result, *gradients):
        assert library.is_array(each)
    for each in (result[0], *gradients):
        assert library.numpy(each).dtype == DTYPES[dtype]
    for name, each in zip(operation.statistics, result[1:], strict=True):
        assert library.numpy(each).dtype == DTYPES[operation.dtype_of(name, dtype)]
    y = calls.y(operation, library, lib_inputs, **options)
    assert library.numpy(y).tobytes() == library.numpy(result[0]).tobytes()


@pytest.mark.having("backward")
def test_gradients_of_absent_inputs(operation: OperationSpec, library: Library) -> None:
    """There is no gradient of what is not there, except of beta, which is always given."""
    dy, lib_inputs = calls.right_call(operation, library)
    case = operation.main_case
    for absent in (*((name,) for name in operation.optional), operation.optional):
        some = {**lib_inputs, **dict.fromkeys(absent)}
        result, gradients = calls.forward_backward(operation, library, dy, some, **case.options)
        assert result[0].dtype == dy.dtype
        for name, gradient in calls.by_input(operation, gradients).items():
            if name == "beta":
                assert gradient.dtype == dy.dtype
                assert tuple(gradient.shape) == case.shapes["beta"]
            else:
                assert (gradient is None) == (name in absent)


@pytest.mark.having("backward")
def test_need(operation: OperationSpec, library: Library) -> None:
    """Each gradient alone is what it is among all, and the others are None."""
    (dy, lib_inputs), options = calls.right_call(operation, library), operation.main_case.options
    rtol, atol = (1e-6, 0) if operation.over_rows else (1e-5, 1e-6)
    result, everything = calls.forward_backward(operation, library, dy, lib_inputs, **options)

    gradients = partial(calls.backward, operation, library, dy, lib_inputs, result, **options)
    assert set(gradients(need=())) == {None}
    for name in everything._fields:
        alone = gradients(need=(name,))
        assert [each for each in alone._fields if getattr(alone, each) is not None] == [name]
        expected, actual = (library.numpy(getattr(each, name)) for each in (everything, alone))
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def check_out(
    operation: OperationSpec, library: Library, dtype: str, out_of: Callable[[Any], Any]
) -> None:
    """Check that the result is `out` itself, which is made of x, and has the same bits."""
    np_inputs = row_inputs(operation, rows("normal", dtype, 6, 20), dtype)
    for function in (operation.function, operation.forward):
        arrays = list(calls.arrays(library, np_inputs).values())
        expected = library.numpy(operation.function(*arrays)).tobytes()
        out = out_of(arrays[0])
        result = function(*arrays, out=out)
        assert (result[0] if isinstance(result, tuple) else result) is out
        assert library.numpy(out).tobytes() == expected


@pytest.mark.needs("writing")
@pytest.mark.having("out", "rows")
def test_out(operation: OperationSpec, library: Library, dtype: str) -> None:
    check_out(operation, library, dtype, lambda x: library.array(0 * library.numpy(x)))


@pytest.mark.needs("writing")
@pytest.mark.having("out", "rows")
def test_out_may_be_x(operation: OperationSpec, library: Library, dtype: str) -> None:
    check_out(operation, library, dtype, lambda x: x)


@pytest.mark.needs("writing")
@pytest.mark.having("out", "rows")
@pytest.mark.parametrize("axis", [0, 1, (0, 2)], ids=str)
def test_out_of_any_layout(operation: OperationSpec, library: Library, axis: int) -> None:
    values = generator("out").standard_normal((3, 4, 5)).astype(np.float32)
    x = library.array(values)
    expected = calls.to_bytes(library.numpy(operation.function(x, axis=axis)))
    padded = library.array(np.full((3, 4, 10), 7.0, np.float32))
    out = padded[..., ::2]
    assert operation.function(x, axis=axis, out=out) is out
    assert calls.to_bytes(library.numpy(out)) == expected
    np.testing.assert_array_equal(library.numpy(padded)[..., 1::2], 7.0)


def check_devices(library: Library, run: Callable[[Callable[[np.ndarray], Any]], Any]) -> None:
    """Check that results are on the device of x, which comes first, with the same bits there."""
    _, *expected = run(library.array)  # first, because arrays there may share memory with NumPy's
    x, *actual = run(library.on_second_device)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.device == x.device != theirs.device
        assert ours.shape == theirs.shape
        if library.second_device_has_values:
            assert calls.to_bytes(library.numpy(ours)) == calls.to_bytes(library.numpy(theirs))


@pytest.mark.needs("a second device")
def test_everything_runs_on_the_device_of_x(operation: OperationSpec, library: Library) -> None:
    """Whichever device is the default: the same bits as on that one."""
    case = operation.main_case
    np_inputs = make_inputs(operation, case, "normal", "float32")
    np_dy = gradient_of_y(operation, case, "float32")

    def run(put: Callable[[np.ndarray], Any]) -> list[Any]:
        lib_inputs = {name: put(a) for name, a in np_inputs.items()}
        y = calls.y(operation, library, lib_inputs, **case.options)
        result, gradients = calls.forward_backward(
            operation, library, put(np_dy), lib_inputs, **case.options
        )
        return [lib_inputs[operation.x], y, *result, *gradients]

    check_devices(library, run)


@pytest.mark.needs("a second device")
@pytest.mark.having("rows")
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("sliced", [False, True])
def test_rows_run_on_the_device_of_x(
    operation: OperationSpec, library: Library, sliced: bool, axis: int
) -> None:
    """In memory that is contiguous or not, with `out` where the operation has it."""
    np_x, np_dy = (rows(kind, "float32", 8, 16) for kind in ("normal", "ramp"))
    _, *parameters = row_inputs(operation, np_x[:, :8], "float32").values()

    def run(put: Callable[[np.ndarray], Any]) -> list[Any]:
        x, dy = (put(a)[:, :8] if sliced else put(a[:, :8]) for a in (np_x, np_dy))
        lib_inputs = dict(zip(operation.inputs, (x, *map(put, parameters)), strict=True))
        result, gradients = calls.forward_backward(operation, library, dy, lib_inputs, axis=axis)
        results = [x, *result, *gradients]
        if library.writable and operation.has_out:
            out = put(np_x)[:, ::2]
            results.append(operation.function(*lib_inputs.values(), axis=axis, out=out))
        return results

    check_devices(library, run)
