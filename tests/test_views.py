"""The view of x as rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ln_array_api._dispatch.views import over_axes


@pytest.mark.parametrize(
    ("shape", "axes", "permutation", "rows_shape", "parameter", "statistic"),
    [
        ((2, 3), (1,), (), (2, 3), (3,), (2, 1)),
        ((2, 3), (0,), (1, 0), (3, 2), (2,), (1, 3)),
        ((3, 3), (0,), (1, 0), (3, 3), (3,), (1, 3)),
        ((2, 3, 4), (1, 2), (), (2, 12), (3, 4), (2, 1, 1)),
        ((2, 3, 4), (0, 2), (1, 0, 2), (3, 8), (2, 4), (1, 3, 1)),
        ((2, 3, 4), (0, 1, 2), (), (1, 24), (2, 3, 4), (1, 1, 1)),
        ((5,), (0,), (), (1, 5), (5,), (1,)),
        ((0, 3), (1,), (), (0, 3), (3,), (0, 1)),
    ],
)
def test_view(
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    permutation: tuple[int, ...],
    rows_shape: tuple[int, int],
    parameter: tuple[int, ...],
    statistic: tuple[int, ...],
) -> None:
    view = over_axes(shape, axes)
    assert (view.permutation, view.rows) == (permutation, rows_shape)
    assert (view.parameter, view.statistic) == (parameter, statistic)
    assert math.prod(view.broadcast_parameter) == rows_shape[1]
    assert view.is_rows == (len(shape) == 2 and axes == (1,))
    x = np.arange(math.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(view.from_rows(view.to_rows(x)), x)
    np.testing.assert_array_equal(view.to_rows(x).sum(1), x.sum(axis=axes).reshape(-1))
