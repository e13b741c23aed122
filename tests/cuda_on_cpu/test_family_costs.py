"""Kernels for instances, dynamic tanh and power norm: launches, allocations, graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from test_kernels import bits
from test_stages import cost, results
from test_strided_costs import Sizes

import ln_array_api as ln

#: Launches of each call, by operations of CuPy and by the kernels: of short rows and of long ones.
LAUNCHES = {
    "batch_instance_norm_forward": ((89, 45), (101, 45)),
    "batch_instance_norm_backward": ((64, 50), (76, 51)),
    "switchable_norm_forward": ((103, 60), (115, 60)),
    "switchable_norm_backward": ((161, 148), (173, 149)),
    "dynamic_tanh_forward": ((4, 1), (4, 1)),
    "dynamic_tanh_backward": ((26, 3), (30, 3)),
    "dx of dynamic tanh": ((10, 1), (10, 1)),
    "power_norm_forward": ((40, 3), (44, 4)),
    "power_norm_backward": ((21, 3), (25, 4)),
    "cubes": ((46, 3), (50, 4)),
    "gradient of cubes": ((49, 3), (57, 4)),
    "unit length": ((33, 3), (37, 3)),
    "gradient of unit length": ((9, 3), (13, 3)),
}


def calls(n: int) -> dict[str, Callable[[], Any]]:
    """Return calls on float32 x of shape (4, 3, n)."""
    rng = np.random.default_rng(n)

    def draw(*shape: int) -> Any:
        return cupy.asarray(rng.standard_normal(shape).astype(np.float32))

    x, dy, alpha, gamma, beta = draw(4, 3, n), draw(4, 3, n), draw(), draw(n), draw(n)
    channels = draw(3), draw(3), draw(3)
    mixed = ln.batch_instance_norm_forward(x, *channels)
    weights = draw(3), draw(3), *channels[1:]
    switched = ln.switchable_norm_forward(x, *weights)
    norms = {each: ln.power_norm_forward(x, alpha=each).norm for each in (0.5, 1.0, 3.0)}

    def power(exponent: float) -> Callable[[], Any]:
        return lambda: ln.power_norm_forward(x, alpha=exponent)

    def gradient(exponent: float) -> Callable[[], Any]:
        return lambda: ln.power_norm_backward(dy, x, norms[exponent], alpha=exponent)

    return {
        "batch_instance_norm_forward": lambda: ln.batch_instance_norm_forward(x, *channels),
        "batch_instance_norm_backward": lambda: ln.batch_instance_norm_backward(
            dy, x, *mixed[1:], *channels
        ),
        "switchable_norm_forward": lambda: ln.switchable_norm_forward(x, *weights),
        "switchable_norm_backward": lambda: ln.switchable_norm_backward(
            dy, x, *switched[1:], *weights
        ),
        "dynamic_tanh_forward": lambda: ln.dynamic_tanh_forward(x, alpha, gamma, beta),
        "dynamic_tanh_backward": lambda: ln.dynamic_tanh_backward(dy, x, alpha, gamma, beta),
        "dx of dynamic tanh": lambda: ln.dynamic_tanh_backward(dy, x, alpha, need=("dx",)),
        "power_norm_forward": power(0.5),
        "power_norm_backward": gradient(0.5),
        "cubes": power(3.0),
        "gradient of cubes": gradient(3.0),
        "unit length": power(1.0),
        "gradient of unit length": gradient(1.0),
    }


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches(name: str) -> None:
    """Nothing waits."""
    found = []
    for n in (90, 5000):
        call = calls(n)[name]
        with ln.use_backend("generic"):
            generic = cost(call)
        ours = cost(call)
        assert ours["synchronisations"] == ours["copies_to_host"] == 0
        found.append((generic["launches"], ours["launches"]))
    assert tuple(found) == LAUNCHES[name]


@pytest.mark.parametrize("name", LAUNCHES)
@pytest.mark.parametrize("n", [9000])
def test_only_results_have_the_size_of_x(name: str, n: int) -> None:
    call = calls(n)[name]
    call()
    with Sizes() as sizes:
        call()
    assert sum(size >= 4 * 4 * 3 * n for size in sizes.bytes) == 1


@pytest.mark.parametrize("name", LAUNCHES)
def test_calls_can_be_captured(name: str) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        call = calls(90)[name]
        expected = bits(results(call))  # and returns memory to the pool
        before = cupy_on_cpu.counts()
        stream.begin_capture()
        captured = results(call)
        graph = stream.end_capture()
        assert cupy_on_cpu.counts() == before
        graph.launch()
    assert bits(captured) == expected
