"""Declared support holds on the installed libraries."""

from __future__ import annotations

import gc
import importlib
import inspect
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api import _support, backend
from ln_array_api._operations import OPERATIONS, function_names
from ln_array_api._support import PLACES, Place

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

ROOT = Path(__file__).parents[1]
NAMES = [each.name for each in OPERATIONS]

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
CHANNEL, THREE = X[0, :, 0].copy(), np.ones(3, np.float32)
#: The arguments of operations except x, if there are any: positional ones, and options.
OTHERS: dict[str, tuple[tuple[np.ndarray, ...], dict[str, Any]]] = {
    "layer_norm": ((X[0, 0].copy(),), {}),
    "rms_norm": ((X[0, 0].copy(),), {}),
    "group_norm": ((CHANNEL,), {"num_groups": 3}),
    "instance_norm": ((CHANNEL,), {}),
    "weight_norm": ((X[:, 0, 0].copy(),), {}),
    "batch_norm": ((CHANNEL,), {}),
    "batch_instance_norm": ((CHANNEL,), {}),
    "switchable_norm": ((THREE, THREE), {}),
    "local_contrast_norm": ((), {"size": 3}),
    "dynamic_tanh": ((np.asarray(0.5, np.float32),), {}),
}


def arrays_for(place: Place) -> Callable[[np.ndarray], Any]:
    """Return a function that converts NumPy arrays to those of a place."""
    names = {"dask": "dask.array", "jax": "jax.numpy"}
    module = pytest.importorskip(
        names.get(place.library, place.library), reason=f"{place.library} is not installed"
    )
    if "CUDA" in place.name or place.library == "cupy":
        pytest.skip("needs a GPU; tests/cuda_on_cpu has the same on a simulated one")
    if place.name == "torch, elsewhere":
        return lambda values: module.asarray(values).to("meta")
    if place.name == "JAX, elsewhere":
        pytest.skip("needs several devices; tests/backends/jax has them")
    return module.from_array if place.library == "dask" else module.asarray  # type: ignore[no-any-return]


def call_of(name: str, make: Callable[[np.ndarray], Any]) -> tuple[Any, list[Any], dict[str, Any]]:
    """A public function, its arrays and its options."""
    base = re.sub("_(forward|backward)$", "", name)
    others, options = OTHERS.get(base, ((), {}))
    function, x = getattr(ln, name), make(X)
    given = [make(each) for each in others]
    if name == "batch_norm":
        return function, [x, make(CHANNEL), make(THREE), *given], options
    if not name.endswith("_backward"):
        return function, [x, *given], options
    forward = getattr(ln, f"{base}_forward")(x, *given, **options)
    if base in ("batch_norm", "layer_norm", "group_norm", "instance_norm"):
        saved = [forward.mean, forward.rstd]
    else:
        saved = [each for each in forward[1:] if each is not None]
    return function, [x, x, *saved, *given], options


@pytest.mark.parametrize("name", function_names())
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_explain_names_the_declared_backend(place: Place, name: str) -> None:
    function, arrays, options = call_of(name, arrays_for(place))
    explanation = ln.explain(function, *arrays, **options)
    assert explanation.library == place.library
    assert explanation.backend == _support.backend_of(name, place)
    primitive = _support.primitive_of(name, place)
    assert explanation.primitive.startswith("-" if primitive == "operations" else primitive)


def test_pages_have_the_tables(tmp_path: Path) -> None:
    for page in _support.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    _support.write(tmp_path)
    for page in _support.PAGES:
        assert (tmp_path / page).read_text(encoding="utf-8") == (ROOT / page).read_text(
            encoding="utf-8"
        )


def test_every_function_and_library_is_declared() -> None:
    assert set(OTHERS) <= set(NAMES)
    known = {info.library for info in ln.backends()}
    assert known == {place.library for place in PLACES}


def test_every_operation_is_public_and_every_public_one_is_declared() -> None:
    """By its name, so that a forgotten place is told."""
    public = {name for name in ln.__all__ if name.endswith(("_norm", "_tanh", "_standardization"))}
    assert public == set(NAMES)
    assert [name for name in function_names() if name not in ln.__all__] == []


