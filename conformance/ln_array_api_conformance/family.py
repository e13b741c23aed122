"""Descriptions of the operations that do not take rows and an axis. Add a new one here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import ln_array_api as ln

from . import definitions
from .inputs import VALUES, generator
from .libraries import DTYPES
from .tolerances import ACCUMULATION

Shapes = dict[str, tuple[int, ...]]
#: Options that are refused, by name: the error, its message, and the options.
BadOptions = dict[str, tuple[type[Exception], str, dict[str, Any]]]
#: Inputs as NumPy arrays, by name; None for those left out.
NumpyInputs = dict[str, Any]


class Case(NamedTuple):
    """The shapes and options of a call."""

    shapes: Shapes
    """Of all inputs, by name and in order; the first is what is normalised."""
    options: dict[str, Any]


class OperationSpec(NamedTuple):
    """An operation, its definition, and how it is called."""

    name: str
    function: Callable[..., Any]
    """``function(*inputs, **options)``; `forward` itself where no function gives y alone."""
    forward: Callable[..., Any]
    """`function` itself where there are no statistics."""
    backward: Callable[..., Any] | None
    """None where the library has none of its own."""
    statistics: tuple[str, ...]
    """What `forward` gives besides y."""
    saved: tuple[str, ...]
    """What `backward` takes after dy: inputs and statistics, in order."""
    gradients: tuple[str, ...]
    """The inputs that have one, in order, by `backward` or by the array library itself."""
    optional: tuple[str, ...]
    """The inputs that may be None."""
    cases: dict[str, Case]
    """The first is the one that is run with all values and dtypes."""
    definition: definitions.Definition
    group_max: Callable[[np.ndarray, dict[str, Any]], np.ndarray]
    """For each element, the maximum over the elements that share its statistics."""
    bad_options: BadOptions
    y: str = "y"
    """The name of the function's result."""
    per_sample: bool = True
    """Whether statistics are of one sample only, along the first axis."""
    overflowing_values: tuple[str, ...] = ()
    """Kinds of values for which a result, statistic or gradient leaves the range of its dtype."""
    gradient_group_max: Callable[[np.ndarray, dict[str, Any]], np.ndarray] | None = None
    """The same for the elements on which a gradient depends, where these are more."""
    condition: Callable[[NumpyInputs], np.ndarray] | None = None
    """For each element of x, by how much its gradient amplifies the rounding of intermediates."""

    needs_values: bool = False
    """Whether channels without values are refused."""
    cancelling_gradients: dict[str, str] = {}  # noqa: RUF012 - never written
    """Inputs whose gradient is a difference of sums as large as the gradient of another input."""

    def group_max_in(self, gradient: bool) -> Callable[[np.ndarray, dict[str, Any]], np.ndarray]:
        return (gradient and self.gradient_group_max) or self.group_max

    @property
    def shapes(self) -> Shapes:
        return self.main_case.shapes

    @property
    def main_case(self) -> Case:
        return next(iter(self.cases.values()))

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def x(self) -> str:
        """The caller's name of x."""
        return self.inputs[0]

    def dtype_of(self, statistic: str, dtype: str) -> str:
        """Return the dtype of a statistic for x of a dtype; a running one has that of its input."""
        return dtype if statistic in self.inputs else ACCUMULATION[dtype]

    def has(self, option: str) -> bool:
        return option in inspect.signature(self.forward).parameters

    def options_of(self, function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
        """Return the options that a function has."""
        known = inspect.signature(function).parameters
        return {name: value for name, value in options.items() if name in known}


#: Inputs besides x, by name, such as a network might have learned.
PARAMETERS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Any]] = {
    "gamma": lambda rng, shape: 1 + 0.3 * rng.standard_normal(shape),
    "beta": lambda rng, shape: 0.5 * rng.standard_normal(shape),
    "mean": lambda rng, shape: rng.standard_normal(shape),
    "var": lambda rng, shape: rng.lognormal(0.0, 1.0, shape),
    "running_mean": lambda rng, shape: rng.standard_normal(shape),
    "running_var": lambda rng, shape: rng.lognormal(0.0, 1.0, shape),
    "g": lambda rng, shape: 1 + 0.3 * rng.standard_normal(shape),
    "rho": lambda rng, shape: rng.uniform(0, 1, shape),
    "mean_weights": lambda rng, shape: rng.standard_normal(shape),
    "var_weights": lambda rng, shape: rng.standard_normal(shape),
    "alpha": lambda rng, shape: 0.5 + 0.1 * rng.standard_normal(shape),
}


