"""The elementwise and reduction kernels of strided.py, whose preamble is strided.cu.

T is the dtype of x, D that of dy, G and B those of gamma and beta, A the accumulation dtype, R
that of a result.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import cupy

OPTIONS = ("-std=c++17",)
WALK_X = ("int64 x_length", "int64 x_ahead", "int64 x_advance", "int64 x_wrap")
WALK_DY = ("int64 dy_length", "int64 dy_ahead", "int64 dy_advance", "int64 dy_wrap")
SUMS = ("int64 lines", "int64 length", "int64 slots", "int64 padded", "bool lines_together")


class Elementwise(NamedTuple):
    """What an elementwise kernel takes, gives and does."""

    inputs: tuple[str, ...]
    outputs: str
    operation: str


ELEMENTWISE = {
    "moments": Elementwise(
        ("raw T x", *WALK_X, *SUMS, "bool center"),
        "raw A parts",
        """
        const Place at(i, lines, slots, lines_together);
        const Moments<A> part = moments_of_slot<A>(
            Walk<T>(x[at.line * length + at.slot], at.slot, x_length, x_ahead, x_advance, x_wrap),
            at.count(length, slots), center);
        const Index plane = slots * padded, target = at.slot * padded + at.line;
        parts[target] = part.count;
        parts[target + plane] = part.mean;
        parts[target + 2 * plane] = part.missed;
        parts[target + 3 * plane] = part.m2;
        parts[target + 4 * plane] = part.m2_missed;
        parts[target + 5 * plane] = part.exponent;
        """,
    ),
    "merge_few_moments": Elementwise(
        ("raw A parts", "int64 slots", "int64 padded", "float64 share", "float64 epsilon"),
        "A mean, A missed, A rstd",
        """
        Moments<A> row;
        const Index plane = slots * padded;
        for (Index at = i; at < plane; at += padded)
            row = merge(row, Moments<A>(parts[at], parts[at + plane], parts[at + 2 * plane],
                                        parts[at + 3 * plane], parts[at + 4 * plane],
                                        parts[at + 5 * plane]));
        finish(row, share, epsilon, mean, missed, rstd);
        """,
    ),
    "add_up_few": Elementwise(
        ("raw A parts", "int64 lines", "int64 slots", "int64 padded"),
        "R total",
        """
        const Index first = i / lines * slots * padded + i % lines;
        A sum = 0;
        for (Index slot = 0; slot < slots; ++slot) sum += parts[first + slot * padded];
        total = static_cast<R>(sum);
        """,
    ),
    "normalise": Elementwise(
        ("T x", "A mean", "A missed", "A rstd", "G gamma", "B beta"),
        "T y",
        """
        const A d = deviation(static_cast<A>(x), mean, rstd);
        const A x_hat = fma(d, to_x_hat(rstd), -missed * rstd);
        y = static_cast<T>(fma(x_hat, static_cast<A>(gamma), static_cast<A>(beta)));
        """,
    ),
    "sums_of_rows": Elementwise(
        (
            *("raw D dy", *WALK_DY, "raw T x", *WALK_X, "raw A mean", "raw A rstd", "raw G gamma"),
            *("bool with_gamma", "bool with_dy", *SUMS, "bool center"),
        ),
        "raw A parts",
        """
        const Place at(i, lines, slots, lines_together);
        const Index first = at.line * length + at.slot;
        Walk<D> of_dy(dy[first], at.slot, dy_length, dy_ahead, dy_advance, dy_wrap);
        Walk<T> of_x(x[first], at.slot, x_length, x_ahead, x_advance, x_wrap);
        const A middle = center ? mean[at.line] : A(0), inverse = rstd[at.line];
        const A scale = to_x_hat(inverse);
        Sum<A> by_deviation, by_product, by_g;
        for (Index c = at.slot; c < length; c += slots) {
            const A d = deviation(static_cast<A>(of_x.element()), middle, inverse);
            by_deviation.add(d);
            of_x.next();
            if (!with_dy) continue;
            const A here = static_cast<A>(of_dy.element());
            const A g = with_gamma ? here * static_cast<A>(gamma[c]) : here;
            by_product.add(g * (d * scale));
            by_g.add(g);
            of_dy.next();
        }
        const Index plane = slots * padded, target = at.slot * padded + at.line;
        parts[target] = by_deviation.total();
        if (with_dy) {
            parts[target + plane] = by_product.total();
            parts[target + 2 * plane] = by_g.total();
        }
        """,
    ),
    "dx": Elementwise(
        (
            *("D dy", "T x", "A mean", "A rstd", "A sum_deviation", "A sum_product", "A sum_g"),
            *("G gamma", "float64 share", "bool center"),
        ),
        "T dx",
        """
        const A g = static_cast<A>(dy) * static_cast<A>(gamma), part = static_cast<A>(share);
        const A missed = center ? missed_by_mean(sum_deviation, share, rstd) : A(0);
        const A mean_g = center ? sum_g * part : A(0);
        const A projection = sum_product * part - missed * mean_g;
        const A d = deviation(static_cast<A>(x), center ? mean : A(0), rstd);
        const A x_hat = fma(d, to_x_hat(rstd), -missed);
        dx = static_cast<T>((g - mean_g - x_hat * projection) * rstd);
        """,
    ),
    "sums_of_columns": Elementwise(
        (
            *("raw D dy", *WALK_DY, "raw T x", *WALK_X, "raw A mean", "raw A rstd"),
            *("raw A sum_deviation", "float64 share", "bool with_gamma", "bool with_beta"),
            *(*SUMS, "bool center"),
        ),
        "raw A parts",
        """
        const Place at(i, lines, slots, lines_together);
        const Index first = at.line * length + at.slot;
        Walk<D> of_dy(dy[first], at.slot, dy_length, dy_ahead, dy_advance, dy_wrap);
        Walk<T> of_x(x[first], at.slot, x_length, x_ahead, x_advance, x_wrap);
        Sum<A> by_gamma, by_beta;
        for (Index r = at.slot; r < length; r += slots) {
            const A d = static_cast<A>(of_dy.element());
            by_beta.add(d);
            of_dy.next();
            if (!with_gamma) continue;
            const A middle = center ? mean[r] : A(0), inverse = rstd[r];
            const A missed = center ? missed_by_mean(sum_deviation[r], share, inverse) : A(0);
            const A value = deviation(static_cast<A>(of_x.element()), middle, inverse);
            const A x_hat = fma(value, to_x_hat(inverse), -missed);
            by_gamma.add(d * x_hat);
            of_x.next();
        }
        const Index target = at.slot * padded + at.line;
        if (with_gamma) parts[target] = by_gamma.total();
        if (with_beta) parts[target + (with_gamma ? slots * padded : 0)] = by_beta.total();
        """,
    ),
}


@cache
def preamble() -> str:
    """The CUDA C that the kernels share."""
    return (files(__package__) / "strided.cu").read_text(encoding="utf-8")


def build(name: str, kernel: Elementwise, scalars: tuple[str, ...]) -> Any:
    """An elementwise kernel, some of whose inputs are numbers instead of arrays."""
    names = [each.split()[-1] for each in kernel.inputs]
    inputs = [
        f"float64 {name}" if name in scalars else declared
        for name, declared in zip(names, kernel.inputs, strict=True)
    ]
    return cupy.ElementwiseKernel(
        *(", ".join(inputs), kernel.outputs, kernel.operation, name),
        preamble=preamble(),
        options=OPTIONS,
    )


@cache
def elementwise(name: str, *scalars: str) -> Any:
    """The kernel of that name, compiled when it is first launched with arrays of some dtypes."""
    return build(f"strided_{name}", ELEMENTWISE[name], scalars)


@cache
def merge_moments() -> Any:
    """Reduce the moments of the slots of each row to its mean, what that misses, and rstd."""
    return cupy.ReductionKernel(
        "A count, A mean, A missed, A m2, A m2_missed, A exponent, float64 share, float64 epsilon",
        "A row_mean, A row_missed, A row_rstd",
        "Moments<A>(count, mean, missed, m2, m2_missed, exponent)",
        "merge(a, b)",
        "finish(a, share, epsilon, row_mean, row_missed, row_rstd)",
        "Moments<A>()",
        "strided_merge_moments",
        reduce_type="Moments<A>",
        preamble=preamble(),
        options=OPTIONS,
    )


@cache
def add_up_many() -> Any:
    """Add up the sums of slots, in their own dtype, and round once to that of the result."""
    return cupy.ReductionKernel(
        *("A part", "R total", "part", "a + b", "total = static_cast<R>(a)", "0"),
        "strided_add_up_many",
        reduce_type="A",
    )
