"""The same bits: at every call, in every thread, and however many rows stand beside a row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import product

import numpy as np
import pytest

from . import calls
from .inputs import rows
from .libraries import Library
from .operations import Operation

SHORT = (1, 7, 64, 100, 768, 1000, 4096)
LONG = (65536,)


def _run(operation: Operation, library: Library, dtype: str, x: np.ndarray) -> list[bytes]:
    dy = x[..., ::-1].copy()
    _, args = calls.make_params(operation, library, dtype, x.shape[-1])
    result, gradients = calls.forward_backward(
        operation, library, library.array(dy), library.array(x), args
    )
    return [calls.to_bytes(library.numpy(each)) for each in (*result, *gradients)]


@pytest.mark.parametrize("n", SHORT + LONG)
def test_every_call(operation: Operation, library: Library, n: int) -> None:
    x = rows("lognormal", "float32", 33, n)
    once = _run(operation, library, "float32", x)
    for _ in range(3):
        assert _run(operation, library, "float32", x) == once


@pytest.mark.parametrize("lengths", [SHORT, LONG], ids=["short rows", "long rows"])
def test_batch_invariance(operation: Operation, library: Library, lengths: tuple[int, ...]) -> None:
    """A row's y, mean, rstd and dx, alone, among others, and in another place."""
    for dtype, n in product(library.dtypes, lengths):
        x = rows("lognormal", dtype, 37, n)
        dy = x[:, ::-1].copy()
        among_all = _by_row(operation, library, dtype, dy, x)
        for start, stop in ((0, 1), (36, 37), (5, 7), (3, 20)):
            part = _by_row(operation, library, dtype, dy[start:stop], x[start:stop])
            for name, whole, these in zip(
                ("y", *operation.statistics, "dx"), among_all, part, strict=True
            ):
                same = calls.to_bytes(whole[start:stop]) == calls.to_bytes(these)
                assert same, (
                    f"{name} of {dtype} rows {start} to {stop} of length {n} has other bits alone "
                    "than among 37 rows: the order of a sum must not depend on the number of rows"
                )


def _by_row(
    operation: Operation, library: Library, dtype: str, dy: np.ndarray, x: np.ndarray
) -> list[np.ndarray]:
    _, args = calls.make_params(operation, library, dtype, x.shape[-1])
    result, gradients = calls.forward_backward(
        operation, library, library.array(dy), library.array(x), args
    )
    return [library.numpy(each) for each in (*result, gradients.dx)]


def test_many_threads_at_once(operation: Operation, library: Library) -> None:
    """Calls of different shapes and dtypes, planned and run at the same time."""
    kinds = list(product(library.dtypes, (5, 64, 257)))

    def run(kind: tuple[str, int]) -> list[bytes]:
        dtype, n = kind
        return _run(operation, library, dtype, rows("normal", dtype, 19, n))

    expected = [run(kind) for kind in kinds]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            # The backend asked for is asked for in this context, not in that of a new thread.
            results = [pool.submit(copy_context().run, run, kind) for kind in kinds]
            assert [each.result() for each in results] == expected
