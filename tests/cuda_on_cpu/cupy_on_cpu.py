"""CuPy with its arrays in host memory and its kernels on the CPU: import this before CuPy.

As a pytest plugin (``-p cupy_on_cpu``) it comes early enough. Environment variables, for a whole
process: ``CUDA_ON_CPU_DEVICES`` (the number of devices, by default 2), ``CUDA_ON_CPU_ORDER``
(forward, reverse, greedy, greedy-reverse), ``CUDA_ON_CPU_SANITIZE`` (``address,undefined`` or
``thread``: needs the sanitizer's library in ``LD_PRELOAD``).
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / ".cuda_on_cpu"
KERNELS = BUILD / "kernels"
CXX = shutil.which("clang++") or "g++"
SANITIZE = os.environ.get("CUDA_ON_CPU_SANITIZE", "")
#: g++ cannot place the static variables of a template in a section, where they would be filled;
#: AddressSanitizer puts guards between them.
FILLS_SHARED_MEMORY = "clang" in CXX and "address" not in SANITIZE
ORDERS = ("forward", "reverse", "greedy", "greedy-reverse")

os.environ["CUPY_ACCELERATORS"] = ""  # CUB's own kernels are not simulated
os.environ["CUPY_CACHE_IN_MEMORY"] = "1"  # not among the cubins of a GPU

# The runtime and every kernel are linked to it, and find it loaded.
driver = ctypes.CDLL(str(BUILD / "libcuda.so.1"))
COUNTS = ("launches", "synchronisations", "allocations", "copies_to_host", "copies_between_devices")
for _name in (*COUNTS, "allocations_on"):
    getattr(driver, f"fake_cuda_{_name}").restype = ctypes.c_long
driver.fake_cuda_memory_device.argtypes = [ctypes.c_void_p]


def set_order(order: str) -> None:
    """Set the order in which threads and blocks run, from the next launch on."""
    driver.simulator_set_order(ORDERS.index(order))


def counts() -> dict[str, int]:
    """Return how many operations CuPy has made so far of which a fast call makes few."""
    return {name: getattr(driver, f"fake_cuda_{name}")() for name in COUNTS}


def allocations_on(device: int) -> int:
    """Return how many allocations CuPy has made on a device."""
    return int(driver.fake_cuda_allocations_on(device))


def memory_device(address: int) -> int:
    """Return the device whose memory is at an address, or -1."""
    return int(driver.fake_cuda_memory_device(address))


class _Runtime:
    """Find the wrapper of the CUDA runtime that was built for the fake runtime."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "cupy_backends.cuda.api.runtime":
            return None
        file = str(BUILD / "runtime.so")
        return importlib.util.spec_from_file_location(name, file, loader=_LazilyBound(name, file))


class _LazilyBound(ExtensionFileLoader):
    def create_module(self, spec: ModuleSpec) -> Any:
        flags = sys.getdlopenflags()
        sys.setdlopenflags(os.RTLD_LAZY)
        try:
            return super().create_module(spec)
        finally:
            sys.setdlopenflags(flags)


_KERNEL = re.compile(
    r"__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+"
    r"(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\("
)
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+([\w:]+)\s+(\w+)\s*\[\s*\]\s*;")

_INCLUDE = re.compile(r"^#include.*$", re.MULTILINE)

#: A GPU refuses to read a misaligned vector; a host compiler reads its elements.
_VECTOR = re.compile(r"\*\s*reinterpret_cast<([^;()]*)\*\s*>\(")


def symbol_of(name: str) -> str:
    """Return the name of a template's kernel in a library."""
    return f"kernel_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def host_source(source: str, names: Iterable[str] = ()) -> str:
    """Translate CUDA C++ to C++ for the host, with some kernels or all."""
    source = _DYNAMIC_SHARED.sub(
        r"\1* const \2 = static_cast<\1*>(simulator::machine.dynamic_shared);", source
    )
    source = _VECTOR.sub(r"simulator::aligned<\1>(", source)
    symbols = {name: symbol_of(name) for name in names}
    plain = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    exported = symbols or {name: name for name in _KERNEL.findall(plain)}
    launchers = "".join(
        f'extern "C" int launch__{symbol}(void** arguments, const unsigned* dimensions, '
        f"size_t shared, std::function<int()>* recorded) "
        f"{{ return simulator::launch(&{name}, arguments, dimensions, shared, recorded); }}\n"
        for name, symbol in exported.items()
    )
    head = '#include "simulator.h"\n'
    if symbols and "address" in SANITIZE:
        # AddressSanitizer guards a template's variable only if other files cannot see it.
        head += "\n".join(_INCLUDE.findall(source)) + "\nnamespace {"
        source = _INCLUDE.sub("", source) + "\n}"
    head += '\n#line 1 "kernel.cu"\n'
    return f'{head}{source}\n#line 1 "launchers"\n{launchers}'


