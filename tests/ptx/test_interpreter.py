"""The interpreter itself, on PTX written by hand."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from instructions import DTYPES, OPERATIONS
from interpreter import launch
from memory import Memory
from parse import Address, Immediate, PTXError, Vector, parse

HEAD = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry test(.param .u64 input, .param .u64 output)
{
    .reg .pred %p<9>;
    .reg .b16 %h<9>;
    .reg .b32 %r<9>;
    .reg .f32 %f<9>;
    .reg .b64 %a<9>, %unused;
    .shared .align 8 .b8 memory[1280];
    ld.param.u64 %a0, [input];
    ld.param.u64 %a1, [output];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %a2, %r0, 4;
    add.s64 %a3, %a1, %a2;
    add.s64 %a2, %a0, %a2;
""".replace(", %unused", "")
STORE = """
    st.global.u32 [%a3], %r1;
    ret;
}
"""


def run(
    body: str, threads: int = 64, given: Any = None, blocks: int = 1
) -> tuple[np.ndarray[Any, Any], Any]:
    """The word that each thread of a block leaves, after reading a word of what is given."""
    memory = Memory()
    source = memory.array(np.arange(threads, dtype="u4") if given is None else given, "input")
    target = memory.empty((threads,), "u4", "output")
    arguments = [np.uint64(each.data.ptr).tobytes() for each in (source, target)]
    counters = launch(parse(HEAD + body + STORE)["test"], (blocks,), (threads,), arguments, memory)
    return np.asarray(target), counters


def compute(form: str, *values: Any) -> np.ndarray[Any, Any]:
    operation = OPERATIONS[form]
    return operation.compute(*map(np.atleast_1d, values))


# --- Text ----------------------------------------------------------------------------------------


def test_parse() -> None:
    kernel = parse(
        HEAD
        + """
    // a comment; with a semicolon
    { .reg .b32 %temp; mov.b64 {%temp, %r1}, %a2; }
LOOP:
    @!%p1 bra LOOP;
    ld.global.nc.v2.f32 {%f1, %f2}, [%a2+-8];
    shfl.sync.bfly.b32 %r2|%p2, %r1, 16, 31, -1;
    mov.f32 %f3, 0f3F800000;
    """
        + STORE
    )["test"]
    assert kernel.parameters == {"input": "u64", "output": "u64"}
    assert kernel.registers["%temp"] == "b32"
    assert "%f8" in kernel.registers
    assert "%f9" not in kernel.registers
    assert (kernel.shared, kernel.shared_bytes) == ({"memory": 0}, 1280)
    move, branch, load, shuffle, constant = kernel.instructions[6:11]
    assert move.operands == (Vector(("%temp", "%r1")), "%a2")
    assert branch.guard == ("%p1", False)
    assert kernel.labels == {"LOOP": 7}
    assert load.operands == (Vector(("%f1", "%f2")), Address("%a2", -8))
    assert shuffle.operands == ("%r2", "%p2", "%r1", Immediate(16), Immediate(31), Immediate(-1))
    assert constant.operands[1] == Immediate(0x3F800000, is_float=True)
    assert str(load) == "line 24: ld.global.nc.v2.f32"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.f32 %f1, %f2;", "line 19: frobnicate.f32: not known"),
        ("add.sat.s32 %r1, %r2, %r3;", "add.sat.s32: not known"),
        ("add.s32 %r1, %r2;", "add.s32: not known with so many operands"),
        ("atom.global.add.u32 %r1, [%a2], %r1;", "atom.global.add.u32: not known"),
        ("ld.volatile.global.u32 %r1, [%a2];", "ld.volatile.global.u32: not known"),
        ("ld.global.v2.u32 %r1, [%a2];", "ld.global.v2.u32: not known"),
        ("shfl.sync.idx.b32 %r1|%p1, %r1, 0, 31, -1;", "shfl.sync.idx.b32: not known"),
        ("shfl.sync.bfly.b32 %r1|%p1, %r1, 1, 31, 1;", "not known for parts of a warp"),
        ("bar.sync 1;", "bar.sync: not known"),
        ("brx.idx %r1, there;", "brx.idx: not known"),
        (".local .align 4 .b8 spilled[16];", "not understood: .local"),
        ("mov.u32 %r1, nowhere;", "nowhere is not known"),
        ("add.f32 %f1, %a1, %f1;", "%a1 is no f32"),
        ("add.s64 %r1, %a1, %a2;", "%r1 does not hold"),
        ("mov.u32 %r1, %p1;", "%p1 is no u32"),
        ("st.global.u64 [%a1], %r1;", "%r1 is no b64"),
    ],
)
def test_what_is_not_known_is_named(body: str, message: str) -> None:
    with pytest.raises(PTXError, match=message.replace(".", r"\.")):
        run(body)


