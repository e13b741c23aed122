"""The array libraries that are installed, and operators of a third party."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from caffe2_nets import Product, product_gradient
from ln_array_api_conformance.libraries import LIBRARIES, Library

from ln_array_api import caffe2

caffe2.register_cpu_operator("Product", Product)
caffe2.register_gradient("Product", product_gradient)
caffe2.register_cpu_operator("NotDifferentiable", Product)

# Made while tests are collected, because JAX must be told its devices before it computes anything.
INSTALLED = [
    make() for make in LIBRARIES.values() if find_spec(make.module.partition(".")[0]) is not None
]


@pytest.fixture(params=INSTALLED, ids=lambda library: library.name)
def library(request: pytest.FixtureRequest) -> Library:
    return request.param
