"""Calls of the family's operations, and their results held to the definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import definitions, tolerances
from .family import Case, Member, Plain, gradient_of_y
from .libraries import DTYPES, Library
from .tolerances import ACCUMULATION


class Alone(NamedTuple):
    """The result of a function that gives no statistics."""

    y: Any


def arrays(library: Library, plain: Plain) -> dict[str, Any]:
    """The inputs as the library's arrays, by name."""
    return {name: None if a is None else library.array(a) for name, a in plain.items()}


def y(member: Member, library: Library, given: dict[str, Any], **options: Any) -> Any:
    """What the plain function gives, or, where there is none, forward."""
    with library.lazily():
        result = member.function(*given.values(), **member.options_of(member.function, options))
    return result[0] if isinstance(result, tuple) else result


def forward(member: Member, library: Library, given: dict[str, Any], **options: Any) -> Any:
    """The result of forward, in the library's own arrays."""
    with library.lazily():
        result = member.forward(*given.values(), **options)
    return result if isinstance(result, tuple) else Alone(result)


def backward(
    member: Member, library: Library, dy: Any, given: dict[str, Any], result: Any, **options: Any
) -> Any:
    """The result of backward, in the library's own arrays; nothing where there is none."""
    if member.backward is None:
        return ()
    known = {**given, **result._asdict()}
    options = member.options_of(member.backward, options)
    with library.lazily():
        return member.backward(dy, *(known[name] for name in member.saved), **options)


def by_input(member: Member, gradients: Any) -> dict[str, Any]:
    """What `backward` gives, by the names of the inputs."""
    return dict(zip(member.gradients, gradients, strict=True)) if gradients else {}


def both(
    member: Member, library: Library, dy: Any, given: dict[str, Any], **options: Any
) -> tuple[Any, Any]:
    """The results of forward and of backward."""
    result = forward(member, library, given, **member.options_of(member.forward, options))
    return result, backward(member, library, dy, given, result, **options)


def differentiable(
    member: Member, library: Library, given: dict[str, Any], case: Case
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Y as a function of the inputs that have a gradient, and these inputs."""

    def run(*arrays: Any) -> Any:
        named = {**given, **dict(zip(member.gradients, arrays, strict=True))}
        return y(member, library, named, **case.options)

    return run, tuple(given[name] for name in member.gradients)


def check_forward(
    member: Member, library: Library, case: Case, plain: Plain, actual: Any, dtype: str
) -> None:
    """Y and the statistics against the definition."""
    expected = definitions.evaluate(member.definition, plain, case.options)
    right = expected[member.y]
    scale = abs(right)
    if plain.get("beta") is not None:
        product = definitions.evaluate(member.definition, {**plain, "beta": None}, case.options)
        shift = abs(right - product[member.y])
        scale = np.maximum(abs(product[member.y]), shift)
    scale = member.together(np.asarray(scale, np.float64), case.options)
    tolerances.assert_close(member.y, library.numpy(actual[0]), right, tolerances.Y, scale, dtype)
    peak = np.max(abs(plain[member.x].astype(np.float64)))
    for name in member.statistics:
        statistic, before = getattr(actual, name), plain.get(name)
        if name in plain and before is None:
            assert statistic is None
            continue
        if before is not None:  # which enters it as x does
            peak = np.maximum(peak, np.max(abs(before.astype(np.float64))))
        own = member.dtype_of(name, dtype)
        check_statistic(name, library.numpy(statistic), expected[name], peak, own)


def check_statistic(name: str, actual: Any, expected: Any, peak: Any, dtype: str) -> None:
    """A mean to so many ulp of the largest of what it is of, anything else relatively.

    What the dtype cannot hold is infinite.
    """
    assert actual.dtype == DTYPES[dtype]
    assert actual.shape == np.shape(expected)
    if name.endswith("mean"):
        tolerances.assert_close(name, actual, expected, tolerances.MEAN, peak, dtype)
        return
    steps = tolerances.VARIANCE if name.endswith("var") else tolerances.RSTD
    wide = np.asarray(expected, np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(wide.astype(actual.dtype).astype(np.float64))
    np.testing.assert_array_equal(np.isfinite(actual.astype(np.float64)), finite, err_msg=name)
    actual, wide = actual[finite].astype(np.float64), wide[finite]
    relative = steps * float(np.finfo(DTYPES[ACCUMULATION[dtype]]).eps) * abs(wide)
    error = abs(actual - wide)
    assert np.all(error <= relative + tolerances.allowed(0, wide, wide, dtype)), (name, error)


def check_gradients(
    member: Member,
    library: Library,
    case: Case,
    plain: Plain,
    actual: Any,
    dtype: str,
    *,
    looser: float = 1.0,
    sample: int | None = None,
) -> None:
    """The gradients of all inputs that are not None against the derivatives of the definition.

    `actual` are all of them, or none. A sample is of so many places of each input.
    """
    if actual == ():
        return
    dy = gradient_of_y(member, case, dtype)

    def exact_of(name: str) -> definitions.Gradient:
        given = plain if plain[name] is not None else {**plain, name: np.ones(case.shapes[name])}
        places, number = None, sample
        if dtype == "float64" and sample is None:  # mpmath computes all of y for each place
            number = 7
        if number is not None:
            places = np.unique(np.linspace(0, given[name].size - 1, number).astype(int))
        return definitions.gradient(
            member.definition,
            dy,
            given,
            name,
            case.options,
            y=member.y,
            places=places,
            scaled_everywhere=sample is None,
        )

    for name, gradient in zip(member.gradients, actual, strict=True):
        if plain[name] is None:
            continue
        exact = exact_of(name)
        values = library.numpy(gradient)
        assert values.shape == plain[name].shape
        condition = np.asarray(member.condition(plain) if member.condition else 1.0)
        if name == member.x:
            steps = tolerances.DX
            scale = condition * member.together_in(gradient=True)(exact.scale, case.options)
        else:
            steps = tolerances.PARAMETER_GRADIENT
            scale = np.maximum(exact.scale, tolerances.LEAST_X_HAT * np.max(exact.scale))
            other = member.differences.get(name)
            if other is not None:
                scale = np.maximum(scale, exact_of(other).scale)
            scale = np.max(condition) * scale
        tolerances.assert_close(
            "d" + name,
            values.reshape(-1)[exact.places],
            exact.values,
            looser * steps,
            scale.reshape(-1)[exact.places],
            dtype,
        )
