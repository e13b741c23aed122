"""Power norm of any exponent, for float32 and 16-bit dtypes, by logarithms in float64.

With w = log2(abs(x)), and the logarithm L of the norm, y is sign(x) * 2**(exponent * w - L). It is
at most 1, whatever powers are: these and the norm need not be in the range of a dtype, but their
logarithms are. What float64 does not hold of sums of squares is kept out of these by a shift: they
are sums of 2**(2 * exponent * w - shift).
"""

from __future__ import annotations

import math

from numba import njit

from .access import (
    data_pointer,
    elements_to_alignment,
    fence,
    load,
    load_masked,
    store,
    store_masked,
    store_non_temporal,
)
from .compile import CALLED, INLINE
from .doubles import from_float64, to_float64, zeros_float64
from .elementary import exp2, log2
from .simd import (
    absolute,
    broadcast,
    dtype_limits,
    fma,
    fmax,
    lanes,
    ones,
    reduce_add,
    reduce_max,
    scalar_like,
    where_not_zero,
    with_sign_of,
    zero_tail,
)
from .tasks import arguments

#: The exponent up to which squares of powers of all numbers of float32 are in the range of float64.
IN_RANGE = 3.0


@njit(**INLINE)
def powers(x, exponent, minus_shift):
    """2**(exponent * log2(abs(x)) - shift) of a vector of float64, and 0 of 0."""
    return where_not_zero(x, exp2(fma(log2(absolute(x)), exponent, minus_shift)))


@njit(**INLINE)
def sum_of_powers(x, o, n, one, exponent, minus_shift):
    """The sum of `powers` of n elements from o on."""
    low_sum, high_sum = zeros_float64(one), zeros_float64(one)
    exponents, shifts = broadcast(exponent), broadcast(minus_shift)
    width = lanes(one)
    j = 0
    while j < n:
        # Elements beyond the last are 0, and so are powers of these.
        low, high = to_float64(load_masked(x, o + j, min(width, n - j), one))
        low_sum = low_sum + powers(low, exponents, shifts)
        high_sum = high_sum + powers(high, exponents, shifts)
        j += width
    return reduce_add(low_sum + high_sum)


@njit(**INLINE)
def largest_magnitude(x, o, n, one):
    """That of n elements from o on, or 1 if all are 0; NaN is passed over."""
    top = one - one
    width = lanes(one)
    j = 0
    while j < n:
        top = fmax(top, absolute(load_masked(x, o + j, min(width, n - j), one)))
        j += width
    size = scalar_like(reduce_max(top), zeros_float64(one))
    return size if size > 0 else 1.0


@njit(**INLINE)
def log_of_norm(x, o, n, one, exponent, epsilon):
    """The logarithm of the norm of a row, and the norm."""
    shift = 0.0
    if exponent > IN_RANGE:
        shift = 2 * exponent * math.log2(largest_magnitude(x, o, n, one))
    squares = sum_of_powers(x, o, n, one, 2 * exponent, -shift)
    if shift == 0:
        squares += epsilon
        return 0.5 * math.log2(squares), math.sqrt(squares)
    of_squares, of_epsilon = math.log2(squares) + shift, math.log2(epsilon)
    if of_squares < of_epsilon:
        of_squares, of_epsilon = of_epsilon, of_squares
    log = 0.5 * (of_squares + math.log2(1 + 2.0 ** (of_epsilon - of_squares)))
    return log, 2.0**log


@njit(**INLINE)
def normalised(x, row):
    """Y of a vector of elements. The sign of 0 is + below the first power, as roots have it."""
    exponent, minus_log, spoiled, zero = row
    low, high = to_float64(x)
    low, high = powers(low, exponent, minus_log), powers(high, exponent, minus_log)
    return with_sign_of(from_float64(low + spoiled, high + spoiled, x), x + zero)


@njit(**INLINE)
def write(x, y, o, n, one, row, streams):
    """Y for n elements from o on."""
    width = lanes(one)
    j = 0
    if streams:
        j = min(elements_to_alignment(y, o, one), n)
        if j:
            store_masked(y, o, normalised(load_masked(x, o, j, one), row), j)
        while j + width <= n:
            store_non_temporal(y, o + j, normalised(load(x, o + j, one), row))
            j += width
    else:
        while j + width <= n:
            store(y, o + j, normalised(load(x, o + j, one), row))
            j += width
    if j < n:
        store_masked(y, o + j, normalised(load_masked(x, o + j, n - j, one), row), n - j)


