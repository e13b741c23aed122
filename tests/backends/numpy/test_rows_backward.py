"""The backward kernels: the same bits however rows are taken, stored and added up."""

from __future__ import annotations

import itertools
import math
import mmap
import sys
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest
from engine_arrays import DTYPES, at, bits, moved, some_rows, threads_set_to, viewed
from ln_array_api_backends.numpy import rows_backward as kernels
from ln_array_api_backends.numpy.compile import OPTIONS
from ln_array_api_backends.numpy.gradient_sums import reduce_partials as reduce_partials_kernel
from ln_array_api_backends.numpy.rows_dispatch import rows_per_partial, rows_per_run

# The kernels have no entries from Python.


@numba.njit(**OPTIONS)
def backward_blocks(
    dy, x, mean, rstd, gamma, dx, dgamma, dbeta, groups, span, repeat, streams, rows, run, first,
    last,
):  # fmt: skip
    kernels.backward_blocks(
        dy, x, mean, rstd, gamma, None, dx, dgamma, dbeta, groups, span, repeat, streams, rows,
        run, first, last,
    )  # fmt: skip


@numba.njit(**OPTIONS)
def reduce_partials(partial, blocks):
    reduce_partials_kernel(partial, blocks)


ALL = (True, True, True)
NEEDS = [need for need in itertools.product([True, False], repeat=3) if any(need)]
LENGTHS = (1, 2, 15, 16, 33, 64, 100, 129, 384, 768, 1601, 5000)


class Gradients(NamedTuple):
    dx: np.ndarray | None
    dgamma: np.ndarray | None
    dbeta: np.ndarray | None


class Given(NamedTuple):
    dy: np.ndarray
    x: np.ndarray
    mean: np.ndarray | None
    rstd: np.ndarray
    gamma: np.ndarray | None

    def rows(self, rows: Any) -> Given:
        dy, x, mean, rstd = (
            None if each is None else np.ascontiguousarray(each[rows]) for each in self[:4]
        )
        return Given(dy, x, mean, rstd, self.gamma)

    def moved(self, offset: int) -> Given:
        dy, x, mean, rstd, gamma = self
        gamma = None if gamma is None else moved(gamma, offset)
        return Given(moved(dy, offset), moved(x, 64 - offset), mean, rstd, gamma)


def given(
    dtype: str, m: int, n: int, *, gamma: bool = True, center: bool = True, parameters: int = 0
) -> Given:
    """Rows of all kinds."""
    rng = np.random.default_rng([m, n])
    wide = np.float64 if dtype == "float64" else np.float32
    x, dy = rng.standard_normal((2, m, n))
    x[1::5] += 1e3
    x[2::5] *= 2.0**-14
    x[3::5] = 3
    dy[4::5] *= 100
    x, dy = x.astype(DTYPES[dtype]), dy.astype(DTYPES[dtype])
    exact = x.astype(np.float64)
    mean = exact.mean(axis=1, keepdims=True) if center else np.zeros((m, 1))
    rstd = 1 / np.sqrt(((exact - mean) ** 2).mean(axis=1, keepdims=True) + 1e-5)
    g = rng.standard_normal(parameters or n).astype(DTYPES[dtype])
    return Given(
        dy, x, mean.astype(wide) if center else None, rstd.astype(wide), g if gamma else None
    )


