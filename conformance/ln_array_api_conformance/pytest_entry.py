"""The pytest plugin that is always there: it adds options only where this suite is to be run.

A conftest.py would be found too late for its options, and options that are always there might
clash with those of somebody else's tests.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

#: What the suite itself imports, besides the library under test.
NEEDED = ("ml_dtypes", "mpmath")


def pytest_load_initial_conftests(early_config: Any, args: list[str]) -> None:
    """Load the suite's own plugin where the command line names the suite."""
    if any("ln_array_api_conformance" in argument for argument in args):
        missing = [name for name in NEEDED if not _is_there(name)]
        if missing:
            raise pytest.UsageError(
                f"the conformance suite needs {' and '.join(missing)}: "
                "pip install 'ln-array-api[test]'"
            )
        early_config.pluginmanager.import_plugin("ln_array_api_conformance.plugin")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
