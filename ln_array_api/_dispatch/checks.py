"""Checks of the arguments of a call: shapes, dtypes, libraries and devices, before any work.

Each check returns what it resolved, or raises with the function's name, the argument, what was
given and what is allowed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

from .._arrays import (
    ACCUMULATION,
    PARAMETER_DTYPES,
    Array,
    Library,
    device_of,
    dtype_name,
    is_movable,
    is_unknown,
    library_of,
    unsuitable,
)
from .._layout import has_internal_overlap, is_same_view, is_writable, share_memory
from ..errors import DeviceMismatchError


def array(func_name: str, name: str, x: Any) -> Library:
    """Return the library of x; raise unless x is an array of a supported floating dtype."""
    try:
        library = library_of(x)
    except TypeError as error:
        raise TypeError(f"{func_name}: {name}: {error}") from None
    wrong = unsuitable(x) if library.name == "torch" else ""
    if wrong:
        raise TypeError(f"{func_name}: {name} {wrong}")
    dtype = dtype_name(x.dtype)
    if dtype not in ACCUMULATION:
        remedy = (
            "take its real and imaginary parts apart"
            if dtype.startswith("complex")
            else "cast it, to float64 for example"
            if dtype.startswith(("float", "longdouble"))
            else "cast it, to float32 for example"
        )
        raise TypeError(
            f"{func_name}: {name} has dtype {dtype}, but only {', '.join(ACCUMULATION)} are "
            f"supported; {remedy}"
        )
    return library


def operand(
    func_name: str,
    name: str,
    value: Any,
    x: Array,
    shape: tuple[int, ...],
    shape_text: str,
    dtype: str | None = None,
    x_name: str = "x",
) -> None:
    """Check the library, device, shape and dtype of an array that goes with x.

    Its dtype is x's, or that of `dtype`, or a wider one. `shape_text` says the shape in words, and
    `x_name` is the caller's name of x.
    """
    array(func_name, name, value)
    same_library(func_name, name, value, x, x_name)
    allowed = PARAMETER_DTYPES[dtype or dtype_name(x.dtype)]
    if dtype_name(value.dtype) not in allowed:
        raise TypeError(
            f"{func_name}: {name} has dtype {dtype_name(value.dtype)}, but for {x_name} of dtype "
            f"{dtype_name(x.dtype)} it must be {' or '.join(allowed)}; cast it"
        )
    same_shape(func_name, name, value, shape, shape_text)
    same_device(func_name, name, value, x, x_name)


def parameter(
    func_name: str, name: str, value: Any, x: Array, view: Any, x_name: str = "x"
) -> None:
    """Check a parameter of x, seen as rows by `view`."""
    operand(func_name, name, value, x, view.parameter, view.shape_text, x_name=x_name)


def mask(func_name: str, value: Any, x: Array) -> None:
    """Check `where`, a boolean array that broadcasts with x."""
    try:
        library_of(value)
    except TypeError as error:
        raise TypeError(f"{func_name}: where: {error}") from None
    same_library(func_name, "where", value, x)
    if dtype_name(value.dtype) != "bool":
        raise TypeError(
            f"{func_name}: where has dtype {dtype_name(value.dtype)}, but must be boolean; compare "
            "it with 0, for example"
        )
    lengths, shape = tuple(value.shape), tuple(x.shape)
    rest = shape[len(shape) - len(lengths) :]
    if len(lengths) > len(shape) or any(
        a not in (1, b) and not is_unknown(a) and not is_unknown(b)
        for a, b in zip(lengths, rest, strict=True)
    ):
        raise ValueError(
            f"{func_name}: where has shape {lengths}, which does not broadcast to {shape}, the "
            "shape of x"
        )
    same_device(func_name, "where", value, x)


def gradient(func_name: str, x: Array, x_name: str = "x", **values: Any) -> None:
    """Check the gradient of a result of x's shape, given by name."""
    for name, value in values.items():
        shape = tuple(x.shape)
        operand(func_name, name, value, x, shape, f"the shape of {x_name}", x_name=x_name)


