"""These tests run under the plugin alone, by `make test-cuda`, and not among the library's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

collect_ignore_glob = [] if "cupy_on_cpu" in sys.modules else ["*"]


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """CPU tensors go to the CUDA kernels; gives the streams and devices that are asked for."""
    from ln_array_api_backends.torch import cuda  # not where there is no torch

    from ln_array_api import backend

    asked_for: list[Any] = []

    @contextmanager
    def current(device: Any) -> Iterator[None]:
        asked_for.append(device)
        yield

    class Stream:
        ptr = 0

        def __init__(self) -> None:
            asked_for.append("stream")

    monkeypatch.setattr(cuda, "takes", lambda device: device == "cpu")
    monkeypatch.setattr(cuda, "_current_device", current)
    monkeypatch.setattr(cuda, "_Stream", Stream)
    backend.plans.clear()
    yield asked_for
    backend.plans.clear()
