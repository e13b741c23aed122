"""Compile every kernel by NVRTC, and compare its resources with docs/cuda-kernels.md.

This needs NVRTC, but neither a GPU nor a driver. Without an option, kernels whose parameters have
the dtype of x are compiled and compared with the page, which must be generated from the same
sources. ``--write`` compiles all kernels and writes the page, which takes a quarter of an hour.
Results are cached in the build folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import multiprocessing
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import machine_code
from machine_code import disassemble, loads_in_flight

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "cuda-kernels.md"
KEPT = HERE.parents[1] / ".cuda_on_cpu" / "resources"
PROCESSES, BATCH = 2, 80
#: A thread reads single elements of partial results. All other kernels must load vectors.
SCALAR_LOADS = {"reduce_partials", "reduce_repeated_partials"}
SCALAR_LOADS |= {"channel_statistics", "channel_gradients"}
#: The first template number of these is the vector width, which may be less than 128 bits.
REDUCE_VECTORS = {"plane_moments", "plane_sums", "column_moments", "column_sums"}
WITH_VECTOR_WIDTH = REDUCE_VECTORS | {"channels_normalise", "channels_dx"}
#: A block stores only a few results. All other kernels must store vectors.
SCALAR_STORES = SCALAR_LOADS | REDUCE_VECTORS | {"segment_moments", "segment_sums"}
#: Numbers of vectors. The page shows the least of each.
VECTOR_FIELDS = ("vector_loads", "vector_stores", "in_flight")
#: How many arrays a kernel over rows reads. Its last template number is that of a thread's chunks.
ARRAYS_IN_CHUNKS = dict.fromkeys(("rows_forward", "segment_moments", "segments_forward"), 1)
ARRAYS_IN_CHUNKS |= dict.fromkeys(("rows_backward", "segment_sums", "segments_backward"), 2)
REGISTERS, WARP = 65536, 32


class Multiprocessor(NamedTuple):
    """Limits of a multiprocessor: CUDA Programming Guide, technical specifications."""

    threads: int
    blocks: int
    shared: int


ARCHITECTURES = {
    "75": Multiprocessor(1024, 16, 64 << 10),
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
        row = row_kernel(name)
        needed = row.vectors_in_flight if row else 0
        wrong = {
            f"a stack of {self.stack} bytes": self.stack > 0,
            f"{self.spilled} bytes of registers spilled": self.spilled > 0,
            f"room for {self.blocks(on)} blocks, not {claimed}": self.blocks(on) < claimed,
            "no load of 128 bits": loads and not self.vector_loads,
            "no store of 128 bits": stores and not self.vector_stores,
            f"a wait for {self.in_flight} vectors, not {needed}": self.in_flight < needed,
        }
        return [fault for fault, is_present in wrong.items() if is_present]


class RowKernel(NamedTuple):
    """What a kernel over rows loads, from its template arguments."""

    kernel: str
    arrays: int
    """How many arrays it reads: x, or x and dy."""
    dtype: str
    threads: int
    chunks: int
    is_read_twice: bool
    narrows_dy: bool

    @property
    def loads_next_row(self) -> bool:
        """Whether it loads the next row while it processes one."""
        has_others_beside = self.threads <= WARP
        return self.kernel == "rows_backward" and not (
            has_others_beside or self.is_read_twice or self.narrows_dy
        )

    @property
    def vectors_in_flight(self) -> int:
        """How many vectors it asks for, at least, before it uses any.

        A row that is read twice is loaded chunk by chunk: 16 bits one at a time, else one ahead. A
        double of dy that is kept as a float is waited for with its chunk. Rows of float64 fill the
        registers, so that the compiler decides how much it loads ahead.
        """
        if self.is_read_twice:
            vectors = 4 if self.dtype in ("float32", "float64") else 2
        elif self.narrows_dy:
            vectors = self.chunks + 2
        else:
            vectors = self.arrays * self.chunks
        return 1 if self.dtype == "float64" else vectors


def row_kernel(name: str) -> RowKernel | None:
    """Return what a kernel over rows loads, and None for other kernels."""
    kernel, _, arguments = name.partition("<")
    if kernel not in ARRAYS_IN_CHUNKS:
        return None
    arrays, dtype = ARRAYS_IN_CHUNKS[kernel], row_of(name).dtype
    threads, *_, chunks = (int(each) for each in re.findall(r"\b\d+\b", arguments))
    dy = arguments.split(", ")[1]
    return RowKernel(
        kernel,
        arrays,
        dtype,
        threads,
        chunks,
        kernel == "rows_backward" and bool(re.search(r"\d, false", arguments)),
        arrays == 2 and dy == "double" and dtype != "float64",
    )


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

    counting = [
        Path(each).read_text(encoding="utf-8") for each in (__file__, machine_code.__file__)
    ]
    key = repr((source, options, names, architecture, nvrtc.getVersion(), counting))
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
    for name in names:
        row = row_kernel(name)
        # Where the next row is loaded, it must be so at the second wait as well.
        waits = 2 if row and row.loads_next_row else 1
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
            loads_in_flight(codes[lowered], waits, name.startswith("segments_backward")),
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
    sources: dict[str, str], options: tuple[str, ...], names: Sequence[str]
) -> dict[str, dict[str, Usage]]:
    """Return the resources of kernels on each architecture; they are compiled in batches."""
    tasks = []
    together = defaultdict(list)
    for name in sorted(names):
        together[sources[name], row_of(name).parameters].append(name)
    for architecture in ARCHITECTURES:
        for (source, _), some in together.items():
            for first in range(0, len(some), BATCH):
                batch = tuple(some[first : first + BATCH])
                tasks.append((source, options, batch, architecture))
    usages: dict[str, dict[str, Usage]] = {each: {} for each in ARCHITECTURES}
    context = multiprocessing.get_context("spawn")  # without the fake driver
    with ProcessPoolExecutor(PROCESSES, context) as pool:
        for task, result in zip(tasks, pool.map(compiled, *zip(*tasks, strict=True)), strict=True):
            usages[task[3]].update(result)
    return usages


def lines(usages: dict[str, dict[str, Usage]]) -> dict[Row, str]:
    """Return the rows of the page's table."""
    rows = defaultdict(list)
    for name in next(iter(usages.values())):
        rows[row_of(name)].append(name)
    table = {}
    for row, names in sorted(rows.items()):
        some = [each[name] for each in usages.values() for name in names]
        cells = []
        for architecture, on in ARCHITECTURES.items():
            here = [usages[architecture][name] for name in names]
            least, most = min(e.registers for e in here), max(e.registers for e in here)
            registers = str(most) if least == most else f"{least}-{most}"
            cells.append(f"{registers} ({min(each.blocks(on) for each in here)})")
        vectors = [min(each[k] for each in some) for k in map(Usage._fields.index, VECTOR_FIELDS)]
        facts = [some[0].threads, some[0].claimed, max(each.shared for each in some), *vectors]
        words = [f"{row.kernel}<{row.shape}>", row.dtype, row.parameters or "x's", len(names)]
        table[row] = "| " + " | ".join(map(str, [*words, *facts, *cells])) + " |"
    return table


