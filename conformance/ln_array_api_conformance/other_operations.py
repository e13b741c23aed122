"""Operations on weights, which keep one axis, and on windows. Add a new one here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from .operation_spec import BadOptions, Case, operation, over_slices
from .reference import (
    RefValues,
    axes_of,
    axes_without,
    broadcast_axes,
    square_root,
    standardise,
)


def _kept_axis(x: str) -> BadOptions:
    return {
        "axis out of range": (ValueError, f"axis 4 is out of range for {x}", {"axis": 4}),
        "axis is a tuple": (TypeError, "axis must be an int", {"axis": (0, 1)}),
    }


@operation(
    statistics=("mean", "rstd"),
    cases={
        "first axis": Case({"w": (4, 3, 2, 5)}, {}),
        "last axis": Case({"w": (2, 3, 5, 4)}, {"axis": -1}),
        "axis between": Case({"w": (2, 5, 4)}, {"axis": 1}),
        "a matrix": Case({"w": (5, 7)}, {}),
    },
    group_max=over_slices,
    bad_options=_kept_axis("w"),
)
def weight_standardization(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Normalise each slice along an axis to zero mean and unit variance."""
    axes = axes_without(options.get("axis", 0), inputs["w"].ndim)
    y, mean, rstd = standardise(inputs["w"], axes, options["epsilon"])
    return {"y": y, "mean": mean.reshape(-1), "rstd": rstd.reshape(-1)}


@operation(
    statistics=("norm",),
    epsilon=None,
    saved=("v", "norm", "g"),
    cases={
        "first axis": Case({"v": (4, 3, 2, 5), "g": (4,)}, {}),
        "last axis": Case({"v": (2, 3, 5, 4), "g": (4,)}, {"axis": -1}),
        "axis between": Case({"v": (2, 5, 4), "g": (5,)}, {"axis": 1}),
        "a matrix": Case({"v": (5, 7), "g": (5,)}, {}),
    },
    group_max=over_slices,
    bad_options=_kept_axis("v"),
    y="w",
    per_sample=False,  # since g goes along
)
def weight_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Scale each slice along an axis to length g."""
    v, kept = inputs["v"], options.get("axis", 0)
    norm = square_root(np.sum(v * v, axis=axes_without(kept, v.ndim), keepdims=True))
    return {"w": broadcast_axes(inputs["g"], v, kept) * v / norm, "norm": norm.reshape(-1)}


def _by_windows(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return the maximum in the window around each element."""
    radius = options.get("size", 9) // 2
    for axis in axes_of(options.get("spatial_axes", (-2, -1)), values.ndim):
        pad = [(radius, radius) if each == axis else (0, 0) for each in range(values.ndim)]
        padded = np.pad(values, pad, constant_values=0)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=axis)
        values = np.asarray(np.max(windows, axis=-1))
    return values


@operation(
    statistics=("mean", "rstd"),
    cases={
        "by threes": Case({"x": (2, 8, 7)}, {"size": 3}),
        "by fives": Case({"x": (2, 6, 9)}, {"size": 5}),
        "by nines": Case({"x": (2, 5, 6)}, {}),
        "one axis": Case({"x": (3, 8)}, {"size": 5, "spatial_axes": 1}),
        "leading axes": Case({"x": (5, 6, 3)}, {"size": 3, "spatial_axes": (1, 0)}),
        "three axes": Case({"x": (4, 3, 5)}, {"size": 3, "spatial_axes": (0, 1, 2)}),
        "single elements": Case({"x": (3, 4, 4)}, {"size": 1}),
    },
    group_max=_by_windows,
    # An element is in windows that reach as far again.
    gradient_group_max=lambda values, options: _by_windows(_by_windows(values, options), options),
    bad_options={
        "size is even": (ValueError, "size must be odd", {"size": 4}),
        "size is 0": (ValueError, "size must be odd", {"size": 0}),
        "size is negative": (ValueError, "size must be odd and at least 1", {"size": -3}),
        "size is a fraction": (TypeError, "size must be an int", {"size": 3.0}),
        "an axis too large": (ValueError, "spatial_axes 3 is out", {"spatial_axes": (1, 3)}),
        "no axis": (ValueError, r"spatial_axes=\(\) leaves nothing", {"spatial_axes": ()}),
        "an axis twice": (ValueError, "spatial_axes=.* twice", {"spatial_axes": (1, -2)}),
        "an axis is a fraction": (TypeError, "spatial_axes must be", {"spatial_axes": 1.0}),
    },
)
def local_contrast_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Normalise each element by the mean and variance of its window, clipped to x."""
    x, size = inputs["x"], options.get("size", 9)
    axes = axes_of(options.get("spatial_axes", (-2, -1)), x.ndim)
    around = list(_around(x, axes, size // 2))
    n = sum(inside for _, inside in around)
    mean = sum(inside * values for values, inside in around) / n
    var = sum(inside * (values - mean) * (values - mean) for values, inside in around) / n
    std = square_root(var + options["epsilon"])
    return {"y": (x - mean) / std, "mean": mean, "rstd": 1 / std}


def _around(x: Any, axes: tuple[int, ...], radius: int) -> Iterator[tuple[Any, Any]]:
    """Yield the elements at each distance along some axes, and 1 where there is one, else 0."""
    for distances in itertools.product(range(-radius, radius + 1), repeat=len(axes)):
        values, inside = x, np.ones(x.shape, int)
        for axis, distance in zip(axes, distances, strict=True):
            index = np.arange(x.shape[axis]) + distance
            valid = (index >= 0) & (index < x.shape[axis])
            values = np.take(values, np.where(valid, index, 0), axis=axis)
            inside = inside * broadcast_axes(valid.astype(int), x, axis)
        yield values, inside