def inputs(
    member: OperationSpec, case: Case, values: str, dtype: str, without: str = ""
) -> NumpyInputs:
    """The inputs of a call as NumPy arrays, by name; None for the one left out."""
    np_inputs: NumpyInputs = {}
    for name, shape in case.shapes.items():
        rng = generator(member.name, name, shape, values)
        if name == member.x:
            m = shape[0] if shape else 1
            flat = VALUES[values](rng, m, int(np.prod(shape[1:])))
            made = flat.reshape(shape)
        else:
            made = np.asarray(PARAMETERS[name](rng, shape))
        np_inputs[name] = None if name == without else made.astype(DTYPES[dtype])
    return np_inputs


def without_elements(member: OperationSpec) -> list[Case]:
    """The first case with each axis of x in turn of length 0, and of the parameters along it."""
    cases = []
    for axis, length in enumerate(member.shapes[member.x]):
        shapes = {
            name: tuple(0 if n == length else n for n in shape)
            for name, shape in member.shapes.items()
            if not name.endswith("weights")  # which are of no axis
        }
        lengths = list(member.shapes[member.x])
        lengths[axis] = 0
        cases.append(
            Case({**member.shapes, **shapes, member.x: tuple(lengths)}, member.main_case.options)
        )
    return [case for case in cases if not member.needs_values or 0 in case.shapes["gamma"]]


def gradient_of_y(member: OperationSpec, case: Case, dtype: str) -> np.ndarray:
    """A dy for a call."""
    shape = case.shapes[member.x]
    return generator(member.name, "dy", shape).standard_normal(shape).astype(DTYPES[dtype])


