"""The forward kernels: the same bits however a row is run, and the right ones."""

from __future__ import annotations

import mmap
import sys
from typing import Any, NamedTuple

import ml_dtypes
import numba
import numpy as np
import pytest
from engine_arrays import DTYPES, at, bits, moved, threads_set_to, viewed
from ln_array_api_backends.numpy import backend, simd
from ln_array_api_backends.numpy.compile import OPTIONS
from ln_array_api_backends.numpy.rows_forward import forward as kernel
from ln_array_api_conformance import tolerances
from ln_array_api_conformance.checks import expected_y
from ln_array_api_conformance.operations import OPERATIONS


@numba.njit(**OPTIONS)
def forward(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams, start, stop):
    """The kernel, which has no entry from Python."""
    kernel(x, gamma, beta, y, mean, rstd, epsilon, groups, repeat, streams, start, stop)


PARAMETERS = {"none": (False, False), "gamma": (True, False), "both": (True, True)}


class Result(NamedTuple):
    y: np.ndarray
    mean: np.ndarray | None
    rstd: np.ndarray


def run(
    x: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    center: bool = True,
    epsilon: float = 1e-5,
    groups: int = 1,
    repeat: int | None = None,
    streams: bool = False,
    y: np.ndarray | None = None,
    rows: tuple[int, int] | None = None,
    parts: int = 1,
) -> Result:
    m = x.shape[0]
    wide = np.float64 if x.dtype == np.float64 else np.float32
    y = at(0, x.shape, x.dtype) if y is None else y
    mean, rstd = np.zeros((m, 1), wide) if center else None, np.zeros((m, 1), wide)
    arguments = (*map(viewed, (x, gamma, beta, y)), mean, rstd, epsilon, groups, repeat, streams)
    start, stop = rows or (0, m)
    for part in range(parts):
        begin, end = (start + (stop - start) * each // parts for each in (part, part + 1))
        forward(*arguments, begin, end)
    return Result(y, mean, rstd)


def same(actual: Result, expected: Result, rows: Any = slice(None)) -> None:
    for name, a, b in zip(Result._fields, actual, expected, strict=True):
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


def shifted(n: int, *means: float) -> np.ndarray:
    """A normally distributed row around each mean."""
    return np.random.default_rng(n).standard_normal((len(means), n)) + np.array(means)[:, None]


def parameters(dtype: str, n: int, kind: str = "both") -> list[np.ndarray | None]:
    rng = np.random.default_rng(n)
    both = rng.standard_normal((2, n)).astype(DTYPES[dtype])
    return [each if wanted else None for each, wanted in zip(both, PARAMETERS[kind], strict=True)]


def expected_of(
    x: np.ndarray,
    center: bool,
    epsilon: float,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """What the conformance suite expects, and the scale of the tolerance of y."""
    operation = OPERATIONS["layer_norm" if center else "rms_norm"]
    return expected_y(operation, {"x": x, "gamma": gamma, "beta": beta}, {"epsilon": epsilon})


def accurate(
    x: np.ndarray,
    result: Result,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    epsilon: float = 1e-5,
) -> None:
    dtype = x.dtype.name
    expected, scale = expected_of(x, result.mean is not None, epsilon, gamma, beta)
    wide = tolerances.ACCUMULATION[dtype]
    info = np.finfo(wide)
    rstd = np.asarray(expected["rstd"], dtype=np.float64)
    # In rows that need no scaling, numbers are not known better than to the smallest there is.
    unscaled = np.minimum(rstd, 2.0**50 if wide == "float32" else 2.0**450)
    known = 2 * float(info.smallest_subnormal) * unscaled / float(info.eps)
    scale = np.maximum(scale, known)
    tolerances.assert_close("y", result.y, expected["y"], tolerances.Y, scale, dtype)
    error = abs(result.rstd - np.minimum(rstd, 1e308))
    assert (
        error <= tolerances.RSTD * float(info.eps) * rstd + 2 * float(info.smallest_subnormal)
    ).all()
    if result.mean is not None:
        largest = np.max(abs(x.astype(np.float64)), axis=1, keepdims=True)
        tolerances.assert_close(
            "mean", result.mean, expected["mean"], tolerances.MEAN, largest, wide
        )


def layer_norm(x: np.ndarray, *arrays: Any, epsilon: float = 1e-5, center: bool = True) -> Result:
    gamma, beta = arrays or (None, None)
    return Result(*backend.rows_forward(x, gamma, beta, epsilon=epsilon, center=center))


LENGTHS = (1, 2, 15, 16, 33, 63, 64, 100, 129, 384, 768, 1601, 5000)
CASES = [
    *(("float32", kind, center) for kind in PARAMETERS for center in (True, False)),
    *((dtype, "both", True) for dtype in ("float64", "float16", "bfloat16")),
]


@pytest.mark.parametrize(("dtype", "kind", "center"), CASES)
def test_rows_do_not_depend_on_how_many_there_are_nor_on_their_place(
    dtype: str, kind: str, center: bool
) -> None:
    for n in LENGTHS:
        m = 37 if n < 1000 else 9
        x, given = mixed(dtype, m, n), parameters(dtype, n, kind)
        together = run(x, *given, center=center)
        assert np.isfinite(together.y[:5].astype(np.float32)).all()
        for row in {0, 1, 2, 3, 4, 5, 6, m - 1}:
            same(run(x[row : row + 1].copy(), *given, center=center), together, [row])
        for first, last in ((0, 3), (1, m), (3, 20), (m - 1, m)):
            same(run(x[first:last].copy(), *given, center=center), together, slice(first, last))
        order = np.random.default_rng(n).permutation(m)
        same(run(x[order], *given, center=center), together, order)


@pytest.mark.parametrize(
    ("dtype", "kind", "center"),
    CASES,
)
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
    for groups, per_row, repeat in ((1, 3, 50), (4, 2, 16), (2, 5, 7), (3, 1, 200)):
        n, m = per_row * repeat, 12
        x, given = mixed(dtype, m, n), parameters(dtype, groups * per_row)
        options = {"groups": groups, "repeat": repeat}
        expected = run(x, *given, **options)
        for offset in (0, 4, 60):
            y = at(offset, x.shape, x.dtype)
            same(run(x, *given, streams=True, y=y, **options), expected)
        same(run(x, *given, parts=5, **options), expected)
        for row in range(m):
            alone = [spread(each, row, groups, repeat) for each in given]
            same(run(x[row : row + 1].copy(), *alone), expected, [row])


def spread(parameter: np.ndarray, row: int, groups: int, repeat: int) -> np.ndarray:
    """What the elements of one row are multiplied by."""
    return np.repeat(parameter.reshape(groups, -1)[row % groups], repeat)


def test_only_the_rows_asked_for_are_written() -> None:
    x, given = mixed("float32", 30, 40), parameters("float32", 40)
    y = np.full_like(x, 7)
    result = run(x, *given, y=y, rows=(10, 27))
    same(Result(*(each[10:27] for each in result)), run(x, *given), slice(10, 27))
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


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_length(dtype: str) -> None:
    around = [k * 4096 + d for k in (1, 2, 3) for d in (-65, -16, -1, 0, 1, 15, 17, 63)]
    lengths = [*range(1, 131), *around] if dtype == "float32" else [*range(1, 66), 4096, 4111]
    for n in lengths:
        x = shifted(n, 0, 30, -9).astype(DTYPES[dtype])
        given = parameters(dtype, n)
        for center in (True, False):
            accurate(x, layer_norm(x, *given, center=center), *given)


def test_every_length_in_float64() -> None:
    for n in (*range(1, 40), 63, 64, 65, 127, 129):
        x = shifted(n, 0, 30)
        given = parameters("float64", n)
        accurate(x, layer_norm(x, *given), *given)


PLACES = {
    "the first": (0,),
    "a quarter": (1,),
    "a half": (2,),
    "three quarters": (3,),
    "all": (0, 1, 2, 3),
    "two": (0, 3),
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("size", [1e2, -1e3, 1e4])
def test_outliers_where_the_mean_is_guessed_from(places: tuple[int, ...], size: float) -> None:
    for n in (5, 16, 63, 64, 100, 1000, 4099):
        for width in (1, 3, 16):
            x = shifted(n, 0, 1, -50, 1e3)
            for place in places:
                x[:, place * (n // 4) : place * (n // 4) + width] = size
            single = x.astype(np.float32)
            given = parameters("float32", n)
            accurate(single, layer_norm(single), epsilon=1e-5)
            accurate(single, layer_norm(single, *given), *given)


def test_an_outlier_of_ten_million_sigma() -> None:
    x = shifted(1000, 0, 1, -50, 1e3)
    x[:, 0] = -1e7
    accurate(x.astype(np.float32), layer_norm(x.astype(np.float32)))


def test_without_a_second_sweep_such_rows_would_be_wrong() -> None:
    x = (np.random.default_rng(1).standard_normal((4, 4099))).astype(np.float32)
    for place in range(4):
        x[:, place * (4099 // 4) : place * (4099 // 4) + 16] = 1e4
    accurate(x, layer_norm(x))
    guess = x[:, :1]
    d = x - guess
    missed = d.mean(axis=1, keepdims=True, dtype=np.float32)
    variance = (d * d).mean(axis=1, keepdims=True, dtype=np.float32) - missed * missed
    rstd = 1 / np.sqrt(variance + np.float32(1e-5))
    with pytest.raises(AssertionError, match="further off"):
        accurate(x, Result((d - missed) * rstd, guess + missed, rstd))


SHAPES = {
    "ramp": lambda n: np.arange(n),
    "falling ramp": lambda n: np.arange(n)[::-1],
    "ramp far away": lambda n: 1e5 + np.arange(n) / n,
    "steps": lambda n: np.arange(n) // max(1, n // 4) * 100.0,
    "one outlier": lambda n: np.where(np.arange(n) == n // 3, 1e8, 0.1),
    "one outlier at the end": lambda n: np.where(np.arange(n) == n - 1, -1e20, 1),
    "mean a million sigma": lambda n: 1e6 + np.random.default_rng(n).standard_normal(n),
    "mean minus a million sigma": lambda n: np.random.default_rng(n).standard_normal(n) - 1e6,
    "alternating": lambda n: np.where(np.arange(n) % 2, 1e3, -1e3) + 1e3,
    "two values": lambda n: np.where(np.arange(n) < n // 2, 1, 1 + 2.0**-23),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_that_mislead_the_guess(shape: Any) -> None:
    for n in (2, 7, 63, 64, 250, 1024, 4097, 70_000):
        x = shape(n).astype(np.float32)[None]
        accurate(x, layer_norm(x, epsilon=1e-12), epsilon=1e-12)
        accurate(x, layer_norm(x, epsilon=1e-12, center=False), epsilon=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_a_constant_row_is_exact(dtype: str) -> None:
    values = np.array([1.1, -3.3, 1e-3, 6e4, 0, 7e-7, 1 / 3]).astype(DTYPES[dtype])
    for n in (1, 3, 64, 100, 777, 4100):
        x = np.repeat(values[:, None], n, axis=1)
        y, mean, rstd = layer_norm(x)
        assert not y.astype(np.float32).any()
        np.testing.assert_array_equal(mean[:, 0], values.astype(mean.dtype))
        np.testing.assert_array_equal(rstd, np.full_like(rstd, 1 / np.sqrt(1e-5)))


MAGNITUDES = [1e-45, 1e-44, 3e-42, 1e-39, 1e-38, 1e-30, 1e-20, 1e-15, 1, 1e15, 1e20, 1e30, 9e37]


@pytest.mark.parametrize(
    "epsilon",
    [
        0.0,
        1e-60,
        1e-40,
        *(1e-37, 1e-12, 1e-5, 1e6, 1e38),
    ],
)
@pytest.mark.parametrize("center", [True, False])
def test_rows_of_any_magnitude_in_one_call(epsilon: float, center: bool) -> None:
    for n in (2, 7, 64, 100, 1500):
        unit = np.random.default_rng(n).uniform(1, 3, (len(MAGNITUDES), n))
        unit[:, ::2] *= -1
        x = (unit * np.array(MAGNITUDES)[:, None]).astype(np.float32)
        result = layer_norm(x, epsilon=epsilon, center=center)
        spread = [row for row in range(len(x)) if len(set(x[row])) > 1]
        assert len(spread) == len(x)
        assert np.isfinite(result.y[spread]).all()
        chosen = Result(*(None if each is None else each[spread] for each in result))
        with np.errstate(over="ignore"):
            within_reach(x[spread], chosen, epsilon)
        ordinary = MAGNITUDES.index(1)
        alone = layer_norm(x[[ordinary]], epsilon=epsilon, center=center)
        same(alone, result, [ordinary])


def within_reach(x: np.ndarray, result: Result, epsilon: float) -> None:
    """Accurate, but for rstd where float32 cannot hold it: that is infinite."""
    exact = expected_of(x, result.mean is not None, epsilon)[0]["rstd"]
    held = exact < 3e38
    assert (result.rstd[exact > 4e38] == np.inf).all()
    rstd = np.where(held, result.rstd, exact.astype(np.float64))
    accurate(x, Result(result.y, result.mean, rstd), epsilon=epsilon)


def test_float64_rows_of_any_magnitude_in_one_call() -> None:
    magnitudes = [5e-324, 1e-310, 1e-300, 1e-200, 1e-150, 1, 1e150, 1e200, 1e307]
    x = np.random.default_rng(5).uniform(1, 3, (len(magnitudes), 30))
    x[:, ::2] *= -1
    x *= np.array(magnitudes)[:, None]
    for center in (True, False):
        for epsilon in (0.0, 1e-300, 1e-5):
            result = layer_norm(x, epsilon=epsilon, center=center)
            rows = slice(2, None) if epsilon == 0 else slice(None)
            accurate(
                x[rows],
                Result(*(None if each is None else each[rows] for each in result)),
                epsilon=epsilon,
            )
            assert np.isfinite(result.y).all()


def test_bfloat16_rows_of_any_magnitude() -> None:
    magnitudes = [1e-40, 1e-38, 1e-30, 1, 1e30, 1e38]
    x = np.random.default_rng(6).uniform(1, 3, (len(magnitudes), 50))
    x[:, ::2] *= -1
    x = (x * np.array(magnitudes)[:, None]).astype(ml_dtypes.bfloat16)
    accurate(x, layer_norm(x, epsilon=0.0)._replace(rstd=exact_rstd(x)), epsilon=0.0)


def exact_rstd(x: np.ndarray) -> np.ndarray:
    return np.asarray(expected_of(x, True, 0.0)[0]["rstd"])


def test_huge_and_tiny_elements_in_one_row() -> None:
    x = np.random.default_rng(7).standard_normal((6, 200)).astype(np.float32)
    x[0, 3], x[1, 199] = 3e38, -3e38
    x[2, :100] *= np.float32(1e-38)
    x[3] = np.where(np.arange(200) % 2, 3e38, -3e38)
    x[4], x[4, 0] = 0, 1e-44
    x[5] = 3.4e38
    x[5, 7] = 3.3e38
    for epsilon in (1e-5, 1e-30):
        accurate(x[:4], layer_norm(x[:4], epsilon=epsilon), epsilon=epsilon)
        result = layer_norm(x, epsilon=epsilon)
        accurate(x[5:], Result(*(each[5:] for each in result)), epsilon=epsilon)
        assert np.isfinite(result.y).all()


def test_a_row_with_no_spread_and_epsilon_of_0_is_nan_and_spoils_no_other() -> None:
    x = np.random.default_rng(8).standard_normal((5, 33)).astype(np.float32)
    x[1], x[3] = 0, 1e-40
    x[4, 5] = np.inf
    y, _, _ = layer_norm(x, epsilon=0.0)
    assert np.isnan(y[[1, 3, 4]]).all()
    accurate(x[[0]], layer_norm(x[[0]], epsilon=0.0), epsilon=0.0)
    np.testing.assert_array_equal(bits(y[[0, 2]]), bits(layer_norm(x[[0, 2]], epsilon=0.0).y))


@pytest.mark.parametrize("epsilon", [1e-5, 1e-60, 5e-324])
def test_a_tiny_epsilon_keeps_0_over_0_away(epsilon: float) -> None:
    x = np.zeros((3, 40), np.float32)
    x[1], x[2] = 1e-42, 2.5
    y, mean, _ = layer_norm(x, epsilon=epsilon)
    assert not y.any()
    np.testing.assert_array_equal(mean[:, 0], x[:, 0])


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
        same(Result(*(each[-8:].copy() for each in result)), run(last, *given))
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
