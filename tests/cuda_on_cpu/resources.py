"""Compile every kernel by NVRTC for real architectures, and tell those that spill registers.

Needs NVRTC, and neither a GPU nor a driver. ``resources.py 90 120`` is for sm_90 and sm_120. With
``-a``, dy and parameters in wider dtypes than x's are compiled as well; with ``-v``, the registers
of each kernel are told.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cupy
from cupy_backends.cuda.libs import nvrtc

# The package itself asks for a GPU, so that it is there for its modules, but not run.
_spec = importlib.util.find_spec("ln_array_api_backends.cupy")
assert _spec is not None
sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
from ln_array_api_backends.cupy import calls  # noqa: E402

ARCHITECTURES = ("75", "80", "90", "100", "120")
PARAMETERS = {
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "float32": ("float32", "float64"),
    "float64": ("float64",),
}
_USAGE = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


class Usage(NamedTuple):
    """Of one kernel, as ptxas tells it."""

    stack: int
    stores: int
    loads: int
    registers: int


def shapes(dtype: str, warps: tuple[int, ...]) -> list[calls.Shape]:
    """Every shape that rows of a dtype can have."""
    return list(dict.fromkeys(calls.row_shape(dtype, 1 << bit, warps) for bit in range(20)))


def expressions(dtype: str, wider: bool = False) -> Iterator[str]:
    """Every kernel for x of a dtype, and whether dy and parameters may be wider."""
    name, wide = calls.C_NAME[dtype], calls.ACCUMULATION.get(dtype, "float32")
    flags = [*product(("false", "true"), repeat=2)]
    parameters = [calls.C_NAME[each] for each in PARAMETERS[dtype][: 1 + wider]]
    for p, shape, (center, repeated) in product(
        parameters, shapes(dtype, calls.FORWARD_WARPS), flags
    ):
        size = ", ".join(map(str, shape))
        yield f"rows_forward<{name}, {p}, {p}, {size}, {center}, {repeated}>"
    for dy, p, shape, (center, repeated) in product(
        parameters, parameters, shapes(dtype, calls.BACKWARD_WARPS), flags
    ):
        if shape.chunks:
            size = ", ".join(map(str, shape))
            yield f"rows_backward<{name}, {dy}, {p}, {size}, {center}, {repeated}>"
        else:
            size = shape.warps
            yield f"long_rows_backward<{name}, {dy}, {p}, {size}, {center}, {repeated}>"
    for dy, center in product(parameters, ("false", "true")):
        yield f"parameter_gradients<{name}, {dy}, {calls.THREADS}, {center}>"
    if dtype == wide:
        yield f"add_up<{name}, {calls.COLUMNS}, {calls.TEAMS}>"
        yield f"add_up_repeated<{name}, {calls.TEAMS}>"


def usages(dtype: str, architecture: str, wider: bool = False) -> dict[str, Usage]:
    """What each kernel for x of a dtype needs on an architecture."""
    names = list(expressions(dtype, wider))
    program = nvrtc.createProgram(calls.source(), "kernels.cu", (), ())
    for name in names:
        nvrtc.addNameExpression(program, name)
    include = Path(cupy.__file__).parents[1] / "nvidia" / "cu13" / "include"
    options = ("-std=c++17", f"-arch=sm_{architecture}", f"-I{include}", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        sys.exit(nvrtc.getProgramLog(program))
    told = {
        match[1]: Usage(*map(int, match.groups()[1:]))
        for match in _USAGE.finditer(nvrtc.getProgramLog(program))
    }
    return {name: told[nvrtc.getLoweredName(program, name)] for name in names}


if __name__ == "__main__":
    arguments = [each for each in sys.argv[1:] if each.isdigit()]
    wrong = 0
    for architecture in arguments or ARCHITECTURES:
        kernels = most = 0
        for dtype in PARAMETERS:
            for name, usage in usages(dtype, architecture, "-a" in sys.argv).items():
                kernels, most = kernels + 1, max(most, usage.registers)
                spills = usage.stack or usage.stores or usage.loads
                wrong += bool(spills)
                if spills or "-v" in sys.argv:
                    print(f"sm_{architecture}: {name}: {usage}")
        print(f"sm_{architecture}: {kernels} kernels, at most {most} registers", flush=True)
    print(f"{wrong} kernels spill or have a stack" if wrong else "no kernel spills or has a stack")
    sys.exit(wrong > 0)
