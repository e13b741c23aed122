"""Training on CuPy arrays: layer norm forward and backward, with and without a captured CUDA graph.

A network of two layers with a layer norm between them learns what another one computes. A step is
forward, backward and update, all of it kernels on one stream, so that a graph can hold it: the same
step is then a single launch, and costs the host next to nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import cupy

import ln_array_api as ln

Array = Any
matmul: Callable[[Array, Array], Array] = cupy.matmul


class Network(NamedTuple):
    """The parameters, which a step changes in place."""

    first: Array
    gamma: Array
    beta: Array
    last: Array


def network(features: int, hidden: int, seed: int) -> Network:
    """A network with random weights."""
    draw = cupy.random.RandomState(seed).standard_normal
    return Network(
        draw((features, hidden), dtype="float32") / features**0.5,
        cupy.ones(hidden, "float32"),
        cupy.zeros(hidden, "float32"),
        draw((hidden, 1), dtype="float32") / hidden**0.5,
    )


def predict(net: Network, x: Array) -> Array:
    """What the network computes of rows x."""
    hidden = ln.layer_norm(matmul(x, net.first), net.gamma, net.beta)
    return matmul(cupy.maximum(hidden, 0), net.last)


def train(net: Network, x: Array, target: Array, loss: Array, rate: float) -> None:
    """One step of gradient descent. Nothing waits for the device, and nothing is read from it."""
    projected = matmul(x, net.first)
    normed, mean, rstd = ln.layer_norm_forward(projected, net.gamma, net.beta)
    active = cupy.maximum(normed, 0)
    error = matmul(active, net.last) - target
    loss[...] = (error * error).mean()

    d_output = error * (2 / len(x))
    d_last = matmul(active.T, d_output)
    d_normed = matmul(d_output, net.last.T) * (normed > 0)
    d_projected, d_gamma, d_beta = ln.layer_norm_backward(
        d_normed, projected, mean, rstd, net.gamma
    )
    d_first = matmul(x.T, d_projected)
    for parameter, gradient in zip(net, (d_first, d_gamma, d_beta, d_last), strict=True):
        parameter -= rate * gradient


def captured(stream: Any, step: Callable[[], None]) -> Callable[[], None]:
    """A graph of what `step` does, which launches it as a whole. One step is taken here.

    While a graph is captured nothing can be compiled and no memory had from the driver, so that a
    first step has to come before. The graph writes where it wrote when it was captured: that memory
    belongs to a pool of its own, which nobody else is given anything from.
    """
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        step()
        stream.begin_capture()
        step()
        graph = stream.end_capture()

    def launch(pool: Any = pool) -> None:
        graph.launch(stream)

    return launch


def run(steps: int, rows: int, features: int, hidden: int, *, with_graph: bool) -> list[float]:
    """Train a new network, and give the loss of each tenth step and of the last."""
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x = cupy.random.RandomState(0).standard_normal((rows, features), dtype="float32")
        target = predict(network(features, hidden, seed=1), x)
        net, loss = network(features, hidden, seed=2), cupy.zeros((), "float32")

        def step() -> None:
            train(net, x, target, loss, rate=0.1)

        if with_graph:
            step_again = captured(stream, step)
        else:
            step()
            step_again = step
        losses, seconds = [], 0.0
        for number in range(2, steps + 1):
            stream.synchronize()
            start = time.perf_counter()
            step_again()
            stream.synchronize()
            seconds += time.perf_counter() - start
            if number % 10 == 0 or number == steps:
                losses.append(float(loss))
        each = seconds / max(steps - 1, 1)
    how = "one graph a step" if with_graph else "kernel by kernel"
    print(f"{how}: loss {losses[0]:.4f} to {losses[-1]:.4f}, {each * 1e6:.0f} µs a step")
    return losses


def main(arguments: list[str] | None = None) -> tuple[list[float], list[float]]:
    """Train twice, and see that the graph does the same."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=1024)
    given = parser.parse_args(arguments)
    x = cupy.empty((given.rows, given.hidden), "float32")
    print(ln.explain(ln.layer_norm, x, x[0], x[0]))
    size = (given.steps, given.rows, given.features, given.hidden)
    return run(*size, with_graph=False), run(*size, with_graph=True)


if __name__ == "__main__":
    main()
