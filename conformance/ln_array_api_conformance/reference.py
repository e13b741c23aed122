"""Results and gradients, computed independently: wide arithmetic, derivatives by complex step.

Nothing here repeats the library's formulas. A definition says what an operation computes, in the
arithmetic of its inputs: float64 for inputs of up to 32 bits, and mpmath for float64. Gradients
follow from the definition. For an analytic function, the imaginary part of f(x + ih) / h is its
derivative, exact except for rounding (Squire and Trapp, "Using complex variables to estimate
derivatives of real functions", SIAM Review 40, 1998), because nothing is subtracted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mpmath
import numpy as np

from . import tolerances

#: Inputs or results by name, in the arithmetic of the reference; None for absent inputs.
RefValues = dict[str, Any]
#: Takes inputs and options, and returns y and the statistics, by name.
Definition = Callable[[RefValues, dict[str, Any]], RefValues]

#: Decimal digits of mpmath arithmetic; float64 inputs with a mean of 1e6 sigma need 16 + 2 * 6.
DIGITS = 40

#: Elements from which on mpmath takes too long.
MANY = 2048

#: Far below the rounding of an input of this magnitude, far above the smallest number.
STEP = 2.0**-120

#: The values of absent parameters that change nothing.
NEUTRAL = {"gamma": 1, "beta": 0}

_sqrt_mp = np.frompyfunc(lambda value: mpmath.sqrt(value), 1, 1)
_exp_mp = np.frompyfunc(lambda value: mpmath.exp(value), 1, 1)
_tanh_mp = np.frompyfunc(lambda value: mpmath.tanh(value), 1, 1)
_wide_mp = np.frompyfunc(lambda value: mpmath.mpf(float(value)), 1, 1)
_complex_mp = np.frompyfunc(lambda a, b: mpmath.mpc(a, b) if b else a, 2, 1)
_real_mp = np.frompyfunc(lambda value: value.real, 1, 1)
_imaginary_mp = np.frompyfunc(lambda value: value.imag, 1, 1)


def square_root(values: Any) -> Any:
    """Return the square root in the arithmetic of its argument."""
    return _sqrt_mp(values) if values.dtype == object else np.sqrt(values)


def exponential(values: Any) -> Any:
    """Return the exponential in the arithmetic of its argument."""
    return _exp_mp(values) if values.dtype == object else np.exp(values)


def tanh(values: Any) -> Any:
    """Return the hyperbolic tangent in the arithmetic of its argument."""
    return _tanh_mp(values) if values.dtype == object else np.tanh(values)


def imaginary(values: Any) -> Any:
    """Return the imaginary parts in the arithmetic of the argument."""
    return _imaginary_mp(values) if values.dtype == object else values.imag


def real(values: Any) -> Any:
    """Return the real parts in the arithmetic of the argument."""
    return _real_mp(values) if values.dtype == object else values.real


def _complex(real: Any, imaginary: Any) -> Any:
    """Make complex numbers, except in mpmath where the imaginary part is 0, which is faster."""
    return _complex_mp(real, imaginary) if real.dtype == object else real + 1j * imaginary


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


def all_to_reference(np_inputs: RefValues) -> RefValues:
    """Convert inputs of one call to the arithmetic of the reference."""
    most = max(each.size for each in np_inputs.values() if each is not None)
    return {name: to_reference(each, most) for name, each in np_inputs.items()}


def axes_of(axis: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return the axes that `axis` names, in ascending order and not negative."""
    return tuple(sorted(each % ndim for each in ([axis] if isinstance(axis, int) else axis)))


def axes_without(kept: int, ndim: int) -> tuple[int, ...]:
    """Return all axes except one."""
    return tuple(axis for axis in range(ndim) if axis != kept % ndim)


def broadcast_axes(values: Any, x: Any, axis: int | tuple[int, ...]) -> Any:
    """Reshape values of some axes of x so that they broadcast with x; None is None.

    Values of the rank of x broadcast with it already.
    """
    if values is None or values.ndim == x.ndim:
        return values
    axes = axes_of(axis, x.ndim)
    return values.reshape([n if each in axes else 1 for each, n in enumerate(x.shape)])


def inside(values: Any, options: dict[str, Any]) -> Any:
    """Return values with 0 where the mask `where` of a call, if it has one, is false."""
    where = options.get("where")
    return values if where is None else np.where(np.broadcast_to(where, values.shape), values, 0)


