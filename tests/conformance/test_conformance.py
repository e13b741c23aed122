"""The conformance suite itself: that it passes what is right, and that it can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

import broken_backends  # noqa: E402 - the tests are no package
import partial_backends  # noqa: E402


def run_suite(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the suite in a process of its own, with more packages to be found under `path`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    suite = ["--pyargs", "ln_array_api_conformance", "--rootdir", str(path)]
    folders = [str(path), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [*command, *suite, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path,
        timeout=1800,
        check=False,
    )


def install(folder: Path, module: str, kinds: list[type]) -> Path:
    """Make the metadata of an installed package that registers backends, classes of a module."""
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    names = [kind.__name__ for kind in kinds]
    points = "".join(f"numpy.{name} = instances:{name}\n" for name in names)
    (metadata / "entry_points.txt").write_text(f"[ln_array_api.backends]\n{points}")
    lines = "".join(f"{name} = {module}.{name}()\n" for name in names)
    (folder / "instances.py").write_text(f"import {module}\n{lines}")
    return folder


@pytest.fixture(scope="module")
def with_broken_backends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = [broken_backends.Healthy, *broken_backends.CAUGHT_BY]
    return install(tmp_path_factory.mktemp("broken"), "broken_backends", kinds)


@pytest.fixture(scope="module")
def with_partial_backends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = [partial_backends.RefusesAll, *partial_backends.TAKES]
    return install(tmp_path_factory.mktemp("partial"), "partial_backends", kinds)


@pytest.mark.parametrize(
    ("broken", "test"),
    broken_backends.CAUGHT_BY.items(),
    ids=lambda each: getattr(each, "__name__", each),
)
def test_a_broken_backend_is_caught(broken: type, test: str, with_broken_backends: Path) -> None:
    result = run_suite("--backend", broken.__name__, "-k", test, path=with_broken_backends)
    assert result.returncode == 1, result.stdout + result.stderr
    failures = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert failures
    assert all(f"::{test}[" in line for line in failures)


def test_a_healthy_backend_passes_the_same_tests(with_broken_backends: Path) -> None:
    """So it is not for some other reason that the broken ones are caught."""
    tests = " or ".join(broken_backends.CAUGHT_BY.values())
    result = run_suite("--backend", "Healthy", "-k", tests, path=with_broken_backends)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("partial", "takes"),
    partial_backends.TAKES.items(),
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_backend_may_take_few_calls(
    partial: type, takes: str, with_partial_backends: Path
) -> None:
    tests = "test_backend or test_determinism or test_interface"
    result = run_suite("--backend", partial.__name__, "-k", tests, path=with_partial_backends)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{partial.__name__} {takes}" in result.stdout


def test_a_backend_that_takes_no_call_has_not_passed(with_partial_backends: Path) -> None:
    result = run_suite("--backend", "RefusesAll", "-k", "test_backend", path=with_partial_backends)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "backend 'RefusesAll' takes none of the calls" in result.stdout
    assert "RefusesAll: does not take such a call" in result.stdout


@pytest.fixture(scope="module")
def with_toy_backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy backend installed from its own pyproject.toml."""
    folder = tmp_path_factory.mktemp("site")
    options = [
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
        str(folder),
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(TESTS / "toy_backend")],
        check=True,
        timeout=300,
    )
    return folder


def test_a_backend_of_another_package_passes(with_toy_backend: Path) -> None:
    result = run_suite("--backend", "toy", path=with_toy_backend)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_backend_of_another_package_is_found(with_toy_backend: Path) -> None:
    """It is listed, and takes over the calls that it can run without being asked for."""
    code = """
import numpy as np, ln_array_api as ln
print([tuple(info) for info in ln.backends() if info.backend == "toy"])
x = np.ones((2, 4), np.float32)
print(ln.explain(ln.layer_norm, x).backend, ln.explain(ln.layer_norm, x.astype(float)).backend)
with ln.use_backend("toy"):
    print(ln.explain(ln.layer_norm_backward, x, x, x[:, :1], x[:, :1]).reason)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(with_toy_backend)},
    )
    listed, chosen, refused = result.stdout.splitlines()
    assert "'toy', ('rows_forward',), ''" in listed
    assert chosen.split()[0] == "toy" != chosen.split()[1]
    assert "toy: does not accelerate rows_backward" in refused


def test_a_wrong_name_is_a_usage_error(tmp_path: Path) -> None:
    result = run_suite("--backend", "nobody", path=tmp_path)
    assert result.returncode == 4
    assert "there is no backend 'nobody'; known are: generic" in result.stderr


@pytest.mark.parametrize("missing", ["mpmath", "ml_dtypes"])
def test_what_the_suite_needs_is_told(missing: str, tmp_path: Path) -> None:
    blocked = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""
    (tmp_path / "sitecustomize.py").write_text(blocked)
    result = run_suite(path=tmp_path)
    assert result.returncode == 4, result.stdout + result.stderr
    assert f"needs {missing}: pip install 'ln-array-api[test]'" in result.stderr


def test_options_stay_away_from_the_tests_of_others(tmp_path: Path) -> None:
    """A project with an option of the same name is not disturbed by the suite's being installed."""
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--backend', default='theirs')\n"
    )
    (tmp_path / "test_theirs.py").write_text(
        "def test_theirs(request):\n    assert request.config.getoption('backend') == 'theirs'\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
