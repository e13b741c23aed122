"""The values and the lengths that operations are tested on."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .libraries import DTYPES

Values = Callable[[np.random.Generator, int, int], np.ndarray]


def _normal(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return rng.standard_normal((m, n))


def _offset(ratio: float) -> Values:
    return lambda rng, m, n: ratio + rng.standard_normal((m, n))


def _times(factor: float) -> Values:
    return lambda rng, m, n: factor * rng.standard_normal((m, n))


def _outlier(place: int) -> Values:
    def values(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
        x = rng.standard_normal((m, n))
        x[:, place] = 1e4
        return x

    return values


#: Rows by name. Each is made in float64 and rounded to the dtype under test, and the reference is
#: computed from the rounded values.
VALUES: dict[str, Values] = {
    "normal": _normal,
    "mean 100 sigma": _offset(1e2),
    "mean 1e4 sigma": _offset(1e4),
    "mean 1e6 sigma": _offset(1e6),
    "first an outlier": _outlier(0),
    "last an outlier": _outlier(-1),
    "an edge": lambda rng, m, n: rng.standard_normal((m, n)) + 1e4 * (np.arange(n) >= n // 2),
    "lognormal": lambda rng, m, n: rng.lognormal(0.0, 2.0, (m, n)),
    "ramp": lambda rng, m, n: np.linspace(0.0, 1.0, m * n).reshape(m, n),
    "two values": lambda rng, m, n: np.where(rng.random((m, n)) < 0.5, 1.0, 1.0 + 2**-7),
    "1e-30": _times(1e-30),
    "1e-15": _times(1e-15),
    "1e15": _times(1e15),
    "1e30": _times(1e30),
    "1e-250": _times(1e-250),
    "1e250": _times(1e250),
}

#: Those that ask the most of an operation that runs on kernels which are tested on all.
EXTREME = (
    "mean 1e4 sigma",
    "mean 1e6 sigma",
    "last an outlier",
    "an edge",
    "1e-30",
    "1e30",
    "1e250",
)

#: Those that a dtype cannot hold.
BEYOND = {
    "float16": {"mean 1e6 sigma", "1e-30", "1e-15", "1e15", "1e30", "1e-250", "1e250"},
    "bfloat16": {"1e-250", "1e250"},
    "float32": {"1e-250", "1e250"},
    "float64": set[str](),
}

#: Inputs besides x, by name, such as a network might have learned.
PARAMETERS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Any]] = {
    "gamma": lambda rng, shape: 1 + 0.3 * rng.standard_normal(shape),
    "beta": lambda rng, shape: 0.5 * rng.standard_normal(shape),
    "mean": lambda rng, shape: rng.standard_normal(shape),
    "var": lambda rng, shape: rng.lognormal(0.0, 1.0, shape),
    "running_mean": lambda rng, shape: rng.standard_normal(shape),
    "running_var": lambda rng, shape: rng.lognormal(0.0, 1.0, shape),
    "g": lambda rng, shape: 1 + 0.3 * rng.standard_normal(shape),
    "rho": lambda rng, shape: rng.uniform(0, 1, shape),
    "mean_weights": lambda rng, shape: rng.standard_normal(shape),
    "var_weights": lambda rng, shape: rng.standard_normal(shape),
    "alpha": lambda rng, shape: 0.5 + 0.1 * rng.standard_normal(shape),
}

#: Row lengths: 1, powers of two, one off them, primes, and what models use.
LENGTHS = (1, 2, 3, 8, 65, 384, 1000, 4096)
LONG = (1 << 17, 1 << 20)


def generator(*names: object) -> np.random.Generator:
    """Return random numbers that depend only on these names."""
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def rows(values: str, dtype: str, m: int, n: int) -> np.ndarray:
    """Return rows of the given kind, rounded to a dtype."""
    rng = generator(values, m, n)
    return VALUES[values](rng, m, n).astype(DTYPES[dtype])
