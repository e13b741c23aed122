"""What is wrong with a call, found from shapes, dtypes, libraries and devices before any work.

Each check returns what it resolved, or raises with the function's name, the argument, what was
given and what is allowed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

from ._arrays import (
    ACCUMULATION,
    AT_LEAST,
    Array,
    Library,
    device_of,
    dtype_name,
    is_movable,
    is_same_view,
    is_unknown,
    is_writable,
    library_of,
    overlaps_itself,
    share_memory,
    unsuitable,
)
from .errors import DeviceMismatchError


def array(function: str, name: str, x: Any) -> Library:
    """The library of x, an array of a supported floating dtype."""
    try:
        library = library_of(x)
    except TypeError as error:
        raise TypeError(f"{function}: {name}: {error}") from None
    wrong = unsuitable(x) if library.name == "torch" else ""
    if wrong:
        raise TypeError(f"{function}: {name} {wrong}")
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
            f"{function}: {name} has dtype {dtype}, but only {', '.join(ACCUMULATION)} are "
            f"supported; {remedy}"
        )
    return library


def companion(
    function: str,
    name: str,
    given: Any,
    x: Array,
    shape: tuple[int, ...],
    what: str,
    dtype: str | None = None,
    beside: str = "x",
) -> None:
    """An array beside x: of its library and device, a known shape, its dtype or a wider one.

    `beside` is how the caller knows x.
    """
    array(function, name, given)
    same_library(function, name, given, x, beside)
    allowed = AT_LEAST[dtype or dtype_name(x.dtype)]
    if dtype_name(given.dtype) not in allowed:
        raise TypeError(
            f"{function}: {name} has dtype {dtype_name(given.dtype)}, but beside {beside} of dtype "
            f"{dtype_name(x.dtype)} it must be {' or '.join(allowed)}; cast it"
        )
    same_shape(function, name, given, shape, what)
    same_device(function, name, given, x, beside)


def same_library(function: str, name: str, given: Array, x: Array, beside: str = "x") -> None:
    """An array of the library of x."""
    library, expected = library_of(given), library_of(x)
    if library.name != expected.name:
        raise TypeError(
            f"{function}: {name} is an array of {library.name}, but {beside} is one of "
            f"{expected.name}; convert one of them, since nothing is converted behind your back"
        )


def same_shape(function: str, name: str, given: Array, shape: tuple[int, ...], what: str) -> None:
    """The shape of an array, dimensions of unknown length (in Dask) aside."""
    lengths = tuple(given.shape)
    if len(lengths) != len(shape) or any(
        a != b and not is_unknown(a) and not is_unknown(b)
        for a, b in zip(lengths, shape, strict=True)
    ):
        raise ValueError(f"{function}: {name} has shape {lengths}, but must have {shape}, {what}")


def same_device(function: str, name: str, given: Array, x: Array, beside: str = "x") -> None:
    """The device of x, where both are known and bind."""
    if is_movable(x) or is_movable(given):
        return
    here, there = device_of(x), device_of(given)
    if here is not None and there is not None and here != there:
        raise DeviceMismatchError(
            f"{function}: {name} is on {_device(there)}, but {beside} is on {_device(here)}; "
            "move one of them, since nothing is moved behind your back"
        )


def _device(device: Any) -> str:
    if isinstance(device, frozenset):
        return ", ".join(sorted(map(str, device)))
    return str(device)


def axes(
    function: str,
    axis: int | tuple[int, ...],
    shape: tuple[int, ...],
    name: str = "x",
    argument: str = "axis",
) -> tuple[int, ...]:
    """The normalised axes, not negative, in ascending order; `argument` is what names them."""
    given = axis if isinstance(axis, tuple) else (axis,)
    ndim = len(shape)
    if not given:
        raise ValueError(
            f"{function}: {argument}=() leaves nothing to normalise over; name an axis"
        )
    for each in given:
        if not -ndim <= each < ndim:
            raise ValueError(
                f"{function}: {argument} {each} is out of range for {name} of {ndim} dimensions"
                + (f" (allowed: {-ndim} to {ndim - 1})" if ndim else "; it needs one at least")
            )
    resolved = tuple(sorted(each % ndim for each in given))
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"{function}: {argument}={axis} names an axis twice")
    known_lengths(function, shape, resolved)
    return resolved


def known_lengths(function: str, shape: tuple[int, ...], axes: Iterable[int]) -> None:
    """The lengths of some axes, which in Dask may depend on values."""
    for axis in axes:
        if is_unknown(shape[axis]):
            raise ValueError(
                f"{function}: the length of axis {axis} is not known yet; compute it first, in "
                "Dask with x.compute_chunk_sizes()"
            )


def channel_axis(function: str, axis: int, shape: tuple[int, ...]) -> int:
    """The axis of channels, not negative; it may not be the batch axis, which is the first."""
    ndim = len(shape)
    if not -ndim <= axis < ndim or ndim < 2:
        raise ValueError(
            f"{function}: channel_axis={axis} is out of range for x of {ndim} dimensions, of which "
            f"the first is the batch (allowed: {1 - ndim} to {ndim - 1}, but not 0)"
            if ndim > 1
            else f"{function}: x has {ndim} dimensions, but needs two at least: batch and channels"
        )
    if axis % ndim == 0:
        raise ValueError(
            f"{function}: channel_axis={axis} is the batch axis; name another, or move the "
            "channels with permute_dims"
        )
    return axis % ndim


def integer(function: str, name: str, value: Any) -> int:
    """An int from what may be an integer of NumPy's."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {name} must be an int, not {value!r}") from None


