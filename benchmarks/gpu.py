"""Conformance and speed of the CUDA kernels on a GPU, into docs/gpu-report.md.

Needs a GPU, CuPy, NumPy, array-api-compat and pytest, and mpmath and ml_dtypes for the reference of
the conformance suite. Torch is compared with where it is installed: that alone has not run yet, as
it takes torch on the same GPU. Each call is timed by CUDA events on several sets of arrays in turn,
together larger than the second-level cache, and the median is told.

Ends with 0, with 1 where conformance failed, and with 2 where something that is needed is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (ROOT, ROOT / "backends", ROOT / "conformance")
sys.path[:0] = [str(each) for each in ROOMS]
#: Modules, and what to install for them.
NEEDED = {
    "cupy": "cupy-cuda13x, or cupy-cuda12x for CUDA 12",
    "numpy": "numpy",
    "array_api_compat": "array-api-compat",
    "pytest": "pytest",
    "mpmath": "mpmath",
    "ml_dtypes": "ml_dtypes",
}
SOMETHING_MISSING = 2

missing = [name for name in NEEDED if find_spec(name) is None]
if missing:
    print(f"make gpu needs what {sys.executable} does not have:", file=sys.stderr)
    print(*(f"  pip install {NEEDED[name]}" for name in missing), sep="\n", file=sys.stderr)
    sys.exit(SOMETHING_MISSING)

import cupy  # noqa: E402

import ln_array_api as ln  # noqa: E402
from ln_array_api.errors import BackendError  # noqa: E402

SHAPES = (
    (8, 64),
    (4096, 768),
    (4096, 1024),
    (32768, 1024),
    (8192, 8192),
    (16, 262144),
    (65536, 64),
)
DTYPES = ("float32", "float16")
PASSES = ("forward", "backward")
SETS_AT_MOST = 64
PREDICTIONS = ROOT / "docs" / "predicted-speed.json"
#: Names of GPUs there, by those that CUDA has for them.
PREDICTED = {
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA L4": "L4",
}
ITEMSIZE = {"float16": 2, "float32": 4, "float64": 8}


class Case(NamedTuple):
    """A pass over rows of a dtype."""

    which: str
    shape: tuple[int, int]
    dtype: str

    def __str__(self) -> str:
        return f"{self.which} {self.shape[0]}x{self.shape[1]} {self.dtype}"


class Time(NamedTuple):
    """Of a case with one of those that are compared."""

    case: Case
    name: str
    seconds: float


Call = Callable[[], Any]
Maker = Callable[[Case, int], Call]


def minimum_bytes(case: Case) -> int:
    """What has to be read and written: each input and each output once."""
    (m, n), size = case.shape, ITEMSIZE[case.dtype]
    single = max(size, 4)
    rows, statistics_, parameter = m * n * size, 2 * m * single, n * size
    if case.which == "forward":
        return 2 * rows + 2 * parameter + statistics_
    return 3 * rows + parameter + statistics_ + 2 * parameter


class Arrays:
    """The inputs of a case, of which each set is another."""

    def __init__(self, case: Case, number: int) -> None:
        m, n = case.shape
        x = cupy.arange(m * n, dtype="float32").reshape(m, n)
        self.x = cupy.sin(x + number).astype(case.dtype)
        self.dy = cupy.cos(x - number).astype(case.dtype)
        self.gamma = cupy.linspace(0.5, 1.5, n).astype(case.dtype)
        self.beta = cupy.linspace(-0.5, 0.5, n).astype(case.dtype)
        _, self.mean, self.rstd = ln.layer_norm_forward(self.x, self.gamma, self.beta)


def of_this_library(case: Case, number: int) -> Call:
    a = Arrays(case, number)
    if case.which == "forward":
        return lambda: ln.layer_norm_forward(a.x, a.gamma, a.beta)
    return lambda: ln.layer_norm_backward(a.dy, a.x, a.mean, a.rstd, a.gamma)


def of_a_copy(case: Case, number: int) -> Call:
    """As many bytes, read once and written once."""
    half = minimum_bytes(case) // 2
    source, target = cupy.full(half, number, "uint8"), cupy.empty(half, "uint8")
    return lambda: target.data.copy_from_device_async(source.data, half)


def of_torch(case: Case, number: int) -> Call:
    import torch

    a = Arrays(case, number)
    x, dy, gamma, beta, mean, rstd = (
        torch.from_dlpack(each) for each in (a.x, a.dy, a.gamma, a.beta, a.mean, a.rstd)
    )
    shape, operators = x.shape[1:], torch.ops.aten
    if case.which == "forward":
        return lambda: operators.native_layer_norm(x, shape, gamma, beta, 1e-5)
    need = (True, True, True)
    return lambda: operators.native_layer_norm_backward(dy, x, shape, mean, rstd, gamma, beta, need)


def of_torch_compile(case: Case, number: int) -> Call:
    import torch

    a = Arrays(case, number)
    x, dy, gamma, beta = (torch.from_dlpack(each) for each in (a.x, a.dy, a.gamma, a.beta))
    for each in (x, gamma, beta):
        each.requires_grad_(case.which == "backward")
    norm = torch.compile(torch.nn.functional.layer_norm)
    if case.which == "forward":
        return lambda: norm(x, x.shape[1:], gamma, beta)
    y = norm(x, x.shape[1:], gamma, beta)
    return lambda: torch.autograd.grad(y, (x, gamma, beta), dy, retain_graph=True)


def contenders() -> dict[str, Maker]:
    """Who is compared, by name."""
    found: dict[str, Maker] = {"ln_array_api": of_this_library, "copy": of_a_copy}
    if find_spec("torch"):
        found |= {"torch": of_torch, "torch.compile": of_torch_compile}
    return found


def median_seconds(calls: Sequence[Call], rounds: int) -> float:
    """Of one call, by events around it. Sets take turns, so none finds itself in the cache."""
    for call in calls:
        call()
    pairs = []
    for _ in range(rounds):
        for call in calls:
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            call()
            end.record()
            pairs.append((start, end))
    pairs[-1][1].synchronize()
    return statistics.median(cupy.cuda.get_elapsed_time(*pair) for pair in pairs) / 1e3


def properties() -> dict[str, Any]:
    """Of the device, as CUDA tells them."""
    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)  # type: ignore[no-any-return]


def measure(cases: Sequence[Case], rounds: int) -> list[Time]:
    """Every case with everybody, on one stream."""
    times = []
    cache = properties()["l2CacheSize"]
    for case in cases:
        sets = min(SETS_AT_MOST, 2 + 4 * cache // minimum_bytes(case))
        for name, maker in contenders().items():
            calls = [maker(case, number) for number in range(sets)]
            times.append(Time(case, name, median_seconds(calls, rounds)))
            print(f"{case}: {name} {times[-1].seconds * 1e6:.1f} µs", flush=True)
    return times


def conformance(arguments: Sequence[str]) -> tuple[bool, str, float]:
    """Whether the suite passes on the CuPy backend, its last line, and the seconds that it took."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ln_array_api_conformance.plugin"]
    command += ["--pyargs", "ln_array_api_conformance", "--library", "cupy", "--backend", "cupy"]
    paths = os.pathsep.join([*map(str, ROOMS), os.environ.get("PYTHONPATH", "")])
    start = time.monotonic()
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    print(done.stdout, done.stderr, sep="\n")
    lines = [each for each in done.stdout.splitlines() if each.strip()]
    return done.returncode == 0, lines[-1] if lines else "nothing", time.monotonic() - start


