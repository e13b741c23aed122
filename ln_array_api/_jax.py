"""For JAX's arrays: sums that XLA does not fuse with what is computed from them.

XLA compiles parts of a program for the CPU with a library, YNNPACK, which computes the sum of a
product as a dot product. With jaxlib 0.10.2 that is wrong, without a word, in ``d + sum(x * d)``,
the sum over the last axis of float32 arrays of shapes (8, 64) for x and (512, 8, 64) for d. What it
takes is a factor on the left that lacks the first axis of the product and has all others, a sum
over one axis that both factors have, a result that is broadcast again in the same fusion, and
more than 2**15 elements. This is what `jax.vmap` makes of a gradient where x is not mapped over
(``tests/backends/jax/xla_fault.py``).

So a sum of products must leave its fusion before it is broadcast. `lax.optimization_barrier` does
not do that, since XLA drops it on a CPU before it fuses. Rounding to the precision that a value has
already does: it is an operation that YNNPACK lacks, it gives the value itself, and its derivative
is the same operation again, forward and backward.

Forward passes sum differences and squares, which are no products of that kind, and would be slower
by 40 % if their sums were not fused. Their derivatives do sum products.
"""

from __future__ import annotations

from typing import Any

import jax


def unfused(x: jax.Array) -> jax.Array:
    """Give x itself, to what XLA computes after it instead of in one fusion with it."""
    limits: Any = jax.numpy.finfo(x.dtype)
    return jax.lax.reduce_precision(x, limits.nexp, limits.nmant)


def _itself(x: jax.Array) -> jax.Array:
    return x


#: Give x itself; its derivatives are `unfused`, those of any order and direction.
derivatives_unfused: Any = jax.custom_jvp(_itself)
derivatives_unfused.defjvps(lambda dx, y, x: unfused(dx))


def is_sharded(x: jax.Array, axes: tuple[int, ...]) -> bool:
    """Whether JAX knows that x is sharded along one of some axes."""
    spec = jax.typeof(x).sharding.spec
    return any(spec[axis] is not None for axis in axes)
