"""Predict the speed of the CUDA kernels from counts of their accesses and a few assumptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from cases import DTYPES
from fake_cupy import CuPyBackend, Device, Launch, launch_config, patched_device


class GPU(NamedTuple):
    """Figures of a data sheet, per second and in bytes."""

    name: str
    bandwidth: float
    processors: int
    clock: float
    cache: int


GPUS = (
    GPU("H100 SXM", 3.35e12, 132, 1.755e9, 50 << 20),
    GPU("A100 80GB", 2.04e12, 108, 1.41e9, 40 << 20),
    GPU("L4", 0.3e12, 58, 2.04e9, 48 << 20),
)
#: Time of a launch, including the latency of the first block's loads and sums.
LAUNCH_SECONDS = 2.5e-6
#: The fraction of a data sheet's bandwidth that a copy reaches.
BANDWIDTH_FRACTION = 0.92
#: Bytes that a multiprocessor loads from L2, and warps that issue an instruction.
BYTES_PER_CLOCK, WARPS_PER_CLOCK = 64, 4
#: Threads per multiprocessor that the kernels' launch bounds ensure.
RESIDENT_THREADS = 512
COUNTED_BLOCKS = 6

SHAPES = (
    ("bfloat16", 32768, 32768),
    ("bfloat16", 32768, 8192),
    ("bfloat16", 32768, 1024),
    ("bfloat16", 4096, 768),
    ("float32", 1, 768),
    ("float32", 4096, 768),
    ("float32", 32768, 1024),
    ("float32", 65536, 64),
    ("float32", 2048, 4096),
    ("float32", 512, 16384),
    ("float32", 16, 262144),
)
#: Shapes in the figure: by number of rows, and by length of rows with 2**26 elements in all.
ROWS = [(4**power, 768) for power in range(9)]
LENGTHS = [((1 << 26) // n, n) for n in (1 << power for power in range(6, 18))]


def sample(blocks: int) -> Sequence[int]:
    """Return the numbers of some blocks, from the first to the last."""
    return np.unique(np.linspace(0, blocks - 1, COUNTED_BLOCKS).astype(int)).tolist()


class Count(NamedTuple):
    """Accesses of all blocks of a launch. Traffic: bytes of an array, distinct, and requested."""

    kernel: str
    rows: int
    blocks: int
    threads: int
    warp_instructions: float
    thread_instructions: float
    traffic: tuple[tuple[float, float, float], ...]

    def seconds(self, gpu: GPU) -> tuple[float, str]:
        """Return the time of the launch, and what limits it."""
        processors = min(gpu.processors, self.blocks)
        memory = min(BANDWIDTH_FRACTION * gpu.bandwidth, processors * BYTES_PER_CLOCK * gpu.clock)
        moving = self.moved(gpu) / memory
        issuing = self.warp_instructions / (processors * WARPS_PER_CLOCK * gpu.clock)
        limit = "memory" if moving >= issuing else "instructions"
        seconds = max(moving, issuing)
        if seconds <= LAUNCH_SECONDS:
            limit = "launch"
        return LAUNCH_SECONDS + seconds, limit

    def moved(self, gpu: GPU) -> float:
        """Return the bytes that are read from or written to memory, not caches."""
        resident = min(self.blocks, gpu.processors * max(1, RESIDENT_THREADS // self.threads))
        # A block processes its rows one after the other.
        steps = max(self.rows, self.blocks)
        in_flight = sum(distinct / steps for _, distinct, _ in self.traffic) * resident
        return sum(
            min(size, distinct) if in_flight <= gpu.cache or size <= gpu.cache / 4 else requested
            for size, distinct, requested in self.traffic
        )


def counted(launch: Launch, rows: int, sizes: dict[str, int]) -> Count:
    """Scale the counts of a sample of blocks to all blocks."""
    blocks, counters = int(np.prod(launch.grid)), launch.counters
    scale = blocks / counters.blocks
    traffic = (
        (float(sizes[name]), scale * each.distinct, scale * each.bytes)
        for traffics in (counters.reads, counters.writes)
        for name, each in traffics.items()
    )
    return Count(
        launch.name,
        rows,
        blocks,
        launch.block[0],
        scale * counters.warp_instructions,
        scale * counters.thread_instructions,
        tuple(traffic),
    )


def count(dtype: str, m: int, n: int) -> dict[str, list[Count]]:
    """Count both passes of layer norm, on arrays of full size, of which a sample is accessed."""
    kind, shape = DTYPES[dtype], (m, n)
    with patched_device(Device(sample)) as device:
        zeros = device.memory.zeros
        x, dy = (zeros(shape, kind, name) for name in ("x", "dy"))
        gamma, beta = (zeros((n,), kind, name) for name in ("gamma", "beta"))
        options = {"center": True, "groups": 1, "repeat": 1}
        backend = CuPyBackend()
        _, mean, rstd = backend.rows_forward(x, gamma, beta, epsilon=1e-5, **options)
        forward = len(device.launches)
        backend.rows_backward(dy, x, mean, rstd, gamma, need=(True, True, True), **options)
    sizes = {each.name: each.bytes.size for each in device.memory.allocations}
    counts = [counted(each, m, sizes) for each in device.launches]
    return {"forward": counts[:forward], "backward": counts[forward:]}


def predictions(kinds: Sequence[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """Yield the figures of each shape and pass."""
    for dtype, m, n in kinds:
        for direction, launches in count(dtype, m, n).items():
            arrays = 2 if direction == "forward" else 3
            least = arrays * m * n * launch_config.ITEMSIZE[dtype]
            row: dict[str, Any] = {
                "pass": direction,
                "dtype": dtype,
                "m": m,
                "n": n,
                "kernels": [each.kernel for each in launches],
                "bytes": least,
                "instructions per element": sum(e.thread_instructions for e in launches) / (m * n),
            }
            for gpu in GPUS:
                times = [each.seconds(gpu) for each in launches]
                seconds = sum(each for each, _ in times)
                row[gpu.name] = {
                    "moved": sum(each.moved(gpu) for each in launches),
                    "roofline": 1e6 * least / gpu.bandwidth,
                    "predicted": 1e6 * seconds,
                    "fraction": least / gpu.bandwidth / seconds,
                    "limit": max(times)[1],
                }
            yield row
