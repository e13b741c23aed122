"""What the family's results are made of, and what is refused, with which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

from . import family_calls as calls
from .family import NumpyInputs, OperationSpec, gradient_of_y, inputs, without_elements
from .libraries import DTYPES, Library


def right_call(member: OperationSpec, library: Library, dtype: str = "float32") -> tuple[Any, Any]:
    """Dy and the inputs, by name."""
    np_inputs = inputs(member, member.main_case, "normal", dtype)
    dy = library.array(gradient_of_y(member, member.main_case, dtype))
    return dy, calls.arrays(library, np_inputs)


def test_results(member: OperationSpec, library: Library, dtype: str) -> None:
    """Names, libraries and dtypes; and the plain function gives what forward gives."""
    dy, lib_inputs = right_call(member, library, dtype)
    options = member.main_case.options
    result, gradients = calls.forward_backward(member, library, dy, lib_inputs, **options)
    assert result._fields == (member.y, *member.statistics)
    if member.backward is not None:
        assert gradients._fields == tuple("d" + name for name in member.gradients)
    for each in (*result, *gradients):
        assert library.is_array(each)
    for each in (result[0], *gradients):
        assert library.numpy(each).dtype == DTYPES[dtype]
    for name, each in zip(member.statistics, result[1:], strict=True):
        assert library.numpy(each).dtype == DTYPES[member.dtype_of(name, dtype)]
    y = calls.y(member, library, lib_inputs, **options)
    assert library.numpy(y).tobytes() == library.numpy(result[0]).tobytes()


def test_wider_parameters(member: OperationSpec, library: Library) -> None:
    """Parameters in a wider dtype than x: y has the dtype of x, gradients that of their input."""
    dy, lib_inputs = right_call(member, library)
    np_inputs = inputs(member, member.main_case, "normal", "float32")
    wide = {
        name: library.array(np_inputs[name].astype(np.float64))
        for name in lib_inputs
        if name != member.x
    }
    lib_inputs |= wide
    result, gradients = calls.forward_backward(
        member, library, dy, lib_inputs, **member.main_case.options
    )
    assert library.numpy(result[0]).dtype == np.float32
    for name in set(member.statistics) & set(np_inputs):
        values = library.numpy(getattr(result, name))
        assert values.dtype == np.float64
        result = result._replace(**{name: library.array(values.astype(np.float32))})
    calls.check_forward(member, library, member.main_case, np_inputs, result, "float32")
    for name, gradient in calls.by_input(member, gradients).items():
        expected = np.float32 if name == member.x else np.float64
        assert library.numpy(gradient).dtype == expected, name


@pytest.mark.needs("16 bits")
def test_dbeta_has_the_dtype_of_beta(member: OperationSpec, library: Library) -> None:
    """Which may be wider than that of x and gamma, and is known by beta alone."""
    if "beta" not in member.gradients or member.backward is None:
        pytest.skip("it has no gradient of beta")
    dy, lib_inputs = right_call(member, library, "float16")
    options = member.options_of(member.forward, member.main_case.options)
    result = calls.forward(member, library, lib_inputs, **options)
    beta = library.array(np.zeros(member.shapes["beta"], np.float32))
    exact = np.sum(library.numpy(dy).astype(np.float64))
    for without in ((), ("gamma",)):
        known = {**lib_inputs, **result._asdict(), "beta": beta, **dict.fromkeys(without)}
        arrays = [known[name] for name in member.saved if name != "beta"]
        options = member.options_of(member.backward, member.main_case.options)
        gradients = member.backward(dy, *arrays, beta, **options)
        dbeta = library.numpy(gradients.dbeta)
        assert dbeta.dtype == np.float32
        np.testing.assert_allclose(np.sum(dbeta, dtype=np.float64), exact, rtol=1e-6)


def test_need(member: OperationSpec, library: Library) -> None:
    """Each gradient alone is what it is among all, and the others are None."""
    if member.backward is None:
        pytest.skip("it has no gradients of its own")
    dy, lib_inputs = right_call(member, library)
    options = member.main_case.options
    _, everything = calls.forward_backward(member, library, dy, lib_inputs, **options)
    _, nothing = calls.forward_backward(member, library, dy, lib_inputs, need=(), **options)
    assert set(nothing) == {None}
    for name in everything._fields:
        _, alone = calls.forward_backward(member, library, dy, lib_inputs, need=(name,), **options)
        assert [each for each in alone._fields if getattr(alone, each) is not None] == [name]
        expected = library.numpy(getattr(everything, name))
        actual = library.numpy(getattr(alone, name))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_absent_inputs(member: OperationSpec, library: Library) -> None:
    """There is no gradient of what is not there, but of beta, which is always given."""
    if member.backward is None:
        pytest.skip("it has no gradients of its own")
    dy, lib_inputs = right_call(member, library)
    for name in member.optional:
        some = {**lib_inputs, name: None}
        _, gradients = calls.forward_backward(member, library, dy, some, **member.main_case.options)
        if name in member.gradients and name != "beta":
            assert getattr(gradients, "d" + name) is None
        assert gradients.dbeta is not None


def check_zeros(library: Library, gradients: dict[str, Any], np_inputs: NumpyInputs) -> None:
    """Gradients, by the name of the input, of its shape, and all 0."""
    for name, gradient in gradients.items():
        values = library.numpy(gradient).astype(np.float64)
        np.testing.assert_array_equal(values, np.zeros(np_inputs[name].shape), err_msg=name)


def test_nothing_to_normalise(member: OperationSpec, library: Library, dtype: str) -> None:
    """Any axis empty: so is y, statistics of nothing are NaN, gradients are sums of nothing."""
    for case in without_elements(member):
        np_inputs = inputs(member, case, "normal", dtype)
        lib_inputs, dy = calls.arrays(library, np_inputs), library.array(np_inputs[member.x])
        result, gradients = calls.forward_backward(member, library, dy, lib_inputs, **case.options)
        assert library.numpy(result[0]).shape == case.shapes[member.x]
        for name in member.statistics:
            assert np.isnan(library.numpy(getattr(result, name)).astype(np.float64)).all()
        check_zeros(library, calls.by_input(member, gradients), np_inputs)


@pytest.mark.needs("gradients")
def test_nothing_is_differentiated_by_the_library_itself(
    member: OperationSpec, library: Library
) -> None:
    """An empty y depends on all inputs, and their gradients are 0."""
    for case in without_elements(member):
        np_inputs = inputs(member, case, "normal", "float32")
        lib_inputs, dy = calls.arrays(library, np_inputs), library.array(np_inputs[member.x])
        run, inputs_ = calls.differentiable(member, library, lib_inputs, case)
        gradients = library.vjp(run, inputs_, dy)
        check_zeros(library, dict(zip(member.gradients, gradients, strict=True)), np_inputs)


@pytest.mark.needs("byte order")
def test_results_are_in_native_byte_order(
    member: OperationSpec, library: Library, dtype: str
) -> None:
    """Whatever byte order any argument has, and where there is nothing to normalise."""
    swapped = library.layouts()["byte-swapped"]
    for case in (member.main_case, *without_elements(member)):
        np_inputs = inputs(member, case, "normal", dtype)
        lib_inputs = {name: swapped(values) for name, values in np_inputs.items()}
        dy = swapped(gradient_of_y(member, case, dtype))
        result = calls.forward(member, library, lib_inputs, **case.options)
        saved = type(result)(*map(swapped, result))
        gradients = calls.backward(member, library, dy, lib_inputs, saved, **case.options)
        y = calls.y(member, library, lib_inputs, **case.options)
        for each in (y, *result, *gradients):
            assert each.dtype.isnative, case


@pytest.mark.needs("a second device")
def test_everything_runs_on_the_device_of_x(member: OperationSpec, library: Library) -> None:
    """Whichever device is the default: the same bits as on that one."""
    np_inputs = inputs(member, member.main_case, "normal", "float32")
    plain_dy = gradient_of_y(member, member.main_case, "float32")

    def results(put: Callable[[np.ndarray], Any]) -> list[Any]:
        lib_inputs = {name: put(a) for name, a in np_inputs.items()}
        options = member.main_case.options
        y = calls.y(member, library, lib_inputs, **options)
        result, gradients = calls.forward_backward(
            member, library, put(plain_dy), lib_inputs, **options
        )
        return [lib_inputs[member.x], y, *result, *gradients]

    x, *actual = results(library.on_second_device)
    _, *expected = results(library.array)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.device == x.device != theirs.device
        assert ours.shape == theirs.shape
        if library.second_device_has_values:
            assert library.numpy(ours).tobytes() == library.numpy(theirs).tobytes()


def assert_raises(
    error: type[Exception], match: str, functions: Any, arrays: list[Any], options: dict[str, Any]
) -> None:
    for function in functions:
        known = {name: options[name] for name in options}
        for _ in range(2):  # once more, should the first call have left a plan
            with pytest.raises(error, match=f"^{function.__name__}: .*{match}"):
                function(*arrays, **known)


def test_wrong_inputs(member: OperationSpec, library: Library) -> None:
    _, lib_inputs = right_call(member, library)
    functions = (member.function, member.forward)
    for name, right in lib_inputs.items():
        values = library.numpy(right)
        bad_values: list[tuple[type[Exception], str, Any]] = [
            (TypeError, f"{name} has dtype int32", library.array(values.astype(np.int32))),
            (TypeError, f"{name}: list", [1.0, 2.0]),
        ]
        if name != member.x:
            stacked = library.array(np.stack([values, values]))
            bad_values += [
                (ValueError, f"{name} has shape", stacked),
                (TypeError, f"{name} is an array of", other_library(library, values)),
            ]
            there = library.on_second_device(values)
            if there is not None:
                bad_values.append((ln.DeviceMismatchError, f"{name} is on", there))
        bound = {**lib_inputs, member.x: library.bound(library.numpy(lib_inputs[member.x]))}
        for error, match, value in bad_values:
            right_inputs = bound if error is ln.DeviceMismatchError else lib_inputs
            arrays = list({**right_inputs, name: value}.values())
            assert_raises(error, match, functions, arrays, member.main_case.options)


def other_library(library: Library, values: np.ndarray) -> Any:
    """The same values in an array of another library."""
    if library.name != "numpy":
        return values
    import array_api_strict

    return array_api_strict.asarray(values)


def test_wrong_saved_inputs(member: OperationSpec, library: Library) -> None:
    if member.backward is None:
        pytest.skip("it has no gradients of its own")
    dy, lib_inputs = right_call(member, library)
    options = member.main_case.options
    result = calls.forward(
        member, library, lib_inputs, **member.options_of(member.forward, options)
    )
    known = {"dy": dy, **lib_inputs, **result._asdict()}
    first = "d" + member.y
    for name in ("dy", *member.saved):
        values = library.numpy(known[name])
        said = first if name == "dy" else name
        bad_values: list[tuple[type[Exception], str, Any]] = [
            (TypeError, f"{said} has dtype int32", library.array(values.astype(np.int32))),
            (TypeError, f"{said}: list", [1.0, 2.0]),
        ]
        if name != member.x:
            stacked = library.array(np.stack([values, values]))
            bad_values.append((ValueError, f"{said} has shape", stacked))
        for error, match, value in bad_values:
            named = {**known, name: value}
            arrays = [named[each] for each in ("dy", *member.saved)]
            some = member.options_of(member.backward, options)
            assert_raises(error, match, (member.backward,), arrays, some)
    arrays = [known[each] for each in ("dy", *member.saved)]
    for need in ("dx", ("dz",)):
        some = {**member.options_of(member.backward, options), "need": need}
        assert_raises(ValueError, "need must be a tuple", (member.backward,), arrays, some)


def test_wrong_options(member: OperationSpec, library: Library, bad_options: str) -> None:
    _, lib_inputs = right_call(member, library)
    error, match, changes = member.bad_options[bad_options]
    functions = [
        function
        for function in (member.function, member.forward)
        if set(changes) <= set(member.options_of(function, changes))
    ]
    assert_raises(
        error, match, functions, list(lib_inputs.values()), {**member.main_case.options, **changes}
    )


def test_wrong_epsilon(member: OperationSpec, library: Library) -> None:
    if not member.has("epsilon"):
        pytest.skip("it has no epsilon")
    _, lib_inputs = right_call(member, library)
    for epsilon in (-1e-5, float("nan"), float("inf"), "1e-5"):
        error = TypeError if isinstance(epsilon, str) else ValueError
        match = "epsilon must be a real" if isinstance(epsilon, str) else "epsilon must be finite"
        options = {**member.main_case.options, "epsilon": epsilon}
        assert_raises(
            error, match, (member.function, member.forward), list(lib_inputs.values()), options
        )
