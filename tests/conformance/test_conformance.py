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


def run_suite(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the suite in a process of its own, with more packages to be found under `path`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    suite = ["--pyargs", "ln_array_api_conformance", "--rootdir", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(TESTS)])}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [*command, *suite, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def with_broken_backends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the metadata of an installed package that registers the broken backends."""
    folder = tmp_path_factory.mktemp("installed")
    metadata = folder / "broken_backends-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: broken_backends\nVersion: 1.0\n"
    )
    kinds = [broken_backends.Healthy, *broken_backends.CAUGHT_BY]
    lines = [f"numpy.{kind.__name__} = broken_backends:{kind.__name__.lower()}" for kind in kinds]
    text = "[ln_array_api.backends]\n" + "\n".join(lines).replace("broken_backends:", "instances:")
    (metadata / "entry_points.txt").write_text(text + "\n")
    (folder / "instances.py").write_text(
        "import broken_backends\n"
        + "".join(
            f"{kind.__name__.lower()} = broken_backends.{kind.__name__}()\n" for kind in kinds
        )
    )
    return folder


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