@njit(**CALLED)
def forward(x, y, norm, exponent, epsilon, streams, start, stop):
    """Rows start to stop."""
    n = x.shape[1]
    x_, y_ = data_pointer(x), data_pointer(y)
    one = ones(norm)
    zero = broadcast(scalar_like(0.0 if exponent < 1 else -0.0, one))
    for row in range(start, stop):
        log, of_row = log_of_norm(x_, row * n, n, one, exponent, epsilon)
        norm[row] = scalar_like(of_row, one)
        # Zeros of a row that has no norm are NaN too.
        this = broadcast(exponent), broadcast(-log), broadcast(log - log), zero
        write(x_, y_, row * n, n, one, this, streams)
    if streams:
        fence()


@njit(**INLINE)
def sum_of_products(dy, x, o, n, one, exponent, minus_log):
    """The sum of dy * y over n elements from o on."""
    low_sum, high_sum = zeros_float64(one), zeros_float64(one)
    width = lanes(one)
    j = 0
    while j < n:
        count = min(width, n - j)
        low, high = to_float64(load_masked(x, o + j, count, one))
        low_dy, high_dy = to_float64(zero_tail(load_masked(dy, o + j, count, one), count))
        low_y = with_sign_of(powers(low, exponent, minus_log), low)
        high_y = with_sign_of(powers(high, exponent, minus_log), high)
        low_sum, high_sum = fma(low_dy, low_y, low_sum), fma(high_dy, high_y, high_sum)
        j += width
    return reduce_add(low_sum + high_sum)


@njit(**INLINE)
def gradient(dy, x, exponent, minus_log, minus_projection):
    """Dx of a vector of float64. The derivative of a power is exponent * abs(y) / abs(x)."""
    v = powers(x, exponent, minus_log)
    slope = exponent * v / absolute(x)
    return where_not_zero(x, fma(with_sign_of(v, x), minus_projection, dy) * slope)


@njit(**INLINE)
def gradients(dy, x, row):
    """Dx of a vector of elements."""
    low, high = to_float64(x)
    low_dy, high_dy = to_float64(dy)
    low = gradient(low_dy, low, row[0], row[1], row[2])
    high = gradient(high_dy, high, row[0], row[1], row[2])
    return from_float64(low, high, x)


@njit(**INLINE)
def differentiate(dy, x, dx, o, n, one, row, streams):
    """Dx for n elements from o on."""
    width = lanes(one)
    j = 0
    if streams:
        j = min(elements_to_alignment(dx, o, one), n)
        if j:
            values = gradients(load_masked(dy, o, j, one), load_masked(x, o, j, one), row)
            store_masked(dx, o, values, j)
        while j + width <= n:
            store_non_temporal(dx, o + j, gradients(load(dy, o + j, one), load(x, o + j, one), row))
            j += width
    else:
        while j + width <= n:
            store(dx, o + j, gradients(load(dy, o + j, one), load(x, o + j, one), row))
            j += width
    if j < n:
        values = gradients(
            load_masked(dy, o + j, n - j, one), load_masked(x, o + j, n - j, one), row
        )
        store_masked(dx, o + j, values, n - j)


@njit(**CALLED)
def backward(dy, x, norm, dx, exponent, streams, start, stop):
    """Rows start to stop.

    A norm that is out of range is that of powers without epsilon: a larger one would be in range,
    unless powers are so large that epsilon does not matter.
    """
    n = x.shape[1]
    dy_, x_, dx_ = data_pointer(dy), data_pointer(x), data_pointer(dx)
    one = ones(norm)
    smallest, _, _ = dtype_limits(one)
    for row in range(start, stop):
        given = scalar_like(norm[row], zeros_float64(one))
        log = math.log2(given)
        if given < smallest or given == math.inf:
            log, _ = log_of_norm(x_, row * n, n, one, exponent, 0.0)
        exponents, minus_log = broadcast(exponent), broadcast(-log)
        projection = sum_of_products(dy_, x_, row * n, n, one, exponents, minus_log)
        this = exponents, minus_log, broadcast(-projection)
        differentiate(dy_, x_, dx_, row * n, n, one, this, streams)
    if streams:
        fence()


def forward_task(kinds):
    """`forward` as a task."""

    def task(words, part, num_parts):
        forward(*arguments(words, kinds, part, num_parts))

    return task


def backward_task(kinds):
    """`backward` as a task."""

    def task(words, part, num_parts):
        backward(*arguments(words, kinds, part, num_parts))

    return task
