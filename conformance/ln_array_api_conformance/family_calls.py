"""Calls of the family's operations, and checks of their results against the definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import definitions, tolerances
from .family import Case, NumpyInputs, OperationSpec, gradient_of_y
from .libraries import DTYPES, Library
from .tolerances import ACCUMULATION


class YOnly(NamedTuple):
    """The result of a function that gives no statistics."""

    y: Any


def arrays(library: Library, np_inputs: NumpyInputs) -> dict[str, Any]:
    """The inputs as the library's arrays, by name."""
    return {name: None if a is None else library.array(a) for name, a in np_inputs.items()}


def y(member: OperationSpec, library: Library, lib_inputs: dict[str, Any], **options: Any) -> Any:
    """Return y of the plain function, or of forward where there is no plain one."""
    with library.forbid_compute():
        result = member.function(
            *lib_inputs.values(), **member.options_of(member.function, options)
        )
    return result[0] if isinstance(result, tuple) else result


def forward(
    member: OperationSpec, library: Library, lib_inputs: dict[str, Any], **options: Any
) -> Any:
    """The result of forward, in the library's own arrays."""
    with library.forbid_compute():
        result = member.forward(*lib_inputs.values(), **options)
    return result if isinstance(result, tuple) else YOnly(result)


def backward(
    member: OperationSpec,
    library: Library,
    dy: Any,
    lib_inputs: dict[str, Any],
    result: Any,
    **options: Any,
) -> Any:
    """The result of backward, in the library's own arrays; nothing where there is none."""
    if member.backward is None:
        return ()
    known = {**lib_inputs, **result._asdict()}
    options = member.options_of(member.backward, options)
    with library.forbid_compute():
        return member.backward(dy, *(known[name] for name in member.saved), **options)


def by_input(member: OperationSpec, gradients: Any) -> dict[str, Any]:
    """Return the gradients by the names of the inputs."""
    return dict(zip(member.gradients, gradients, strict=True)) if gradients else {}


def forward_backward(
    member: OperationSpec, library: Library, dy: Any, lib_inputs: dict[str, Any], **options: Any
) -> tuple[Any, Any]:
    """The results of forward and of backward."""
    result = forward(member, library, lib_inputs, **member.options_of(member.forward, options))
    return result, backward(member, library, dy, lib_inputs, result, **options)


def differentiable(
    member: OperationSpec, library: Library, lib_inputs: dict[str, Any], case: Case
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Y as a function of the inputs that have a gradient, and these inputs."""

    def run(*arrays: Any) -> Any:
        named = {**lib_inputs, **dict(zip(member.gradients, arrays, strict=True))}
        return y(member, library, named, **case.options)

    return run, tuple(lib_inputs[name] for name in member.gradients)


def check_forward(
    member: OperationSpec,
    library: Library,
    case: Case,
    np_inputs: NumpyInputs,
    actual: Any,
    dtype: str,
) -> None:
    """Y and the statistics against the definition."""
    expected = definitions.evaluate(member.definition, np_inputs, case.options)
    right = expected[member.y]
    scale = abs(right)
    if np_inputs.get("beta") is not None:
        product = definitions.evaluate(member.definition, {**np_inputs, "beta": None}, case.options)
        shift = abs(right - product[member.y])
        scale = np.maximum(abs(product[member.y]), shift)
    scale = member.group_max(np.asarray(scale, np.float64), case.options)
    tolerances.assert_close(member.y, library.numpy(actual[0]), right, tolerances.Y, scale, dtype)
    max_abs = np.max(abs(np_inputs[member.x].astype(np.float64)))
    for name in member.statistics:
        statistic, before = getattr(actual, name), np_inputs.get(name)
        if name in np_inputs and before is None:
            assert statistic is None
            continue
        if before is not None:  # which enters it as x does
            max_abs = np.maximum(max_abs, np.max(abs(before.astype(np.float64))))
        own = member.dtype_of(name, dtype)
        check_statistic(name, library.numpy(statistic), expected[name], max_abs, own)


def check_statistic(name: str, actual: Any, expected: Any, max_abs: Any, dtype: str) -> None:
    """Check a mean to so many ulp of `max_abs`, other statistics to a relative tolerance.

    Expected values beyond the range of the dtype have to be infinite.
    """
    assert actual.dtype == DTYPES[dtype]
    assert actual.shape == np.shape(expected)
    if name.endswith("mean"):
        tolerances.assert_close(name, actual, expected, tolerances.MEAN, max_abs, dtype)
        return
    ulps = tolerances.VARIANCE if name.endswith("var") else tolerances.RSTD
    expected64 = np.asarray(expected, np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(expected64.astype(actual.dtype).astype(np.float64))
    np.testing.assert_array_equal(np.isfinite(actual.astype(np.float64)), finite, err_msg=name)
    actual, expected64 = actual[finite].astype(np.float64), expected64[finite]
    relative = ulps * float(np.finfo(DTYPES[ACCUMULATION[dtype]]).eps) * abs(expected64)
    error = abs(actual - expected64)
    assert np.all(
        error <= relative + tolerances.absolute_tolerance(0, expected64, expected64, dtype)
    ), (
        name,
        error,
    )


def check_gradients(
    member: OperationSpec,
    library: Library,
    case: Case,
    np_inputs: NumpyInputs,
    actual: Any,
    dtype: str,
    *,
    tolerance_factor: float = 1.0,
    sample: int | None = None,
) -> None:
    """The gradients of all inputs that are not None against the derivatives of the definition.

    `actual` holds all of them, or none. `sample` is the number of elements to check of each input.
    """
    if actual == ():
        return
    dy = gradient_of_y(member, case, dtype)

    def exact_of(name: str) -> definitions.Gradient:
        lib_inputs = (
            np_inputs
            if np_inputs[name] is not None
            else {**np_inputs, name: np.ones(case.shapes[name])}
        )
        flat_indices, number = None, sample
        if dtype == "float64" and sample is None:  # mpmath computes all of y for each place
            number = 7
        if number is not None:
            flat_indices = np.unique(np.linspace(0, lib_inputs[name].size - 1, number).astype(int))
        return definitions.gradient(
            member.definition,
            dy,
            lib_inputs,
            name,
            case.options,
            y=member.y,
            flat_indices=flat_indices,
            scaled_everywhere=sample is None,
        )

    for name, gradient in zip(member.gradients, actual, strict=True):
        if np_inputs[name] is None:
            continue
        exact = exact_of(name)
        values = library.numpy(gradient)
        assert values.shape == np_inputs[name].shape
        condition = np.asarray(member.condition(np_inputs) if member.condition else 1.0)
        if name == member.x:
            ulps = tolerances.DX
            scale = condition * member.group_max_in(gradient=True)(exact.scale, case.options)
        else:
            ulps = tolerances.PARAMETER_GRADIENT
            scale = np.maximum(exact.scale, tolerances.MIN_X_HAT * np.max(exact.scale))
            other = member.cancelling_gradients.get(name)
            if other is not None:
                scale = np.maximum(scale, exact_of(other).scale)
            scale = np.max(condition) * scale
        tolerances.assert_close(
            "d" + name,
            values.reshape(-1)[exact.flat_indices],
            exact.values,
            tolerance_factor * ulps,
            scale.reshape(-1)[exact.flat_indices],
            dtype,
        )
