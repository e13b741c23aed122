"""The output of `explain` and `backends`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api import _explain, backend
from ln_array_api._explain import BackendInfo, BackendTable
from ln_array_api.backend import Entry, RowsSpec
from ln_array_api.kernels import rows

X = np.ones((2, 3, 4), np.float32)


class Described:
    """A backend with a description of how it runs a call."""

    def can_run(self, primitive: str, spec: RowsSpec) -> bool:
        return spec.dtype == "float32"

    def describe(self, primitive: str, spec: RowsSpec) -> str:
        return f"{primitive} with {spec.shape[1]} threads"

    rows_forward = staticmethod(rows.rows_forward)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Entry]]:
    entries = {"fast": Entry("fast", "numpy", Described)}
    monkeypatch.setattr(backend, "_entries", entries)
    backend.plans.clear()
    yield entries
    backend.plans.clear()


def test_an_explanation_is_a_line_for_each_field(known: dict[str, Entry]) -> None:
    assert str(ln.explain(ln.layer_norm, X, axis=(1, 2))) == (
        "function   layer_norm\n"
        "library    numpy\n"
        "primitive  rows_forward\n"
        "shape      (2, 12)\n"
        "dtype      float32\n"
        "backend    fast\n"
        "reason     rows_forward with 12 threads"
    )


def test_an_explanation_without_a_reason_has_no_line_for_it() -> None:
    explanation = _explain.Explanation("f", "numpy", "rows_forward", (2, 3), "float32", "fast", "")
    assert str(explanation).splitlines()[-1] == "backend    fast"


def test_an_explanation_of_a_call_that_runs_generically(known: dict[str, Entry]) -> None:
    x = X.astype(np.float64)
    assert ln.explain(ln.rms_norm_backward, x, x, x[..., :1]) == (
        "rms_norm_backward",
        "numpy",
        "rows_backward",
        (6, 4),
        "float64",
        "generic",
        "fast: does not accelerate rows_backward",
    )
    assert ln.explain(ln.rms_norm, x).reason == "fast: does not take such a call"
    with ln.use_backend("generic"):
        assert ln.explain(ln.rms_norm, X).reason == "asked for by use_backend('generic')"


def test_an_explanation_of_chunked_arrays() -> None:
    x = pytest.importorskip("dask.array", reason="dask is not installed").ones((6, 4), chunks=2)
    explanation = ln.explain(ln.layer_norm, x)
    assert (explanation.backend, explanation.shape) == ("generic", (6, 4))
    assert explanation.reason == (
        "chunked arrays compute nothing until asked; chunks that hold whole rows go to the "
        "kernel of their own library"
    )


def test_nothing_is_computed(known: dict[str, Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Described, "rows_forward", lambda *args, **kwargs: pytest.fail("it ran"))
    out = np.zeros_like(X)
    assert ln.explain(ln.layer_norm_forward, X, X[0, 0], out=out).backend == "fast"
    assert not out.any()


@pytest.mark.parametrize("function", [ln.explain, ln.backends, np.sum, "layer_norm", None])
def test_explain_refuses_other_functions(function: Any) -> None:
    with pytest.raises(ValueError, match=r"^explain: .* is not one of ") as error:
        ln.explain(function, X)
    names = str(error.value).partition(" is not one of ")[2].split(", ")
    functions = (
        ln.layer_norm,
        ln.layer_norm_backward,
        ln.layer_norm_forward,
        ln.rms_norm,
        ln.rms_norm_backward,
        ln.rms_norm_forward,
    )
    assert set(names) >= {each.__name__ for each in functions}
    assert names == sorted(names)
    assert str(error.value).startswith(f"explain: {function!r} ")


@pytest.mark.parametrize(
    ("function", "args", "options"),
    [
        (ln.layer_norm, (X.astype(int),), {}),
        (ln.layer_norm, (X, X[..., :2]), {}),
        (ln.layer_norm, (X,), {"axis": 7}),
        (ln.layer_norm, (X,), {"axis": 1.5}),
        (ln.layer_norm_forward, (X,), {"epsilon": -1}),
        (ln.layer_norm_forward, (X,), {"out": X[::-1]}),
        (ln.layer_norm_backward, (X, X, X, X), {}),
        (ln.layer_norm_backward, (X, X, X[..., :1], X[..., :1]), {"need": ("dy",)}),
        (ln.rms_norm, (X,), {"out": X[0]}),
        (ln.rms_norm_backward, (X, X, None), {}),
    ],
)
def test_calls_that_would_be_refused_are(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError)) as refused:
        function(*args, **options)
    with pytest.raises((ValueError, TypeError)) as explained:
        ln.explain(function, *args, **options)
    assert type(explained.value) is type(refused.value)
    assert str(explained.value) == str(refused.value)


@pytest.mark.parametrize(
    ("args", "options"),
    [((), {}), ((X, None, None, -1), {}), ((X,), {"axes": 1}), ((), {"x": X})],
)
def test_calls_with_other_arguments_are_refused(
    args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        ln.layer_norm(*args, **options)
    with pytest.raises(TypeError):
        ln.explain(ln.layer_norm, *args, **options)


TABLE = BackendTable(
    [
        BackendInfo("numpy", "2.4", "fast", ("rows_forward", "rows_backward"), ""),
        BackendInfo("numpy", "2.4", "generic", (), ""),
        BackendInfo("cupy", "", "generic", (), "cupy is not installed"),
    ]
)


def test_backends_print_as_a_table() -> None:
    assert str(TABLE) == repr(TABLE)
    assert str(TABLE) == (
        "library  version  backend  accelerates                  note\n"
        "numpy    2.4      fast     rows_forward, rows_backward\n"
        "numpy    2.4      generic  -\n"
        "cupy     -        generic  -                            cupy is not installed"
    )
    assert str(BackendTable()) == "library  version  backend  accelerates  note"


def test_a_table_is_a_tuple_that_can_be_copied() -> None:
    assert isinstance(TABLE, tuple)
    for each in (copy.deepcopy(TABLE), pickle.loads(pickle.dumps(TABLE))):
        assert type(each) is BackendTable
        assert each == TABLE


def test_backends_lists_entries_before_the_generic_kernels(
    known: dict[str, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    known["none"] = Entry("none", "numpy", Described, requires=("no_such_module",), extra="none")
    known["new"] = Entry("new", "no_such_library", Described)
    libraries = {name: _explain._LIBRARIES[name] for name in ("numpy",)}
    monkeypatch.setattr(_explain, "_LIBRARIES", libraries)
    needs = "needs no_such_module: pip install 'ln-array-api[none]'"
    version = np.__version__
    assert set(ln.backends()) == {
        BackendInfo("numpy", version, "fast", ("rows_forward",), ""),
        BackendInfo("numpy", version, "none", (), needs),
        BackendInfo("numpy", version, "generic", (), ""),
        BackendInfo("no_such_library", "", "new", ("rows_forward",), ""),
        BackendInfo("no_such_library", "", "generic", (), "no_such_library is not installed"),
    }
    of_numpy = [info.backend for info in ln.backends() if info.library == "numpy"]
    assert of_numpy == ["fast", "none", "generic"]


def test_every_library_is_listed_with_a_generic_line_whether_installed_or_not() -> None:
    table = ln.backends()
    generic = {info.library: info for info in table if info.backend == "generic"}
    assert generic.keys() >= {"numpy", "torch", "jax", "dask", "cupy", "array_api_strict"}
    assert generic["numpy"].version == np.__version__
    for info in generic.values():
        assert bool(info.note) == (not info.version)


@pytest.mark.parametrize(
    ("module", "distributions", "version"),
    [
        ("no_such_module", ("numpy",), ""),
        ("no_such_package.array", ("numpy",), ""),
        ("numpy", ("no-such-distribution", "numpy"), np.__version__),
        ("numpy", ("no-such-distribution",), "unknown"),
    ],
)
def test_versions(module: str, distributions: tuple[str, ...], version: str) -> None:
    assert _explain._version(module, distributions) == version


STATISTIC = np.ones((2, 3), np.float32)
CHANNEL = np.ones(3, np.float32)
STEEPNESS = np.float32(0.5)
INSTANCES = (X, CHANNEL, CHANNEL, STATISTIC, STATISTIC, CHANNEL)
#: Of each operation that is neither rows nor channels: what its functions are called with, and
#: the primitives of forward and backward that a backend may have, with the shapes that x has there.
FAMILY: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any], str, str, Any]] = {
    "dynamic_tanh": (
        *((X, STEEPNESS, CHANNEL), (X, X, STEEPNESS, CHANNEL), {"axis": 1}),
        *("tanh_forward", "tanh_backward", (6, 4)),
    ),
    "local_contrast_norm": (
        *((X,), (X, X, X, X), {"size": 3}),
        *("windows_forward", "windows_backward", (2, 3, 4)),
    ),
    "batch_instance_norm": (
        *((X, CHANNEL), (X, *INSTANCES), {}),
        *("instances_statistics", "instances_sums", (6, 4)),
    ),
    "switchable_norm": (
        *((X, CHANNEL, CHANNEL), (X, X, STATISTIC, STATISTIC, CHANNEL, CHANNEL), {}),
        *("instances_statistics", "instances_sums", (6, 4)),
    ),
}


@pytest.mark.parametrize("suffix", ["", "_forward", "_backward"])
@pytest.mark.parametrize("operation", FAMILY)
def test_explain_names_the_kernels_of_the_family(operation: str, suffix: str) -> None:
    """A backend's kernels, or operations; arguments that the call refuses are refused."""
    forward, backward, options, *primitives, shape = FAMILY[operation]
    is_backward = suffix == "_backward"
    name, arguments = f"{operation}{suffix}", backward if is_backward else forward
    function = getattr(ln, name)
    arguments = tuple(np.asarray(each) for each in arguments)
    explanation = ln.explain(function, *arguments, **options)
    assert explanation[:5] == (name, "numpy", primitives[is_backward], shape, "float32")
    assert explanation[5:] == ("numpy", "compiled by Numba for float32")
    with ln.use_backend("generic"):
        explanation = ln.explain(function, *arguments, **options)
    assert explanation[:6] == (name, "numpy", "-", (2, 3, 4), "float32", "generic")
    assert explanation.reason == "operations of numpy: asked for by use_backend('generic')"
    wrong = tuple(each.astype(np.int32) for each in arguments)
    with pytest.raises(TypeError, match=f"^{name}: "):
        ln.explain(function, *wrong, **options)
    if is_backward:
        with pytest.raises(ValueError, match="need"):
            ln.explain(function, *arguments, need=("dz",), **options)
    elif operation != "dynamic_tanh":
        with pytest.raises(ValueError, match="epsilon"):
            ln.explain(function, *arguments, epsilon=-1.0, **options)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_powers_run_on_a_kernel_of_their_own_or_for_rows_unless_they_grow(alpha: float) -> None:
    y, norm = ln.power_norm_forward(X, alpha=alpha)

    def calls(x: Any, y: Any, norm: Any) -> list[ln.Explanation]:
        return [
            ln.explain(ln.power_norm, x, alpha=alpha),
            ln.explain(ln.power_norm_forward, x, alpha=alpha),
            ln.explain(ln.power_norm_backward, x, y, norm, alpha=alpha),
        ]

    for primitive, each in zip(("forward", "forward", "backward"), calls(X, y, norm), strict=True):
        own = ("numpy", f"powers_{primitive}", (6, 4), "float32", "numpy")
        assert each[1:] == (*own, "compiled by Numba for float32")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    of_torch = calls(*map(torch.from_numpy, (X, y, norm)))
    with ln.use_backend("generic"):
        of_generic = calls(X, y, norm)
    primitives = ["-"] * 3 if alpha > 1 else ["rows_forward", "rows_forward", "rows_backward"]
    for some in (of_torch, of_generic):
        assert [each.primitive for each in some] == primitives
    with pytest.raises(ValueError, match="alpha"):
        ln.explain(ln.power_norm, X, alpha=0)
    with pytest.raises(ValueError, match="norm"):
        ln.explain(ln.power_norm_backward, X, y, norm[:1], alpha=alpha)


@pytest.mark.parametrize("given", [np.ones, ln.backends, "layer_norm", ln.Forward])
def test_what_is_no_operation_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"is not one of batch_instance_norm, .*, weight_stand"):
        ln.explain(given, X)
