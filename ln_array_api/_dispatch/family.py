"""Plans of operations that are neither rows nor channels.

They run by a backend's kernel where there is one for a call. Everywhere else a call consists of
operations of the arrays' own library, on arrays that keep their axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._arrays import Array, device_of, dtype_name, has_symbols, library_of
from ..backend import Choice, choose_family
from .plans import Plan, as_rows
from .specs import FamilyPrimitive, FamilySpec
from .views import RowsView


def family_plan(
    primitive: FamilyPrimitive,
    x: Array,
    arrays: tuple[Array | None, ...],
    view: RowsView,
    generic: Callable[..., Any],
    **details: Any,
) -> Plan:
    """Return the plan for such arrays, x among them, which a kernel gets as ``view.rows``.

    `generic` computes the same of the caller's arrays. What `view` does not tell of `FamilySpec`
    is in `details`.
    """
    details |= {"groups": view.groups, "repeat": view.repeat}
    chosen = choose_kernel(primitive, x, view.rows, **details)
    if isinstance(chosen, str):
        return operations_plan(x, chosen, generic)
    spec, choice = chosen
    conversions = as_rows(view, choice, spec.dtype, library_of(x))
    return Plan(primitive, spec, choice, conversions, *arrays)


def choose_kernel(
    primitive: FamilyPrimitive, x: Array, shape: tuple[int, ...], **details: Any
) -> tuple[FamilySpec, Choice] | str:
    """Return the spec of a call and a backend's kernel for it, or why there is none."""
    library = library_of(x)
    if library.lazy:
        return "chunked arrays compute nothing until asked"
    if has_symbols(x):
        return "lengths of x are symbols"
    if 0 in shape:
        return "x is empty"
    spec = FamilySpec(library.name, str(device_of(x)), shape, dtype_name(x.dtype), **details)
    choice = choose_family(primitive, spec)
    return choice if isinstance(choice, str) else (spec, choice)


def operations_plan(x: Array, reason: str, generic: Callable[..., Any]) -> Plan:
    """Return the plan of a call that consists of operations of the library of x, and why."""
    name = library_of(x).name
    spec = FamilySpec(name, str(device_of(x)), tuple(x.shape), dtype_name(x.dtype))
    return Plan("-", spec, Choice(generic, "generic", f"operations of {name}: {reason}"))
