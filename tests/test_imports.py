"""The cost of an import, and the allowed directions of imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "ln_array_api"

TIMED = """
import time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def run(code: str, path: Path) -> str:
    command = [sys.executable, "-c", code]
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or each import would compile anew
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=path, env=environment, timeout=300
    )
    return result.stdout.strip()


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name of each import in a file; the name is "" for a whole module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield "." * node.level + (node.module or ""), alias.name


def strings(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno


def within(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.py"))
    assert files
    return files


def is_of(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_importing_the_library_imports_only_numpy_and_array_api_compat(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import ln_array_api
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names))
"""
    assert run(code, tmp_path) == "array_api_compat ln_array_api numpy"


def test_importing_the_library_does_without_what_takes_long(tmp_path: Path) -> None:
    """Modules of the standard library that others need, and what they import themselves."""
    code = """
import sys
import array_api_compat, numpy
before = set(sys.modules)
import ln_array_api
slow = {"importlib.abc", "importlib.metadata", "importlib.resources", "tempfile"}
print(*sorted(slow & (set(sys.modules) - before)))
"""
    assert run(code, tmp_path) == ""


def test_calling_the_library_on_numpy_imports_no_other_array_library(tmp_path: Path) -> None:
    code = """
import sys
import numpy as np
import ln_array_api as ln
y, mean, rstd = ln.layer_norm_forward(np.ones((2, 3)))
ln.layer_norm_backward(y, y, mean, rstd)
others = ["torch", "jax", "dask", "cupy", "onnx", "array_api_strict", "ln_array_api_backends.jax"]
print(*(name for name in others if name in sys.modules))
"""
    assert run(code, tmp_path) == ""


@pytest.mark.timing
def test_importing_the_library_takes_little_longer_than_importing_numpy(tmp_path: Path) -> None:
    fastest: dict[str, float] = {}
    for attempt in range(40):  # other tests run beside it, so a few may all be disturbed
        for module in ("numpy", "ln_array_api"):
            seconds = float(run(TIMED.format(module=module), tmp_path))
            fastest[module] = min(seconds, fastest.get(module, seconds))
        if attempt >= 5 and fastest["ln_array_api"] < 1.5 * fastest["numpy"]:
            break
    assert fastest["ln_array_api"] < 1.5 * fastest["numpy"], fastest


@pytest.mark.parametrize("path", within(LIBRARY), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_imports_no_backend_and_one_module_knows_array_api_compat(path: Path) -> None:
    modules = {module for module, _ in imports(path)}
    assert not [name for name in modules if is_of(name, "ln_array_api_backends")]
    assert not [name for name in modules if is_of(name, "ln_array_api_conformance")]
    knows = any(is_of(name, "array_api_compat") for name in modules)
    assert knows == (path == LIBRARY / "_arrays.py")


def test_backends_are_named_only_in_the_table() -> None:
    for path in within(LIBRARY):
        named = [line for text, line in strings(path) if "ln_array_api_backends" in text]
        if path != LIBRARY / "backend.py":
            assert not named, path
            continue
        table = next(
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BUILT_IN"
        )
        assert table.end_lineno is not None
        assert named
        assert all(table.lineno <= line <= table.end_lineno for line in named)


def test_every_built_in_backend_is_a_module_that_is_there() -> None:
    from ln_array_api import backend

    names = {entry.name for entry in backend.BUILT_IN}
    assert len(names) == len(backend.BUILT_IN)
    modules = [
        text
        for text, _ in strings(LIBRARY / "backend.py")
        if text.startswith("ln_array_api_backends.")
    ]
    assert len(modules) == len(backend.BUILT_IN)
    for module in modules:
        folder = ROOT / "backends" / Path(*module.split("."))
        assert folder.with_suffix(".py").is_file() or (folder / "__init__.py").is_file(), module


@pytest.mark.parametrize(
    "path",
    within(ROOT / "conformance"),
    ids=lambda path: str(path.relative_to(ROOT / "conformance")),
)
def test_the_conformance_suite_uses_only_public_names(path: Path) -> None:
    used = [(module, name) for module, name in imports(path) if is_of(module, "ln_array_api")]
    private = [
        each
        for each in used
        if any(part.startswith("_") for part in ".".join(each).split(".") if part)
    ]
    assert not private
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import)
        for alias in node.names
        if is_of(alias.name, "ln_array_api")
    }
    reached = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value).split(".")[0] in aliases
    ]
    assert not reached


def test_all_names_what_is_public() -> None:
    import ln_array_api

    assert sorted(ln_array_api.__all__) == ln_array_api.__all__
    for name in ln_array_api.__all__:
        assert getattr(ln_array_api, name).__doc__


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_without_a_compiler_the_generic_kernels_run(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="Numba is not installed")
    pytest.importorskip(module, reason=f"{module} is not installed")
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # Numba, which reads it once, is imported by now
    code = f"""
import {module} as xp
import ln_array_api as ln
explanation = ln.explain(ln.layer_norm, xp.ones((2, 3)))
print(explanation.backend, explanation.reason)
"""
    assert run(code, tmp_path).startswith(f"generic {module}: Numba compiles nothing while")
