"""Every wrong call raises the named error, which names the function and the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import ln_array_api as ln

from .libraries import Library
from .operations import Operation
from .plugin import has_all, library_under_test


class BadCall(NamedTuple):
    """A wrong call: how it differs from a right one."""

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


def _other_library(name: str) -> Any:
    def change(library: Library, call: dict[str, Any]) -> None:
        plain = library.numpy(call.get(name, call["x"]))
        if library.name == "numpy":
            import array_api_strict

            call[name] = array_api_strict.asarray(plain)
        else:
            call[name] = plain

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
    "gamma of the shape of x": BadCall(
        ValueError, r"gamma has shape \(3, 5\).*\(5,\)", _array("gamma", X_SHAPE)
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
    "epsilon is negative": BadCall(ValueError, "epsilon must be finite", _set(epsilon=-1e-5)),
    "epsilon is NaN": BadCall(ValueError, "epsilon must be finite", _set(epsilon=float("nan"))),
    "epsilon is infinite": BadCall(
        ValueError, "epsilon must be finite", _set(epsilon=float("inf"))
    ),
    "epsilon is a string": BadCall(TypeError, "epsilon must be a real", _set(epsilon="1e-5")),
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
    "rstd without the axis": BadCall(
        ValueError, r"rstd has shape \(3,\).*\(3, 1\)", _array("rstd", (3,))
    ),
    "rstd of 16 bits": BadCall(
        TypeError, "rstd has dtype float16", _array("rstd", (3, 1), np.float16), ("16 bits",)
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
    """One test for each bad call that the library under test can be given."""
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
            chosen = {key: bad for key, bad in cases.items() if has_all(library, bad.needs)}
            metafunc.parametrize(name, chosen.values(), ids=chosen)


def _right_call(operation: Operation, library: Library) -> dict[str, Any]:
    x = np.linspace(0.0, 1.0, 15, dtype=np.float32).reshape(X_SHAPE)
    call = {name: library.array(np.ones(5, np.float32)) for name in operation.parameters}
    return {"x": library.array(x), "axis": -1, **call}


def test_forward(operation: Operation, library: Library, bad_forward: BadCall) -> None:
    call = _right_call(operation, library)
    bad_forward.change(library, call)
    arrays = [call.pop("x"), *(call.pop(name) for name in operation.parameters)]
    for function in (operation.function, operation.forward):
        with pytest.raises(bad_forward.error, match=f"^{function.__name__}: .*{bad_forward.match}"):
            function(*arrays, **call)
        with pytest.raises(bad_forward.error):  # once more, should the first have left a plan
            function(*arrays, **call)


def test_backward(operation: Operation, library: Library, bad_backward: BadCall) -> None:
    call = _right_call(operation, library)
    result = operation.forward(call["x"])
    call |= {"dy": call["x"], **result._asdict()}
    bad_backward.change(library, call)
    names = ("dy", "x", *operation.statistics, "gamma")
    arrays = [call[name] for name in names]
    options = {name: call[name] for name in ("axis", "need") if name in call}
    match = f"^{operation.backward.__name__}: .*{bad_backward.match}"
    with pytest.raises(bad_backward.error, match=match):
        operation.backward(*arrays, **options)


def test_arrays_are_positional_and_options_are_not(operation: Operation, library: Library) -> None:
    call = _right_call(operation, library)
    with pytest.raises(TypeError):
        operation.function(**call)
    with pytest.raises(TypeError):
        operation.function(call["x"], None, None, -1)
