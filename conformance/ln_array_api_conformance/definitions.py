"""What the operations of the family are defined as, on whole arrays, and their exact gradients.

As in `reference`, nothing repeats the library's formulas: a definition says what y is, in whatever
arithmetic its inputs come, and gradients are its derivatives by complex step.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import mpmath
import numpy as np

from . import reference
from .reference import affine, imaginary, widen

#: Inputs or results by name.
Wide = dict[str, Any]


class Definition(Protocol):
    """Inputs and options in; y and the statistics out, by name."""

    def __call__(self, given: Wide, options: dict[str, Any]) -> Wide: ...


def group_norm(given: Wide, options: dict[str, Any]) -> Wide:
    """Layer norm of each sample over groups of channels; of single channels without a number."""
    x, axis = given["x"], options.get("channel_axis", 1)
    channels = np.moveaxis(x, axis, 1)
    groups = options.get("num_groups", channels.shape[1])
    rows = channels.reshape(channels.shape[0], groups, -1)
    x_hat, mean, rstd = reference.layer_norm(rows, None, None, options.get("epsilon", 1e-5))
    x_hat = np.moveaxis(x_hat.reshape(channels.shape), 1, axis)
    y = affine(x_hat, *(along(given[name], x, axis) for name in ("gamma", "beta")))
    return {"y": y, "mean": mean[..., 0], "rstd": rstd[..., 0]}


def batch_norm_forward(given: Wide, options: dict[str, Any]) -> Wide:
    """Layer norm of each channel over all other axes; running statistics move by a fraction."""
    x, axis, momentum = given["x"], options.get("channel_axis", 1), options.get("momentum", 0.1)
    channels = np.moveaxis(x, axis, 0)
    rows = channels.reshape(channels.shape[0], -1)
    x_hat, mean, rstd = reference.layer_norm(rows, None, None, options.get("epsilon", 1e-5))
    x_hat = np.moveaxis(x_hat.reshape(channels.shape), 0, axis)
    d = rows - mean
    batch = {
        "running_mean": mean[:, 0],
        "running_var": np.sum(d * d, axis=1) / (rows.shape[1] - 1),
    }
    running = {
        name: None if given[name] is None else (1 - momentum) * given[name] + momentum * values
        for name, values in batch.items()
    }
    y = affine(x_hat, *(along(given[name], x, axis) for name in ("gamma", "beta")))
    return {"y": y, "mean": mean[:, 0], "rstd": rstd[:, 0], **running}


def batch_norm(given: Wide, options: dict[str, Any]) -> Wide:
    """Each element by the statistics of its channel, which are given."""
    x, axis = given["x"], options.get("channel_axis", 1)
    root = reference.square_root(given["var"] + options.get("epsilon", 1e-5))
    x_hat = (x - along(given["mean"], x, axis)) / along(root, x, axis)
    return {"y": affine(x_hat, *(along(given[name], x, axis) for name in ("gamma", "beta")))}


def weight_standardization(given: Wide, options: dict[str, Any]) -> Wide:
    """Each slice along an axis to zero mean and unit variance."""
    slices = np.moveaxis(given["w"], options.get("axis", 0), 0)
    rows = slices.reshape(slices.shape[0], -1)
    y, mean, rstd = reference.layer_norm(rows, None, None, options.get("epsilon", 1e-5))
    y = np.moveaxis(y.reshape(slices.shape), 0, options.get("axis", 0))
    return {"y": y, "mean": mean[:, 0], "rstd": rstd[:, 0]}


def along(values: Any, x: Any, axis: int) -> Any:
    """Values of an axis of x, to broadcast with x; None is None."""
    if values is None:
        return None
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


class Gradient(NamedTuple):
    """The gradient of an input, in some places of it."""

    places: np.ndarray
    """Flat indices, ascending."""
    values: np.ndarray
    scale: np.ndarray
    """In all places, of the input's shape: the sum of the magnitudes of the terms."""


def evaluate(definition: Definition, plain: Wide, options: dict[str, Any]) -> Wide:
    """Y and the statistics of inputs, in arithmetic that is wide enough to judge by."""
    return definition({name: widen(each) for name, each in plain.items()}, options)


def gradient(
    definition: Definition,
    dy: np.ndarray,
    plain: Wide,
    name: str,
    options: dict[str, Any],
    *,
    y: str = "y",
    places: np.ndarray | None = None,
) -> Gradient:
    """The gradient of sum(dy * y) with respect to an input, in some places, or in all."""
    size = plain[name].size
    places = np.arange(size) if places is None else places
    wide = {each: widen(values) for each, values in plain.items()}
    exact = [
        np.sum(widen(dy) * column)
        for column in _columns(definition, wide, name, options, y, places)
    ]
    narrow = {
        each: None if values is None else values.astype(np.float64)
        for each, values in plain.items()
    }
    magnitudes = [
        np.sum(abs(dy.astype(np.float64) * column))
        for column in _columns(definition, narrow, name, options, y, np.arange(size))
    ]
    scale = np.asarray(magnitudes, np.float64).reshape(plain[name].shape)
    return Gradient(places, np.asarray(exact), scale)


def _columns(
    definition: Definition,
    given: Wide,
    name: str,
    options: dict[str, Any],
    y: str,
    places: np.ndarray,
) -> Any:
    """The derivatives of y with respect to single elements of an input, one after the other."""
    values = given[name]
    # Far below the rounding of the input, far above the smallest number.
    h = (np.max(abs(values)) or 1.0) * 2.0**-120
    unit = mpmath.mpc(0, 1) if values.dtype == object else 1j
    for place in places:
        step = np.zeros(values.size)
        step[place] = 1.0
        moved = values + (unit * h) * step.reshape(values.shape)
        yield imaginary(definition({**given, name: moved}, options)[y]) / h
