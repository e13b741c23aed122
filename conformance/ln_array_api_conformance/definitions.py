"""The definitions of the operations of the family, on whole arrays, and their exact gradients.

As in `reference`, nothing repeats the library's formulas: a definition says what y is, in whatever
arithmetic its inputs come, and gradients are its derivatives by complex step.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, Protocol

import mpmath
import numpy as np

from . import reference
from .reference import affine, exponential, imaginary, real, square_root, tanh, to_reference

#: Inputs or results by name.
RefValues = dict[str, Any]


class Definition(Protocol):
    """Inputs and options in; y and the statistics out, by name."""

    def __call__(self, given: RefValues, options: dict[str, Any]) -> RefValues: ...


def group_norm(given: RefValues, options: dict[str, Any]) -> RefValues:
    """Layer norm of each sample over groups of channels; of single channels without a number."""
    x, axis = given["x"], options.get("channel_axis", 1)
    channels = np.moveaxis(x, axis, 1)
    groups = options.get("num_groups", channels.shape[1])
    rows = channels.reshape(channels.shape[0], groups, -1)
    x_hat, mean, rstd = reference.layer_norm(rows, None, None, options.get("epsilon", 1e-5))
    x_hat = np.moveaxis(x_hat.reshape(channels.shape), 1, axis)
    y = affine(x_hat, *(broadcast_axis(given[name], x, axis) for name in ("gamma", "beta")))
    return {"y": y, "mean": mean[..., 0], "rstd": rstd[..., 0]}


def batch_norm_forward(given: RefValues, options: dict[str, Any]) -> RefValues:
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
    y = affine(x_hat, *(broadcast_axis(given[name], x, axis) for name in ("gamma", "beta")))
    return {"y": y, "mean": mean[:, 0], "rstd": rstd[:, 0], **running}


def batch_norm(given: RefValues, options: dict[str, Any]) -> RefValues:
    """Each element by the statistics of its channel, which are given."""
    x, axis = given["x"], options.get("channel_axis", 1)
    std = reference.square_root(given["var"] + options.get("epsilon", 1e-5))
    x_hat = (x - broadcast_axis(given["mean"], x, axis)) / broadcast_axis(std, x, axis)
    return {
        "y": affine(x_hat, *(broadcast_axis(given[name], x, axis) for name in ("gamma", "beta")))
    }


def weight_standardization(given: RefValues, options: dict[str, Any]) -> RefValues:
    """Each slice along an axis to zero mean and unit variance."""
    slices = np.moveaxis(given["w"], options.get("axis", 0), 0)
    rows = slices.reshape(slices.shape[0], -1)
    y, mean, rstd = reference.layer_norm(rows, None, None, options.get("epsilon", 1e-5))
    y = np.moveaxis(y.reshape(slices.shape), 0, options.get("axis", 0))
    return {"y": y, "mean": mean[:, 0], "rstd": rstd[:, 0]}


def weight_norm(given: RefValues, options: dict[str, Any]) -> RefValues:
    """Each slice along an axis to length g."""
    v, kept = given["v"], options.get("axis", 0)
    axes = tuple(axis for axis in range(v.ndim) if axis != kept % v.ndim)
    norm = square_root(np.sum(v * v, axis=axes, keepdims=True))
    return {"w": broadcast_axis(given["g"], v, kept) * v / norm, "norm": norm.reshape(-1)}


def power_norm(given: RefValues, options: dict[str, Any]) -> RefValues:
    """A power of the magnitude, with the sign, over the Euclidean norm."""
    x, axis = given["x"], options.get("axis", -1)
    sign = np.where(real(x) < 0, -1, 1)
    z = sign * (sign * x) ** options.get("alpha", 0.5)
    norm = square_root(np.sum(z * z, axis=axis, keepdims=True) + options.get("epsilon", 1e-12))
    return {"y": z / norm, "norm": norm}


def batch_instance_norm(given: RefValues, options: dict[str, Any]) -> RefValues:
    """Rho times batch norm, and the rest instance norm."""
    x, axis, epsilon = given["x"], options.get("channel_axis", 1), options.get("epsilon", 1e-5)
    instance, _, batch = _moments(x, axis)
    rho, gamma, beta = (broadcast_axis(given[name], x, axis) for name in ("rho", "gamma", "beta"))
    stds = [square_root(var + epsilon) for _, var in (batch, instance)]
    by_batch, by_instance = (x - batch[0]) / stds[0], (x - instance[0]) / stds[1]
    shapes = (x.shape[axis],), (x.shape[0], x.shape[axis])
    return {
        "y": affine(rho * by_batch + (1 - rho) * by_instance, gamma, beta),
        "batch_mean": batch[0].reshape(shapes[0]),
        "batch_rstd": (1 / stds[0]).reshape(shapes[0]),
        "instance_mean": instance[0].reshape(shapes[1]),
        "instance_rstd": (1 / stds[1]).reshape(shapes[1]),
    }


def switchable_norm(given: RefValues, options: dict[str, Any]) -> RefValues:
    """The mean and the variance of instance, layer and batch, each mixed by softmax weights."""
    axis, first = options.get("channel_axis", 1), real(given["x"].reshape(-1)[:1])[0]
    # All else is blind to what is subtracted of all x, and constant x is 0 then, not about 0.
    x = given["x"] - first
    moments = _moments(x, axis)
    mean: Any = 0
    var: Any = 0
    for name, index in (("mean_weights", 0), ("var_weights", 1)):
        weights = exponential(given[name])
        weights = weights / np.sum(weights)
        mixed = sum(weights[k] * moments[k][index] for k in range(3))
        mean, var = (mixed, var) if index == 0 else (mean, mixed)
    gamma, beta = (broadcast_axis(given[name], x, axis) for name in ("gamma", "beta"))
    x_hat = (x - mean) / square_root(var + options.get("epsilon", 1e-5))
    shape = x.shape[0], x.shape[axis]
    instance_mean, instance_var = (each.reshape(shape) for each in moments[0])
    return {"y": affine(x_hat, gamma, beta), "mean": instance_mean + first, "var": instance_var}


def _moments(x: Any, axis: int) -> list[tuple[Any, Any]]:
    """Mean and variance of each instance, of each layer and of the batch."""
    spatial = tuple(each for each in range(1, x.ndim) if each != axis % x.ndim)
    moments = []
    for axes in (spatial, (*spatial, axis), (0, *spatial)):
        n = int(np.prod([x.shape[each] for each in axes]))
        mean = np.sum(x, axis=axes, keepdims=True) / n
        moments.append((mean, np.sum((x - mean) * (x - mean), axis=axes, keepdims=True) / n))
    return moments


def local_contrast_norm(given: RefValues, options: dict[str, Any]) -> RefValues:
    """Mean and variance of the elements at each distance from each element, where there are any."""
    x, size = given["x"], options.get("size", 9)
    axes = options.get("spatial_axes", (-2, -1))
    axes = [axes] if isinstance(axes, int) else axes
    around = list(_around(x, [axis % x.ndim for axis in axes], size // 2))
    n = sum(there for _, there in around)
    mean = sum(there * values for values, there in around) / n
    var = sum(there * (values - mean) * (values - mean) for values, there in around) / n
    std = square_root(var + options.get("epsilon", 1e-5))
    return {"y": (x - mean) / std, "mean": mean, "rstd": 1 / std}


def _around(x: Any, axes: list[int], reach: int) -> Any:
    """The elements at each distance along some axes, and 1 where there is one, else 0."""
    for distances in itertools.product(range(-reach, reach + 1), repeat=len(axes)):
        values, there = x, np.ones(x.shape, int)
        for axis, distance in zip(axes, distances, strict=True):
            place = np.arange(x.shape[axis]) + distance
            inside = (place >= 0) & (place < x.shape[axis])
            values = np.take(values, np.where(inside, place, 0), axis=axis)
            there = there * broadcast_axis(inside.astype(int), x, axis)
        yield values, there


def dynamic_tanh(given: RefValues, options: dict[str, Any]) -> RefValues:
    """The hyperbolic tangent of alpha times x."""
    x, axis = given["x"], options.get("axis", -1)
    axes = {each % x.ndim for each in ([axis] if isinstance(axis, int) else axis)}
    shape = [n if each in axes else 1 for each, n in enumerate(x.shape)]
    gamma, beta = (
        None if given[name] is None else given[name].reshape(shape) for name in ("gamma", "beta")
    )
    return {"y": affine(tanh(given["alpha"] * x), gamma, beta)}


def broadcast_axis(values: Any, x: Any, axis: int) -> Any:
    """Values of an axis of x, to broadcast with x; None is None."""
    if values is None:
        return None
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


class Gradient(NamedTuple):
    """The gradient of an input, at some elements of it."""

    flat_indices: np.ndarray
    """Flat indices, ascending."""
    values: np.ndarray
    scale: np.ndarray
    """At all elements, of the input's shape: the sum of the magnitudes of the terms."""


