"""The resources of the kernels: they are compiled by NVRTC, and their machine code is read.

This needs NVRTC, but neither a GPU nor a driver. Results are cached in the build folder.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import machine_code
from machine_code import FastPath, disassemble, fewest_instructions, loads_in_flight
from row_kernels import RowKernel

KEPT = Path(__file__).resolve().parents[2] / ".cuda_on_cpu" / "resources"
PROCESSES, BATCH = 2, 80
#: A thread reads single elements of partial results. All other kernels must load vectors.
SCALAR_LOADS = {"reduce_partials", "reduce_repeated_partials"}
SCALAR_LOADS |= {"channel_statistics", "channel_gradients"}
#: The first template number of these is the vector width, which may be less than 128 bits.
REDUCE_VECTORS = {"plane_moments", "plane_sums", "column_moments", "column_sums"}
WITH_VECTOR_WIDTH = REDUCE_VECTORS | {"channels_normalise", "channels_dx"}
#: A block stores only a few results. All other kernels must store vectors.
SCALAR_STORES = SCALAR_LOADS | REDUCE_VECTORS | {"segment_moments", "segment_sums"}
REGISTERS = 65536


class Multiprocessor(NamedTuple):
    """Limits of a multiprocessor: CUDA Programming Guide, technical specifications."""

    threads: int
    blocks: int
    shared: int
    is_counted: bool = True
    """Whether the instructions of a row are held to the design."""


ARCHITECTURES = {
    # It rounds to bfloat16 by many instructions, and its assembler puts parts of loops elsewhere.
    "75": Multiprocessor(1024, 16, 64 << 10, is_counted=False),
    "80": Multiprocessor(2048, 32, 164 << 10),
    "90": Multiprocessor(2048, 32, 228 << 10),
    "100": Multiprocessor(2048, 32, 228 << 10),
    "120": Multiprocessor(1536, 24, 100 << 10),
}


class Usage(NamedTuple):
    """Resources of a kernel, as reported by ptxas, and counted in its PTX from `threads` on."""

    stack: int
    spilled: int
    registers: int
    shared: int
    threads: int
    claimed: int
    """Blocks per multiprocessor that its launch bounds ensure."""
    vector_loads: int
    vector_stores: int
    in_flight: int
    """Vectors that a thread has asked for when it first waits for one, by the machine code."""
    instructions: int
    """Of a thread for a row, by the machine code; 0 in kernels that are not over rows."""

    def blocks(self, on: Multiprocessor) -> int:
        """Return how many blocks fit on a multiprocessor; threads get multiples of 8 registers."""
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * self.threads)
        by_shared = on.shared // (self.shared + 1024)  # CUDA reserves 1 KiB per block
        return min(by_registers, by_shared, on.threads // self.threads, on.blocks)

    def faults(self, name: str, on: Multiprocessor) -> list[str]:
        """Return what is wrong with the kernel."""
        kernel = name.partition("<")[0]
        loads = kernel not in SCALAR_LOADS and has_vectors(name)
        stores = kernel not in SCALAR_STORES and has_vectors(name)
        claimed = min(self.claimed, on.threads // self.threads)
        row = RowKernel.of(name)
        needed = row.vectors_in_flight if row else 0
        most = row.most_instructions if row and on.is_counted else self.instructions
        wrong = {
            f"a stack of {self.stack} bytes": self.stack > 0,
            f"{self.spilled} bytes of registers spilled": self.spilled > 0,
            f"room for {self.blocks(on)} blocks, not {claimed}": self.blocks(on) < claimed,
            "no load of 128 bits": loads and not self.vector_loads,
            "no store of 128 bits": stores and not self.vector_stores,
            f"a wait for {self.in_flight} vectors, not {needed}": self.in_flight < needed,
            f"{self.instructions} instructions, not {most}": self.instructions > most,
            "no path of whole vectors": row and on.is_counted and not self.instructions,
        }
        return [fault for fault, is_present in wrong.items() if is_present]


class Row(NamedTuple):
    """A row of the page: kernels that differ only in flags or in the dtypes of parameters."""

    kernel: str
    dtype: str
    shape: str
    parameters: str


_TOLD = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)
_ENTRY = re.compile(r"\.entry (\w+)\((.*?)^}", re.DOTALL | re.MULTILINE)


def _number(pattern: str, text: str, otherwise: int = 0) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else otherwise


def compiled(
    source: str, options: tuple[str, ...], names: tuple[str, ...], architecture: str
) -> dict[str, Usage]:
    """Compile kernels for an architecture, and return their resources."""
    import cupy
    from cupy_backends.cuda.libs import nvrtc

    counting = [inspect.getsource(each) for each in (machine_code, compiled)]
    rows = [RowKernel.of(name) for name in names]
    paths = [row.path if row else FastPath() for row in rows]
    key = repr((source, options, names, architecture, nvrtc.getVersion(), counting, paths))
    kept = KEPT / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if kept.exists():
        return {name: Usage(*each) for name, each in json.loads(kept.read_text()).items()}
    program = nvrtc.createProgram(source, "kernels.cu", (), ())
    for name in names:
        nvrtc.addNameExpression(program, name)
    include = Path(cupy.__file__).parents[1] / "nvidia" / "cu13" / "include"
    try:
        nvrtc.compileProgram(
            program, (*options, f"-arch=sm_{architecture}", f"-I{include}", "--ptxas-options=-v")
        )
    except nvrtc.NVRTCError:
        sys.exit(nvrtc.getProgramLog(program))
    told = {match[1]: match for match in _TOLD.finditer(nvrtc.getProgramLog(program))}
    bodies = {match[1]: match[2] for match in _ENTRY.finditer(nvrtc.getPTX(program).decode())}
    codes = disassemble(nvrtc.getCUBIN(program))
    usages = {}
    for name, row, path in zip(names, rows, paths, strict=True):
        lowered = nvrtc.getLoweredName(program, name)
        _, stack, stores, loads, registers, rest = told[lowered].groups()
        body = bodies[lowered]
        usages[name] = Usage(
            int(stack),
            int(stores) + int(loads),
            int(registers),
            _number(r"(\d+) bytes smem", rest),
            _number(r"\.maxntid (\d+)", body),
            _number(r"\.minnctapersm (\d+)", body, 1),
            len(re.findall(r"ld\.global\S*\.v4\.[bfu]32|ld\.global\S*\.v2\.[bfu]64", body)),
            len(re.findall(r"st\.global\S*\.v4\.[bfu]32|st\.global\S*\.v2\.[bfu]64", body)),
            loads_in_flight(codes[lowered], path),
            fewest_instructions(codes[lowered], path) if row else 0,
        )
    KEPT.mkdir(exist_ok=True)
    kept.write_text(json.dumps(usages))
    return usages


def row_of(name: str) -> Row:
    """Return the row of the page for a kernel, from its template arguments."""
    kernel, _, arguments = name.rstrip(">").partition("<")
    each = arguments.split(", ")
    types = [one for one in each if re.match(r"[a-z_]", one) and one not in ("true", "false")]
    numbers = ", ".join(one for one in each if one.isdigit())
    names = {
        "__half": "float16",
        "__nv_bfloat16": "bfloat16",
        "float": "float32",
        "double": "float64",
    }
    dtype = names[types[0]] if types else "none"
    return Row(kernel, dtype, numbers, "wider" if len({*types}) > 1 else "")


def has_vectors(name: str) -> bool:
    """Return whether a kernel reads vectors of 128 bits."""
    if name.partition("<")[0] not in WITH_VECTOR_WIDTH:
        return True
    row = row_of(name)
    bits = int(row.dtype.removeprefix("bfloat").removeprefix("float"))
    return int(row.shape.partition(",")[0]) * bits == 128


def measured(
    sources: dict[str, str], options: tuple[str, ...], names: Mapping[str, Iterable[str]]
) -> dict[str, dict[str, Usage]]:
    """Return the resources of kernels on some architectures; they are compiled in batches."""
    tasks = []
    for architecture, here in names.items():
        together = defaultdict(list)
        for name in sorted(here):
            together[sources[name], row_of(name).parameters].append(name)
        for (source, _), some in together.items():
            for first in range(0, len(some), BATCH):
                batch = tuple(some[first : first + BATCH])
                tasks.append((source, options, batch, architecture))
    usages: dict[str, dict[str, Usage]] = {each: {} for each in names}
    context = multiprocessing.get_context("spawn")  # without the fake driver
    with ProcessPoolExecutor(PROCESSES, context) as pool:
        for task, result in zip(tasks, pool.map(compiled, *zip(*tasks, strict=True)), strict=True):
            usages[task[3]].update(result)
    return usages
