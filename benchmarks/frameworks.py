"""Compare the speed on torch and JAX arrays, on a CPU, with these libraries' own functions.

As in `compare.py`, the contenders are timed in turn, and disturbed rounds are discarded. On torch
they are its own functions: forward without a graph, forward and backward by autograd. On JAX they
are the usual formulas; both are compiled, and gradients come from `jax.vjp`. All inputs have
gradients.

    python benchmarks/frameworks.py torch --threads 2 --output docs/torch-benchmarks.md
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from options import parse_options

SHAPES = ((8, 64), (128, 256), (512, 768), (4096, 1024), (2048, 4096), (65536, 64))
IMAGES = (32, 256, 32, 32)
FORWARD, BOTH = "forward", "forward and backward"

Function = Callable[..., Any]
#: An operation: its function in this library, that of the framework, and whether x is images.
Operations = dict[str, tuple[Function, Function, bool]]


def of_torch() -> Operations:
    """Return functions of x, gamma and beta."""
    from torch.nn import functional

    import ln_array_api as ln

    def length(x: Any) -> tuple[int]:
        return (x.shape[-1],)

    return {
        "layer_norm": (ln.layer_norm, lambda x, *p: functional.layer_norm(x, length(x), *p), False),
        "rms_norm": (
            lambda x, gamma, beta: ln.rms_norm(x, gamma),
            lambda x, gamma, beta: functional.rms_norm(x, length(x), gamma, 1e-6),
            False,
        ),
        "group_norm": (
            lambda *a: ln.group_norm(*a, num_groups=32),
            lambda x, *p: functional.group_norm(x, 32, *p),
            True,
        ),
        "instance_norm": (
            ln.instance_norm,
            lambda x, *p: functional.instance_norm(x, None, None, *p),
            True,
        ),
        "batch_norm": (
            lambda *a: ln.batch_norm_forward(*a).y,
            lambda x, *p: functional.batch_norm(x, None, None, *p, True),
            True,
        ),
    }


def of_jax() -> Operations:
    """Return functions of x, gamma and beta, to be compiled."""
    import jax
    from jax import numpy as jnp

    import ln_array_api as ln

    def layer_norm(x: Any, gamma: Any, beta: Any) -> Any:
        d = x - jnp.mean(x, axis=-1, keepdims=True)
        var = jnp.mean(d * d, axis=-1, keepdims=True)
        return d * jax.lax.rsqrt(var + 1e-5) * gamma + beta

    def rms_norm(x: Any, gamma: Any, beta: Any) -> Any:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gamma

    return {
        "layer_norm": (lambda *a: ln.layer_norm(*a), layer_norm, False),
        "rms_norm": (lambda x, gamma, beta: ln.rms_norm(x, gamma), rms_norm, False),
    }


Calls = Iterator[tuple[str, dict[str, Callable[[], Any]]]]


def calls_of_torch(functions: dict[str, Function], shape: tuple[int, ...], channel: int) -> Calls:
    """Yield the calls of the forward pass, then of both passes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    n = shape[channel]
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    gamma, beta = (torch.randn(n, generator=generator) for _ in range(2))
    leaves = [each.clone().requires_grad_() for each in (x, gamma, beta)]

    def both(function: Function) -> None:
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).backward(dy)

    yield FORWARD, {k: lambda f=f: f(x, gamma, beta) for k, f in functions.items()}  # type: ignore[misc]
    yield BOTH, {k: lambda f=f: both(f) for k, f in functions.items()}  # type: ignore[misc]


def calls_of_jax(functions: dict[str, Function], shape: tuple[int, ...], channel: int) -> Calls:
    """Yield the calls of the forward pass, then of both passes."""
    import jax

    keys = jax.random.split(jax.random.key(0), 4)
    shapes = shape, shape, shape[channel], shape[channel]
    x, dy, gamma, beta = (
        jax.random.normal(key, each) for key, each in zip(keys, shapes, strict=True)
    )

    def pulled(function: Function) -> Function:
        return jax.jit(lambda dy, *arrays: jax.vjp(function, *arrays)[1](dy))

    compiled = {k: jax.jit(f) for k, f in functions.items()}
    gradients = {k: pulled(f) for k, f in functions.items()}
    wait = jax.block_until_ready
    yield FORWARD, {k: lambda f=f: wait(f(x, gamma, beta)) for k, f in compiled.items()}  # type: ignore[misc]
    yield BOTH, {k: lambda f=f: wait(f(dy, x, gamma, beta)) for k, f in gradients.items()}  # type: ignore[misc]


LIBRARIES = {"torch": (of_torch, calls_of_torch), "jax": (of_jax, calls_of_jax)}


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str, float, str]]:
    """Measure all cases; yield the operation and pass, the shape, the ratio, and a line."""
    from compare import THIS, measure

    library = options.library
    operations, calls = LIBRARIES[library]
    for name, (own, others, is_image) in operations().items():
        for shape in (IMAGES,) if is_image else SHAPES:
            text = "x".join(map(str, shape))
            if options.shapes and text not in options.shapes:
                continue
            channel = 1 if is_image else -1
            for what, both in calls({THIS: own, library: others}, shape, channel):
                size = 4
                for each in shape:
                    size *= each
                times, kept, thrown_away = measure(both, size, options.rounds)
                ratio = times[library] / times[THIS]
                yield (
                    f"{name}, {what}",
                    text,
                    ratio,
                    f"| {name}, {what} | {text} | {1e6 * times[THIS]:,.1f} | "
                    f"{1e6 * times[library]:,.1f} | {ratio:.2f} | {kept}/{thrown_away} |",
                )


def summary(ratios: dict[str, list[float]]) -> str:
    lines = (
        f"- {what}: geometric mean {statistics.geometric_mean(values):.2f}, least {min(values):.2f}"
        for what, values in ratios.items()
        if len(values) > 1
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("library", choices=LIBRARIES, help="whose arrays")
    options = parse_options(parser, "where to write")
    head = (
        f"| | shape | this library, µs | {options.library}, µs | ratio | "
        "rounds kept/thrown away |\n"
        "|---|---|---:|---:|---:|---:|"
    )
    print(head, flush=True)
    lines, ratios = [head], {}
    for what, _, ratio, line in cases(options):
        print(line, flush=True)
        lines.append(line)
        ratios.setdefault(what, []).append(ratio)
    print(f"\n{summary(ratios)}")
    if options.output:
        options.output.write_text("\n".join([*lines, "", summary(ratios), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
