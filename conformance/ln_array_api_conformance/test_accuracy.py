"""Forward and backward against the reference, on every kind of values and every length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from . import calls, reference, tolerances
from .inputs import LENGTHS, LONG, generator, parameters, rows
from .libraries import DTYPES, Library
from .operations import LAYER_NORM, Operation


@contextmanager
def told(**context: object) -> Iterator[None]:
    """Let a failure tell what the test's name does not."""
    try:
        yield
    except AssertionError as error:
        error.add_note(", ".join(f"{name} {value!r}" for name, value in context.items()))
        raise


def check_forward(
    operation: Operation,
    library: Library,
    dtype: str,
    x: np.ndarray,
    *,
    epsilon: float,
    present: str = "all",
    row_layout: calls.RowLayout = calls.AS_ROWS,
) -> None:
    with told(
        dtype=dtype, shape=x.shape, epsilon=epsilon, parameters=present, row_layout=row_layout.rows
    ):
        np_params, args = calls.make_params(operation, library, dtype, x.shape[-1], present)
        lies = row_layout.array(library, x)
        with library.forbid_compute():
            result = operation.forward(lies, *args, epsilon=epsilon, **row_layout.options)
        actual = {name: row_layout.back(library, value) for name, value in result._asdict().items()}
        expected = reference.forward(operation.reference, x, *np_params, epsilon)
        tolerances.assert_close("y", actual["y"], expected.y, tolerances.Y, expected.scale, dtype)
        accumulation = tolerances.ACCUMULATION[dtype]
        relative = tolerances.RSTD * float(np.finfo(DTYPES[accumulation]).eps)
        rstd = np.asarray(expected.rstd, dtype=np.float64)
        np.testing.assert_allclose(actual["rstd"].astype(np.float64), rstd, rtol=relative)
        if "mean" in operation.statistics:
            max_abs = np.max(abs(x.astype(np.float64)), axis=-1, keepdims=True)
            tolerances.assert_close(
                "mean", actual["mean"], expected.mean, tolerances.MEAN, max_abs, accumulation
            )


def check_backward(
    operation: Operation,
    library: Library,
    dtype: str,
    dy: np.ndarray,
    x: np.ndarray,
    *,
    epsilon: float,
    present: str = "all",
    sample: int = 64,
    row_layout: calls.RowLayout = calls.AS_ROWS,
) -> None:
    with told(
        dtype=dtype, shape=x.shape, epsilon=epsilon, parameters=present, row_layout=row_layout.rows
    ):
        n = x.shape[-1]
        np_params, args = calls.make_params(operation, library, dtype, n, present)
        lie = row_layout.array(library, dy), row_layout.array(library, x)
        _, actual = calls.forward_backward(
            operation, library, *lie, args, epsilon=epsilon, **row_layout.options
        )
        columns = np.arange(n)
        if n > sample:  # a complex step computes the whole row for each column
            columns = np.sort(generator("columns", n).choice(n, size=sample, replace=False))
            columns = np.union1d(columns, [0, n - 1, *np.argmax(abs(x[:5]), axis=-1)])
        expected = reference.gradients(operation.reference, dy, x, np_params[0], epsilon, columns)
        dx = row_layout.back(library, actual.dx)
        assert np.isfinite(dx.astype(np.float64)).all()
        tolerances.assert_close(
            "dx", dx[:, columns], expected.dx, tolerances.DX, expected.dx_scale, dtype
        )
        for name, sums, magnitude in (
            ("dgamma", expected.dgamma, expected.dgamma_scale),
            ("dbeta", expected.dbeta, expected.dbeta_scale),
        ):
            if name in operation.gradients and getattr(actual, name) is not None:
                gradient = library.numpy(getattr(actual, name))
                tolerances.assert_close(
                    name, gradient, sums, tolerances.PARAMETER_GRADIENT, magnitude, dtype
                )


def rows_for(dtype: str, values: str, n: int) -> np.ndarray:
    # mpmath computes float64's reference, a thousand times slower than NumPy the others'
    return rows(values, dtype, 2 if dtype == "float64" else 5, n)


