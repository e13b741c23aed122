"""Operations, inputs and a formula for tests of torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ln_array_api as ln

torch = pytest.importorskip("torch", reason="torch is not installed")


DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


#: Functions of x, gamma and beta, each with the length of its parameters for a shape of x.
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[Any], int]]] = {
    "layer": (ln.layer_norm_forward, lambda shape: shape[-1]),
    "rms": (lambda x, g, b: ln.rms_norm_forward(x, g), lambda shape: shape[-1]),
    "group": (lambda *a: ln.group_norm_forward(*a, num_groups=2), lambda shape: shape[1]),
    "instance": (ln.instance_norm_forward, lambda shape: shape[1]),
    "batch": (ln.batch_norm_forward, lambda shape: shape[1]),
}


NAMES = [*FUNCTIONS]


def call(name: str, *arrays: Any) -> Any:
    return FUNCTIONS[name][0](*arrays)


def values(name: str, shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> list[Any]:
    """Return x, gamma, beta and dy as NumPy arrays."""
    rng, n = np.random.default_rng(seed), FUNCTIONS[name][1](shape)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return [rng.standard_normal(each).astype(kind) for each in (shape, (n,), (n,), shape)]


def tensor(x: np.ndarray, **options: Any) -> Any:
    dtype = DTYPES[x.dtype.name]
    x = x.view(np.int16) if dtype is torch.bfloat16 else x
    return torch.from_numpy(x.copy()).view(dtype).requires_grad_(bool(options.get("grad")))


def bits(x: Any) -> Any:
    """Return the elements of an array or a tensor as integers."""
    if isinstance(x, torch.Tensor):
        x = x.detach()
        x = x.view(torch.int16).numpy() if x.dtype is torch.bfloat16 else x.numpy()
    return np.ascontiguousarray(x).view(f"u{x.itemsize}")


def plain(x: Any, gamma: Any, beta: Any) -> Any:
    """Compute layer norm by its formula."""
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d * d).mean(-1, keepdim=True) + 1e-5) * gamma + beta


def doubles(*shapes: tuple[int, ...]) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(each, generator=generator, dtype=torch.float64) for each in shapes]
