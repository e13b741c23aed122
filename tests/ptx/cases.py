"""Calls of both passes: inputs of the interpreter and the simulator, and expected results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from dtypes import DTYPES
from ln_array_api_conformance import tolerances

Array = np.ndarray[Any, Any]
EPSILON = 1e-5
NAMES = ("y", "mean", "rstd", "dx", "dgamma", "dbeta")


class Case(NamedTuple):
    """Rows of a shape and dtype, and options; `wide`: parameters and dy have wider dtypes."""

    dtype: str
    m: int
    n: int
    center: bool = True
    groups: int = 1
    repeat: int = 1
    wide: bool = False
    affine: bool = True
    need: tuple[bool, bool, bool] = (True, True, True)
    mean: float = 3.0
    magnitude: float = 1.0

    def __str__(self) -> str:
        unusual = {
            name: value
            for name, value in self._asdict().items()
            if name in self._field_defaults and value != self._field_defaults[name]
        }
        told = [f"{name} {value}" for name, value in unusual.items()]
        return ", ".join([f"{self.dtype} {self.m}x{self.n}", *told])

    @property
    def options(self) -> dict[str, Any]:
        return {"center": self.center, "groups": self.groups, "repeat": self.repeat}

    def arrays(self) -> dict[str, Array | None]:
        """Return x, gamma, beta and dy, which are the same for equal cases."""
        draw = np.random.default_rng([self.m, self.n]).standard_normal
        parameter = DTYPES["float64" if self.wide else self.dtype]
        gradient = DTYPES["float32" if self.wide and self.dtype != "float64" else self.dtype]
        size = self.groups * self.n // self.repeat
        x = self.magnitude * (self.mean + draw((self.m, self.n)))
        gamma, beta, dy = draw(size), draw(size), draw((self.m, self.n))
        return {
            "x": x.astype(DTYPES[self.dtype]),
            "gamma": gamma.astype(parameter) if self.affine else None,
            "beta": beta.astype(parameter) if self.affine and self.center else None,
            "dy": dy.astype(gradient),
        }

    def run(self, backend: Any, on_device: Callable[[Array, str], Any]) -> dict[str, Any]:
        """Run both passes on arrays of the device."""
        x, gamma, beta, dy = (
            None if values is None else on_device(values, name)
            for name, values in self.arrays().items()
        )
        forward = backend.rows_forward(x, gamma, beta, epsilon=EPSILON, **self.options)
        gradients = backend.rows_backward(
            dy, x, *forward[1:], gamma, need=self.need, **self.options
        )
        return dict(zip(NAMES, (*forward, *gradients), strict=True))

    def expected(self) -> dict[str, tuple[Array, float, Array]]:
        """Return each expected result, the ulp that it may be off, and their scale.

        Computed by the definition, in the widest arithmetic that NumPy has.
        """
        x, gamma, beta, dy = (
            None if each is None else each.astype(np.longdouble) for each in self.arrays().values()
        )
        assert x is not None
        assert dy is not None
        rows, columns = np.indices(x.shape)
        places = rows % self.groups * (self.n // self.repeat) + columns // self.repeat
        gammas = np.ones(1) if gamma is None else gamma[places]
        betas = np.zeros(1) if beta is None else beta[places]
        means = x.mean(1, keepdims=True) if self.center else np.zeros((self.m, 1))
        rstd = 1 / np.sqrt(np.mean((x - means) ** 2, 1, keepdims=True) + EPSILON)
        x_hat = (x - means) * rstd
        g = dy * gammas
        mean_g = g.mean(1, keepdims=True) if self.center else np.zeros((self.m, 1))
        fall = x_hat * np.mean(g * x_hat, 1, keepdims=True)
        terms = [np.broadcast_to(abs(each), x.shape) for each in (g, mean_g, fall)]
        size = np.maximum(abs(x_hat), tolerances.MIN_X_HAT if self.center else 0)
        largest = rstd * np.max(terms, (0, 2))[:, None]
        largest_y = np.maximum(abs(x_hat * gammas), abs(betas)).max(1, keepdims=True)

        def over_rows(values: Array) -> Array:
            sums = np.zeros(self.groups * self.n // self.repeat, np.longdouble)
            np.add.at(sums, places, values)
            return sums

        return {
            "y": (x_hat * gammas + betas, tolerances.Y, largest_y),
            "mean": (means, tolerances.MEAN, abs(x).max(1, keepdims=True)),
            "rstd": (rstd, tolerances.RSTD, rstd),
            "dx": ((g - mean_g - fall) * rstd, tolerances.DX, largest),
            "dgamma": (
                over_rows(dy * x_hat),
                tolerances.PARAMETER_GRADIENT,
                over_rows(abs(dy) * size),
            ),
            "dbeta": (over_rows(dy), tolerances.PARAMETER_GRADIENT, over_rows(abs(dy))),
        }


def lengths(launch_config: Any, dtype: str) -> list[int]:
    """Return a length for each block shape of a dtype, neither whole nor aligned."""
    each: dict[Any, int] = {}
    for bit in range(18):
        n = (1 << bit) + (1 << bit) // 3
        indexing = launch_config.ParamIndexing.PER_ELEMENT
        found = (
            launch_config.forward_shape(dtype, n),
            launch_config.backward_shape(dtype, n, indexing),
        )
        each.setdefault(found, n)
    return list(each.values())


def rows(n: int) -> int:
    """Return how many rows of length n a case has: few where these take long."""
    return 5 if n < 20000 else 2


def cases(launch_config: Any) -> list[Case]:
    """Return cases for every kernel with every dtype, and for every option with some."""
    some = [Case(dtype, rows(n), n) for dtype in DTYPES for n in lengths(launch_config, dtype)]
    some += [Case(dtype, rows(n), n, center=False) for dtype in DTYPES for n in (40, 1600, 40000)]
    some += [Case(dtype, 5, n, wide=True) for dtype in ("float16", "float32") for n in (40, 1600)]
    some += [
        Case("float32", 12, n, groups=groups, repeat=repeat)
        for n in (48, 1200)
        for groups, repeat in ((3, 1), (3, 4), (1, 3))
    ]
    some += [
        Case("float32", m, n, need=need)
        for m, n in ((70, 40), (10, 20000))
        for need in ((True, False, False), (False, True, False), (False, False, True))
    ]
    some += [Case("bfloat16", 5, 300, affine=False), Case("float32", 3000, 3)]
    some += [Case("float32", 5, n, mean=mean) for n in (1024, 20000) for mean in (1e4, 1e6)]
    some += [Case("float32", 5, n, magnitude=size) for n in (40, 1600) for size in (1e-30, 1e30)]
    return some
