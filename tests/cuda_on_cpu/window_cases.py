"""Planes for the kernels over windows, and the results in extended precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
from dtypes import DTYPES

import ln_array_api as ln

Long = np.longdouble
#: In ulp of the largest deviation in a window, of its largest magnitude, of rstd, and of the sum of
#: the magnitudes of the terms of a gradient.
TOLERANCES = {"y": 4, "mean": 4, "rstd": 5, "dx": 8}


def normal(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([*shape]).standard_normal(shape)


def far_from_zero(shape: tuple[int, ...]) -> np.ndarray:
    """Return planes with a mean of 1e6 sigma."""
    return 1e6 + normal(shape)


def an_outlier(shape: tuple[int, ...]) -> np.ndarray:
    """Return planes in which one element is 1e4 sigma."""
    x = normal(shape)
    x[-1, shape[1] // 2, shape[2] // 2] = 1e4
    return x


def an_edge(shape: tuple[int, ...]) -> np.ndarray:
    """Return planes with two levels, which are 1e4 sigma apart along both axes."""
    x = normal(shape)
    x[:, shape[1] // 2 :] += 1e4
    x[:, :, shape[2] // 3 :] -= 1e4
    return x


def window_at(shape: tuple[int, ...], at: tuple[int, ...], size: int) -> tuple[Any, ...]:
    """Return the indices of the window around an element of planes."""
    plane, *places = at
    radius = size // 2
    return plane, *(slice(max(i - radius, 0), i + radius + 1) for i in places)


class Exact:
    """All results of planes, window by window, in two passes, and the units of their errors."""

    def __init__(self, dy: np.ndarray, x: np.ndarray, size: int, epsilon: float) -> None:
        dy, x = dy.astype(Long), x.astype(Long)
        self.y, self.mean, self.rstd, self.dx = (np.empty_like(x) for _ in range(4))
        self.y_unit, self.mean_unit = np.empty_like(x), np.empty_like(x)
        terms, magnitudes = np.zeros_like(x), np.zeros_like(x)
        for at in np.ndindex(*x.shape):
            window = window_at(x.shape, at, size)
            values = x[window]
            offset = (values - x[at]).mean()
            deviations = (values - x[at]) - offset
            rstd = 1 / np.sqrt((deviations**2).mean() + Long(epsilon))
            self.y[at], self.mean[at], self.rstd[at] = -offset * rstd, x[at] + offset, rstd
            self.y_unit[at] = abs(deviations).max() * rstd
            self.mean_unit[at] = abs(values).max()
            weight = dy[at] * rstd / values.size
            of_variance = self.y[at] * rstd * deviations
            terms[window] += weight * (1 + of_variance)
            magnitudes[window] += abs(weight) * (1 + abs(of_variance))
        self.dx = dy * self.rstd - terms
        self.dx_unit = abs(dy * self.rstd) + magnitudes


class Case:
    """Planes of a dtype, windows of a size, and the results of the kernels for them."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        size: int,
        dtype: str = "float32",
        *,
        values: Callable[[tuple[int, ...]], np.ndarray] = normal,
        magnitude: float = 1,
        epsilon: float = 1e-5,
        dy_dtype: str | None = None,
    ) -> None:
        self.shape, self.size, self.epsilon = shape, size, epsilon
        self.x = (magnitude * values(shape)).astype(DTYPES[dtype])
        self.dy = normal(shape[::-1]).reshape(shape).astype(DTYPES[dtype])
        self.dy = self.dy.astype(DTYPES[dy_dtype or dtype])

    def run(self) -> list[np.ndarray]:
        """Return y, mean, rstd and dx, and check that y has the same bits alone."""
        x, options = cupy.asarray(self.x), {"size": self.size}
        forward = ln.local_contrast_norm_forward(x, epsilon=self.epsilon, **options)
        y = ln.local_contrast_norm(x, epsilon=self.epsilon, **options)
        assert y.get().tobytes() == forward.y.get().tobytes()
        gradients = ln.local_contrast_norm_backward(
            cupy.asarray(self.dy), x, *forward[1:], **options
        )
        return [each.get() for each in (*forward, gradients.dx)]

    def errors(self) -> dict[str, float]:
        """Return the largest error of each result, in its unit."""
        exact = Exact(self.dy, self.x, self.size, self.epsilon)
        units = exact.y_unit, exact.mean_unit, exact.rstd, exact.dx_unit
        errors = {}
        for name, result, unit in zip(TOLERANCES, self.run(), units, strict=True):
            acc_dtype = np.promote_types(result.dtype, np.float32)
            smallest = np.finfo(acc_dtype).smallest_normal
            ulp = np.spacing(np.maximum(unit, smallest).astype(acc_dtype)).astype(Long)
            right = getattr(exact, name)
            error = abs(result.astype(Long) - right)
            if result.dtype != acc_dtype:  # one rounding of 16 bits
                bits = {"float16": 11, "bfloat16": 8}[result.dtype.name]
                tiny = {"float16": 2.0**-24, "bfloat16": 2.0**-133}[result.dtype.name]
                error -= (
                    np.maximum(np.exp2(np.floor(np.log2(abs(right) + tiny)) - bits + 1), tiny) / 2
                )
            errors[name] = float((error / ulp).max())  # NaN is larger than all
        return errors

    def check(self) -> None:
        """Check the errors of all results."""
        errors = self.errors()
        assert all(errors[name] <= ulps for name, ulps in TOLERANCES.items()), errors
