"""The operations of the family that mix statistics, look around, or need none, as data."""

from __future__ import annotations

from typing import Any

import numpy as np

import ln_array_api as ln

from . import definitions
from .family import CHANNEL_AXIS, BadOptions, Case, NumpyInputs, OperationSpec, Shapes, by_slices

AXIS: BadOptions = {
    "axis out of range": (ValueError, "axis 3 is out of range", {"axis": 3}),
    "no axis": (ValueError, r"axis=\(\) leaves nothing", {"axis": ()}),
    "an axis twice": (ValueError, "names an axis twice", {"axis": (1, -2)}),
    "axis is a fraction": (TypeError, "axis must be an int or a tuple of ints", {"axis": 1.0}),
}


def _axes(values: np.ndarray, axis: Any) -> tuple[int, ...]:
    each = [axis] if isinstance(axis, int) else axis
    return tuple(axis % values.ndim for axis in each)


def _largest(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    max_abs = np.max(values, axis=axes, keepdims=True, initial=0)
    return np.broadcast_to(max_abs, values.shape)


def _by_axis(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    return _largest(values, _axes(values, options.get("axis", -1)))


def _everywhere(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    return _largest(values, tuple(range(values.ndim)))


def _by_channels(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Over the batch and all spatial axes."""
    kept = options.get("channel_axis", 1) % values.ndim
    return _largest(values, tuple(axis for axis in range(values.ndim) if axis != kept))


def _by_channels_and_samples(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    samples = _largest(values, tuple(range(1, values.ndim)))
    return np.asarray(np.maximum(samples, _by_channels(values, options)))


def _by_windows(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """The largest in the window around each place."""
    reach = options.get("size", 9) // 2
    for axis in _axes(values, options.get("spatial_axes", (-2, -1))):
        pad: Any = [(reach, reach) if each == axis else (0, 0) for each in range(values.ndim)]
        padded = np.pad(values, pad, constant_values=0)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis)
        values = np.asarray(np.max(windows, axis=-1))
    return values


def _by_windows_of_windows(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """An element is in windows that reach as far again."""
    return _by_windows(_by_windows(values, options), options)


def _mixed(shape: tuple[int, ...], channel_axis: int = 1, **others: tuple[int, ...]) -> Shapes:
    parameter = (shape[channel_axis],)
    return {"x": shape, **others, "gamma": parameter, "beta": parameter}


def _batch_instance(shape: tuple[int, ...], axis: int = 1) -> Shapes:
    return _mixed(shape, axis, rho=(shape[axis],))


def _switchable(shape: tuple[int, ...], axis: int = 1) -> Shapes:
    return _mixed(shape, axis, mean_weights=(3,), var_weights=(3,))


def _steepness(np_inputs: NumpyInputs) -> np.ndarray:
    """Where tanh is flat, its slope is exp(-2 * abs(alpha * x)), with the product rounded."""
    inner = np_inputs["alpha"].astype(np.float64) * np_inputs["x"].astype(np.float64)
    return np.asarray(1 + 2 * abs(inner))


WEIGHT_NORM = OperationSpec(
    "weight_norm",
    ln.weight_norm,
    ln.weight_norm_forward,
    ln.weight_norm_backward,
    statistics=("norm",),
    saved=("v", "norm", "g"),
    gradients=("v", "g"),
    optional=(),
    cases={
        "first axis": Case({"v": (4, 3, 2, 5), "g": (4,)}, {}),
        "last axis": Case({"v": (2, 3, 5, 4), "g": (4,)}, {"axis": -1}),
        "axis between": Case({"v": (2, 5, 4), "g": (5,)}, {"axis": 1}),
        "a matrix": Case({"v": (5, 7), "g": (5,)}, {}),
    },
    definition=definitions.weight_norm,
    group_max=by_slices,
    bad_options={
        "axis out of range": (ValueError, "axis 4 is out of range for v", {"axis": 4}),
        "axis is a tuple": (TypeError, "axis must be an int", {"axis": (0, 1)}),
    },
    y="w",
    per_sample=False,  # since g goes along
)
POWER_NORM = OperationSpec(
    "power_norm",
    ln.power_norm,
    ln.power_norm_forward,
    ln.power_norm_backward,
    statistics=("norm",),
    saved=("x", "norm"),
    gradients=("x",),
    optional=(),
    cases={
        "last axis": Case({"x": (4, 2, 9)}, {}),
        "two axes": Case({"x": (3, 4, 5)}, {"axis": (2, 1)}),
        "axis between": Case({"x": (3, 4, 5)}, {"axis": 1}),
        "another power": Case({"x": (3, 4, 5)}, {"alpha": 0.3}),
        "squares": Case({"x": (3, 4, 5)}, {"alpha": 2}),
        "cubes of two axes": Case({"x": (3, 4, 5)}, {"alpha": 3.0, "axis": (0, 2)}),
        "tenth powers": Case({"x": (3, 4, 5)}, {"alpha": 10, "epsilon": 0.0}),
        "a large epsilon": Case({"x": (3, 4, 5)}, {"epsilon": 1.0}),
        "no power": Case({"x": (3, 4, 5)}, {"alpha": 1}),
    },
    definition=definitions.power_norm,
    group_max=_by_axis,
    bad_options={
        **AXIS,
        "alpha is negative": (ValueError, "alpha must be finite and more than 0", {"alpha": -0.5}),
        "alpha is 0": (ValueError, "alpha must be finite and more than 0", {"alpha": 0}),
        "alpha is infinite": (ValueError, "alpha must be finite", {"alpha": float("inf")}),
        "alpha is NaN": (ValueError, "alpha must be finite", {"alpha": float("nan")}),
        "alpha is a bool": (ValueError, "alpha must be finite", {"alpha": True}),
        "alpha is a string": (TypeError, "alpha must be a real number", {"alpha": "1"}),
    },
)
BATCH_INSTANCE_NORM = OperationSpec(
    "batch_instance_norm",
    ln.batch_instance_norm,
    ln.batch_instance_norm_forward,
    ln.batch_instance_norm_backward,
    statistics=("batch_mean", "batch_rstd", "instance_mean", "instance_rstd"),
    saved=(
        "x",
        "batch_mean",
        "batch_rstd",
        "instance_mean",
        "instance_rstd",
        "rho",
        "gamma",
        "beta",
    ),
    gradients=("x", "rho", "gamma", "beta"),
    optional=("gamma", "beta"),
    cases={
        "channels first": Case(_batch_instance((3, 2, 3, 4)), {}),
        "channels last": Case(_batch_instance((2, 3, 5, 4), -1), {"channel_axis": -1}),
        "channels between": Case(_batch_instance((2, 3, 4, 5), 2), {"channel_axis": 2}),
        "no spatial axes": Case(_batch_instance((5, 3)), {}),
        "one sample": Case(_batch_instance((1, 3, 7)), {}),
    },
    definition=definitions.batch_instance_norm,
    group_max=_by_channels,
    bad_options=CHANNEL_AXIS,
    per_sample=False,
    cancelling_gradients={"rho": "gamma"},
)
SWITCHABLE_NORM = OperationSpec(
    "switchable_norm",
    ln.switchable_norm,
    ln.switchable_norm_forward,
    ln.switchable_norm_backward,
    statistics=("mean", "var"),
    saved=("x", "mean", "var", "mean_weights", "var_weights", "gamma"),
    gradients=("x", "mean_weights", "var_weights", "gamma", "beta"),
    optional=("gamma", "beta"),
    cases={
        "channels first": Case(_switchable((3, 2, 3, 4)), {}),
        "channels last": Case(_switchable((2, 3, 5, 4), -1), {"channel_axis": -1}),
        "channels between": Case(_switchable((2, 3, 4, 5), 2), {"channel_axis": 2}),
        "no spatial axes": Case(_switchable((5, 3)), {}),
        "one sample": Case(_switchable((1, 3, 7)), {}),
        "a large epsilon": Case(_switchable((2, 3, 4)), {"epsilon": 1.0}),
    },
    definition=definitions.switchable_norm,
    group_max=_by_channels_and_samples,
    bad_options=CHANNEL_AXIS,
    per_sample=False,
    overflowing_values=("1e-30", "1e30", "1e250"),  # the variance
    gradient_group_max=_everywhere,
)
LOCAL_CONTRAST_NORM = OperationSpec(
    "local_contrast_norm",
    ln.local_contrast_norm,
    ln.local_contrast_norm_forward,
    ln.local_contrast_norm_backward,
    statistics=("mean", "rstd"),
    saved=("x", "mean", "rstd"),
    gradients=("x",),
    optional=(),
    cases={
        "by threes": Case({"x": (2, 8, 7)}, {"size": 3}),
        "by fives": Case({"x": (2, 6, 9)}, {"size": 5}),
        "by nines": Case({"x": (2, 5, 6)}, {}),
        "one axis": Case({"x": (3, 8)}, {"size": 5, "spatial_axes": 1}),
        "leading axes": Case({"x": (5, 6, 3)}, {"size": 3, "spatial_axes": (1, 0)}),
        "three axes": Case({"x": (4, 3, 5)}, {"size": 3, "spatial_axes": (0, 1, 2)}),
        "single elements": Case({"x": (3, 4, 4)}, {"size": 1}),
    },
    definition=definitions.local_contrast_norm,
    group_max=_by_windows,
    bad_options={
        "size is even": (ValueError, "size must be odd", {"size": 4}),
        "size is 0": (ValueError, "size must be odd", {"size": 0}),
        "size is negative": (ValueError, "size must be odd and at least 1", {"size": -3}),
        "size is a fraction": (TypeError, "size must be an int", {"size": 3.0}),
        "an axis out of range": (
            ValueError,
            "spatial_axes 3 is out of range",
            {"spatial_axes": (1, 3)},
        ),
        "no axis": (ValueError, r"spatial_axes=\(\) leaves nothing", {"spatial_axes": ()}),
        "an axis twice": (ValueError, "spatial_axes=.* twice", {"spatial_axes": (1, -2)}),
        "an axis is a fraction": (TypeError, "spatial_axes must be", {"spatial_axes": 1.0}),
    },
    gradient_group_max=_by_windows_of_windows,
)
DYNAMIC_TANH = OperationSpec(
    "dynamic_tanh",
    ln.dynamic_tanh,
    ln.dynamic_tanh_forward,
    ln.dynamic_tanh_backward,
    statistics=(),
    saved=("x", "alpha", "gamma"),
    gradients=("x", "alpha", "gamma", "beta"),
    optional=("gamma", "beta"),
    cases={
        "last axis": Case({"x": (3, 4, 6), "alpha": (), "gamma": (6,), "beta": (6,)}, {}),
        "two axes": Case(
            {"x": (3, 4, 5), "alpha": (), "gamma": (3, 5), "beta": (3, 5)}, {"axis": (2, 0)}
        ),
        "axis between": Case(
            {"x": (3, 4, 5), "alpha": (), "gamma": (4,), "beta": (4,)}, {"axis": 1}
        ),
    },
    definition=definitions.dynamic_tanh,
    group_max=lambda values, options: values,
    bad_options=AXIS,
    condition=_steepness,
)
OTHER_OPERATIONS = (
    WEIGHT_NORM,
    POWER_NORM,
    BATCH_INSTANCE_NORM,
    SWITCHABLE_NORM,
    LOCAL_CONTRAST_NORM,
    DYNAMIC_TANH,
)
