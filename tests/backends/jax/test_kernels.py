"""JAX on the compiled kernels of the NumPy backend: its bits, in programs of every kind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("numba", reason="the kernels are compiled by Numba")

from ln_array_api_backends.jax import calls, handlers  # noqa: E402

import ln_array_api as ln  # noqa: E402

jnp = jax.numpy
DTYPES = ("float32", "float64", "float16", "bfloat16")


@pytest.fixture(autouse=True)
def wide_numbers() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def random(*shape: int, dtype: str = "float64", seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def is_by_kernel(function: Callable[..., Any], *arrays: Any) -> bool:
    return handlers.NAME in jax.jit(function).lower(*arrays).as_text()


def equal(jaxs: Any, numpys: Any) -> None:
    for own, right in zip(jax.tree.leaves(jaxs), jax.tree.leaves(numpys), strict=True):
        np.testing.assert_array_equal(np.asarray(own), right, strict=True)


def close(own: Any, right: Any) -> None:
    for each, expected in zip(jax.tree.leaves(own), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-8, atol=1e-8)


CALLS: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...]]] = {
    "layer": (ln.layer_norm_forward, (3, 5, 70), (70,)),
    "layer over the first": (partial(ln.layer_norm_forward, axis=0), (70, 5), (70,)),
    "layer over two": (partial(ln.layer_norm_forward, axis=(0, 2)), (7, 5, 9), (7, 9)),
    "group": (partial(ln.group_norm_forward, num_groups=2), (3, 6, 4, 5), (6,)),
    "instance": (ln.instance_norm_forward, (3, 6, 40), (6,)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_forward_has_the_bits_of_numpy(call: Any, dtype: str) -> None:
    function, shape, parameters = call
    arrays = random(*shape, dtype=dtype), random(*parameters, seed=1, dtype=dtype)
    assert is_by_kernel(function, *arrays)
    for given in (arrays, arrays[:1], (arrays[0], None, arrays[1])):
        numpys = function(*(None if each is None else np.asarray(each) for each in given))
        equal(function(*given), numpys)
        equal(jax.jit(function)(*given), numpys)


def test_channels_last_have_the_bits_of_channels_first() -> None:
    x, gamma = random(3, 4, 6), random(6, seed=1)
    last = partial(ln.group_norm, num_groups=2, channel_axis=-1)
    assert is_by_kernel(last, x, gamma)
    first = ln.group_norm(np.moveaxis(np.asarray(x), -1, 1), np.asarray(gamma), num_groups=2)
    equal(jnp.moveaxis(last(x, gamma), -1, 1), first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 6, 300])
def test_gradients_have_the_bits_of_numpy(dtype: str, m: int) -> None:
    x, dy = random(m, 70, dtype=dtype), random(m, 70, dtype=dtype, seed=1)
    gamma, beta = (random(70, dtype=dtype, seed=seed) for seed in (2, 3))
    _, mean, rstd = ln.layer_norm_forward(*map(np.asarray, (x, gamma, beta)))
    right = ln.layer_norm_backward(*map(np.asarray, (dy, x, mean, rstd, gamma)))
    equal(jax.vjp(ln.layer_norm, x, gamma, beta)[1](dy), tuple(right))
    statistics = jnp.asarray(mean), jnp.asarray(rstd)
    for need in (("dx",), ("dgamma",), ("dx", "dbeta"), ("dx", "dgamma", "dbeta")):
        function = partial(ln.layer_norm_backward, need=need)
        assert is_by_kernel(function, dy, x, *statistics, gamma)
        gradients = [each for each in function(dy, x, *statistics, gamma) if each is not None]
        equal(gradients, [getattr(right, name) for name in need])


def test_rms_norm_and_mixed_dtypes_have_the_bits_of_numpy() -> None:
    x, dy = random(9, 70, dtype="float16"), random(9, 70, dtype="float32", seed=1)
    gamma = random(70, dtype="float64", seed=2)
    _, rstd = ln.rms_norm_forward(np.asarray(x), np.asarray(gamma))
    equal(ln.rms_norm(x, gamma), ln.rms_norm(np.asarray(x), np.asarray(gamma)))
    right = ln.rms_norm_backward(*map(np.asarray, (dy, x, rstd, gamma)))
    equal(tuple(ln.rms_norm_backward(dy, x, jnp.asarray(rstd), gamma)), tuple(right))


def test_a_large_call_on_several_threads_has_the_bits_of_numpy() -> None:
    m, n = 3000, 257
    x, dy = random(m, n, dtype="float32"), random(m, n, dtype="float32", seed=1)
    assert x.nbytes > calls.PARALLEL
    gamma = random(n, dtype="float32", seed=2)
    y, mean, rstd = ln.layer_norm_forward(np.asarray(x), np.asarray(gamma))
    right = ln.layer_norm_backward(*map(np.asarray, (dy, x, mean, rstd, gamma)))
    own, pull = jax.vjp(ln.layer_norm, x, gamma)
    equal(own, y)
    equal(pull(dy), right[:2])
    with ThreadPoolExecutor(8) as threads:  # more than XLA has
        for gradients in threads.map(lambda _: pull(dy), range(24)):
            equal(gradients, right[:2])


def plain(x: Any, gamma: Any, beta: Any) -> Any:
    d = x - jnp.mean(x, axis=-1, keepdims=True)
    return d / jnp.sqrt(jnp.mean(d * d, axis=-1, keepdims=True) + 1e-5) * gamma + beta


def loss(function: Callable[..., Any]) -> Callable[..., Any]:
    """One whose derivatives of all orders depend on everything."""
    return lambda x, gamma, beta: jnp.sum(
        jnp.sin(function(x, gamma, beta)) * jnp.arange(x.shape[-1])
    )


def of_statistics(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, gamma, beta: sum(jnp.sum(each**3) for each in function(x, gamma, beta))


def plain_forward(x: Any, gamma: Any, beta: Any) -> Any:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    var = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return plain(x, gamma, beta), mean, 1 / jnp.sqrt(var + 1e-5)


EVERY = (0, 1, 2)
DERIVATIVES: dict[str, Callable[[Any], Any]] = {
    "grad": partial(jax.grad, argnums=EVERY),
    "hessian": partial(jax.hessian, argnums=EVERY),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f, EVERY), EVERY),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f, EVERY), EVERY),
    "third, reverse": lambda f: jax.jacrev(jax.jacrev(jax.jacrev(f))),
    "third, forward": lambda f: jax.jacfwd(jax.jacfwd(jax.jacfwd(f))),
    "third, mixed": lambda f: jax.jacrev(jax.jacfwd(jax.jacrev(f))),
    "under jit": lambda f: jax.jit(jax.grad(f, EVERY)),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f), EVERY),
    "cond": lambda f: jax.grad(
        lambda x, *rest: jax.lax.cond(x[0, 0] > 9, lambda x: 0.0, lambda x: f(x, *rest), x), EVERY
    ),
    "scan": lambda f: jax.grad(
        lambda *a: jax.lax.scan(lambda c, k: (c + f(a[0] * k, *a[1:]), None), 0.0, jnp.arange(3.0))[
            0
        ],
        EVERY,
    ),
}


@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
def test_derivatives(derivative: Callable[[Any], Any]) -> None:
    arrays = random(2, 5), random(5, seed=1), random(5, seed=2)
    close(derivative(loss(ln.layer_norm))(*arrays), derivative(loss(plain))(*arrays))


@pytest.mark.parametrize("name", ["grad", "hessian"])
def test_derivatives_of_statistics(name: str) -> None:
    arrays = random(2, 5), random(5, seed=1), random(5, seed=2)
    of_ours, of_theirs = map(of_statistics, (ln.layer_norm_forward, plain_forward))
    close(DERIVATIVES[name](of_ours)(*arrays), DERIVATIVES[name](of_theirs)(*arrays))


@pytest.mark.parametrize(
    "places", [(0, None, None), (None, 0, None), (0, 0, None), (None, None, 0), (1, 1, 0)], ids=str
)
def test_batches(places: tuple[int | None, ...]) -> None:
    shapes = (4, 7), (7,), (7,)
    arrays = [
        random(*shape) if place is None else random(*shape[:place], 3, *shape[place:])
        for shape, place in zip(shapes, places, strict=True)
    ]
    for transformed in (lambda f: f, lambda f: jax.grad(loss(f), EVERY)):
        ours, theirs = (jax.vmap(transformed(f), places)(*arrays) for f in (ln.layer_norm, plain))
        close(ours, theirs)


def test_a_batch_stays_with_the_kernels() -> None:
    gradients = jax.grad(lambda x, gamma: jnp.sum(ln.layer_norm(x, gamma) ** 3), (0, 1))
    for places in ((0, None), (0, 0)):
        arrays = random(3, 4, 7), random(7) if places[1] is None else random(3, 7)
        text = jax.jit(jax.vmap(gradients, places)).lower(*arrays).as_text()
        assert text.count(f"custom_call @{handlers.NAME}") == 2


def test_a_batch_of_none() -> None:
    assert jax.vmap(ln.layer_norm)(random(0, 4, 7)).shape == (0, 4, 7)


def test_without_compiling() -> None:
    with jax.disable_jit():
        close(ln.layer_norm(random(4, 7)), plain(random(4, 7), 1.0, 0.0))


def test_donated_memory() -> None:
    right = plain(random(4, 7), 1.0, 0.0)
    close(jax.jit(ln.layer_norm, donate_argnums=0)(random(4, 7)), right)


@pytest.mark.parametrize("platforms", [("cpu",), ("cuda",), ("tpu",), ("cpu", "cuda")], ids=str)
def test_exported_programs_need_nothing_of_ours(platforms: tuple[str, ...]) -> None:
    function, arrays = jax.grad(loss(ln.layer_norm), EVERY), (random(4, 7), random(7), random(7))
    exported = jax.export.export(jax.jit(function), platforms=platforms)(*arrays)
    assert handlers.NAME not in exported.mlir_module()
    if "cpu" in platforms:
        again = jax.export.deserialize(exported.serialize())
        close(again.call(*arrays), jax.grad(loss(plain), EVERY)(*arrays))


@pytest.mark.parametrize("lengths", ["m, 7", "4, n", "m, n"])
def test_exported_programs_of_any_length(lengths: str) -> None:
    shape = jax.export.symbolic_shape(lengths)
    given = jax.ShapeDtypeStruct(shape, "float64"), jax.ShapeDtypeStruct(shape[1:], "float64")
    exported = jax.export.export(jax.jit(ln.layer_norm))(*given)
    x, gamma = random(4, 7), random(7, seed=1)
    close(exported.call(x, gamma), plain(x, gamma, 0.0))


def test_a_program_of_another_process_is_refused() -> None:
    function = jax.jit(lambda x: ln.layer_norm(x, epsilon=1e-4)).lower(random(4, 7)).compile()
    close(function(random(4, 7)), ln.layer_norm(random(4, 7), epsilon=1e-4))
    known = handlers._table[0]
    handlers._table[0] = handlers._tables[0].buffer_info()[0]
    try:
        with pytest.raises(Exception, match="compiled in another process"):
            function(random(4, 7)).block_until_ready()
    finally:
        handlers._table[0] = known


def test_without_numba_there_are_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "missing", "No module named 'numba'")
    x = random(4, 11)
    assert not is_by_kernel(ln.layer_norm, x)
    close(jax.jit(ln.layer_norm)(x), plain(x, 1.0, 0.0))


def test_arrays_on_several_devices() -> None:
    script = Path(__file__).with_name("several_devices.py")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, script], check=True, env=environment)