def saved(
    func_name: str, x: Array, shape: tuple[int, ...], x_name: str = "x", **statistics: Any
) -> None:
    """Check statistics that the forward pass saved, given by name, all of one shape."""
    shape_text = f"as {func_name.removesuffix('_backward')}_forward gives it"
    dtype = ACCUMULATION[dtype_name(x.dtype)]
    for name, value in statistics.items():
        operand(func_name, name, value, x, shape, shape_text, dtype, x_name=x_name)


def same_library(func_name: str, name: str, value: Array, x: Array, x_name: str = "x") -> None:
    """Check that an array belongs to the library of x."""
    library, expected = library_of(value), library_of(x)
    if library.name != expected.name:
        raise TypeError(
            f"{func_name}: {name} is an array of {library.name}, but {x_name} is one of "
            f"{expected.name}; convert one of them; arrays are never converted implicitly"
        )


def same_shape(
    func_name: str, name: str, value: Array, shape: tuple[int, ...], shape_text: str
) -> None:
    """Check the shape of an array, except for unknown lengths (in Dask)."""
    lengths = tuple(value.shape)
    if len(lengths) != len(shape) or any(
        a != b and not is_unknown(a) and not is_unknown(b)
        for a, b in zip(lengths, shape, strict=True)
    ):
        raise ValueError(
            f"{func_name}: {name} has shape {lengths}, but must have {shape}, {shape_text}"
        )


def same_device(func_name: str, name: str, value: Array, x: Array, x_name: str = "x") -> None:
    """Check that an array is on the device of x, where both devices are known and fixed."""
    if is_movable(x) or is_movable(value):
        return
    here, there = device_of(x), device_of(value)
    if here is not None and there is not None and here != there:
        raise DeviceMismatchError(
            f"{func_name}: {name} is on {_device(there)}, but {x_name} is on {_device(here)}; "
            "move one of them; arrays are never moved implicitly"
        )


def _device(device: Any) -> str:
    if isinstance(device, frozenset):
        return ", ".join(sorted(map(str, device)))
    return str(device)


def axes(
    func_name: str,
    axis: int | tuple[int, ...],
    shape: tuple[int, ...],
    name: str = "x",
    argument: str = "axis",
) -> tuple[int, ...]:
    """Return the normalised axes, not negative, in ascending order; `argument` names them."""
    given = axis if isinstance(axis, tuple) else (axis,)
    ndim = len(shape)
    if not given:
        raise ValueError(
            f"{func_name}: {argument}=() leaves nothing to normalise over; name an axis"
        )
    for each in given:
        if not -ndim <= each < ndim:
            raise ValueError(
                f"{func_name}: {argument} {each} is out of range for {name} of {ndim} dimensions"
                + (f" (allowed: {-ndim} to {ndim - 1})" if ndim else "; it needs one at least")
            )
    resolved = tuple(sorted(each % ndim for each in given))
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"{func_name}: {argument}={axis} names an axis twice")
    known_lengths(func_name, shape, resolved)
    return resolved


def known_lengths(func_name: str, shape: tuple[int, ...], axes: Iterable[int]) -> None:
    """Check that the lengths of these axes are known; in Dask they may depend on values."""
    for axis in axes:
        if is_unknown(shape[axis]):
            raise ValueError(
                f"{func_name}: the length of axis {axis} is not known yet; compute it first, in "
                "Dask with x.compute_chunk_sizes()"
            )


def channel_axis(func_name: str, axis: int, shape: tuple[int, ...]) -> int:
    """Return the axis of channels, not negative; raise if it is the batch axis, the first."""
    ndim = len(shape)
    if not -ndim <= axis < ndim or ndim < 2:
        raise ValueError(
            f"{func_name}: channel_axis={axis} is out of range for x of {ndim} dimensions, "
            f"of which the first is the batch (allowed: {1 - ndim} to {ndim - 1}, but not 0)"
            if ndim > 1
            else f"{func_name}: x has {ndim} dimensions, but needs two at least: batch and channels"
        )
    if axis % ndim == 0:
        raise ValueError(
            f"{func_name}: channel_axis={axis} is the batch axis; name another, or move the "
            "channels with permute_dims"
        )
    return axis % ndim


