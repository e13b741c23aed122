"""Operations whose parameters belong to channels. Add a new one here."""

from __future__ import annotations

from typing import Any

import numpy as np

from .operation_spec import BadOptions, Case, Shapes, operation, over, over_slices
from .reference import (
    RefValues,
    affine,
    axes_without,
    broadcast_axes,
    exponential,
    inside,
    real,
    square_root,
    standardise,
)


def _by_groups(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return the maximum over a group of channels and all spatial axes of each sample."""
    axis = options.get("channel_axis", 1)
    channels = np.moveaxis(values, axis, 1)
    groups = options["num_groups"] if "num_groups" in options else channels.shape[1]
    each = channels.reshape(channels.shape[0], groups, -1)
    return np.moveaxis(over(each, (-1,)).reshape(channels.shape), 1, axis)


def _by_channels(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return the maximum over each channel, along all other axes."""
    return over_slices(values, {"axis": options.get("channel_axis", 1)})


def _by_channels_and_samples(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    samples = over(values, tuple(range(1, values.ndim)))
    return np.asarray(np.maximum(samples, _by_channels(values, options)))


def _everywhere(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    return over(values, tuple(range(values.ndim)))


def _shapes(shape: tuple[int, ...], channel_axis: int, names: tuple[str, ...]) -> Shapes:
    """Return the shapes of x, and of parameters of its channels or, if weights, of shape (3,)."""
    channels = (shape[channel_axis],)
    return {
        "x": shape,
        **{name: (3,) if name.endswith("weights") else channels for name in names},
    }


#: For x of shape (3, 4, 5): all of the first channel, none of the second, parts of the others.
_MASK = np.zeros((3, 4, 5), bool)
_MASK[:, 0], _MASK[1, 2, :4], _MASK[:2, 3] = True, True, True


def _wide_cases(names: tuple[str, ...], **common: Any) -> dict[str, Case]:
    """Return calls with a mask, an offset of gamma, and parameters of the rank of x."""

    def wide(shape: tuple[int, ...], *parameter: int, **options: Any) -> Case:
        axis = options.get("channel_axis", 1)
        shapes = _shapes(shape, axis, names)
        given = dict.fromkeys(("gamma", "beta"), parameter) if parameter else {}
        return Case(shapes | given, common | options)

    return {
        "a mask": wide((3, 4, 5), where=_MASK),
        "a mask of samples": wide((3, 4, 5), where=np.asarray([True, False, True])[:, None, None]),
        "channels last and a mask": wide(
            (3, 5, 4), channel_axis=-1, where=np.swapaxes(_MASK, 1, 2)
        ),
        "an offset of gamma": wide((3, 4, 5), gamma_offset=1.0),
        "parameters of a sample": wide((3, 4, 5), 3, 4, 1),
        "parameters of a sample, channels last": wide((3, 5, 4), 3, 1, 4, channel_axis=-1),
        "parameters of elements": wide((3, 4, 5), 1, 4, 5),
        "parameters of places": wide((3, 4, 5), 1, 1, 5),
        "parameters of samples and a mask": wide((3, 4, 5), 3, 4, 1, where=_MASK),
    }


def _cases(names: tuple[str, ...], calls: dict[str, tuple[Any, ...]]) -> dict[str, Case]:
    """Return cases by name, from the shape of x and, where there are any, the options."""
    cases = {}
    for key, (shape, *rest) in calls.items():
        options = rest[0] if rest else {}
        cases[key] = Case(_shapes(shape, options.get("channel_axis", 1), names), options)
    return cases


#: For x of four axes.
CHANNEL_AXIS: BadOptions = {
    "channel_axis too large": (ValueError, "channel_axis=4 is out of range", {"channel_axis": 4}),
    "channel_axis is the batch": (ValueError, "channel_axis", {"channel_axis": 0}),
    "channel_axis is the batch, from the end": (ValueError, "channel_axis", {"channel_axis": -4}),
    "channel_axis is a fraction": (TypeError, "channel_axis", {"channel_axis": 1.0}),
}


@operation(
    statistics=("mean", "rstd"),
    cases=_cases(
        ("gamma", "beta"),
        {
            "channels first": ((2, 6, 3, 4), {"num_groups": 3}),
            "channels last": ((2, 3, 5, 4), {"num_groups": 2, "channel_axis": -1}),
            "channels between": ((2, 3, 4, 5), {"num_groups": 2, "channel_axis": 2}),
            "one group": ((3, 4, 5, 1), {"num_groups": 1}),
            "a channel a group": ((3, 4, 5, 2), {"num_groups": 4}),
            "no spatial axes": ((4, 6), {"num_groups": 2}),
            "three spatial axes": ((2, 4, 2, 3, 2), {"num_groups": 2}),
            "one sample": ((1, 4, 2, 9), {"num_groups": 2}),
        },
    )
    | _wide_cases(("gamma", "beta"), num_groups=2),
    saved=("x", "mean", "rstd", "gamma", "beta"),
    group_max=_by_groups,
    bad_options={
        **CHANNEL_AXIS,
        "num_groups does not divide": (ValueError, "num_groups=4 does not", {"num_groups": 4}),
        "num_groups is 0": (ValueError, "num_groups=0", {"num_groups": 0}),
        "num_groups is negative": (ValueError, "num_groups=-3", {"num_groups": -3}),
        "num_groups is a fraction": (TypeError, "num_groups must be an int", {"num_groups": 2.0}),
    },
)
def group_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Normalise groups of channels of each sample, or single channels."""
    x, axis = inputs["x"], options.get("channel_axis", 1)
    channels = np.moveaxis(x, axis, 1)
    groups = options.get("num_groups", channels.shape[1])
    rows = channels.reshape(channels.shape[0], groups, -1)
    where = np.moveaxis(np.broadcast_to(options.get("where", True), x.shape), axis, 1)
    x_hat, mean, rstd = standardise(rows, -1, options["epsilon"], where.reshape(rows.shape))
    y = affine(np.moveaxis(x_hat.reshape(channels.shape), 1, axis), inputs, axis, options)
    return {"y": y, "mean": mean[..., 0], "rstd": rstd[..., 0]}


@operation(
    statistics=("mean", "rstd"),
    cases=_cases(
        ("gamma", "beta"),
        {
            "channels first": ((2, 3, 4, 5),),
            "channels last": ((2, 3, 5, 4), {"channel_axis": -1}),
            "channels between": ((2, 3, 4, 5), {"channel_axis": -2}),
            "one spatial axis": ((3, 4, 7),),
            "one channel": ((3, 1, 2, 7),),
        },
    )
    | _wide_cases(("gamma", "beta")),
    group_max=_by_groups,
    bad_options=CHANNEL_AXIS,
)
def instance_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Apply group norm to single channels."""
    return group_norm.definition(inputs, options)


@operation(
    statistics=("mean", "rstd", "running_mean", "running_var"),
    saved=("x", "mean", "rstd", "gamma"),
    gradients=("x", "gamma", "beta"),
    cases=_cases(
        ("gamma", "beta", "running_mean", "running_var"),
        {
            "channels first": ((4, 3, 2, 5), {"momentum": 0.25}),
            "channels last": ((4, 2, 5, 3), {"channel_axis": -1}),
            "channels between": ((4, 2, 3, 5), {"channel_axis": -2}),
            "no spatial axes": ((9, 4),),
            "one sample": ((1, 3, 8), {"momentum": 1.0}),
            "one channel": ((5, 1, 7), {"momentum": 0}),
        },
    )
    | _wide_cases(("gamma", "beta", "running_mean", "running_var")),
    group_max=_by_channels,
    bad_options={
        **CHANNEL_AXIS,
        "momentum is negative": (ValueError, "momentum must be from 0 to 1", {"momentum": -0.1}),
        "momentum is more than 1": (ValueError, "momentum must be from 0 to 1", {"momentum": 1.5}),
        "momentum is NaN": (ValueError, "momentum must be from 0 to 1", {"momentum": np.nan}),
        "momentum is None": (TypeError, "momentum must be a real number", {"momentum": None}),
    },
    per_sample=False,
    needs_values=True,
)
def batch_norm_forward(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Normalise each channel, and move the running statistics by a fraction."""
    x, axis, momentum = inputs["x"], options.get("channel_axis", 1), options.get("momentum", 0.1)
    axes = axes_without(axis, x.ndim)
    x_hat, mean, rstd = standardise(x, axes, options["epsilon"], options.get("where"))
    squares = np.sum(inside((x - mean) * (x - mean), options), axis=axes)
    count = np.sum(np.broadcast_to(options.get("where", True), x.shape), axis=axes)
    mean, rstd = mean.reshape(-1), rstd.reshape(-1)
    batch = {"running_mean": (mean, 1), "running_var": (squares / np.maximum(count - 1, 1), 2)}
    running = {
        name: None
        if inputs[name] is None
        else np.where(
            count < least, inputs[name], (1 - momentum) * inputs[name] + momentum * values
        )
        for name, (values, least) in batch.items()
    }
    return {"y": affine(x_hat, inputs, axis, options), "mean": mean, "rstd": rstd, **running}


@operation(
    has_backward=False,
    cases=_cases(
        ("mean", "var", "gamma", "beta"),
        {
            "channels first": ((2, 3, 4, 5),),
            "channels last": ((2, 4, 5, 3), {"channel_axis": -1}),
            "channels between": ((2, 4, 3, 5), {"channel_axis": 2}),
            "no spatial axes": ((4, 6), {"epsilon": 0.0}),
            "one value": ((1, 3), {"epsilon": 0.25}),
        },
    ),
    group_max=lambda values, options: values,
    bad_options=CHANNEL_AXIS,
)
def batch_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Normalise each element by the given statistics of its channel."""
    x, axis = inputs["x"], options.get("channel_axis", 1)
    std = square_root(inputs["var"] + options["epsilon"])
    x_hat = (x - broadcast_axes(inputs["mean"], x, axis)) / broadcast_axes(std, x, axis)
    return {"y": affine(x_hat, inputs, axis, options)}


#: Of operations that mix statistics of instances.
_OF_INSTANCES: dict[str, tuple[Any, ...]] = {
    "channels first": ((3, 2, 3, 4),),
    "channels last": ((2, 3, 5, 4), {"channel_axis": -1}),
    "channels between": ((2, 3, 4, 5), {"channel_axis": 2}),
    "no spatial axes": ((5, 3),),
    "one sample": ((1, 3, 7),),
}


def _moments(x: Any, axis: int) -> list[tuple[Any, Any]]:
    """Return mean and variance of each instance, of each layer and of the batch."""
    spatial = tuple(each for each in range(1, x.ndim) if each != axis % x.ndim)
    moments = []
    for axes in (spatial, (*spatial, axis), (0, *spatial)):
        n = int(np.prod([x.shape[each] for each in axes]))
        mean = np.sum(x, axis=axes, keepdims=True) / n
        moments.append((mean, np.sum((x - mean) * (x - mean), axis=axes, keepdims=True) / n))
    return moments


@operation(
    statistics=("batch_mean", "batch_rstd", "instance_mean", "instance_rstd"),
    saved=(
        *("x", "batch_mean", "batch_rstd", "instance_mean", "instance_rstd"),
        *("rho", "gamma", "beta"),
    ),
    cases=_cases(("rho", "gamma", "beta"), _OF_INSTANCES),
    group_max=_by_channels,
    bad_options=CHANNEL_AXIS,
    per_sample=False,
    cancelling_gradients={"rho": "gamma"},
)
def batch_instance_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Add rho times batch norm and 1 - rho times instance norm."""
    x, axis = inputs["x"], options.get("channel_axis", 1)
    instance, _, batch = _moments(x, axis)
    rho = broadcast_axes(inputs["rho"], x, axis)
    stds = [square_root(var + options["epsilon"]) for _, var in (batch, instance)]
    by_batch, by_instance = (x - batch[0]) / stds[0], (x - instance[0]) / stds[1]
    shapes = (x.shape[axis],), (x.shape[0], x.shape[axis])
    return {
        "y": affine(rho * by_batch + (1 - rho) * by_instance, inputs, axis, options),
        "batch_mean": batch[0].reshape(shapes[0]),
        "batch_rstd": (1 / stds[0]).reshape(shapes[0]),
        "instance_mean": instance[0].reshape(shapes[1]),
        "instance_rstd": (1 / stds[1]).reshape(shapes[1]),
    }


@operation(
    statistics=("mean", "var"),
    saved=("x", "mean", "var", "mean_weights", "var_weights", "gamma"),
    cases=_cases(
        ("mean_weights", "var_weights", "gamma", "beta"),
        {**_OF_INSTANCES, "a large epsilon": ((2, 3, 4), {"epsilon": 1.0})},
    ),
    group_max=_by_channels_and_samples,
    bad_options=CHANNEL_AXIS,
    per_sample=False,
    overflowing_values=("1e-30", "1e30", "1e250"),  # the variance
    gradient_group_max=_everywhere,
)
def switchable_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Normalise by means and variances of instance, layer and batch, mixed by softmax weights."""
    axis, first = options.get("channel_axis", 1), real(inputs["x"].reshape(-1)[:1])[0]
    # y and var do not depend on a constant that is subtracted from x; constant x becomes exactly 0.
    x = inputs["x"] - first
    moments = _moments(x, axis)
    mixed = []
    for index, name in enumerate(("mean_weights", "var_weights")):
        weights = exponential(inputs[name])
        weights = weights / np.sum(weights)
        mixed.append(sum(weights[k] * moments[k][index] for k in range(3)))
    mean, var = mixed
    x_hat = (x - mean) / square_root(var + options["epsilon"])
    shape = x.shape[0], x.shape[axis]
    instance_mean, instance_var = (each.reshape(shape) for each in moments[0])
    return {
        "y": affine(x_hat, inputs, axis, options),
        "mean": instance_mean + first,
        "var": instance_var,
    }
