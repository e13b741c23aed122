"""These tests run only with the plugin `cupy_on_cpu`, by `make test-cuda`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

if "cupy_on_cpu" in sys.modules:
    # The program that `make gpu` runs.
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

collect_ignore_glob = [] if "cupy_on_cpu" in sys.modules else ["*"]


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Run the CUDA kernels on CPU tensors; yield the streams and devices that are requested."""
    from ln_array_api_backends.torch import cuda  # not where there is no torch

    from ln_array_api import backend

    requested: list[Any] = []

    @contextmanager
    def current(device: Any) -> Iterator[None]:
        requested.append(device)
        yield

    class Stream:
        ptr = 0

        def __init__(self) -> None:
            requested.append("stream")

    monkeypatch.setattr(cuda, "takes", lambda device: device == "cpu")
    monkeypatch.setattr(cuda, "_current_device", current)
    monkeypatch.setattr(cuda, "_Stream", Stream)
    backend.plans.clear()
    yield requested
    backend.plans.clear()
