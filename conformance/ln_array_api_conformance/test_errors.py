"""Every wrong call raises the named error, which names the function and the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import ln_array_api as ln

from . import operation_calls as calls
from .libraries import Library
from .operation_spec import OperationSpec
from .operations import OPERATIONS
from .plugin import has_all, library_under_test


class BadCall(NamedTuple):
    """A wrong call over rows: how it differs from a right one."""

    error: type[Exception]
    match: str
    change: Callable[[Library, dict[str, Any]], None]
    """Changes the arguments of a right call, by name, in place."""
    needs: tuple[str, ...] = ()


def _set(**changes: Any) -> Callable[[Library, dict[str, Any]], None]:
    return lambda library, call: call.update(changes)


def _array(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    def change(library: Library, call: dict[str, Any]) -> None:
        call[name] = library.array(np.ones(shape, dtype))

    return change


def other_library(library: Library, values: np.ndarray) -> Any:
    """Return the same values in an array of another library."""
    if library.name != "numpy":
        return values
    import array_api_strict

    return array_api_strict.asarray(values)


def _other_library(name: str) -> Any:
    def change(library: Library, call: dict[str, Any]) -> None:
        call[name] = other_library(library, library.numpy(call.get(name, call["x"])))

    return change


def _on_second_device(name: str) -> Any:
    def change(library: Library, call: dict[str, Any]) -> None:
        plain = library.numpy(call["x"])
        call["x"] = library.bound(plain)
        call[name] = library.on_second_device(library.numpy(call[name]) if name in call else plain)

    return change


def _replace(name: str, make: Callable[[Any], Any]) -> Any:
    def change(library: Library, call: dict[str, Any]) -> None:
        call[name] = make(library.numpy(call[name]))

    return change


def _overlapping(name: str) -> Any:
    """X and `out` that share memory, shifted by a row; or `out` that is a parameter."""

    def change(library: Library, call: dict[str, Any]) -> None:
        if name == "x":
            memory = library.array(np.ones((4, 5), np.float32))
            call["x"], call["out"] = memory[:3, :], memory[1:, :]
        else:
            memory = library.array(np.ones((3, 5), np.float32))
            call[name], call["out"] = memory[1, :], memory

    return change


X_SHAPE = (3, 5)
#: Stands for the name of an operation's last statistic.
STATISTIC = "statistic"
#: An operation without one of these is not called with a wrong one.
REQUIRED = {"gamma", "out"}
BOTH = {
    "x is a list": BadCall(TypeError, "x: list", _set(x=[[1.0, 2.0]])),
    "x is a number": BadCall(TypeError, "x: float", _set(x=1.0)),
    "x is an integer array": BadCall(
        TypeError, "x has dtype int32.*cast", _array("x", X_SHAPE, np.int32)
    ),
    "x is boolean": BadCall(TypeError, "x has dtype bool.*cast", _array("x", X_SHAPE, np.bool_)),
    "x is complex": BadCall(TypeError, "x has dtype complex64", _array("x", X_SHAPE, np.complex64)),
    "x has no dimensions": BadCall(ValueError, "axis -1 is out of range", _array("x", ())),
    "axis too large": BadCall(ValueError, "axis 2 is out of range.*-2 to 1", _set(axis=2)),
    "axis too small": BadCall(ValueError, "axis -3 is out of range", _set(axis=-3)),
    "no axis": BadCall(ValueError, r"axis=\(\)", _set(axis=())),
    "an axis twice": BadCall(ValueError, "twice", _set(axis=(1, -1))),
    "axis is a fraction": BadCall(TypeError, "axis must be an int", _set(axis=1.0)),
    "axis is None": BadCall(TypeError, "axis must be an int", _set(axis=None)),
    "gamma of the rank of x, but another length": BadCall(
        ValueError, r"gamma has shape \(2, 5\).*\(5,\)", _array("gamma", (2, 5))
    ),
    "gamma that would broadcast": BadCall(
        ValueError, r"gamma has shape \(1,\)", _array("gamma", (1,))
    ),
    "gamma of integers": BadCall(
        TypeError, "gamma has dtype int64", _array("gamma", (5,), np.int64)
    ),
    "gamma is a list": BadCall(TypeError, "gamma: list", _set(gamma=[1.0] * 5)),
    "gamma of another library": BadCall(TypeError, "gamma is an array of", _other_library("gamma")),
    "gamma on another device": BadCall(
        ln.DeviceMismatchError, "gamma is on", _on_second_device("gamma"), ("a second device",)
    ),
}
FORWARD = {
    "out of another shape": BadCall(
        ValueError, r"out has shape \(5, 3\)", _array("out", (5, 3)), ("writing",)
    ),
    "out of another dtype": BadCall(
        ValueError, "out has dtype float64", _array("out", X_SHAPE, np.float64), ("writing",)
    ),
    "out of an integer dtype": BadCall(
        ValueError, "out has dtype int32", _array("out", X_SHAPE, np.int32), ("writing",)
    ),
    "out is a list": BadCall(TypeError, "out: list", _set(out=[0.0]), ("writing",)),
    "out of another library": BadCall(
        TypeError,
        "out is an array of",
        _other_library("out"),
        ("writing",),
    ),
    "out overlaps x": BadCall(ValueError, "out overlaps x", _overlapping("x"), ("memory",)),
    "out overlaps gamma": BadCall(
        ValueError, "out overlaps gamma", _overlapping("gamma"), ("memory",)
    ),
    "out where nothing can be written": BadCall(
        TypeError, "cannot be written", _array("out", X_SHAPE), ("no writing",)
    ),
    "out on another device": BadCall(
        ln.DeviceMismatchError,
        "out is on",
        _on_second_device("out"),
        ("a second device", "writing"),
    ),
}
BACKWARD = {
    "dy of another shape": BadCall(ValueError, r"dy has shape \(3, 4\)", _array("dy", (3, 4))),
    "dy of integers": BadCall(TypeError, "dy has dtype int32", _array("dy", X_SHAPE, np.int32)),
    "dy of another library": BadCall(TypeError, "dy is an array of", _other_library("dy")),
    "dy on another device": BadCall(
        ln.DeviceMismatchError, "dy is on", _on_second_device("dy"), ("a second device",)
    ),
    "dy is None": BadCall(TypeError, "dy: NoneType", _set(dy=None)),
    "a statistic without the axis": BadCall(
        ValueError, rf"{STATISTIC} has shape \(3,\).*\(3, 1\)", _array(STATISTIC, (3,))
    ),
    "a statistic of 16 bits": BadCall(
        TypeError,
        f"{STATISTIC} has dtype float16",
        _array(STATISTIC, (3, 1), np.float16),
        ("16 bits",),
    ),
    "need is a string": BadCall(ValueError, "need must be a tuple", _set(need="dx")),
    "need is unknown": BadCall(ValueError, "need must be a tuple", _set(need=("dx", "dz"))),
}
NUMPY = {
    "x is masked": BadCall(TypeError, "MaskedArray is not supported", _replace("x", np.ma.asarray)),
    "x is a matrix": BadCall(
        TypeError, "matrix is not supported", _replace("x", lambda a: a.view(np.matrix))
    ),
    "gamma is masked": BadCall(TypeError, "gamma: MaskedArray", _replace("gamma", np.ma.asarray)),
    "x is wider than float64": BadCall(
        TypeError, "x has dtype .*cast", _replace("x", lambda a: a.astype(np.longdouble))
    ),
    "out is read-only": BadCall(
        ValueError, "out is read-only", lambda library, call: call.update(out=_frozen(call["x"]))
    ),
    "out is broadcast": BadCall(
        ValueError,
        "elements of out share memory",
        lambda library, call: call.update(out=_repeated(call["x"])),
    ),
}


def _frozen(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def _repeated(x: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(x.copy(), x.shape, (0, x.itemsize))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each bad call that the library and the operation under test can be given."""
    library = library_under_test(metafunc.config)
    sets = {"bad_forward": BOTH | FORWARD, "bad_backward": BOTH | BACKWARD}
    for name, cases in sets.items():
        if name in metafunc.fixturenames:
            if library.name == "numpy":
                cases = cases | {
                    key: bad
                    for key, bad in NUMPY.items()
                    if name == "bad_forward" or "out" not in key
                }
            chosen = {
                f"{spec.name}-{key}": (spec, bad)
                for spec in OPERATIONS.values()
                for key, bad in cases.items()
                if spec.over_rows
                and REQUIRED.intersection(key.split()) <= spec.features
                and has_all(library, bad.needs)
            }
            metafunc.parametrize(("row_operation", name), chosen.values(), ids=chosen)