def integer(func_name: str, name: str, value: Any) -> int:
    """Return an int from an int or an integer of NumPy."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{func_name}: {name} must be an int, not {value!r}") from None


def canonical_axis(func_name: str, axis: Any, argument: str = "axis") -> int | tuple[int, ...]:
    """Return an int or a tuple of ints; `axis` may be a list, or hold integers of NumPy."""
    try:
        if type(axis) is tuple or isinstance(axis, Iterable):  # the first is fast
            return tuple(map(operator.index, axis))
        return operator.index(axis)
    except TypeError:
        raise TypeError(
            f"{func_name}: {argument} must be an int or a tuple of ints, not {axis!r}"
        ) from None


def epsilon(func_name: str, value: Any, dtype: Any) -> float:
    """Return epsilon as a float; raise unless it is finite and at least 0."""
    if not isinstance(value, Real):
        raise TypeError(f"{func_name}: epsilon must be a real number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    largest = 3.4e38 if ACCUMULATION[dtype_name(dtype)] == "float32" else math.inf
    if not 0 <= number < largest:
        raise ValueError(f"{func_name}: epsilon must be finite and at least 0, not {value!r}")
    return number


def real(func_name: str, name: str, value: Any) -> float:
    """Return a value as a float; raise unless it is a finite real number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{func_name}: {name} must be a real number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{func_name}: {name} must be finite, not {value!r}")
    return float(value)


def fraction(func_name: str, name: str, value: Any) -> None:
    """Check that a value is a number from 0 to 1."""
    if not isinstance(value, Real):
        raise TypeError(f"{func_name}: {name} must be a real number, not {value!r}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{func_name}: {name} must be from 0 to 1, not {value!r}")


def positive(func_name: str, name: str, value: Any) -> float:
    """Return a value as a float; raise unless it is finite and more than 0."""
    if not isinstance(value, Real):
        raise TypeError(f"{func_name}: {name} must be a real number, not {value!r}")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"{func_name}: {name} must be finite and more than 0, not {value!r}")
    return number


def need(func_name: str, value: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the requested gradients as a tuple; raise if one is not allowed."""
    known = not isinstance(value, str) and isinstance(value, Iterable)
    if not known or not all(each in allowed for each in value):
        raise ValueError(
            f"{func_name}: need must be a tuple of names out of {allowed}, not {value!r}"
        )
    return tuple(value)


def out(func_name: str, value: Any, x: Array, others: dict[str, Array | None]) -> None:
    """Check that y can be written to `out`, which may be x, but not overlap an input otherwise."""
    library = library_of(x)
    if not library.writable:
        raise TypeError(
            f"{func_name}: arrays of {library.name} cannot be written, so out must be None"
        )
    try:
        name = library_of(value).name
    except TypeError as error:
        raise TypeError(f"{func_name}: out: {error}") from None
    if name != library.name:
        raise TypeError(f"{func_name}: out is an array of {name}, but x is one of {library.name}")
    same_shape(func_name, "out", value, tuple(x.shape), "the shape of x")
    if dtype_name(value.dtype) != dtype_name(x.dtype):
        raise ValueError(
            f"{func_name}: out has dtype {dtype_name(value.dtype)}, but must have that of x, "
            f"{dtype_name(x.dtype)}"
        )
    same_device(func_name, "out", value, x)
    if not is_writable(value):
        raise ValueError(f"{func_name}: out is read-only; pass a copy, or None")
    if has_internal_overlap(value):
        raise ValueError(f"{func_name}: elements of out share memory with each other; pass a copy")
    others = others if is_same_view(value, x) else {"x": x, **others}
    for name, other in others.items():
        if other is not None and share_memory(value, other):
            raise ValueError(
                f"{func_name}: out overlaps {name} in memory; it may be x itself, but must not "
                "share memory with an input otherwise"
            )