def test_every_operation_is_in_the_conformance_suite() -> None:
    suite = importlib.import_module("ln_array_api_conformance.operations").OPERATIONS
    tested = {name.removesuffix("_forward") for name in suite}
    assert [name for name in NAMES if name not in tested] == []


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_docstring(name: str) -> None:
    function, forward = (getattr(ln, name + part) for part in ("", "_forward"))
    defaults = inspect.signature(function).parameters
    told = dict(re.findall(r"^ +(\w+) : float, default: (\S+)$", function.__doc__, re.MULTILINE))
    assert ("epsilon" in told) == ("epsilon" in defaults)
    for option, value in told.items():
        assert float(value) == defaults[option].default
        assert float(value) == inspect.signature(forward).parameters[option].default


def test_backends_report_the_declared_primitives() -> None:
    for info in ln.backends():
        declared = {
            _support.primitive_of(name, place)
            for place in PLACES
            for name in NAMES
            if place.library == info.library and _support.backend_of(name, place) == info.backend
        }
        if info.backend == "generic":
            assert info.accelerates == ()
        elif not info.note:
            assert {each.partition("_")[0] for each in info.accelerates} == declared


@pytest.mark.parametrize("library", sorted({place.library for place in PLACES}))
def test_the_suite_expects_bits_to_vary_where_they_are_said_to(library: str) -> None:
    """The suite expects the tests of batch invariance to fail only there."""
    suite = importlib.import_module("ln_array_api_conformance")
    folder = Path(next(iter(suite.__path__))) / "expected_failures"
    expected = (folder / f"{library.removeprefix('array_api_')}.txt").read_text(encoding="utf-8")
    vary = any(place.invariant != "yes" for place in PLACES if place.library == library)
    assert ("test_batch_invariance" in expected) == vary


def of_x(name: str, make: Callable[[np.ndarray], Any]) -> Callable[[Any], Any]:
    """Return a function of x only."""
    function, (_, *others), options = call_of(name, make)
    return lambda x: function(x, *others, **options)


@pytest.mark.parametrize("name", NAMES)
def test_torch_differentiates_twice_in_both_modes(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    function = of_x(name, lambda values: torch.asarray(values.astype(np.float64)))
    x = torch.asarray(X.astype(np.float64)).requires_grad_()
    assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize("name", NAMES)
def test_jax_differentiates_twice_in_both_modes(name: str) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    check_grads = importlib.import_module("jax.test_util").check_grads
    function = jax.jit(of_x(name, jax.numpy.asarray))
    check_grads(function, (jax.numpy.asarray(X),), 2, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_jax_exports_with_batches_that_vary(name: str) -> None:
    """The lengths vary too, except in operations that compute with lengths."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    function = of_x(name, jax.numpy.asarray)
    (jax_framework,) = (each for each in _support.FRAMEWORKS if each.name == "jax")
    shape = "b, 3, 4"
    if name == "weight_norm":  # whose other argument has the length of the batch
        shape = "2, 3, n"
    symbols = jax.export.symbolic_shape(shape)
    exported = jax.export.export(jax.jit(function))
    argument = jax.ShapeDtypeStruct(symbols, "float32")
    try:
        program = exported(argument)
    except Exception:
        assert name in jax_framework.constant_lengths
        return
    np.testing.assert_allclose(
        program.call(jax.numpy.asarray(X)), function(jax.numpy.asarray(X)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", function_names())
def test_plans_hold_no_arrays(name: str) -> None:
    """Arrays of a call are freed although its plan is kept: the next call has others."""
    function, arrays, options = call_of(name, np.copy)
    function(*arrays, **options)
    plans = len(backend.plans)
    assert plans > 0
    references = [weakref.ref(each) for each in arrays if isinstance(each, np.ndarray)]
    del arrays
    gc.collect()
    assert [each() for each in references] == [None] * len(references)
    assert len(backend.plans) == plans
