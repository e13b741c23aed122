"""From PTX to kernels: their parameters, registers, shared memory and instructions.

Only the part of the language that the compiler emits is known. Names of sections are those of
NVIDIA's "PTX ISA".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

#: Bytes of each fundamental type; a predicate has none.
SIZES = {f"{kind}{8 * size}": size for kind in "bsuf" for size in (1, 2, 4, 8)}
SIZES |= {"bf16": 2, "pred": 0}
del SIZES["f8"]


class PTXError(Exception):
    """Invalid or unknown PTX, or an error of its threads."""


class Immediate(NamedTuple):
    """A number: the bits of a float, or an integer."""

    value: int
    is_float: bool = False


class Address(NamedTuple):
    """An address in brackets: a register or the name of a variable or parameter, and bytes."""

    base: str
    offset: int


class Vector(NamedTuple):
    """Operands in braces."""

    elements: tuple[str, ...]


#: A string is a register (with its %), a label, or the name of a variable.
Operand = str | Immediate | Address | Vector


class Instruction(NamedTuple):
    """One instruction. `guard` is the predicate, and the value that lets a thread execute it."""

    form: str
    operands: tuple[Operand, ...]
    guard: tuple[str, bool] | None
    line: int

    @property
    def opcode(self) -> str:
        return self.form.partition(".")[0]

    @property
    def kind(self) -> str:
        """Return the type, which comes last."""
        return self.form.rpartition(".")[2]

    def __str__(self) -> str:
        return f"line {self.line}: {self.form}"


@dataclass
class Kernel:
    """An entry function."""

    name: str
    #: Type of each, in the order of arguments.
    parameters: dict[str, str] = field(default_factory=dict)
    #: Type of each.
    registers: dict[str, str] = field(default_factory=dict)
    #: Offset of each variable in a block's shared memory.
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)[^{;]*\{")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(\w+)$")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+)(?:<(\d+)>)?$")
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+(\w+)(?:\[(\d+)\])?$")
_LABEL = re.compile(r"\s*(\$?\w+):(?!:)")
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s|]+")
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+))?\s*\]$")


def parse(text: str) -> dict[str, Kernel]:
    """Parse all kernels of a module; return them by name."""
    text = _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    kernels = {}
    for entry in _ENTRY.finditer(text):
        kernel = Kernel(entry[1])
        for each in filter(None, map(str.strip, entry[2].split(","))):
            match = _PARAMETER.match(each)
            if not match:
                raise PTXError(f"not a parameter: {each}")
            kernel.parameters[match[2]] = match[1]
        line = text.count("\n", 0, entry.end()) + 1
        for statement, number in _statements(text, entry.end(), line):
            _add(kernel, statement, number)
        kernels[kernel.name] = kernel
    return kernels


def _statements(text: str, begin: int, line: int) -> Iterator[tuple[str, int]]:
    """Yield statements and labels, without the braces around scopes."""
    depth = 1
    while True:
        place = begin
        while text[place].isspace():
            place += 1
        line += text.count("\n", begin, place)
        begin = place
        if text[begin] in "{}":
            depth += 1 if text[begin] == "{" else -1
            begin += 1
            if depth == 0:
                return
            continue
        label = _LABEL.match(text, begin)
        end = label.end() if label else text.index(";", begin) + 1
        yield text[begin:end].rstrip(";").strip(), line
        line += text.count("\n", begin, end)
        begin = end


def _add(kernel: Kernel, statement: str, line: int) -> None:
    if statement.endswith(":"):
        kernel.labels[statement[:-1]] = len(kernel.instructions)
    elif statement.startswith(".pragma"):
        pass
    elif match := _REGISTERS.match(statement):
        kind, name, count = match.groups()
        names = [f"{name}{each}" for each in range(int(count))] if count else [name]
        kernel.registers |= dict.fromkeys(names, kind)
    elif match := _SHARED.match(statement):
        alignment, kind, name, count = match.groups()
        begin = -(-kernel.shared_bytes // int(alignment)) * int(alignment)
        kernel.shared[name] = begin
        kernel.shared_bytes = begin + SIZES[kind] * int(count or 1)
    elif (match := _INSTRUCTION.match(statement)) and not statement.startswith("."):
        negated, guard, form, rest = match.groups()
        operands = tuple(_operand(each) for each in _OPERAND.findall(rest))
        kernel.instructions.append(
            Instruction(form, operands, (guard, not negated) if guard else None, line)
        )
    else:
        raise PTXError(f"line {line}: not understood: {statement}")


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return Vector(tuple(each.strip() for each in text[1:-1].split(",")))
    if text.startswith("["):
        match = _ADDRESS.match(text)
        if not match:
            raise PTXError(f"not an address: {text}")
        return Address(match[1], int(match[2] or 0))
    if text[:2] in ("0f", "0F"):
        return Immediate(int(text[2:], 16), is_float=True)
    if text[:2] in ("0d", "0D"):
        return Immediate(int(text[2:], 16), is_float=True)
    if re.fullmatch(r"-?(0[xX])?[0-9a-fA-F]+U?", text) and text[text.startswith("-")].isdigit():
        return Immediate(int(text.rstrip("U"), 0))
    return text


def float_bits(value: float) -> str:
    """Return a float32 as PTX writes it."""
    return f"0f{struct.unpack('<I', struct.pack('<f', value))[0]:08X}"
