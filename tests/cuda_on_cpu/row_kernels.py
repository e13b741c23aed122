"""What each kernel over rows loads and stores, by its template arguments, and may execute."""

from __future__ import annotations

import re
from typing import NamedTuple

from machine_code import FastPath

#: By the names of CUDA C.
ITEMSIZE = {"__half": 2, "__nv_bfloat16": 2, "float": 4, "double": 8}
WARP, VEC_BYTES = 32, 16
#: The arrays whose dtypes are the first template arguments. Parameters are gamma and beta.
ARRAYS = {
    "rows_forward": ("x", "parameters"),
    "segment_moments": ("x",),
    "segments_forward": ("x", "parameters"),
    "rows_backward": ("x", "dy", "gamma"),
    "segment_sums": ("x", "dy", "gamma"),
    "segments_backward": ("x", "dy", "gamma"),
}
#: Instructions that a thread may execute for a row, or for a tile of it: so many, so many for each
#: element, and for each of float64, whose reciprocals and square roots take many.
INSTRUCTIONS = {
    "rows_forward": (310, 13, 42),
    "segment_moments": (170, 8, 25),
    "segments_forward": (390, 13, 52),
    "rows_backward": (220, 34, 68),
    "segment_sums": (60, 16, 31),
    "segments_backward": (170, 17, 38),
}
#: The same for each chunk where a parameter is that of several elements: its index is a quotient.
INDEX_INSTRUCTIONS = 30


class RowKernel(NamedTuple):
    """A kernel over rows: its template arguments."""

    kernel: str
    dtypes: dict[str, str]
    """The names in CUDA C of the dtypes of its arrays."""
    threads: int
    chunks: int
    is_read_twice: bool
    indexing: str

    @classmethod
    def of(cls, name: str) -> RowKernel | None:
        """Return the kernel of a name, or None if it is not over rows."""
        kernel, _, text = name.rstrip(">").partition("<")
        if kernel not in ARRAYS:
            return None
        arguments = text.split(", ")
        threads, *_, chunks = (int(each) for each in arguments if each.isdigit())
        dtypes = dict(zip(ARRAYS[kernel], arguments, strict=False))
        twice = kernel == "rows_backward" and bool(re.search(r"\d, false", text))
        return cls(kernel, dtypes, threads, chunks, twice, arguments[-1])

    @property
    def elements(self) -> int:
        """How many elements of a row, or of a tile of it, a thread has."""
        return self.chunks * VEC_BYTES // ITEMSIZE[self.dtypes["x"]]

    def vectors(self, *arrays: str) -> int:
        """Return how many vectors of 128 bits the elements of a thread are, in some arrays."""
        sizes = [ITEMSIZE[self.dtypes[each]] for each in arrays if each in self.dtypes]
        return sum(sizes) * self.elements // VEC_BYTES

    @property
    def loads_next_row(self) -> bool:
        """Whether it loads the next row while it processes one."""
        has_others_beside = self.threads <= WARP
        return self.kernel == "rows_backward" and not (has_others_beside or self.is_read_twice)

    @property
    def vectors_in_flight(self) -> int:
        """How many vectors it asks for, at least, before it uses any.

        A row that is read twice is loaded chunk by chunk: 16 bits one at a time, else one ahead.
        Rows of float64 fill the registers, so that the compiler decides how much it loads ahead.
        """
        if self.dtypes["x"] == "double":
            return 1
        if self.is_read_twice:
            return 4 if self.dtypes["x"] == "float" else 2
        return self.chunks * (1 + ("dy" in self.dtypes))

    @property
    def path(self) -> FastPath:
        """What its machine code does for a row, or for a tile of it."""
        loads = self.vectors("x", "dy") * (1 + self.is_read_twice)
        if self.indexing == "PER_ELEMENT":
            visits = 2 if self.kernel == "rows_backward" else 1
            loads += visits * (self.vectors("gamma") + 2 * self.vectors("parameters"))
        return FastPath(
            waits=1 + self.loads_next_row,
            has_sums=self.kernel == "segments_backward",
            loads=loads,
            stores=0 if self.kernel in ("segment_moments", "segment_sums") else self.vectors("x"),
            is_loop=self.kernel not in ("rows_forward", "segments_forward"),
        )

    @property
    def most_instructions(self) -> int:
        """How many instructions a thread may execute for a row."""
        fixed, each, double = INSTRUCTIONS[self.kernel]
        of_elements = (double if self.dtypes["x"] == "double" else each) * self.elements
        of_indices = INDEX_INSTRUCTIONS * self.chunks * (self.indexing != "PER_ELEMENT")
        return fixed + of_elements + of_indices
