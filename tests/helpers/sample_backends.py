"""Backends for tests of dispatch, and entries of the registry for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np

import ln_array_api as ln
from ln_array_api import backend
from ln_array_api.backend import Entry, RowsSpec
from ln_array_api.kernels import channels, rows

X = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)

with ln.use_backend("generic"):
    ln.layer_norm(X)  # the plan of the first call with a type of arrays is not cached


Register = Callable[..., None]


class Counting:
    """Accepts specs for which `takes` is true, and counts calls; runs the generic kernels."""

    def __init__(self, takes: Callable[[RowsSpec], bool] = lambda spec: True) -> None:
        self.takes = takes
        self.asked: list[tuple[str, RowsSpec]] = []
        self.calls: list[str] = []

    def can_run(self, primitive: str, spec: RowsSpec) -> bool:
        self.asked.append((primitive, spec))
        return self.takes(spec)

    def rows_forward(self, *arrays: Any, **options: Any) -> Any:
        self.calls.append("rows_forward")
        return rows.rows_forward(*arrays, **options)

    def rows_backward(self, *arrays: Any, **options: Any) -> Any:
        self.calls.append("rows_backward")
        return rows.rows_backward(*arrays, **options)


class Looking:
    """Records x and gamma of each forward call; runs the generic kernels."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, Any]] = []

    def can_run(self, primitive: str, spec: Any) -> bool:
        return True

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        self.seen.append((x, gamma))
        return rows.rows_forward(x, gamma, beta, **options)

    def channels_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        self.seen.append((x, gamma))
        return channels.channels_forward(x, gamma, beta, **options)


class Null:
    """Accepts every call and computes nothing."""

    def can_run(self, primitive: str, spec: RowsSpec) -> bool:
        return True

    def rows_forward(self, x: Any, gamma: Any, beta: Any, **options: Any) -> Any:
        return x, None, None


def refuse_to_load() -> Any:
    raise OSError("libfast.so: wrong ELF class")


def entry(name: str, instance: Any, library: str = "numpy") -> Entry:
    return Entry(name, library, lambda: instance)


def broken(name: str = "broken", library: str = "numpy") -> Entry:
    return Entry(name, library, refuse_to_load)


def lacking(name: str = "lacking", library: str = "numpy") -> Entry:
    requires = ("numpy", "no_such_module_a", "no_such_module_b")
    return Entry(name, library, refuse_to_load, requires=requires, extra="fast")


def installed(*names: str) -> list[EntryPoint]:
    return [EntryPoint(name, "json:decoder", backend.ENTRY_POINT_GROUP) for name in names]
