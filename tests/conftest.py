"""Shared by all tests: the path to helper modules, fixtures for random numbers and the registry."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ln_array_api import backend

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the tests are no package


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order(request: pytest.FixtureRequest) -> None:
    """A module's `RNG` starts afresh for each of its tests."""
    rng = getattr(request.module, "RNG", None) if request.module else None
    if rng is not None:
        rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put entries in place of all that are known."""
    known: dict[str, backend.Entry] = {}
    monkeypatch.setattr(backend, "_entries", known)
    backend.plans.clear()

    def register(*entries: backend.Entry) -> None:
        known.update({entry.name: entry for entry in entries})

    yield register
    backend.plans.clear()
