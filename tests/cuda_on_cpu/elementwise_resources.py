"""Compile elementwise and reduction kernels, and those over windows, for real architectures.

NVRTC compiles them. Report those that spill registers or have a stack. The kernels are those that
the tests launch, with all code that CuPy adds. ``elementwise_resources.py 90 120`` is for sm_90 and
sm_120.
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / ".cuda_on_cpu" / "elementwise.pickle"
#: How names of kernels begin.
KERNELS = "strided|caffe2|instances|tanh|powers"
ARCHITECTURES = ("75", "80", "90", "100", "120")
_USAGE = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


class Source(NamedTuple):
    """The code that CuPy passes to the compiler for one kernel, or for several of a template."""

    name: str
    code: str
    expressions: tuple[str, ...] = ()


def launch_everything(dtype: str) -> None:
    """Launch every kernel for x of a dtype."""
    import family_cases
    import test_stages
    import test_strided
    import window_cases

    from ln_array_api._arrays import PARAMETER_DTYPES

    for name in (*test_strided.FEW, "more partials than one thread merges"):
        test_strided.Case(test_strided.KINDS[name], dtype).run()
    for call in test_stages.calls(dtype, 70, 40).values():
        call()
    for dy in PARAMETER_DTYPES[dtype]:
        for size in (5, 89):  # in tiles, and through planes
            window_cases.Case((1, 45, 37), size, dtype, dy_dtype=dy).run()
    family_cases.launch_everything(dtype)


def collect() -> None:
    """Launch every kernel for every dtype on the CPU, and save the code that was compiled."""
    import cupy_on_cpu  # noqa: F401 - before CuPy
    from cupy.cuda import compiler

    found: dict[Source, None] = {}
    templates: dict[str, set[str]] = {}
    compile_for_cpu = compiler._compile_using_nvrtc_no_warning

    def keep(
        source: str, options: Any, arch: Any, filename: str, names: Any, *others: Any
    ) -> object:
        if names:
            templates.setdefault(source, set()).update(names)
        for name in re.findall(rf"__global__ void ((?:{KERNELS})_\w+)\(", source):
            found[Source(name, source)] = None
        return compile_for_cpu(source, options, arch, filename, names, *others)

    compiler._compile_using_nvrtc_no_warning = keep
    from kernel_inventory import DTYPES

    for dtype in DTYPES:
        launch_everything(dtype)
    for code, names in templates.items():
        found[Source("templates", code, tuple(sorted(names)))] = None
    SOURCES.write_bytes(pickle.dumps([tuple(each) for each in found]))


def usages(source: Source, architecture: str) -> dict[str, tuple[int, ...]]:
    """Return bytes of stack, of spill stores and loads, and registers, as reported by ptxas.

    There is one kernel, or one for each expression.
    """
    import cupy
    from cupy_backends.cuda.libs import nvrtc

    include = Path(cupy.__file__).parent / "_core" / "include"
    folders = [include, Path(cupy.__file__).parents[1] / "nvidia" / "cu13" / "include"]
    folders += [include / "cupy" / "_cccl" / each for each in ("libcudacxx", "thrust", "cub")]
    program = nvrtc.createProgram(source.code, f"{source.name}.cu", (), ())
    for expression in source.expressions:
        nvrtc.addNameExpression(program, expression)
    options = ("-std=c++17", f"-arch=sm_{architecture}", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, (*options, *(f"-I{folder}" for folder in folders)))
    except nvrtc.NVRTCError:
        sys.exit(nvrtc.getProgramLog(program))
    told = {match[1]: match for match in _USAGE.finditer(nvrtc.getProgramLog(program))}
    if source.expressions:
        names = {nvrtc.getLoweredName(program, each): each for each in source.expressions}
    else:
        names = dict.fromkeys(told, source.name)
    assert told.keys() == names.keys()
    return {names[each]: tuple(map(int, match.groups()[1:])) for each, match in told.items()}


def spilling(sources: list[Source], architecture: str) -> int:
    """Print the kernels that spill or have a stack on an architecture, and return their number."""
    wrong = count = most = 0
    for source in sources:
        for name, (*spills, registers) in usages(source, architecture).items():
            count += 1
            most = max(most, registers)
            if any(spills):
                wrong += 1
                print(f"sm_{architecture}: {name}: stack, stores, loads {spills}")
    print(f"sm_{architecture}: {count} kernels, at most {most} registers", flush=True)
    return wrong


if __name__ == "__main__":
    if "collect" in sys.argv:
        collect()
        sys.exit()
    # In a process of its own: NVRTC does not work with a driver that is not NVIDIA's.
    subprocess.run([sys.executable, __file__, "collect"], check=True, cwd=HERE)
    sources = [Source(*each) for each in pickle.loads(SOURCES.read_bytes())]
    wrong = sum(spilling(sources, architecture) for architecture in sys.argv[1:] or ARCHITECTURES)
    print(f"{wrong} kernels spill or have a stack" if wrong else "no kernel spills or has a stack")
    sys.exit(wrong > 0)
