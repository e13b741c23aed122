"""The interpreter and the parser, on PTX that is written by hand."""

from __future__ import annotations

import numpy as np
import pytest
from interpreter import launch
from memory import Memory
from parse import Address, Immediate, PTXError, Vector, parse
from run_ptx import HEAD, STORE, run


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
        ("vote.sync.any.pred %p1, %p2, -1;", "vote.sync.any.pred"),
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
def test_unknown_ptx_is_named(body: str, message: str) -> None:
    with pytest.raises(PTXError, match=message.replace(".", r"\.")):
        run(body)


def test_arguments_must_match_the_parameters() -> None:
    kernel = parse(HEAD + "mov.u32 %r1, 0;" + STORE)["test"]
    with pytest.raises(PTXError, match="1 arguments for 2"):
        launch(kernel, (1,), (32,), [bytes(8)], Memory())
    with pytest.raises(PTXError, match="argument 1 has 4 bytes"):
        launch(kernel, (1,), (32,), [bytes(8), bytes(4)], Memory())


def test_memory_and_special_registers() -> None:
    found, _ = run("ld.global.u32 %r1, [%a2]; add.s32 %r1, %r1, %r1;")
    np.testing.assert_array_equal(found, 2 * np.arange(64))
    found, _ = run("ld.global.u16 %a4, [%a2]; shr.u64 %a5, %a4, 16; cvt.u32.u64 %r1, %a5;")
    assert np.all(found == 0)  # a wider register is extended by zeros
    found, _ = run("mov.u32 %r1, %ntid.x;")
    assert np.all(found == 64)


def test_packing_and_unpacking_words() -> None:
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


def test_threads_diverge_and_converge() -> None:
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


def test_votes() -> None:
    found, _ = run(
        """
    setp.lt.s32 %p1, %r0, 40;
    vote.sync.all.pred %p2, %p1, -1;
    selp.u32 %r1, 1, 0, %p2;
    """
    )
    np.testing.assert_array_equal(found, np.arange(64) < 32)  # of the second warp, not all agree


def test_shuffles_and_barriers() -> None:
    """Each thread gets the number of the other warp's neighbouring lane."""
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
    ids=["one skips it", "at two of them", "at a shuffle", "one has returned"],
)
def test_deadlocks_are_reported(body: str, message: str) -> None:
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
def test_out_of_bounds_accesses_are_reported(body: str, message: str) -> None:
    with pytest.raises(PTXError, match=message):
        run(body, given=np.arange(66, dtype="u4"))


@pytest.mark.parametrize(
    ("stride", "width", "sectors", "least"),
    [
        (4, 4, 4, 4),  # contiguous
        (16, 4, 16, 4),  # one word in 16 bytes
        (32, 4, 32, 4),  # one word in a sector
        (16, 16, 16, 16),  # 16 bytes each, contiguous
        (0, 4, 1, 1),  # the same address
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
        (8, "u64", 1, 0),  # half a warp at a time
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