def test_arguments_are_held_to_the_parameters() -> None:
    kernel = parse(HEAD + "mov.u32 %r1, 0;" + STORE)["test"]
    with pytest.raises(PTXError, match="1 arguments for 2"):
        launch(kernel, (1,), (32,), [bytes(8)], Memory())
    with pytest.raises(PTXError, match="argument 1 has 4 bytes"):
        launch(kernel, (1,), (32,), [bytes(8), bytes(4)], Memory())


# --- Arithmetic ----------------------------------------------------------------------------------


def doubles(count: int, spread: int, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return np.ldexp(rng.standard_normal(count), rng.integers(-spread, spread, count))


@pytest.mark.parametrize("spread", [2, 60, 500, 1020])
def test_fma_of_doubles_is_rounded_once(spread: int) -> None:
    a, b, c = (doubles(3000, spread, seed) for seed in range(3))
    with np.errstate(over="ignore"):
        c[:1000] = -(a * b)[:1000]  # what remains is what the product has lost
    c[1000:1200] = 0
    kept = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    a, b, c = a[kept], b[kept], c[kept]
    with np.errstate(all="ignore"):
        actual = compute("fma.rn.f64", a, b, c)
    for each in zip(a, b, c, actual, strict=True):
        x, y, z, found = map(float, each)
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        try:
            right = float(exact)
        except OverflowError:
            right = float("inf") if exact > 0 else float("-inf")
        assert found == right


def test_fma_of_singles_is_rounded_once() -> None:
    a, b, c = (doubles(100_000, 40, seed).astype("f4") for seed in range(3))
    # The product is halfway between two singles but for what comes after 2**-53.
    a[0], b[0], c[0] = 1 + 2**-12, 1 + 2**-12, 2**-60
    actual = compute("fma.rn.f32", a, b, c)
    twice = (a.astype("f8") * b + c).astype("f4")
    assert actual[0] != twice[0]
    wide = a.astype("g") * b.astype("g")  # 64 bits hold the product
    exact = np.abs(wide + c - actual)
    for neighbour in (np.inf, -np.inf):
        assert np.all(exact <= np.abs(wide + c - np.nextafter(actual, np.float32(neighbour))))


def test_fma_of_what_is_not_finite() -> None:
    inf, nan = np.inf, np.nan
    a, b, c = np.array([inf, inf, 1, nan, 0, 2]), np.array([1, 0, 1, 1, 5, inf]), np.ones(6)
    c[2] = -inf
    with np.errstate(all="ignore"):
        for form, dtype in (("fma.rn.f32", "f4"), ("fma.rn.f64", "f8")):
            actual = compute(form, *(each.astype(dtype) for each in (a, b, c)))
            np.testing.assert_array_equal(actual, [inf, nan, -inf, nan, 1, inf])


def test_conversions() -> None:
    every = np.arange(1 << 16, dtype="u2")
    singles = compute("cvt.f32.bf16", every)
    np.testing.assert_array_equal(singles, every.view(ml_dtypes.bfloat16).astype("f4"))
    with np.errstate(all="ignore"):
        values = doubles(100_000, 140, 7).astype("f4")
        values = np.append(values, np.float32([np.inf, -np.inf, np.nan]))
        halfway = values.astype("f2").astype("f4") * np.float32(1 + 2**-11)
        values = np.append(values, halfway)
        halves = compute("cvt.rn.f16.f32", values)
        np.testing.assert_array_equal(halves, values.astype("f8").astype("f2"))
    bfloats = compute("cvt.rn.bf16.f32", values).view(ml_dtypes.bfloat16).astype("f4")
    np.testing.assert_array_equal(bfloats, values.astype(ml_dtypes.bfloat16).astype("f4"))


def test_roots_are_off_by_less_than_is_allowed_but_off() -> None:
    a = np.abs(doubles(10_000, 30, 1))
    for form, values, most in (
        ("rsqrt.approx.ftz.f32", a.astype("f4"), 2**-22.9),
        ("rsqrt.approx.f64", a, 2**-52),
    ):
        exact = 1 / np.sqrt(values.astype("g"))
        error = np.abs(compute(form, values) - exact) / exact
        assert error.max() < most
        assert np.any(compute(form, values) != exact.astype(values.dtype))
    with np.errstate(all="ignore"):
        assert compute("rsqrt.approx.ftz.f32", np.float32(1e-40)) == np.inf


@pytest.mark.parametrize(
    ("form", "operands", "result"),
    [
        ("div.s32", (-7, 2), -3),
        ("div.s32", (7, -2), -3),
        ("rem.s32", (-7, 2), -1),
        ("div.u32", (0xFFFFFFF9, 2), 0x7FFFFFFC),
        ("add.s32", (0x7FFFFFFF, 1), -0x80000000),
        ("mul.wide.s32", (-3, 1 << 30), -3 << 30),
        ("mul.wide.u32", (0xFFFFFFFF, 2), 0x1FFFFFFFE),
        ("mul.lo.s64", (-3, 5), -15),
        ("mad.lo.s32", (-3, 5, 7), -8),
        ("shl.b32", (1, 32), 0),
        ("shr.s32", (-8, 40), -1),
        ("shr.u32", (0x80000000, 31), 1),
        ("clz.b32", (1,), 31),
        ("clz.b32", (0,), 32),
        ("clz.b64", (1 << 40,), 23),
        ("bfi.b32", (0xF, 0xFFFF0000, 8, 8), 0xFFFF0F00),
        ("bfi.b64", (3, 5, 32, 32), (3 << 32) | 5),
        ("cvt.s64.s32", (-1,), -1),
        ("cvt.u64.u32", (0xFFFFFFFF,), 0xFFFFFFFF),
        ("cvt.u32.u64", (0x100000005,), 5),
        ("cvt.u16.u32", (0x10005,), 5),
        ("cvt.rn.f32.s16", (-103,), -103),
        ("setp.eq.s16", (-1, 1), False),
        ("cvt.rzi.s32.f32", (-2.75,), -2),
        ("cvt.rzi.s32.f64", (1e300,), 0x7FFFFFFF),
        ("cvt.rzi.s32.f32", (np.nan,), 0),
        ("rcp.rn.f32", (3,), np.float32(1) / np.float32(3)),
        ("div.rn.f64", (1, 3), 1 / 3),
        ("setp.lt.s32", (-1, 0), True),
        ("setp.lt.u32", (0xFFFFFFFF, 0), False),
        ("setp.ne.f32", (np.nan, 1), False),
        ("setp.gtu.f32", (np.nan, 1), True),
        ("setp.leu.f64", (2, 1), False),
        ("setp.num.f32", (1, np.inf), True),
        ("setp.num.f64", (1, np.nan), False),
        ("setp.nan.f32", (np.nan, 1), True),
        ("setp.nan.f64", (2, 1), False),
        ("max.f32", (np.nan, 1), 1),
        ("neg.f32", (1,), -1),
        ("selp.f32", (1, 2, False), 2),
    ],
)
def test_operations(form: str, operands: tuple[Any, ...], result: Any) -> None:
    operation = OPERATIONS[form]
    given = [np.array([v], DTYPES[t]) for v, t in zip(operands, operation.sources, strict=True)]
    actual = operation.compute(*given)
    assert actual.dtype == DTYPES[operation.result]
    assert actual[0] == result


# --- Threads -------------------------------------------------------------------------------------


def test_memory_and_special_registers() -> None:
    found, _ = run("ld.global.u32 %r1, [%a2]; add.s32 %r1, %r1, %r1;")
    np.testing.assert_array_equal(found, 2 * np.arange(64))
    found, _ = run("mov.u32 %r1, %ntid.x;")
    assert np.all(found == 64)


def test_words_in_and_out_of_longer_ones() -> None:
    found, _ = run(
        """
    ld.global.u32 %r2, [%a2];
    mov.b32 {%h1, %h2}, %r2;
    mov.b64 %a4, {%r2, %r0};
    mov.b64 {_, %r3}, %a4;
    mov.b32 %r1, {%h2, %h1};
    add.s32 %r1, %r1, %r3;
    """,
        given=np.full(64, 0x00020001, "u4"),
    )
    np.testing.assert_array_equal(found, 0x00010002 + np.arange(64))


def test_threads_part_and_meet() -> None:
    """Odd threads loop as often as their number says, even ones do not."""
    found, counters = run(
        """
    mov.u32 %r1, 1000;
    and.b32 %r2, %r0, 1;
    setp.eq.s32 %p1, %r2, 0;
    @%p1 bra EVEN;
    mov.u32 %r1, 0;
LOOP:
    add.s32 %r1, %r1, 2;
    setp.lt.s32 %p2, %r1, %r0;
    @%p2 bra LOOP;
EVEN:
    add.s32 %r1, %r1, 1;
    """
    )
    threads = np.arange(64)
    np.testing.assert_array_equal(found, np.where(threads % 2, threads + 2, 1001))
    turns = np.arange(1, 64, 2) // 2 + 1
    assert counters.thread_instructions == 64 * 13 + 32 * 1 + 3 * turns.sum()
    assert counters.warp_instructions == 2 * (13 + 1) + 3 * (turns.max() + turns[15])


def test_shuffles_and_barriers() -> None:
    """The other warp's numbers, the lanes of each in pairs."""
    found, counters = run(
        """
    shfl.sync.bfly.b32 %r2|%p1, %r0, 1, 31, -1;
    shl.b32 %r3, %r0, 2;
    st.shared.u32 [%r3], %r2;
    bar.sync 0;
    xor.b32 %r3, %r3, 128;
    ld.shared.u32 %r1, [%r3];
    """
    )
    np.testing.assert_array_equal(found, np.arange(64) ^ 1 ^ 32)
    assert counters.barriers == 1


def test_a_store_of_fewer_bits_takes_the_lower_ones() -> None:
    body = """
    mov.u32 %r2, 0x12345678;
    mov.u32 %r1, 0;
    st.shared.u32 [memory], %r1;
    st.shared.u16 [memory+2], %r2;
    ld.shared.u32 %r1, [memory];
    """
    assert (run(body)[0] == 0x56780000).all()


def test_shared_memory_is_each_blocks_own_and_is_not_zero() -> None:
    found, _ = run(
        """
    mov.u32 %r2, memory;
    ld.shared.u32 %r1, [memory+8];
    setp.eq.s32 %p1, %r0, 0;
    @%p1 st.shared.u32 [%r2+8], %r0;
    """,
        blocks=3,
    )
    assert np.all(found == 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("setp.eq.s32 %p1, %r0, 3; @%p1 bra PAST; bar.sync 0; PAST:", "line 19: bar.sync"),
        (
            "setp.lt.s32 %p1, %r0, 32; @%p1 bra PAST; bar.sync 0; bra END; PAST: bar.sync 0; END:",
            "line 19: bar.sync and line 19: bar.sync",
        ),
        (
            "setp.eq.s32 %p1, %r0, 3; @%p1 bra PAST; "
            "shfl.sync.bfly.b32 %r1|%p2, %r0, 1, 31, -1; PAST:",
            "line 19: shfl.sync",
        ),
        ("setp.eq.s32 %p1, %r0, 3; @%p1 ret; bar.sync 0;", "line 19: bar.sync"),
    ],
    ids=["one passes it by", "at two of them", "at a shuffle", "one has ended"],
)
def test_threads_that_wait_for_ever_are_told(body: str, message: str) -> None:
    with pytest.raises(PTXError, match=f"threads wait .* {message}"):
        run(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.u32 %r1, [%a2+12];", "where nothing is"),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%a0+256];", "8 bytes beyond input"),
        ("st.global.u32 [%a3+-4], %r0;", "where nothing is"),
        ("ld.global.u32 %r1, [%a2+2];", "not aligned"),
        ("ld.global.v2.u32 {%r1, %r2}, [%a2];", "not aligned"),
        ("ld.shared.u32 %r1, [memory+1280];", "beyond shared memory"),
    ],
)
def test_accesses_beyond_arrays_are_told(body: str, message: str) -> None:
    with pytest.raises(PTXError, match=message):
        run(body, given=np.arange(66, dtype="u4"))


