"""Write docs/cuda-kernels.md, or check that it is of these kernels and tells the truth.

The page has a digest of the sources that it was written from. Without an option, kernels whose
parameters have the dtype of x are compiled for sm_90, and one of each row of the page for each
other architecture, and compared with it. ``--write`` compiles all kernels for all architectures and
writes the page, which takes half an hour.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from resources import ARCHITECTURES, Row, Usage, measured, row_of
from row_kernels import RowKernel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cuda-kernels.md"
#: The architecture for which most kernels are compiled.
FIRST = "90"
COLUMNS = (
    *("kernel", "x", "parameters", "kernels", "threads", "claimed", "shared", "loads", "stores"),
    *("in flight", "instructions", *(f"sm_{each}" for each in ARCHITECTURES)),
)
DIGEST = "Digest of the sources: "
PREFACE = """# The resources of the CUDA kernels

The table lists all {count} kernels that a call on CuPy arrays can choose. They are found by
preparing every kind of call, and compiled by NVRTC {version} for each architecture. No kernel has a
stack or spills registers. `make -C tests/cuda_on_cpu coverage` writes this page. Before, it runs
each kernel on the CPU, in four orders of threads, which must give the same bits, and under
AddressSanitizer and UndefinedBehaviorSanitizer. `make test-cuda` checks that the page was written
from the same sources, and compiles some kernels of each row again.

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
- *instructions* that a thread executes for each of its elements of a row, all that it executes for
  the row among them, at least and at most from sm_80 on, by the machine code. Rows are whole
  vectors and have gamma, and beta. sm_75 is left out: it rounds to bfloat16 by many.
- For each architecture, the registers of a thread, and in brackets the blocks that fit on a
  multiprocessor.

"""


class Range(NamedTuple):
    """The least and the greatest of some numbers."""

    least: float
    most: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Range:
        numbers = tuple(numbers)
        return cls(min(numbers), max(numbers))

    @classmethod
    def parse(cls, text: str) -> Range:
        least, _, most = text.partition("-")
        return cls(float(least), float(most or least))

    def __str__(self) -> str:
        least, most = f"{self.least:g}", f"{self.most:g}"
        return least if least == most else f"{least}-{most}"

    def includes(self, other: Range) -> bool:
        return self.least <= other.least and other.most <= self.most


class Entry(NamedTuple):
    """What a row of the page tells of kernels that differ in flags or in wider dtypes."""

    kernels: int
    threads: int
    claimed: int
    shared: int
    vector_loads: int
    vector_stores: int
    in_flight: int
    instructions: Range
    registers: dict[str, Range]
    """By architectures, as the next."""
    blocks: dict[str, int]

    @classmethod
    def of(cls, usages: Usages, names: Sequence[str]) -> Entry:
        """Return the entry for some kernels, on the architectures that each was compiled for."""
        by_architecture = {
            each: [here[name] for name in names if name in here] for each, here in usages.items()
        }
        every = [each for here in by_architecture.values() for each in here]
        row, first = RowKernel.of(names[0]), every[0]
        elements = row.elements if row else 1
        counted = [
            usage
            for each, here in by_architecture.items()
            if ARCHITECTURES[each].is_counted
            for usage in here
        ]
        return cls(
            len(names),
            first.threads,
            first.claimed,
            max(each.shared for each in every),
            min(each.vector_loads for each in every),
            min(each.vector_stores for each in every),
            min(each.in_flight for each in every),
            Range.of(round(each.instructions / elements, 1) for each in counted),
            {
                name: Range.of(each.registers for each in here)
                for name, here in by_architecture.items()
            },
            {
                name: min(each.blocks(ARCHITECTURES[name]) for each in here)
                for name, here in by_architecture.items()
            },
        )

    @classmethod
    def parse(cls, cells: Sequence[str]) -> Entry:
        """Return the entry of some cells of the page."""
        *numbers, instructions = cells[: -len(ARCHITECTURES)]
        by_architecture = dict(zip(ARCHITECTURES, cells[-len(ARCHITECTURES) :], strict=True))
        pairs = {name: each.rstrip(")").split(" (") for name, each in by_architecture.items()}
        return cls(
            *map(int, numbers),
            Range.parse(instructions),
            {name: Range.parse(registers) for name, (registers, _) in pairs.items()},
            {name: int(blocks) for name, (_, blocks) in pairs.items()},
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of the page, as `parse` takes them."""
        *numbers, registers, blocks = self
        pairs = (f"{registers[each]} ({blocks[each]})" for each in ARCHITECTURES)
        return *map(str, numbers), *pairs

    def includes(self, some: Entry) -> bool:
        """Whether this can be the entry of all kernels where the other is that of some."""
        return (
            self.kernels >= some.kernels
            and (self.threads, self.claimed) == (some.threads, some.claimed)
            and self.shared >= some.shared
            and self.vector_loads <= some.vector_loads
            and self.vector_stores <= some.vector_stores
            and self.in_flight <= some.in_flight
            and self.instructions.includes(some.instructions)
            and all(self.registers[each].includes(here) for each, here in some.registers.items())
            and all(self.blocks[each] <= here for each, here in some.blocks.items())
        )


