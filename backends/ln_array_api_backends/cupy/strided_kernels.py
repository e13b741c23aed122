"""The elementwise and reduction kernels of strided_dispatch.py and instances_dispatch.py.

Their preamble is accumulate.cuh and strided_common.cuh. T is the dtype of x, D that of dy, G and B
those of gamma and beta, A the accumulation dtype, R that of a result.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import cupy

from .kernel_launch import read_sources

OPTIONS = ("-std=c++17",)
X_STEPS = ("int64 x_length", "int64 x_inner_step", "int64 x_byte_step", "int64 x_wrap_step")
DY_STEPS = ("int64 dy_length", "int64 dy_inner_step", "int64 dy_byte_step", "int64 dy_wrap_step")
#: What sums over rows and columns read, and where each thread begins to.
ITERATED = ("raw D dy", *DY_STEPS, "raw T x", *X_STEPS, "raw A mean", "raw A rstd")
ITERATORS = """
        const ThreadPosition at(i, outputs, num_partials, coalesce_outputs);
        const Index first = at.output * length + at.partial;
        StridedIterator<D> dy_it(dy[first], at.partial,
                                 dy_length, dy_inner_step, dy_byte_step, dy_wrap_step);
        StridedIterator<T> x_it(x[first], at.partial,
                                x_length, x_inner_step, x_byte_step, x_wrap_step);
        """
#: The fields of `ReductionLayout`.
REDUCTION = (
    *("int64 outputs", "int64 length", "int64 num_partials", "int64 padded_outputs"),
    "bool coalesce_outputs",
)

#: What merges of a few partial moments take, and how they merge these.
MERGED = (
    *("raw A partials", "int64 num_partials", "int64 padded_outputs"),
    *("float64 inv_count", "float64 epsilon"),
)
MERGE = """
        Moments<A> row;
        const Index plane = num_partials * padded_outputs;
        for (Index at = i; at < plane; at += padded_outputs)
            row = merge(row, Moments<A>(partials[at], partials[at + plane],
                                        partials[at + 2 * plane], partials[at + 3 * plane],
                                        partials[at + 4 * plane], partials[at + 5 * plane]));
        """


class Elementwise(NamedTuple):
    """An elementwise kernel: its inputs, its outputs, and what it does for each element."""

    inputs: tuple[str, ...]
    outputs: str
    operation: str


ELEMENTWISE = {
    "partial_moments": Elementwise(
        ("raw T x", *X_STEPS, *REDUCTION, "bool center"),
        "raw A partials",
        """
        const ThreadPosition at(i, outputs, num_partials, coalesce_outputs);
        const StridedIterator<T> it(x[at.output * length + at.partial], at.partial,
                                    x_length, x_inner_step, x_byte_step, x_wrap_step);
        const Moments<A> moments =
            partial_moments<A>(it, at.count(length, num_partials), center);
        const Index plane = num_partials * padded_outputs;
        const Index target = at.partial * padded_outputs + at.output;
        partials[target] = moments.count;
        partials[target + plane] = moments.mean;
        partials[target + 2 * plane] = moments.mean_residual;
        partials[target + 3 * plane] = moments.m2;
        partials[target + 4 * plane] = moments.m2_compensation;
        partials[target + 5 * plane] = moments.exponent;
        """,
    ),
    "merge_moments_few": Elementwise(
        MERGED,
        "A mean, A mean_residual, A rstd",
        MERGE + "finalize_stats(row, inv_count, epsilon, mean, mean_residual, rstd);",
    ),
    "merge_moments_with_var_few": Elementwise(
        MERGED,
        "A mean, A mean_residual, A var, A rstd",
        MERGE + "finalize_stats(row, inv_count, epsilon, mean, mean_residual, var, rstd);",
    ),
    "reduce_partials_few": Elementwise(
        ("raw A partials", "int64 outputs", "int64 num_partials", "int64 padded_outputs"),
        "R total",
        """
        const Index first = i / outputs * num_partials * padded_outputs + i % outputs;
        A sum = 0;
        for (Index partial = 0; partial < num_partials; ++partial)
            sum += partials[first + partial * padded_outputs];
        total = static_cast<R>(sum);
        """,
    ),
    "normalise": Elementwise(
        ("T x", "A mean", "A mean_residual", "A rstd", "G gamma", "B beta"),
        "T y",
        """
        const A d = deviation(static_cast<A>(x), mean, rstd);
        const A x_hat = fma(d, x_hat_scale(rstd), -mean_residual * rstd);
        y = static_cast<T>(fma(x_hat, static_cast<A>(gamma), static_cast<A>(beta)));
        """,
    ),
    "row_sums": Elementwise(
        (
            *(
                *ITERATED,
                "raw G gamma",
                "bool with_gamma",
                "bool with_dy",
                *REDUCTION,
                "bool center",
            ),
        ),
        "raw A partials",
        ITERATORS
        + """
        const A row_mean = center ? mean[at.output] : A(0), row_rstd = rstd[at.output];
        const A scale = x_hat_scale(row_rstd);
        CompensatedSum<A> sum_deviation, sum_g_x_hat, sum_g;
        for (Index c = at.partial; c < length; c += num_partials) {
            const A d = deviation(static_cast<A>(x_it.element()), row_mean, row_rstd);
            sum_deviation.add(d);
            x_it.next();
            if (!with_dy) continue;
            const A value = static_cast<A>(dy_it.element());
            const A g = with_gamma ? value * static_cast<A>(gamma[c]) : value;
            sum_g_x_hat.add(g * (d * scale));
            sum_g.add(g);
            dy_it.next();
        }
        const Index plane = num_partials * padded_outputs;
        const Index target = at.partial * padded_outputs + at.output;
        partials[target] = sum_deviation.total();
        if (with_dy) {
            partials[target + plane] = sum_g_x_hat.total();
            partials[target + 2 * plane] = sum_g.total();
        }
        """,
    ),
    "dx": Elementwise(
        (
            *("D dy", "T x", "A mean", "A rstd", "A sum_deviation", "A sum_g_x_hat", "A sum_g"),
            *("G gamma", "float64 inv_count", "bool center"),
        ),
        "T dx",
        """
        const A g = static_cast<A>(dy) * static_cast<A>(gamma);
        const A scale = static_cast<A>(inv_count);
        const A x_hat_mean =
            center ? compute_x_hat_mean(sum_deviation, inv_count, rstd) : A(0);
        const A mean_g = center ? sum_g * scale : A(0);
        const A projection = sum_g_x_hat * scale - x_hat_mean * mean_g;
        const A d = deviation(static_cast<A>(x), center ? mean : A(0), rstd);
        const A x_hat = fma(d, x_hat_scale(rstd), -x_hat_mean);
        dx = static_cast<T>((g - mean_g - x_hat * projection) * rstd);
        """,
    ),
    "column_sums": Elementwise(
        (
            *(
                *ITERATED,
                "raw A sum_deviation",
                "float64 inv_count",
                "bool with_gamma",
                "bool with_beta",
            ),
            *(*REDUCTION, "bool center"),
        ),
        "raw A partials",
        ITERATORS
        + """
        CompensatedSum<A> dgamma_acc, dbeta_acc;
        for (Index r = at.partial; r < length; r += num_partials) {
            const A d = static_cast<A>(dy_it.element());
            dbeta_acc.add(d);
            dy_it.next();
            if (!with_gamma) continue;
            const A row_mean = center ? mean[r] : A(0), row_rstd = rstd[r];
            const A x_hat_mean =
                center ? compute_x_hat_mean(sum_deviation[r], inv_count, row_rstd) : A(0);
            const A x_deviation = deviation(static_cast<A>(x_it.element()), row_mean, row_rstd);
            const A x_hat = fma(x_deviation, x_hat_scale(row_rstd), -x_hat_mean);
            dgamma_acc.add(d * x_hat);
            x_it.next();
        }
        const Index plane = num_partials * padded_outputs;
        const Index target = at.partial * padded_outputs + at.output;
        if (with_gamma) partials[target] = dgamma_acc.total();
        if (with_beta) partials[target + (with_gamma ? plane : 0)] = dbeta_acc.total();
        """,
    ),
}


@cache
def preamble() -> str:
    """Return the CUDA C that the kernels share."""
    return read_sources("accumulate.cuh", "strided_common.cuh")


def build(name: str, kernel: Elementwise, scalars: tuple[str, ...], *sources: str) -> Any:
    """Build an elementwise kernel; its inputs in `scalars` are numbers, not arrays.

    `sources` are files of CUDA C that it needs besides the preamble.
    """
    names = [each.split()[-1] for each in kernel.inputs]
    inputs = [
        f"float64 {name}" if name in scalars else declared
        for name, declared in zip(names, kernel.inputs, strict=True)
    ]
    return cupy.ElementwiseKernel(
        *(", ".join(inputs), kernel.outputs, kernel.operation, name),
        preamble="\n".join((preamble(), read_sources(*sources))),
        options=OPTIONS,
    )


@cache
def elementwise(name: str, *scalars: str) -> Any:
    """Return a kernel, which is compiled when it is first launched with arrays of some dtypes."""
    return build(f"strided_{name}", ELEMENTWISE[name], scalars)


@cache
def merge_moments_many(*, with_var: bool = False) -> Any:
    """Return a kernel that reduces partial moments of each row to its statistics.

    These are the rounded mean, what is left of the mean, the variance if wanted, and rstd.
    """
    results = ("row_mean", "row_residual", *(["row_var"] if with_var else []), "row_rstd")
    return cupy.ReductionKernel(
        "A count, A mean, A mean_residual, A m2, A m2_compensation, A exponent, "
        "float64 inv_count, float64 epsilon",
        ", ".join(f"A {each}" for each in results),
        "Moments<A>(count, mean, mean_residual, m2, m2_compensation, exponent)",
        "merge(a, b)",
        f"finalize_stats(a, inv_count, epsilon, {', '.join(results)})",
        "Moments<A>()",
        f"strided_merge_moments_{'with_var_' if with_var else ''}many",
        reduce_type="Moments<A>",
        preamble=preamble(),
        options=OPTIONS,
    )


@cache
def reduce_partials_many() -> Any:
    """Return a kernel that adds up partial sums in their own dtype, and rounds the result once."""
    return cupy.ReductionKernel(
        *("A partial", "R total", "partial", "a + b", "total = static_cast<R>(a)", "0"),
        "strided_reduce_partials_many",
        reduce_type="A",
    )
