"""Every kernel that the CuPy backend can choose, found by preparing every kind of call.

Kernels are recorded where the backend requests them from CuPy, so this module knows neither their
names nor how the backend chooses. Lengths are between powers of two, where block shapes can change.
With ``CUDA_ON_CPU_EVERY_KERNEL=1`` in the environment, the tests run every kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from typing import Any

import cupy_on_cpu  # noqa: F401 - before CuPy

# isort: split
import cupy
from ln_array_api_backends.cupy import backend, channels_dispatch, rows_dispatch
from resources import row_of

from ln_array_api._arrays import PARAMETER_DTYPES
from ln_array_api.backend import ChannelsSpec, Primitive, RowsSpec, Spec

DTYPES = ("float16", "bfloat16", "float32", "float64")
ROWS = (1, 12, 100_000)
LENGTHS = [(1 << bit) + 2 for bit in range(23)]
GROUPS = (1, 4)
#: Elements that share a parameter: one, part of a chunk, and several chunks.
REPEATS = (1, 2, 3, 16)
NEEDS = [each for each in product((True, False), repeat=3) if any(each)]
#: Of arrays with channels: extents for each vector width, short and long, few and many.
SPATIAL = (1, 2, 3, 4, 8, 65, 66, 68, 72, 4097, 4098, 4100, 4104)
CHANNELS = (1, 3, 6, 12, 24)
BATCHES = (1, 70, 9000)
EVERY_KERNEL = os.environ.get("CUDA_ON_CPU_EVERY_KERNEL", "") == "1"


class RecordingModule:
    """A replacement for ``cupy.RawModule``, which records requests and compiles nothing."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.options: set[str] = set()
        self.calls: dict[str, tuple[Primitive, Spec]] = {}
        self.call: Any = None

    def __call__(
        self, *, code: str, options: tuple[str, ...] = (), name_expressions: tuple[str, ...]
    ) -> Any:
        self.sources.update(dict.fromkeys(name_expressions, code))
        self.options.update(options)
        for name in name_expressions:
            self.calls.setdefault(name, self.call)
        return self

    def get_function(self, name: str) -> Any:
        return None


def row_calls(dtype: str) -> Iterator[tuple[Primitive, RowsSpec]]:
    """Yield every kind of call on rows for x of a dtype."""
    wider = PARAMETER_DTYPES[dtype]
    kinds = product(ROWS, LENGTHS, (True, False), GROUPS, REPEATS, wider)
    for m, at_least, center, groups, repeat, gamma in kinds:
        n = -(-at_least // repeat) * repeat
        spec = RowsSpec("cupy", "0", (m * groups, n), dtype, gamma, gamma, center, 1e-5)
        spec = spec._replace(groups=groups, repeat=repeat)
        for beta in wider if center else (None,):
            yield "rows_forward", spec._replace(beta=beta)
        for dy, need in product(wider, NEEDS):
            yield "rows_backward", spec._replace(beta=None, epsilon=0.0, dy=dy, need=need)


def channel_calls(dtype: str) -> Iterator[tuple[Primitive, ChannelsSpec]]:
    """Yield every kind of call on channels for x of a dtype."""
    wider = PARAMETER_DTYPES[dtype]
    for b, c, s, gamma in product(BATCHES, CHANNELS, SPATIAL, wider):
        spec = ChannelsSpec("cupy", "0", (b, c, s), dtype, gamma, None, 1e-5)
        for beta in wider:
            yield "channels_forward", spec._replace(beta=beta)
            yield "channels_inference", spec._replace(beta=beta)
        for dy, need in product(wider, ((True, True, True), (False, False, True))):
            yield "channels_backward", spec._replace(epsilon=0.0, dy=dy, need=need)


def every_call() -> Iterator[tuple[Primitive, Spec]]:
    """Yield every kind of call."""
    for dtype in DTYPES:
        yield from row_calls(dtype)
        yield from channel_calls(dtype)


def kernels_requested_by(some: Iterable[tuple[Primitive, Spec]]) -> RecordingModule:
    """Prepare some calls, and record the kernels that they request."""
    recorded, module, bind_launch = RecordingModule(), cupy.RawModule, rows_dispatch.bind_launch
    clear_caches()
    cupy.RawModule = recorded
    # Binding launches would take half of the time.
    rows_dispatch.bind_launch = channels_dispatch.bind_launch = lambda *arguments: None
    try:
        for primitive, spec in some:
            if backend.can_run(primitive, spec):
                recorded.call = primitive, spec
                backend.prepare(primitive, spec)
    finally:
        cupy.RawModule = module
        rows_dispatch.bind_launch = channels_dispatch.bind_launch = bind_launch
        clear_caches()  # of the replacements
    return recorded


def clear_caches() -> None:
    """Clear the backend's caches of kernels."""
    rows_dispatch.kernel.cache_clear()
    channels_dispatch.kernel.cache_clear()


@cache
def kernels_requested_by_every_call() -> RecordingModule:
    return kernels_requested_by(every_call())


def kernels_in_use() -> tuple[dict[str, str], set[str]]:
    """Return the source of each kernel by its name, and the options that all are compiled with."""
    recorded = kernels_requested_by_every_call()
    return recorded.sources, recorded.options


def first_calls() -> dict[str, tuple[Primitive, Spec]]:
    """Return a call for each kernel: with the fewest rows, and of those the shortest."""
    return kernels_requested_by_every_call().calls


def selected_calls() -> dict[str, tuple[Primitive, Spec]]:
    """Return calls for the kernels that tests run: with all flags where all arrays have one dtype.

    Where gamma, beta or dy is wider, there is one for each shape, unless every kernel is requested.
    """
    if EVERY_KERNEL:
        return first_calls()
    found, shapes = {}, set()
    for name, call in first_calls().items():
        row = row_of(name)
        if not row.parameters or row not in shapes:
            found[name] = call
            shapes.add(row)
    return found


if __name__ == "__main__":
    print("\n".join(sorted(kernels_in_use()[0])))