@pytest.mark.parametrize("epsilon", [None, 0.0])
def test_forward_values(
    operation: Operation, library: Library, dtype: str, values: str, epsilon: float | None
) -> None:
    """Large means, outliers, large and small magnitudes, with epsilon and without."""
    x = rows_for(dtype, values, 384)
    x64 = x.astype(np.float64)
    if epsilon == 0 and np.any(x64.max(-1) == x64.min(-1)):
        epsilon = None  # rounding has made a row constant, which has no y without an epsilon
    check_forward(
        operation,
        library,
        dtype,
        x,
        epsilon=operation.epsilon if epsilon is None else epsilon,
    )


def test_backward_values(operation: Operation, library: Library, dtype: str, values: str) -> None:
    x = rows_for(dtype, values, 384)
    dy = generator("dy", values).standard_normal(x.shape).astype(DTYPES[dtype])
    sample = 4 if dtype == "float64" else 64
    check_backward(operation, library, dtype, dy, x, epsilon=operation.epsilon, sample=sample)


def test_gradients_of_a_short_row(operation: Operation, library: Library) -> None:
    """Three elements do not average out what is rounded on the way to the mean of x_hat."""
    if "float64" not in library.dtypes:
        pytest.skip(f"{library.name} has no float64, in which this row was found")
    x = np.array([[2.310263421130296, -0.37064521802128647, 1.02984091099759]])
    dy = np.array([[1.0, 1.0, -0.9979744223515321]])
    check_backward(operation, library, "float64", dy, x, epsilon=0.0)


@pytest.mark.parametrize("row_layout", [1, 2], ids=["rows", "columns"])
def test_gradients_of_rows_near_the_largest_number(
    operation: Operation, library: Library, dtype: str, row_layout: int
) -> None:
    """The sum of whose deviations over a part of the row is more than the dtype holds.

    Their rstd and dx are normal numbers, so that libraries without others have them as well.
    """
    largest = 65504.0 if dtype == "float16" else float(np.finfo(DTYPES["float32"]).max)
    if dtype == "float64":
        largest = float(np.finfo(np.float64).max)
    noise = rows_for("float64", "normal", 2048)
    x = largest / 8 * np.sign(np.arange(2048) - 1023.5) * (1 + noise / 100)
    x = x.astype(DTYPES[dtype])
    dy = (1000 * generator("dy", "largest").standard_normal(x.shape)).astype(DTYPES[dtype])
    check_backward(
        *(operation, library, dtype, dy, x),
        epsilon=operation.epsilon,
        sample=4,
        row_layout=calls.RowLayout(row_layout),
    )


@pytest.mark.parametrize("n", LENGTHS)
def test_forward_lengths(operation: Operation, library: Library, dtype: str, n: int) -> None:
    x = rows_for(dtype, "mean 100 sigma", n)
    check_forward(operation, library, dtype, x, epsilon=operation.epsilon)


@pytest.mark.parametrize("n", LENGTHS)
def test_backward_lengths(operation: Operation, library: Library, dtype: str, n: int) -> None:
    x = rows_for(dtype, "mean 100 sigma", n)
    dy = generator("dy", n).standard_normal(x.shape).astype(DTYPES[dtype])
    sample = 4 if dtype == "float64" else 64
    check_backward(operation, library, dtype, dy, x, epsilon=operation.epsilon, sample=sample)


@pytest.mark.parametrize("n", LONG)
@pytest.mark.parametrize("values", ["mean 1e4 sigma", "lognormal", "last an outlier"])
def test_long_rows(operation: Operation, library: Library, n: int, values: str) -> None:
    """Rows of up to a million elements, in float32."""
    x = rows(values, "float32", 2, n)
    dy = generator("dy", n).random(x.shape).astype(np.float32)
    check_forward(operation, library, "float32", x, epsilon=operation.epsilon)
    check_backward(operation, library, "float32", dy, x, epsilon=operation.epsilon, sample=1)


@pytest.mark.parametrize("m", [1, 63, 64, 65, 1000, 1 << 17])
def test_many_rows(operation: Operation, library: Library, m: int) -> None:
    """The gradients of gamma and beta are sums over all rows, however many and however alike."""
    x = rows("lognormal", "float32", m, 6)
    dy = generator("dy", m).random(x.shape).astype(np.float32)
    check_backward(operation, library, "float32", dy, x, epsilon=operation.epsilon)


