"""From a call over rows to its plan: the checks, the view of x as rows, the choice of a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._arrays import (
    ACCUMULATION,
    Array,
    creation_device,
    device_of,
    dtype_name,
    dtype_name_or_none,
    has_dtype,
    library_of,
    on_device_of,
    signatures,
    strides_of,
    to_acc_dtype,
)
from ..backend import Choice, choose, plans, requested_backend
from ..kernels import rows
from . import checks
from .cache import cache_plan
from .chunks import CHUNKS_REASON, ChunkCall, ChunksPlan
from .plans import GRADIENTS, RowsPlan, cast_gradient, must_widen
from .specs import Layout, Primitive, RowsSpec
from .views import Grouping, Over, RowsView, checked_view


class Names(NamedTuple):
    """The caller's names of the arguments and results of an operation over rows."""

    x: str = "x"
    dy: str = "dy"
    mean: str = "mean"
    rstd: str = "rstd"
    gamma: str = "gamma"
    beta: str = "beta"
    dx: str = "dx"
    dgamma: str = "dgamma"
    dbeta: str = "dbeta"


NAMES = Names()


@dataclass(frozen=True, eq=False)  # equal to itself only: as part of a key, found by identity
class RowsOperation:
    """What is computed of each row, and the caller's names for it."""

    center: bool = False
    """Whether the mean is subtracted, as in layer norm."""
    by_norm: bool = False
    """Whether rows are divided by their norm, sqrt(sum(x²) + epsilon)."""
    saves_norm: bool = False
    """Whether the norm is saved in place of rstd, with which gradients are more accurate."""
    gradients: tuple[str, ...] = GRADIENTS
    """The gradients that there are, by the names here."""
    needs_gamma: bool = False
    names: Names = NAMES

    def check_need(self, func_name: str, need: Any) -> tuple[str, ...]:
        """Return the names of the wanted gradients as a tuple; raise if one is not allowed."""
        return checks.need(
            func_name, need, tuple(getattr(self.names, each) for each in self.gradients)
        )


#: A plan of a call over rows.
SomePlan: TypeAlias = "RowsPlan | NormPlan"

LAYER = RowsOperation(center=True)
RMS = RowsOperation(gradients=("dx", "dgamma"))


def forward_plan(
    func_name: str,
    operation: RowsOperation,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    over: Any,
    epsilon: float,
    out: Array | None = None,
) -> SomePlan:
    """Return the plan of a forward call, made if there is none; a wrong call raises here.

    `over` is an axis, a sequence of axes, or a `Grouping`.
    """
    if type(over) is not int and not isinstance(over, Grouping):
        over = checks.canonical_axis(func_name, over)
    key: Hashable
    find = signatures
    try:
        key = (
            find[type(x)](x),
            find[type(gamma)](gamma),
            find[type(beta)](beta),
            over,
            epsilon,
            operation,
            requested_backend(),
        )
        plan = plans.get(key)
    except (KeyError, RuntimeError, TypeError):  # a type not seen before, or what is refused below
        key = plan = None
    if plan is None:
        plan = _new_forward_plan(func_name, operation, (x, gamma, beta), over, epsilon)
        if out is not None:
            _check_out(func_name, plan, out, x, gamma, beta)
        cache_plan(key, plan, x)
    if out is not None and not plan.takes(out, x, gamma, beta):
        _check_out(func_name, plan, out, x, gamma, beta)
    return plan


def _check_out(
    func_name: str, plan: SomePlan, out: Array, x: Array, gamma: Array | None, beta: Array | None
) -> None:
    checks.out(func_name, out, x, {"gamma": gamma, "beta": beta})
    plan.remember(out)


def _new_forward_plan(
    func_name: str, operation: RowsOperation, arrays: tuple[Any, ...], over: Over, epsilon: float
) -> SomePlan:
    x, gamma, beta = arrays
    view = _checked_view(func_name, operation, x, gamma, beta, over)
    epsilon = checks.epsilon(func_name, epsilon, x.dtype)
    scaling = _NormScaling(view, operation, gamma) if operation.by_norm else None
    if scaling is not None:
        with on_device_of(x):
            gamma, epsilon = scaling.gamma(x, gamma), epsilon / scaling.sqrt_n**2
    spec = _spec(operation, x, gamma, view)
    spec = spec._replace(beta=dtype_name_or_none(beta), epsilon=epsilon)
    call = ChunkCall(func_name, over, operation.center, epsilon, (), requested_backend())
    plan = _plan("rows_forward", spec, view, call, x, x, gamma, beta)
    return plan if scaling is None else NormPlan(plan, scaling)


