"""The forward kernels: the same bits however a row is run, and the right ones."""

from __future__ import annotations

import itertools
import mmap
import sys
from typing import Any

import numba
import numpy as np
import pytest
from engine_arrays import (
    DTYPES,
    PARAMETERS,
    Forward,
    at,
    bits,
    moved,
    parameters,
    some_rows,
    threads_set_to,
    viewed,
)
from ln_array_api_backends.numpy import simd
from ln_array_api_backends.numpy.compile import OPTIONS
from ln_array_api_backends.numpy.rows_forward import forward as kernel


@numba.njit(**OPTIONS)
def forward(x, gamma, beta, y, mean, rstd, epsilon, groups, span, repeat, streams, start, stop):
    """The kernel, which has no entry from Python."""
    kernel(x, gamma, beta, None, y, mean, rstd, epsilon, groups, span, repeat, streams, start, stop)


def run(
    x: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    center: bool = True,
    epsilon: float = 1e-5,
    groups: int = 1,
    span: int = 1,
    repeat: int | None = None,
    streams: bool = False,
    y: np.ndarray | None = None,
    rows: tuple[int, int] | None = None,
    parts: int = 1,
) -> Forward:
    m = x.shape[0]
    wide = np.float64 if x.dtype == np.float64 else np.float32
    y = at(0, x.shape, x.dtype) if y is None else y
    mean, rstd = np.zeros((m, 1), wide) if center else None, np.zeros((m, 1), wide)
    given = (*map(viewed, (x, gamma, beta, y)), mean, rstd)
    arguments = (*given, epsilon, groups, span, repeat, streams)
    start, stop = rows or (0, m)
    for part in range(parts):
        begin, end = (start + (stop - start) * each // parts for each in (part, part + 1))
        forward(*arguments, begin, end)
    return Forward(y, mean, rstd)


def same(actual: Forward, expected: Forward, rows: Any = slice(None)) -> None:
    for name, a, b in zip(Forward._fields, actual, expected, strict=True):
        if b is None:
            assert a is None
        else:
            np.testing.assert_array_equal(bits(a), bits(b[rows]), err_msg=name)


def mixed(dtype: str, m: int, n: int) -> np.ndarray:
    """Rows of all kinds: some need a second guess at the mean, some are rescaled, one is NaN."""
    x = np.random.default_rng([m, n]).standard_normal((m, n))
    x[1::7] += 1e3
    x[2::7, [0, n // 4, n // 2, n // 4 * 3]] = 1e4
    x[3::7] *= 2.0**-90 if dtype != "float16" else 2.0**-20
    x[4::7] *= 2.0**90 if dtype != "float16" else 2.0**10
    x[5::7] = 3
    x[6::14] = np.nan
    return x.astype(DTYPES[dtype])


LENGTHS = (1, 2, 15, 16, 33, 63, 64, 100, 129, 384, 768, 1601, 5000)
CASES = [
    *(("float32", kind, center) for kind in PARAMETERS for center in (True, False)),
    *((dtype, "both", True) for dtype in ("float64", "float16", "bfloat16")),
]
every_case = pytest.mark.parametrize(("dtype", "kind", "center"), CASES)


@every_case
def test_rows_do_not_depend_on_how_many_there_are_nor_on_their_place(
    dtype: str, kind: str, center: bool
) -> None:
    for n in LENGTHS:
        m = 37 if n < 1000 else 9
        x, given = mixed(dtype, m, n), parameters(dtype, n, kind)
        together = run(x, *given, center=center)
        assert np.isfinite(together.y[:5].astype(np.float32)).all()
        for some in some_rows(m):
            same(run(x[some], *given, center=center), together, some)


@every_case
def test_rows_do_not_depend_on_stores_nor_on_alignment(dtype: str, kind: str, center: bool) -> None:
    step = DTYPES[dtype].itemsize
    for n in (*LENGTHS, 40_000):
        m = 11 if n < 10_000 else 3
        x, given = mixed(dtype, m, n), parameters(dtype, n, kind)
        expected = run(moved(x, 0), *given, center=center)
        for offset in (0, step, 4 * step, 60 // step * step, 64 - step):
            for streams in (True, False):
                y = at(offset, x.shape, x.dtype)
                same(run(x, *given, center=center, streams=streams, y=y), expected)
                other = moved(x, (2 * offset + step) % 64)
                same(run(other, *given, center=center, streams=streams), expected)


def test_rows_do_not_depend_on_the_alignment_of_parameters() -> None:
    for n in LENGTHS:
        x, (gamma, beta) = mixed("float32", 5, n), parameters("float32", n)
        expected = run(x, gamma, beta)
        for offset in (0, 4, 36, 60):
            same(run(x, moved(gamma, offset), moved(beta, 60 - offset)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_the_number_of_parts_and_threads(dtype: str) -> None:
    for m, n in ((37, 50), (64, 768), (1, 5000)):
        x, given = mixed(dtype, m, n), parameters(dtype, n)
        expected = run(x, *given)
        for parts in (1, 2, 3, 7, m):
            for threads in {1, numba.config.NUMBA_NUM_THREADS}:
                with threads_set_to(threads):
                    same(run(x, *given, parts=min(m, parts)), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_rows_of_whole_vectors_do_not_depend_on_stores(dtype: str) -> None:
    for n in (16, 64, 768, 70_000):
        x, given = mixed(dtype, 8, n), parameters(dtype, n)
        expected = run(x, *given)
        for offset in (0, 32):
            y = at(offset, x.shape, x.dtype)
            same(run(x, *given, streams=True, y=y), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_groups_do_not_depend_on_stores_nor_on_parts(dtype: str) -> None:
    layouts = ((1, 3, 50), (4, 2, 16), (2, 5, 7), (3, 1, 200), (3, 100, None), (2, 1500, None))
    for (groups, per_row, repeat), span in itertools.product(layouts, (1, 2)):
        n, m = per_row * (repeat or 1), 12
        x, given = mixed(dtype, m, n), parameters(dtype, groups * per_row)
        options = {"groups": groups, "span": span, "repeat": repeat}
        expected = run(x, *given, **options)
        for offset in (0, 4, 60):
            y = at(offset, x.shape, x.dtype)
            same(run(x, *given, streams=True, y=y, **options), expected)
        same(run(x, *given, parts=5, **options), expected)
        for row in range(m):
            alone = [spread(each, row // span, groups, repeat or 1) for each in given]
            same(run(x[row : row + 1].copy(), *alone), expected, [row])


def spread(parameter: np.ndarray, row: int, groups: int, repeat: int) -> np.ndarray:
    """What the elements of one row are multiplied by."""
    return np.repeat(parameter.reshape(groups, -1)[row % groups], repeat)


def test_only_the_rows_asked_for_are_written() -> None:
    x, given = mixed("float32", 30, 40), parameters("float32", 40)
    y = np.full_like(x, 7)
    result = run(x, *given, y=y, rows=(10, 27))
    same(Forward(*(each[10:27] for each in result)), run(x, *given), slice(10, 27))
    assert (y[:10] == 7).all()
    assert (y[27:] == 7).all()
    assert not result.rstd[:10].any()
    assert not result.rstd[27:].any()


@pytest.mark.parametrize("streams", [False, True])
def test_nothing_beside_y_is_written(streams: bool) -> None:
    for n in (1, 17, 63, 100):
        frame = at(4, (5 * n + 200,), np.float32)
        y = frame[100 : 100 + 5 * n].reshape(5, n)
        run(mixed("float32", 5, n) + 5, y=y, streams=streams)
        assert (frame[:100] == 1).all()
        assert (frame[100 + 5 * n :] == 1).all()
        assert n == 1 or not (y == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_y_may_be_x(dtype: str) -> None:
    for n in LENGTHS:
        x, given = mixed(dtype, 9, n), parameters(dtype, n)
        expected = run(x, *given)
        same(run(x, *given, y=x), expected)


@pytest.mark.skipif(sys.maxsize < 1 << 32, reason="needs an address space of 64 bits")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is lent beyond what there is by Linux")
def test_rows_beyond_2_to_the_31_elements() -> None:
    m, n = (1 << 21) + 19, 1024
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    with mmap.mmap(-1, 4 * m * n, flags=flags) as memory:
        x = np.frombuffer(memory, np.float32).reshape(m, n)
        last = mixed("float32", 8, n)
        x[-8:] = last
        given = parameters("float32", n)
        result = run(x, *given, y=x, rows=(m - 8, m))
        same(Forward(*(each[-8:].copy() for each in result)), run(last, *given))
        assert not x[(m - 8) % (1 << 21) :][:20].any()
        del x, result


def test_a_lane_that_is_added_elsewhere_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits that these tests compare do tell one order of a sum from another."""
    x = np.random.default_rng(9).standard_normal((64, 768)).astype(np.float32)
    result = run(x)
    lanes = simd.BYTES // 4
    assert lanes == 16
    turned = run(np.ascontiguousarray(x.reshape(64, -1, lanes)[:, ::-1].reshape(64, -1)))
    assert (bits(turned.rstd) != bits(result.rstd)).any()
