"""Every kernel that the CuPy backend can choose, found by asking it for every kind of call.

Kernels are noted where CuPy is asked for them, so nothing here knows their names, nor how the
backend chooses. Lengths lie between powers of two, where shapes can change. With
``CUDA_ON_CPU_EVERY_KERNEL=1`` in the environment, each of them is one that tests run.
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
from ln_array_api_backends.cupy import backend, channels
from ln_array_api_backends.cupy import calls as rows
from resources import row_of

from ln_array_api._check import PARAMETER_DTYPES
from ln_array_api.backend import ChannelsSpec, Primitive, RowsSpec, Spec

DTYPES = ("float16", "bfloat16", "float32", "float64")
ROWS = (1, 12, 100_000)
LENGTHS = [(1 << bit) + 2 for bit in range(23)]
GROUPS = (1, 4)
#: Elements that share a parameter: none, some of a chunk, and several chunks.
REPEATS = (1, 2, 3, 16)
NEEDS = [each for each in product((True, False), repeat=3) if any(each)]
#: Of arrays with channels: runs of each size of words, short and long ones, few and many.
SPATIAL = (1, 2, 3, 4, 8, 65, 66, 68, 72, 4097, 4098, 4100, 4104)
CHANNELS = (1, 3, 6, 12, 24)
BATCHES = (1, 70, 9000)
EVERY_KERNEL = os.environ.get("CUDA_ON_CPU_EVERY_KERNEL", "") == "1"


class Kernels:
    """In the place of ``cupy.RawModule``: notes what is asked for, and compiles nothing."""

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


def calls(dtype: str) -> Iterator[tuple[Primitive, RowsSpec]]:
    """Every kind of call for x of a dtype."""
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
    """The same with channels."""
    wider = PARAMETER_DTYPES[dtype]
    for b, c, s, gamma in product(BATCHES, CHANNELS, SPATIAL, wider):
        spec = ChannelsSpec("cupy", "0", (b, c, s), dtype, gamma, None, 1e-5)
        for beta in wider:
            yield "channels_forward", spec._replace(beta=beta)
            yield "channels_inference", spec._replace(beta=beta)
        for dy, need in product(wider, ((True, True, True), (False, False, True))):
            yield "channels_backward", spec._replace(epsilon=0.0, dy=dy, need=need)


def every_call() -> Iterator[tuple[Primitive, Spec]]:
    """Of all dtypes."""
    for dtype in DTYPES:
        yield from calls(dtype)
        yield from channel_calls(dtype)


def asked_for(some: Iterable[tuple[Primitive, Spec]]) -> Kernels:
    """What calls ask for."""
    kernels, module, launcher = Kernels(), cupy.RawModule, rows.launcher
    forget()
    cupy.RawModule = kernels
    rows.launcher = channels.launcher = lambda *arguments: None  # which takes half of the time
    try:
        for primitive, spec in some:
            if backend.can_run(primitive, spec):
                kernels.call = primitive, spec
                backend.prepare(primitive, spec)
    finally:
        cupy.RawModule = module
        rows.launcher = channels.launcher = launcher
        forget()  # what is none
    return kernels


def forget() -> None:
    """Kernels that the backend was given."""
    rows.kernel.cache_clear()
    channels.kernel.cache_clear()


@cache
def asked_for_by_every_call() -> Kernels:
    return asked_for(every_call())


def chosen() -> tuple[dict[str, str], set[str]]:
    """The source of each kernel by its name, and the options that all are compiled with."""
    kernels = asked_for_by_every_call()
    return kernels.sources, kernels.options


def first_calls() -> dict[str, tuple[Primitive, Spec]]:
    """For each kernel, a call that chooses it: with the fewest rows, and of those the shortest."""
    return asked_for_by_every_call().calls


def selected_calls() -> dict[str, tuple[Primitive, Spec]]:
    """The same for those that tests run: with all flags where all arrays have one dtype.

    Where gamma, beta or dy is wider, it is one of each shape, if not every kernel is asked for.
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
    print("\n".join(sorted(chosen()[0])))