def backward_plan(
    func_name: str,
    operation: RowsOperation,
    dy: Array,
    x: Array,
    mean: Array | None,
    rstd: Array,
    gamma: Array | None,
    beta: Array | None,
    over: Any,
    need: tuple[str, ...],
) -> SomePlan:
    """Return the plan of a backward call, made if there is none; a wrong call raises here.

    If the operation saves the norm, `rstd` is that.
    """
    if type(over) is not int and not isinstance(over, Grouping):
        over = checks.canonical_axis(func_name, over)
    if type(need) is not tuple:
        need = operation.check_need(func_name, need)
    key: Hashable
    find = signatures
    try:
        key = (
            find[type(dy)](dy),
            find[type(x)](x),
            find[type(mean)](mean),
            find[type(rstd)](rstd),
            find[type(gamma)](gamma),
            find[type(beta)](beta),
            over,
            need,
            operation,
            requested_backend(),
        )
        plan = plans.get(key)
    except (KeyError, RuntimeError, TypeError):
        key = plan = None
    if plan is None:
        arrays = dy, x, mean, rstd, gamma, beta
        plan = _new_backward_plan(func_name, operation, arrays, over, need)
        cache_plan(key, plan, x)
    return plan


def _new_backward_plan(
    func_name: str,
    operation: RowsOperation,
    arrays: tuple[Any, ...],
    over: Over,
    need: tuple[str, ...],
) -> SomePlan:
    dy, x, mean, rstd, gamma, beta = arrays
    names = operation.names
    need = operation.check_need(func_name, need)
    needed = tuple(each for each in GRADIENTS if getattr(names, each) in need)
    view = _checked_view(func_name, operation, x, gamma, beta, over)
    checks.gradient(func_name, x, names.x, **{names.dy: dy})
    statistics = {names.mean: mean, names.rstd: rstd} if operation.center else {names.rstd: rstd}
    checks.saved(func_name, x, view.statistic, names.x, **statistics)
    scaling = _NormScaling(view, operation, gamma) if operation.by_norm else None
    call = ChunkCall(func_name, over, operation.center, 0.0, needed, requested_backend())

    def plan_for(rstd: Array, gamma: Array | None) -> RowsPlan:
        dtype = dtype_name(x.dtype)
        widens = "dbeta" in needed and must_widen(dtype, gamma, beta)
        spec = _spec(operation, x, gamma, view)
        spec = spec._replace(
            dy=dtype_name_or_none(dy),
            gamma=ACCUMULATION[dtype] if widens else spec.gamma,
            need=("dx" in needed, "dgamma" in needed and gamma is not None, "dbeta" in needed),
        )
        arrays = dy, x, mean, rstd, gamma
        acc_arrays = mean, rstd, x if gamma is None else gamma, beta
        return _plan(
            "rows_backward", spec, view, call, x, *arrays, acc_arrays=acc_arrays, widens=widens
        )

    if scaling is None:
        return plan_for(rstd, gamma)
    with on_device_of(x):
        rstd, gamma = scaling.statistic(rstd), scaling.gamma(x, gamma)
    return NormPlan(plan_for(rstd, gamma), scaling)


class _NormScaling:
    """What makes division by a norm of the division by a root mean square.

    sqrt(sum(x²) + epsilon) is sqrt(n) times the root of the mean of x² plus epsilon / n.
    """

    def __init__(self, view: RowsView, operation: RowsOperation, gamma: Array | None) -> None:
        self.sqrt_n = math.sqrt(max(view.rows[1], 1))
        self._shape, self._saves_norm = view.parameter, operation.saves_norm
        self._casts_gamma = gamma is not None and not has_dtype(
            gamma, ACCUMULATION[dtype_name(gamma.dtype)]
        )

    def gamma(self, x: Array, gamma: Array | None) -> Array:
        """Return gamma / sqrt(n), where an absent gamma is 1."""
        xp = library_of(x).xp
        if gamma is not None:
            return (to_acc_dtype(xp, gamma) if self._casts_gamma else gamma) / self.sqrt_n
        dtype = getattr(xp, ACCUMULATION[dtype_name(x.dtype)])
        return xp.full(self._shape, 1 / self.sqrt_n, dtype=dtype, device=creation_device(x))

    def statistic(self, values: Array) -> Array:
        """Return what is saved from rstd; rstd from what is saved as well."""
        if not self._saves_norm:
            return values
        with np.errstate(all="ignore"):
            return self.sqrt_n / values

    def dgamma(self, dgamma: Array | None, gamma: Array | None) -> Array | None:
        """Return the gradient of gamma from that of gamma / sqrt(n)."""
        if dgamma is None or gamma is None:
            return None
        return cast_gradient(dgamma / self.sqrt_n, gamma)


