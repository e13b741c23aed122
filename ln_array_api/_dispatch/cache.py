"""The plans of calls: made once for each kind of call, then found by one look-up.

A kind of call is all that a plan may depend on: dtypes, shapes, devices and layouts of arrays,
options and their types, and the requested backend. A plan holds no arrays: the next call of its
kind has others, and a framework's tracers must not outlive their call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from .._arrays import Array, bound_to_device, library_of, signatures
from ..backend import _requested, plans, requested_backend

_MAX_PLANS = 4096


def plan_of(
    make: Callable[..., Any], func_name: str, arrays: tuple[Array | None, ...], *options: Any
) -> Any:
    """Return the plan of a kind of call, by ``make(func_name, *arrays, *options)`` if it is new.

    `make` checks the arguments, so that a wrong call raises there.
    """
    find = signatures
    key: Hashable
    try:
        key = (
            make,
            requested_backend(),
            options,
            *map(type, options),  # 1, 1.0 and True are equal
            *[find[type(each)](each) for each in arrays],
        )
        plan = plans.get(key)
    except (KeyError, RuntimeError, TypeError):  # a type not seen before, or what `make` refuses
        key = plan = None
    if plan is None:
        plain = tuple(map(_plain, options))
        if any(each is not given for each, given in zip(plain, options, strict=True)):
            return plan_of(make, func_name, arrays, *plain)
        plan = make(func_name, *arrays, *options)
        cache_plan(key, plan, arrays[0])
    return plan


def _plain(option: Any) -> Any:
    """Return the tuple for a list, and the int for an integer of NumPy."""
    if type(option) is list:
        return tuple(option)
    return int(option) if isinstance(option, np.integer) else option


def cache_plan(key: Hashable, plan: Any, x: Array) -> None:
    """Let a plan run on the device of x, and cache it, unless its key is None.

    A full cache is cleared, which bounds its size in programs with many shapes.
    """
    if is_planning_anew():
        raise _PlanMade(plan)
    current_device = library_of(x).current_device
    if current_device is not None:
        for name in ("run", "y", "forward", "backward"):
            if hasattr(plan, name):
                bound = bound_to_device(x.device, current_device, getattr(plan, name))
                setattr(plan, name, bound)
    if len(plans) >= _MAX_PLANS:
        plans.clear()
    if key is not None:
        plans[key] = plan


class _Anew(str):
    """The name of a backend, but never part of a key, so that a call makes its plan anew."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


def is_planning_anew() -> bool:
    """Whether this call runs in `plan_made_by`, for its plan only."""
    return isinstance(requested_backend(), _Anew)


class _PlanMade(Exception):  # noqa: N818 - no error
    """Ends a call in `plan_made_by`."""

    def __init__(self, plan: Any) -> None:
        super().__init__()
        self.plan = plan


def plan_made_by(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the plan of a call, made anew; nothing is computed. What the call raises is raised."""
    token = _requested.set(_Anew(requested_backend() or ""))
    try:
        function(*args, **kwargs)
    except _PlanMade as made:
        return made.plan
    finally:
        _requested.reset(token)
    raise AssertionError(f"{function.__name__} made no plan")
