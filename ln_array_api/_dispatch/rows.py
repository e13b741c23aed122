"""From a call over rows to its plan: the checks, the view of x as rows, the choice of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from .._arrays import (
    ACCUMULATION,
    Array,
    device_of,
    dtype_name,
    dtype_name_or_none,
    library_of,
    on_device_of,
    signatures,
    strides_of,
)
from ..backend import Choice, choose, plans, requested_backend
from ..kernels import rows
from . import checks, parameters
from .cache import cache_plan
from .chunks import CHUNKS_REASON, ChunkCall, ChunksPlan
from .plans import GRADIENTS, RowsPlan, must_widen
from .scaled import NormScaling, ScaledPlan, Scaling, gamma_offset_of
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
    broadcasts: bool = False
    """Whether parameters may have the rank of x."""
    names: Names = NAMES

    def check_need(self, func_name: str, need: Any) -> tuple[str, ...]:
        """Return the names of the wanted gradients as a tuple; raise if one is not allowed."""
        return checks.need(
            func_name, need, tuple(getattr(self.names, each) for each in self.gradients)
        )


#: A plan of a call over rows.
SomePlan: TypeAlias = "RowsPlan | ScaledPlan"

LAYER = RowsOperation(center=True, broadcasts=True)
RMS = RowsOperation(gradients=("dx", "dgamma"), broadcasts=True)


def forward_plan(
    func_name: str,
    operation: RowsOperation,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    over: Any,
    epsilon: float,
    out: Array | None = None,
    where: Array | None = None,
    gamma_offset: float = 0.0,
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
            find[type(where)](where),
            over,
            epsilon,
            gamma_offset,
            operation,
            requested_backend(),
        )
        plan = plans.get(key)
    except (KeyError, RuntimeError, TypeError):  # a type not seen before, or what is refused below
        key = plan = None
    if plan is None:
        arrays = x, gamma, beta, where
        plan = _new_forward_plan(func_name, operation, arrays, over, epsilon, gamma_offset)
        if out is not None:
            _check_out(func_name, plan, out, x, gamma=gamma, beta=beta, where=where)
        cache_plan(key, plan, x)
    if out is not None and not plan.takes(out, x, gamma, beta):
        _check_out(func_name, plan, out, x, gamma=gamma, beta=beta, where=where)
    return plan


def _check_out(
    func_name: str, plan: SomePlan, out: Array, x: Array, **others: Array | None
) -> None:
    checks.out(func_name, out, x, others)
    plan.remember(out)


def _new_forward_plan(
    func_name: str,
    operation: RowsOperation,
    arrays: tuple[Any, ...],
    over: Over,
    epsilon: float,
    gamma_offset: float,
) -> SomePlan:
    x, gamma, beta, where = arrays
    view = _checked_view(func_name, operation, x, gamma, beta, over)
    epsilon = checks.epsilon(func_name, epsilon, x.dtype)
    if where is not None:
        checks.mask(func_name, where, x)
    scaling = _scaling(func_name, operation, view, gamma, gamma_offset)
    if scaling is not None:
        with on_device_of(x):
            gamma, epsilon = scaling.gamma(x, gamma), epsilon / scaling.epsilon_divisor
    spec = _spec(operation, x, gamma, view)
    spec = spec._replace(beta=dtype_name_or_none(beta), epsilon=epsilon, where=where is not None)
    call = ChunkCall(func_name, over, operation.center, epsilon, (), requested_backend())
    plan = _plan("rows_forward", spec, view, call, x, x, gamma, beta)
    return plan if scaling is None else ScaledPlan(plan, scaling)


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
    where: Array | None = None,
    gamma_offset: float = 0.0,
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
            find[type(where)](where),
            over,
            need,
            gamma_offset,
            operation,
            requested_backend(),
        )
        plan = plans.get(key)
    except (KeyError, RuntimeError, TypeError):
        key = plan = None
    if plan is None:
        arrays = dy, x, mean, rstd, gamma, beta, where
        plan = _new_backward_plan(func_name, operation, arrays, over, need, gamma_offset)
        cache_plan(key, plan, x)
    return plan


def _new_backward_plan(
    func_name: str,
    operation: RowsOperation,
    arrays: tuple[Any, ...],
    over: Over,
    need: tuple[str, ...],
    gamma_offset: float,
) -> SomePlan:
    dy, x, mean, rstd, gamma, beta, where = arrays
    names = operation.names
    need = operation.check_need(func_name, need)
    needed = tuple(each for each in GRADIENTS if getattr(names, each) in need)
    view = _checked_view(func_name, operation, x, gamma, beta, over)
    checks.gradient(func_name, x, names.x, **{names.dy: dy})
    statistics = {names.mean: mean, names.rstd: rstd} if operation.center else {names.rstd: rstd}
    checks.saved(func_name, x, view.statistic, names.x, **statistics)
    if where is not None:
        checks.mask(func_name, where, x)
    scaling = _scaling(func_name, operation, view, gamma, gamma_offset)
    call = ChunkCall(func_name, over, operation.center, 0.0, needed, requested_backend())

    def plan_for(rstd: Array, gamma: Array | None) -> RowsPlan:
        dtype = dtype_name(x.dtype)
        sums_further = view.expanded is not None
        widens = (sums_further or "dbeta" in needed) and must_widen(
            dtype, gamma, beta, sums_further=sums_further
        )
        spec = _spec(operation, x, gamma, view)
        spec = spec._replace(
            dy=dtype_name_or_none(dy),
            gamma=ACCUMULATION[dtype] if widens else spec.gamma,
            need=("dx" in needed, "dgamma" in needed and gamma is not None, "dbeta" in needed),
            where=where is not None,
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
    return ScaledPlan(plan_for(rstd, gamma), scaling)


def _scaling(
    func_name: str,
    operation: RowsOperation,
    view: RowsView,
    gamma: Array | None,
    gamma_offset: float,
) -> Scaling | None:
    """Return what a call computes from the caller's gamma and statistic, if anything."""
    if operation.by_norm:
        return NormScaling(view, gamma, saves_norm=operation.saves_norm)
    return gamma_offset_of(func_name, gamma, gamma_offset)


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
    given = {names.gamma: gamma, names.beta: beta}
    if operation.broadcasts:
        view = checked_view(func_name, over, x, names.x)
        return parameters.checked(func_name, view, x, **given)
    view = checked_view(func_name, over, x, names.x, **given)
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
        span=view.span,
    )
