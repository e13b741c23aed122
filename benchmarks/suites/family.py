"""The other operations on NumPy arrays: on images if they have channels, otherwise on rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np

import ln_array_api as ln

IMAGES = (16, 64, 56, 56)
_C = IMAGES[1]


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


#: The arguments of each operation except x: positional ones, and options.
OPERATIONS: dict[str, tuple[tuple[np.ndarray, ...], dict[str, Any]]] = {
    "batch_norm": ((_ones(_C), _ones(_C)), {}),
    "group_norm": ((_ones(_C), _ones(_C)), {"num_groups": 8}),
    "instance_norm": ((_ones(_C), _ones(_C)), {}),
    "batch_instance_norm": ((0.5 * _ones(_C), _ones(_C), _ones(_C)), {}),
    "switchable_norm": ((_ones(3), _ones(3), _ones(_C), _ones(_C)), {}),
    "dynamic_tanh": ((0.5 * _ones(), _ones(_C), _ones(_C)), {"axis": 1}),
    "weight_norm": ((_ones(IMAGES[0]),), {}),
    "weight_standardization": ((), {}),
    "power_norm": ((), {}),
    "local_contrast_norm": ((), {"size": 9}),
}


def calls_of(operation: str) -> dict[str, Callable[[], Any]]:
    """Forward and backward of an operation on images."""
    rng = np.random.default_rng(0)
    x, dy = 1 + rng.standard_normal(IMAGES, np.float32), rng.standard_normal(IMAGES, np.float32)
    others, options = OPERATIONS[operation]
    forward = partial(getattr(ln, f"{operation}_forward"), x, *others, **options)
    saved = [each for each in forward()[1:] if each is not None]
    backward = getattr(ln, f"{operation}_backward")
    return {
        "forward": forward,
        "backward": partial(backward, dy, x, *saved, *others, **options),
    }


class Family:
    """Time of forward and backward."""

    params: ClassVar = list(OPERATIONS)
    param_names: ClassVar = ["operation"]

    def setup(self, operation: str) -> None:
        self.calls = calls_of(operation)
        self.time_backward(operation)

    def time_forward(self, operation: str) -> None:
        self.calls["forward"]()

    def time_backward(self, operation: str) -> None:
        self.calls["backward"]()
