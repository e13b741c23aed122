"""Calls of the primitives on instances, tangents and powers, and what they should give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import cupy
import numpy as np
from dtypes import DTYPES
from ln_array_api_backends.cupy import backend

from ln_array_api.backend import FamilyPrimitive, FamilySpec

Array = Any
Wide = np.longdouble


class Right(NamedTuple):
    """A result, and the magnitude of the largest term in it."""

    value: Any
    scale: Any


def on_device(values: np.ndarray | None, offset: int = 0) -> Array:
    """Return an array that ends where its memory does, after `offset` elements, or None."""
    if values is None:
        return None
    memory = cupy.empty(values.size + offset, values.dtype)
    memory[offset:] = cupy.asarray(values.reshape(-1))
    return memory[offset:].reshape(values.shape)


def row_max(values: Any) -> Any:
    return np.max(np.abs(values), axis=1, keepdims=True)


def row_sum(values: Any) -> Any:
    return np.sum(values, axis=1, keepdims=True)


class Case(ABC):
    """The arrays x and dy (M, N) of calls, as NumPy arrays and on the device."""

    def __init__(
        self,
        dtype: str,
        m: int,
        n: int,
        *,
        x: np.ndarray | None = None,
        magnitude: float = 1.0,
        mean: float = 0.0,
        dy_magnitude: float = 1.0,
        offset: int = 0,
        wide_dy: bool = False,
        **details: Any,
    ) -> None:
        self.rng = np.random.default_rng([m, n])
        self.dtype, self.offset, self.details = dtype, offset, details
        self.acc_dtype = np.dtype("float64" if dtype == "float64" else "float32")
        plain = magnitude * (mean + self.rng.standard_normal((m, n))) if x is None else x
        self.x = plain.astype(DTYPES[dtype])
        dy_dtype = self.acc_dtype if wide_dy else DTYPES[dtype]
        self.dy = (dy_magnitude * self.rng.standard_normal(self.x.shape)).astype(dy_dtype)
        self.make()

    @abstractmethod
    def make(self) -> None:
        """Make the other arrays."""

    @abstractmethod
    def run(self) -> list[Array]:
        """Return all results."""

    @abstractmethod
    def expected(self, results: list[Array]) -> list[Right]:
        """Return what these should be."""

    def place(self, *arrays: np.ndarray | None) -> list[Array]:
        return [on_device(each, self.offset) for each in arrays]

    def wide(self) -> tuple[Any, Any]:
        return self.dy.astype(Wide), self.x.astype(Wide)

    def call(self, primitive: FamilyPrimitive, *arrays: Array, **details: Any) -> Any:
        spec = FamilySpec("cupy", "0", self.x.shape, self.dtype, **details)
        prepared = backend.prepare_family(primitive, spec)
        assert prepared is not None
        assert prepared[1] == f"CUDA C for {self.dtype}"
        return prepared[0](*arrays)


class Instances(Case):
    """`details`: epsilon."""

    def make(self) -> None:
        self.numbers = self.rng.standard_normal((3, len(self.x), 1)).astype(self.acc_dtype)

    def run(self) -> list[Array]:
        dy, x, *numbers = self.place(self.dy, self.x, *self.numbers)
        mean, residual, var, rstd = self.call("instances_statistics", x, **self.details)
        of_dy = {"dy": self.dy.dtype.name}
        return [
            *(mean, residual, var, rstd),
            self.call("instances_affine", x, mean, residual, rstd, *numbers[1:]),
            *self.call("instances_sums", dy, x, mean, rstd, **of_dy),
            self.call("instances_gradient", dy, x, mean, residual, rstd, *numbers, **of_dy),
        ]

    def expected(self, results: list[Array]) -> list[Right]:
        dy, x = self.wide()
        n, weight, scale, shift = x.shape[1], *self.numbers.astype(Wide)
        mean, _, _, given = (each.get().astype(Wide) for each in results[:4])
        # Exact where a longdouble mean would not be.
        residual = row_sum(x - mean) / n
        deviation = (x - mean) - residual
        var = row_sum(deviation**2) / n
        rstd = 1 / np.sqrt(var + Wide(self.details.get("epsilon", 0.0)))
        x_hat, spread = deviation * given, row_max(deviation)
        weights = np.abs(dy) * np.maximum(np.abs(x_hat), 1 / 8)
        terms = dy * weight, x_hat * scale, shift
        largest = row_max(np.maximum(np.maximum(*map(np.abs, terms[:2])), np.abs(shift)))
        return [
            Right(mean + residual, row_max(x)),
            Right(residual, spread),
            Right(var, var),
            Right(rstd, rstd),
            Right(x_hat * scale + shift, np.maximum(row_max(x_hat * scale), np.abs(shift))),
            Right(residual, spread),
            Right(row_sum(dy), row_sum(np.abs(dy))),
            Right(row_sum(dy * x_hat), row_sum(weights)),
            Right(given * sum(terms), given * largest),
        ]


class Tanh(Case):
    """`details`: groups, repeat, alpha, whether there are gamma and beta, in a wider dtype."""

    def make(self) -> None:
        self.groups, self.repeat = (self.details.get(each, 1) for each in ("groups", "repeat"))
        parameter = DTYPES["float64" if self.details.get("wide") else self.dtype]
        count = self.groups * self.x.shape[1] // self.repeat
        self.gamma, self.beta = (
            self.rng.standard_normal(count).astype(parameter)
            if self.details.get(name, True)
            else None
            for name in ("gamma", "beta")
        )
        self.alpha = np.asarray(self.details.get("alpha", 0.7), parameter)

    def run(self, need: tuple[bool, ...] = (True,) * 4) -> list[Array]:
        dy, x, alpha, gamma, beta = self.place(self.dy, self.x, self.alpha, self.gamma, self.beta)
        names = ("alpha", "gamma", "beta")
        dtypes = {
            name: None if each is None else each.dtype.name
            for name, each in zip(names, (alpha, gamma, beta), strict=True)
        }
        shape = {"groups": self.groups, "repeat": self.repeat}
        y = self.call("tanh_forward", x, alpha, gamma, beta, **dtypes, **shape)
        of_dy = dtypes | {"beta": None, "dy": self.dy.dtype.name, "need": need}
        return [y, *self.call("tanh_backward", dy, x, alpha, gamma, **of_dy, **shape)]

    def expected(self, results: list[Array]) -> list[Right]:
        dy, x = self.wide()
        (m, n), parameters = x.shape, self.groups * x.shape[1] // self.repeat
        index = np.arange(m)[:, None] % self.groups * (n // self.repeat)
        index = index + np.arange(n) // self.repeat
        gamma, beta = (
            absent if each is None else each.astype(Wide)[index]
            for each, absent in ((self.gamma, Wide(1)), (self.beta, Wide(0)))
        )
        alpha, g = self.alpha.astype(Wide), dy * gamma
        t, slope = np.tanh(alpha * x), 1 / np.cosh(alpha * x) ** 2
        dx, terms = g * alpha * slope, g * x * slope

        def of_parameters(values: Any) -> Right:
            sums, sizes = np.zeros((2, parameters), Wide)
            np.add.at(sums, index, values)
            np.add.at(sizes, index, np.abs(values))
            return Right(sums, sizes)

        return [
            Right(t * gamma + beta, np.maximum(np.abs(t * gamma), np.abs(beta))),
            Right(dx, row_max(dx)),
            Right(np.sum(terms), np.sum(np.abs(terms))),
            of_parameters(dy * t),
            of_parameters(dy),
        ]


class Powers(Case):
    """`details`: exponent, epsilon."""

    def make(self) -> None:
        """There are none."""

    def run(self) -> list[Array]:
        dy, x = self.place(self.dy, self.x)
        y, norm = self.call("powers_forward", x, **self.details)
        exponent = self.details["exponent"]
        backward = {"exponent": exponent, "dy": self.dy.dtype.name}
        return [y, norm, self.call("powers_backward", dy, x, norm, **backward)]

    def expected(self, results: list[Array]) -> list[Right]:
        dy, x = self.wide()
        alpha, epsilon = (Wide(self.details[each]) for each in ("exponent", "epsilon"))
        base = row_max(x)
        base[base == 0] = 1
        v = np.sign(x) * (np.abs(x) / base) ** alpha
        squares, log_power = row_sum(v * v), 2 * alpha * np.log(base)
        with np.errstate(all="ignore"):
            y = v / np.sqrt(squares + (epsilon * np.exp(-log_power) if epsilon else 0))
            log_norm = np.logaddexp(np.log(squares) + log_power, np.log(epsilon)) / 2
            norm = np.exp(log_norm)
            slope = np.where(x == 0, 0 if alpha != 1 else 1 / norm, alpha * y / x)
        dx = (dy - y * row_sum(dy * y)) * slope
        terms = (np.abs(dy) + np.abs(y) * row_sum(np.abs(dy * y))) * slope
        return [Right(y, row_max(y)), Right(norm, norm), Right(dx, row_max(terms))]


def launch_everything(dtype: str) -> None:
    """Launch every kernel for x of a dtype, with a few partial results and with many."""
    for n in (70, 4200):
        Instances(dtype, 3, n, epsilon=1e-5).run()
        for exponent in (0.5, 3.0):
            Powers(dtype, 3, n, exponent=exponent, epsilon=1e-12).run()
    Tanh(dtype, 70, 9).run()
    Tanh(dtype, 70, 9).run(need=(True, False, False, False))
    Tanh(dtype, 70, 9, gamma=False, beta=False).run(need=(True, False, False, False))