def digest(sources: dict[str, str], options: set[str]) -> str:
    """Return a hash of everything that the page depends on."""
    from cupy_backends.cuda.libs import nvrtc

    everything = (sorted(sources.items()), sorted(options), nvrtc.getVersion())
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:16]


PREFACE = """# The resources of the CUDA kernels

The table lists all {count} kernels that a call on CuPy arrays can choose. They are found by
preparing every kind of call, and compiled by NVRTC {version} for each architecture. No kernel has a
stack or spills registers. `make -C tests/cuda_on_cpu coverage` writes this page. Before, it runs
each kernel on the CPU, in four orders of threads, which must give the same bits, and under
AddressSanitizer and UndefinedBehaviorSanitizer. `make test-cuda` checks that the page matches the
code.

The columns are:

- *kernel*: its name and the numbers among its template arguments; *x*: the dtype of x.
- *parameters*: whether gamma, beta and dy have the dtype of x, or one of them is wider.
- *kernels*: the number of kernels in this row, which differ in flags and in these wider dtypes.
- *threads* of a block; *claimed*: the blocks per multiprocessor that the launch bounds ensure.
- *shared*: bytes of shared memory; *loads*, *stores*: the fewest loads and stores of 128 bits in
  the code of a kernel; *in flight*: the fewest vectors of 128 bits that a thread has asked for when
  it first waits for one, by the machine code. Kernels over rows have asked for all chunks of x, and
  of dy, before they use any; for one or two of each where a row is too long to be kept; and for as
  many as the compiler chose where x is float64, whose rows fill the registers.
- For each architecture, the registers of a thread, and in brackets the blocks that fit on a
  multiprocessor.

Digest of the sources: {digest}

| kernel | x | parameters | kernels | threads | claimed | shared | loads | stores | {heads} |
|{rules}
"""


def preface(sources: dict[str, str], options: set[str]) -> str:
    from cupy_backends.cuda.libs import nvrtc

    return PREFACE.format(
        count=len(sources),
        version=".".join(map(str, nvrtc.getVersion())),
        digest=digest(sources, options),
        heads=" | ".join(["in flight", *(f"sm_{each}" for each in ARCHITECTURES)]),
        rules="---|---|---|" + "---:|" * (7 + len(ARCHITECTURES)),
    )


def main(write: bool) -> int:
    """Compile the kernels; return whether any is wrong, or the page out of date."""
    from kernel_inventory import kernels_in_use

    sources, options = kernels_in_use()
    names = [name for name in sources if write or not row_of(name).parameters]
    usages = measured(sources, tuple(sorted(options)), names)
    wrong = [
        f"{name} on sm_{architecture}: {fault}"
        for architecture, on in ARCHITECTURES.items()
        for name, usage in usages[architecture].items()
        for fault in usage.faults(name, on)
    ]
    print("\n".join(wrong) or f"{len(names)} of {len(sources)} kernels: nothing is wrong")
    page = preface(sources, options) + "\n".join(lines(usages).values()) + "\n"
    if write:
        PAGE.write_text(page, encoding="utf-8")
        return bool(wrong)
    there = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    old = [each for each in there.splitlines() if "| wider |" not in each]
    differences = [
        *difflib.unified_diff(old, page.splitlines(), str(PAGE), "now", n=0, lineterm="")
    ]
    if differences:
        print(*differences, "", "Write it anew: make -C tests/cuda_on_cpu coverage", sep="\n")
    return bool(wrong or differences)


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv))
