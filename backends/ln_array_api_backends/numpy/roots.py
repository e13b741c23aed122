"""Power norm by signed roots, which is that of its default exponent, for every dtype.

The squares of roots are magnitudes, so the norm is sqrt(sum(abs(x)) + epsilon): the first sweep of
a row takes no root. Sums are of float64, and of float64 with what their rounding loses. What is one
number of each row is a lane of a vector, of as many rows as the first cache holds.
"""

from __future__ import annotations

import math

from numba import njit

from .access import (
    data_pointer,
    elements_to_alignment,
    fence,
    load,
    load_broadcast,
    load_masked,
    prefetch,
    stack_alloc,
    store,
    store_masked,
    store_non_temporal,
)
from .compile import CALLED, INLINE
from .doubles import accumulate, from_float64, sum_in_float64, zeros_float64
from .forward import AT_ONCE_BYTES, LANES, PREFETCHED
from .simd import (
    absolute,
    all_at_most,
    at_least,
    at_most,
    broadcast,
    dtype_limits,
    first_lane,
    fma,
    lanes,
    negative,
    ones,
    reduce_add,
    reduce_add_rows,
    scalar_like,
    square_root,
    where_not_zero,
    with_sign_of,
    zero_tail,
    zeros,
)
from .sweeps import AHEAD
from .tasks import arguments

#: What brings a sum of float64 back into its range, and the root of that.
SMALL, ROOT_OF_SMALL = 2.0**-128, 2.0**-64
#: Numbers in a vector of float64 for each of as many rows as it has lanes.
SUMS = 64


@njit(**INLINE)
def sum_of_magnitudes(x, o, n, one, scale, ahead):
    """The sum of the magnitudes of n elements from o on, times scale unless that is None.

    One in each lane of float64, which are to be added up.
    """
    sum_, rest = zeros_float64(one), zeros_float64(one)
    width = lanes(one)
    j = 0
    while j + width <= n:
        if ahead:
            prefetch(x, o + j + ahead)
        sum_, rest = accumulate(sum_, rest, scaled(absolute(load(x, o + j, one)), scale))
        j += width
    if j < n:
        values = absolute(load_masked(x, o + j, n - j, one))
        sum_, rest = accumulate(sum_, rest, scaled(values, scale))
    return sum_in_float64(sum_, rest, one)


@njit(**INLINE)
def scaled(values, scale):
    """Values times a scale, unless that is None."""
    return values if scale is None else values * scale


@njit(**INLINE)
def root_beyond(x, o, n, one, epsilon):
    """The norm of a row, the sum of whose magnitudes is beyond float64."""
    small = broadcast(scalar_like(SMALL, one))
    of_small = reduce_add(sum_of_magnitudes(x, o, n, one, small, 0))
    return math.sqrt(of_small + epsilon * SMALL) / ROOT_OF_SMALL


@njit(**INLINE)
def signed_roots(x, inverse):
    """The root of each magnitude times the inverse of a norm, with the sign; that of 0 is +."""
    return with_sign_of(square_root(absolute(x)) * inverse, x + zeros(x))


@njit(**INLINE)
def write(x, y, o, n, inverse, streams):
    """Y for n elements from o on."""
    width = lanes(inverse)
    j = 0
    if streams:
        j = min(elements_to_alignment(y, o, inverse), n)
        if j:
            store_masked(y, o, signed_roots(load_masked(x, o, j, inverse), inverse), j)
        while j + width <= n:
            store_non_temporal(y, o + j, signed_roots(load(x, o + j, inverse), inverse))
            j += width
    else:
        while j + width <= n:
            store(y, o + j, signed_roots(load(x, o + j, inverse), inverse))
            j += width
    if j < n:
        values = signed_roots(load_masked(x, o + j, n - j, inverse), inverse)
        store_masked(y, o + j, values, n - j)


