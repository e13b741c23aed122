"""Setup of the tests of the NumPy engine: they share `engine_arrays`, and need Numba."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ln_array_api.backend import plans

sys.path.insert(0, str(Path(__file__).resolve().parent))
if importlib.util.find_spec("numba") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _plans_of_each_test() -> Iterator[None]:
    """Let no test use plans of another, which may have been made with other thresholds."""
    plans.clear()
    yield
    plans.clear()
