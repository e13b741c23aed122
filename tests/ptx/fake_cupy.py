"""The part of CuPy that the backend's host code needs. Kernels are compiled to PTX and run.

The backend decides which kernel is launched on what, in which grid.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cupy
import numpy as np
from counters import Counters
from cupy.cuda.function import CPointer
from cupy_backends.cuda.libs import nvrtc
from interpreter import launch
from memory import DeviceArray, Memory
from parse import Kernel, parse

# Importing the package checks for a GPU. So it is created for its modules, but not run.
PACKAGE = "ln_array_api_backends.cupy"
_spec = importlib.util.find_spec(PACKAGE)
assert _spec is not None
sys.modules[PACKAGE] = importlib.util.module_from_spec(_spec)
from ln_array_api_backends.cupy import channels_dispatch, launch_config, rows_dispatch  # noqa: E402
from ln_array_api_backends.cupy.backend import CuPyBackend  # noqa: E402

__all__ = [
    "CuPyBackend",
    "Device",
    "Launch",
    "channels_dispatch",
    "launch_config",
    "patched_device",
    "rows_dispatch",
]

#: The oldest with instructions for bfloat16, which are not emulated.
ARCHITECTURE = "compute_90"
CACHE = Path(__file__).resolve().parents[2] / ".cuda_on_cpu" / "ptx"


def compile_to_ptx(source: str, options: Sequence[str], expression: str) -> tuple[str, str]:
    """Return the PTX of a kernel, which is cached, and the kernel's name in it."""
    include = Path(cupy.__file__).parents[1] / "nvidia" / "cu13" / "include"
    options = (*options, f"-arch={ARCHITECTURE}", f"-I{include}")
    key = repr((nvrtc.getVersion(), source, options, expression))
    file = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.ptx"
    if not file.exists():
        program = nvrtc.createProgram(source, "kernels.cu", (), ())
        nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(nvrtc.getProgramLog(program)) from error
        name = nvrtc.getLoweredName(program, expression)
        ptx = nvrtc.getPTX(program)
        text = ptx.decode() if isinstance(ptx, bytes) else ptx
        CACHE.mkdir(parents=True, exist_ok=True)
        made = file.with_suffix(f".{id(program)}")
        made.write_text(f"// {name}\n{text}")
        made.replace(file)
    text = file.read_text()
    return text, text.partition("\n")[0].removeprefix("// ")


class Launch(NamedTuple):
    """A kernel that has been run."""

    expression: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    counters: Counters

    @property
    def name(self) -> str:
        return self.expression.partition("<")[0]


class Pointer(NamedTuple):
    """An address in memory."""

    ptr: int

    def __add__(self, offset: int) -> Pointer:  # type: ignore[override]
        return Pointer(self.ptr + offset)


class Device:
    """Replaces the module ``cupy`` in the backend's modules; the rest is NumPy.

    `sample` maps the number of blocks of a grid to the numbers of those that are run.
    """

    def __init__(self, sample: Callable[[int], Sequence[int]] | None = None) -> None:
        self.memory = Memory()
        self.launches: list[Launch] = []
        self.sample = sample
        self.cuda = SimpleNamespace(alloc=self._alloc)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def ndarray(
        self, shape: tuple[int, ...], dtype: Any, memptr: Pointer | None = None
    ) -> DeviceArray:
        if memptr is None:
            return self.memory.empty(shape, dtype)
        return self.memory.view(memptr.ptr, shape, dtype)

    def _alloc(self, size: int) -> Pointer:
        return Pointer(self.memory.empty((size,), "u1").data.ptr)

    def RawModule(  # noqa: N802 - CuPy's name
        self, *, code: str, options: Sequence[str], name_expressions: Sequence[str]
    ) -> Any:
        return SimpleNamespace(get_function=lambda name: _Function(self, code, options, name))


class _Function:
    def __init__(self, device: Device, code: str, options: Sequence[str], name: str) -> None:
        self.device, self.expression = device, name
        text, lowered = compile_to_ptx(code, options, name)
        self.entry: Kernel = parse(text)[lowered]

    @property
    def kernel(self) -> _Function:
        """Return what CuPy's wrapper launches; it checks the current device."""
        return self

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]
    ) -> None:
        sample = self.device.sample
        blocks = None if sample is None else sample(int(np.prod(grid)))
        given = [_packed(each) for each in arguments]
        counters = launch(self.entry, grid, block, given, self.device.memory, blocks)
        self.device.launches.append(Launch(self.expression, grid, block, counters))


def _packed(argument: Any) -> bytes:
    """Return the bytes of an argument, as CuPy passes it."""
    if argument is None:
        return bytes(8)
    if isinstance(argument, CPointer):
        return bytes(argument.value.tobytes())
    place = argument.data if isinstance(argument, DeviceArray) else argument
    return np.uint64(place.ptr).tobytes()


@contextmanager
def patched_device(device: Device) -> Iterator[Device]:
    """Replace CuPy by this device in the backend's modules."""
    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith(f"{PACKAGE}.") and getattr(module, "cupy", None) is not None
    ]
    before = [module.cupy for module in modules]
    clear_caches()
    for module in modules:
        module.cupy = device  # type: ignore[attr-defined]
    try:
        yield device
    finally:
        for module, each in zip(modules, before, strict=True):
            module.cupy = each  # type: ignore[attr-defined]
        clear_caches()


def clear_caches() -> None:
    """Clear the caches of kernels, which were compiled for another device."""
    rows_dispatch.kernel.cache_clear()
    channels_dispatch.kernel.cache_clear()
