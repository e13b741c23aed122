"""Shared by all tests: the path to helper modules, fixtures for random numbers and the registry."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ln_array_api import backend, use_backend
from ln_array_api.kernels import reductions, rows

sys.path.insert(0, str(Path(__file__).resolve().parent / "helpers"))  # tests are no package


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order(request: pytest.FixtureRequest) -> None:
    """Reset a module's `RNG` before each of its tests."""
    rng = getattr(request.module, "RNG", None) if request.module else None
    if rng is not None:
        rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Collect the axes of the sums that the generic kernels take."""
    taken, real = [], reductions.sum_over

    def counted(xp: Any, x: Any, axes: tuple[int, ...], **how: bool) -> Any:
        taken.append(axes)
        return real(xp, x, axes, **how)

    for module in (reductions, rows):
        monkeypatch.setattr(module, "sum_over", counted)
    return taken


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Replace all entries of the registry by those that the test registers."""
    known: dict[str, backend.Entry] = {}
    monkeypatch.setattr(backend, "_entries", known)
    backend.plans.clear()

    def register(*entries: backend.Entry) -> None:
        known.update({entry.name: entry for entry in entries})

    yield register
    backend.plans.clear()


@pytest.fixture(params=["default", "generic"])
def each_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test on the backend that is chosen by default, and on the generic kernels."""
    with use_backend("generic") if request.param == "generic" else nullcontext():
        yield


@pytest.fixture(scope="session")
def load_program() -> Callable[[Path], ModuleType]:
    """Import a program that is not in a package."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
