"""Compile every kernel by NVRTC for real architectures, and tell those that spill registers.

Needs NVRTC, and neither a GPU nor a driver. ``resources.py 90 120`` is for sm_90 and sm_120. With
``-a``, dy and parameters in wider dtypes than x's are compiled as well; with ``-v``, the registers
of each kernel are told.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cupy
from cupy_backends.cuda.libs import nvrtc

from ln_array_api.errors import BackendError

try:
    importlib.import_module("ln_array_api_backends.cupy")
except BackendError:  # for want of a GPU; its modules will do, in a package that is not run
    _spec = importlib.util.find_spec("ln_array_api_backends.cupy")
    assert _spec is not None
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
from ln_array_api_backends.cupy import calls, shapes

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


def every_shape(shape_of: Callable[[int], shapes.Shape | None]) -> list[shapes.Shape]:
    """Every shape of rows that a block holds."""
    return list(dict.fromkeys(shape for bit in range(20) if (shape := shape_of(1 << bit))))


def expressions(dtype: str, wider: bool = False) -> Iterator[str]:
    """Every kernel for x of a dtype, and whether dy and parameters may be wider."""
    name, single = calls.C_NAME[dtype], calls.C_NAME[calls.ACCUMULATION.get(dtype, "float32")]
    flags = [*product((False, True), shapes.Repeat)]
    parameters = [calls.C_NAME[each] for each in PARAMETERS[dtype][: 1 + wider]]
    tile = shapes.LONG_ROW_WARPS, shapes.MOST_CHUNKS[dtype]
    for center in (False, True):
        yield calls.expression("segment_moments", name, *tile, center)
    for p, some in product(parameters, flags):
        for shape in every_shape(lambda n: shapes.forward_shape(dtype, n)):
            yield calls.expression("rows_forward", name, p, p, *shape, *some)
        yield calls.expression("segments_forward", name, p, p, *tile, *some)
    for dy, p, (center, repeat) in product(parameters, parameters, flags):
        for shape in every_shape(lambda n, repeat=repeat: shapes.backward_shape(dtype, n, repeat)):  # type: ignore[misc]
            how = *shape, shapes.are_kept(dtype, shape), center, repeat
            yield calls.expression("rows_backward", name, dy, p, *how)
        how = shapes.LONG_ROW_WARPS, shapes.backward_chunks(dtype, repeat), center, repeat
        yield calls.expression("segment_sums", name, dy, p, *how)
        yield calls.expression("segments_backward", name, dy, p, *how)
    for terms, result in product({single, *parameters}, repeat=2):
        if single in (terms, result):
            yield calls.expression("add_up", terms, single, result, calls.COLUMNS, calls.TEAMS)
    for result in {single, *parameters}:
        yield calls.expression("add_up_repeated", single, result, calls.TEAMS)


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