def run(
    arrays: Given,
    *,
    need: tuple[bool, bool, bool] = ALL,
    groups: int = 1,
    span: int = 1,
    repeat: int | None = None,
    streams: bool = False,
    dx: np.ndarray | None = None,
    rows: int = 0,
    parallel: bool = False,
) -> Gradients:
    m, n = arrays.x.shape
    rows = rows or rows_per_partial(m, groups, span)
    in_a_run = rows_per_run(n, arrays.x.dtype.name, groups if span == 1 else 1, repeat or 1)
    wide = arrays.rstd.dtype
    parameters = groups * n // (repeat or 1)
    blocks = -(-m // rows) if span == 1 else m // span * -(-span // rows)
    partials = blocks if span == 1 else blocks // groups
    size = partials * parameters
    dx = at(0, (m, n), arrays.x.dtype) if dx is None else dx
    dx = dx if need[0] else None
    dgamma, dbeta = (np.full(size, 7, wide) if each else None for each in need[1:])
    dy, x, mean, rstd, gamma = arrays
    given = (
        *(viewed(dy), viewed(x), mean, rstd, viewed(gamma), viewed(dx), dgamma, dbeta),
        *(groups, span, repeat, streams, rows, in_a_run),
    )
    parts = 3 if parallel else 1
    for part in reversed(range(parts)):
        backward_blocks(*given, blocks * part // parts, blocks * (part + 1) // parts)
    for sums in (dgamma, dbeta):
        reduce_partials(sums, partials)
    return Gradients(
        dx, *(None if each is None else each[:parameters].copy() for each in (dgamma, dbeta))
    )


def same(actual: Gradients, expected: Gradients, need: tuple[bool, bool, bool] = ALL) -> None:
    for name, a, b, wanted in zip(Gradients._fields, actual, expected, need, strict=True):
        if wanted:
            np.testing.assert_array_equal(bits(a), bits(b), err_msg=name)
        else:
            assert a is None


CASES = [
    ("float32", True, True),
    ("float32", False, True),
    ("float32", True, False),
    ("float64", True, True),
    ("float16", True, True),
    ("bfloat16", True, True),
]
every_case = pytest.mark.parametrize(("dtype", "gamma", "center"), CASES)


@every_case
def test_dx_does_not_depend_on_how_many_rows_there_are_nor_on_the_place(
    dtype: str, gamma: bool, center: bool
) -> None:
    """Of many rows of whole vectors, two are taken at once."""
    for n in LENGTHS:
        m = 37 if n < 1000 else 9
        arrays = given(dtype, m, n, gamma=gamma, center=center)
        together = run(arrays).dx
        assert np.isfinite(together.astype(np.float64)).all()
        for some in some_rows(m):
            np.testing.assert_array_equal(bits(run(arrays.rows(some)).dx), bits(together[some]))


@every_case
def test_gradients_do_not_depend_on_stores_nor_on_alignment(
    dtype: str, gamma: bool, center: bool
) -> None:
    step = DTYPES[dtype].itemsize
    for n in (*LENGTHS, 40_000):
        m = 19 if n < 10_000 else 3
        arrays = given(dtype, m, n, gamma=gamma, center=center)
        expected = run(arrays.moved(0))
        for offset in (0, step, 4 * step, 60 // step * step, 64 - step):
            other = arrays.moved((3 * offset + step) % 64)
            for streams in (True, False):
                dx = at(offset, arrays.x.shape, arrays.x.dtype)
                same(run(arrays, streams=streams, dx=dx), expected)
                same(run(other, streams=streams), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_rows_of_whole_vectors_do_not_depend_on_stores(dtype: str) -> None:
    for n in (16, 64, 768, 70_000):
        arrays = given(dtype, 8, n)
        expected = run(arrays)
        for offset in (0, 32):
            dx = at(offset, arrays.x.shape, arrays.x.dtype)
            same(run(arrays, streams=True, dx=dx), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_taken_two_at_once_give_the_bits_of_single_ones(dtype: str) -> None:
    """Where dx is not aligned to a vector, streaming takes each row for itself."""
    for n in (16, 64, 384, 768, 4096):
        for m in (2, 3, 17):
            arrays = given(dtype, m, n)
            single = run(arrays, streams=True, dx=at(8, arrays.x.shape, arrays.x.dtype))
            same(run(arrays, streams=True), single)
            same(run(arrays), single)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_do_not_depend_on_threads(dtype: str) -> None:
    for m, n in ((37, 50), (300, 64), (64, 768), (7, 5000)):
        arrays = given(dtype, m, n)
        expected = run(arrays)
        for threads in {1, numba.config.NUMBA_NUM_THREADS}:
            with threads_set_to(threads):
                for _ in range(3):
                    same(run(arrays, parallel=True), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_needed_does_not_change_the_rest(dtype: str) -> None:
    for n in (1, 33, 64, 1601):
        arrays = given(dtype, 21, n)
        expected = run(arrays)
        for need in NEEDS:
            same(run(arrays, need=need), expected, need)


@pytest.mark.parametrize("need", NEEDS)
def test_what_is_not_needed_does_not_change_the_rest_of_groups(
    need: tuple[bool, bool, bool],
) -> None:
    for groups, per_row, repeat in ((1, 3, 50), (4, 2, 16), (2, 5, 7)):
        arrays = given("float32", 24, per_row * repeat, parameters=groups * per_row)
        options = {"groups": groups, "repeat": repeat}
        same(run(arrays, need=need, **options), run(arrays, **options), need)


@pytest.mark.parametrize("parallel", [False, True])
def test_dx_of_groups_does_not_depend_on_stores_nor_on_threads(parallel: bool) -> None:
    for groups, per_row, repeat in ((1, 3, 50), (4, 2, 16), (2, 5, 7), (3, 1, 200)):
        arrays = given("float32", 24, per_row * repeat, parameters=groups * per_row)
        options = {"groups": groups, "repeat": repeat, "parallel": parallel}
        expected = run(arrays, groups=groups, repeat=repeat)
        same(run(arrays, **options), expected)
        for offset in (0, 4, 60):
            dx = at(offset, arrays.x.shape, arrays.x.dtype)
            streamed = run(arrays, streams=True, dx=dx, **options)
            np.testing.assert_array_equal(bits(streamed.dx), bits(expected.dx))
            np.testing.assert_allclose(streamed.dgamma, expected.dgamma, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("span", [2, 5, 40])
def test_rows_of_a_span_have_the_gradients_of_these_rows_alone(dtype: str, span: int) -> None:
    for groups, n, repeat in ((3, 64, None), (3, 50, None), (2, 1600, None), (3, 30, 6)):
        per_row = n // (repeat or 1)
        m = 2 * groups * span
        arrays = given(dtype, m, n, parameters=groups * per_row)
        result = run(arrays, groups=groups, span=span, repeat=repeat)
        same(run(arrays, groups=groups, span=span, repeat=repeat, parallel=True), result)
        for group in range(groups):
            rows = [row for row in range(m) if row // span % groups == group]
            gamma = arrays.gamma[group * per_row : (group + 1) * per_row].copy()
            alone = run(arrays.rows(rows)._replace(gamma=gamma), repeat=repeat)
            np.testing.assert_array_equal(bits(result.dx[rows]), bits(alone.dx))
            for name in ("dgamma", "dbeta"):
                actual = getattr(result, name)[group * per_row : (group + 1) * per_row]
                expected = getattr(alone, name)
                np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-2)


def test_parameter_gradients_of_groups_do_not_depend_on_stores() -> None:
    arrays = given("float32", 24, 5 * 77, parameters=2 * 5)
    options = {"groups": 2, "repeat": 77}
    same(run(arrays, streams=True, **options), run(arrays, **options))


def test_rows_beside_groups_share_parameters_only() -> None:
    arrays = given("float32", 24, 30, parameters=3 * 5)
    expected = run(arrays, groups=3, repeat=6).dx
    for row in range(24):
        gamma = np.repeat(arrays.gamma.reshape(3, 5)[row % 3], 6)
        alone = run(arrays.rows([row])._replace(gamma=gamma)).dx
        np.testing.assert_allclose(alone, expected[[row]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_beside_dx_is_written(dtype: str) -> None:
    for n in (1, 16, 48, 80):
        for streams in (False, True):
            if streams and (n % 16 or n == 1):
                continue
            frame = at(0, (5 * n + 256,), DTYPES[dtype])
            dx = frame[128 : 128 + 5 * n].reshape(5, n)
            run(given(dtype, 5, n), dx=dx, streams=streams)
            assert (frame[:128] == 1).all()
            assert (frame[128 + 5 * n :] == 1).all()


def exact_sums(arrays: Given) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dgamma and dbeta, and the sums of the magnitudes of what dbeta sums, in float64."""
    dy, x = arrays.dy.astype(np.float64), arrays.x.astype(np.float64)
    mean, rstd = arrays.mean.astype(np.float64), arrays.rstd.astype(np.float64)
    x_hat = (x - mean) * rstd
    x_hat -= x_hat.mean(axis=1, keepdims=True)
    return (dy * x_hat).sum(0), dy.sum(0), abs(dy).sum(0)


@pytest.mark.parametrize("m", [1, 7, 8, 9, 31, 64, 257, 5000, 70_000])
def test_blocks_of_rows_are_added_up(m: int) -> None:
    for n in (1, 5, 16, 19):
        arrays = given("float32", m, n)
        for rows in {rows_per_partial(m, 1), 1 if m < 5000 else 16, m}:
            result = run(arrays, rows=rows)
            dgamma, dbeta, size = exact_sums(arrays)
            blocks = min(rows, 64) if rows <= 64 else rows
            allowed = size * 2.0**-24 * max(8, blocks)
            assert (abs(result.dbeta - dbeta) <= allowed).all()
            assert (abs(result.dgamma - dgamma) <= 4 * allowed).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 16, 19, 64, 90])
def test_blocks_are_added_up_and_rounded_once(dtype: Any, n: int) -> None:
    partial = np.random.default_rng(n).standard_normal((300, n)).astype(dtype)
    partial[7] = 1e5  # beside which the others lose digits
    partial[200] = -1e5
    exact = np.asarray([math.fsum(column) for column in partial.T.tolist()]).astype(dtype)
    sums = partial.ravel().copy()
    reduce_partials(sums, 300)
    np.testing.assert_array_equal(sums[:n], exact)
    if n > 1:
        assert (partial.sum(axis=0) != exact).any()
    reduce_partials(None, 300)


def test_the_number_of_rows_in_a_block_depends_on_the_shape_alone() -> None:
    assert [rows_per_partial(m, 1) for m in (1, 32, 100, 256, 10**6)] == [8, 8, 25, 64, 64]
    assert rows_per_partial(600, 6) == 6 * 25
    assert rows_per_partial(10**6, 3) == 3 * 64


def test_the_number_of_rows_in_a_run_is_that_of_16_terms() -> None:
    assert [rows_per_run(n, "float32", 1, 1) for n in (1, 65, 64, 256, 272)] == [
        16,
        16,
        64,
        64,
        32,
    ]
    assert [rows_per_run(8, dtype, 1, 1) for dtype in ("float16", "float64")] == [16, 64]
    assert rows_per_run(64, "float32", 6, 4) == 6 * 16


@pytest.mark.skipif(sys.maxsize < 1 << 32, reason="needs an address space of 64 bits")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is lent beyond what there is by Linux")
def test_rows_beyond_2_to_the_31_elements() -> None:
    m, n, block = (1 << 21) + 16, 1024, 8
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    arrays = given("float32", block, n)
    with (
        mmap.mmap(-1, 4 * m * n, flags=flags) as for_x,
        mmap.mmap(-1, 4 * m * n, flags=flags) as for_dy,
        mmap.mmap(-1, 4 * m * n, flags=flags) as for_dx,
    ):
        x, dy, dx = (
            np.frombuffer(each, np.float32).reshape(m, n) for each in (for_x, for_dy, for_dx)
        )
        mean, rstd = np.zeros((2, m, 1), np.float32)
        x[-block:], dy[-block:] = arrays.x, arrays.dy
        mean[-block:], rstd[-block:] = arrays.mean, arrays.rstd
        constants = (1, 1, None, False, block, block, m // block - 1, m // block)
        backward_blocks(dy, x, mean, rstd, arrays.gamma, dx, None, None, *constants)
        expected = run(arrays, need=(True, False, False)).dx
        np.testing.assert_array_equal(bits(dx[-block:]), bits(expected))
        assert not dx[m - block - (1 << 21) :][: 2 * block].any()
        del x, dy, dx
