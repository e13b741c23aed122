"""A pytest plugin that keeps every nth test, so that several processes share a suite."""

from __future__ import annotations

from typing import Any


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--shard", metavar="K/N", help="keep tests K, K + N, K + 2 N, ...")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    first, step = map(int, config.getoption("--shard").split("/"))
    kept = items[first::step]
    config.hook.pytest_deselected(items=[each for each in items if each not in set(kept)])
    items[:] = kept