def name_of_device() -> str:
    name = properties()["name"]
    return str(name.decode() if isinstance(name, bytes) else name)


def predictions(device: str) -> dict[Case, float]:
    """Microseconds on such a device, of the cases that docs/predicted-speed.md has."""
    if device not in PREDICTED:
        return {}
    everything = json.loads(PREDICTIONS.read_text(encoding="utf-8"))
    return {
        Case(each["pass"], (each["m"], each["n"]), each["dtype"]): each[PREDICTED[device]][
            "predicted"
        ]
        for each in everything["table"]
    }


def table(times: Sequence[Time], predicted: Mapping[Case, float]) -> list[str]:
    """A row for each case; at least is the time of a copy of the bytes that there must be."""
    names = list(dict.fromkeys(each.name for each in times))
    others = [name for name in names if name not in ("ln_array_api", "copy")]
    heads = ["case", "MB", "at least µs", "predicted µs", "measured µs", "GB/s", "of a copy"]
    heads += [f"times {name}" for name in others]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    by_case: dict[Case, dict[str, float]] = {}
    for each in times:
        by_case.setdefault(each.case, {})[each.name] = each.seconds
    fastest = max(minimum_bytes(case) / of["copy"] for case, of in by_case.items())
    for case, of in by_case.items():
        size, own = minimum_bytes(case), of["ln_array_api"]
        cells = [f"{size / 1e6:.2f}", f"{size / fastest * 1e6:.1f}"]
        cells += [f"{predicted[case]:.1f}" if case in predicted else "", f"{own * 1e6:.1f}"]
        cells += [f"{size / own / 1e9:.0f}", f"{of['copy'] / own:.0%}"]
        cells += [f"{of[name] / own:.2f}" for name in others]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    for name in others:
        ratios = [of[name] / of["ln_array_api"] for of in by_case.values()]
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        lines += ["", f"Geometric mean of the ratios to {name}: {mean:.2f}."]
    return lines


