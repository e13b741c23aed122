"""The other operations on NumPy arrays: images for what has channels, else rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

import ln_array_api as ln

IMAGES = (16, 64, 56, 56)
_C = IMAGES[1]
_rng = np.random.default_rng(0)


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


#: What each operation takes besides x, and by name.
OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...], dict[str, Any]]] = {
    "batch_norm": (ln.batch_norm_forward, (_ones(_C), _ones(_C)), {}),
    "group_norm": (ln.group_norm, (_ones(_C), _ones(_C)), {"num_groups": 8}),
    "instance_norm": (ln.instance_norm, (_ones(_C), _ones(_C)), {}),
    "batch_instance_norm": (ln.batch_instance_norm, (0.5 * _ones(_C), _ones(_C), _ones(_C)), {}),
    "switchable_norm": (ln.switchable_norm, (_ones(3), _ones(3), _ones(_C), _ones(_C)), {}),
    "dynamic_tanh": (ln.dynamic_tanh, (0.5 * _ones(), _ones(_C), _ones(_C)), {"axis": 1}),
    "weight_norm": (ln.weight_norm, (_ones(IMAGES[0]),), {}),
    "weight_standardization": (ln.weight_standardization, (), {}),
    "power_norm": (ln.power_norm, (), {}),
    "local_contrast_norm": (ln.local_contrast_norm, (), {"size": 9}),
}


class Family:
    """Time of forward."""

    params: ClassVar = list(OPERATIONS)
    param_names: ClassVar = ["operation"]

    def setup(self, operation: str) -> None:
        self.function, self.others, self.options = OPERATIONS[operation]
        self.x = 1 + _rng.standard_normal(IMAGES, np.float32)
        self.time_forward(operation)

    def time_forward(self, operation: str) -> None:
        self.function(self.x, *self.others, **self.options)
