"""Any axes in any order, any strides, and inputs that stay as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import operation_calls as calls
from . import tolerances
from .checks import check_passes, check_rows, expected_y, told
from .inputs import generator
from .libraries import DTYPES, Layout, Library
from .operation_spec import OperationSpec, gradient_of_y, make_inputs
from .row_view import RowView

SHAPE = (3, 4, 2, 5)
AXES = (0, -1, 3, -4, (2, 3), (3, 2), (0, 1), (1, 3), (-3, 0), (0, 2), (1, 2), (0, 1, 2, 3))


def check_array(
    operation: OperationSpec,
    library: Library,
    values: np.ndarray,
    axis: Any,
    lay_out: Layout | None = None,
) -> None:
    """Check both passes on an array, which `lay_out` makes of its values."""
    view = RowView(values.shape, axis)
    dy = generator("dy", axis).standard_normal(values.shape).astype(values.dtype)
    check_rows(
        operation,
        library,
        view.rows(values),
        view.rows(dy),
        view=view,
        sample=view.n,
        lay_out=lay_out,
    )


@pytest.mark.having("rows")
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2, (0, 1), (1, 2)], ids=str)
def test_sums_over_long_axes(
    operation: OperationSpec, library: Library, axis: Any, first: int
) -> None:
    """However the axes lie in memory, and the array: thousands of terms lose no digits.

    Deviations are of one sign first, and then of the other, so that partial sums are large.
    """
    long = np.atleast_1d(axis)
    shape = tuple(20000 if a == long[0] else first + a for a in range(3))
    noise = generator("long", axis).standard_normal(shape)
    halves = np.where(np.arange(20000) < 10000, -1.0, 1.0)
    edge = halves.reshape([20000 if a == long[0] else 1 for a in range(3)])
    x = (100 + edge + noise / 10).astype(np.float32)
    view = RowView(shape, axis)
    inputs = {"x": view.rows(x), **dict.fromkeys(operation.parameters)}
    expected, scale = expected_y(operation, inputs, {})
    for name, lay_out in {"in order": library.array, **library.layouts()}.items():
        y = view.rows(library.numpy(operation.function(lay_out(x), axis=axis)))
        with told(layout=name):
            tolerances.assert_close("y", y, expected["y"], tolerances.Y, scale, "float32")


@pytest.mark.having("scaled rows")
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_axes(operation: OperationSpec, library: Library, axis: Any) -> None:
    """Gamma has the shape of the normalised axes in ascending order, however they are named."""
    x = generator("axes").standard_normal(SHAPE).astype(np.float32)
    check_array(operation, library, x, axis)


@pytest.mark.having("scaled rows")
def test_one_dimension(operation: OperationSpec, library: Library, dtype: str) -> None:
    x = generator("vector").standard_normal(12).astype(DTYPES[dtype])
    check_array(operation, library, x, -1)


@pytest.mark.having("scaled rows")
def test_a_square_over_its_first_axis(operation: OperationSpec, library: Library) -> None:
    """Rows and columns have the same shape here, and are not the same."""
    x = generator("square").standard_normal((6, 6)).astype(np.float32)
    check_array(operation, library, x, 0)


@pytest.mark.having("scaled rows")
@pytest.mark.parametrize("axis", [-1, 0, (0, 2)], ids=str)
def test_layouts_and_axes(
    operation: OperationSpec, library: Library, dtype: str, layout: str, axis: Any
) -> None:
    x = generator("layout").standard_normal((4, 6, 10)).astype(DTYPES[dtype])
    check_array(operation, library, x, axis, library.layouts()[layout])


def test_layouts(operation: OperationSpec, library: Library, layout: str) -> None:
    """X and dy of any layout."""
    case, lay_out = operation.main_case, library.layouts()[layout]
    for dtype in ("float32", library.dtypes[-1]):
        np_inputs = make_inputs(operation, case, "normal", dtype)
        lib_inputs = calls.arrays(library, np_inputs)
        lib_inputs[operation.x] = lay_out(np_inputs[operation.x])
        dy = lay_out(gradient_of_y(operation, case, dtype))
        result, gradients = calls.forward_backward(
            operation, library, dy, lib_inputs, **case.options
        )
        check_passes(operation, library, case, np_inputs, result, gradients, dtype)


@pytest.mark.needs("byte order")
def test_results_are_in_native_byte_order(
    operation: OperationSpec, library: Library, dtype: str
) -> None:
    """Whatever byte order any argument has, and where there is nothing to normalise."""
    swapped = library.layouts()["byte-swapped"]
    for each in operation.cases.values():
        for case in (each, *operation.empty_along_each_axis(each)):
            np_inputs = make_inputs(operation, case, "normal", dtype)
            lib_inputs = {name: swapped(values) for name, values in np_inputs.items()}
            dy = swapped(gradient_of_y(operation, case, dtype))
            result = calls.forward(operation, library, lib_inputs, **case.options)
            saved = type(result)(*map(swapped, result))
            gradients = calls.backward(operation, library, dy, lib_inputs, saved, **case.options)
            y = calls.y(operation, library, lib_inputs, **case.options)
            for array in (y, *result, *gradients):
                assert array.dtype.isnative, case


@pytest.mark.having("scaled rows")
def test_broadcast_input(operation: OperationSpec, library: Library, dtype: str) -> None:
    """A row that stands for many, without their memory."""
    row = generator("row").standard_normal(10).astype(DTYPES[dtype])
    x = np.broadcast_to(row, (7, 10))
    for axis in (-1, (0, 1)):
        check_array(operation, library, x, axis, lambda a: library.broadcast(row, 7))


@pytest.mark.having("scaled rows")
def test_strided_columns_are_as_right_as_rows(operation: OperationSpec, library: Library) -> None:
    """A long sum over an axis that is not the last in memory is no less right for that."""
    n = 1 << 15
    x = generator("long").lognormal(0, 1, (n, 3)).astype(np.float32)
    check_rows(operation, library, x.T.copy())
    check_rows(operation, library, x.T.copy(), present="none", view=RowView((n, 3), 0))


def test_inputs_are_never_written(operation: OperationSpec, library: Library, dtype: str) -> None:
    """Nor are the results of one call by the next, which has the same bits."""
    case = operation.main_case
    np_inputs = make_inputs(operation, case, "normal", dtype)
    dy, lib_inputs = calls.right_call(operation, library, dtype)
    result, _ = calls.forward_backward(operation, library, dy, lib_inputs, **case.options)
    kept = [library.numpy(each).copy() for each in result if each is not None]
    calls.backward(operation, library, dy, lib_inputs, result, **case.options)
    again = calls.forward(operation, library, lib_inputs, **case.options)
    assert library.numpy(dy).tobytes() == gradient_of_y(operation, case, dtype).tobytes()
    for name, values in np_inputs.items():
        assert library.numpy(lib_inputs[name]).tobytes() == values.tobytes()
    for other in (result, again):
        arrays = (library.numpy(each) for each in other if each is not None)
        for before, after in zip(kept, arrays, strict=True):
            assert calls.to_bytes(after) == calls.to_bytes(before)