def _right_rows(operation: OperationSpec, library: Library) -> dict[str, Any]:
    x = np.linspace(0.0, 1.0, 15, dtype=np.float32).reshape(X_SHAPE)
    call = {name: library.array(np.ones(5, np.float32)) for name in operation.parameters}
    return {"x": library.array(x), "axis": -1, **call}


def test_forward(row_operation: OperationSpec, library: Library, bad_forward: BadCall) -> None:
    call = _right_rows(row_operation, library)
    bad_forward.change(library, call)
    arrays = [call.pop(name) for name in row_operation.inputs]
    functions = (row_operation.function, row_operation.forward)
    assert_raises(bad_forward.error, bad_forward.match, functions, arrays, call)


def test_backward(row_operation: OperationSpec, library: Library, bad_backward: BadCall) -> None:
    call = _right_rows(row_operation, library)
    absent = [None for _ in row_operation.parameters]
    result = row_operation.forward(call["x"], *absent)
    call |= {"dy": call["x"], **result._asdict()}
    bad_backward.change(library, call)
    last = row_operation.statistics[-1]
    call[last] = call.pop(STATISTIC, call[last])
    arrays = [call[name] for name in ("dy", *row_operation.saved)]
    options: dict[str, Any] = {name: call[name] for name in ("axis", "need") if name in call}
    match = bad_backward.match.replace(STATISTIC, last)
    assert_raises(bad_backward.error, match, (row_operation.backward,), arrays, options)