def compile_for_host(source: str, options: Sequence[str]) -> Path:
    """Compile C++ to a shared library, which is cached."""
    command = _command(options)
    library = _library(command, source)
    if not library.exists():
        with _making(library) as new:
            compiled = str(new.with_suffix(".o"))
            if "clang" in CXX:
                command = [*command, "-include-pch", str(_precompiled_headers(command, source))]
            _run([*command, "-c", "-x", "c++", "-", "-o", compiled], source)
            # By ld: the compiler takes ten times as long to link.
            _run(["ld", "-shared", compiled, str(BUILD / "libcuda.so.1"), "-o", str(new)])
    return library


def compile_together(source: str, names: Sequence[str], options: Sequence[str]) -> None:
    """Compile kernels of one source into one library.

    This takes a quarter of the time that they take alone.
    """
    together = compile_for_host(host_source(source, names), options)
    for name in names:
        with suppress(FileExistsError):
            os.link(together, _library(_command(options), host_source(source, [name])))


def _command(options: Sequence[str]) -> list[str]:
    import cupy

    kept = [option for option in options if option.startswith(("-D", "-std"))]
    if not any(option.startswith("-std") for option in kept):
        kept.append("-std=c++17")
    include = Path(cupy.__file__).parent / "_core" / "include"
    bundled = [include / "cupy" / "_cccl" / each for each in ("libcudacxx", "thrust", "cub")]
    toolkit = Path(cupy.__file__).parents[1] / "nvidia" / "cu13" / "include"
    # Under AddressSanitizer, most kernels take longer to compile than to run.
    optimisation = "-O0" if "address" in SANITIZE else "-O1"
    lines = "-g1" if SANITIZE else "-g0"  # for reports
    command = [CXX, *kept, optimisation, lines, "-w", "-fPIC", "-mfma", "-ffp-contract=fast"]
    command += [f"-I{each}" for each in (HERE, *bundled, include, toolkit)]
    if SANITIZE:
        command += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    if FILLS_SHARED_MEMORY:
        command += ["-DSIMULATOR_POISON"]
    return command


def _library(command: Sequence[str], source: str) -> Path:
    return KERNELS / f"{_key(*command, source)}.so"


def _precompiled_headers(command: Sequence[str], source: str) -> Path:
    """Precompile the headers of a kernel, which take longer than the rest of it."""
    text = "\n".join(_INCLUDE.findall(source))
    times = [each.stat().st_mtime_ns for each in (HERE / "simulator.h", BUILD / "installed")]
    headers = KERNELS / f"{_key(*command, text, *map(str, times))}.pch"
    if not headers.exists():
        with _making(headers) as new:
            _run([*command, "-x", "c++-header", "-", "-o", str(new)], text)
    return headers


def _key(*what: str) -> str:
    """Return a key that changes with everything that is compiled."""
    files = [(HERE / each).read_text() for each in ("simulator.h", "requirements.txt")]
    return hashlib.sha256("\0".join([*what, *files]).encode()).hexdigest()[:32]


@contextmanager
def _making(made: Path) -> Iterator[Path]:
    """Yield a path for a new file; if other processes make it as well, the first one stays."""
    made.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        new = Path(folder) / made.name
        yield new
        with suppress(FileExistsError):
            os.link(new, made)


def _run(command: Sequence[str], text: str = "") -> None:
    environment = {**os.environ, "LD_PRELOAD": ""}  # a sanitizer's library is not the compiler's
    result = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"a kernel does not compile for the CPU:\n{result.stderr}")


def _compile(
    source: str, options: Any = (), arch: Any = None, filename: str = "", names: Any = None,
    *arguments: Any, name_expressions: Any = None, **keywords: Any,
) -> tuple[bytes, dict[str, str] | None]:  # fmt: skip
    names = names or name_expressions or ()
    library = compile_for_host(host_source(source, names), options)
    return f"CUDA on CPU:{library}\0".encode(), {name: symbol_of(name) for name in names} or None


def _install() -> None:
    sys.meta_path.insert(0, _Runtime())
    from cupy.cuda import compiler

    compiler._compile_using_nvrtc_no_warning = _compile
    compiler._preprocess = lambda *arguments: ""  # NVRTC's own version, for the key of a cache
    set_order(os.environ.get("CUDA_ON_CPU_ORDER", "forward"))
    import cupy

    # Memory from a pool contains old results, and has no guards.
    cupy.cuda.set_allocator(None)


_install()
