"""The measured cases, for all tools."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

#: Numbers of rows and their lengths: from arrays that fit in L1 to arrays larger than all caches.
SHAPES = (
    (8, 64),
    (128, 256),
    (512, 768),
    (4096, 768),
    (4096, 1024),
    (2048, 4096),
    (512, 16384),
    (32768, 1024),
    (16, 262144),
    (65536, 64),
)

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


class Arrays(NamedTuple):
    """The arrays of a call."""

    x: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    dy: np.ndarray


def arrays(shape: tuple[int, int], dtype: str = "float32") -> Arrays:
    """Return random rows with a mean, typical gamma and beta, and dy."""
    rng = np.random.default_rng(0)

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size, np.float32)

    n = shape[1]
    values = (normal(*shape) + 1, 1 + normal(n) / 4, normal(n) / 4, normal(*shape))
    return Arrays(*(each.astype(DTYPES[dtype]) for each in values))


def name(shape: tuple[int, int]) -> str:
    """Return the name of a shape, for example 512x768."""
    return "x".join(map(str, shape))


#: The shapes by their names.
BY_NAME = {name(shape): shape for shape in SHAPES}