def affine(
    x_hat: Any, inputs: RefValues, axis: int | tuple[int, ...], options: dict[str, Any]
) -> Any:
    """Multiply by gamma and add beta where they are given.

    They have the shape of some axes, or the rank of x. Options of a call: `where`, `gamma_offset`.
    """
    gamma, beta = (broadcast_axes(inputs.get(name), x_hat, axis) for name in ("gamma", "beta"))
    y = x_hat if gamma is None else x_hat * (gamma + options.get("gamma_offset", 0))
    return inside(y if beta is None else y + beta, options)


def standardise(
    x: Any, axis: int | tuple[int, ...], epsilon: float, where: Any = None
) -> tuple[Any, Any, Any]:
    """Return x of mean 0 and variance 1 over some axes, and mean and rstd, which keep the axes.

    The first element is subtracted first. So the mean of constants is exact in 80 bits as well.
    Elements where a mask is false do not count; statistics of no elements are 0.
    """
    axes = axes_of(axis, x.ndim)
    last = tuple(range(-len(axes), 0))
    moved = np.moveaxis(x, axes, last)
    n = int(np.prod([x.shape[each] for each in axes]))
    rows = moved.reshape(*moved.shape[: -len(axes)], n)
    mask = np.ones(rows.shape, bool)
    if where is not None:
        mask = np.moveaxis(np.broadcast_to(where, x.shape), axes, last).reshape(rows.shape)
    count = np.maximum(np.sum(mask, axis=-1, keepdims=True), 1) if n else n
    place = np.argmax(mask, axis=-1)[..., None] if n else np.zeros((*rows.shape[:-1], 0), int)
    first = real(np.take_along_axis(rows, place, -1))
    deviation = np.where(mask, rows - first, 0)
    mean = np.sum(deviation, axis=-1, keepdims=True) / count
    deviation = np.where(mask, deviation - mean, 0)
    variance = np.sum(deviation * deviation, axis=-1, keepdims=True) / count
    rstd = 1 / square_root(variance + epsilon)
    x_hat = np.moveaxis((deviation * rstd).reshape(moved.shape), last, axes)
    statistics = (
        np.where(np.any(mask, -1, keepdims=True), each, 0) for each in (first + mean, rstd)
    )
    mean, rstd = (np.expand_dims(each[..., 0], axes) for each in statistics)
    return x_hat, mean, rstd


class Gradient(NamedTuple):
    """The gradient of an input, at some elements of it."""

    flat_indices: np.ndarray
    """Flat indices, ascending."""
    values: np.ndarray
    scale: np.ndarray
    """At all elements, of the input's shape: the sum of the magnitudes of the terms."""


def gradient(
    define_y: Callable[[RefValues], Any],
    dy: np.ndarray,
    np_inputs: RefValues,
    name: str,
    *,
    flat_indices: np.ndarray | None = None,
    scaled_everywhere: bool = True,
) -> Gradient:
    """Return the gradient of sum(dy * y) with respect to an input, at some elements, or at all.

    Unless it is `scaled_everywhere`, the scale is computed for these elements only; all other
    elements get the largest of theirs.
    """
    size, shape = np_inputs[name].size, np_inputs[name].shape
    flat_indices = np.arange(size) if flat_indices is None else flat_indices
    wide_dy, exact, magnitudes = to_reference(dy), [], []
    for column in _derivatives(define_y, all_to_reference(np_inputs), name, flat_indices):
        terms = wide_dy * column
        exact.append(np.sum(terms))
        magnitudes.append(float(np.sum(abs(terms))))
    if scaled_everywhere:
        narrow = {key: None if a is None else a.astype(np.float64) for key, a in np_inputs.items()}
        dy64 = dy.astype(np.float64)
        columns = _derivatives(define_y, narrow, name, np.arange(size))
        scale = np.asarray([np.sum(abs(dy64 * column)) for column in columns], np.float64)
    else:
        scale = np.full(size, max(magnitudes))
        scale[flat_indices] = magnitudes
    return Gradient(flat_indices, np.asarray(exact), scale.reshape(shape))


