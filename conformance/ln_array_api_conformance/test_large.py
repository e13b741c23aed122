"""Arrays that reach what small ones do not: blocks, many threads, stores past the cache."""

from __future__ import annotations

import numpy as np
import pytest

from . import family_calls, tolerances
from .calls import RowLayout
from .family import gradient_of_y, inputs
from .inputs import generator, rows
from .large_cases import COLUMNS, LARGE, ROWS, Columns, Large, Rows
from .libraries import DTYPES, Library
from .operations import Operation
from .test_accuracy import check_backward, check_forward

#: Arrays of which so many bytes are for one dtype alone: references take seconds.
LARGEST = 4 << 20


def dtypes_for(library: Library, size: int) -> tuple[str, ...]:
    """All dtypes of a library for arrays of `size` elements; of many megabytes, float32."""
    return library.dtypes if size * 4 < LARGEST else ("float32",)


@pytest.mark.parametrize("large", ROWS.values(), ids=ROWS)
def test_rows(operation: Operation, library: Library, large: Rows) -> None:
    """Forward, where y is compared everywhere, and backward in some columns."""
    m, n = large.shape
    for dtype in dtypes_for(library, m * n):
        x = rows("mean 100 sigma", dtype, m, n)
        dy = generator("dy", m, n).standard_normal(x.shape).astype(DTYPES[dtype])
        check_forward(operation, library, dtype, x, epsilon=operation.epsilon)
        check_backward(
            operation, library, dtype, dy, x, epsilon=operation.epsilon, sample=large.columns
        )


@pytest.mark.parametrize("values", ["mean 100 sigma", "an edge"])
@pytest.mark.parametrize("large", COLUMNS.values(), ids=COLUMNS)
def test_columns(operation: Operation, library: Library, large: Columns, values: str) -> None:
    """Rows that lie along an axis which another follows."""
    k, n, inner = large.shape
    row_layout = RowLayout(inner)
    for dtype in dtypes_for(library, k * n * inner):
        x = rows(values, dtype, k * inner, n)
        dy = generator("dy", large).standard_normal(x.shape).astype(DTYPES[dtype])
        epsilon = operation.epsilon
        check_forward(operation, library, dtype, x, epsilon=epsilon, row_layout=row_layout)
        check_backward(
            *(operation, library, dtype, dy, x),
            epsilon=epsilon,
            sample=large.places,
            row_layout=row_layout,
        )


@pytest.mark.parametrize("n", [65, 1000, 100_003])
def test_rows_without_epsilon(operation: Operation, library: Library, n: int) -> None:
    x = rows("1e-15", "float32", 3, n)
    check_forward(operation, library, "float32", x, epsilon=0.0)


@pytest.mark.parametrize("m", [100, 1024, 65_536])
@pytest.mark.parametrize("n", [8, 16, 23])
def test_rows_of_dy_that_are_alike(operation: Operation, library: Library, m: int, n: int) -> None:
    """As those of the gradient of a mean are: terms are all rounded in one direction, if at all."""
    for dtype in dtypes_for(library, m * n * (m > 1024)):
        x = rows("normal", dtype, m, n)
        row = generator("alike", m, n).uniform(0.001, 0.4, n).astype(DTYPES[dtype])
        dy = np.broadcast_to(row, x.shape).copy()
        check_backward(operation, library, dtype, dy, x, epsilon=operation.epsilon, sample=2)


@pytest.mark.parametrize("size", [1e2, 3e3, 1e4])
@pytest.mark.parametrize("n", [100, 1000, 4000])
def test_one_outlier_a_row(operation: Operation, library: Library, n: int, size: float) -> None:
    """Each in a place of its own, beside values of magnitude 1."""
    rng = generator("outliers", n, size)
    x = rng.standard_normal((64, n))
    x[np.arange(64), rng.integers(0, n, 64)] = size * rng.uniform(1, 2, 64)
    check_forward(operation, library, "float32", x.astype(np.float32), epsilon=operation.epsilon)


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE)
def test_family(library: Library, large: Large) -> None:
    """Y and statistics everywhere, gradients in some places of each input."""
    member, case = large.member, large.case
    for dtype in dtypes_for(library, int(np.prod(case.shapes[member.x]))):
        np_inputs = inputs(member, case, "mean 100 sigma", dtype)
        dy = library.array(gradient_of_y(member, case, dtype))
        lib_inputs = family_calls.arrays(library, np_inputs)
        result, gradients = family_calls.forward_backward(
            member, library, dy, lib_inputs, **case.options
        )
        family_calls.check_forward(member, library, case, np_inputs, result, dtype)
        family_calls.check_gradients(
            member, library, case, np_inputs, gradients, dtype, sample=large.places
        )


@pytest.mark.parametrize("member_name", ["batch_norm_forward", "group_norm", "instance_norm"])
def test_dy_of_the_family_that_is_alike(library: Library, member_name: str) -> None:
    """Dbeta is the number of places times dy, which is the same in all places of a channel."""
    for key in ("long channels", "channels last", "short channels"):
        member, case, _ = LARGE[f"{member_name}-{key}"]
        np_inputs = inputs(member, case, "normal", "float32")
        x, axis = np_inputs["x"], case.options.get("channel_axis", 1)
        channels = generator("alike", key).uniform(0.001, 0.4, x.shape[axis]).astype(np.float32)
        shape = [1] * x.ndim
        shape[axis] = -1
        dy = np.broadcast_to(channels.reshape(shape), x.shape).copy()
        lib_inputs = family_calls.arrays(library, np_inputs)
        _, gradients = family_calls.forward_backward(
            member, library, library.array(dy), lib_inputs, **case.options
        )
        exact = channels.astype(np.float64) * (x.size // len(channels))
        error = abs(library.numpy(gradients.dbeta).astype(np.float64) - exact)
        assert np.all(error <= 8 * np.spacing(exact.astype(np.float32))), (key, error)


def test_dy_of_long_columns_that_is_alike(library: Library, dtype: str) -> None:
    member, case, _ = LARGE["batch_norm_forward-few long columns"]
    np_inputs = inputs(member, case, "normal", dtype)
    values = np.asarray([0.051, 0.1, 0.399]).astype(DTYPES[dtype])
    dy = library.array(np.broadcast_to(values, np_inputs["x"].shape).copy())
    lib_inputs = family_calls.arrays(library, np_inputs)
    _, gradients = family_calls.forward_backward(member, library, dy, lib_inputs, **case.options)
    exact = values.astype(np.longdouble) * len(np_inputs["x"])
    tolerances.assert_close(
        "dbeta", library.numpy(gradients.dbeta), exact, tolerances.PARAMETER_GRADIENT, exact, dtype
    )
