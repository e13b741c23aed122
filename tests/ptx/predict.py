"""Predicts the speed of the CUDA kernels, from what they ask for and a few assumptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from cases import DTYPES
from device import Device, Launch, calls, shapes, used


class GPU(NamedTuple):
    """From a data sheet, per second and in bytes."""

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
#: Seconds for a launch, and until the first block's chain of loads and sums is through.
LAUNCH = 2.5e-6
#: What a copy gets of the bandwidth in data sheets.
ACHIEVED = 0.92
#: Bytes that a multiprocessor takes from the cache, and warps that issue an instruction, per clock.
BYTES_A_CLOCK, WARPS_A_CLOCK = 64, 4
#: Threads that a multiprocessor has at least, by the launch bounds of the kernels.
RESIDENT = 512
BLOCKS = 6

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
#: Of the picture: numbers of rows, and lengths of rows of 2**26 elements in all.
ROWS = [(4**power, 768) for power in range(9)]
LENGTHS = [((1 << 26) // n, n) for n in (1 << power for power in range(6, 18))]


def sample(blocks: int) -> Sequence[int]:
    """Some of the numbers of blocks, from the first to the last."""
    return np.unique(np.linspace(0, blocks - 1, BLOCKS).astype(int)).tolist()


class Count(NamedTuple):
    """What one launch asks for, all blocks together. Traffic is (size, distinct, asked) bytes."""

    kernel: str
    rows: int
    blocks: int
    threads: int
    warp_instructions: float
    thread_instructions: float
    traffic: tuple[tuple[float, float, float], ...]

    def seconds(self, gpu: GPU) -> tuple[float, str]:
        """How long it takes, and what limits it."""
        processors = min(gpu.processors, self.blocks)
        memory = min(ACHIEVED * gpu.bandwidth, processors * BYTES_A_CLOCK * gpu.clock)
        moving = self.moved(gpu) / memory
        issuing = self.warp_instructions / (processors * WARPS_A_CLOCK * gpu.clock)
        limit = "memory" if moving >= issuing else "instructions"
        return LAUNCH + max(moving, issuing), limit if max(moving, issuing) > LAUNCH else "launch"

    def moved(self, gpu: GPU) -> float:
        """Bytes that come from memory, or go to it, rather than from caches."""
        resident = min(self.blocks, gpu.processors * max(1, RESIDENT // self.threads))
        # A block has its rows one after the other.
        steps = max(self.rows, self.blocks)
        at_once = sum(distinct / steps for _, distinct, _ in self.traffic) * resident
        return sum(
            min(size, distinct) if at_once <= gpu.cache or size <= gpu.cache / 4 else asked
            for size, distinct, asked in self.traffic
        )


def counted(launch: Launch, rows: int, sizes: dict[str, int]) -> Count:
    """A sample of blocks, as if all had run."""
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
    """Both passes of layer norm, on arrays of their true size, of which little is touched."""
    kind, shape = DTYPES[dtype], (m, n)
    with used(Device(sample)) as device:
        zeros = device.memory.zeros
        x, dy = (zeros(shape, kind, name) for name in ("x", "dy"))
        gamma, beta = (zeros((n,), kind, name) for name in ("gamma", "beta"))
        options = {"center": True, "groups": 1, "repeat": 1}
        backend = calls.CuPyBackend()
        _, mean, rstd = backend.rows_forward(x, gamma, beta, epsilon=1e-5, **options)
        forward = len(device.launches)
        backend.rows_backward(dy, x, mean, rstd, gamma, need=(True, True, True), **options)
    sizes = {each.name: each.bytes.size for each in device.memory.allocations}
    counts = [counted(each, m, sizes) for each in device.launches]
    return {"forward": counts[:forward], "backward": counts[forward:]}


def predictions(kinds: Sequence[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """The figures of each shape and pass."""
    for dtype, m, n in kinds:
        for direction, launches in count(dtype, m, n).items():
            arrays = 2 if direction == "forward" else 3
            least = arrays * m * n * shapes.ITEMSIZE[dtype]
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