def _over(*axes: int) -> Callable[[np.ndarray, dict[str, Any]], np.ndarray]:
    def largest(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        return np.broadcast_to(np.max(values, axis=axes, keepdims=True), values.shape)

    return largest


def _by_groups(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return the maximum over a group of channels and all spatial axes of each sample."""
    channels = np.moveaxis(values, options.get("channel_axis", 1), 1)
    groups = int(options["num_groups"]) if "num_groups" in options else channels.shape[1]
    each = channels.reshape(channels.shape[0], groups, -1)
    max_abs = np.broadcast_to(np.max(each, axis=-1, keepdims=True, initial=0), each.shape)
    return np.moveaxis(max_abs.reshape(channels.shape), 1, options.get("channel_axis", 1))


def by_slices(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return the maximum over all axes except the one that is kept."""
    kept = options.get("axis", 0) % values.ndim
    axes = tuple(axis for axis in range(values.ndim) if axis != kept)
    return _over(*axes)(values, options)


def _by_channels(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return the maximum over each channel, along all other axes."""
    return by_slices(values, {"axis": options.get("channel_axis", 1)})


def _each_by_itself(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    return values


def _channels(
    shape: tuple[int, ...], channel_axis: int = 1, names: tuple[str, ...] = ("gamma", "beta")
) -> Shapes:
    return {"x": shape, **dict.fromkeys(names, (shape[channel_axis],))}


#: For x of four axes.
CHANNEL_AXIS: BadOptions = {
    "channel_axis out of range": (
        ValueError,
        "channel_axis=4 is out of range",
        {"channel_axis": 4},
    ),
    "channel_axis is the batch": (ValueError, "channel_axis", {"channel_axis": 0}),
    "channel_axis is the batch, from the end": (ValueError, "channel_axis", {"channel_axis": -4}),
    "channel_axis is a fraction": (TypeError, "channel_axis", {"channel_axis": 1.0}),
}

GROUP_NORM = OperationSpec(
    "group_norm",
    ln.group_norm,
    ln.group_norm_forward,
    ln.group_norm_backward,
    statistics=("mean", "rstd"),
    saved=("x", "mean", "rstd", "gamma"),
    gradients=("x", "gamma", "beta"),
    optional=("gamma", "beta"),
    cases={
        "channels first": Case(_channels((2, 6, 3, 4)), {"num_groups": 3}),
        "channels last": Case(_channels((2, 3, 5, 4), -1), {"num_groups": 2, "channel_axis": -1}),
        "channels between": Case(_channels((2, 3, 4, 5), 2), {"num_groups": 2, "channel_axis": 2}),
        "one group": Case(_channels((3, 4, 5, 1)), {"num_groups": 1}),
        "a channel a group": Case(_channels((3, 4, 5, 2)), {"num_groups": 4}),
        "no spatial axes": Case(_channels((4, 6)), {"num_groups": 2}),
        "three spatial axes": Case(_channels((2, 4, 2, 3, 2)), {"num_groups": 2}),
        "one sample": Case(_channels((1, 4, 2, 9)), {"num_groups": 2}),
    },
    definition=definitions.group_norm,
    group_max=_by_groups,
    bad_options={
        **CHANNEL_AXIS,
        "num_groups does not divide": (ValueError, "num_groups=4 does not", {"num_groups": 4}),
        "num_groups is 0": (ValueError, "num_groups=0", {"num_groups": 0}),
        "num_groups is negative": (ValueError, "num_groups=-3", {"num_groups": -3}),
        "num_groups is a fraction": (TypeError, "num_groups must be an int", {"num_groups": 2.0}),
    },
)  # fmt: skip
INSTANCE_NORM = OperationSpec(
    "instance_norm",
    ln.instance_norm,
    ln.instance_norm_forward,
    ln.instance_norm_backward,
    statistics=("mean", "rstd"),
    saved=("x", "mean", "rstd", "gamma"),
    gradients=("x", "gamma", "beta"),
    optional=("gamma", "beta"),
    cases={
        "channels first": Case(_channels((2, 3, 4, 5)), {}),
        "channels last": Case(_channels((2, 3, 5, 4), -1), {"channel_axis": -1}),
        "channels between": Case(_channels((2, 3, 4, 5), -2), {"channel_axis": -2}),
        "one spatial axis": Case(_channels((3, 4, 7)), {}),
        "one channel": Case(_channels((3, 1, 2, 7)), {}),
    },
    definition=definitions.group_norm,
    group_max=_by_groups,
    bad_options=CHANNEL_AXIS,
)
_RUNNING = ("gamma", "beta", "running_mean", "running_var")
BATCH_NORM_FORWARD = OperationSpec(
    "batch_norm_forward",
    ln.batch_norm_forward,
    ln.batch_norm_forward,
    ln.batch_norm_backward,
    statistics=("mean", "rstd", "running_mean", "running_var"),
    saved=("x", "mean", "rstd", "gamma"),
    gradients=("x", "gamma", "beta"),
    optional=_RUNNING,
    cases={
        "channels first": Case(_channels((4, 3, 2, 5), names=_RUNNING), {"momentum": 0.25}),
        "channels last": Case(_channels((4, 2, 5, 3), -1, _RUNNING), {"channel_axis": -1}),
        "channels between": Case(_channels((4, 2, 3, 5), -2, _RUNNING), {"channel_axis": -2}),
        "no spatial axes": Case(_channels((9, 4), names=_RUNNING), {}),
        "one sample": Case(_channels((1, 3, 8), names=_RUNNING), {"momentum": 1.0}),
        "one channel": Case(_channels((5, 1, 7), names=_RUNNING), {"momentum": 0}),
    },
    definition=definitions.batch_norm_forward,
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
_GIVEN = ("mean", "var", "gamma", "beta")
BATCH_NORM = OperationSpec(
    "batch_norm",
    ln.batch_norm,
    ln.batch_norm,
    None,
    statistics=(),
    saved=(),
    gradients=("x", *_GIVEN),
    optional=("gamma", "beta"),
    cases={
        "channels first": Case(_channels((2, 3, 4, 5), names=_GIVEN), {}),
        "channels last": Case(_channels((2, 4, 5, 3), -1, _GIVEN), {"channel_axis": -1}),
        "channels between": Case(_channels((2, 4, 3, 5), 2, _GIVEN), {"channel_axis": 2}),
        "no spatial axes": Case(_channels((4, 6), names=_GIVEN), {"epsilon": 0.0}),
        "one value": Case(_channels((1, 3), names=_GIVEN), {"epsilon": 0.25}),
    },
    definition=definitions.batch_norm,
    group_max=_each_by_itself,
    bad_options=CHANNEL_AXIS,
)
WEIGHT_STANDARDIZATION = OperationSpec(
    "weight_standardization",
    ln.weight_standardization,
    ln.weight_standardization_forward,
    ln.weight_standardization_backward,
    statistics=("mean", "rstd"),
    saved=("w", "mean", "rstd"),
    gradients=("w",),
    optional=(),
    cases={
        "first axis": Case({"w": (4, 3, 2, 5)}, {}),
        "last axis": Case({"w": (2, 3, 5, 4)}, {"axis": -1}),
        "axis between": Case({"w": (2, 5, 4)}, {"axis": 1}),
        "a matrix": Case({"w": (5, 7)}, {}),
    },
    definition=definitions.weight_standardization,
    group_max=by_slices,
    bad_options={
        "axis out of range": (ValueError, "axis 4 is out of range", {"axis": 4}),
        "axis is a tuple": (TypeError, "axis must be an int", {"axis": (0, 1)}),
    },
)
CHANNEL_OPERATIONS = (
    GROUP_NORM,
    INSTANCE_NORM,
    BATCH_NORM_FORWARD,
    BATCH_NORM,
    WEIGHT_STANDARDIZATION,
)
