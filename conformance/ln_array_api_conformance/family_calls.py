"""Calls of the family's operations, and their results held to the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import definitions, tolerances
from .family import Case, Member, Plain, gradient_of_y
from .libraries import DTYPES, Library
from .tolerances import ACCUMULATION


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
        return member.forward(*given.values(), **options)


def backward(
    member: Member, library: Library, dy: Any, given: dict[str, Any], result: Any, **options: Any
) -> Any:
    """The result of backward, in the library's own arrays."""
    known = {**given, **result._asdict()}
    options = member.options_of(member.backward, options)
    with library.lazily():
        return member.backward(dy, *(known[name] for name in member.saved), **options)


def both(
    member: Member, library: Library, dy: Any, given: dict[str, Any], **options: Any
) -> tuple[Any, Any]:
    """The results of forward and of backward."""
    result = forward(member, library, given, **member.options_of(member.forward, options))
    return result, backward(member, library, dy, given, result, **options)


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
    peak = np.asarray(abs(plain[member.x].astype(np.float64)))
    for name in member.statistics:
        check_statistic(name, library.numpy(getattr(actual, name)), expected[name], peak, dtype)


def check_statistic(name: str, actual: Any, expected: Any, magnitudes: Any, dtype: str) -> None:
    """A mean to so many ulp of the largest of what it is of, anything else relatively."""
    accumulation = ACCUMULATION[dtype]
    assert actual.dtype == DTYPES[accumulation]
    assert actual.shape == np.shape(expected)
    if name.endswith("mean"):
        peak = np.max(magnitudes)
        tolerances.assert_close(name, actual, expected, tolerances.MEAN, peak, accumulation)
        return
    steps = tolerances.VARIANCE if name.endswith("var") else tolerances.RSTD
    relative = steps * float(np.finfo(DTYPES[accumulation]).eps)
    wide = np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual.astype(np.float64), wide, rtol=relative, err_msg=name)


def check_gradients(
    member: Member,
    library: Library,
    case: Case,
    plain: Plain,
    actual: Any,
    dtype: str,
    *,
    looser: float = 1.0,
) -> None:
    """The gradients of all inputs that are not None against the derivatives of the definition."""
    dy = gradient_of_y(member, case, dtype)
    for name, gradient in zip(member.gradients, actual, strict=True):
        if plain[name] is None:
            continue
        places = None
        if dtype == "float64":  # mpmath computes all of y for each place, in milliseconds
            places = np.unique(np.linspace(0, plain[name].size - 1, 7).astype(int))
        exact = definitions.gradient(
            member.definition, dy, plain, name, case.options, y=member.y, places=places
        )
        values = library.numpy(gradient)
        assert values.shape == plain[name].shape
        if name == member.x:
            steps, scale = tolerances.DX, member.together(exact.scale, case.options)
        else:
            steps = tolerances.PARAMETER_GRADIENT
            scale = np.maximum(exact.scale, tolerances.LEAST_X_HAT * np.max(exact.scale))
        tolerances.assert_close(
            "d" + name,
            values.reshape(-1)[exact.places],
            exact.values,
            looser * steps,
            scale.reshape(-1)[exact.places],
            dtype,
        )
