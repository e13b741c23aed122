"""Hyperbolic tangents of elements, and their gradients: dynamic tanh's maths."""

from __future__ import annotations

import numpy as np

from .._arrays import Array, library_of, native_dtype, to_acc_dtype
from .._layout import broadcast_like
from .reductions import sum_over


def tanh_forward(
    x: Array, alpha: Array, gamma: Array | None, beta: Array | None, *, shape: tuple[int, ...]
) -> Array:
    """Return tanh(alpha * x) * gamma + beta.

    Parameters
    ----------
    x
        Of any shape.
    alpha
        Of shape ().
    gamma, beta
        Parameters, or None.
    shape
        The shape in which parameters broadcast with x.
    """
    xp, x_acc = library_of(x).xp, to_acc_dtype(library_of(x).xp, x)
    with np.errstate(all="ignore"):
        y = xp.tanh(x_acc * broadcast_like(alpha, x_acc, ()))
        if gamma is not None:
            y = y * broadcast_like(gamma, x_acc, shape)
        if beta is not None:
            y = y + broadcast_like(beta, x_acc, shape)
        return xp.astype(y, native_dtype(x), copy=False)


def tanh_backward(
    dy: Array,
    x: Array,
    alpha: Array,
    gamma: Array | None,
    *,
    shape: tuple[int, ...],
    parameter_axes: tuple[int, ...],
    need: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Return dx, dalpha, dgamma and dbeta, the last three in the accumulation dtype.

    Parameters
    ----------
    dy, x
        Of any shape.
    alpha, gamma, shape
        As in the forward pass.
    parameter_axes
        The axes of x that parameters have.
    need
        Which of the four are wanted.
    """
    xp, x_acc = library_of(x).xp, to_acc_dtype(library_of(x).xp, x)
    needs_dx, needs_dalpha, needs_dgamma, needs_dbeta = need
    every = tuple(range(x.ndim))
    reduced_axes = tuple(each for each in every if each not in parameter_axes)
    parameter = tuple(x.shape[axis] for axis in parameter_axes)
    steepness = broadcast_like(alpha, x_acc, ())
    scale = broadcast_like(gamma, x_acc, shape)
    dx = dalpha = dgamma = dbeta = None
    with np.errstate(all="ignore"):
        dy, inner = xp.astype(dy, x_acc.dtype, copy=False), x_acc * steepness
        if needs_dbeta:
            dbeta = xp.reshape(sum_over(xp, dy, reduced_axes), parameter)
        if needs_dgamma:
            dgamma = xp.reshape(sum_over(xp, dy * xp.tanh(inner), reduced_axes), parameter)
        if needs_dx or needs_dalpha:
            g = dy if scale is None else dy * scale
            small = xp.exp(-2 * xp.abs(inner))
            slope = 4 * small / (1 + small) ** 2
            if needs_dx:
                dx = xp.astype(g * (slope * steepness), native_dtype(x), copy=False)
            if needs_dalpha:
                dalpha = xp.reshape(sum_over(xp, g * (slope * x_acc), every), ())
    return dx, dalpha, dgamma, dbeta
