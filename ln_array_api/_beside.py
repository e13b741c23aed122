"""Argument checks and broadcasting for operations that run without a cached plan."""

from __future__ import annotations

from typing import Any

from . import _check
from ._arrays import ACCUMULATION, Array, dtype_name
from ._plans import reshaped
from ._views import AxesSpec, RowsView, canonical, name_of, view_of
from .kernels.rows import astype_like


def check_inputs(func_name: str, over: AxesSpec, x: Array, **parameters: Array | None) -> RowsView:
    """Check x and its parameters, given by name, and return the view of x as rows."""
    _check.array(func_name, name_of(over), x)
    view = view_of(func_name, canonical(func_name, over), tuple(x.shape))
    for name, values in parameters.items():
        if values is not None:
            _check.operand(
                func_name, name, values, x, view.parameter, view.shape_text, x_name=view.x_name
            )
    return view


def check_gradient(func_name: str, x: Array, name: str = "x", **dy: Array) -> None:
    """Check the gradient of a result of x's shape; `name` is the caller's name of x."""
    for given, values in dy.items():
        shape = tuple(x.shape)
        _check.operand(func_name, given, values, x, shape, f"the shape of {name}", x_name=name)


def check_saved(
    func_name: str, x: Array, shape: tuple[int, ...], name: str = "x", **statistics: Array
) -> None:
    """Check the statistics that the forward pass saved, given by name, all of one shape."""
    shape_text = f"as {func_name.removesuffix('_backward')}_forward gives it"
    dtype = ACCUMULATION[dtype_name(x.dtype)]
    for given, values in statistics.items():
        _check.operand(func_name, given, values, x, shape, shape_text, dtype, x_name=name)


def broadcast_like(xp: Any, values: Array | None, like: Array, shape: tuple[int, ...]) -> Any:
    """Cast a parameter or statistic to the dtype of `like`, and reshape it to broadcast with x."""
    return None if values is None else reshaped(astype_like(xp, values, like), shape)
