"""From a spec of windows to launches.

Where a tile of a plane fits into shared memory with all windows around its elements, one launch
reads x and writes the results. Around larger windows, there is one launch for each axis, or two
where gradients are summed, which leave moments or sums of x's shape to the next.

Results of a plane depend on the lengths of its axes, and not on how many planes there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from ln_array_api.backend import FamilySpec

from .kernel_launch import (
    C_NAME,
    CuPyMemory,
    accumulation_dtype,
    bind_launch,
    get_kernel,
    read_sources,
)
from .launch_config import WARP, ceil_div

#: Threads of a block; one with a small tile has fewer.
THREADS = 256
#: Neighbours whose windows a thread computes, unless windows reach less far than these.
NEIGHBOURS = 4
#: Elements of a tile: the first number for which its fields fit into shared memory. A row of a tile
#: has as many as a warp has threads, unless the plane is shorter along an axis.
TILE_ELEMENTS = (1024, 512)
#: Shared memory of a block that every GPU has, without what a reduction takes.
MAX_SHARED_BYTES = 47 << 10
#: Elements of a part of a plane whose largest magnitude is found by a block, and most parts.
PART_LENGTH, MAX_PARTS = 1 << 14, 128
#: Arrays of x's shape between launches, forward and backward.
NUM_MOMENTS, NUM_TERMS, NUM_SUMS = 2, 2, 4
MAX_BLOCKS = (1 << 31) - 1


@cache
def source() -> str:
    """Return the CUDA C of all kernels over windows."""
    return read_sources(
        *("accumulate.cuh", "common.cuh", "windows_common.cuh"),
        *("windows_tiles.cu", "windows_planes.cu"),
    )


@cache
def kernel(name: str, *parameters: str | bool) -> Any:
    """Return a kernel over windows for these template parameters."""
    return get_kernel(source(), name, *parameters)


class KernelWithSharedMemory:
    """A kernel whose blocks get dynamic shared memory."""

    def __init__(self, run: Any, nbytes: int) -> None:
        self.run, self.nbytes = run, nbytes

    @property
    def kernel(self) -> Callable[..., None]:
        """The kernel on the current device."""
        return partial(self.run.kernel, shared_mem=self.nbytes)


class Windows(NamedTuple):
    """Planes, and how far windows reach to either side of an element."""

    planes: int
    height: int
    width: int
    radius_down: int
    radius_across: int

    @classmethod
    def of(cls, spec: FamilySpec) -> Windows:
        """Return the windows of a call, in which a single column is a row."""
        planes, height, width = spec.shape
        if width == 1:
            height, width = 1, height
        radii = (min(spec.size // 2, length - 1) for length in (height, width))
        return cls(planes, height, width, *radii)

    @property
    def elements(self) -> int:
        """The number of elements of x."""
        return self.planes * self.height * self.width


class Tile(NamedTuple):
    """The shape of a tile, and the shared memory that it needs."""

    rows: int
    columns: int
    nbytes: int

    @classmethod
    def of(cls, windows: Windows, itemsize: int, *, backward: bool) -> Tile | None:
        """Return the largest tile that fits, or None."""
        height, width = (1 << (n - 1).bit_length() for n in (windows.height, windows.width))
        for elements in TILE_ELEMENTS:
            rows = min(elements // min(WARP, width), height)
            columns = min(elements // rows, width)
            count = _backward_fields if backward else _forward_fields
            nbytes = count(rows, columns, windows) * itemsize
            if nbytes <= MAX_SHARED_BYTES:
                return cls(rows, columns, nbytes)
        return None

    def bind(self, windows: Windows, run: Any, *scalars: Any) -> Callable[..., None] | None:
        """Bind a launch with a block for each tile, or return None if there are too many."""
        tiles = ceil_div(windows.height, self.rows) * ceil_div(windows.width, self.columns)
        if windows.planes * tiles > MAX_BLOCKS:
            return None
        threads = min(THREADS, max(WARP, self.rows * self.columns // NEIGHBOURS))
        lengths = (self.rows, self.columns, windows.radius_down, windows.radius_across)
        return bind_launch(
            CuPyMemory,
            KernelWithSharedMemory(run, self.nbytes),
            (windows.planes * tiles,),
            threads,
            *(windows.height, windows.width, *map(np.int32, lengths), *scalars),
        )


def _field(rows: int, columns: int) -> int:
    """Return the number of elements of a field, whose rows are an odd number apart."""
    return rows * (columns | 1)


def _forward_fields(rows: int, columns: int, windows: Windows) -> int:
    """Return the elements of x in the windows of a tile, and of the moments of runs."""
    high = rows + 2 * windows.radius_down
    wide = columns + 2 * windows.radius_across
    return _field(high, wide) + NUM_MOMENTS * _field(high, columns)


def _backward_fields(rows: int, columns: int, windows: Windows) -> int:
    """Return the same for terms, and for deviations or sums of runs."""
    high, around = (rows + 2 * reach * windows.radius_down for reach in (1, 2))
    wide, all_wide = (columns + 2 * reach * windows.radius_across for reach in (1, 2))
    runs = max(_field(around, wide), NUM_SUMS * _field(high, columns))
    return _field(around, all_wide) + NUM_TERMS * _field(high, wide) + runs


class _Planes:
    """Launches that go through planes, and the maxima by which x is scaled."""

    def __init__(self, spec: FamilySpec, windows: Windows) -> None:
        self.windows, self.name = windows, C_NAME[spec.dtype]
        self.itemsize = accumulation_dtype(spec.dtype).itemsize
        length = windows.height * windows.width
        self.field_bytes = windows.elements * self.itemsize
        # Squares of float16 are in the range of float32.
        parts = min(MAX_PARTS, ceil_div(length, PART_LENGTH)) * (spec.dtype != "float16")
        self.parts, self.maxima_bytes = parts, windows.planes * parts * self.itemsize
        self.launch_maxima = None
        if parts:
            self.launch_maxima = bind_launch(
                CuPyMemory,
                kernel("plane_maxima", self.name),
                (windows.planes * parts,),
                THREADS,
                *(length, ceil_div(length, parts), np.int32(parts)),
            )

    def bind(self, run: Any, axis: int, *scalars: Any) -> Callable[..., None]:
        """Bind a launch along an axis, 0 down and 1 across."""
        windows = self.windows
        lengths, radius = [windows.height, windows.width], windows[3 + axis]
        if radius >= NEIGHBOURS - 1:
            lengths[axis] = ceil_div(lengths[axis], NEIGHBOURS)
        blocks = ceil_div(math.prod(lengths), THREADS)
        return bind_launch(
            CuPyMemory,
            run,
            (windows.planes * blocks,),
            THREADS,
            *(windows.height, windows.width, np.uint32(blocks), np.int32(self.parts), *scalars),
        )

    @property
    def can_run(self) -> bool:
        """Whether 31 bits hold the numbers of all blocks."""
        length = self.windows.height * self.windows.width
        blocks = max(ceil_div(length, THREADS), self.parts)
        return self.windows.planes * blocks <= MAX_BLOCKS

    def workspace(self, fields: int, x: Any) -> tuple[list[Any], Any]:
        """Return memory for some fields, and that of maxima, which are computed."""
        memory = CuPyMemory.workspace(fields * self.field_bytes + self.maxima_bytes, x)
        maxima = None
        if self.launch_maxima:
            maxima = memory + fields * self.field_bytes
            self.launch_maxima(x, maxima)
        return [memory + k * self.field_bytes for k in range(fields)], maxima


def _epsilon_args(spec: FamilySpec) -> tuple[float, float, float]:
    """Return epsilon, its root, and the rstd of a constant window."""
    largest = float(np.finfo(accumulation_dtype(spec.dtype)).max)
    root = math.sqrt(spec.epsilon)
    return spec.epsilon, root, min(1 / root, largest) if root > 0 else math.inf


def forward(spec: FamilySpec) -> Callable[..., Any] | None:
    """Return the kernel of `windows_forward`, a function of x, or None if x is too large."""
    windows, acc_dtype = Windows.of(spec), accumulation_dtype(spec.dtype)
    tile = Tile.of(windows, acc_dtype.itemsize, backward=False)
    if tile:
        run = kernel("tiles_forward", C_NAME[spec.dtype])
        launch = tile.bind(windows, run, *_epsilon_args(spec))
    else:
        launch = _planes_forward(spec, windows)
    if launch is None:
        return None
    shape, only_y = spec.shape, spec.need == (True, False, False)
    empty, several = CuPyMemory.empty, CuPyMemory.several

    def call(x: Any) -> Any:
        y = empty(shape, x.dtype, x)
        mean, rstd = (None, None) if only_y else several(2, shape, acc_dtype, x)
        launch(x, y, mean, rstd)
        return y, mean, rstd

    return call


def _planes_forward(spec: FamilySpec, windows: Windows) -> Callable[..., None] | None:
    planes = _Planes(spec, windows)
    if not planes.can_run:
        return None
    epsilon_args = _epsilon_args(spec)
    launch_runs = planes.bind(
        *(kernel("plane_runs", planes.name, True), 1),
        *(windows.radius_across, epsilon_args[1]),
    )
    launch_forward = planes.bind(
        *(kernel("plane_forward", planes.name), 0), *(windows.radius_down, *epsilon_args)
    )

    def launch(x: Any, y: Any, mean: Any, rstd: Any) -> None:
        moments, maxima = planes.workspace(NUM_MOMENTS, x)
        launch_runs(x, maxima, *moments)
        launch_forward(x, maxima, *moments, y, mean, rstd)

    return launch


def backward(spec: FamilySpec) -> Callable[..., Any] | None:
    """Return the kernel of `windows_backward`, of dy, x and rstd, or None if x is too large."""
    windows, acc_dtype = Windows.of(spec), accumulation_dtype(spec.dtype)
    tile = Tile.of(windows, acc_dtype.itemsize, backward=True)
    if tile:
        run = kernel("tiles_backward", C_NAME[spec.dtype], C_NAME[spec.dy or spec.dtype])
        launch = tile.bind(windows, run)
    else:
        launch = _planes_backward(spec, windows)
    if launch is None:
        return None
    shape, empty = spec.shape, CuPyMemory.empty

    def call(dy: Any, x: Any, rstd: Any) -> Any:
        dx = empty(shape, x.dtype, x)
        launch(dy, x, rstd, dx)
        return dx

    return call


def _planes_backward(spec: FamilySpec, windows: Windows) -> Callable[..., None] | None:
    planes = _Planes(spec, windows)
    if not planes.can_run:
        return None
    dtypes = planes.name, C_NAME[spec.dy or spec.dtype]
    down, across = windows.radius_down, windows.radius_across
    launch_runs = planes.bind(kernel("plane_runs", planes.name, False), 1, across, 0.0)
    launch_terms = planes.bind(kernel("plane_terms", *dtypes), 0, down, across)
    launch_sums = planes.bind(kernel("plane_sums", planes.name), 1, across, windows.elements)
    launch_dx = planes.bind(kernel("plane_dx", *dtypes), 0, down, windows.elements)

    def launch(dy: Any, x: Any, rstd: Any, dx: Any) -> None:
        fields, maxima = planes.workspace(NUM_TERMS + NUM_SUMS, x)
        terms, sums = fields[:NUM_TERMS], fields[NUM_TERMS]
        deviations = sums  # until there are sums
        launch_runs(x, maxima, deviations, None)
        launch_terms(dy, x, rstd, maxima, deviations, *terms)
        launch_sums(x, maxima, *terms, sums)
        launch_dx(dy, x, rstd, maxima, sums, dx)

    return launch
