"""From a spec to launches for instances, which are rows in C order.

Their statistics and sums are those of strided_dispatch.py, of which such rows are a special case.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cupy

from ln_array_api.backend import FamilySpec, Layout, RowsSpec

from .launch_config import ITEMSIZE
from .strided_dispatch import Strided, few_partials
from .strided_kernels import Elementwise, build, elementwise

INSTANCES = {
    "sums": Elementwise(
        (
            *("raw A partials", "int64 num_partials", "int64 padded_outputs"),
            *("A rstd", "float64 inv_count"),
        ),
        "A mean_residual, A sum_dy, A sum_dy_x_hat",
        """
        const Index plane = num_partials * padded_outputs;
        CompensatedSum<A> deviations, products, sum;
        for (Index at = i; at < plane; at += padded_outputs) {
            deviations.add(partials[at]);
            products.add(partials[at + plane]);
            sum.add(partials[at + 2 * plane]);
        }
        const A x_hat_mean = compute_x_hat_mean(deviations.total(), inv_count, rstd);
        mean_residual = deviations.total() * A(inv_count) / range_scale(rstd);
        sum_dy = sum.total();
        sum_dy_x_hat = products.total() - x_hat_mean * sum_dy;
        """,
    ),
    "gradient": Elementwise(
        ("D dy", "T x", "A mean", "A mean_residual", "A rstd", "A weight", "A scale", "A shift"),
        "T dx",
        """
        const A d = deviation(static_cast<A>(x), mean, rstd);
        const A x_hat = fma(d, x_hat_scale(rstd), -mean_residual * rstd);
        dx = static_cast<T>(rstd * fma(static_cast<A>(dy), weight, fma(x_hat, scale, shift)));
        """,
    ),
}


@cache
def kernel(name: str) -> Any:
    """Return a kernel, which is compiled when it is first launched with arrays of some dtypes."""
    return build(f"instances_{name}", INSTANCES[name], ())


def _rows(spec: FamilySpec) -> Strided:
    """Return the reductions over instances."""
    (m, n), x, dy = spec.shape, ITEMSIZE[spec.dtype], ITEMSIZE[spec.dy or spec.dtype]
    rows = RowsSpec(
        *(spec.library, spec.device, (m, n), spec.dtype),
        gamma=None,
        beta=None,
        center=True,
        epsilon=spec.epsilon,
        dy=spec.dy,
    )
    return Strided(rows, Layout((m, n), (1,), (1,), (n * x, x), (n * dy, dy)))


def statistics(spec: FamilySpec) -> Callable[..., Any]:
    """Return a function that computes ``instances_statistics`` in two launches."""
    rows = _rows(spec)

    def call(x: Any) -> tuple[Any, ...]:
        return tuple(rows.finalize_stats(rows.partial_moments(x), with_var=True))

    return call


def affine(spec: FamilySpec) -> Callable[..., Any]:
    """Return a function that computes ``instances_affine`` in one launch."""

    def call(x: Any, *numbers: Any) -> Any:
        y = cupy.empty(spec.shape, x.dtype)
        elementwise("normalise")(x, *numbers, y)
        return y

    return call


def sums(spec: FamilySpec) -> Callable[..., Any]:
    """Return a function that computes ``instances_sums``, in two launches unless rows are long."""
    rows, m = _rows(spec), spec.shape[0]

    def call(dy: Any, x: Any, mean: Any, rstd: Any) -> tuple[Any, ...]:
        partials = cupy.empty(rows.rows.partials_shape(3), rows.acc_dtype)
        rows.partial_row_sums(dy, x, mean, rstd, None, partials)
        results = tuple(cupy.empty((m, 1), rows.acc_dtype) for _ in range(3))
        partials = few_partials(partials, rows.rows)
        kernel("sums")(partials, *partials.shape[1:], rstd, rows.inv_count, *results)
        return results

    return call


def gradient(spec: FamilySpec) -> Callable[..., Any]:
    """Return a function that computes ``instances_gradient`` in one launch."""

    def call(dy: Any, x: Any, *numbers: Any) -> Any:
        dx = cupy.empty(spec.shape, x.dtype)
        kernel("gradient")(dy, x, *numbers, dx)
        return dx

    return call
