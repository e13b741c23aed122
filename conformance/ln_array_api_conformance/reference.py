"""What is right, computed independently: definitions in wide arithmetic, gradients by complex step.

Nothing here repeats the library's formulas. The forward pass is the definition, in float64 for
inputs of up to 32 bits and in mpmath for float64. Gradients come from the forward pass alone: for
a function that is analytic, the imaginary part of f(x + ih) / h is its derivative, exact but for
rounding (Squire and Trapp, "Using complex variables to estimate derivatives of real functions",
SIAM Review 40, 1998), because nothing is subtracted.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import mpmath
import numpy as np

from . import tolerances

#: Decimal digits of mpmath arithmetic; float64 inputs with a mean of 1e6 sigma need 16 + 2 * 6.
DIGITS = 40

#: Elements from which on mpmath takes too long.
MANY = 2048

_sqrt_mp = np.frompyfunc(lambda value: mpmath.sqrt(value), 1, 1)
_exp_mp = np.frompyfunc(lambda value: mpmath.exp(value), 1, 1)
_tanh_mp = np.frompyfunc(lambda value: mpmath.tanh(value), 1, 1)
_wide_mp = np.frompyfunc(lambda value: mpmath.mpf(float(value)), 1, 1)
_complex_mp = np.frompyfunc(lambda a, b: mpmath.mpc(a, b) if b else a, 2, 1)
_real_mp = np.frompyfunc(lambda value: value.real, 1, 1)
_imaginary_mp = np.frompyfunc(lambda value: value.imag, 1, 1)


class Forward(Protocol):
    """A definition: rows (..., N) and parameters (N,) in, (y, mean, rstd) out."""

    def __call__(self, x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]: ...


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """The definition of layer norm, of rows less their first element, which y does not depend on.

    So the mean of a constant row is exact in 80 bits as well.
    """
    n, first = x.shape[-1], real(x[..., :1])
    deviation = x - first
    mean = np.sum(deviation, axis=-1, keepdims=True) / n
    deviation = deviation - mean
    mean = first + mean
    variance = np.sum(deviation * deviation, axis=-1, keepdims=True) / n
    rstd = 1 / square_root(variance + epsilon)
    return affine(deviation * rstd, gamma, beta), mean, rstd


def rms_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """The definition of RMS norm."""
    rstd = 1 / square_root(np.sum(x * x, axis=-1, keepdims=True) / x.shape[-1] + epsilon)
    return affine(x * rstd, gamma, beta), None, rstd


def affine(x_hat: Any, gamma: Any, beta: Any) -> Any:
    """Scaled by gamma and shifted by beta, where they are."""
    y = x_hat if gamma is None else x_hat * gamma
    return y if beta is None else y + beta


def square_root(values: Any) -> Any:
    """The root in the arithmetic of its argument."""
    return _sqrt_mp(values) if values.dtype == object else np.sqrt(values)


def exponential(values: Any) -> Any:
    """The exponential in the arithmetic of its argument."""
    return _exp_mp(values) if values.dtype == object else np.exp(values)


def tanh(values: Any) -> Any:
    """The hyperbolic tangent in the arithmetic of its argument."""
    return _tanh_mp(values) if values.dtype == object else np.tanh(values)


def to_reference(values: np.ndarray | None, partner_size: int = 0) -> Any:
    """Convert values to the arithmetic of the reference.

    Up to 32 bits become float64, and float64 becomes mpmath. But float64 arrays of more than `MANY`
    elements, or that are used with one of so many (`partner_size`), become 80-bit numbers where the
    platform has them. These are enough for a mean of 100 sigma, and mpmath would take minutes.
    """
    if values is None:
        return None
    if values.dtype == np.float64:
        if max(values.size, partner_size) > MANY and np.finfo(np.longdouble).nmant >= 63:
            return values.astype(np.longdouble)
        mpmath.mp.dps = DIGITS
        return np.asarray(_wide_mp(values), dtype=object)  # of no axes, it would be a number
    return values.astype(np.float64)


class Expected(NamedTuple):
    """What is right for rows, and how large the terms are that it is the sum of."""

    y: Any
    mean: Any
    rstd: Any
    scale: Any
    """The largest of abs(gamma * x_hat) and abs(beta) in each row."""


def forward(definition: Forward, x: np.ndarray, gamma: Any, beta: Any, epsilon: float) -> Expected:
    """Y and the statistics of rows (M, N)."""
    gamma, beta = to_reference(gamma, x.size), to_reference(beta, x.size)
    y, mean, rstd = definition(to_reference(x), gamma, beta, epsilon)
    product = y if beta is None else y - beta
    scale = np.max(abs(product), axis=-1, keepdims=True)
    if beta is not None:
        scale = np.maximum(scale, np.max(abs(beta)))
    return Expected(y, mean, rstd, scale)


class Gradients(NamedTuple):
    """Gradients of rows, with the size of what they are the sum of."""

    dx: Any
    """Of shape (M, len(columns))."""
    dx_scale: Any
    dgamma: Any
    dgamma_scale: Any
    dbeta: Any
    dbeta_scale: Any


def gradients(
    definition: Forward,
    dy: np.ndarray,
    x: np.ndarray,
    gamma: Any,
    epsilon: float,
    columns: np.ndarray,
) -> Gradients:
    """Gradients of sum(dy * y) with respect to some columns of x, to gamma and to beta."""
    dy, x = to_reference(dy), to_reference(x)
    ones = x[0] * 0 + 1
    scale = ones if gamma is None else to_reference(gamma, x.size)
    # Far below the rounding of x, far above the smallest number.
    h = (np.max(abs(x)) or 1.0) * 2.0**-120
    dx = np.empty((x.shape[0], len(columns)), dtype=x.dtype)
    for index, column in enumerate(columns):
        step = np.zeros(x.shape[1])
        step[column] = 1.0
        y, _, _ = definition(_complex(x, h * step), scale, None, epsilon)
        dx[:, index] = np.sum(dy * imaginary(y), axis=-1) / h
    unit = 2.0**-120
    y, mean, rstd = definition(x, _complex(scale, unit * ones), None, epsilon)
    x_hat = imaginary(y) / unit
    by_gamma = dy * x_hat
    # Where a mean was subtracted, x_hat cannot be righter than its root mean square, 1, allows.
    min_x_hat = 0.0 if mean is None else tolerances.MIN_X_HAT
    g = dy * scale
    projection = abs(np.sum(g * x_hat, axis=-1, keepdims=True)) / x.shape[1]
    terms = np.maximum(
        np.max(abs(g), axis=-1, keepdims=True),
        np.max(abs(x_hat), axis=-1, keepdims=True) * projection,
    )
    return Gradients(
        dx,
        rstd * terms,
        np.sum(by_gamma, axis=0),
        np.sum(abs(dy) * np.maximum(abs(x_hat), min_x_hat), axis=0),
        np.sum(dy, axis=0),
        np.sum(abs(dy), axis=0),
    )


def _complex(real: Any, imaginary: Any) -> Any:
    """Complex where the imaginary part is not 0, and in mpmath real elsewhere, which is faster."""
    return _complex_mp(real, imaginary) if real.dtype == object else real + 1j * imaginary


def imaginary(values: Any) -> Any:
    """The imaginary parts, in the arithmetic of the argument."""
    return _imaginary_mp(values) if values.dtype == object else values.imag


def real(values: Any) -> Any:
    """The real parts, in the arithmetic of the argument."""
    return _real_mp(values) if values.dtype == object else values.real