class NormPlan:
    """A plan whose rows are divided by their norm, by a plan that divides by root mean squares."""

    def __init__(self, plan: RowsPlan, scaling: _NormScaling) -> None:
        self.primitive, self.spec, self.choice = plan.primitive, plan.spec, plan.choice
        self.takes, self.remember = plan.takes, plan.remember
        self._plan, self._scaling = plan, scaling

    def y(
        self, x: Array, gamma: Array | None, beta: None = None, out: Array | None = None
    ) -> Array:
        """Return y in x's shape."""
        return self._plan.y(x, self._scaling.gamma(x, gamma), beta, out)

    def forward(
        self, x: Array, gamma: Array | None, beta: None = None, out: Array | None = None
    ) -> tuple[Array, None, Array]:
        """Return y, no mean, and the norm or rstd."""
        y, _, rstd = self._plan.forward(x, self._scaling.gamma(x, gamma), beta, out)
        return y, None, self._scaling.statistic(rstd)

    def backward(
        self, dy: Array, x: Array, mean: None, saved: Array, gamma: Array | None, beta: None = None
    ) -> tuple[Array | None, Array | None, None]:
        """Return dx, dgamma and no dbeta."""
        scaling = self._scaling
        rstd, scaled = scaling.statistic(saved), scaling.gamma(x, gamma)
        dx, dgamma, _ = self._plan.backward(dy, x, mean, rstd, scaled, beta)
        return dx, scaling.dgamma(dgamma, gamma), None


def _plan(
    primitive: Primitive,
    spec: RowsSpec,
    view: RowsView,
    call: ChunkCall,
    x: Array,
    *arrays: Array | None,
    acc_arrays: tuple[Array | None, ...] = (),
    widens: bool = False,
) -> RowsPlan:
    """Return the plan for x and such arrays, in the order in which the kernel takes them."""
    if library_of(x).lazy:
        choice = generic_choice(primitive, spec, view, CHUNKS_REASON)
        return ChunksPlan(primitive, spec, view, choice, *arrays, call=call)
    if 0 in (spec.groups, spec.repeat):
        choice = generic_choice(primitive, spec, view, "x is empty")
    else:
        dy = view.grouped_strides(strides_of(arrays[0])) if primitive == "rows_backward" else None
        strides = view.grouped_strides(strides_of(x)) or ()
        layout = Layout(view.grouped_shape, view.axes, view.parameter_axes, strides, dy)
        choice = choose(primitive, spec, layout)
        if choice.backend == "generic":
            choice = generic_choice(primitive, spec, view, choice.reason)
    return RowsPlan(primitive, spec, view, choice, *arrays, acc_arrays=acc_arrays, widens=widens)


def generic_choice(primitive: Primitive, spec: RowsSpec, view: RowsView, reason: str) -> Choice:
    """Return the generic kernel, on arrays that keep their axes, with their chunks and shards."""
    kernel: Callable[..., Any]
    if primitive == "rows_forward":
        kernel = partial(rows.forward_over, axes=view.axes, epsilon=spec.epsilon)
    else:
        kernel = partial(
            rows.normalise_backward,
            axes=view.axes,
            parameter_axes=view.parameter_axes,
            need=spec.need,
        )
    return Choice(partial(kernel, center=spec.center), "generic", reason, keeps_axes=True)


def _checked_view(
    func_name: str,
    operation: RowsOperation,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    over: Over,
) -> RowsView:
    """Check x, gamma and beta, and return the view of x as rows."""
    names = operation.names
    parameters = {names.gamma: gamma, names.beta: beta}
    view = checked_view(func_name, over, x, names.x, **parameters)
    if gamma is None and operation.needs_gamma:
        checks.parameter(func_name, names.gamma, gamma, x, view, names.x)
    return view


def _spec(operation: RowsOperation, x: Array, gamma: Array | None, view: RowsView) -> RowsSpec:
    return RowsSpec(
        library=library_of(x).name,
        device=str(device_of(x)),
        shape=view.rows,
        dtype=dtype_name(x.dtype),
        gamma=dtype_name_or_none(gamma),
        beta=None,
        center=operation.center,
        groups=view.groups,
        repeat=view.repeat,
    )
