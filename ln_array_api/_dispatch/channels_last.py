"""Tensors of torch in the memory format channels_last: read in place, returned in that format."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from .._arrays import Array, F, memory_format_of


def is_of(rank: int) -> Callable[[Any], bool]:
    """Return a test for tensors of a rank."""
    return lambda x: hasattr(x, "movedim") and x.ndim == rank


def keeps_channels_last(function: F) -> F:
    """Let a function of channels read x in place, if its axis 1 is the last in memory.

    A tensor in such a memory format is one with its channels on the last axis whose axes have been
    permuted, which any function with a `channel_axis` takes. Calls with a mask, or with parameters
    of the rank of x, run as they are.
    """
    x_index = 1 if function.__name__.endswith("_backward") else 0  # of x, after dy

    @wraps(function)
    def run(*arrays: Array | None, channel_axis: int = 1, **options: Any) -> Any:
        memory_format = memory_format_of(arrays[x_index]) if len(arrays) > x_index else None
        rank = 0 if memory_format is None else arrays[x_index].ndim  # type: ignore[union-attr]
        # What does not go together is for the function to refuse.
        if not rank or channel_axis != 1 or not all(map(is_of(rank), arrays[: x_index + 1])):
            return function(*arrays, channel_axis=channel_axis, **options)
        others = arrays[x_index + 1 :]
        if options.get("where") is not None or any(map(is_of(rank), others)):
            return function(*arrays, channel_axis=channel_axis, **options)

        def back(x: Array | None) -> Array | None:
            if x is None or x.ndim != rank:
                return x
            return x.movedim(-1, 1).contiguous(memory_format=memory_format)

        moved = [each.movedim(1, -1) for each in arrays[: x_index + 1]]  # type: ignore[union-attr]
        moved += others
        results = function(*moved, channel_axis=-1, **options)
        if not isinstance(results, tuple):
            return back(results)
        kind: Any = type(results)  # a named tuple
        return kind(back(results[0]), *results[1:])

    return cast(F, run)