@njit(**INLINE)
def rows_at_once(n, size, some):
    """How many rows of n elements are taken at once, of so many that a vector has lanes for."""
    return max(1, min(some, AT_ONCE_BYTES // (n * size)))


@njit(**CALLED)
def forward(x, y, norm, epsilon, streams, start, stop):
    """Rows start to stop."""
    n, size = x.shape[1], x.itemsize
    x_, y_, norm_ = data_pointer(x), data_pointer(y), data_pointer(norm)
    one = ones(norm)
    zero = zeros_float64(one)
    some, (_, _, most), (_, _, largest) = lanes(zero), dtype_limits(zero), dtype_limits(one)
    ahead = AHEAD // size if streams or n * size >= PREFETCHED else 0
    at_once = rows_at_once(n, size, some)
    sums, inverses = stack_alloc(zero, SUMS), stack_alloc(one, LANES)
    for begin in range(start, stop, at_once):
        count = min(at_once, stop - begin)
        for k in range(count):
            in_lanes = sum_of_magnitudes(x_, (begin + k) * n, n, one, None, ahead)
            store(sums, k * some, in_lanes)
        above = reduce_add_rows(sums, 0, zero) + broadcast(epsilon)
        root = square_root(above)
        store_masked(norm_, begin, from_float64(root, root, one), count)
        # Of zeros and a tiny epsilon, y is 0, though the inverse be infinite in the dtype. Without
        # epsilon it is infinite in float64 too, and y is NaN.
        inverse = broadcast(1.0) / root
        inverse = at_most(inverse, broadcast(largest)) + (inverse - inverse)
        store(inverses, 0, from_float64(inverse, inverse, one))
        if not all_at_most(above, broadcast(most), count):
            for k in range(count):
                if reduce_add(load(sums, k * some, zero)) + epsilon == math.inf:
                    of_row = root_beyond(x_, (begin + k) * n, n, one, epsilon)
                    norm[begin + k] = of_row
                    inverses[k] = 1.0 / of_row
        for k in range(count):
            write(x_, y_, (begin + k) * n, n, load_broadcast(inverses, k, one), streams)
    if streams:
        fence()


@njit(**INLINE)
def sum_of_products(dy, x, o, n, inverse, ahead):
    """The sum of dy * y over n elements from o on; one in each lane of float64."""
    sum_, rest = zeros_float64(inverse), zeros_float64(inverse)
    width = lanes(inverse)
    j = 0
    while j + width <= n:
        if ahead:
            prefetch(x, o + j + ahead)
            prefetch(dy, o + j + ahead)
        y = signed_roots(load(x, o + j, inverse), inverse)
        sum_, rest = accumulate(sum_, rest, load(dy, o + j, inverse) * y)
        j += width
    if j < n:
        y = signed_roots(load_masked(x, o + j, n - j, inverse), inverse)
        product = zero_tail(load_masked(dy, o + j, n - j, inverse) * y, n - j)
        sum_, rest = accumulate(sum_, rest, product)
    return sum_in_float64(sum_, rest, inverse)


@njit(**INLINE)
def of_row(inverse, minus_projection):
    """What `gradients` needs: these two, half the inverse, and between what to multiply first.

    A gradient is a number times the inverse of the norm, times half the inverse of the root of an
    element, which is at least that of the norm. Either product alone may be out of range. If the
    first inverse is at least 1, one after the other does no harm: neither result is further from 1
    than the last. If it is less, the inverses are multiplied first if they are on two sides of 1.
    """
    one = ones_like(inverse)
    far = broadcast(scalar_like(math.inf, inverse))
    is_small = first_lane(inverse) < 1
    first = far if is_small else one
    second = one if is_small else far
    return inverse, minus_projection, inverse * broadcast(scalar_like(0.5, inverse)), first, second


@njit(**INLINE)
def ones_like(vector):
    """A vector of ones like another."""
    return broadcast(scalar_like(1.0, vector))


@njit(**INLINE)
def gradients(dy, x, row):
    """Dx of a vector of elements."""
    inverse, minus_projection, half, first, second = row
    root = square_root(absolute(x))
    y = with_sign_of(root * inverse, x)
    of_root = ones_like(root) / root
    above = at_least(at_most(of_root, first), ones_like(root))
    dx = fma(y, minus_projection, dy) * (half * above) * at_most(of_root, second)
    return where_not_zero(x, dx)


@njit(**INLINE)
def differentiate(dy, x, dx, o, n, row, streams):
    """Dx for n elements from o on."""
    one = row[0]
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
def backward(dy, x, norm, dx, streams, start, stop):
    """Rows start to stop."""
    n, size = x.shape[1], x.itemsize
    dy_, x_, norm_, dx_ = data_pointer(dy), data_pointer(x), data_pointer(norm), data_pointer(dx)
    one = ones(norm)
    zero = zeros_float64(one)
    some = lanes(zero)
    ahead = AHEAD // size if streams or n * size >= PREFETCHED else 0
    at_once = rows_at_once(n, 2 * size, some)
    sums, inverses = stack_alloc(zero, SUMS), stack_alloc(one, LANES)
    projections = stack_alloc(one, LANES)
    for begin in range(start, stop, at_once):
        count = min(at_once, stop - begin)
        inverse = broadcast(1.0) / load_masked(norm_, begin, count, zero)
        store(inverses, 0, from_float64(inverse, inverse, one))
        for k in range(count):
            in_lanes = sum_of_products(
                dy_, x_, (begin + k) * n, n, load_broadcast(inverses, k, one), ahead
            )
            store(sums, k * some, in_lanes)
        projection = negative(reduce_add_rows(sums, 0, zero))
        store(projections, 0, from_float64(projection, projection, one))
        for k in range(count):
            row = of_row(load_broadcast(inverses, k, one), load_broadcast(projections, k, one))
            differentiate(dy_, x_, dx_, (begin + k) * n, n, row, streams)
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
