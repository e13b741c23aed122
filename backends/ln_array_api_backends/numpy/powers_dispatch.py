"""From a spec to compiled kernels for power norm, by its exponent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ln_array_api.backend import FamilySpec, RowsSpec

from . import powers, roots, rows_dispatch
from .call_context import CallContext
from .config import ITEMSIZE, accumulation_dtype, should_use_non_temporal
from .tasks import boolean, real

#: Largest exponent for which powers have 10 correct digits; it multiplies errors of logarithms.
LARGEST_EXPONENT = 256.0


def forward(spec: FamilySpec) -> Callable[..., Any] | None:
    """Return the kernel that computes y and the norms (M, 1) of x (M, N)."""
    if spec.exponent == 1:
        return _first_forward(spec)
    context, m = _context(spec), spec.shape[0]
    places = context.x, context.x, context.acc(m)
    epsilon, non_temporal = real(spec.epsilon), boolean(context.non_temporal)
    if spec.exponent == 0.5:
        run = context.bind(roots.forward_task, m, *places, epsilon, non_temporal)
    elif _has_logarithms(spec):
        exponent = real(spec.exponent)
        run = context.bind(powers.forward_task, m, *places, exponent, epsilon, non_temporal)
    else:
        return None

    def call(x: Any) -> Any:
        y, norm = context.empty(x.dtype), context.new(m)
        run(x, y, norm)
        return y, norm.reshape(m, 1)

    return call


def backward(spec: FamilySpec) -> Callable[..., Any] | None:
    """Return the kernel that computes dx of dy and x (M, N) and the norms (M, 1)."""
    if spec.exponent == 1:
        return _first_backward(spec)
    context, m = _context(spec), spec.shape[0]
    places = context.dy, context.x, context.acc(m), context.x
    non_temporal = boolean(context.non_temporal)
    if spec.exponent == 0.5:
        run = context.bind(roots.backward_task, m, *places, non_temporal)
    elif _has_logarithms(spec):
        exponent = real(spec.exponent)
        run = context.bind(powers.backward_task, m, *places, exponent, non_temporal)
    else:
        return None

    def call(dy: Any, x: Any, norm: Any) -> Any:
        dx = context.empty(x.dtype)
        run(dy, x, norm, dx)
        return dx

    return call


def _context(spec: FamilySpec) -> CallContext:
    m, n = spec.shape
    non_temporal = should_use_non_temporal(m, m * n * ITEMSIZE[spec.dtype])
    return CallContext(spec, (m, n), 0, non_temporal=non_temporal)


def _has_logarithms(spec: FamilySpec) -> bool:
    """Return whether float64 logarithms are accurate enough for the exponent and the dtype."""
    return spec.dtype != "float64" and spec.exponent <= LARGEST_EXPONENT


def _rows(spec: FamilySpec, **details: Any) -> tuple[RowsSpec, Any, float]:
    """Return the spec of RMS norm, gamma, and the square root of the row length.

    RMS norm is normalisation by the Euclidean norm, times that root. One number gamma for all
    elements divides by it.
    """
    (m, n), dtype = spec.shape, accumulation_dtype(spec.dtype)
    x = spec.library, spec.device, (m, n), spec.dtype
    rows = RowsSpec(*x, gamma=dtype, beta=None, center=False, repeat=n, **details)
    root = math.sqrt(n)
    return rows, np.full(1, 1 / root, dtype), root


def _first_forward(spec: FamilySpec) -> Callable[..., Any]:
    rows, gamma, root = _rows(spec, epsilon=spec.epsilon / spec.shape[1])
    run = rows_dispatch.prepare("rows_forward", rows)

    def call(x: Any) -> Any:
        y, _, rstd = run(x, gamma, None)
        with np.errstate(all="ignore"):
            return y, root / rstd

    return call


def _first_backward(spec: FamilySpec) -> Callable[..., Any]:
    rows, gamma, root = _rows(spec, dy=spec.dy, need=(True, False, False))
    run = rows_dispatch.prepare("rows_backward", rows)

    def call(dy: Any, x: Any, norm: Any) -> Any:
        with np.errstate(all="ignore"):
            return run(dy, x, None, root / norm, gamma)[0]

    return call
