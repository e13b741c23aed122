"""The shared cases under pytest-benchmark, to compare two revisions of this library.

``pytest benchmarks --benchmark-only --benchmark-autosave``, then ``--benchmark-compare``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import ln_array_api as ln

sys.path.insert(0, str(Path(__file__).parent))

from cases import DTYPES, SHAPES, arrays, name


@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_forward(benchmark: Any, shape: tuple[int, int]) -> None:
    x, gamma, beta, _ = arrays(shape)
    benchmark.group = f"forward {name(shape)}"
    result = benchmark(ln.layer_norm_forward, x, gamma, beta)
    assert result.y.shape == shape


@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_backward(benchmark: Any, shape: tuple[int, int]) -> None:
    x, gamma, beta, dy = arrays(shape)
    _, mean, rstd = ln.layer_norm_forward(x, gamma, beta)
    benchmark.group = f"backward {name(shape)}"
    result = benchmark(ln.layer_norm_backward, dy, x, mean, rstd, gamma)
    assert result.dx.shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(benchmark: Any, dtype: str) -> None:
    x, gamma, beta, _ = arrays((4096, 1024), dtype)
    benchmark.group = f"forward 4096x1024 {dtype}"
    result = benchmark(ln.layer_norm_forward, x, gamma, beta)
    assert result.y.dtype == x.dtype


def test_rms_norm(benchmark: Any) -> None:
    x, gamma, _, _ = arrays((4096, 1024))
    assert benchmark(ln.rms_norm, x, gamma).shape == x.shape
