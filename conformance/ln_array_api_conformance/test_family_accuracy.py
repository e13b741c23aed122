"""Each operation of the family against its definition: values, shapes, options, absent inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from . import definitions, family
from . import family_calls as calls
from .family import Case, NumpyInputs, OperationSpec, gradient_of_y, inputs
from .libraries import DTYPES, Library

#: Magnitudes whose gradients cannot be judged in float64, in which their terms are added up.
BEYOND_FLOAT64 = ("1e250",)


def check(
    member: OperationSpec, library: Library, case: Case, values: str, dtype: str, without: str = ""
) -> None:
    np_inputs = inputs(member, case, values, dtype, without)
    dy = library.array(gradient_of_y(member, case, dtype))
    lib_inputs = calls.arrays(library, np_inputs)
    result, gradients = calls.forward_backward(member, library, dy, lib_inputs, **case.options)
    calls.check_forward(member, library, case, np_inputs, result, dtype)
    if values not in BEYOND_FLOAT64:
        calls.check_gradients(member, library, case, np_inputs, gradients, dtype)


def test_values(member: OperationSpec, library: Library, dtype: str, values: str) -> None:
    """Large means, outliers, large and small magnitudes, forward and backward."""
    if values in member.overflowing_values:
        pytest.skip("the result, or a gradient, is no finite number")
    check(member, library, member.main_case, values, dtype)


@pytest.mark.parametrize("power", [0.9, -0.8])
def test_constant_values(member: OperationSpec, library: Library, dtype: str, power: float) -> None:
    """X of a power of the largest number: gradients are those of zeros, whatever epsilon is."""
    if not any(name.endswith("mean") for name in member.statistics):
        pytest.skip("it does not subtract a mean")
    np_inputs = inputs(member, member.main_case, "normal", dtype)
    value = float(ml_dtypes.finfo(DTYPES[dtype]).max) ** power
    constant = {**np_inputs, member.x: np.full_like(np_inputs[member.x], value)}
    zeros = {**np_inputs, member.x: np.zeros_like(np_inputs[member.x])}
    dy = library.array(gradient_of_y(member, member.main_case, dtype))
    for epsilon in (1e-5, 1e8):
        case = member.main_case._replace(options={**member.main_case.options, "epsilon": epsilon})
        lib_inputs = calls.arrays(library, constant)
        _, gradients = calls.forward_backward(member, library, dy, lib_inputs, **case.options)
        calls.check_gradients(member, library, case, zeros, gradients, dtype)


def test_cases(member: OperationSpec, library: Library, dtype: str, case: str) -> None:
    """All places of the axes, and all options."""
    check(member, library, member.cases[case], "mean 100 sigma", dtype)
    if "alpha" in member.cases[case].options:  # a power of which may lose the sign
        np_inputs = inputs(member, member.cases[case], "normal", dtype)
        lib_inputs = calls.arrays(library, np_inputs)
        result = calls.forward(member, library, lib_inputs, **member.cases[case].options)
        calls.check_forward(member, library, member.cases[case], np_inputs, result, dtype)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 70)])
def test_a_small_epsilon_counts_beside_given_statistics(
    library: Library, dtype: str, shape: tuple[int, ...]
) -> None:
    """Beside a variance as small, or of 0."""
    member = family.BATCH_NORM
    shapes = {name: shape if name == "x" else shape[1:2] for name in member.inputs}
    case = Case(shapes, {"epsilon": 1e-10})
    np_inputs = inputs(member, case, "normal", dtype)
    np_inputs["var"] = np.asarray([0.0, 1e-10, 1e-12]).astype(DTYPES[dtype])
    scale = np.asarray(2.0**-14).astype(DTYPES[dtype])  # so that y is no larger than 16 bits hold
    np_inputs["x"], np_inputs["mean"] = np_inputs["x"] * scale, np_inputs["mean"] * scale
    result = calls.forward(member, library, calls.arrays(library, np_inputs), **case.options)
    calls.check_forward(member, library, case, np_inputs, result, dtype)


def test_without(member: OperationSpec, library: Library, dtype: str) -> None:
    """Each optional input left out, alone."""
    for name in member.optional:
        check(member, library, member.main_case, "normal", dtype, without=name)


def test_layouts(member: OperationSpec, library: Library, layout: str) -> None:
    """X and dy of any layout."""
    case, lay_out = member.main_case, library.layouts()[layout]
    for dtype in ("float32", library.dtypes[-1]):
        np_inputs = inputs(member, case, "normal", dtype)
        lib_inputs = calls.arrays(library, np_inputs) | {member.x: lay_out(np_inputs[member.x])}
        dy = lay_out(gradient_of_y(member, case, dtype))
        result, gradients = calls.forward_backward(member, library, dy, lib_inputs, **case.options)
        calls.check_forward(member, library, case, np_inputs, result, dtype)
        calls.check_gradients(member, library, case, np_inputs, gradients, dtype)


@pytest.mark.needs("transforms")
def test_traced(member: OperationSpec, library: Library, dtype: str, transform: str) -> None:
    """Inside a compiled function, results are as right as outside."""
    case = member.main_case
    np_inputs = inputs(member, case, "mean 1e4 sigma", dtype)
    lib_inputs = calls.arrays(library, np_inputs)

    def run(dy, *arrays):  # type: ignore[no-untyped-def]
        named = dict(zip(lib_inputs, arrays, strict=True))
        return calls.forward_backward(member, library, dy, named, **case.options)

    dy = library.array(gradient_of_y(member, case, dtype))
    result, gradients = library.transforms()[transform](run)(dy, *lib_inputs.values())
    calls.check_forward(member, library, case, np_inputs, result, dtype)
    calls.check_gradients(member, library, case, np_inputs, gradients, dtype)


@pytest.mark.needs("gradients")
def test_differentiated_by_the_library_itself(
    member: OperationSpec, library: Library, dtype: str
) -> None:
    """The plain function goes through the library's own differentiation, as right as ours."""
    case = member.main_case
    np_inputs = inputs(member, case, "normal", dtype)
    lib_inputs = calls.arrays(library, np_inputs)
    run, inputs_ = calls.differentiable(member, library, lib_inputs, case)
    dy = library.array(gradient_of_y(member, case, dtype))
    gradients = library.vjp(run, inputs_, dy)
    calls.check_gradients(member, library, case, np_inputs, gradients, dtype, tolerance_factor=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_element_spoils_what_is_normalised_with_it(
    member: OperationSpec, library: Library, bad: float
) -> None:
    """A NaN makes all of it NaN, an infinity what the definition says; all else keeps its bits."""
    case, dtype = member.main_case, "float32"
    np_inputs = inputs(member, case, "normal", dtype)
    dy = library.array(gradient_of_y(member, case, dtype))
    clean = calls.forward_backward(
        member, library, dy, calls.arrays(library, np_inputs), **case.options
    )
    x = np_inputs[member.x].copy()
    x[tuple(length // 2 for length in x.shape)] = bad
    lib_inputs = calls.arrays(library, {**np_inputs, member.x: x})
    spoiled = calls.forward_backward(member, library, dy, lib_inputs, **case.options)
    for of_gradient in (False, True) if member.backward is not None else (False,):
        group_max = member.group_max_in(of_gradient)
        spoiled_places = group_max((~np.isfinite(x)).astype(float), case.options) > 0
        before, after = (library.numpy(each[of_gradient][0]) for each in (clean, spoiled))
        np.testing.assert_array_equal(before[~spoiled_places], after[~spoiled_places])
        if np.isnan(bad):
            assert np.isnan(after[spoiled_places]).all()
        elif not of_gradient:
            with np.errstate(all="ignore"):
                exact = definitions.evaluate(
                    member.definition, {**np_inputs, member.x: x}, case.options
                )[member.y]
            np.testing.assert_allclose(
                after[spoiled_places], exact[spoiled_places], rtol=1e-6, atol=1e-6
            )


def _run(
    member: OperationSpec, library: Library, np_inputs: NumpyInputs, dy: np.ndarray
) -> list[np.ndarray]:
    lib_inputs, options = calls.arrays(library, np_inputs), member.main_case.options
    result, gradients = calls.forward_backward(
        member, library, library.array(dy), lib_inputs, **options
    )
    return [library.numpy(each) for each in (*result, *gradients) if each is not None]


def test_the_same_bits_at_every_call(member: OperationSpec, library: Library, dtype: str) -> None:
    np_inputs = inputs(member, member.main_case, "lognormal", dtype)
    dy = gradient_of_y(member, member.main_case, dtype)
    once = _run(member, library, np_inputs, dy)
    for first, again in zip(once, _run(member, library, np_inputs, dy), strict=True):
        assert first.tobytes() == again.tobytes()


def test_a_sample_alone(member: OperationSpec, library: Library) -> None:
    """Where a sample is normalised by itself, its y has the bits that it has among others."""
    if not member.per_sample:
        pytest.skip("what is normalised together is of several samples")
    variant = []
    for dtype in library.dtypes:
        np_inputs = inputs(member, member.main_case, "lognormal", dtype)
        dy, x = gradient_of_y(member, member.main_case, dtype), np_inputs[member.x]
        in_batch = _run(member, library, np_inputs, dy)[0][:1]
        (alone, *_) = _run(member, library, {**np_inputs, member.x: x[:1]}, dy[:1])
        if alone.tobytes() != np.ascontiguousarray(in_batch).tobytes():
            variant.append(dtype)
    assert not variant, f"y of a sample alone has other bits than among others, in {variant}"


def test_inputs_are_never_written(member: OperationSpec, library: Library, dtype: str) -> None:
    case = member.main_case
    np_inputs = inputs(member, case, "normal", dtype)
    lib_inputs = calls.arrays(library, np_inputs)
    dy = library.array(gradient_of_y(member, case, dtype))
    result, _ = calls.forward_backward(member, library, dy, lib_inputs, **case.options)
    kept = [library.numpy(each).copy() for each in result if each is not None]
    calls.backward(member, library, dy, lib_inputs, result, **case.options)
    assert library.numpy(dy).tobytes() == gradient_of_y(member, case, dtype).tobytes()
    for name, values in np_inputs.items():
        assert library.numpy(lib_inputs[name]).tobytes() == values.tobytes()
    for before, after in zip(kept, (each for each in result if each is not None), strict=True):
        assert library.numpy(after).tobytes() == before.tobytes()
