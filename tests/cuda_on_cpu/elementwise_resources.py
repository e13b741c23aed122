"""Compile the elementwise and reduction kernels by NVRTC for real architectures.

Report those that spill registers or have a stack. The kernels are those that the tests launch, with
all code that CuPy adds. ``elementwise_resources.py 90 120`` is for sm_90 and sm_120.
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / ".cuda_on_cpu" / "elementwise.pickle"
ARCHITECTURES = ("75", "80", "90", "100", "120")
_USAGE = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers",
    re.DOTALL,
)


class Source(NamedTuple):
    """The code that CuPy passes to the compiler for one kernel."""

    name: str
    code: str


def launch_everything(dtype: str) -> None:
    """Launch every kernel for x of a dtype."""
    import test_stages
    import test_strided

    for name in (*test_strided.FEW, "more partials than one thread merges"):
        test_strided.Case(test_strided.KINDS[name], dtype).run()
    for call in test_stages.calls(dtype, 70, 40).values():
        call()


def collect() -> None:
    """Launch every kernel for every dtype on the CPU, and save the code that was compiled."""
    import cupy_on_cpu  # noqa: F401 - before CuPy
    from cupy.cuda import compiler

    found: dict[Source, None] = {}
    compile_for_cpu = compiler._compile_using_nvrtc_no_warning

    def keep(source: str, *arguments: object, **options: object) -> object:
        for name in re.findall(r"__global__ void ((?:strided|caffe2)_\w+)\(", source):
            found[Source(name, source)] = None
        return compile_for_cpu(source, *arguments, **options)

    compiler._compile_using_nvrtc_no_warning = keep
    from kernel_inventory import DTYPES

    for dtype in DTYPES:
        launch_everything(dtype)
    SOURCES.write_bytes(pickle.dumps([tuple(each) for each in found]))


def usage(source: Source, architecture: str) -> tuple[int, ...]:
    """Return bytes of stack, of spill stores and loads, and registers, as reported by ptxas."""
    import cupy
    from cupy_backends.cuda.libs import nvrtc

    include = Path(cupy.__file__).parent / "_core" / "include"
    folders = [include, Path(cupy.__file__).parents[1] / "nvidia" / "cu13" / "include"]
    folders += [include / "cupy" / "_cccl" / each for each in ("libcudacxx", "thrust", "cub")]
    program = nvrtc.createProgram(source.code, f"{source.name}.cu", (), ())
    options = ("-std=c++17", f"-arch=sm_{architecture}", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, (*options, *(f"-I{folder}" for folder in folders)))
    except nvrtc.NVRTCError:
        sys.exit(nvrtc.getProgramLog(program))
    told = _USAGE.search(nvrtc.getProgramLog(program))
    assert told is not None
    return tuple(map(int, told.groups()))


if __name__ == "__main__":
    if "collect" in sys.argv:
        collect()
        sys.exit()
    # In a process of its own: NVRTC does not work with a driver that is not NVIDIA's.
    subprocess.run([sys.executable, __file__, "collect"], check=True, cwd=HERE)
    sources = [Source(*each) for each in pickle.loads(SOURCES.read_bytes())]
    wrong = 0
    for architecture in sys.argv[1:] or ARCHITECTURES:
        most = 0
        for source in sources:
            *spills, registers = usage(source, architecture)
            most = max(most, registers)
            if any(spills):
                wrong += 1
                print(f"sm_{architecture}: {source.name}: stack, stores, loads {spills}")
        print(f"sm_{architecture}: {len(sources)} kernels, at most {most} registers", flush=True)
    print(f"{wrong} kernels spill or have a stack" if wrong else "no kernel spills or has a stack")
    sys.exit(wrong > 0)
