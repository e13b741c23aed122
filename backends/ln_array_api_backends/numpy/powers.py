"""Power norm with any exponent, for float32 and 16-bit dtypes, by logarithms in float64.

With w = log2(abs(x)) and the logarithm L of the norm, y is sign(x) * 2**(exponent * w - L). It is
at most 1, also where the powers and the norm are out of the range of a dtype. Sums of squares could
overflow or underflow in float64, so they are sums of 2**(2 * exponent * w - shift).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import njit

from .compile import CALLED, INLINE
from .doubles import from_float64, to_float64, zeros_float64
from .elementary import exp2, log2
from .row_passes import largest_magnitudes, write_row
from .simd import (
    absolute,
    broadcast,
    broadcast_like,
    dtype_limits,
    fma,
    lanes,
    ones,
    reduce_add,
    reduce_max,
    scalar_like,
    where_not_zero,
    with_sign_of,
    zero_tail,
    zeros,
)
from .tasks import task_of
from .vector_memory import data_pointer, fence, load_vector

#: Largest exponent for which squared powers of all float32 numbers are in the range of float64.
MAX_UNSHIFTED_EXPONENT = 3.0


@njit(**INLINE)
def powers(x, exponent, neg_shift):
    """Return 2**(exponent * log2(abs(x)) - shift) of a float64 vector, and 0 for 0."""
    return where_not_zero(x, exp2(fma(log2(absolute(x)), exponent, neg_shift)))


@njit(**INLINE)
def sum_of_powers(x, x_offset, n, ones_vec, exponent, neg_shift):
    """Return the sum of `powers` over n elements."""
    low_sum, high_sum = zeros_float64(ones_vec), zeros_float64(ones_vec)
    exponents, shifts = broadcast(exponent), broadcast(neg_shift)
    width = lanes(ones_vec)
    j = 0
    while j < n:
        # Elements beyond the last are 0, and so are powers of these.
        low, high = to_float64(load_vector(x, x_offset + j, min(width, n - j), ones_vec))
        low_sum = low_sum + powers(low, exponents, shifts)
        high_sum = high_sum + powers(high, exponents, shifts)
        j += width
    return reduce_add(low_sum + high_sum)


@njit(**INLINE)
def max_magnitude(x, x_offset, n, ones_vec):
    """Return the largest magnitude of n elements, without NaN, or 1 if all are 0."""
    max_abs = largest_magnitudes(zeros(ones_vec), x, x_offset, n)
    size = scalar_like(reduce_max(max_abs), zeros_float64(ones_vec))
    return size if size > 0 else 1.0


@njit(**INLINE)
def log_of_norm(x, x_offset, n, ones_vec, exponent, epsilon):
    """Return the logarithm of the norm of a row, and the norm."""
    shift = 0.0
    if exponent > MAX_UNSHIFTED_EXPONENT:
        shift = 2 * exponent * math.log2(max_magnitude(x, x_offset, n, ones_vec))
    squares = sum_of_powers(x, x_offset, n, ones_vec, 2 * exponent, -shift)
    if shift == 0:
        squares += epsilon
        return 0.5 * math.log2(squares), math.sqrt(squares)
    log_squares, log_epsilon = math.log2(squares) + shift, math.log2(epsilon)
    if log_squares < log_epsilon:
        log_squares, log_epsilon = log_epsilon, log_squares
    log = 0.5 * (log_squares + math.log2(1 + 2.0 ** (log_epsilon - log_squares)))
    return log, 2.0**log


class Row(NamedTuple):
    """Pointers to x and to dy (or None) from element `offset` on, and the constants."""

    x: Any
    dy: Any
    offset: Any
    constants: Any
    """Of y: exponent, minus the logarithm of the norm, NaN or zero, zero. Of dx: the first two, and
    minus the projection. All are float64, except zero."""
    like: Any
    """A vector of the dtype of the computation."""


@njit(**INLINE)
def y_vector(row, j, count):
    """Return y of a vector from element j on, or of `count` elements.

    For exponents below 1, the sign of 0 is +, as in `roots`.
    """
    exponent, neg_log_norm, nan_or_zero, zero = row.constants
    x = load_vector(row.x, row.offset + j, count, row.like)
    low, high = to_float64(x)
    low, high = powers(low, exponent, neg_log_norm), powers(high, exponent, neg_log_norm)
    return with_sign_of(from_float64(low + nan_or_zero, high + nan_or_zero, x), x + zero)


@njit(**CALLED)
def forward(x, y, norm, exponent, epsilon, non_temporal, start, stop):
    """Normalise rows start to stop."""
    n = x.shape[1]
    x_ptr, y_ptr = data_pointer(x), data_pointer(y)
    ones_vec = ones(norm)
    zero = broadcast_like(0.0 if exponent < 1 else -0.0, ones_vec)
    for row in range(start, stop):
        log, row_norm = log_of_norm(x_ptr, row * n, n, ones_vec, exponent, epsilon)
        norm[row] = scalar_like(row_norm, ones_vec)
        # If the logarithm of the norm is not finite, all of y is NaN, also where x is 0.
        constants = broadcast(exponent), broadcast(-log), broadcast(log - log), zero
        current = Row(x_ptr, None, row * n, constants, ones_vec)
        write_row(y_vector, current, y_ptr, row * n, n, ones_vec, non_temporal)
    if non_temporal:
        fence()


@njit(**INLINE)
def sum_of_products(dy, x, x_offset, n, ones_vec, exponent, neg_log_norm):
    """Return the sum of dy * y over n elements."""
    low_sum, high_sum = zeros_float64(ones_vec), zeros_float64(ones_vec)
    width = lanes(ones_vec)
    j = 0
    while j < n:
        count = min(width, n - j)
        low, high = to_float64(load_vector(x, x_offset + j, count, ones_vec))
        low_dy, high_dy = to_float64(
            zero_tail(load_vector(dy, x_offset + j, count, ones_vec), count)
        )
        low_y = with_sign_of(powers(low, exponent, neg_log_norm), low)
        high_y = with_sign_of(powers(high, exponent, neg_log_norm), high)
        low_sum, high_sum = fma(low_dy, low_y, low_sum), fma(high_dy, high_y, high_sum)
        j += width
    return reduce_add(low_sum + high_sum)


@njit(**INLINE)
def gradient(dy, x, exponent, neg_log_norm, neg_projection):
    """Return dx of a float64 vector. The derivative of a power is exponent * abs(y) / abs(x)."""
    v = powers(x, exponent, neg_log_norm)
    slope = exponent * v / absolute(x)
    return where_not_zero(x, fma(with_sign_of(v, x), neg_projection, dy) * slope)


@njit(**INLINE)
def dx_vector(row, j, count):
    """Return dx of a vector from element j on, or of `count` elements."""
    exponent, neg_log_norm, neg_projection = row.constants
    x = load_vector(row.x, row.offset + j, count, row.like)
    low, high = to_float64(x)
    low_dy, high_dy = to_float64(load_vector(row.dy, row.offset + j, count, row.like))
    low = gradient(low_dy, low, exponent, neg_log_norm, neg_projection)
    high = gradient(high_dy, high, exponent, neg_log_norm, neg_projection)
    return from_float64(low, high, x)


@njit(**CALLED)
def backward(dy, x, norm, dx, exponent, non_temporal, start, stop):
    """Write dx for rows start to stop.

    The logarithm of a norm that is out of range is computed again, without epsilon: an epsilon that
    matters keeps a small norm in range, and it does not matter for powers that overflow.
    """
    n = x.shape[1]
    dy_ptr, x_ptr, dx_ptr = data_pointer(dy), data_pointer(x), data_pointer(dx)
    ones_vec = ones(norm)
    min_normal, _, _ = dtype_limits(ones_vec)
    for row in range(start, stop):
        given = scalar_like(norm[row], zeros_float64(ones_vec))
        log = math.log2(given)
        if given < min_normal or given == math.inf:
            log, _ = log_of_norm(x_ptr, row * n, n, ones_vec, exponent, 0.0)
        exponents, neg_log_norm = broadcast(exponent), broadcast(-log)
        projection = sum_of_products(dy_ptr, x_ptr, row * n, n, ones_vec, exponents, neg_log_norm)
        constants = exponents, neg_log_norm, broadcast(-projection)
        current = Row(x_ptr, dy_ptr, row * n, constants, ones_vec)
        write_row(dx_vector, current, dx_ptr, row * n, n, ones_vec, non_temporal)
    if non_temporal:
        fence()


forward_task = task_of(forward)
backward_task = task_of(backward)
