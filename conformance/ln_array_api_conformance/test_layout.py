"""Any axes in any order, any strides, and inputs that stay as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import calls, reference, tolerances
from .inputs import generator, parameters
from .libraries import DTYPES, Library
from .operations import Operation
from .test_accuracy import told

SHAPE = (3, 4, 2, 5)
AXES = (0, -1, 3, -4, (2, 3), (3, 2), (0, 1), (1, 3), (-3, 0), (0, 2), (1, 2), (0, 1, 2, 3))


def _rows(x: np.ndarray, axis: Any) -> np.ndarray:
    """X as rows over the normalised axes, made by NumPy's own means."""
    axes = np.atleast_1d(axis) % x.ndim
    axes.sort()
    moved = np.moveaxis(x, axes, range(-len(axes), 0))
    return moved.reshape(-1, int(np.prod([x.shape[a] for a in axes])))


def _check(
    operation: Operation, library: Library, dtype: str, values: np.ndarray, x: Any, axis: Any
) -> None:
    axes = tuple(sorted(int(a) % values.ndim for a in np.atleast_1d(axis)))
    shape = tuple(values.shape[a] for a in axes)
    n = int(np.prod(shape))
    flat = parameters(dtype, n)[: len(operation.parameters)]
    args = [library.array(each.reshape(shape)) for each in flat]
    beta = flat[1] if len(flat) > 1 else None
    dy_values = generator("dy", axis).standard_normal(values.shape).astype(DTYPES[dtype])
    dy = library.array(dy_values)
    result, gradients = calls.forward_backward(operation, library, dy, x, args, axis=axis)

    statistic = tuple(1 if a in axes else length for a, length in enumerate(values.shape))
    assert tuple(result.rstd.shape) == statistic
    assert tuple(result.y.shape) == tuple(gradients.dx.shape) == values.shape
    rows = _rows(values, axis)
    expected = reference.forward(operation.reference, rows, flat[0], beta, operation.epsilon)
    y = _rows(library.numpy(result.y), axis)
    tolerances.assert_close("y", y, expected.y, tolerances.Y, expected.scale, dtype)
    exact = reference.gradients(
        operation.reference,
        _rows(dy_values, axis),
        rows,
        flat[0],
        operation.epsilon,
        np.arange(n),
    )
    dx = _rows(library.numpy(gradients.dx), axis)
    tolerances.assert_close("dx", dx, exact.dx, tolerances.DX, exact.dx_scale, dtype)
    for name, sums, magnitude in (
        ("dgamma", exact.dgamma, exact.dgamma_scale),
        ("dbeta", exact.dbeta, exact.dbeta_scale),
    ):
        if name in operation.gradients:
            gradient = library.numpy(getattr(gradients, name))
            assert gradient.shape == shape
            tolerances.assert_close(
                name,
                gradient.reshape(-1),
                sums,
                tolerances.PARAMETER_GRADIENT,
                magnitude,
                dtype,
            )


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2, (0, 1), (1, 2)], ids=str)
def test_sums_over_long_axes(operation: Operation, library: Library, axis: Any, first: int) -> None:
    """However the axes lie in memory, and the array: thousands of terms lose no digits.

    Deviations are of one sign first, and then of the other, so that partial sums are large.
    """
    long = np.atleast_1d(axis)
    shape = tuple(20000 if a == long[0] else first + a for a in range(3))
    noise = generator("long", axis).standard_normal(shape)
    halves = np.where(np.arange(20000) < 10000, -1.0, 1.0)
    edge = halves.reshape([20000 if a == long[0] else 1 for a in range(3)])
    x = (100 + edge + noise / 10).astype(np.float32)
    expected = reference.forward(operation.reference, _rows(x, axis), None, None, operation.epsilon)
    for name, lie in {"in order": library.array, **library.layouts()}.items():
        y = operation.function(lie(x), axis=axis)
        with told(layout=name):
            tolerances.assert_close(
                "y",
                _rows(library.numpy(y), axis),
                expected.y,
                tolerances.Y,
                expected.scale,
                "float32",
            )


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_axes(operation: Operation, library: Library, axis: Any) -> None:
    """Gamma has the shape of the normalised axes in ascending order, however they are named."""
    x = generator("axes").standard_normal(SHAPE).astype(np.float32)
    _check(operation, library, "float32", x, library.array(x), axis)


