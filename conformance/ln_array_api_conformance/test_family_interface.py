"""What the family's results are made of, and what is refused, with which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln

from . import family_calls as calls
from .family import Member, Plain, gradient_of_y, inputs, without_elements
from .libraries import DTYPES, Library


def right_call(member: Member, library: Library, dtype: str = "float32") -> tuple[Any, Any]:
    """Dy and the inputs, by name."""
    plain = inputs(member, member.first, "normal", dtype)
    dy = library.array(gradient_of_y(member, member.first, dtype))
    return dy, calls.arrays(library, plain)


def test_results(member: Member, library: Library, dtype: str) -> None:
    """Names, libraries and dtypes; and the plain function gives what forward gives."""
    dy, given = right_call(member, library, dtype)
    options = member.first.options
    result, gradients = calls.both(member, library, dy, given, **options)
    assert result._fields == (member.y, *member.statistics)
    if member.backward is not None:
        assert gradients._fields == tuple("d" + name for name in member.gradients)
    for each in (*result, *gradients):
        assert library.is_array(each)
    for each in (result[0], *gradients):
        assert library.numpy(each).dtype == DTYPES[dtype]
    for name, each in zip(member.statistics, result[1:], strict=True):
        assert library.numpy(each).dtype == DTYPES[member.dtype_of(name, dtype)]
    y = calls.y(member, library, given, **options)
    assert library.numpy(y).tobytes() == library.numpy(result[0]).tobytes()


def test_wider_parameters(member: Member, library: Library) -> None:
    """Parameters in a wider dtype than x: y has the dtype of x, gradients that of their input."""
    dy, given = right_call(member, library)
    plain = inputs(member, member.first, "normal", "float32")
    wide = {
        name: library.array(plain[name].astype(np.float64)) for name in given if name != member.x
    }
    given |= wide
    result, gradients = calls.both(member, library, dy, given, **member.first.options)
    assert library.numpy(result[0]).dtype == np.float32
    for name in set(member.statistics) & set(plain):
        values = library.numpy(getattr(result, name))
        assert values.dtype == np.float64
        result = result._replace(**{name: library.array(values.astype(np.float32))})
    calls.check_forward(member, library, member.first, plain, result, "float32")
    for name, gradient in calls.by_input(member, gradients).items():
        expected = np.float32 if name == member.x else np.float64
        assert library.numpy(gradient).dtype == expected, name


@pytest.mark.needs("16 bits")
def test_dbeta_has_the_dtype_of_beta(member: Member, library: Library) -> None:
    """Which may be wider than that of x and gamma, and is known by beta alone."""
    if "beta" not in member.gradients or member.backward is None:
        pytest.skip("it has no gradient of beta")
    dy, given = right_call(member, library, "float16")
    options = member.options_of(member.forward, member.first.options)
    result = calls.forward(member, library, given, **options)
    beta = library.array(np.zeros(member.shapes["beta"], np.float32))
    exact = np.sum(library.numpy(dy).astype(np.float64))
    for without in ((), ("gamma",)):
        known = {**given, **result._asdict(), "beta": beta, **dict.fromkeys(without)}
        arrays = [known[name] for name in member.saved if name != "beta"]
        options = member.options_of(member.backward, member.first.options)
        gradients = member.backward(dy, *arrays, beta, **options)
        dbeta = library.numpy(gradients.dbeta)
        assert dbeta.dtype == np.float32
        np.testing.assert_allclose(np.sum(dbeta, dtype=np.float64), exact, rtol=1e-6)


def test_need(member: Member, library: Library) -> None:
    """Each gradient alone is what it is among all, and the others are None."""
    if member.backward is None:
        pytest.skip("it has no gradients of its own")
    dy, given = right_call(member, library)
    options = member.first.options
    _, everything = calls.both(member, library, dy, given, **options)
    _, nothing = calls.both(member, library, dy, given, need=(), **options)
    assert set(nothing) == {None}
    for name in everything._fields:
        _, alone = calls.both(member, library, dy, given, need=(name,), **options)
        assert [each for each in alone._fields if getattr(alone, each) is not None] == [name]
        expected = library.numpy(getattr(everything, name))
        actual = library.numpy(getattr(alone, name))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_absent_inputs(member: Member, library: Library) -> None:
    """There is no gradient of what is not there, but of beta, which is always given."""
    if member.backward is None:
        pytest.skip("it has no gradients of its own")
    dy, given = right_call(member, library)
    for name in member.optional:
        some = {**given, name: None}
        _, gradients = calls.both(member, library, dy, some, **member.first.options)
        if name in member.gradients and name != "beta":
            assert getattr(gradients, "d" + name) is None
        assert gradients.dbeta is not None


def check_zeros(library: Library, gradients: dict[str, Any], plain: Plain) -> None:
    """Gradients, by the name of the input, of its shape, and all 0."""
    for name, gradient in gradients.items():
        values = library.numpy(gradient).astype(np.float64)
        np.testing.assert_array_equal(values, np.zeros(plain[name].shape), err_msg=name)


def test_nothing_to_normalise(member: Member, library: Library, dtype: str) -> None:
    """Any axis empty: so is y, statistics of nothing are NaN, gradients are sums of nothing."""
    for case in without_elements(member):
        plain = inputs(member, case, "normal", dtype)
        given, dy = calls.arrays(library, plain), library.array(plain[member.x])
        result, gradients = calls.both(member, library, dy, given, **case.options)
        assert library.numpy(result[0]).shape == case.shapes[member.x]
        for name in member.statistics:
            assert np.isnan(library.numpy(getattr(result, name)).astype(np.float64)).all()
        check_zeros(library, calls.by_input(member, gradients), plain)


@pytest.mark.needs("gradients")
def test_nothing_is_differentiated_by_the_library_itself(member: Member, library: Library) -> None:
    """An empty y depends on all inputs, and their gradients are 0."""
    for case in without_elements(member):
        plain = inputs(member, case, "normal", "float32")
        given, dy = calls.arrays(library, plain), library.array(plain[member.x])
        run, inputs_ = calls.differentiable(member, library, given, case)
        gradients = library.vjp(run, inputs_, dy)
        check_zeros(library, dict(zip(member.gradients, gradients, strict=True)), plain)


@pytest.mark.needs("byte order")
def test_results_are_in_native_byte_order(member: Member, library: Library, dtype: str) -> None:
    """Whatever byte order any argument has, and where there is nothing to normalise."""
    swapped = library.layouts()["byte-swapped"]
    for case in (member.first, *without_elements(member)):
        plain = inputs(member, case, "normal", dtype)
        given = {name: swapped(values) for name, values in plain.items()}
        dy = swapped(gradient_of_y(member, case, dtype))
        result = calls.forward(member, library, given, **case.options)
        saved = type(result)(*map(swapped, result))
        gradients = calls.backward(member, library, dy, given, saved, **case.options)
        y = calls.y(member, library, given, **case.options)
        for each in (y, *result, *gradients):
            assert each.dtype.isnative, case


@pytest.mark.needs("a second device")
def test_everything_runs_on_the_device_of_x(member: Member, library: Library) -> None:
    """Whichever device is the default: the same bits as on that one."""
    plain = inputs(member, member.first, "normal", "float32")
    plain_dy = gradient_of_y(member, member.first, "float32")

    def results(put: Callable[[np.ndarray], Any]) -> list[Any]:
        given = {name: put(a) for name, a in plain.items()}
        options = member.first.options
        y = calls.y(member, library, given, **options)
        result, gradients = calls.both(member, library, put(plain_dy), given, **options)
        return [given[member.x], y, *result, *gradients]

    x, *actual = results(library.elsewhere)
    _, *expected = results(library.array)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.device == x.device != theirs.device
        assert ours.shape == theirs.shape
        if library.has_values_elsewhere:
            assert library.numpy(ours).tobytes() == library.numpy(theirs).tobytes()


def refused(
    error: type[Exception], match: str, functions: Any, arrays: list[Any], options: dict[str, Any]
) -> None:
    for function in functions:
        known = {name: options[name] for name in options}
        for _ in range(2):  # once more, should the first call have left a plan
            with pytest.raises(error, match=f"^{function.__name__}: .*{match}"):
                function(*arrays, **known)


def test_wrong_inputs(member: Member, library: Library) -> None:
    _, given = right_call(member, library)
    functions = (member.function, member.forward)
    for name, right in given.items():
        plain = library.numpy(right)
        wrong: list[tuple[type[Exception], str, Any]] = [
            (TypeError, f"{name} has dtype int32", library.array(plain.astype(np.int32))),
            (TypeError, f"{name}: list", [1.0, 2.0]),
        ]
        if name != member.x:
            wide = library.array(np.stack([plain, plain]))
            wrong += [
                (ValueError, f"{name} has shape", wide),
                (TypeError, f"{name} is an array of", other_library(library, plain)),
            ]
            elsewhere = library.elsewhere(plain)
            if elsewhere is not None:
                wrong.append((ln.DeviceMismatchError, f"{name} is on", elsewhere))
        bound = {**given, member.x: library.bound(library.numpy(given[member.x]))}
        for error, match, value in wrong:
            right_beside = bound if error is ln.DeviceMismatchError else given
            arrays = list({**right_beside, name: value}.values())
            refused(error, match, functions, arrays, member.first.options)


def other_library(library: Library, plain: np.ndarray) -> Any:
    """The same values in an array of another library."""
    if library.name != "numpy":
        return plain
    import array_api_strict

    return array_api_strict.asarray(plain)


def test_wrong_saved_inputs(member: Member, library: Library) -> None:
    if member.backward is None:
        pytest.skip("it has no gradients of its own")
    dy, given = right_call(member, library)
    options = member.first.options
    result = calls.forward(member, library, given, **member.options_of(member.forward, options))
    known = {"dy": dy, **given, **result._asdict()}
    first = "d" + member.y
    for name in ("dy", *member.saved):
        plain = library.numpy(known[name])
        said = first if name == "dy" else name
        wrong: list[tuple[type[Exception], str, Any]] = [
            (TypeError, f"{said} has dtype int32", library.array(plain.astype(np.int32))),
            (TypeError, f"{said}: list", [1.0, 2.0]),
        ]
        if name != member.x:
            wide = library.array(np.stack([plain, plain]))
            wrong.append((ValueError, f"{said} has shape", wide))
        for error, match, value in wrong:
            named = {**known, name: value}
            arrays = [named[each] for each in ("dy", *member.saved)]
            some = member.options_of(member.backward, options)
            refused(error, match, (member.backward,), arrays, some)
    arrays = [known[each] for each in ("dy", *member.saved)]
    for need in ("dx", ("dz",)):
        some = {**member.options_of(member.backward, options), "need": need}
        refused(ValueError, "need must be a tuple", (member.backward,), arrays, some)


def test_wrong_options(member: Member, library: Library, wrong: str) -> None:
    _, given = right_call(member, library)
    error, match, changes = member.wrong[wrong]
    functions = [
        function
        for function in (member.function, member.forward)
        if set(changes) <= set(member.options_of(function, changes))
    ]
    refused(error, match, functions, list(given.values()), {**member.first.options, **changes})


def test_wrong_epsilon(member: Member, library: Library) -> None:
    if not member.has("epsilon"):
        pytest.skip("it has no epsilon")
    _, given = right_call(member, library)
    for epsilon in (-1e-5, float("nan"), float("inf"), "1e-5"):
        error = TypeError if isinstance(epsilon, str) else ValueError
        match = "epsilon must be a real" if isinstance(epsilon, str) else "epsilon must be finite"
        options = {**member.first.options, "epsilon": epsilon}
        refused(error, match, (member.function, member.forward), list(given.values()), options)
