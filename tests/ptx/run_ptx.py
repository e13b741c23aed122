"""Run PTX that is written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from interpreter import launch
from memory import Memory
from parse import parse

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
    """Return the word that each thread stores, after loading a word of `given`."""
    memory = Memory()
    source = memory.array(np.arange(threads, dtype="u4") if given is None else given, "input")
    target = memory.empty((threads,), "u4", "output")
    arguments = [np.uint64(each.data.ptr).tobytes() for each in (source, target)]
    counters = launch(parse(HEAD + body + STORE)["test"], (blocks,), (threads,), arguments, memory)
    return np.asarray(target), counters
