"""Each kernel that ``kernel_inventory.py`` selects, in every order of threads: the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import cupy_on_cpu
import pytest
from kernel_inventory import selected_calls
from ln_array_api_backends.cupy import backend
from test_addresses import arrays, small
from test_kernels import bits

pytestmark = pytest.mark.skipif(
    cupy_on_cpu.SANITIZE != "", reason="a sanitizer finds in any order what it finds"
)
CALLS = {} if cupy_on_cpu.SANITIZE else selected_calls()


@pytest.fixture(autouse=True)
def _order() -> Iterator[None]:
    yield
    cupy_on_cpu.set_order("forward")


@pytest.mark.parametrize("name", CALLS)
def test_kernels(name: str) -> None:
    primitive, spec = CALLS[name]
    spec = small(spec)
    run, given = backend.prepare(primitive, spec), arrays(primitive, spec, 0)
    results = []
    for order in cupy_on_cpu.ORDERS:
        cupy_on_cpu.set_order(order)
        results.append(bits(run(*given)))
    assert all(each == results[0] for each in results[1:])
