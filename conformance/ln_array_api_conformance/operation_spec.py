"""The description of an operation: its definition, how it is called, and the inputs of its tests.

An operation joins the suite by a definition that is decorated with `operation`, or, where it
normalises over an axis, with `row_operation`. All tests that apply to it follow from that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

import ln_array_api as ln

from .inputs import PARAMETERS, VALUES, generator
from .libraries import DTYPES
from .reference import Definition, RefValues, all_to_reference, axes_of, axes_without
from .tolerances import ACCUMULATION

Shapes = dict[str, tuple[int, ...]]
#: Options that are refused, by name: the error, its message, and the options.
BadOptions = dict[str, tuple[type[Exception], str, dict[str, Any]]]
#: Inputs as NumPy arrays, by name; None for those left out.
NumpyInputs = dict[str, Any]
#: For each element, the maximum over the elements that share its statistics.
GroupMax = Callable[[np.ndarray, dict[str, Any]], np.ndarray]

#: Inputs that may be None.
OPTIONAL = ("gamma", "beta", "running_mean", "running_var")
#: Shapes of x without rows, and without elements in the rows.
EMPTY_ROWS = ((0, 5), (2, 0, 5), (0, 3, 5), (3, 0), (0, 0), (2, 3, 0))


class Case(NamedTuple):
    """The shapes and options of a call."""

    shapes: Shapes
    """Of all inputs, by name and in order; the first is what is normalised."""
    options: dict[str, Any]

    @property
    def has_plain_rows(self) -> bool:
        """Whether a call over `axis` is one of rows with parameters of the shape of the axes."""
        shape = self.shapes["x"]
        axes = axes_of(self.options.get("axis", -1), len(shape))
        others = {each for name, each in self.shapes.items() if name != "x"}
        plain = others <= {tuple(shape[axis] for axis in axes)}
        return plain and not {"where", "gamma_offset"} & set(self.options)


@dataclass(frozen=True, eq=False, kw_only=True)
class OperationSpec:
    """An operation, its definition, and how it is called."""

    name: str
    """The name of the public function."""
    definition: Definition
    cases: dict[str, Case]
    """The first is the one that is run with all values and dtypes."""
    group_max: GroupMax
    statistics: tuple[str, ...] = ()
    """What `forward` returns besides y."""
    epsilon: float | None = 1e-5
    """The documented default; None where there is no epsilon."""
    bad_options: BadOptions = field(default_factory=dict)
    y: str = "y"
    """The name of the function's result."""
    saved: tuple[str, ...] = ()
    """What `backward` takes after dy. By default x, the statistics, and gamma if there is one."""
    gradients: tuple[str, ...] = ()
    """The inputs that have one, in order, by `backward` or by the library. By default all."""
    has_backward: bool = True
    """Whether the library has a function for the gradients."""
    has_out: bool = False
    """Whether `out` can be given."""
    over_rows: bool = False
    """Whether x is normalised over `axis`, and all other inputs have the shape of these axes."""
    scales_rows: bool = True
    """Whether rows are x, less its mean if it has one, times "rstd" or divided by "norm"."""
    per_sample: bool = True
    """Whether statistics are of one sample only, along the first axis."""
    needs_values: bool = False
    """Whether channels without values are refused."""
    overflowing_values: tuple[str, ...] = ()
    """Kinds of values for which a result, statistic or gradient leaves the range of its dtype."""
    gradient_group_max: GroupMax | None = None
    """As `group_max`, for the elements on which a gradient depends, where these are more."""
    condition: Callable[[NumpyInputs], np.ndarray] | None = None
    """For each element of x, by how much its gradient amplifies the rounding of intermediates."""
    cancelling_gradients: dict[str, str] = field(default_factory=dict)
    """Inputs whose gradient is a difference of sums as large as the gradient of another input."""

    def __post_init__(self) -> None:
        gamma = [name for name in self.inputs if name == "gamma"]
        object.__setattr__(self, "saved", self.saved or (self.x, *self.statistics, *gamma))
        object.__setattr__(self, "gradients", self.gradients or self.inputs)

    @property
    def function(self) -> Callable[..., Any]:
        """`function(*inputs, **options)` returns y; where no function does, it is `forward`."""
        return _public(self.name)

    @property
    def forward(self) -> Callable[..., Any]:
        """Returns y and the statistics; where no function does, it is `function`."""
        if not self.has_backward:
            return self.function
        return _public(self._stem + "_forward")

    @property
    def backward(self) -> Callable[..., Any]:
        """`backward(dy, *saved, **options)` returns the gradients."""
        return _public(self._stem + "_backward")

    @property
    def _stem(self) -> str:
        return self.name.removesuffix("_forward")

    @property
    def main_case(self) -> Case:
        return next(iter(self.cases.values()))

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.main_case.shapes)

    @property
    def x(self) -> str:
        """The caller's name of x."""
        return self.inputs[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The inputs besides x."""
        return self.inputs[1:]

    @property
    def optional(self) -> tuple[str, ...]:
        return tuple(name for name in self.inputs if name in OPTIONAL)

    @cached_property
    def features(self) -> set[str]:
        """What tests may require of an operation: inputs, statistics, and the names below."""
        flags = {
            "rows": self.over_rows,
            "scaled rows": self.over_rows and self.scales_rows,
            "epsilon": self.epsilon is not None,
            "backward": self.has_backward,
            "out": self.has_out,
            "masks": "a mask" in self.cases,
            "samples": self.per_sample,
            "parameters": len(self.inputs) > 1,
            "a mean": any(name.endswith("mean") for name in self.statistics),
        }
        return {*self.inputs, *self.statistics, *(name for name in flags if flags[name])}

    def dtype_of(self, statistic: str, dtype: str) -> str:
        """Return the dtype of a statistic for x of a dtype; a running one has that of its input."""
        return dtype if statistic in self.inputs else ACCUMULATION[dtype]

    def options_of(self, function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
        """Return the options that a function has."""
        known = inspect.signature(function).parameters
        return {name: value for name, value in options.items() if name in known}

    def define(self, inputs: RefValues, options: dict[str, Any]) -> RefValues:
        """Return y and the statistics of inputs in the arithmetic of the reference."""
        return self.definition(inputs, {"epsilon": self.epsilon, **options})

    def evaluate(self, np_inputs: NumpyInputs, options: dict[str, Any]) -> RefValues:
        """Return y and the statistics of NumPy arrays."""
        return self.define(all_to_reference(np_inputs), options)

    @property
    def empty_cases(self) -> dict[str, Case]:
        """Calls without elements, by the shape of x."""
        if self.over_rows:
            cases = [row_case(shape, self.parameters) for shape in EMPTY_ROWS]
        else:
            cases = list(self.empty_along_each_axis(self.main_case))
        return {str(case.shapes[self.x]): case for case in cases}

    def empty_along_each_axis(self, case: Case) -> list[Case]:
        """Return a case with each axis of x in turn of length 0, and of the inputs along it."""
        cases = []
        for axis, length in enumerate(case.shapes[self.x]):
            shapes = {
                name: shape
                if name.endswith("weights")  # which are of no axis
                else tuple(0 if n == length else n for n in shape)
                for name, shape in case.shapes.items()
            }
            lengths = list(case.shapes[self.x])
            lengths[axis] = 0
            options = dict(case.options)
            if "where" in options:
                whole = np.broadcast_to(options["where"], case.shapes[self.x])
                options["where"] = np.take(whole, [], axis=axis)
            cases.append(Case(shapes | {self.x: tuple(lengths)}, options))
        return [each for each in cases if not self.needs_values or 0 in each.shapes["running_mean"]]


def _public(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(ln, name)
    return function


def operation(**description: Any) -> Callable[[Definition], OperationSpec]:
    """Make the description of an operation out of its definition, which has its name."""
    return lambda definition: OperationSpec(
        name=definition.__name__, definition=definition, **description
    )


#: For x of three axes.
AXIS: BadOptions = {
    "axis out of range": (ValueError, "axis 3 is out of range", {"axis": 3}),
    "no axis": (ValueError, r"axis=\(\) leaves nothing", {"axis": ()}),
    "an axis twice": (ValueError, "names an axis twice", {"axis": (1, -2)}),
    "axis is a fraction": (TypeError, "axis must be an int or a tuple of ints", {"axis": 1.0}),
}


def row_operation(
    parameters: tuple[str, ...] = (),
    *,
    more_cases: dict[str, Case] | None = None,
    **description: Any,
) -> Callable[[Definition], OperationSpec]:
    """As `operation`, for one that normalises over `axis`; parameters have the axes' shape.

    Its statistics keep the axes. Its definition returns "rstd", with which x_hat has a mean square
    of 1, or "norm" (among other statistics), with which x_hat has a sum of squares of 1.
    """
    cases = {
        "last axis": row_case((3, 3, 33), parameters),
        "two axes": row_case((3, 4, 5), parameters, axis=(2, 1)),
        "axis between": row_case((3, 4, 5), parameters, axis=1),
        "outer axes": row_case((3, 4, 5), parameters, axis=(0, 2)),
        **(more_cases or {}),
    }
    defaults: dict[str, Any] = {"cases": cases, "group_max": over_axis, "bad_options": AXIS}
    return operation(over_rows=True, **(defaults | description))


def row_case(shape: tuple[int, ...], parameters: tuple[str, ...], **options: Any) -> Case:
    """Return a call of x of a shape, and of parameters of the shape of the axes."""
    axes = axes_of(options.get("axis", -1), len(shape))
    of_axes = tuple(shape[axis] for axis in axes)
    return Case({"x": shape, **dict.fromkeys(parameters, of_axes)}, options)


def over(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the maximum over some axes, for each element."""
    return np.broadcast_to(np.max(values, axis=axes, keepdims=True, initial=0), values.shape)


def over_axis(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return the maximum over `axis`."""
    return over(values, axes_of(options.get("axis", -1), values.ndim))


def over_slices(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return the maximum over all axes except `axis`."""
    return over(values, axes_without(options.get("axis", 0), values.ndim))


def make_inputs(
    spec: OperationSpec, case: Case, values: str, dtype: str, without: str = ""
) -> NumpyInputs:
    """Return the inputs of a call as NumPy arrays, by name; None for the one left out."""
    np_inputs: NumpyInputs = {}
    for name, shape in case.shapes.items():
        rng = generator(spec.name, name, shape, values)
        if name == spec.x:
            m = shape[0] if shape else 1
            made = VALUES[values](rng, m, int(np.prod(shape[1:]))).reshape(shape)
        else:
            made = np.asarray(PARAMETERS[name](rng, shape))
        np_inputs[name] = None if name == without else made.astype(DTYPES[dtype])
    return np_inputs


def gradient_of_y(spec: OperationSpec, case: Case, dtype: str) -> np.ndarray:
    """Return a dy for a call."""
    shape = case.shapes[spec.x]
    return generator(spec.name, "dy", shape).standard_normal(shape).astype(DTYPES[dtype])
