"""From cubins to machine code (SASS), and how many vectors it loads before it uses any.

A kernel that uses a vector before it has asked for the next waits for memory twice. What a kernel
does with single elements is left out: tails of rows, and rows that are not aligned.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FUNCTION = re.compile(r"^\.text\.(\w+):$", re.MULTILINE)
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)\s*([^;]*);")
_REGISTER = re.compile(r"\bR(\d+)(\.64)?")
_VECTOR = ".128"


class Instruction(NamedTuple):
    opcode: str
    operands: tuple[str, ...]

    @property
    def loads_vector(self) -> bool:
        return self.opcode.startswith("LDG") and _VECTOR in self.opcode

    @property
    def accesses_element(self) -> bool:
        return self.opcode.startswith(("LDG", "STG")) and _VECTOR not in self.opcode

    @property
    def written(self) -> set[int]:
        """The registers that a load of a vector fills."""
        match = _REGISTER.match(self.operands[0])
        first = int(match[1]) if match else 0
        return set(range(first, first + 4))

    @property
    def read(self) -> set[int]:
        """The first register of each operand that is read."""
        stores = self.opcode.startswith("ST")
        return {int(m[1]) for each in self.operands[not stores :] for m in _REGISTER.finditer(each)}


def disassemble(cubin: bytes) -> dict[str, str]:
    """Return the machine code of each function of a cubin, by its mangled name."""
    import nvidia.cu13

    program = Path(next(iter(nvidia.cu13.__path__))) / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin + b"\0")  # CuPy leaves out the last byte, as if it ended a string
        file.flush()
        text = subprocess.run(
            [program, "-c", file.name], capture_output=True, text=True, check=True
        )
    _, *parts = _FUNCTION.split(text.stdout)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(code: str) -> Iterator[list[Instruction]]:
    """Yield the instructions between labels and branches."""
    block: list[Instruction] = []
    for line in code.splitlines():
        match = _INSTRUCTION.search(line)
        if match:
            block.append(Instruction(match[1], tuple(match[2].split(", "))))
        if block and (not match or match[1].startswith(("BRA", "EXIT", "RET"))):
            yield block
            block = []
    yield block


def loads_in_flight(code: str) -> list[int]:
    """Return how many vectors have been asked for at each wait for some, in the order of the code.

    Blocks that mostly access single elements are left out.
    """
    counts, pending, number = [], set[int](), 0
    for block in blocks(code):
        vectors = sum(each.loads_vector for each in block)
        if sum(each.accesses_element for each in block) > vectors + 3:
            continue
        for each in block:
            if pending & each.read:
                counts.append(number)
                pending, number = set(), 0
            if each.loads_vector:
                pending |= each.written
                number += 1
    return counts
