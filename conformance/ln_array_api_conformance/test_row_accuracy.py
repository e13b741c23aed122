"""Operations over rows against their definitions, on every kind of values and every length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .checks import check_rows
from .inputs import LENGTHS, LONG, generator, rows
from .libraries import DTYPES, Library
from .operation_spec import OperationSpec
from .row_view import RowView

pytestmark = pytest.mark.having("scaled rows")


def rows_for(dtype: str, values: str, n: int) -> np.ndarray:
    # mpmath computes float64's reference, a thousand times slower than NumPy the others'
    return rows(values, dtype, 2 if dtype == "float64" else 5, n)


def columns_of(dtype: str) -> int:
    return 4 if dtype == "float64" else 64


@pytest.mark.parametrize("epsilon", [None, 0.0])
def test_forward_values(
    operation: OperationSpec, library: Library, dtype: str, values: str, epsilon: float | None
) -> None:
    """Large means, outliers, large and small magnitudes, with epsilon and without."""
    x = rows_for(dtype, values, 384)
    x64 = x.astype(np.float64)
    if epsilon == 0 and np.any(x64.max(-1) == x64.min(-1)):
        epsilon = None  # rounding has made a row constant, which has no y without an epsilon
    options: dict[str, Any] = {} if epsilon is None else {"epsilon": epsilon}
    check_rows(operation, library, x, **options)


def test_backward_values(
    operation: OperationSpec, library: Library, dtype: str, values: str
) -> None:
    x = rows_for(dtype, values, 384)
    dy = generator("dy", values).standard_normal(x.shape).astype(DTYPES[dtype])
    check_rows(operation, library, x, dy, sample=columns_of(dtype))


def test_gradients_of_a_short_row(operation: OperationSpec, library: Library) -> None:
    """Three elements do not average out what is rounded on the way to the mean of x_hat."""
    if "float64" not in library.dtypes:
        pytest.skip(f"{library.name} has no float64, in which this row was found")
    x = np.array([[2.310263421130296, -0.37064521802128647, 1.02984091099759]])
    dy = np.array([[1.0, 1.0, -0.9979744223515321]])
    check_rows(operation, library, x, dy, epsilon=0.0)


@pytest.mark.parametrize("inner", [1, 2], ids=["rows", "columns"])
def test_gradients_of_rows_near_the_largest_number(
    operation: OperationSpec, library: Library, dtype: str, inner: int
) -> None:
    """The sum of whose deviations over a part of the row is more than the dtype holds.

    Their rstd and dx are normal numbers, so that libraries without others have them as well.
    """
    largest = 65504.0 if dtype == "float16" else float(np.finfo(DTYPES["float32"]).max)
    if dtype == "float64":
        largest = float(np.finfo(np.float64).max)
    noise = rows_for("float64", "normal", 2048)
    if "norm" in operation.statistics:  # which is to be in range, as a mean square is
        largest /= 2048**0.5
    x = largest / 8 * np.sign(np.arange(2048) - 1023.5) * (1 + noise / 100)
    x = x.astype(DTYPES[dtype])
    dy = (1000 * generator("dy", "largest").standard_normal(x.shape)).astype(DTYPES[dtype])
    check_rows(operation, library, x, dy, sample=4, view=RowView.of_columns(x, inner))


@pytest.mark.parametrize("n", LENGTHS)
def test_forward_lengths(operation: OperationSpec, library: Library, dtype: str, n: int) -> None:
    check_rows(operation, library, rows_for(dtype, "mean 100 sigma", n))


@pytest.mark.parametrize("n", LENGTHS)
def test_backward_lengths(operation: OperationSpec, library: Library, dtype: str, n: int) -> None:
    x = rows_for(dtype, "mean 100 sigma", n)
    dy = generator("dy", n).standard_normal(x.shape).astype(DTYPES[dtype])
    check_rows(operation, library, x, dy, sample=columns_of(dtype))


@pytest.mark.parametrize("n", LONG)
@pytest.mark.parametrize("values", ["mean 1e4 sigma", "lognormal", "last an outlier"])
def test_long_rows(operation: OperationSpec, library: Library, n: int, values: str) -> None:
    """Rows of up to a million elements, in float32."""
    x = rows(values, "float32", 2, n)
    dy = generator("dy", n).random(x.shape).astype(np.float32)
    check_rows(operation, library, x, dy, sample=1)


@pytest.mark.parametrize("m", [1, 63, 64, 65, 1000, 1 << 17])
def test_many_rows(operation: OperationSpec, library: Library, m: int) -> None:
    """The gradients of parameters are sums over all rows, however many and however alike."""
    x = rows("lognormal", "float32", m, 6)
    dy = generator("dy", m).random(x.shape).astype(np.float32)
    check_rows(operation, library, x, dy, only_gradients=True)


@pytest.mark.having("parameters")
@pytest.mark.parametrize("present", ["none", "gamma", "beta"])
def test_parameters_are_optional(
    operation: OperationSpec, library: Library, dtype: str, present: str
) -> None:
    """Each parameter alone, and none."""
    x = rows_for(dtype, "normal", 48)
    dy = generator("dy", 48).standard_normal(x.shape).astype(DTYPES[dtype])
    check_rows(operation, library, x, dy, present=present, sample=4)


@pytest.mark.parametrize("epsilon", [1e-59, 1e-61])
def test_tiny_rows_beside_a_tiny_epsilon(
    operation: OperationSpec, library: Library, epsilon: float
) -> None:
    """Whose squares, and epsilon itself, are less than float32 holds."""
    check_rows(operation, library, rows("1e-30", "float32", 5, 48), epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-7, 0.3])
def test_epsilon_is_inside_the_root_and_not_rounded(
    operation: OperationSpec, library: Library, dtype: str, epsilon: float
) -> None:
    """An epsilon that 16 bits cannot hold, or as large as the variance, counts in full."""
    x = rows_for(dtype, "normal", 48).astype(np.float64) * max(epsilon, 1e-6) ** 0.5
    check_rows(operation, library, x.astype(DTYPES[dtype]), epsilon=epsilon)
