"""From cubins to machine code (SASS): how many vectors it loads before it uses any, and its length.

A kernel that uses a vector before it has asked for the next waits for memory twice. What a kernel
does with single elements is left out: tails of rows, and rows that are not aligned.
"""

from __future__ import annotations

import heapq
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple


class FastPath(NamedTuple):
    """What a kernel does for a row of whole, aligned vectors."""

    waits: int = 1
    """How many waits are looked at: the first, or that for the next row as well."""
    has_sums: bool = False
    """Whether threads exchange the sums of segments before they use the row."""
    loads: int = 0
    """How many vectors a thread loads, and stores."""
    stores: int = 0
    is_loop: bool = False
    """Whether the row is an iteration of a loop."""


_FUNCTION = re.compile(r"^\.text\.(\w+):$", re.MULTILINE)
_LABEL = re.compile(r"^\s*(\.L_\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([\w.]+)\s*([^;]*);")
_REGISTER = re.compile(r"\bR(\d+)(\.64)?")
_VECTOR = ".128"
#: The number of what follows the last block of a kernel.
EXIT = -1


class Instruction(NamedTuple):
    opcode: str
    operands: tuple[str, ...]

    @property
    def loads_vector(self) -> bool:
        return self.opcode.startswith("LDG") and _VECTOR in self.opcode

    @property
    def stores_vector(self) -> bool:
        return self.opcode.startswith("STG") and _VECTOR in self.opcode

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


class Block(NamedTuple):
    """Instructions without a branch between them, and the blocks that may follow, by number."""

    instructions: list[Instruction]
    successors: list[int]

    @property
    def vectors(self) -> tuple[int, int]:
        """How many vectors it loads and stores."""
        loads = sum(each.loads_vector for each in self.instructions)
        return loads, sum(each.stores_vector for each in self.instructions)

    @property
    def ends_kernel(self) -> bool:
        return any(each.opcode.startswith("EXIT") for each in self.instructions)

    def is_of_elements(self, statistics: int) -> bool:
        """Return whether it mostly accesses single elements, besides so many statistics."""
        vectors = self.vectors[0]
        elements = sum(each.accesses_element for each in self.instructions)
        return elements > vectors + statistics


def blocks(code: str) -> list[Block]:
    """Return the blocks of a function in order; the first is its entry."""
    parts: list[list[Instruction]] = [[]]
    numbers: dict[str, int] = {}
    ends: dict[int, tuple[str | None, bool]] = {}
    for line in code.splitlines():
        label, match = _LABEL.match(line), _INSTRUCTION.search(line)
        if label:
            parts.append([])
            numbers[label[1]] = len(parts) - 1
        elif match:
            guard, opcode, operands = match.groups()
            parts[-1].append(Instruction(opcode, tuple(operands.split(", "))))
            if opcode.startswith(("BRA", "EXIT", "RET")):
                target = _TARGET.search(operands)
                # Operands before the target are further conditions.
                goes_on = bool(guard) or (target is not None and operands[0] in "!PU")
                ends[len(parts) - 1] = target and target[1], goes_on
                parts.append([])
    result = []
    for number, part in enumerate(parts):
        target, goes_on = ends.get(number, (None, True))
        following = [] if target is None else [numbers[target]]
        following += [number + 1] if goes_on and number + 1 < len(parts) else []
        result.append(Block(part, following))
    return result


def loads_in_flight(code: str, path: FastPath) -> int:
    """Return the least number of vectors that have been asked for at the waits of a path.

    It is that of the best path, which is that of aligned rows of whole chunks: every other one
    leaves out loads. It does not go back, nor through blocks that mostly access single elements. It
    is not that of a thread without elements, which would load a row again to registers that another
    load is still to fill, or exchange sums before it loads any. Only a kernel that `has_sums` does
    that with elements, too.
    """
    parts, best, statistics = blocks(code), 0, 6 if path.has_sums else 3
    paths = [(0, frozenset[int](), 0, path.waits, 1 << 30)]
    seen = set(paths)
    while paths:
        number, pending, loads, left, least = paths.pop()
        for each in parts[number].instructions:
            if pending & each.read:
                least, pending, left = min(least, loads), frozenset(), left - 1
                loads = 0
            shares_sums = not path.has_sums and each.opcode.startswith("SHFL")
            has_no_elements = shares_sums and left == path.waits and not loads
            if left == 0 or has_no_elements or (each.loads_vector and pending & each.written):
                break
            if each.loads_vector:
                pending, loads = pending | each.written, loads + 1
        else:
            if left < path.waits and any(each <= number for each in parts[number].successors):
                best = max(best, min(least, loads))  # the next iteration waits for them
            for following in parts[number].successors:
                state = following, pending, loads, left, least
                if following <= number or parts[following].is_of_elements(statistics):
                    continue
                if state not in seen:
                    seen.add(state)
                    paths.append(state)
        if left == 0:
            best = max(best, least)
    return best


def fewest_instructions(code: str, path: FastPath) -> int:
    """Return how many instructions a thread executes for a row at least, or 0 without a path."""
    parts = blocks(code)
    if not path.is_loop:
        return _shortest_path(parts, 0, EXIT, path)
    # An iteration begins with any of its blocks, and ends before it.
    accesses = [part.vectors[1 if path.stores else 0] for part in parts]
    starts = [number for number, count in enumerate(accesses) if count]
    found = (_shortest_path(parts, each, each, path) for each in starts)
    return min(filter(None, found), default=0)


def _shortest_path(parts: list[Block], first: int, last: int, path: FastPath) -> int:
    """Return the fewest instructions from a block until another, by Dijkstra's algorithm, or 0."""
    paths, seen = [(0, first, 0, 0)], set()
    while paths:
        length, number, loads, stores = heapq.heappop(paths)
        if length and number == last and (loads, stores) == (path.loads, path.stores):
            return length
        if number == EXIT or (number, loads, stores) in seen:
            continue
        seen.add((number, loads, stores))
        part = parts[number]
        length += len(part.instructions)
        loads = min(path.loads, loads + part.vectors[0])
        stores = min(path.stores, stores + part.vectors[1])
        for following in (*part.successors, *([EXIT] if part.ends_kernel else [])):
            heapq.heappush(paths, (length, following, loads, stores))
    return 0