def _derivatives(
    define_y: Callable[[RefValues], Any], inputs: RefValues, name: str, flat_indices: np.ndarray
) -> Iterator[Any]:
    """Yield the derivatives of y with respect to single elements of an input."""
    values = inputs[name]
    h = (np.max(abs(values)) or 1.0) * STEP
    unit = mpmath.mpc(0, 1) if values.dtype == object else 1j
    for index in flat_indices:
        # mpmath numbers that the step does not reach stay real, which is faster.
        moved = np.array(values if values.dtype == object else values + 0j)
        moved.reshape(-1)[index] += unit * h
        yield imaginary(define_y({**inputs, name: moved})) / h


def largest_terms(
    define: Callable[[RefValues], RefValues],
    dy: np.ndarray,
    np_inputs: RefValues,
    options: dict[str, Any],
) -> Any:
    """Return the largest of the terms of dx for each row, of x of any axes, in float64.

    As in `row_gradients`, but for parameters of the rank of x, an offset of gamma, and a mask.
    """
    narrow = {key: None if a is None else a.astype(np.float64) for key, a in np_inputs.items()}
    results = define({**narrow, **dict.fromkeys(name for name in narrow if name in NEUTRAL)})
    x_hat, rstd, axis = results["y"], results["rstd"], options.get("axis", -1)
    axes = axes_of(axis, x_hat.ndim)
    gamma = broadcast_axes(narrow["gamma"], x_hat, axis) + options.get("gamma_offset", 0)
    g = inside(dy.astype(np.float64) * gamma, options)
    count = np.sum(inside(np.ones_like(x_hat), options), axis=axes, keepdims=True)
    projection = abs(np.sum(g * x_hat, axis=axes, keepdims=True)) / np.maximum(count, 1)
    largest = (np.max(abs(each), axis=axes, keepdims=True) for each in (g, x_hat))
    of_g, of_x_hat = largest
    return np.broadcast_to(rstd * np.maximum(of_g, of_x_hat * projection), x_hat.shape)


class RowGradient(NamedTuple):
    """A gradient of rows, and how large the terms are that it is the sum of."""

    values: Any
    """Of x: of shape (M, len(columns)). Of a parameter: (N,)."""
    scale: Any


def row_gradients(
    define: Callable[[RefValues], RefValues],
    dy: np.ndarray,
    np_inputs: RefValues,
    columns: np.ndarray,
) -> dict[str, RowGradient]:
    """Return the gradients of sum(dy * y) by the names of the inputs, of x in some columns.

    x has shape (M, N), and each row of it is normalised by itself: a column of all rows is moved at
    once. The other inputs have shape (N,), and each element of them acts on one column of y.
    """
    dy, inputs = to_reference(dy), all_to_reference(np_inputs)
    x, parameters = inputs["x"], {name: inputs[name] for name in inputs if name != "x"}
    ones = x[0] * 0 + 1
    values = {
        name: ones * NEUTRAL[name] if each is None else each for name, each in parameters.items()
    }
    absent = dict.fromkeys(name for name in parameters if name in NEUTRAL)
    h = (np.max(abs(x)) or 1.0) * STEP
    dx = np.empty((x.shape[0], len(columns)), dtype=x.dtype)
    for index, column in enumerate(columns):
        step = np.zeros(x.shape[1])
        step[column] = 1.0
        y = define({**inputs, "beta": None, "x": _complex(x, h * step)})["y"]
        dx[:, index] = np.sum(dy * imaginary(y), axis=-1) / h
    results = define({**inputs, **absent})
    x_hat, g = results["y"], dy * values.get("gamma", ones)
    # x_hat is x times rstd, whose mean square is 1, or x / norm, whose sum of squares is 1.
    slope, n = (1 / results["norm"], 1) if "norm" in results else (results["rstd"], x.shape[1])
    projection = abs(np.sum(g * x_hat, axis=-1, keepdims=True)) / n
    terms = np.maximum(
        np.max(abs(g), axis=-1, keepdims=True),
        np.max(abs(x_hat), axis=-1, keepdims=True) * projection,
    )
    gradients = {"x": RowGradient(dx, slope * terms)}
    # Where a mean was subtracted, x_hat cannot be righter than its root mean square, 1, allows.
    least = tolerances.MIN_X_HAT if "mean" in results else 0.0
    for name, each in values.items():
        y = define({**inputs, **absent, name: _complex(each, STEP * ones)})["y"]
        by_parameter = imaginary(y) / STEP
        gradients[name] = RowGradient(
            np.sum(dy * by_parameter, axis=0),
            np.sum(abs(dy) * np.maximum(abs(by_parameter), least), axis=0),
        )
    return gradients
