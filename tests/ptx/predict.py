"""Predict the speed of the CUDA kernels from counts of their accesses and a few assumptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
from cases import DTYPES
from fake_cupy import CuPyBackend, Device, Launch, launch_config, patched_device
from kernel_page import Entry, entries
from resources import Row, row_of
from row_kernels import WARP, RowKernel


class GPU(NamedTuple):
    """Figures of a data sheet, per second and in bytes; and for which architecture it is."""

    name: str
    bandwidth: float
    processors: int
    clock: float
    cache: int
    architecture: str


#: The clocks of H200 and B200 are taken to be that of H100.
GPUS = (
    GPU("H100 SXM", 3.35e12, 132, 1.755e9, 50 << 20, "90"),
    GPU("H200 SXM", 4.8e12, 132, 1.755e9, 50 << 20, "90"),
    GPU("B200", 7.7e12, 148, 1.755e9, 62 << 20, "100"),
    GPU("A100 80GB", 2.04e12, 108, 1.41e9, 40 << 20, "80"),
    GPU("L4", 0.3e12, 58, 2.04e9, 48 << 20, "80"),
)
#: Time of a launch, including the latency of the first block's loads and sums.
LAUNCH_SECONDS = 2.5e-6
#: The fraction of a data sheet's bandwidth that a copy reaches.
BANDWIDTH_FRACTION = 0.92
#: Bytes that a multiprocessor loads from L2, and warps that issue an instruction.
BYTES_PER_CLOCK, WARPS_PER_CLOCK = 64, 4
#: Time from a load to its data, from memory that is busy. A launch includes the first such wait.
LATENCY_SECONDS = 0.7e-6
#: Bytes that a thread asks for at once where it loads no vectors.
SCALAR_BYTES = 32
COUNTED_BLOCKS = 6

SHAPES = (
    ("bfloat16", 32768, 32768),
    ("bfloat16", 32768, 8192),
    ("bfloat16", 32768, 1024),
    ("bfloat16", 16384, 4096),
    ("bfloat16", 8192, 8192),
    ("bfloat16", 4096, 768),
    ("float32", 1, 768),
    ("float32", 4096, 768),
    ("float32", 32768, 1024),
    ("float32", 65536, 64),
    ("float32", 2048, 4096),
    ("float32", 512, 16384),
    ("float32", 16, 262144),
    ("float32", 64, 256, 3136),
    ("bfloat16", 64, 256, 3136),
)
#: Shapes in the figure: by number of rows, and by length of rows with 2**26 elements in all.
ROWS = [(4**power, 768) for power in range(9)]
LENGTHS = [((1 << 26) // n, n) for n in (1 << power for power in range(6, 18))]


def sample(blocks: int) -> Sequence[int]:
    """Return the numbers of some blocks, from the first to the last."""
    return np.unique(np.linspace(0, blocks - 1, COUNTED_BLOCKS).astype(int)).tolist()


@cache
def page() -> dict[Row, Entry]:
    """Return what docs/cuda-kernels.md tells."""
    return entries()


#: Bytes of an array, distinct ones of these that are accessed, and requested ones.
Traffic = tuple[float, float, float]


class Count(NamedTuple):
    """Accesses of all blocks of a launch."""

    kernel: str
    rows: int
    blocks: int
    threads: int
    warp_instructions: float
    reads: tuple[Traffic, ...]
    writes: tuple[Traffic, ...]
    resources: Entry

    def seconds(self, gpu: GPU) -> tuple[float, str]:
        """Return the time of the launch, and what limits it."""
        processors = min(gpu.processors, self.blocks)
        memory = min(BANDWIDTH_FRACTION * gpu.bandwidth, processors * BYTES_PER_CLOCK * gpu.clock)
        times = {
            "memory": self.moved(gpu, self.reads + self.writes) / memory,
            "instructions": self.warp_instructions / (processors * WARPS_PER_CLOCK * gpu.clock),
            "waits": (self.moved(gpu, self.reads) / self.asked_for(gpu) - 1) * LATENCY_SECONDS,
        }
        limit = max(times, key=times.__getitem__)
        seconds = times[limit]
        return LAUNCH_SECONDS + seconds, "launch" if seconds <= LAUNCH_SECONDS else limit

    def resident(self, gpu: GPU) -> int:
        """Return how many blocks run at a time."""
        return min(self.blocks, gpu.processors * self.resources.blocks[gpu.architecture])

    def asked_for(self, gpu: GPU) -> float:
        """Return the bytes that all running blocks have asked for while they wait for some."""
        a_thread = 16 * self.resources.in_flight or SCALAR_BYTES
        a_block = sum(requested for _, _, requested in self.reads) / self.blocks
        return self.resident(gpu) * min(a_thread * self.threads, max(a_block, 1))

    def moved(self, gpu: GPU, traffic: tuple[Traffic, ...]) -> float:
        """Return the bytes that are read from or written to memory, not caches."""
        # A block processes its rows one after the other.
        steps = max(self.rows, self.blocks)
        in_use = sum(distinct / steps for _, distinct, _ in self.reads + self.writes)
        fits = in_use * self.resident(gpu) <= gpu.cache
        return sum(
            min(size, distinct) if fits or size <= gpu.cache / 4 else requested
            for size, distinct, requested in traffic
        )


def warp_instructions(launch: Launch, shape: Sequence[int], entry: Entry) -> float:
    """Return the instructions of all warps: those of PTX, or of the machine code if fewer."""
    counters = launch.counters
    of_ptx = float(np.prod(launch.grid)) / counters.blocks * counters.warp_instructions
    row = RowKernel.of(launch.expression)
    if row is None:
        return of_ptx
    m, n = shape
    tiles = -(-n // (row.threads * row.elements))
    of_row = row.threads / WARP * entry.instructions.most * row.elements
    return min(of_ptx, m * tiles * of_row)


def counted(launch: Launch, shape: Sequence[int], sizes: dict[str, int]) -> Count:
    """Scale the counts of a sample of blocks to all blocks."""
    blocks, counters = int(np.prod(launch.grid)), launch.counters
    entry = page()[row_of(launch.expression)]
    scale = blocks / counters.blocks
    reads, writes = (
        tuple(
            (float(sizes[name]), scale * each.distinct, scale * each.bytes)
            for name, each in traffics.items()
        )
        for traffics in (counters.reads, counters.writes)
    )
    instructions = warp_instructions(launch, shape, entry)
    return Count(launch.name, shape[0], blocks, launch.block[0], instructions, reads, writes, entry)


def count(dtype: str, *shape: int) -> dict[str, list[Count]]:
    """Count both passes on arrays of full size; a sample of the blocks runs.

    They are those of layer norm if x has two axes, and else those of batch norm, of (B, C, S).
    """
    kind, backend, need = DTYPES[dtype], CuPyBackend(), (True, True, True)
    with patched_device(Device(sample)) as device:
        zeros = device.memory.zeros
        x, dy = (zeros(shape, kind, name) for name in ("x", "dy"))
        gamma, beta = (zeros(shape[1:2], kind, name) for name in ("gamma", "beta"))
        if len(shape) == 2:
            options = {"center": True, "groups": 1, "repeat": 1}
            _, mean, rstd = backend.rows_forward(x, gamma, beta, epsilon=1e-5, **options)
            forward = len(device.launches)
            backend.rows_backward(dy, x, mean, rstd, gamma, need=need, **options)
        else:
            _, mean, _, rstd = backend.channels_forward(x, gamma, beta, epsilon=1e-5)
            forward = len(device.launches)
            backend.channels_backward(dy, x, mean, rstd, gamma, need=need)
    sizes = {each.name: each.bytes.size for each in device.memory.allocations}
    counts = [counted(each, shape, sizes) for each in device.launches]
    return {"forward": counts[:forward], "backward": counts[forward:]}


def predictions(kinds: Iterable[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Yield the figures of each pass for x of a dtype and a shape."""
    for dtype, *shape in kinds:
        for direction, launches in count(dtype, *shape).items():
            arrays = 2 if direction == "forward" else 3
            least = arrays * prod(shape) * launch_config.ITEMSIZE[dtype]
            instructions = WARP * sum(each.warp_instructions for each in launches)
            row: dict[str, Any] = {
                "pass": direction,
                "dtype": dtype,
                "shape": "x".join(map(str, shape)),
                "m": shape[0],
                "n": shape[1],
                "kernels": [each.kernel for each in launches],
                "bytes": least,
                "instructions per element": instructions / prod(shape),
            }
            for gpu in GPUS:
                times = [each.seconds(gpu) for each in launches]
                seconds = sum(each for each, _ in times)
                row[gpu.name] = {
                    "moved": sum(each.moved(gpu, each.reads + each.writes) for each in launches),
                    "roofline": 1e6 * least / gpu.bandwidth,
                    "predicted": 1e6 * seconds,
                    "fraction": least / gpu.bandwidth / seconds,
                    "limit": max(times)[1],
                }
            yield row
