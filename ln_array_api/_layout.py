"""The layout of arrays: shapes, contiguous copies, and memory that arrays share."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from types import SimpleNamespace
from typing import Any

import numpy as np

from ._arrays import Array, Library, has_symbols, is_torch_array, is_unknown, library_of


def reshape_contiguous(
    x: Array,
    shape: tuple[int, ...],
    permutation: tuple[int, ...] = (),
    ascontiguous: Callable[[Array], Array] | None = None,
) -> Array:
    """Permute the axes of x, make it contiguous, and reshape it; copy only if necessary."""
    library = library_of(x)
    if permutation:
        x = library.xp.permute_dims(x, permutation)
    if not library.is_contiguous(x):
        x = library.reshape((ascontiguous or library.ascontiguous)(x), (-1,))
    return library.reshape(x, shape)


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """Reshape x by the fastest way that its library has."""
    return library_of(x).reshape(x, shape)


def reshaper(library: Library, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """Return what reshapes arrays of a library: faster than `reshape`, for shapes that are kept."""
    if library.has_reshape:
        return methodcaller("reshape", shape)
    return lambda x: library.reshape(x, shape)


def reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """Reshape x, unless it has this rank already; lengths may be unknown."""
    return x if len(x.shape) == len(shape) else library_of(x).reshape(x, shape)


def broadcast_like(values: Array | None, like: Array, shape: tuple[int, ...]) -> Any:
    """Cast a parameter or statistic to the dtype of `like`, and reshape it to broadcast with x."""
    if values is None:
        return None
    return reshaped(library_of(like).xp.astype(values, like.dtype, copy=False), shape)


def restore_shape(x: Array, shape: tuple[int, ...], permutation: tuple[int, ...] = ()) -> Array:
    """Undo `reshape_contiguous` of an array of this shape."""
    library = library_of(x)
    if not permutation:
        return library.reshape(x, shape)
    x = library.reshape(x, tuple(shape[axis] for axis in permutation))
    inverse = sorted(range(len(permutation)), key=permutation.__getitem__)
    return library.xp.permute_dims(x, tuple(inverse))


def ascontiguous(x: Array) -> Array:
    """Return x as a contiguous array, where its library has strides and all lengths are known.

    A copy only where it must be.
    """
    library, shape = library_of(x), tuple(x.shape)
    if library.lazy or library.is_contiguous(x) or has_symbols(x) or any(map(is_unknown, shape)):
        return x
    return reshape_contiguous(x, shape)


def is_writable(x: Array) -> bool:
    """Whether x, of a library that can write, can be written itself."""
    flags = getattr(x, "flags", None)
    return bool(getattr(flags, "writeable", True))


def is_same_view(a: Array, b: Array) -> bool:
    """Whether a and b are the same elements of the same memory in the same order."""
    if a is b:
        return True
    first, second = _address_view(a), _address_view(b)
    return (
        first is not None
        and second is not None
        and first.__array_interface__["data"] == second.__array_interface__["data"]
        and (first.shape, first.strides) == (second.shape, second.strides)
    )


def share_memory(a: Array, b: Array) -> bool:
    """Whether any element of a is an element of b, where the library lets that be known."""
    first, second = _address_view(a), _address_view(b)
    return first is not None and second is not None and np.shares_memory(first, second)


def has_internal_overlap(x: Array) -> bool:
    """Whether two elements of x share memory, as where x is broadcast."""
    memory = _address_view(x)
    if memory is None or memory.size == 0:
        return False
    extent = memory.itemsize
    for step, length in sorted(
        (abs(step), length)
        for step, length in zip(memory.strides, memory.shape, strict=True)
        if length > 1
    ):
        if step < extent:
            return True
        extent += step * (length - 1)
    return False


def _address_view(x: Array) -> np.ndarray | None:
    """Return a NumPy array with the address, shape and strides of x, which must not be read."""
    if isinstance(x, np.ndarray):
        return x
    if is_torch_array(x):
        try:
            address = x.data_ptr()
        except RuntimeError:  # while torch traces, there is no memory
            return None
        if x.device.type == "meta":
            return None
        itemsize, steps = x.element_size(), x.stride()
        strides = tuple(step * itemsize for step in steps)
    elif hasattr(x, "__cuda_array_interface__"):
        address, itemsize, strides = x.data.ptr, x.itemsize, x.strides
    else:
        try:
            return np.asarray(x)
        except (RuntimeError, TypeError, ValueError):  # memory that NumPy cannot see
            return None
    view = {
        "data": (address, False),
        "shape": tuple(x.shape),
        "strides": strides,
        "typestr": f"|V{itemsize}",
        "version": 3,
    }
    return np.asarray(SimpleNamespace(__array_interface__=view))
