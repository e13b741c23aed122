"""Calls of an operation with NumPy rows in and NumPy rows out, whatever library is in between."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .inputs import parameters
from .libraries import Library
from .operations import Operation


def arguments(
    operation: Operation, library: Library, dtype: str, n: int, which: str = "all"
) -> tuple[tuple[np.ndarray | None, np.ndarray | None], list[Any]]:
    """Gamma and beta as NumPy arrays (None for what is left out), and as arguments of a call."""
    gamma, beta = parameters(dtype, n)
    plain = (
        gamma if which in ("all", "gamma") else None,
        beta if which in ("all", "beta") and "beta" in operation.parameters else None,
    )
    given = [None if each is None else library.array(each) for each in plain]
    return plain, given[: len(operation.parameters)]


def forward(
    operation: Operation, library: Library, x: Any, given: list[Any], **options: Any
) -> dict[str, np.ndarray]:
    """Y and the statistics, by name, as NumPy arrays."""
    with library.lazily():
        result = operation.forward(x, *given, **options)
    return {name: library.numpy(value) for name, value in result._asdict().items()}


def both(
    operation: Operation,
    library: Library,
    dy: Any,
    x: Any,
    given: list[Any],
    *,
    epsilon: float | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """The results of forward and of backward, in the library's own arrays."""
    epsilon = operation.epsilon if epsilon is None else epsilon
    axis = {"axis": options["axis"]} if "axis" in options else {}
    with library.lazily():
        result = operation.forward(x, *given, epsilon=epsilon, **axis)
        gradients = operation.backward(dy, x, *result[1:], given[0], **options)
    return result, gradients


class Beside(NamedTuple):
    """How rows lie in an array: so many beside each other, and their elements on the axis before.

    Of one beside itself, rows are what the array consists of.
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
        """What a library gives of each row, as rows."""
        plain = library.numpy(x)
        if self.rows == 1:
            return plain
        return np.ascontiguousarray(plain.transpose(0, 2, 1)).reshape(-1, plain.shape[1])


AS_ROWS = Beside()


def bits(x: np.ndarray) -> bytes:
    """The bits of an array, to be compared for equality, NaN included."""
    return np.ascontiguousarray(x).tobytes()
