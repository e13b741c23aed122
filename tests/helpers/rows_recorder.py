"""A backend that records what reaches the kernels over rows; layouts and values for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ln_array_api_conformance.libraries import NumPy

from ln_array_api.backend import RowsSpec
from ln_array_api.kernels import rows

SHAPE = (3, 4, 5)
AXES: tuple[int | tuple[int, ...], ...] = (-1, 0, 1, (1, 2), (2, 0), (0, 1, 2))


class Subclass(np.ndarray):
    """A subclass that changes nothing."""


_OF_NUMPY = NumPy().layouts()
frozen, unaligned = _OF_NUMPY["read-only"], _OF_NUMPY["unaligned"]
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda a: a.copy(),
    **_OF_NUMPY,
    "part of columns": lambda a: np.concatenate([a, a], axis=0)[: a.shape[0]],
    "upside down": lambda a: a[::-1].copy()[::-1],
    "strided subclass": lambda a: np.repeat(a, 2, axis=-1).view(Subclass)[..., ::2],
}


class Call(NamedTuple):
    """The arguments of a kernel."""

    arrays: tuple[np.ndarray | None, ...]
    out: np.ndarray | None


class Recorder:
    """A backend for NumPy that checks what the protocol guarantees, and records calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.spec: RowsSpec

    def can_run(self, primitive: str, spec: RowsSpec) -> bool:
        self.spec = spec
        return True

    def check(self, values: Any, *shape: int, dtype: Any = None) -> None:
        if values is None:
            return
        assert type(values) is np.ndarray
        assert values.shape == shape
        assert values.flags.c_contiguous
        assert values.flags.aligned
        assert values.dtype.isnative
        assert dtype is None or values.dtype == dtype

    def rows_forward(self, x: Any, gamma: Any, beta: Any, *, out: Any, **options: Any) -> Any:
        assert options.keys() == {"epsilon", "center", "groups", "repeat", "span"}
        self.check(x, *x.shape)
        m, n = x.shape
        for parameter in (gamma, beta):
            self.check(parameter, n)
        self.check(out, m, n, dtype=x.dtype)
        assert out is None or out.flags.writeable
        self.calls.append(Call((x, gamma, beta), out))
        return rows.rows_forward(x, gamma, beta, out=out, **options)

    def rows_backward(
        self, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, **options: Any
    ) -> Any:
        assert options.keys() == {"center", "groups", "repeat", "span", "need"}
        assert (mean is not None) == options["center"]
        m, n = x.shape
        self.check(x, m, n)
        self.check(dy, m, n)
        accumulation = np.float64 if x.dtype == np.float64 else np.float32
        for statistic in (mean, rstd):
            self.check(statistic, m, 1, dtype=accumulation)
        self.check(gamma, n)
        self.calls.append(Call((dy, x, mean, rstd, gamma), None))
        return rows.rows_backward(dy, x, mean, rstd, gamma, **options)


def values(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def over(axis: int | tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else axis
    return tuple(sorted(each % len(shape) for each in axes))


def assert_same(results: Any, expected: Any) -> None:
    for result, right in zip(results, expected, strict=True):
        if right is None:
            assert result is None
        else:
            assert result.shape == right.shape
            np.testing.assert_array_equal(result, right)
