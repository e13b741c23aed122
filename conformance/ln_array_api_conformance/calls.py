"""Calls of an operation of any library, with rows of NumPy arrays as inputs and results."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .inputs import parameters
from .libraries import Library
from .operations import Operation


def make_params(
    operation: Operation, library: Library, dtype: str, n: int, present: str = "all"
) -> tuple[tuple[np.ndarray | None, np.ndarray | None], list[Any]]:
    """Return gamma and beta as NumPy arrays (None if absent), and as arguments of a call."""
    gamma, beta = parameters(dtype, n)
    np_params = (
        gamma if present in ("all", "gamma") else None,
        beta if present in ("all", "beta") and "beta" in operation.parameters else None,
    )
    args = [None if each is None else library.array(each) for each in np_params]
    return np_params, args[: len(operation.parameters)]


def forward(
    operation: Operation, library: Library, x: Any, args: list[Any], **options: Any
) -> dict[str, np.ndarray]:
    """Y and the statistics, by name, as NumPy arrays."""
    with library.forbid_compute():
        result = operation.forward(x, *args, **options)
    return {name: library.numpy(value) for name, value in result._asdict().items()}


def forward_backward(
    operation: Operation,
    library: Library,
    dy: Any,
    x: Any,
    args: list[Any],
    *,
    epsilon: float | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """The results of forward and of backward, in the library's own arrays."""
    epsilon = operation.epsilon if epsilon is None else epsilon
    axis = {"axis": options["axis"]} if "axis" in options else {}
    with library.forbid_compute():
        result = operation.forward(x, *args, epsilon=epsilon, **axis)
        gradients = operation.backward(dy, x, *result[1:], args[0], **options)
    return result, gradients


class RowLayout(NamedTuple):
    """The layout of rows in an array: with `rows` > 1, samples whose columns are the rows.

    Their elements are on axis 1 and the rows on axis 2. With 1, the array has shape (M, N).
    """

    rows: int = 1

    @property
    def options(self) -> dict[str, int]:
        """The axis that is normalised."""
        return {} if self.rows == 1 else {"axis": 1}

    def array(self, library: Library, x: np.ndarray) -> Any:
        """Rows (M, N) as an array of a library."""
        if self.rows == 1:
            return library.array(x)
        samples = x.reshape(-1, self.rows, x.shape[-1])
        return library.array(np.ascontiguousarray(samples.transpose(0, 2, 1)))

    def back(self, library: Library, x: Any) -> np.ndarray:
        """Return a result of the library, an array of this layout, as rows (M, N)."""
        np_params = library.numpy(x)
        if self.rows == 1:
            return np_params
        return np.ascontiguousarray(np_params.transpose(0, 2, 1)).reshape(-1, np_params.shape[1])


AS_ROWS = RowLayout()


def to_bytes(x: np.ndarray) -> bytes:
    """Return the bytes of an array, to compare for equality of bits, NaN included."""
    return np.ascontiguousarray(x).tobytes()