def report(passed: bool, verdict: str, seconds: float, times: Sequence[Time]) -> str:
    """The page."""
    device, name = properties(), name_of_device()
    packages = [each for each in ("numpy", "torch") if find_spec(each)]
    versions = ", ".join([f"cupy {cupy.__version__}"] + [f"{e} {version(e)}" for e in packages])
    driver = cupy.cuda.runtime.driverGetVersion()
    lines = [
        "# On a GPU",
        "",
        f"{name}, {device['multiProcessorCount']} multiprocessors, "
        f"{device['l2CacheSize'] / 2**20:.0f} MiB of second-level cache; CUDA {driver // 1000}."
        f"{driver % 1000 // 10}; {versions}. Made by `make gpu`.",
        "",
        f"Conformance with the CuPy backend {'passed' if passed else 'FAILED'} in "
        f"{seconds:.0f} s: {verdict}.",
        "",
        "Medians of calls through the public functions, memory for the results and what Python",
        "takes included. *At least* is the time for reading each input and writing each output",
        "once, at the rate of the fastest copy here; *of a copy* compares with a copy of as many.",
        "*Predicted* is by predicted-speed.md, where that has the shape, the dtype and this GPU.",
        "",
        *table(times, predictions(name)),
    ]
    return "\n".join(lines) + "\n"


def shape_of(text: str) -> tuple[int, int]:
    m, n = map(int, text.split("x"))
    return m, n


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; what the program ends with."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "gpu-report.md")
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=SHAPES, metavar="MxN")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("tests", nargs="*", help="for pytest, after --")
    given = parser.parse_args(arguments)
    try:
        with ln.use_backend("cupy"):
            print(ln.explain(ln.layer_norm, cupy.ones((2, 3), "float32")))
    except BackendError as error:
        print(f"make gpu needs a GPU: {error}", file=sys.stderr)
        return SOMETHING_MISSING
    with ln.use_backend("cupy"):
        cases = [Case(*each) for each in product(PASSES, given.shapes, DTYPES)]
        verdict = conformance(given.tests)
        times = measure(cases, given.rounds)
    given.output.write_text(report(*verdict, times), encoding="utf-8")
    print(f"{given.output} is written")
    return not verdict[0]


if __name__ == "__main__":
    sys.exit(main())
