"""Calls with channels: their arrays, and their expected results, for any engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from dtypes import DTYPES
from ln_array_api_conformance import tolerances

from ln_array_api.kernels import channels as generic

Shape = tuple[int, int, int]
NAMES = ("y", "mean", "var", "rstd", "dx", "dgamma", "dbeta", "inference")


class ChannelCase:
    """The arrays of all calls; where `wide`, those that may be wider than x are."""

    def __init__(
        self,
        dtype: str,
        shape: Shape,
        *,
        wide: bool = False,
        mean: float = 3,
        epsilon: float = 1e-5,
        affine: bool = True,
        x: np.ndarray | None = None,
    ) -> None:
        rng = np.random.default_rng(shape)
        draw, c = rng.standard_normal, shape[1]
        parameter = DTYPES["float64" if wide else dtype]
        single = DTYPES[tolerances.ACCUMULATION[dtype]]
        self.dtype, self.epsilon = dtype, epsilon
        self.plain = [
            (mean + draw(shape) if x is None else x).astype(DTYPES[dtype]),
            draw(c).astype(parameter) if affine else None,
            draw(c).astype(parameter) if affine else None,
            draw(shape).astype(DTYPES["float32" if wide and dtype != "float64" else dtype]),
        ]
        self.plain_given = [(mean + draw(c)).astype(single), (draw(c) ** 2).astype(single)]

    def call(self, backend: Any, arrays: Any, given: Any, need: tuple[bool, bool, bool]) -> Any:
        """Run all three calls on arrays of a device."""
        (x, gamma, beta, dy), (given_mean, given_var) = arrays, given
        y, mean, var, rstd = backend.channels_forward(x, gamma, beta, epsilon=self.epsilon)
        gradients = backend.channels_backward(dy, x, mean, rstd, gamma, need=need)
        inference = backend.channels_inference(
            x, given_mean, given_var, gamma, beta, epsilon=self.epsilon
        )
        return [y, mean, var, rstd, *gradients, inference]

    def expected(self) -> list[tuple[np.ndarray, float, np.ndarray]]:
        """Return each expected result, the ulp that it may be off, and their scale."""
        x, gamma, beta, dy = (
            None if each is None else each.astype(np.float64) for each in self.plain
        )
        mean, var = (each.astype(np.float64) for each in self.plain_given)
        forward = generic.channels_forward(x, gamma, beta, epsilon=self.epsilon)
        gradients = generic.channels_backward(dy, x, forward[1], forward[3], gamma)
        inference = generic.channels_inference(x, mean, var, gamma, beta, epsilon=self.epsilon)
        wide, zero = np.ones(x.shape[1]) if gamma is None else abs(gamma), np.zeros(x.shape[1])
        shift = zero if beta is None else abs(beta)

        def largest(values: np.ndarray) -> np.ndarray:
            return np.max(values, axis=(0, 2), keepdims=True)

        def in_channels(values: np.ndarray) -> np.ndarray:
            return values[:, None]

        x_hat = abs((x - in_channels(forward[1])) * in_channels(forward[3]))
        given = abs((x - in_channels(mean)) / np.sqrt(in_channels(var + self.epsilon)))
        size = np.maximum(x_hat, tolerances.MIN_X_HAT)
        terms = largest(abs(dy) * np.maximum(x_hat, 1)) * in_channels(wide * forward[3])
        sizes = [
            (tolerances.Y, np.maximum(largest(x_hat) * in_channels(wide), in_channels(shift))),
            (tolerances.MEAN, largest(abs(x)).reshape(-1)),
            (2 * tolerances.RSTD, forward[2]),
            (tolerances.RSTD, forward[3]),
            (tolerances.DX, terms),
            (tolerances.PARAMETER_GRADIENT, (abs(dy) * size).sum((0, 2))),
            (tolerances.PARAMETER_GRADIENT, abs(dy).sum((0, 2))),
            (tolerances.Y, np.maximum(largest(given) * in_channels(wide), in_channels(shift))),
        ]
        true = (*forward, *gradients, inference)
        return [(each, *size) for each, size in zip(true, sizes, strict=True)]

    def check(self, results: list[Any]) -> None:
        """Check results against the library's contract; 16 bits are rounded once."""
        wide = tolerances.ACCUMULATION[self.dtype]
        for name, actual, (true, ulps, size) in zip(NAMES, results, self.expected(), strict=True):
            assert actual.shape == true.shape
            dtype = actual.dtype.name if actual.itemsize == 2 else wide
            # A variance may overflow although its square root does not.
            held = true <= float(np.finfo(wide).max)
            size = np.broadcast_to(size, true.shape)[held]
            tolerances.assert_close(name, actual[held], true[held], ulps, size, dtype)
            assert np.isinf(actual[~held]).all()