def canonical_axis(function: str, axis: Any, argument: str = "axis") -> int | tuple[int, ...]:
    """An int or a tuple of ints from what may be a list, or hold NumPy integers."""
    try:
        if isinstance(axis, Iterable):
            return tuple(operator.index(each) for each in axis)
        return operator.index(axis)
    except TypeError:
        raise TypeError(
            f"{function}: {argument} must be an int or a tuple of ints, not {axis!r}"
        ) from None


def epsilon(function: str, value: Any, dtype: Any) -> float:
    """A finite number, at least 0."""
    if not isinstance(value, Real):
        raise TypeError(f"{function}: epsilon must be a real number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    largest = 3.4e38 if ACCUMULATION[dtype_name(dtype)] == "float32" else math.inf
    if not 0 <= number < largest:
        raise ValueError(f"{function}: epsilon must be finite and at least 0, not {value!r}")
    return number


def fraction(function: str, name: str, value: Any) -> None:
    """A number from 0 to 1."""
    if not isinstance(value, Real):
        raise TypeError(f"{function}: {name} must be a real number, not {value!r}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{function}: {name} must be from 0 to 1, not {value!r}")


def positive(function: str, name: str, value: Any) -> float:
    """A finite number more than 0."""
    if not isinstance(value, Real):
        raise TypeError(f"{function}: {name} must be a real number, not {value!r}")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"{function}: {name} must be finite and more than 0, not {value!r}")
    return number


def need(function: str, value: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the gradients that are wanted."""
    known = not isinstance(value, str) and isinstance(value, Iterable)
    if not known or not all(each in allowed for each in value):
        raise ValueError(
            f"{function}: need must be a tuple of names out of {allowed}, not {value!r}"
        )
    return tuple(value)


def out(function: str, given: Any, x: Array, others: dict[str, Array | None]) -> None:
    """An array that y can be written to: it may be x, but not overlap an input otherwise."""
    library = library_of(x)
    if not library.writable:
        raise TypeError(
            f"{function}: arrays of {library.name} cannot be written, so out must be None"
        )
    try:
        name = library_of(given).name
    except TypeError as error:
        raise TypeError(f"{function}: out: {error}") from None
    if name != library.name:
        raise TypeError(f"{function}: out is an array of {name}, but x is one of {library.name}")
    same_shape(function, "out", given, tuple(x.shape), "the shape of x")
    if dtype_name(given.dtype) != dtype_name(x.dtype):
        raise ValueError(
            f"{function}: out has dtype {dtype_name(given.dtype)}, but must have that of x, "
            f"{dtype_name(x.dtype)}"
        )
    same_device(function, "out", given, x)
    if not is_writable(given):
        raise ValueError(f"{function}: out is read-only; pass a copy, or None")
    if overlaps_itself(given):
        raise ValueError(f"{function}: elements of out share memory with each other; pass a copy")
    others = others if is_same_view(given, x) else {"x": x, **others}
    for name, other in others.items():
        if other is not None and share_memory(given, other):
            raise ValueError(
                f"{function}: out overlaps {name} in memory; it may be x itself, but must not "
                "share memory with an input otherwise"
            )
