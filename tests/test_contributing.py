"""The page on contributing: its example of a new operation, added to a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUITE = "conformance/ln_array_api_conformance/row_operations.py"
MODULE, TABLE, INIT = (f"ln_array_api/{name}.py" for name in ("my_norm", "_operations", "__init__"))


def example() -> dict[str, str]:
    """Return the code blocks of the page's example, by the file that each is for."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"`([\w/]+\.py)`:\n\n   ```python\n(.*?)\n   ```\n", page, re.DOTALL)
    return {path: textwrap.dedent(code) for path, code in blocks}


def add(tree: Path, path: str, code: str) -> None:
    """Add a block of code to a file, where the page says."""
    file = tree / path
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if path == INIT:
        names = '    "my_norm", "my_norm_backward", "my_norm_forward",\n'
        text = text.replace("from .power_norm", f"{code}\nfrom .power_norm")
        text = text.replace('    "power_norm"', f'{names}    "power_norm"')
    elif path == TABLE:
        end = "\n)\n\n\ndef function_names"
        text = text.replace(end, f"\n    {code},{end}")
    else:
        text = f"{text}\n\n{code}\n" if text else f"{code}\n"
    file.write_text(text, encoding="utf-8")


def run(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = [str(tree), str(tree / "backends"), str(tree / "conformance")]
    return subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def pytest_in(tree: Path, *arguments: str) -> str:
    """Return the last lines of a run of pytest."""
    done = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments)
    return "\n".join(done.stdout.splitlines()[-30:]) + done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the page's example changes and runs."""
    for folder in ("ln_array_api", "backends", "conformance", "docs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "cuda_on_cpu", "ptx", "mutants")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def test_the_example_of_an_operation_passes_the_suite(tree: Path) -> None:
    for path, code in example().items():
        add(tree, path, code)
    assert run(tree, "-m", "ln_array_api._support").stderr == ""
    assert "| `my_norm` |" in (tree / "docs/choosing.md").read_text(encoding="utf-8")
    suite = "--pyargs", "ln_array_api_conformance", "--library", "numpy", "--backend", "generic"
    told = pytest_in(tree, *suite, "-k", "my_norm")
    passed = re.search(r"^(\d+) passed, \d+ deselected", told, re.MULTILINE)
    assert passed, told
    assert int(passed[1]) > 500
    own = "tests/test_support.py", "-k", "every_operation or docstring or tables"
    told = pytest_in(tree, *own)
    assert re.search(r"^\d+ passed", told, re.MULTILINE), told


@pytest.mark.parametrize("forgotten", [SUITE, TABLE, INIT])
def test_a_forgotten_place_is_named(tree: Path, forgotten: str) -> None:
    for path, code in example().items():
        if path != forgotten:
            add(tree, path, code)
    told = pytest_in(tree, "tests/test_support.py", "-k", "every_operation")
    assert "my_norm" in told
    assert "failed" in told


def test_the_example_has_all_places() -> None:
    assert set(example()) == {SUITE, MODULE, TABLE, INIT}
