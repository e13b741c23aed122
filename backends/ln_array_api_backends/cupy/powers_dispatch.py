"""From a spec to launches for power norm, by its exponent.

Sums over rows take two steps, as in strided_dispatch.py: partial sums of powers, then the norm of
each row and what its elements need. An elementwise kernel writes y or dx.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import cupy

from ln_array_api.backend import FamilySpec, RowsSpec

from . import rows_dispatch
from .kernel_dtypes import prepare_with_casts
from .kernel_launch import CuPyMemory, accumulation_dtype, read_sources
from .strided_dispatch import MAX_SERIAL_PARTIALS, ReductionLayout
from .strided_kernels import OPTIONS, REDUCTION, Elementwise, build, preamble

SOURCE = "family_common.cuh"
#: Largest exponent for which powers of float32 are accurate: it multiplies errors of logarithms.
LARGEST_EXPONENT = 2.0**16
#: Numbers that a thread stores: the base, and sums of squares and of products.
NUM_SUMS = 3
#: What kernels on rows take, and how they merge partial sums.
MERGED = ("raw A partials", "int64 num_partials", "int64 padded_outputs", "float64 alpha")
MERGE = """
        const Power powers{alpha};
        const Index plane = num_partials * padded_outputs;
        PowerSums<A> row;
        for (Index at = i; at < plane; at += padded_outputs)
            row = merge(powers, row, PowerSums<A>(partials[at], partials[at + plane],
                                                  partials[at + 2 * plane]));
        row.base = row.base > 0 ? row.base : A(1);
        """
POWERS = {
    "partial_sums": Elementwise(
        ("raw D dy", "raw T x", "float64 alpha", "bool with_dy", *REDUCTION),
        "raw A partials",
        """
        constexpr int CHUNK_LENGTH = 16;
        const ThreadPosition at(i, outputs, num_partials, coalesce_outputs);
        const Power powers{alpha};
        const Index row_start = at.output * length, chunk_step = CHUNK_LENGTH * num_partials;
        PowerSums<A> all;
        for (Index first = at.partial; first < length; first += chunk_step) {
            const Index end = min(length, first + chunk_step);
            A max_abs = 0;
            for (Index c = first; c < end; c += num_partials)
                max_abs = max(max_abs, A(abs(static_cast<A>(x[row_start + c]))));
            PowerSums<A> chunk(powers.base(max_abs), 0, 0);
            const double reference = powers.reference(chunk.base);
            for (Index c = first; c < end; c += num_partials) {
                const A value = static_cast<A>(x[row_start + c]), magnitude = abs(value);
                chunk.squares.add(powers.square(magnitude, reference));
                if (with_dy)
                    chunk.products.add(static_cast<A>(dy[row_start + c]) *
                                       copysign(powers.ratio(magnitude, reference), value));
            }
            // The base of zeros would be too large for other elements.
            if (chunk.squares.sum != 0) all = merge(powers, all, chunk);
        }
        const Index plane = num_partials * padded_outputs;
        const Index target = at.partial * padded_outputs + at.output;
        all.store(partials[target], partials[target + plane], partials[target + 2 * plane]);
        """,
    ),
    "norms": Elementwise(
        (*MERGED, "float64 epsilon"),
        "A norm, float64 reference, A y_scale",
        MERGE + "finalize_norm(powers, row, epsilon, norm, reference, y_scale);",
    ),
    "y": Elementwise(
        ("T x", "float64 alpha", "float64 reference", "A y_scale"),
        "T y",
        """
        const A value = static_cast<A>(x);
        const A ratio = Power{alpha}.ratio(abs(value), reference);
        y = static_cast<T>(copysign(ratio * y_scale, value));
        """,
    ),
    "projections": Elementwise(
        (*MERGED, "A norm"),
        "float64 reference, A y_scale, A projection, float64 slope",
        MERGE + "finalize_gradient(powers, row, norm, reference, y_scale, projection, slope);",
    ),
    "dx": Elementwise(
        (
            *("D dy", "T x", "float64 alpha", "float64 reference", "A y_scale", "A projection"),
            "float64 slope",
        ),
        "T dx",
        """
        const Power powers{alpha};
        const A value = static_cast<A>(x), magnitude = abs(value);
        const A y = copysign(powers.ratio(magnitude, reference) * y_scale, value);
        const A g = fma(-y, projection, static_cast<A>(dy));
        dx = static_cast<T>(magnitude == 0 ? g * magnitude
                                           : powers.gradient(g, magnitude, reference, slope));
        """,
    ),
}


def _struct(alpha: float) -> str:
    """Return the struct of CUDA C that computes powers."""
    return "SquareRoots<A>" if alpha == 0.5 else "Powers<A>"


@cache
def kernel(name: str, struct: str) -> Any:
    """Return a kernel, which is compiled when it is first launched with arrays of some dtypes."""
    code = POWERS[name]
    code = code._replace(operation=f"using Power = {struct};" + code.operation)
    return build(f"powers_{name}", code, (), SOURCE)


@cache
def merge_sums_many(struct: str) -> Any:
    """Return a kernel that merges partial sums of each row."""
    return cupy.ReductionKernel(
        "A base, A square_sum, A product_sum, float64 alpha",
        "A row_base, A row_squares, A row_products",
        "PowerSums<A>(base, square_sum, product_sum)",
        f"merge({struct}{{alpha}}, a, b)",
        "a.store(row_base, row_squares, row_products)",
        "PowerSums<A>()",
        "powers_merge_sums_many",
        reduce_type="PowerSums<A>",
        preamble="\n".join((preamble(), read_sources(SOURCE))),
        options=OPTIONS,
    )


class _Powers:
    """A kind of call: its exponent, its dtype, its reduction."""

    def __init__(self, spec: FamilySpec) -> None:
        self.shape, self.alpha = spec.shape, spec.exponent
        self.struct, self.acc_dtype = _struct(spec.exponent), accumulation_dtype(spec.dtype)
        self.rows = ReductionLayout.over(*spec.shape, coalesce_outputs=False)
        self.epsilon = spec.epsilon

    def _few_partials(self, x: Any, dy: Any = None) -> tuple[Any, ...]:
        """Return partial sums, so few that one thread can merge them, as kernels take these."""
        partials = cupy.empty(self.rows.partials_shape(NUM_SUMS), self.acc_dtype)
        # Pass any valid array for an input that the kernel does not read.
        kernel("partial_sums", self.struct)(
            *(x if dy is None else dy, x, self.alpha, dy is not None, *self.rows, partials),
            size=self.rows.threads,
        )
        if self.rows.num_partials > MAX_SERIAL_PARTIALS:
            sums = cupy.empty((NUM_SUMS, 1, self.rows.padded_outputs), self.acc_dtype)
            merge_sums_many(self.struct)(*partials, self.alpha, *sums[:, 0], axis=0)
            partials = sums
        return partials, *partials.shape[1:], self.alpha

    def _of_rows(self, *dtypes: Any) -> list[Any]:
        return [cupy.empty((self.shape[0], 1), dtype) for dtype in dtypes]

    def forward(self, x: Any) -> tuple[Any, Any]:
        norm, reference, y_scale = self._of_rows(self.acc_dtype, "float64", self.acc_dtype)
        kernel("norms", self.struct)(*self._few_partials(x), self.epsilon, norm, reference, y_scale)
        y = cupy.empty(self.shape, x.dtype)
        kernel("y", self.struct)(x, self.alpha, reference, y_scale, y)
        return y, norm

    def backward(self, dy: Any, x: Any, norm: Any) -> Any:
        numbers = self._of_rows("float64", self.acc_dtype, self.acc_dtype, "float64")
        kernel("projections", self.struct)(*self._few_partials(x, dy), norm, *numbers)
        dx = cupy.empty(self.shape, x.dtype)
        kernel("dx", self.struct)(dy, x, self.alpha, *numbers, dx)
        return dx


def forward(spec: FamilySpec) -> Callable[..., Any] | None:
    """Return a function that computes ``powers_forward``, in four launches where rows are long.

    These are three for short rows, and for the exponent 1.
    """
    if spec.exponent == 1:
        return _first_forward(spec)
    return _Powers(spec).forward if _has_powers(spec) else None


def backward(spec: FamilySpec) -> Callable[..., Any] | None:
    """Return a function that computes ``powers_backward``, in as many launches as `forward`."""
    if spec.exponent == 1:
        return _first_backward(spec)
    return _Powers(spec).backward if _has_powers(spec) else None


def _has_powers(spec: FamilySpec) -> bool:
    """Return whether powers are accurate enough for the exponent and the dtype."""
    return spec.dtype == "float64" or spec.exponent <= LARGEST_EXPONENT


def _rows(spec: FamilySpec, **details: Any) -> tuple[RowsSpec, float]:
    """Return the spec of RMS norm, and the square root of the row length.

    RMS norm is normalisation by the Euclidean norm, times that root. One number gamma for all
    elements divides by it.
    """
    (m, n), dtype = spec.shape, accumulation_dtype(spec.dtype).name
    x = spec.library, spec.device, (m, n), spec.dtype
    rows = RowsSpec(*x, gamma=dtype, beta=None, center=False, repeat=n, **details)
    return rows, math.sqrt(n)


def _first_forward(spec: FamilySpec) -> Callable[..., Any] | None:
    rows, root = _rows(spec, epsilon=spec.epsilon / spec.shape[1])
    if not rows_dispatch.can_run(rows):
        return None
    run = prepare_with_casts(rows_dispatch.PREPARE, "rows_forward", rows, CuPyMemory)

    def call(x: Any) -> Any:
        y, _, rstd = run(x, cupy.full(1, 1 / root, rows.gamma), None)
        return y, root / rstd

    return call


def _first_backward(spec: FamilySpec) -> Callable[..., Any] | None:
    rows, root = _rows(spec, dy=spec.dy, need=(True, False, False))
    if not rows_dispatch.can_run(rows):
        return None
    run = prepare_with_casts(rows_dispatch.PREPARE, "rows_backward", rows, CuPyMemory)

    def call(dy: Any, x: Any, norm: Any) -> Any:
        return run(dy, x, None, root / norm, cupy.full(1, 1 / root, rows.gamma))[0]

    return call
