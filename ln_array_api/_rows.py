"""From a call to a kernel over rows: the checks, the rows view, the plan.

A plan is made once for each kind of call (dtypes, shapes, devices, layouts, options) and kept. It
checks the arguments when it is made, so a repeated call is one look-up, then the kernel.
"""

from __future__ import annotations

from collections.abc import Hashable

from . import _check
from ._arrays import (
    ACCUMULATION,
    Array,
    device_of,
    dtype_name,
    dtype_name_or_none,
    library_of,
    signatures,
    strides_of,
)
from ._chunks import ChunkCall
from ._plans import (
    GRADIENTS,
    AxesPlan,
    ChunksPlan,
    RowsPlan,
    SomePlan,
    generic_choice,
    must_widen,
    whole,
)
from ._views import AxesSpec, RowsView, canonical, name_of, view_of
from .backend import (
    Layout,
    Primitive,
    RowsSpec,
    cache_plan,
    choose,
    plans,
    requested_backend,
)


def _plan(
    primitive: Primitive,
    spec: RowsSpec,
    view: RowsView,
    call: ChunkCall,
    x: Array,
    *others: Array | None,
    acc_arrays: tuple[Array | None, ...] = (),
    widens: bool = False,
) -> SomePlan:
    """The plan for calls with such arrays, of which dy is the next after x where there is one."""
    if library_of(x).lazy:
        return ChunksPlan(primitive, spec, view, call)
    if 0 in (spec.groups, spec.repeat):
        return AxesPlan(primitive, spec, view, generic_choice(primitive, spec, view, "x is empty"))
    dy = view.grouped_strides(strides_of(others[0])) if primitive == "rows_backward" else None
    strides = view.grouped_strides(strides_of(x)) or ()
    layout = Layout(view.grouped_shape, view.axes, view.parameter_axes, strides, dy)
    choice = choose(primitive, spec, layout)
    if choice.backend == "generic":
        choice = generic_choice(primitive, spec, view, choice.reason)
    if choice.keeps_axes:
        return whole(AxesPlan(primitive, spec, view, choice, widens=widens))
    return RowsPlan(primitive, spec, view, choice, x, *others, acc_arrays=acc_arrays, widens=widens)


def forward_plan(
    func_name: str,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: AxesSpec,
    epsilon: float,
    out: Array | None,
    center: bool,
) -> SomePlan:
    """The plan of a forward call, made if there is none; a wrong call raises here."""
    if type(axis) is not int:
        axis = canonical(func_name, axis)
    key: Hashable
    find = signatures
    try:
        key = (
            find[type(x)](x),
            find[type(gamma)](gamma),
            find[type(beta)](beta),
            axis,
            epsilon,
            center,
            requested_backend(),
        )
        plan = plans.get(key)
    except (
        KeyError,
        RuntimeError,
        TypeError,
    ):  # a type not seen before, or what the checks below refuse
        key = plan = None
    if plan is None:
        view, spec = _checked(func_name, x, gamma, axis, center)
        epsilon = _check.epsilon(func_name, epsilon, x.dtype)
        if beta is not None:
            _parameter("beta", func_name, beta, x, view)
        spec = spec._replace(beta=dtype_name_or_none(beta), epsilon=epsilon)
        call = ChunkCall(func_name, axis, center, epsilon, (), requested_backend())
        plan = _plan("rows_forward", spec, view, call, x, gamma, beta)
        cache_plan(key, plan, x)
    if out is not None and not plan.takes(out, x, gamma, beta):
        _check.out(func_name, out, x, {"gamma": gamma, "beta": beta})
        plan.remember(out)
    return plan


def backward_plan(
    func_name: str,
    dy: Array,
    x: Array,
    mean: Array | None,
    rstd: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: AxesSpec,
    need: tuple[str, ...],
    center: bool,
) -> SomePlan:
    """The plan of a backward call, made if there is none; a wrong call raises here."""
    if type(axis) is not int:
        axis = canonical(func_name, axis)
    if type(need) is not tuple:
        need = _check.need(func_name, need, GRADIENTS[: 2 + center])
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
            axis,
            need,
            center,
            requested_backend(),
        )
        plan = plans.get(key)
    except (KeyError, RuntimeError, TypeError):
        key = plan = None
    if plan is None:
        _check.need(func_name, need, GRADIENTS[: 2 + center])
        view, spec = _checked(func_name, x, gamma, axis, center)
        shape_text = f"the shape of {view.x_name}"
        _check.operand(func_name, "dy", dy, x, view.shape, shape_text, x_name=view.x_name)
        statistics = {"mean": mean, "rstd": rstd} if center else {"rstd": rstd}
        for name, values in statistics.items():
            shape_text = f"as {func_name.removesuffix('_backward')}_forward gives it"
            dtype = ACCUMULATION[spec.dtype]
            _check.operand(
                func_name, name, values, x, view.statistic, shape_text, dtype, x_name=view.x_name
            )
        if beta is not None:
            _parameter("beta", func_name, beta, x, view)
        widens = "dbeta" in need and must_widen(spec.dtype, gamma, beta)
        spec = spec._replace(
            dy=dtype_name_or_none(dy),
            gamma=ACCUMULATION[spec.dtype] if widens else spec.gamma,
            need=("dx" in need, "dgamma" in need and gamma is not None, "dbeta" in need),
        )
        plan = _plan(
            "rows_backward",
            spec,
            view,
            ChunkCall(func_name, axis, center, 0.0, need, requested_backend()),
            *(x, dy, mean, rstd, gamma),
            acc_arrays=(mean, rstd, x if gamma is None else gamma, beta),
            widens=widens,
        )
        cache_plan(key, plan, x)
    return plan


def _checked(
    func_name: str, x: Array, gamma: Array | None, over: AxesSpec, center: bool
) -> tuple[RowsView, RowsSpec]:
    library = _check.array(func_name, name_of(over), x)
    view = view_of(func_name, over, tuple(x.shape))
    if gamma is not None:
        _parameter("gamma", func_name, gamma, x, view)
    spec = RowsSpec(
        library=library.name,
        device=str(device_of(x)),
        shape=view.rows,
        dtype=dtype_name(x.dtype),
        gamma=dtype_name_or_none(gamma),
        beta=None,
        center=center,
        groups=view.groups,
        repeat=view.repeat,
    )
    return view, spec


def _parameter(name: str, func_name: str, values: Array, x: Array, view: RowsView) -> None:
    _check.operand(func_name, name, values, x, view.parameter, view.shape_text)
