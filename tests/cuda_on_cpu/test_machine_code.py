"""What is read from machine code: the shortest path with some loads and stores of vectors."""

from __future__ import annotations

from machine_code import FastPath, fewest_instructions

#: A row of two vectors: a path of single elements, a loop, and a path without rows.
CODE = """
        /*0000*/                   ISETP.GE.AND P0, PT, R0, R1, PT ;
        /*0010*/               @P0 BRA `(.L_x_3) ;
        /*0020*/                   MOV R2, R3 ;
.L_x_1:
        /*0030*/              @!P1 BRA `(.L_x_2) ;
        /*0040*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0050*/                   LDG.E.128 R8, desc[UR4][R2.64+0x10] ;
        /*0060*/                   FADD R4, R4, R8 ;
        /*0070*/                   STG.E.128 desc[UR4][R12.64], R4 ;
.L_x_2:
        /*0080*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0090*/               @P2 BRA `(.L_x_1) ;
.L_x_3:
        /*00a0*/                   EXIT ;
"""


def test_the_shortest_path_through_a_kernel() -> None:
    assert fewest_instructions(CODE, FastPath()) == 3
    assert fewest_instructions(CODE, FastPath(loads=2, stores=1)) == 11
    assert fewest_instructions(CODE, FastPath(loads=3, stores=1)) == 18
    assert fewest_instructions(CODE.replace(".128", ""), FastPath(loads=1)) == 0


def test_the_shortest_path_through_an_iteration() -> None:
    assert fewest_instructions(CODE, FastPath(loads=2, stores=1, is_loop=True)) == 7
    assert fewest_instructions(CODE, FastPath(loads=2, stores=2, is_loop=True)) == 14
    assert fewest_instructions(CODE.replace(".128", ""), FastPath(loads=2, is_loop=True)) == 0
