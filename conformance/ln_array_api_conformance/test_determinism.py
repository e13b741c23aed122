"""The same bits: at every call, in every thread, and whatever else is in the batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import product

import numpy as np
import pytest

from . import operation_calls as calls
from .inputs import rows
from .libraries import Library
from .operation_spec import OperationSpec, gradient_of_y, make_inputs
from .row_view import row_inputs

SHORT = (1, 7, 64, 100, 768, 1000, 4096)
LONG = (65536,)


def run_rows(operation: OperationSpec, library: Library, x: np.ndarray) -> list[np.ndarray]:
    """Return y, the statistics and the gradients of rows."""
    lib_inputs = calls.arrays(library, row_inputs(operation, x, x.dtype.name))
    dy = library.array(x[..., ::-1].copy())
    return calls.numpy_results(operation, library, dy, lib_inputs)


@pytest.mark.having("rows")
@pytest.mark.parametrize("n", SHORT + LONG)
def test_every_call(operation: OperationSpec, library: Library, n: int) -> None:
    x = rows("lognormal", "float32", 33, n)
    once = run_rows(operation, library, x)
    for _ in range(3):
        again = run_rows(operation, library, x)
        assert list(map(calls.to_bytes, again)) == list(map(calls.to_bytes, once))


def test_the_same_bits_at_every_call(
    operation: OperationSpec, library: Library, dtype: str
) -> None:
    runs = []
    for _ in range(2):
        call = calls.right_call(operation, library, dtype, "lognormal")
        options = operation.main_case.options
        runs.append(calls.numpy_results(operation, library, *call, **options))
    for first, second in zip(*runs, strict=True):
        assert first.tobytes() == second.tobytes()


@pytest.mark.having("rows")
@pytest.mark.parametrize("lengths", [SHORT, LONG], ids=["short rows", "long rows"])
def test_batch_invariance(
    operation: OperationSpec, library: Library, lengths: tuple[int, ...]
) -> None:
    """A row gives the same bits by itself, among others, and in another place."""
    names = ("y", *operation.statistics, "dx")
    for dtype, n in product(library.dtypes, lengths):
        x = rows("lognormal", dtype, 37, n)
        in_batch = run_rows(operation, library, x)
        for start, stop in ((0, 1), (36, 37), (5, 7), (3, 20)):
            part = run_rows(operation, library, x[start:stop])
            for name, whole, these in zip(names, in_batch, part, strict=False):
                same = calls.to_bytes(whole[start:stop]) == calls.to_bytes(these)
                assert same, (
                    f"{name} of {dtype} rows {start} to {stop} of length {n} has other bits alone "
                    "than among 37 rows: the order of a sum must not depend on the number of rows"
                )


@pytest.mark.having("samples")
def test_a_sample_alone(operation: OperationSpec, library: Library) -> None:
    """Where a sample is normalised by itself, its y has the bits that it has among others."""
    case, variant = operation.main_case, []
    for dtype in library.dtypes:
        np_inputs = make_inputs(operation, case, "lognormal", dtype)
        np_dy, x = gradient_of_y(operation, case, dtype), np_inputs[operation.x]
        y = []
        for dy, some in ((np_dy, x), (np_dy[:1], x[:1])):
            lib_inputs = calls.arrays(library, {**np_inputs, operation.x: some})
            call = library.array(dy), lib_inputs
            y.append(calls.numpy_results(operation, library, *call, **case.options)[0])
        if calls.to_bytes(y[0][:1]) != calls.to_bytes(y[1]):
            variant.append(dtype)
    assert not variant, f"y of a sample alone has other bits than among others, in {variant}"


@pytest.mark.having("rows")
def test_many_threads_at_once(operation: OperationSpec, library: Library) -> None:
    """Calls of different shapes and dtypes, planned and run at the same time."""
    kinds = list(product(library.dtypes, (5, 64, 257)))

    def run(kind: tuple[str, int]) -> list[bytes]:
        dtype, n = kind
        results = run_rows(operation, library, rows("normal", dtype, 19, n))
        return list(map(calls.to_bytes, results))

    expected = [run(kind) for kind in kinds]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            # The backend asked for is asked for in this context, not in that of a new thread.
            results = [pool.submit(copy_context().run, run, kind) for kind in kinds]
            assert [each.result() for each in results] == expected