@pytest.mark.having("rows")
def test_arrays_are_positional_and_options_are_not(
    operation: OperationSpec, library: Library
) -> None:
    call = _right_rows(operation, library)
    with pytest.raises(TypeError):
        operation.function(**call)
    with pytest.raises(TypeError):
        operation.function(call["x"], *(None for _ in operation.parameters), -1)


def assert_raises(
    error: type[Exception], match: str, functions: Any, arrays: list[Any], options: dict[str, Any]
) -> None:
    for function in functions:
        for _ in range(2):  # once more, should the first call have left a plan
            with pytest.raises(error, match=f"^{function.__name__}: .*{match}"):
                function(*arrays, **options)


def wrong_arrays(
    library: Library, said: str, values: np.ndarray, is_x: bool
) -> list[tuple[type[Exception], str, Any]]:
    """Return wrong replacements of an array: the error, its message, and the replacement."""
    stacked = library.array(np.stack([values, values]))
    wrong: list[tuple[type[Exception], str, Any]] = [
        (TypeError, f"{said} has dtype int32", library.array(values.astype(np.int32))),
        (TypeError, f"{said}: list", [1.0, 2.0]),
    ]
    return wrong if is_x else [*wrong, (ValueError, f"{said} has shape", stacked)]


def test_wrong_inputs(operation: OperationSpec, library: Library) -> None:
    _, lib_inputs = calls.right_call(operation, library)
    functions, options = (operation.function, operation.forward), operation.main_case.options
    for name, right in lib_inputs.items():
        values, is_x = library.numpy(right), name == operation.x
        wrong = wrong_arrays(library, name, values, is_x)
        if not is_x:
            other = other_library(library, values)
            wrong.append((TypeError, f"{name} is an array of", other))
        for error, match, value in wrong:
            arrays = list({**lib_inputs, name: value}.values())
            assert_raises(error, match, functions, arrays, options)
        there = library.on_second_device(values)
        if there is not None and not is_x:
            x = library.bound(library.numpy(lib_inputs[operation.x]))
            arrays = list({**lib_inputs, operation.x: x, name: there}.values())
            assert_raises(ln.DeviceMismatchError, f"{name} is on", functions, arrays, options)


@pytest.mark.having("backward")
def test_wrong_saved_inputs(operation: OperationSpec, library: Library) -> None:
    dy, lib_inputs = calls.right_call(operation, library)
    options = operation.main_case.options
    result = calls.forward(operation, library, lib_inputs, **options)
    known = {"dy": dy, **lib_inputs, **result._asdict()}
    names, functions = ("dy", *operation.saved), (operation.backward,)
    options = operation.options_of(operation.backward, options)
    for name in names:
        said = "d" + operation.y if name == "dy" else name
        values = library.numpy(known[name])
        for error, match, value in wrong_arrays(library, said, values, name == operation.x):
            arrays = [{**known, name: value}[each] for each in names]
            assert_raises(error, match, functions, arrays, options)
    arrays = [known[each] for each in names]
    for need in ("dx", ("dz",)):
        some = {**options, "need": need}
        assert_raises(ValueError, "need must be a tuple", functions, arrays, some)


def test_wrong_options(operation: OperationSpec, library: Library, bad_options: str) -> None:
    _, lib_inputs = calls.right_call(operation, library)
    error, match, changes = operation.bad_options[bad_options]
    functions = [
        function
        for function in (operation.function, operation.forward)
        if changes.keys() == operation.options_of(function, changes).keys()
    ]
    options = {**operation.main_case.options, **changes}
    assert_raises(error, match, functions, list(lib_inputs.values()), options)


@pytest.mark.having("epsilon")
def test_wrong_epsilon(operation: OperationSpec, library: Library) -> None:
    _, lib_inputs = calls.right_call(operation, library)
    functions = (operation.function, operation.forward)
    for epsilon in (-1e-5, float("nan"), float("inf"), "1e-5"):
        error = TypeError if isinstance(epsilon, str) else ValueError
        match = "epsilon must be a real" if isinstance(epsilon, str) else "epsilon must be finite"
        options = {**operation.main_case.options, "epsilon": epsilon}
        assert_raises(error, match, functions, list(lib_inputs.values()), options)
