"""Operations that are neither rows nor channels: a backend's kernel where there is one for a call.

Everywhere else a call consists of operations of the arrays' own library, on arrays that keep their
axes.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

from ._arrays import Array, device_of, dtype_name, has_symbols, library_of, signatures
from .backend import (
    Choice,
    FamilyPrimitive,
    FamilySpec,
    cache_plan,
    choose_family,
    plans,
    requested_backend,
)


class Call(NamedTuple):
    """How a call runs, once its arguments are checked."""

    primitive: str
    """Or "-" for operations."""
    spec: FamilySpec
    choice: Choice

    @property
    def has_kernel(self) -> bool:
        """Whether a backend's kernel runs it, on arrays of the shapes that `FamilySpec` tells."""
        return self.choice.backend != "generic"

    def results(self, *arrays: Array | None) -> Any:
        """Those of the kernel, for arrays of such shapes and of any layout."""
        return self.choice.kernel(
            *(None if each is None else self.ascontiguous(each) for each in arrays)
        )

    def ascontiguous(self, x: Array) -> Array:
        """Return x itself if it is contiguous, else a contiguous copy, for the kernel."""
        library = library_of(x)
        copy = self.choice.ascontiguous or library.ascontiguous
        return x if library.is_contiguous(x) else copy(x)


def call_on(primitive: FamilyPrimitive, x: Array, shape: tuple[int, ...], **details: Any) -> Call:
    """How a call of a primitive runs on x, of which a kernel would get that shape.

    The other fields of `FamilySpec` are `details`. A call is planned once for each kind.
    """
    key: Hashable
    try:
        signature = signatures[type(x)](x)
        key = primitive, signature, shape, *details.items(), requested_backend()
        call = plans.get(key)
    except (KeyError, RuntimeError, TypeError):  # a type not seen before, or lengths are symbols
        key = call = None
    if call is None:
        call = _planned(primitive, x, shape, details)
        cache_plan(key, call, x)
    return call


def _planned(
    primitive: FamilyPrimitive, x: Array, shape: tuple[int, ...], details: dict[str, Any]
) -> Call:
    library = library_of(x)
    if library.lazy:
        return operations_on(x, "chunked arrays compute nothing until asked")
    if has_symbols(x):
        return operations_on(x, "lengths of x are symbols")
    if 0 in shape:
        return operations_on(x, "x is empty")
    spec = FamilySpec(library.name, str(device_of(x)), shape, dtype_name(x.dtype), **details)
    choice = choose_family(primitive, spec)
    if isinstance(choice, str):
        return operations_on(x, choice)
    return Call(primitive, spec, choice)


def operations_on(x: Array, reason: str) -> Call:
    """A call that consists of operations of the library of x, and why."""
    name = library_of(x).name
    spec = FamilySpec(name, str(device_of(x)), tuple(x.shape), dtype_name(x.dtype))
    return Call("-", spec, Choice(_no_kernel, "generic", f"operations of {name}: {reason}"))


def _no_kernel(*arrays: Array) -> None:
    raise NotImplementedError("such a call consists of operations")
