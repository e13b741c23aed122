"""Counts of a kernel's memory accesses and instructions, warp by warp."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

WARP = 32
#: Bytes that memory moves at a time.
SECTOR = 32
BANKS, BANK_BYTES = 32, 4
_NO_SECTOR = np.int64(-1)


@dataclass
class Traffic:
    """Reads or writes of one array. A request is one access of all threads of a warp."""

    #: Bytes that threads have requested; a request counts each byte once.
    bytes: int = 0
    #: The number of different bytes.
    distinct: int = 0
    requests: int = 0
    sectors: int = 0
    #: The sectors that these requests would need if their bytes were contiguous.
    least_sectors: int = 0
    _touched: Array | None = None

    def add(self, begin: int, size: int, addresses: Array, warps: Array, width: int) -> None:
        """Count an access of all active threads, to an array of `size` bytes from `begin` on."""
        offsets = (addresses - np.uint64(begin)).astype("i8")
        rows = _by_warp(offsets, warps)
        asked = width * _distinct(rows)
        self.bytes += int(asked.sum())
        self.requests += len(rows)
        # An access is aligned, and no wider than a sector, so it touches one.
        sectors = np.where(rows < 0, _NO_SECTOR, (rows + begin % SECTOR) // SECTOR)
        self.sectors += int(_distinct(sectors).sum())
        self.least_sectors += int((-(-asked // SECTOR)).sum())
        self._touch(offsets, size, width)

    def _touch(self, offsets: Array, size: int, width: int) -> None:
        if self._touched is None:
            self._touched = np.zeros(-(-size // 2), bool)
        pairs = np.unique(offsets)[:, None] // 2 + np.arange(width // 2)
        self.distinct += 2 * int(np.count_nonzero(~self._touched[pairs]))
        self._touched[pairs] = True


def _by_warp(values: Array, warps: Array) -> Array:
    """Return a sorted row for each warp of its active threads' values; others have -1."""
    numbers, rows = np.unique(warps, return_inverse=True)
    first = np.searchsorted(warps, numbers)
    table = np.full((len(numbers), WARP), -1, np.int64)
    table[rows, np.arange(len(values)) - first[rows]] = values
    return np.sort(table, axis=1)


def _distinct(rows: Array) -> Array:
    """Return the number of values in each sorted row, without -1."""
    return np.sum((np.diff(rows, axis=1, prepend=-1) != 0) & (rows >= 0), axis=1)


@dataclass
class Shared:
    """Reads or writes of shared memory. A request is replayed for conflicting banks."""

    requests: int = 0
    #: Replays beyond those that so many bytes need.
    conflicts: int = 0
    #: The most words of one bank that a request accesses.
    ways: int = 1

    def add(self, addresses: Array, warps: Array, width: int) -> None:
        # Wider accesses are made for half a warp, or a quarter, at a time.
        words = width // BANK_BYTES or 1
        lanes = np.arange(len(addresses)) - np.searchsorted(warps, warps)
        turns = np.repeat(warps * words + lanes * words // WARP, words)
        word = (addresses[:, None] // BANK_BYTES + np.arange(words)).ravel()
        pairs = np.unique(np.stack([turns, word.astype("i8")]), axis=1)
        banks, counts = np.unique(pairs[0] * BANKS + pairs[1] % BANKS, return_counts=True)
        firsts = np.flatnonzero(np.diff(banks // BANKS, prepend=-1))
        worst = np.maximum.reduceat(counts, firsts)
        self.requests += len(np.unique(warps))
        self.conflicts += int(np.sum(worst - 1))
        self.ways = max(self.ways, int(worst.max()))


@dataclass
class Counters:
    """Counts of one launch, or of a sample of its blocks."""

    blocks: int = 0
    #: Instructions executed by warps, and by their threads.
    warp_instructions: int = 0
    thread_instructions: int = 0
    #: Barriers of all blocks.
    barriers: int = 0
    reads: dict[str, Traffic] = field(default_factory=dict)
    writes: dict[str, Traffic] = field(default_factory=dict)
    shared_reads: Shared = field(default_factory=Shared)
    shared_writes: Shared = field(default_factory=Shared)

    def executed(self, active: Array, instructions: int) -> None:
        self.thread_instructions += instructions * int(np.count_nonzero(active))
        warps = active.reshape(-1, WARP).any(axis=1)
        self.warp_instructions += instructions * int(np.count_nonzero(warps))