def evaluate(definition: Definition, np_inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Return y and the statistics of inputs, in the arithmetic of the reference."""
    return definition(_all_to_reference(np_inputs), options)


def _all_to_reference(np_inputs: RefValues) -> RefValues:
    most = max(each.size for each in np_inputs.values() if each is not None)
    return {name: to_reference(each, most) for name, each in np_inputs.items()}


def gradient(
    definition: Definition,
    dy: np.ndarray,
    np_inputs: RefValues,
    name: str,
    options: dict[str, Any],
    *,
    y: str = "y",
    flat_indices: np.ndarray | None = None,
    scaled_everywhere: bool = True,
) -> Gradient:
    """Return the gradient of sum(dy * y) with respect to an input, at some elements, or at all.

    Unless it is `scaled_everywhere`, the scale is computed for these elements only; all other
    elements get the largest of theirs.
    """
    size = np_inputs[name].size
    flat_indices = np.arange(size) if flat_indices is None else flat_indices
    ref_inputs = _all_to_reference(np_inputs)
    wide_dy, exact, magnitudes = to_reference(dy), [], []
    for column in _columns(definition, ref_inputs, name, options, y, flat_indices):
        terms = wide_dy * column
        exact.append(np.sum(terms))
        magnitudes.append(float(np.sum(abs(terms))))
    if not scaled_everywhere:
        scale = np.full(np_inputs[name].shape, max(magnitudes))
        scale.reshape(-1)[flat_indices] = magnitudes
        return Gradient(flat_indices, np.asarray(exact), scale)
    narrow = {
        each: None if values is None else values.astype(np.float64)
        for each, values in np_inputs.items()
    }
    magnitudes = [
        np.sum(abs(dy.astype(np.float64) * column))
        for column in _columns(definition, narrow, name, options, y, np.arange(size))
    ]
    scale = np.asarray(magnitudes, np.float64).reshape(np_inputs[name].shape)
    return Gradient(flat_indices, np.asarray(exact), scale)


def _columns(
    definition: Definition,
    given: RefValues,
    name: str,
    options: dict[str, Any],
    y: str,
    flat_indices: np.ndarray,
) -> Any:
    """The derivatives of y with respect to single elements of an input, one after the other."""
    values = given[name]
    # Far below the rounding of the input, far above the smallest number.
    h = (np.max(abs(values)) or 1.0) * 2.0**-120
    unit = mpmath.mpc(0, 1) if values.dtype == object else 1j
    for place in flat_indices:
        # Of mpmath numbers, those that this does not reach stay real, which is faster.
        moved = np.array(values if values.dtype == object else values + 0j)
        moved.reshape(-1)[place] += unit * h
        yield imaginary(definition({**given, name: moved}, options)[y]) / h
