"""Calls whose kernel gets another gamma, or gives another statistic, than the caller."""

from __future__ import annotations

import math

import numpy as np

from .._arrays import (
    ACCUMULATION,
    Array,
    creation_device,
    dtype_name,
    has_dtype,
    library_of,
    on_device_of,
    to_acc_dtype,
)
from . import checks
from .plans import RowsPlan, cast_gradient
from .views import RowsView


class Scaling:
    """What a call computes from the caller's gamma and statistic, before and after its kernel."""

    #: By what the caller's epsilon is divided.
    epsilon_divisor = 1

    def gamma(self, x: Array, gamma: Array | None) -> Array:
        """Return gamma as the kernel gets it."""
        raise NotImplementedError

    def statistic(self, values: Array) -> Array:
        """Return what is saved from rstd; rstd from what is saved as well."""
        return values

    def gradient(self, dgamma: Array) -> Array:
        """Return the gradient of the caller's gamma from that of the kernel's."""
        return dgamma


class GammaOffset(Scaling):
    """A number that is added to gamma."""

    def __init__(self, offset: float) -> None:
        self._offset = offset

    def gamma(self, x: Array, gamma: Array | None) -> Array:
        acc_dtype = getattr(library_of(x).xp, ACCUMULATION[dtype_name(x.dtype)])
        return library_of(x).xp.astype(gamma, acc_dtype, copy=False) + self._offset


def gamma_offset_of(func_name: str, gamma: Array | None, offset: float) -> GammaOffset | None:
    """Check the option `gamma_offset`; return what adds it to gamma, unless it is 0."""
    number = checks.real(func_name, "gamma_offset", offset)
    if number == 0:
        return None
    if gamma is None:
        raise ValueError(f"{func_name}: gamma_offset={offset!r} is added to gamma, which is absent")
    return GammaOffset(number)


def with_offset(func_name: str, x: Array, gamma: Array | None, offset: float) -> Array | None:
    """Return gamma + offset in the accumulation dtype of x; gamma itself where the offset is 0."""
    if type(offset) is float and offset == 0:  # in the most frequent call, without a check
        return gamma
    scaling = gamma_offset_of(func_name, gamma, offset)
    if scaling is None:
        return gamma
    for name, value in (("x", x), ("gamma", gamma)):
        checks.array(func_name, name, value)
    checks.same_library(func_name, "gamma", gamma, x)
    with on_device_of(x):
        return scaling.gamma(x, gamma)


class NormScaling(Scaling):
    """What makes division by a norm of the division by a root mean square.

    sqrt(sum(x²) + epsilon) is sqrt(n) times the root of the mean of x² plus epsilon / n.
    """

    def __init__(self, view: RowsView, gamma: Array | None, *, saves_norm: bool) -> None:
        self.epsilon_divisor = max(view.rows[1], 1)
        self._sqrt_n = math.sqrt(self.epsilon_divisor)
        self._shape, self._saves_norm = view.parameter, saves_norm
        self._casts_gamma = gamma is not None and not has_dtype(
            gamma, ACCUMULATION[dtype_name(gamma.dtype)]
        )

    def gamma(self, x: Array, gamma: Array | None) -> Array:
        """Return gamma / sqrt(n), where an absent gamma is 1."""
        xp = library_of(x).xp
        if gamma is not None:
            return (to_acc_dtype(xp, gamma) if self._casts_gamma else gamma) / self._sqrt_n
        dtype = getattr(xp, ACCUMULATION[dtype_name(x.dtype)])
        return xp.full(self._shape, 1 / self._sqrt_n, dtype=dtype, device=creation_device(x))

    def statistic(self, values: Array) -> Array:
        if not self._saves_norm:
            return values
        with np.errstate(all="ignore"):
            return self._sqrt_n / values

    def gradient(self, dgamma: Array) -> Array:
        return dgamma / self._sqrt_n


class ScaledPlan:
    """A plan of a kernel that gets another gamma, or gives another statistic, than the caller."""

    def __init__(self, plan: RowsPlan, scaling: Scaling) -> None:
        self.primitive, self.spec, self.choice = plan.primitive, plan.spec, plan.choice
        self.takes, self.remember = plan.takes, plan.remember
        self._plan, self._scaling = plan, scaling

    def y(self, x: Array, gamma: Array | None, *others: Array | None) -> Array:
        """Return y in x's shape."""
        return self._plan.y(x, self._scaling.gamma(x, gamma), *others)

    def forward(
        self, x: Array, gamma: Array | None, *others: Array | None
    ) -> tuple[Array, Array | None, Array]:
        """Return y, the mean, and what is saved of rstd."""
        y, mean, rstd = self._plan.forward(x, self._scaling.gamma(x, gamma), *others)
        return y, mean, self._scaling.statistic(rstd)

    def backward(
        self,
        dy: Array,
        x: Array,
        mean: Array | None,
        saved: Array,
        gamma: Array | None,
        beta: Array | None = None,
        where: Array | None = None,
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Return dx, dgamma and dbeta."""
        rstd, scaled = self._scaling.statistic(saved), self._scaling.gamma(x, gamma)
        dx, dgamma, dbeta = self._plan.backward(dy, x, mean, rstd, scaled, beta, where)
        if dgamma is None or gamma is None:
            dgamma = None
        else:
            dgamma = cast_gradient(self._scaling.gradient(dgamma), gamma)
        return dx, dgamma, cast_gradient(dbeta, x, gamma, beta)
