"""Which calls the backend under test takes: it may leave any, which then run generically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

from .libraries import DTYPES, Library
from .plugin import CALLS_TAKEN
from .tolerances import ACCUMULATION

#: Of x. A function is asked about with the next shape if the backend refuses the last.
SHAPES = ((4, 4, 64), (128, 4, 1024), (1, 4, 1 << 18))

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def calls_of_each_primitive(
    library: Library, dtype: str, shape: tuple[int, ...], parameters: bool
) -> Iterator[Call]:
    """Functions, arrays and options; with gamma and beta or without."""

    def ones(*lengths: int, dtype: str = dtype) -> Any:
        return library.array(np.ones(lengths, DTYPES[dtype]))

    def affine(n: int) -> tuple[Any, Any]:
        return (ones(n), ones(n)) if parameters else (None, None)

    def statistic(*lengths: int) -> Any:
        return ones(*lengths, dtype=ACCUMULATION[dtype])

    x, (b, c, s) = ones(*shape), shape
    gamma, beta = affine(s)
    rstd = statistic(b, c, 1)
    yield ln.layer_norm_forward, (x, gamma, beta), {}
    yield ln.layer_norm_backward, (x, x, rstd, rstd, gamma), {}
    yield ln.rms_norm_forward, (x, gamma), {}
    yield ln.rms_norm_backward, (x, x, rstd, gamma), {}
    gamma, beta = affine(c)
    rstd, options = statistic(b, 2), {"num_groups": 2}
    yield ln.group_norm_forward, (x, gamma, beta), options
    yield ln.group_norm_backward, (x, x, rstd, rstd, gamma), options
    rstd = statistic(c)
    yield ln.batch_norm_forward, (x, gamma, beta), {}
    yield ln.batch_norm, (x, rstd, rstd, gamma, beta), {}
    yield ln.batch_norm_backward, (x, x, rstd, rstd, gamma), {}


def test_the_backend_takes_some_calls(
    library: Library, request: pytest.FixtureRequest, record_property: Callable[[str, str], None]
) -> None:
    """A suite that ran on the generic kernels by mistake would prove nothing of the backend."""
    wanted = request.config.getoption("backend")
    chosen: dict[tuple[str, str], str] = {}
    reasons: dict[str, str] = {}
    for dtype, shape, parameters in product(library.dtypes, SHAPES, (True, False)):
        for function, arrays, options in calls_of_each_primitive(library, dtype, shape, parameters):
            kind = function.__name__, dtype
            if chosen.get(kind) in (None, "generic"):
                explanation = ln.explain(function, *arrays, **options)
                chosen[kind] = explanation.backend
                reasons[f"{function.__name__}, {dtype}, shape {shape}"] = explanation.reason
    for backend in sorted(set(chosen.values())):
        record_property(CALLS_TAKEN, _summary(backend, chosen))
    assert wanted in (None, *chosen.values()), (
        f"backend {wanted!r} takes none of the calls that it was asked about, so whatever passes "
        "here passes on other kernels. Calls and the reasons why they run elsewhere:\n"
        + "\n".join(f"{call}: {reason}" for call, reason in reasons.items())
    )


def _summary(backend: str, chosen: dict[tuple[str, str], str]) -> str:
    """The functions and dtypes that a backend takes, for people."""
    dtypes: dict[str, list[str]] = {}
    for (function, dtype), name in chosen.items():
        if name == backend:
            dtypes.setdefault(function, []).append(dtype)
    functions: dict[str, list[str]] = {}
    for function, names in dtypes.items():
        functions.setdefault(", ".join(names), []).append(function)
    count = sum(name == backend for name in chosen.values())
    lines = [f"  {names}: {', '.join(each)}" for names, each in functions.items()]
    return "\n".join([f"{backend} takes {count} of {len(chosen)} kinds of call:", *lines])
