"""Calls of operations on the arrays of a library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .libraries import Library
from .operation_spec import Case, NumpyInputs, OperationSpec, gradient_of_y, make_inputs


class YOnly(NamedTuple):
    """The result of a function that returns no statistics."""

    y: Any


def arrays(library: Library, np_inputs: NumpyInputs) -> dict[str, Any]:
    """Return inputs as the library's arrays, by name."""
    return {name: None if a is None else library.array(a) for name, a in np_inputs.items()}


def nan_outside(values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return values with NaN where the mask `where` of a call, if it has one, is false."""
    if "where" not in options:
        return values
    return np.where(options["where"], values, np.asarray(np.nan, values.dtype))


def _options(
    spec: OperationSpec, library: Library, function: Callable[..., Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Return the options that a function has, masks as the library's arrays."""
    return {
        name: library.array(value) if isinstance(value, np.ndarray) else value
        for name, value in spec.options_of(function, options).items()
    }


def right_call(
    spec: OperationSpec,
    library: Library,
    dtype: str = "float32",
    values: str = "normal",
    case: Case | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Return dy and the inputs of a call that succeeds, as the library's arrays."""
    case = case or spec.main_case
    dy = library.array(gradient_of_y(spec, case, dtype))
    return dy, arrays(library, make_inputs(spec, case, values, dtype))


def y(spec: OperationSpec, library: Library, lib_inputs: dict[str, Any], **options: Any) -> Any:
    """Return y of the plain function, or of forward where there is no plain one."""
    with library.forbid_compute():
        result = spec.function(
            *lib_inputs.values(), **_options(spec, library, spec.function, options)
        )
    return result[0] if isinstance(result, tuple) else result


def forward(
    spec: OperationSpec, library: Library, lib_inputs: dict[str, Any], **options: Any
) -> Any:
    """Return the result of forward, in the library's own arrays."""
    with library.forbid_compute():
        result = spec.forward(
            *lib_inputs.values(), **_options(spec, library, spec.forward, options)
        )
    return result if isinstance(result, tuple) else YOnly(result)


def backward(
    spec: OperationSpec,
    library: Library,
    dy: Any,
    lib_inputs: dict[str, Any],
    result: Any,
    **options: Any,
) -> Any:
    """Return the result of backward, in the library's own arrays; nothing where there is none."""
    if not spec.has_backward:
        return ()
    known = {**lib_inputs, **result._asdict()}
    saved = [known[name] for name in spec.saved]
    with library.forbid_compute():
        return spec.backward(dy, *saved, **_options(spec, library, spec.backward, options))


def forward_backward(
    spec: OperationSpec, library: Library, dy: Any, lib_inputs: dict[str, Any], **options: Any
) -> tuple[Any, Any]:
    """Return the results of forward and of backward."""
    result = forward(spec, library, lib_inputs, **options)
    return result, backward(spec, library, dy, lib_inputs, result, **options)


def numpy_results(
    spec: OperationSpec, library: Library, dy: Any, lib_inputs: dict[str, Any], **options: Any
) -> list[np.ndarray]:
    """Return all results and gradients as NumPy arrays."""
    result, gradients = forward_backward(spec, library, dy, lib_inputs, **options)
    return [library.numpy(each) for each in (*result, *gradients) if each is not None]


def by_input(spec: OperationSpec, gradients: Any) -> dict[str, Any]:
    """Return gradients by the names of the inputs."""
    return dict(zip(spec.gradients, gradients, strict=True)) if gradients else {}


def differentiable(
    spec: OperationSpec, library: Library, lib_inputs: dict[str, Any], **options: Any
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return y as a function of the inputs that have a gradient, and these inputs."""

    def run(*arrays: Any) -> Any:
        named = {**lib_inputs, **dict(zip(spec.gradients, arrays, strict=True))}
        return y(spec, library, named, **options)

    return run, tuple(lib_inputs[name] for name in spec.gradients)


def to_bytes(x: np.ndarray) -> bytes:
    """Return the bytes of an array, to compare for equality of bits, NaN included."""
    return np.ascontiguousarray(x).tobytes()