def test_one_dimension(operation: Operation, library: Library, dtype: str) -> None:
    x = generator("vector").standard_normal(12).astype(DTYPES[dtype])
    _check(operation, library, dtype, x, library.array(x), -1)


def test_a_square_over_its_first_axis(operation: Operation, library: Library) -> None:
    """Rows and columns have the same shape here, and are not the same."""
    x = generator("square").standard_normal((6, 6)).astype(np.float32)
    _check(operation, library, "float32", x, library.array(x), 0)


@pytest.mark.parametrize("axis", [-1, 0, (0, 2)], ids=str)
def test_layouts(
    operation: Operation, library: Library, dtype: str, layout: str, axis: Any
) -> None:
    x = generator("layout").standard_normal((4, 6, 10)).astype(DTYPES[dtype])
    _check(operation, library, dtype, x, library.layouts()[layout](x), axis)


@pytest.mark.needs("byte order")
@pytest.mark.parametrize("shape", [(4, 6), (0, 6), (4, 0)], ids=str)
def test_results_are_in_native_byte_order(
    operation: Operation, library: Library, dtype: str, shape: tuple[int, int]
) -> None:
    """Whatever byte order any argument has."""
    swapped = library.layouts()["byte-swapped"]
    x = swapped(generator("swapped").standard_normal(shape).astype(DTYPES[dtype]))
    for axis in (-1, 0):
        np_params = parameters(dtype, shape[axis])[: len(operation.parameters)]
        args = [swapped(each) for each in np_params]
        y = operation.function(x, *args, axis=axis)
        result = operation.forward(x, *args, axis=axis)
        gradients = operation.backward(x, x, *map(swapped, result[1:]), args[0], axis=axis)
        for each in (y, *result, *gradients):
            assert each.dtype.isnative


def test_broadcast_input(operation: Operation, library: Library, dtype: str) -> None:
    """A row that stands for many, without their memory."""
    row = generator("row").standard_normal(10).astype(DTYPES[dtype])
    x = np.broadcast_to(row, (7, 10))
    _check(operation, library, dtype, x, library.broadcast(row, 7), -1)
    _check(operation, library, dtype, x, library.broadcast(row, 7), (0, 1))


def test_strided_columns_are_as_right_as_rows(operation: Operation, library: Library) -> None:
    """A long sum over an axis that is not the last in memory is no less right for that."""
    from .test_accuracy import check_forward

    n = 1 << 15
    x = generator("long").lognormal(0, 1, (n, 3)).astype(np.float32)
    epsilon = operation.epsilon
    check_forward(operation, library, "float32", x.T.copy(), epsilon=epsilon)
    with library.forbid_compute():
        y = operation.function(library.array(x), axis=0)
    expected = reference.forward(operation.reference, x.T, None, None, epsilon)
    tolerances.assert_close(
        "y", library.numpy(y).T, expected.y, tolerances.Y, expected.scale, "float32"
    )


def test_inputs_are_never_written(operation: Operation, library: Library, dtype: str) -> None:
    x = generator("inputs").standard_normal((4, 32)).astype(DTYPES[dtype])
    dy = generator("outputs").standard_normal((4, 32)).astype(DTYPES[dtype])
    np_params, args = calls.make_params(operation, library, dtype, 32)
    here, there = library.array(x), library.array(dy)
    result, _ = calls.forward_backward(operation, library, there, here, args)
    calls.forward_backward(operation, library, there, here, args)
    assert calls.to_bytes(library.numpy(here)) == calls.to_bytes(x)
    assert calls.to_bytes(library.numpy(there)) == calls.to_bytes(dy)
    for array, before in zip(args, np_params, strict=False):
        assert before is not None
        assert calls.to_bytes(library.numpy(array)) == calls.to_bytes(before)
    again = operation.forward(here, *args)
    for old, new in zip(result, again, strict=True):
        assert calls.to_bytes(library.numpy(old)) == calls.to_bytes(library.numpy(new))
