"""Rows (M, N) as arrays in which some axes are normalised, and the way back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .inputs import PARAMETERS, generator
from .libraries import DTYPES, Layout, Library
from .operation_spec import NumpyInputs, OperationSpec
from .reference import axes_of


class RowView:
    """A shape of x and the axes that are normalised; without an axis, the default is left out."""

    def __init__(self, shape: tuple[int, ...], axis: int | tuple[int, ...] | None = None) -> None:
        self.options: dict[str, Any] = {} if axis is None else {"axis": axis}
        axes = axes_of(-1 if axis is None else axis, len(shape))
        kept = [each for each in range(len(shape)) if each not in axes]
        self.statistic = tuple(1 if each in axes else n for each, n in enumerate(shape))
        self.parameter = tuple(shape[each] for each in axes)
        self.m, self.n = math.prod(shape[each] for each in kept), math.prod(self.parameter)
        self._order = [*kept, *axes]
        self._moved = [shape[each] for each in self._order]
        self.shape = shape

    @classmethod
    def of_columns(cls, x: np.ndarray, inner: int) -> RowView:
        """Return a view of rows along axis 1 of an array (M / inner, N, inner); as rows, with 1."""
        m, n = x.shape
        return cls((m // inner, n, inner), 1) if inner > 1 else cls((m, n))

    def array(self, rows: np.ndarray) -> np.ndarray:
        """Return rows as a contiguous array of the shape of x."""
        return np.ascontiguousarray(rows.reshape(self._moved).transpose(np.argsort(self._order)))

    def rows(self, array: np.ndarray) -> np.ndarray:
        """Return an array of the shape of x as rows."""
        return np.asarray(array.transpose(self._order)).reshape(self.m, self.n)

    def flat(self, np_inputs: NumpyInputs) -> NumpyInputs:
        """Return the inputs of a call as rows and as parameters of shape (N,)."""
        return {
            name: each if each is None else self.rows(each) if name == "x" else each.reshape(-1)
            for name, each in np_inputs.items()
        }

    def arrays(
        self, library: Library, np_inputs: NumpyInputs, lay_out: Layout | None = None
    ) -> dict[str, Any]:
        """Return inputs of rows as the library's arrays, by name; `lay_out` makes that of x."""
        parameters = {
            name: None if each is None else library.array(each.reshape(self.parameter))
            for name, each in np_inputs.items()
            if name != "x"
        }
        return {"x": (lay_out or library.array)(self.array(np_inputs["x"])), **parameters}

    def results(self, library: Library, results: dict[str, Any]) -> dict[str, Any]:
        """Return results of the library by name, as rows, (M, 1) and (N,); None is None.

        Asserts that y and dx have the shape of x, that statistics have 1 in place of the axes, and
        that gradients of parameters have the shape of the axes.
        """
        rows: dict[str, Any] = {}
        for name, each in results.items():
            values = None if each is None else library.numpy(each)
            if values is None:
                rows[name] = None
            elif name in ("y", "dx"):
                assert values.shape == self.shape, name
                rows[name] = self.rows(values)
            elif name.startswith("d"):
                assert values.shape == self.parameter, name
                rows[name] = values.reshape(-1)
            else:
                assert values.shape == self.statistic, name
                rows[name] = values.reshape(-1, 1)
        return rows


def row_inputs(spec: OperationSpec, x: np.ndarray, dtype: str, present: str = "all") -> NumpyInputs:
    """Return rows x with parameters of a dtype: all, none, or the one that is named."""
    rng = generator("parameters", x.shape[-1])
    parameters = {name: PARAMETERS[name](rng, x.shape[-1:]) for name in spec.parameters}
    return {"x": x} | {
        name: values.astype(DTYPES[dtype]) if present in ("all", name) else None
        for name, values in parameters.items()
    }
