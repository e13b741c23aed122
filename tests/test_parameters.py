"""Parameters that have the rank of x, on every library, against the definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api._dispatch import parameters
from ln_array_api._dispatch.views import ChannelGroups, RowsView, interned, view_of

AXES = [-1, 0, 1, (1, 2), (0, 2), (2, 0, 1)]


def shapes_of(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return all shapes of parameters that have the rank of x."""
    return list(itertools.product(*({1, n} for n in shape)))


def row_index(view: RowsView, r: int, c: int) -> int:
    n = view.rows[1]
    return (r // view.span % view.groups) * (n // view.repeat) + c // view.repeat


@pytest.mark.parametrize(
    ("over", "shape"),
    [
        *((axis, (3, 4, 5)) for axis in AXES),
        (-1, (2, 3, 4, 5)),
        ((0, 3), (2, 3, 4, 5)),
        (-1, (2, 1, 3)),
        (interned(ChannelGroups, 2, 1), (2, 4, 3, 5)),
        (interned(ChannelGroups, 2, -1), (2, 3, 5, 4)),
        (interned(ChannelGroups, None, 2), (2, 3, 4)),
        (interned(ChannelGroups, 1, 1), (2, 4, 3)),
    ],
    ids=str,
)
def test_kernels_on_rows_find_each_parameter(over: Any, shape: tuple[int, ...]) -> None:
    view = view_of("layer_norm", over, shape)
    for ranked in shapes_of(shape):
        found = parameters.with_parameters(view, [ranked])
        if found.expanded is None:
            continue
        values = np.arange(math.prod(ranked)).reshape(ranked)
        rows = view.to_rows(np.broadcast_to(values, shape))
        given = parameters.to_rows(found, values)
        m, n = view.rows
        index = [[row_index(found, r, c) for c in range(n)] for r in range(m)]
        np.testing.assert_array_equal(given[np.asarray(index)], rows, err_msg=str(ranked))


def test_jax_gives_parameters_of_unlike_shapes_their_gradients() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    rng = np.random.default_rng(0)
    shapes = (4, 6, 8), (4, 1, 8), (1, 6, 1)
    x, gamma, beta = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)

    def total(*arrays: Any) -> Any:
        return (ln.layer_norm(*arrays) ** 2).sum()

    gradients = jax.jit(jax.grad(total, (0, 1, 2)))(x, gamma, beta)
    y, *statistics = ln.layer_norm_forward(x, gamma, beta)
    expected = ln.layer_norm_backward(2 * y, x, *statistics, gamma, beta)
    for actual, each in zip(gradients, expected, strict=True):
        assert actual.shape == each.shape
        np.testing.assert_allclose(actual, each, rtol=1e-4, atol=1e-4)
