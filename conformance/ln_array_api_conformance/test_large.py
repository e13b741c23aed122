"""Arrays that reach what small ones do not: blocks, many threads, non-temporal stores."""

from __future__ import annotations

import numpy as np
import pytest

from . import operation_calls as calls
from . import tolerances
from .checks import check, check_rows
from .inputs import generator, rows
from .large_cases import COLUMNS, LARGE, ROWS, Columns, Large, Rows
from .libraries import DTYPES, Library
from .operation_spec import OperationSpec, make_inputs
from .row_view import RowView

#: Arrays of which so many bytes are for one dtype alone: references take seconds.
LARGEST = 4 << 20


def dtypes_for(library: Library, size: int) -> tuple[str, ...]:
    """All dtypes of a library for arrays of `size` elements; of many megabytes, float32."""
    return library.dtypes if size * 4 < LARGEST else ("float32",)


@pytest.mark.having("scaled rows")
@pytest.mark.parametrize("large", ROWS.values(), ids=ROWS)
def test_rows(operation: OperationSpec, library: Library, large: Rows) -> None:
    """Forward, where y is compared everywhere, and backward in some columns."""
    m, n = large.shape
    for dtype in dtypes_for(library, m * n):
        x = rows("mean 100 sigma", dtype, m, n)
        dy = generator("dy", m, n).standard_normal(x.shape).astype(DTYPES[dtype])
        check_rows(operation, library, x, dy, sample=large.columns)


@pytest.mark.having("scaled rows")
@pytest.mark.parametrize("values", ["mean 100 sigma", "an edge"])
@pytest.mark.parametrize("large", COLUMNS.values(), ids=COLUMNS)
def test_columns(operation: OperationSpec, library: Library, large: Columns, values: str) -> None:
    """Rows that lie along an axis which another follows."""
    k, n, inner = large.shape
    for dtype in dtypes_for(library, k * n * inner):
        x = rows(values, dtype, k * inner, n)
        dy = generator("dy", large).standard_normal(x.shape).astype(DTYPES[dtype])
        view = RowView(large.shape, 1)
        check_rows(operation, library, x, dy, sample=large.places, view=view)


@pytest.mark.having("scaled rows")
@pytest.mark.parametrize("n", [65, 1000, 100_003])
def test_rows_without_epsilon(operation: OperationSpec, library: Library, n: int) -> None:
    check_rows(operation, library, rows("1e-15", "float32", 3, n), epsilon=0.0)


@pytest.mark.having("scaled rows")
@pytest.mark.parametrize("m", [100, 1024, 65_536])
@pytest.mark.parametrize("n", [8, 16, 23])
def test_rows_of_dy_that_are_alike(
    operation: OperationSpec, library: Library, m: int, n: int
) -> None:
    """As those of the gradient of a mean are: terms are all rounded in one direction, if at all."""
    for dtype in dtypes_for(library, m * n * (m > 1024)):
        x = rows("normal", dtype, m, n)
        row = generator("alike", m, n).uniform(0.001, 0.4, n).astype(DTYPES[dtype])
        dy = np.broadcast_to(row, x.shape).copy()
        check_rows(operation, library, x, dy, sample=2, only_gradients=True)


@pytest.mark.having("scaled rows")
@pytest.mark.parametrize("size", [1e2, 3e3, 1e4])
@pytest.mark.parametrize("n", [100, 1000, 4000])
def test_one_outlier_a_row(operation: OperationSpec, library: Library, n: int, size: float) -> None:
    """Each in a place of its own, beside values of magnitude 1."""
    rng = generator("outliers", n, size)
    x = rng.standard_normal((64, n))
    x[np.arange(64), rng.integers(0, n, 64)] = size * rng.uniform(1, 2, 64)
    check_rows(operation, library, x.astype(np.float32))


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE)
def test_large_cases(library: Library, large: Large) -> None:
    """Y and statistics everywhere, gradients in some places of each input."""
    spec, case, places = large
    for dtype in dtypes_for(library, int(np.prod(case.shapes[spec.x]))):
        check(spec, library, case, "mean 100 sigma", dtype, sample=places)


def dbeta_of(
    large: Large, library: Library, dtype: str, channels: np.ndarray
) -> tuple[np.ndarray, int]:
    """Return dbeta of a dy that is the same along a channel, and the number of its elements."""
    spec, case, _ = large
    np_inputs = make_inputs(spec, case, "normal", dtype)
    x, shape = np_inputs["x"], [1] * np_inputs["x"].ndim
    shape[case.options.get("channel_axis", 1)] = -1
    dy = library.array(np.broadcast_to(channels.reshape(shape), x.shape).copy())
    lib_inputs = calls.arrays(library, np_inputs)
    _, gradients = calls.forward_backward(spec, library, dy, lib_inputs, **case.options)
    return library.numpy(gradients.dbeta), x.size // len(channels)


@pytest.mark.parametrize("name", ["batch_norm_forward", "group_norm", "instance_norm"])
def test_dy_of_channels_that_is_alike(library: Library, name: str) -> None:
    """Dbeta is the number of places times dy, which is the same in all places of a channel."""
    for key in ("long channels", "channels last", "short channels"):
        large = LARGE[f"{name}-{key}"]
        rng = generator("alike", key)
        channels = rng.uniform(0.001, 0.4, large.case.shapes["beta"]).astype(np.float32)
        dbeta, count = dbeta_of(large, library, "float32", channels)
        exact = channels.astype(np.float64) * count
        error = abs(dbeta.astype(np.float64) - exact)
        assert np.all(error <= 8 * np.spacing(exact.astype(np.float32))), (key, error)


def test_dy_of_long_columns_that_is_alike(library: Library, dtype: str) -> None:
    values = np.asarray([0.051, 0.1, 0.399]).astype(DTYPES[dtype])
    dbeta, count = dbeta_of(LARGE["batch_norm_forward-few long columns"], library, dtype, values)
    exact = values.astype(np.longdouble) * count
    ulps = tolerances.PARAMETER_GRADIENT
    tolerances.assert_close("dbeta", dbeta, exact, ulps, exact, dtype)
