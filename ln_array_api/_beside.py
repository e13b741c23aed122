"""What stands beside x where an operation has no plan: its checks, and its way to and from x."""

from __future__ import annotations

from typing import Any

from . import _check
from ._arrays import ACCUMULATION, Array, dtype_name
from ._plans import reshaped
from ._views import Over, View, canonical, name_of, view_of
from .kernels.rows import accumulate_as


def checked(function: str, over: Over, x: Array, **parameters: Array | None) -> View:
    """X seen for what is normalised over, once it and its parameters, by name, are checked."""
    _check.array(function, name_of(over), x)
    view = view_of(function, canonical(function, over), tuple(x.shape))
    for name, values in parameters.items():
        if values is not None:
            _check.companion(function, name, values, x, view.parameter, view.what, beside=view.name)
    return view


def check_gradient(function: str, x: Array, name: str = "x", **dy: Array) -> None:
    """The gradient of a result of x's shape; `name` is how the caller knows x."""
    for given, values in dy.items():
        shape = tuple(x.shape)
        _check.companion(function, given, values, x, shape, f"the shape of {name}", beside=name)


def check_saved(
    function: str, x: Array, shape: tuple[int, ...], name: str = "x", **statistics: Array
) -> None:
    """What the forward pass saved of x, by name, all of one shape."""
    what = f"as {function.removesuffix('_backward')}_forward gives it"
    dtype = ACCUMULATION[dtype_name(x.dtype)]
    for given, values in statistics.items():
        _check.companion(function, given, values, x, shape, what, dtype, beside=name)


def beside(xp: Any, values: Array | None, like: Array, shape: tuple[int, ...]) -> Any:
    """A parameter or statistic in a shape that broadcasts with x, in the dtype of `like`."""
    return None if values is None else reshaped(accumulate_as(xp, values, like), shape)
