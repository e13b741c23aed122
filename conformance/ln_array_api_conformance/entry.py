"""The pytest plugin that is always there: it adds options only where this suite is to be run.

A conftest.py would be found too late for its options, and options that are always there might
clash with those of somebody else's tests.
"""

from __future__ import annotations

from typing import Any


def pytest_load_initial_conftests(early_config: Any, args: list[str]) -> None:
    """Load the suite's own plugin where the command line names the suite."""
    if any("ln_array_api_conformance" in argument for argument in args):
        early_config.pluginmanager.import_plugin("ln_array_api_conformance.plugin")
