"""Options, fixtures and expected failures of the suite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

import pytest

import ln_array_api as ln

from .inputs import BEYOND, EXTREME, VALUES
from .libraries import LIBRARIES, Library
from .operations import OPERATIONS

_PACKAGE = __name__.rpartition(".")[0]

#: The property of a test's report that says what a backend ran.
CALLS_TAKEN = "calls taken by a backend"


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("ln_array_api conformance")
    group.addoption(
        "--library",
        choices=tuple(LIBRARIES),
        default="numpy",
        help="the array library whose arrays are normalised (default: numpy)",
    )
    group.addoption(
        "--backend",
        metavar="NAME",
        default=None,
        help="a registered backend, or generic (default: whatever the library chooses)",
    )
    group.addoption(
        "--fuzz", type=float, metavar="SECONDS", default=0.0, help="try random calls for so long"
    )
    group.addoption(
        "--fuzz-cases",
        type=int,
        metavar="N",
        help="try so many random calls, where no time is given (default: 60, on JAX 12)",
    )
    group.addoption(
        "--fuzz-seed", type=int, metavar="N", default=0, help="the first random call (default: 0)"
    )
    group.addoption(
        "--fuzz-call", metavar="CALL", default="", help="try a call that a failure has named, alone"
    )


_library = pytest.StashKey[Library]()


def pytest_configure(config: Any) -> None:
    config.addinivalue_line("filterwarnings", "error")
    kind = LIBRARIES[config.getoption("library")]
    try:
        config.stash[_library] = kind()
    except ImportError as error:
        raise pytest.UsageError(
            f"--library {kind.name}: {error}; pip install 'ln-array-api[{kind.extra}]'"
        ) from error
    config.addinivalue_line("markers", "needs(what): only for libraries that have it")
    config.addinivalue_line("markers", "having(what): only for operations that have all of it")
    backend = config.getoption("backend")
    if backend is not None:
        try:
            with ln.use_backend(backend):
                pass
        except ln.BackendError as error:
            raise pytest.UsageError(f"--backend {backend}: {error}") from error


def pytest_report_header(config: Any) -> str:
    library, backend = config.getoption("library"), config.getoption("backend")
    return f"conformance: library {library}, backend {backend or 'as the library chooses'}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what ran on the backend, and so what has been tested of it."""
    for report in (each for kind in terminalreporter.stats.values() for each in kind):
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:
                if name == CALLS_TAKEN:
                    terminalreporter.write_line(value)


#: What a test may take besides an operation, and the attribute that has the choices.
CHOICES = {"case": "cases", "bad_options": "bad_options", "empty": "empty_cases"}


def pytest_generate_tests(metafunc: Any) -> None:
    """Give each test the operations, dtypes and values that the library under test has."""
    library = library_under_test(metafunc.config)
    names = set(metafunc.fixturenames)
    required = {each for mark in metafunc.definition.iter_markers("having") for each in mark.args}
    chosen = [each for each in OPERATIONS.values() if required <= each.features]
    second = next((each for each in CHOICES if each in names), None)
    if second is not None:
        pairs = [(each, key) for each in chosen for key in getattr(each, CHOICES[second])]
        ids = [f"{each.name}-{key}" for each, key in pairs]
        metafunc.parametrize(("operation", second), pairs, ids=ids)
    elif "operation" in names:
        metafunc.parametrize("operation", chosen, ids=[each.name for each in chosen])
    for kinds, known in (("values", VALUES), ("extreme_values", EXTREME)):
        if {"dtype", kinds} <= names:
            metafunc.parametrize(
                ("dtype", kinds),
                [(d, kind) for d in library.dtypes for kind in known if kind not in BEYOND[d]],
            )
            break
    else:
        if "dtype" in names:
            metafunc.parametrize("dtype", library.dtypes)
    if "layout" in names:
        metafunc.parametrize("layout", library.layouts())
    if "transform" in names:
        metafunc.parametrize("transform", library.transforms())


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what the library has no use for; mark what is known to fail, with the reason."""
    library = config.stash[_library]
    wanted = [
        item
        for item in items
        if has_all(library, (mark.args[0] for mark in item.iter_markers("needs")))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = wanted
    backend = config.getoption("backend")
    own = backend in (None, "generic", library.name)
    known = _expected_failures(
        library.name, {backend or "default"} if own else {backend, "generic"}
    )
    for item in items:
        name = item.nodeid.rpartition("/")[2]
        if name in known:
            # A backend of somebody else's may do better, or leave the call to the generic kernels.
            item.add_marker(pytest.mark.xfail(reason=known.pop(name), strict=own))


def has_all(library: Library, needs: Iterable[str]) -> bool:
    """Whether a library has what a test needs."""
    has = {
        "writing": library.writable,
        "no writing": not library.writable,
        "memory": library.can_alias,
        "16 bits": "float16" in library.dtypes,
        "a second device": library.has_second_device,
        "byte order": "byte-swapped" in library.layouts(),
        "gradients": type(library).vjp is not Library.vjp,
        "transforms": bool(library.transforms()),
    }
    return all(has[need] for need in needs)


def _expected_failures(library: str, backends: set[str]) -> dict[str, str]:
    """Names of tests and reasons, from lines ``name # reason`` or ``[backend] name # reason``."""
    known = {}
    file = files(_PACKAGE) / "expected_failures" / f"{library}.txt"
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, reason = line.partition(" # ")
        only, bracket, rest = name.partition("] ")
        if bracket:
            if only.removeprefix("[") not in backends:
                continue
            name = rest
        known[name.strip()] = reason.strip()
    return known


def library_under_test(config: Any) -> Library:
    """The library that was asked for on the command line."""
    return config.stash[_library]  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def library(request: Any) -> Library:
    """The array library under test."""
    return library_under_test(request.config)


@pytest.fixture(autouse=True)
def _backend(request: Any) -> Iterator[None]:
    backend = request.config.getoption("backend")
    if backend is None:
        yield
        return
    with ln.use_backend(backend):
        yield
