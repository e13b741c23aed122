"""Each kernel under AddressSanitizer and UndefinedBehaviorSanitizer, in one order of threads.

What the sanitizers find depends only on a kernel's shape. So each kernel runs once, on the smallest
arrays for which the backend chooses it. These are no whole number of chunks, and begin at an
aligned address and one element further. The kernels over rows and channels are those that
``kernel_inventory.py`` selects. Those for strided arrays and for Caffe2's stages run for each
dtype.
"""

from __future__ import annotations

from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from elementwise_resources import launch_everything
from kernel_inventory import DTYPES as NAMES
from kernel_inventory import first_calls, selected_calls
from ln_array_api_backends.cupy import backend, channels_dispatch, rows_dispatch
from ln_array_api_backends.cupy.kernel_launch import name_expression
from planted_faults import ADDRESS, runs_under
from resources import row_of
from test_channels import PARTS, VALUES
from test_channels import Case as ChannelCase
from test_channels import check as check_channels
from test_indices import ROWS, last_row
from test_kernels import DTYPES, Case, check
from test_long_rows import two_tile_segments

from ln_array_api.backend import Primitive, RowsSpec, Spec

pytestmark = runs_under(ADDRESS)
#: Rows for some of the warp groups of a block; the last group has none.
ROWS_OF_A_GROUP = 7
RNG = np.random.default_rng(1)


CALLS = selected_calls() if "address" in cupy_on_cpu.SANITIZE else {}


def draw(dtype: str | None, shape: tuple[int, ...], offset: int) -> Any:
    """Return an array that ends where its memory does, or None without a dtype."""
    if dtype is None:
        return None
    values = np.random.default_rng(0).uniform(0.5, 2.0, np.prod(shape)).astype(DTYPES[dtype])
    memory = cupy.empty(values.size + offset, values.dtype)
    memory[offset:] = cupy.asarray(values)
    return memory[offset:].reshape(shape)


def arrays(primitive: Primitive, spec: Spec, offset: int) -> list[Any]:
    """Return the arrays that a call takes."""
    accumulation = "float64" if spec.dtype == "float64" else "float32"
    if isinstance(spec, RowsSpec):
        parameters: tuple[int, ...] = (spec.parameters,)
        statistics: tuple[int, ...] = (spec.shape[0], 1)
    else:
        parameters = statistics = spec.shape[1:2]
    x, gamma = draw(spec.dtype, spec.shape, offset), draw(spec.gamma, parameters, offset)
    given = [draw(accumulation, statistics, offset) for _ in range(2)]
    if primitive.endswith("_backward"):
        if isinstance(spec, RowsSpec) and not spec.center:
            given[0] = None
        return [draw(spec.dy, spec.shape, offset), x, *given, gamma]
    beta = draw(spec.beta, parameters, offset)
    return [x, *(given if primitive == "channels_inference" else ()), gamma, beta]


def small(spec: Spec) -> Spec:
    """Return a spec with few rows."""
    if isinstance(spec, RowsSpec):
        return spec._replace(shape=(ROWS_OF_A_GROUP * spec.groups, spec.shape[1]))
    return spec


@pytest.mark.parametrize("name", CALLS)
def test_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = set()
    for module in (rows_dispatch, channels_dispatch):

        def noted(*parameters: Any, kernel: Any = module.kernel) -> Any:
            chosen.add(name_expression(*parameters))
            return kernel(*parameters)

        monkeypatch.setattr(module, "kernel", noted)
    primitive, spec = CALLS[name]
    spec = small(spec)
    for offset in (0, 1):
        backend.prepare(primitive, spec)(*arrays(primitive, spec, offset))
    assert name in chosen


def test_every_shape_of_a_kernel_is_selected() -> None:
    kernels = {row_of(name) for name in first_calls()}
    assert {row_of(name) for name in CALLS} == kernels
    assert {row.dtype for row in kernels} == {*NAMES}


def test_segments_of_two_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_dispatch, "split_row", two_tile_segments)
    check(Case("float32", 2, 40001))


@pytest.mark.parametrize("need", [(False, False, True), (False, True, False), (True, False, False)])
def test_gradients_that_are_not_needed(need: tuple[bool, bool, bool]) -> None:
    for n in (41, 17001):
        Case("float32", 70, n, offset=1).run(need=need)


@pytest.mark.parametrize("shape", PARTS)
def test_channels_whose_moments_are_rescaled(shape: tuple[int, int, int]) -> None:
    check_channels(ChannelCase("float32", shape, x=VALUES["a part of 1e30"](RNG, shape)))


@pytest.mark.parametrize(("n", "blocks"), ROWS.items())
def test_indices_beyond_32_bits(n: int, blocks: int) -> None:
    assert last_row(n, blocks)


@pytest.mark.parametrize("dtype", NAMES)
def test_strided_arrays_and_stages(dtype: str) -> None:
    launch_everything(dtype)
