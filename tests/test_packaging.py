"""The contents of the wheel and the sdist; the wheel works without the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ln_array_api", "ln_array_api_backends", "ln_array_api_conformance")


def run(*command, **options):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "hatchling", "build", "-d", str(folder), cwd=ROOT)
    return folder


def test_the_wheel_holds_all_that_the_checkout_holds(dist):
    [wheel] = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = (ROOT / "ln_array_api", *ROOT.glob("*/ln_array_api_*"))
    assert {folder.name for folder in folders} == set(PACKAGES)
    for folder in folders:
        files = [
            each
            for each in folder.rglob("*")
            if each.is_file() and each.parent.name != "__pycache__"
        ]
        assert {str(each.relative_to(folder.parent)) for each in files} <= names
        assert f"{folder.name}/py.typed" in names
    assert all(name.startswith((*PACKAGES, "ln_array_api-")) for name in names)


def test_the_sdist_builds_the_same_wheel(dist, tmp_path):
    [archive] = dist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=source)
    [again], [first] = tmp_path.glob("*.whl"), dist.glob("*.whl")
    contents = [
        {each.filename: each.CRC for each in zipfile.ZipFile(wheel).infolist()}
        for wheel in (again, first)
    ]
    assert contents[0] == contents[1]


def test_the_suite_passes_on_the_wheel_from_elsewhere(dist, tmp_path):
    [wheel] = dist.glob("*.whl")
    site = tmp_path / "site"
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    environment = {**os.environ, "PYTHONPATH": str(site)}
    environment.pop("PYTEST_ADDOPTS", None)
    where = "import ln_array_api; print(ln_array_api.__file__)"
    options = {"cwd": tmp_path, "env": environment}
    assert run("-c", where, **options).startswith(str(site))
    suite = ("--pyargs", "ln_array_api_conformance", "--library", "strict", "-k", "forward_lengths")
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *suite, **options)
    assert " passed" in out
