"""From a spec to launches for dynamic tanh.

One launch writes dx and partial sums of the gradients of alpha, gamma and beta, so that dy and x
are read once. Sums take two steps, as in strided_dispatch.py; that of alpha takes a third, over the
sums for each parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import cupy

from ln_array_api.backend import FamilySpec, Layout

from .kernel_launch import accumulation_dtype
from .launch_config import ITEMSIZE
from .strided_dispatch import (
    ReductionLayout,
    fill_absent,
    iterator_steps,
    reduce_partials,
)
from .strided_kernels import (
    DY_STEPS,
    ITERATORS,
    REDUCTION,
    X_STEPS,
    Elementwise,
    build,
    reduce_partials_many,
)

TANH = {
    "forward": Elementwise(
        ("T x", "S alpha", "G gamma", "B beta"),
        "T y",
        """
        using A = Accumulator<T>;
        const A t = tanh(static_cast<A>(x) * static_cast<A>(alpha));
        y = static_cast<T>(fma(t, static_cast<A>(gamma), static_cast<A>(beta)));
        """,
    ),
    "dx": Elementwise(
        ("D dy", "T x", "S alpha", "G gamma"),
        "T dx",
        """
        using A = Accumulator<T>;
        const A g = static_cast<A>(dy) * static_cast<A>(gamma), steepness = static_cast<A>(alpha);
        const A root_slope = sech(static_cast<A>(x) * steepness);
        dx = static_cast<T>(g * (root_slope * steepness * root_slope));
        """,
    ),
    "gradients": Elementwise(
        (
            *("raw D dy", *DY_STEPS, "raw T x", *X_STEPS, "raw S alpha", "raw G gamma"),
            *("bool with_gamma", "bool with_dx", "bool with_dalpha", "bool with_dgamma"),
            *("bool with_dbeta", *REDUCTION),
        ),
        "raw T dx, raw A partials",
        ITERATORS
        + """
        constexpr int LOADS = 4;
        const A steepness = static_cast<A>(alpha[0]);
        const A scale = with_gamma ? static_cast<A>(gamma[at.output]) : A(1);
        const T* const all_x = &x[0];
        CompensatedSum<A> dalpha_acc, dgamma_acc, dbeta_acc;
        for (Index left = at.count(length, num_partials); left > 0; left -= LOADS) {
            // Loaded before dx is written, since the compiler cannot tell that dx is not x.
            A dys[LOADS], values[LOADS];
            Index places[LOADS];
#pragma unroll
            for (int j = 0; j < LOADS; ++j) {
                if (j >= left) break;
                dys[j] = static_cast<A>(dy_it.element());
                values[j] = static_cast<A>(x_it.element());
                places[j] = &x_it.element() - all_x;
                dy_it.next();
                x_it.next();
            }
#pragma unroll
            for (int j = 0; j < LOADS; ++j) {
                if (j >= left) break;
                const A d = dys[j], value = values[j], u = value * steepness;
                dbeta_acc.add(d);
                if (with_dgamma) dgamma_acc.add(d * tanh(u));
                if (!with_dx && !with_dalpha) continue;
                const A g = d * scale, root_slope = sech(u);
                dalpha_acc.add(g * (root_slope * value * root_slope));
                if (with_dx)
                    dx[places[j]] = static_cast<T>(g * (root_slope * steepness * root_slope));
            }
        }
        const Index plane = num_partials * padded_outputs;
        Index target = at.partial * padded_outputs + at.output;
        if (with_dalpha) partials[target] = dalpha_acc.total();
        if (with_dalpha) target += plane;
        if (with_dgamma) partials[target] = dgamma_acc.total();
        if (with_dgamma) target += plane;
        if (with_dbeta) partials[target] = dbeta_acc.total();
        """,
    ),
}


@cache
def kernel(name: str, *scalars: str) -> Any:
    """Return a kernel, which is compiled when it is first launched with arrays of some dtypes."""
    return build(f"tanh_{name}", TANH[name], scalars, "family_common.cuh")


def _shapes(spec: FamilySpec, *, uses_parameters: bool) -> tuple[tuple[int, ...], ...]:
    """Return shapes with four axes in which x and parameters broadcast.

    `uses_parameters` is whether there are any, or gradients of them.
    """
    m, n = spec.shape
    if not uses_parameters:
        return (1, 1, 1, m * n), (1, 1, 1, 1)
    groups, repeat = spec.groups, spec.repeat
    return (m // groups, groups, n // repeat, repeat), (1, groups, n // repeat, 1)


def _reshaped(parameter: Any, shape: tuple[int, ...]) -> Any:
    return None if parameter is None else parameter.reshape(shape)


def forward(spec: FamilySpec) -> Callable[..., Any]:
    """Return a function that computes ``tanh_forward`` in one launch."""
    uses_parameters = (spec.gamma or spec.beta) is not None
    shape, parameter_shape = _shapes(spec, uses_parameters=uses_parameters)

    def call(x: Any, alpha: Any, gamma: Any, beta: Any) -> Any:
        y = cupy.empty(spec.shape, x.dtype)
        gamma, beta = (_reshaped(each, parameter_shape) for each in (gamma, beta))
        # -0 keeps the sign of 0.
        parameters, scalars = fill_absent(gamma=(gamma, 1.0), beta=(beta, -0.0))
        kernel("forward", *scalars)(x.reshape(shape), alpha, *parameters, y.reshape(shape))
        return y

    return call


def backward(spec: FamilySpec) -> Callable[..., Any] | None:
    """Return a function that computes ``tanh_backward``, in one launch for dx alone, or in three.

    Without gradients of gamma and beta, these are two.
    """
    if not any(spec.need):
        return None
    _, need_dalpha, need_dgamma, need_dbeta = spec.need
    uses_parameters = spec.gamma is not None or need_dgamma or need_dbeta
    shape, parameter_shape = _shapes(spec, uses_parameters=uses_parameters)
    if need_dalpha or need_dgamma or need_dbeta:
        return _Backward(spec, shape).run

    def call(dy: Any, x: Any, alpha: Any, gamma: Any) -> tuple[Any, ...]:
        dx = cupy.empty(spec.shape, x.dtype)
        parameters, scalars = fill_absent(gamma=(_reshaped(gamma, parameter_shape), 1.0))
        kernel("dx", *scalars)(
            *(dy.reshape(shape), x.reshape(shape), alpha, *parameters, dx.reshape(shape))
        )
        return dx, None, None, None

    return call


class _Backward:
    """A kind of call with sums: the shape of x in it, how it is iterated over, the reduction."""

    def __init__(self, spec: FamilySpec, shape: tuple[int, ...]) -> None:
        kept, summed = (1, 2), (0, 3)
        self.shape, self.along = shape, kept + summed
        self.spec, self.acc_dtype = spec, accumulation_dtype(spec.dtype)
        strides = [
            tuple(ITEMSIZE[dtype] * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            for dtype in (spec.dy or spec.dtype, spec.dtype)
        ]
        layout = Layout(shape, summed, kept, strides[1])
        self.reduction = ReductionLayout.of(layout, kept, summed)
        lengths = [shape[axis] for axis in summed]
        steps: list[Any] = [
            iterator_steps(lengths, [each[axis] for axis in summed], self.reduction.num_partials)
            for each in strides
        ]
        self.dy_steps, self.x_steps = steps

    def run(self, dy: Any, x: Any, alpha: Any, gamma: Any) -> tuple[Any, ...]:
        need_dx, *need_sums = self.spec.need
        reduction, count = self.reduction, sum(need_sums)
        dx = cupy.empty(self.spec.shape, x.dtype) if need_dx else None
        partials = cupy.empty(reduction.partials_shape(count), self.acc_dtype)
        # Pass any valid array for one that the kernel does not read or write.
        kernel("gradients")(
            *(dy.reshape(self.shape).transpose(self.along), *self.dy_steps),
            *(x.reshape(self.shape).transpose(self.along), *self.x_steps),
            *(alpha.reshape(1), x if gamma is None else gamma, gamma is not None),
            *(*self.spec.need, *reduction, x if dx is None else dx, partials),
            size=reduction.threads,
        )
        results = cupy.empty((count, reduction.padded_outputs), self.acc_dtype)
        sums = iter(reduce_partials(partials, reduction, results))
        dalpha, dgamma, dbeta = (next(sums) if need else None for need in need_sums)
        if dalpha is not None:
            dalpha = self._total(dalpha)
        return dx, dalpha, dgamma, dbeta

    def _total(self, sums: Any) -> Any:
        """Return the sum of the sums for each parameter, of shape ()."""
        if len(sums) == 1:
            return sums.reshape(())
        total = cupy.empty((), self.acc_dtype)
        reduce_partials_many()(sums, total, axis=0)
        return total
