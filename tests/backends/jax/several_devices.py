"""Arrays that are sharded over four devices: results are right, sharded as x, and not gathered.

JAX is told how many devices a processor is when it starts, so this runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ln_array_api_backends.jax import handlers

import ln_array_api as ln

P = PartitionSpec
ARRAYS = tuple(
    np.random.default_rng(seed).standard_normal(shape)
    for seed, shape in enumerate(((4, 8, 16), (16,), (16,)))
)
X, GAMMA, BETA = ARRAYS
Y, _, _ = ln.layer_norm_forward(*ARRAYS)
EVERY = (0, 1, 2)


def loss(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arrays: jnp.sum(jnp.sin(function(*arrays)))


def gradients() -> Any:
    _, mean, rstd = ln.layer_norm_forward(*ARRAYS)
    return ln.layer_norm_backward(np.cos(Y), X, mean, rstd, GAMMA)


def check(function: Callable[..., Any], x: Any, gamma: Any, beta: Any) -> None:
    """Y and its gradients, of arrays that lie anywhere."""
    np.testing.assert_allclose(function(x, gamma, beta), Y, rtol=1e-9, atol=1e-9)
    found = jax.jit(jax.grad(loss(function), EVERY))(x, gamma, beta)
    for own, right in zip(found, gradients(), strict=True):
        np.testing.assert_allclose(own, right, rtol=1e-9, atol=1e-9)


def auto(mesh: Any) -> None:
    """The sharding of x is what XLA decides by; parameters may be anywhere."""
    whole = P("i"), P(None, "j"), P("i", "j")
    for spec in (*whole, P(None, None, "j"), P("i", None, "j")):
        x = jax.device_put(X, NamedSharding(mesh, spec))
        text = jax.jit(ln.layer_norm).lower(x, GAMMA, BETA).compile().as_text()
        assert spec not in whole or "all-gather" not in text, spec
        assert handlers.NAME not in text
        y = ln.layer_norm(x, jnp.asarray(GAMMA), jnp.asarray(BETA))
        assert y.sharding.is_equivalent_to(x.sharding, 3), (spec, y.sharding)
        check(ln.layer_norm, x, jnp.asarray(GAMMA), jnp.asarray(BETA))


def explicit(mesh: Any) -> None:
    """The sharding of x is a part of its type, and that of y."""
    with jax.set_mesh(mesh):
        for spec in (P("i", None, None), P(None, "j", None), P("i", "j", None), P(None, None, "j")):
            x = jax.device_put(X, NamedSharding(mesh, spec))
            y = jax.jit(ln.layer_norm)(x)
            assert y.sharding.spec == spec, (spec, y.sharding)
            check(ln.layer_norm, x, jnp.asarray(GAMMA), jnp.asarray(BETA))


def manual(mesh: Any) -> None:
    """A function of shards, which are whole arrays where all axes are manual."""
    for spec, names in ((P("i", "j"), {"i", "j"}), (P("i"), {"i"})):
        function = jax.shard_map(
            lambda x, gamma, beta: ln.layer_norm(x, gamma, beta),
            mesh=mesh,
            in_specs=(spec, P(), P()),
            out_specs=spec,
            axis_names=names,
        )
        text = jax.jit(function).lower(*ARRAYS).as_text()
        assert (handlers.NAME in text) == (len(names) == 2)
        check(jax.jit(function), *ARRAYS)


def devices() -> None:
    """An array that is bound to no device goes where the others are."""
    first, last = jax.devices()[1], jax.devices()[2]
    x = jax.device_put(X, last)
    y = ln.layer_norm(x, jnp.asarray(GAMMA))
    assert y.devices() == {last}
    try:
        ln.layer_norm(x, jax.device_put(GAMMA, first))
    except ln.DeviceMismatchError:
        return
    raise AssertionError("gamma on another device was accepted")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    auto(jax.make_mesh((2, 2), ("i", "j"), axis_types=(AxisType.Auto,) * 2))
    explicit(jax.make_mesh((2, 2), ("i", "j"), axis_types=(AxisType.Explicit,) * 2))
    manual(jax.make_mesh((2, 2), ("i", "j"), axis_types=(AxisType.Auto,) * 2))
    devices()