# --- Counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "width", "sectors", "least"),
    [
        (4, 4, 4, 4),  # side by side
        (16, 4, 16, 4),  # a word of each 16 bytes
        (32, 4, 32, 4),  # a word of each sector
        (16, 16, 16, 16),  # 16 bytes each, side by side
        (0, 4, 1, 1),  # all the same
    ],
)
def test_sectors(stride: int, width: int, sectors: int, least: int) -> None:
    load = {
        4: "ld.global.u32 %r2, [%a4];",
        16: "ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%a4];",
    }[width]
    _, counters = run(
        f"and.b32 %r1, %r0, 31; mul.wide.u32 %a4, %r1, {stride}; add.s64 %a4, %a0, %a4; {load}",
        given=np.zeros(512, "u4"),
        threads=64,
    )
    traffic = counters.reads["input"]
    assert traffic.requests == 2
    assert (traffic.sectors, traffic.least_sectors) == (2 * sectors, 2 * least)
    different = width if stride == 0 else 32 * width
    assert (traffic.bytes, traffic.distinct) == (2 * different, different)
    assert counters.writes["output"].distinct == 256


@pytest.mark.parametrize(
    ("stride", "kind", "ways", "conflicts"),
    [
        (4, "u32", 1, 0),
        (8, "u32", 2, 1),
        (32, "u32", 8, 7),
        (36, "u32", 1, 0),
        (0, "u32", 1, 0),
        (8, "u64", 1, 0),  # in two turns of half a warp
        (16, "u64", 2, 2),
    ],
)
def test_bank_conflicts(stride: int, kind: str, ways: int, conflicts: int) -> None:
    register = {"u32": "%r0", "u64": "%a0"}[kind]
    _, counters = run(
        f"mul.lo.s32 %r1, %r0, {stride}; st.shared.{kind} [%r1], {register};"
        f"ld.shared.{kind} {register}, [%r1];",
        threads=32,
    )
    for shared in (counters.shared_reads, counters.shared_writes):
        assert (shared.requests, shared.ways, shared.conflicts) == (1, ways, conflicts)
