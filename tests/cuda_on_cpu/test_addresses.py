"""Each kernel under AddressSanitizer and UndefinedBehaviorSanitizer, in one order of threads.

What they find does not depend on what else a kernel has run on, but for its shape: so each runs
once, on the smallest arrays that have the backend choose it, which are no whole number of chunks,
from where memory is aligned and from one element further. The kernels for rows are those that
``dispatch.py`` finds: with all flags where all arrays have one dtype, and one of each shape where
gamma, beta or dy is wider. Those for strided arrays and for Caffe2's stages run for each dtype.
"""

from __future__ import annotations

from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from dispatch import DTYPES as NAMES
from dispatch import first_calls
from elementwise_resources import launch_everything
from ln_array_api_backends.cupy import backend, calls
from resources import row_of
from test_indices import ROWS, last_row
from test_kernels import DTYPES, Case, check
from test_long_rows import joined

from ln_array_api.backend import Primitive, RowsSpec

pytestmark = pytest.mark.skipif(
    "address" not in cupy_on_cpu.SANITIZE, reason="runs under AddressSanitizer alone"
)
#: In each group: some for the teams of a block, of which the last has none.
ROWS_OF_A_GROUP = 7


def selected() -> dict[str, tuple[Primitive, RowsSpec]]:
    """A call for each kernel that runs here."""
    found, shapes = {}, set()
    for name, call in first_calls().items():
        row = row_of(name)
        if not row.parameters or row not in shapes:
            found[name] = call
            shapes.add(row)
    return found


CALLS = selected() if "address" in cupy_on_cpu.SANITIZE else {}


def arrays(primitive: Primitive, spec: RowsSpec, offset: int) -> list[Any]:
    """What a call takes, each in memory that ends where it does."""
    n, rng = spec.shape[1], np.random.default_rng(0)
    m = ROWS_OF_A_GROUP * spec.groups

    def draw(dtype: str | None, *shape: int) -> Any:
        if dtype is None:
            return None
        memory = cupy.empty(np.prod(shape) + offset, DTYPES[dtype])
        memory[offset:] = cupy.asarray(rng.uniform(0.5, 2.0, np.prod(shape)).astype(memory.dtype))
        return memory[offset:].reshape(shape)

    parameters = (spec.groups * n // spec.repeat,)
    x, gamma = draw(spec.dtype, m, n), draw(spec.gamma, *parameters)
    if primitive == "rows_forward":
        return [x, gamma, draw(spec.beta, *parameters)]
    accumulation = "float64" if spec.dtype == "float64" else "float32"
    mean, rstd = (draw(accumulation, m, 1) for _ in range(2))
    return [draw(spec.dy, m, n), x, mean if spec.center else None, rstd, gamma]


@pytest.mark.parametrize("name", CALLS)
def test_rows(name: str) -> None:
    primitive, spec = CALLS[name]
    spec = spec._replace(shape=(ROWS_OF_A_GROUP * spec.groups, spec.shape[1]))
    for offset in (0, 1):
        backend.prepare(primitive, spec)(*arrays(primitive, spec, offset))


def test_every_shape_of_a_kernel_is_selected() -> None:
    kernels = {row_of(name) for name in first_calls()}
    assert {row_of(name) for name in CALLS} == kernels
    assert {row.dtype for row in kernels} == {*NAMES}


def test_segments_of_two_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "row_cut", joined)
    check(Case("float32", 2, 40001))


@pytest.mark.parametrize("need", [(False, False, True), (False, True, False), (True, False, False)])
def test_gradients_that_are_not_needed(need: tuple[bool, bool, bool]) -> None:
    for n in (41, 17001):
        Case("float32", 70, n, offset=1).run(need=need)


@pytest.mark.parametrize(("n", "blocks"), ROWS.items())
def test_indices_beyond_32_bits(n: int, blocks: int) -> None:
    assert last_row(n, blocks)


@pytest.mark.parametrize("dtype", NAMES)
def test_strided_arrays_and_stages(dtype: str) -> None:
    launch_everything(dtype)
