"""Change the CUDA C of kernels, for the rest of a test. This module does not import CuPy."""

from __future__ import annotations

from types import ModuleType

import pytest

CHANGED = "the code has changed; plant this fault anew"


def change_source(
    monkeypatch: pytest.MonkeyPatch, dispatch: ModuleType, old: str, new: str
) -> None:
    """Replace code in the kernels that a module dispatches."""
    source = dispatch.source()
    assert old in source, CHANGED
    changed = source.replace(old, new)
    assert changed != source
    monkeypatch.setattr(dispatch, "source", lambda: changed)
    dispatch.kernel.cache_clear()
