"""XLA on the CPU sums wrong numbers, without an error: a report in a few lines of JAX.

    python tests/backends/jax/xla_fault.py

prints the versions, then for each program the sums of batch members 0, 63, 64 and 511. The right
sums are 64 times the number of the member. With jax and jaxlib 0.10.2 on x86-64 the order of the
factors decides:

    jax 0.10.2, jaxlib 0.10.2
    d + sum(d * x): [0, 4032, 4096, 32704]
    d + sum(x * d): [0, 4032, 0, 4032] wrong

Both are right with XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= in the environment. XLA makes
one YNNPACK fusion of the product, the sum and the addition; YNNPACK computes the sum as a dot
product and divides the first axis among tasks. Here each task takes 64 members of d, always the
first 64. It takes

* the sum over one axis of a product of float32 or bfloat16, broadcast again in the same fusion,
* a left factor that lacks the first axis of the product, and has all others, at least two,
* more than 2**15 elements.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

MEMBERS = 512
PROGRAMS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "d + sum(d * x)": lambda d, x: d + jnp.sum(d * x, axis=-1, keepdims=True),
    "d + sum(x * d)": lambda d, x: d + jnp.sum(x * d, axis=-1, keepdims=True),
}


def sums(program: Callable[[jax.Array, jax.Array], jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of 64 elements, each the number of its batch member: by a compiled program, and right.

    Both are of shape (512,) and exact in float32.
    """
    member = np.arange(MEMBERS, dtype=np.float32)
    d = np.broadcast_to(member[:, None, None], (MEMBERS, 8, 64))
    result = jax.jit(program)(jnp.asarray(d), jnp.ones((8, 64), jnp.float32))
    return np.asarray(result)[:, 0, 0] - member, 64 * member


if __name__ == "__main__":
    print(f"jax {jax.__version__}, jaxlib {jaxlib.__version__}")
    for name, program in PROGRAMS.items():
        computed, right = sums(program)
        shown = [int(computed[member]) for member in (0, 63, 64, 511)]
        print(f"{name}: {shown}{'' if np.array_equal(computed, right) else ' wrong'}")
