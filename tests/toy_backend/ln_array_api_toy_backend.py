"""A third-party backend: layer norm's forward pass on NumPy arrays, computed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np


class ToyBackend:
    """Accepts one primitive, for dtypes narrower than float64."""

    def can_run(self, primitive: str, spec: Any) -> bool:
        return spec.dtype != "float64" and spec.groups == spec.repeat == 1

    def rows_forward(
        self,
        x: np.ndarray,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        *,
        epsilon: float,
        center: bool,
        groups: int,
        repeat: int,
        span: int,
        out: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        with np.errstate(all="ignore"):
            d, mean = x.astype(np.float64), None
            n = x.shape[1] or np.nan
            if center:
                mean = d.sum(axis=1, keepdims=True) / n
                constant = (x == x[:, :1]).all(axis=1, keepdims=True)
                mean = np.where(constant, d[:, :1], mean) if x.shape[1] else mean
                d -= mean
            rstd = 1 / np.sqrt((d * d).sum(axis=1, keepdims=True) / n + epsilon)
            y = d * rstd
            if gamma is not None:
                y *= gamma
            if beta is not None:
                y += beta
            result = np.empty(x.shape, x.dtype) if out is None else out
            result[...] = y
            mean = None if mean is None else mean.astype(np.float32)
            return result, mean, rstd.astype(np.float32)


backend = ToyBackend()