@pytest.mark.parametrize("present", ["none", "gamma", "beta"])
def test_parameters_are_optional(
    operation: Operation, library: Library, dtype: str, present: str
) -> None:
    """Each parameter alone, and none."""
    x = rows_for(dtype, "normal", 48)
    dy = generator("dy", 48).standard_normal(x.shape).astype(DTYPES[dtype])
    epsilon = operation.epsilon
    check_forward(operation, library, dtype, x, epsilon=epsilon, present=present)
    check_backward(operation, library, dtype, dy, x, epsilon=epsilon, present=present, sample=4)


@pytest.mark.parametrize("epsilon", [1e-59, 1e-61])
def test_tiny_rows_beside_a_tiny_epsilon(
    operation: Operation, library: Library, epsilon: float
) -> None:
    """Whose squares, and epsilon itself, are less than float32 holds."""
    x = rows("1e-30", "float32", 5, 48)
    check_forward(operation, library, "float32", x, epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-7, 0.3])
def test_epsilon_is_inside_the_root_and_not_rounded(
    operation: Operation, library: Library, dtype: str, epsilon: float
) -> None:
    """An epsilon that 16 bits cannot hold, or as large as the variance, counts in full."""
    x = (rows_for(dtype, "normal", 48).astype(np.float64) * max(epsilon, 1e-6) ** 0.5).astype(
        DTYPES[dtype]
    )
    check_forward(operation, library, dtype, x, epsilon=epsilon)


def test_wider_parameters(operation: Operation, library: Library, dtype: str) -> None:
    """Gamma and beta in a wider dtype than x, and dgamma and dbeta in theirs."""
    wider = tolerances.ACCUMULATION[dtype]
    if wider == dtype:
        wider = "float64"
    x = rows_for(dtype, "normal", 48)
    dy = generator("dy", "wider").standard_normal(x.shape).astype(DTYPES[dtype])
    np_params = parameters(wider, 48)[: len(operation.parameters)]
    args = [library.array(each) for each in np_params]
    beta = np_params[1] if len(np_params) > 1 else None
    result, gradients = calls.forward_backward(
        operation, library, library.array(dy), library.array(x), args
    )
    # The library computes with the parameters in the accumulation dtype.
    accumulation = DTYPES[tolerances.ACCUMULATION[dtype]]
    gamma, beta = (None if p is None else p.astype(accumulation) for p in (np_params[0], beta))
    expected = reference.forward(operation.reference, x, gamma, beta, operation.epsilon)
    y = library.numpy(result.y)
    tolerances.assert_close("y", y, expected.y, tolerances.Y, expected.scale, dtype)
    exact = reference.gradients(operation.reference, dy, x, gamma, operation.epsilon, np.arange(4))
    assert library.numpy(gradients.dgamma).dtype == np_params[0].dtype
    tolerances.assert_close(
        "dgamma",
        library.numpy(gradients.dgamma),
        exact.dgamma,
        tolerances.PARAMETER_GRADIENT,
        exact.dgamma_scale,
        tolerances.ACCUMULATION[dtype],
    )


@pytest.mark.needs("16 bits")
@pytest.mark.parametrize("present", ["all", "none"])
def test_dbeta_of_a_wider_beta(library: Library, present: str) -> None:
    """Of beta nothing but shape and dtype matters, and dbeta is as exact as that dtype."""
    for dtype in set(library.dtypes) & {"float16", "bfloat16"}:
        x = rows_for(dtype, "normal", 48)
        dy = generator("dy", "beta").standard_normal(x.shape).astype(DTYPES[dtype])
        _, args = calls.make_params(LAYER_NORM, library, dtype, 48, present)
        result = LAYER_NORM.forward(library.array(x), *args)
        beta = library.array(np.zeros(48, np.float32))
        saved = library.array(dy), library.array(x), *result[1:], args[0]
        gradients = LAYER_NORM.backward(*saved, beta)
        dbeta = library.numpy(gradients.dbeta)
        assert dbeta.dtype == np.float32
        assert getattr(gradients.dgamma, "dtype", None) == getattr(args[0], "dtype", None)
        dy64 = dy.astype(np.float64)
        tolerances.assert_close(
            "dbeta",
            dbeta,
            dy64.sum(axis=0),
            tolerances.PARAMETER_GRADIENT,
            abs(dy64).sum(axis=0),
            "float32",
        )
        alone = LAYER_NORM.backward(*saved, beta, need=("dbeta",))
        assert library.numpy(alone.dbeta).tobytes() == dbeta.tobytes()
