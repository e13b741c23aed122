"""Indices beyond 32 bits, in arrays of which only the last rows or elements are mapped.

Only the last blocks of each grid are run. The planted faults make an index of 32 bits, which points
elsewhere into the array, or below it, where memory is reserved as well.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from ln_array_api_backends.cupy import backend, rows_dispatch
from ln_array_api_backends.cupy.launch_config import (
    LONG_ROW_THREADS,
    BlockShape,
    RowSplit,
    ceil_div,
    split_row,
)
from source_change import change_source
from test_kernels import Case, bits

BEYOND = 1 << 32
TILE = BlockShape(LONG_ROW_THREADS, 1, 2).capacity("float16")
NORESERVE = 0x4000  # on Linux; Python 3.13 has a name for it
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE


def sparse(size: int) -> cupy.cuda.MemoryPointer:
    """Allocate zeros for CuPy, with as many before them."""
    half = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * half, flags=FLAGS)
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + half
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(place, size, memory, 0), 0)


@contextmanager
def last_blocks(count: int) -> Iterator[None]:
    cupy_on_cpu.driver.simulator_set_last_blocks(count)
    yield
    cupy_on_cpu.driver.simulator_set_last_blocks(0)


def last_row(n: int, blocks: int) -> bool:
    """Return whether the last of very many rows has the bits that it has alone."""
    m = BEYOND // n + 2
    one = Case("float16", 1, n)
    results = one.run()
    expected = [*bits(results[:4]), *bits([each[-16:] for each in results[4:]])]
    options = {"center": True, "groups": m}
    with cupy.cuda.using_allocator(sparse):
        x, dy = (cupy.ndarray((m, n), np.float16) for _ in range(2))
        gamma, beta = (cupy.ndarray((m * n,), np.float16) for _ in range(2))
        x[-1:], dy[-1:], gamma[-n:], beta[-n:] = one.x, one.dy, one.gamma, one.beta
        with last_blocks(blocks):
            y, mean, rstd = backend.rows_forward(x, gamma, beta, epsilon=one.epsilon, **options)
            saved = (dy, x, mean, rstd, gamma)
            # One at a time, since the last blocks belong to the last gradient.
            dx, dgamma, _ = backend.rows_backward(*saved, **options, need=(True, True, False))
            *_, dbeta = backend.rows_backward(*saved, **options, need=(False, False, True))
        rows = bits([each[-1:] for each in (y, mean, rstd, dx)])
        return [*rows, *bits([each[-16:] for each in (dgamma, dbeta)])] == expected


def last_segment(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether a row of more than 2**32 elements, 0 except at its end, is right.

    No mean is subtracted, so that zeros add nothing to any sum. To save time, it is split as a
    longer row would be, with a short segment at its end.
    """
    length, end = split_row("float16", BEYOND, 2).length + 8 * TILE, TILE + 1
    segments = BEYOND // length + 2
    n = (segments - 1) * length + end
    cut = RowSplit(LONG_ROW_THREADS, 2, ceil_div(n, TILE), segments, length)
    assert n - end > BEYOND
    monkeypatch.setattr(rows_dispatch, "split_row", lambda *arguments: cut)
    rng = np.random.default_rng(1)
    x_end, other = (rng.standard_normal(end).astype(np.float16) for _ in range(2))
    dy_end = x_end + other  # correlated, so that the sum of g * x_hat matters
    with cupy.cuda.using_allocator(sparse):
        x, dy = (cupy.ndarray((1, n), np.float16) for _ in range(2))
        rstd = cupy.ndarray((1, 1), np.float32)
        x[0, -end:], dy[0, -end:] = cupy.asarray(x_end), cupy.asarray(dy_end)
        a, b = x_end.astype(np.float64), dy_end.astype(np.float64)
        rstd[...] = 1 / np.sqrt((a * a).sum() / n)
        with last_blocks(2):  # the last tiles and segments, one segment of zeros
            y, *_ = backend.rows_forward(x, None, None, epsilon=0, center=False)
            dx, *_ = backend.rows_backward(
                dy, x, None, rstd, None, center=False, need=(True, False, False)
            )
        y_end, dx_end = (each[0, -end:].get().astype(np.float64) for each in (y, dx))
    scale = float(rstd[0, 0])
    true_dx = (b - a * scale * ((a * scale * b).sum() / n)) * scale
    return all(
        np.allclose(actual, true, rtol=2e-3, atol=2e-3 * np.abs(true).max())
        for actual, true in ((y_end, a * scale), (dx_end, true_dx))
    )


ROWS = {64: 1, 3200: 1, 12000: 1, 40000: 5}


@pytest.mark.parametrize(("n", "blocks"), ROWS.items())
def test_rows(n: int, blocks: int) -> None:
    assert last_row(n, blocks)


def test_elements_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_segment(monkeypatch)


PLANTS = (
    ("x + min(r, m - 1) * n;", "x + int(min(r, m - 1) * n);", 64),
    ("betas, y + r * n)", "betas, y + unsigned(r * n))", 3200),
    ("ptr += group_index * n + begin", "ptr += group_index * unsigned(n) + begin", 3200),
    ("row.load(x + r * n,", "row.load(x + int(r * n),", 12000),
    ("dx ? dx + r * n : dx", "dx ? dx + int(r * n) : dx", 64),
    ("blockIdx.x * sums_per_row", "blockIdx.x * unsigned(sums_per_row)", 64),
    ("x + Index(blockIdx.x / segments) * n", "x + blockIdx.x / segments * int(n)", 40000),
    ("offset = r * n + begin", "offset = int(r * n + begin)", 40000),
    ("first = (partial_group * n", "first = (partial_group * unsigned(n)", 40000),
    ("terms[(r + k * step) * width + c]", "terms[unsigned((r + k * step) * width + c)]", 3200),
    ("blockIdx.x % segments * length, end", "blockIdx.x % segments * int(length), end", 0),
    ("segment * length, end", "segment * int(length), end", 0),
    ("begin = Index(tile) * TILE", "begin = int(tile) * TILE", 0),
    ("begin = Index(blockIdx.x % tiles) * TILE", "begin = int(blockIdx.x % tiles) * TILE", 0),
)


@pytest.mark.skipif(cupy_on_cpu.SANITIZE != "", reason="a sanitizer ends the process first")
@pytest.mark.parametrize(("old", "new", "n"), PLANTS)
def test_an_index_of_32_bits_is_found(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, n: int
) -> None:
    change_source(monkeypatch, rows_dispatch, old, new)
    found = not (last_row(n, ROWS[n]) if n else last_segment(monkeypatch))
    rows_dispatch.kernel.cache_clear()
    assert found
