"""The array libraries that are installed, for every test that takes `library`."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from ln_array_api_conformance.libraries import LIBRARIES, Library

# Made while tests are collected, because JAX must be told its devices before it computes anything.
INSTALLED = [
    make() for make in LIBRARIES.values() if find_spec(make.module.partition(".")[0]) is not None
]


@pytest.fixture(params=INSTALLED, ids=lambda library: library.name)
def library(request: pytest.FixtureRequest) -> Library:
    return request.param