#: Resources by architectures and by the names of kernels.
Usages = Mapping[str, Mapping[str, Usage]]


def rows(names: Iterable[str]) -> dict[Row, list[str]]:
    """Return the names of the kernels of each row of the page."""
    found = defaultdict(list)
    for name in names:
        found[row_of(name)].append(name)
    return dict(sorted(found.items()))


def entries() -> dict[Row, Entry]:
    """Read the page."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        kernel, dtype, parameters, *cells = (
            each.strip() for each in line.split("|")[1:-1] or "|||"
        )
        if "<" in kernel:
            name, _, shape = kernel.rstrip(">").partition("<")
            row = Row(name, dtype, shape, parameters.removeprefix("x's"))
            found[row] = Entry.parse(cells)
    return found


def digest(sources: Mapping[str, str], options: Iterable[str]) -> str:
    """Return a hash of everything that the page depends on."""
    from cupy_backends.cuda.libs import nvrtc

    everything = (sorted(sources.items()), sorted(options), nvrtc.getVersion())
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:16]


def write(sources: Mapping[str, str], options: Iterable[str], usages: Usages) -> None:
    """Write the page."""
    from cupy_backends.cuda.libs import nvrtc

    version = ".".join(map(str, nvrtc.getVersion()))
    lines = [
        PREFACE.format(count=len(sources), version=version),
        f"{DIGEST}{digest(sources, options)}\n",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---|" + "---:|" * (len(COLUMNS) - 3),
    ]
    for row, names in rows(sources).items():
        name = f"{row.kernel}<{row.shape}>"
        cells = name, row.dtype, row.parameters or "x's", *Entry.of(usages, names).cells
        lines.append(f"| {' | '.join(cells)} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def differences(sources: Mapping[str, str], options: Iterable[str], usages: Usages) -> list[str]:
    """Return where the page is not that of these kernels, of which some were compiled."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if f"{DIGEST}{digest(sources, options)}\n" not in text:
        return ["the page was written from other sources"]
    there, here = entries(), rows(usages[FIRST])
    counts = {row: len(names) for row, names in rows(sources).items()}
    wrong = [] if {row: each.kernels for row, each in there.items()} == counts else ["other rows"]
    for row, names in here.items():
        found = Entry.of(usages, names)
        if row in there and not there[row].includes(found):
            wrong.append(f"{row}: the page tells {there[row]}, not {found}")
    return wrong


def main(is_written: bool) -> int:
    """Compile kernels; return whether any is wrong, or the page is not of these."""
    from kernel_inventory import kernels_in_use

    sources, options = kernels_in_use()
    some = [name for name in sources if is_written or not row_of(name).parameters]
    names = dict.fromkeys(ARCHITECTURES, some)
    if not is_written:
        one_each = [max(names) for names in rows(some).values()]
        names |= {each: one_each for each in ARCHITECTURES if each != FIRST}
    usages = measured(sources, tuple(sorted(options)), names)
    wrong = [
        f"{name} on sm_{architecture}: {fault}"
        for architecture, on in ARCHITECTURES.items()
        for name, usage in usages[architecture].items()
        for fault in usage.faults(name, on)
    ]
    compiled = sum(map(len, usages.values()))
    print(
        "\n".join(wrong) or f"{compiled} compilations of {len(sources)} kernels: nothing is wrong"
    )
    if is_written:
        write(sources, options, usages)
        return bool(wrong)
    not_told = differences(sources, options, usages)
    if not_told:
        print(*not_told, "", "Write it anew: make -C tests/cuda_on_cpu coverage", sep="\n")
    return bool(wrong or not_told)


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv))
