"""The calls that are timed, their arrays, and the bytes that each has to move."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

OPERATIONS = ("layer_norm", "rms_norm")
PASSES = ("forward", "backward")
DTYPES = ("bfloat16", "float32")
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
EPSILON = 1e-6

#: Shapes for which others have published times, those that users ask about first at the front.
PUBLISHED = (
    (4096, 768),
    (8192, 8192),
    (65536, 64),
    (32768, 32768),
    (16384, 4096),
    (1024, 12288),
    (16384, 128),
)
#: More shapes that docs/predicted-speed.md predicts, each with one dtype.
PREDICTED = (
    ("bfloat16", (32768, 8192)),
    ("bfloat16", (32768, 1024)),
    ("float32", (32768, 1024)),
    ("float32", (2048, 4096)),
    ("float32", (512, 16384)),
    ("float32", (16, 262144)),
    ("float32", (1, 768)),
)
QUICK = ((4096, 768), (8192, 8192), (65536, 64))


class Case(NamedTuple):
    """A pass of an operation over rows."""

    operation: str
    which: str
    """``"forward"`` or ``"backward"``."""
    shape: tuple[int, int]
    dtype: str

    def __str__(self) -> str:
        m, n = self.shape
        return f"{self.operation} {self.which} {m}x{n} {self.dtype}"


def all_cases() -> list[Case]:
    """Return every case, the most important first, since time may run out."""
    cases = cases_of(PUBLISHED)
    cases += [
        Case("layer_norm", which, shape, dtype) for dtype, shape in PREDICTED for which in PASSES
    ]
    return cases


def cases_of(shapes: tuple[tuple[int, int], ...]) -> list[Case]:
    """Return both operations, both passes and both dtypes for some shapes."""
    return [
        Case(operation, which, shape, dtype)
        for shape, operation, dtype, which in product(shapes, OPERATIONS, DTYPES, PASSES)
    ]


def minimum_bytes(case: Case) -> int:
    """Return the bytes that must be moved: each input read once, each output written once."""
    (m, n), size = case.shape, ITEMSIZE[case.dtype]
    centered = case.operation == "layer_norm"
    rows, statistics, parameter = m * n * size, (1 + centered) * m * max(size, 4), n * size
    if case.which == "forward":
        return 2 * rows + (1 + centered) * parameter + statistics
    return 3 * rows + (2 + centered) * parameter + statistics


class Inputs:
    """The inputs of a case, which differ with `number`: arrays of CuPy, shared by all contenders.

    x, dy of shape (M, N), gamma, beta of shape (N,), mean, rstd of shape (M, 1); beta and mean are
    None for RMS norm.
    """

    def __init__(self, case: Case, number: int) -> None:
        import cupy

        import ln_array_api as ln

        m, n = case.shape
        dtype = _cupy_dtype(case.dtype)
        rows, columns = cupy.arange(m, dtype="float32")[:, None], cupy.arange(n, dtype="float32")
        self.x = cupy.sin(columns + 0.7 * rows + number).astype(dtype)
        self.dy: Any = None
        if case.which == "backward":
            self.dy = cupy.cos(columns - 0.3 * rows - number).astype(dtype)
        self.gamma = cupy.linspace(0.5, 1.5, n).astype(dtype)
        self.beta: Any = None
        self.mean: Any = None
        if case.operation == "layer_norm":
            self.beta = cupy.linspace(-0.5, 0.5, n).astype(dtype)
            _, self.mean, self.rstd = ln.layer_norm_forward(
                self.x, self.gamma, self.beta, epsilon=EPSILON
            )
        else:
            _, self.rstd = ln.rms_norm_forward(self.x, self.gamma, epsilon=EPSILON)


def _cupy_dtype(name: str) -> Any:
    import ml_dtypes
    import numpy as np

    return np.dtype(getattr(ml_dtypes, name, name))
