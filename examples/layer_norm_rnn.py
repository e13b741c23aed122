"""A recurrent network that learns to read digits, with and without layer norm.

The network reads an image row by row, and then classifies the digit. It is trained from scratch, in
the array API standard and this library's layer norm with its gradients only, so on any array
library. Ba, Kiros and Hinton, who proposed layer norm for such networks, found that they train
faster with it (arXiv:1607.06450); this program tests whether it does too. Run it as
``python examples/layer_norm_rnn.py``; ``--help`` lists the options.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from array_api_compat import array_namespace

import ln_array_api as ln

Array: TypeAlias = Any  # of any library
HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]

LIBRARIES = {"numpy": "numpy", "torch": "torch", "jax": "jax.numpy"}
CLASSES = 10
IMAGES, BATCH = 1500, 50  # to train with; the other 297 images are for testing
EPOCH = IMAGES // BATCH  # in updates
MOMENTUM = 0.9

# --- The network ---------------------------------------------------------------------------------


class Network(NamedTuple):
    """The parameters, or the gradient of each. Without layer norm there is no gamma."""

    inward: Array
    recurrent: Array
    gamma: Array | None
    beta: Array
    outward: Array
    bias: Array


def network(
    normalised: bool, features: int, hidden: int, seed: int, gaussian: float | None = None
) -> Network:
    """Return random weights that keep the variance of the inputs.

    The recurrent matrix is orthogonal, or Gaussian if `gaussian` is given: then it multiplies the
    length of a state by that factor, on average.
    """
    draw = np.random.default_rng(seed).standard_normal
    inward, recurrent = draw((features, hidden)) / features**0.5, draw((hidden, hidden))
    return Network(
        inward,
        recurrent * gaussian / hidden**0.5 if gaussian else np.linalg.qr(recurrent)[0],
        np.ones(hidden) if normalised else None,
        np.zeros(hidden),
        draw((hidden, CLASSES)) / hidden**0.5,
        np.zeros(CLASSES),
    )


def combined(function: Callable[..., Array], *networks: Network) -> Network:
    """Apply the function to each parameter."""
    groups = zip(*networks, strict=True)
    return Network(*(None if group[0] is None else function(*group) for group in groups))


class Tape(NamedTuple):
    """Values of the forward pass that the backward pass needs, stacked over the steps."""

    before: Array  # the state before each step
    summed: Array  # the input of layer norm
    statistics: tuple[Array, Array] | None
    after: Array


def forward(net: Network, x: Array) -> tuple[Array, Tape]:
    """Return logits for images x of shape (steps, batch, features), and the tape."""
    xp = array_namespace(x)
    inputs = xp.matmul(x, net.inward)
    states = [xp.zeros_like(inputs[0, ...])]
    sums, means, rstds = [], [], []
    for step in range(x.shape[0]):
        summed = inputs[step, ...] + xp.matmul(states[-1], net.recurrent)
        sums.append(summed)
        if net.gamma is None:
            shifted = summed + net.beta
        else:
            shifted, mean, rstd = ln.layer_norm_forward(summed, net.gamma, net.beta)
            means.append(mean)
            rstds.append(rstd)
        states.append(xp.tanh(shifted))
    statistics = None if net.gamma is None else (xp.stack(means), xp.stack(rstds))
    tape = Tape(xp.stack(states[:-1]), xp.stack(sums), statistics, xp.stack(states[1:]))
    return xp.matmul(states[-1], net.outward) + net.bias, tape


def loss_and_gradients(net: Network, x: Array, target: Array) -> tuple[Array, Network]:
    """Return the mean cross entropy to a one-hot target, and its gradients."""
    xp = array_namespace(x)
    logits, tape = forward(net, x)
    logits = logits - xp.max(logits, axis=1, keepdims=True)
    log_p = logits - xp.log(xp.sum(xp.exp(logits), axis=1, keepdims=True))
    loss = -xp.sum(target * log_p) / target.shape[0]

    d_logits = (xp.exp(log_p) - target) / target.shape[0]
    d_state = xp.matmul(d_logits, net.outward.T)
    d_shifted, d_summed = [], []  # of each step, from the last to the first
    for step in reversed(range(x.shape[0])):
        d_shifted.append(d_state * (1 - tape.after[step, ...] ** 2))
        if net.gamma is None:
            d_summed.append(d_shifted[-1])
        else:
            summed, mean, rstd = (each[step, ...] for each in (tape.summed, *tape.statistics))
            only = ("dx",)  # the parameters' gradients are summed over all steps at once, below
            gradients = ln.layer_norm_backward(
                d_shifted[-1], summed, mean, rstd, net.gamma, need=only
            )
            d_summed.append(gradients.dx)
        d_state = xp.matmul(d_summed[-1], net.recurrent.T)

    shifted, summed = (xp.stack(each[::-1]) for each in (d_shifted, d_summed))
    if net.gamma is None:
        d_gamma, d_beta = None, xp.sum(shifted, axis=(0, 1))
    else:
        only = ("dgamma", "dbeta")
        _, d_gamma, d_beta = ln.layer_norm_backward(
            shifted, tape.summed, *tape.statistics, net.gamma, need=only
        )
    return loss, Network(
        outer(x, summed),
        outer(tape.before, summed),
        d_gamma,
        d_beta,
        xp.matmul(tape.after[-1, ...].T, d_logits),
        xp.sum(d_logits, axis=0),
    )


def outer(x: Array, dy: Array) -> Array:
    """Return the gradient of a matrix that multiplies x, given that of the product."""
    xp = array_namespace(x)
    x, dy = (xp.reshape(each, (-1, each.shape[-1])) for each in (x, dy))
    return xp.matmul(x.T, dy)


def clipped(gradients: Network, largest: float) -> Network:
    """Scale gradients so that their global norm is at most `largest` (arXiv:1211.5063)."""
    xp = array_namespace(gradients.inward)
    squares = (xp.sum(each**2) for each in gradients if each is not None)
    length = xp.sqrt(sum(squares))
    scale = 1 / xp.maximum(length / largest, 1.0)
    return combined(lambda each: each * scale, gradients)


def step(
    net: Network, velocity: Network, x: Array, target: Array, rate: float, largest: float
) -> tuple[Array, Network, Network]:
    """Descend with momentum; return the loss before the step, the network and velocity after it."""
    loss, gradients = loss_and_gradients(net, x, target)
    velocity = combined(lambda v, g: MOMENTUM * v + g, velocity, clipped(gradients, largest))
    return loss, combined(lambda p, v: p - rate * v, net, velocity), velocity


# --- Training ------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """Images as (steps, images, features) with one-hot targets, for training and for testing."""

    x: Array
    target: Array
    test_x: Array
    test_target: Array


def digits(xp: Any, steps: int) -> Digits:
    """Load the 8x8 images of scikit-learn's digits, in random order, split into `steps` steps."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = images[order].reshape(len(images), steps, -1).transpose(1, 0, 2) / 16
    target = np.eye(CLASSES)[labels[order]]
    arrays = x[:, :IMAGES], target[:IMAGES], x[:, IMAGES:], target[IMAGES:]
    return Digits(*(on(xp, each) for each in arrays))


def on(xp: Any, x: HostArray) -> Array:
    return xp.asarray(np.ascontiguousarray(x, dtype=np.float32))


class Curve(NamedTuple):
    """The result of training a network."""

    losses: HostArray
    """Training losses: means over the last epoch, from the end of the first epoch on."""
    error: float
    """The final share of misclassified test images."""


def train(
    xp: Any,
    data: Digits,
    initial: Network,
    rate: float,
    *,
    epochs: int,
    seed: int,
    clip: float = 1.0,
    update: Callable[..., Any] = step,
) -> Curve:
    """Train a network; the seed determines the order of the images."""
    net = combined(lambda each: on(xp, each), initial)
    velocity = combined(xp.zeros_like, net)
    order = np.random.default_rng(seed).permutation
    losses = []
    for _ in range(epochs):
        for indices in order(IMAGES).reshape(-1, BATCH):
            chosen = xp.asarray(indices)
            x, target = xp.take(data.x, chosen, axis=1), xp.take(data.target, chosen, axis=0)
            loss, net, velocity = update(net, velocity, x, target, rate, clip)
            losses.append(loss)
    logits, _ = forward(net, data.test_x)
    wrong = xp.argmax(logits, axis=1) != xp.argmax(data.test_target, axis=1)
    smooth = np.convolve([float(each) for each in losses], np.full(EPOCH, 1 / EPOCH), "valid")
    return Curve(smooth, float(xp.mean(xp.astype(wrong, xp.float32))))


# --- The report ----------------------------------------------------------------------------------

NAMES = {False: "plain", True: "layer norm"}
Curves: TypeAlias = dict[tuple[bool, float], list[Curve]]
"""Curves of all seeds, by whether there is layer norm and by the learning rate."""


def mean_losses(curves: list[Curve]) -> HostArray:
    return np.mean([curve.losses for curve in curves], axis=0)


def updates_to(loss: float, curves: list[Curve]) -> int | None:
    """Return after how many updates the mean loss of the runs is this low; None if it never is."""
    reached = np.flatnonzero(mean_losses(curves) <= loss)
    return EPOCH + int(reached[0]) if reached.size else None


def best_rate(curves: Curves, which: bool, loss: float) -> float | None:
    """Return the learning rate that reaches the loss first."""
    updates = {
        rate: updates_to(loss, runs) for (normed, rate), runs in curves.items() if normed == which
    }
    arrived = {rate: number for rate, number in updates.items() if number is not None}
    return min(arrived, key=lambda rate: arrived[rate], default=None)


def report(curves: Curves, rates: list[float], loss: float) -> str:
    """Return a table of all rates, and the conclusion."""
    kind = "{:>12}{:>12}{:>9}"
    heads = kind.format(f"to {loss:g}", "final loss", "errors")
    lines = [
        f"{'':<8}{NAMES[False]:>33}{NAMES[True]:>33}",
        f"{'rate':<8}{heads}{heads}",
    ]
    for rate in rates:
        cells = ""
        for which in NAMES:
            runs = curves[which, rate]
            error = np.mean([curve.error for curve in runs])
            reached = updates_to(loss, runs) or "never"
            cells += kind.format(reached, f"{mean_losses(runs)[-1]:.4f}", f"{error:.1%}")
        lines.append(f"{rate:<8g}{cells}")
    lines.append(f"'to {loss:g}': updates until the training loss, of an epoch, is down to that.\n")
    lines.append(conclusion(curves, rates, loss))
    return "\n".join(lines)


def conclusion(curves: Curves, rates: list[float], loss: float) -> str:
    """Say whether layer norm reaches the loss sooner, at the same rate and at the best of each."""
    updates = {key: updates_to(loss, runs) for key, runs in curves.items()}
    never = float("inf")
    sooner = sum((updates[True, r] or never) < (updates[False, r] or never) for r in rates)
    lines = [f"Layer norm gets to {loss:g} sooner at {sooner} of {len(rates)} learning rates."]
    spans = []
    for which in NAMES:
        arrived = [rate for rate in rates if updates[which, rate] is not None]
        spans.append(f"up to {max(arrived):g}" if arrived else "none")
    lines.append("Rates that get there: plain {}, layer norm {}.".format(*spans))
    plain, normed = (best_rate(curves, which, loss) for which in NAMES)
    if plain is not None and normed is not None:
        best, same = updates[False, plain], updates[True, plain] or "never"
        lines.append(f"At the rate that is best without it: {same} updates instead of {best}.")
        lines.append(f"Each at its own best rate: {updates[True, normed]} instead of {best}.")
    return "\n".join(lines)


def plot(curves: Curves, rates: list[float], loss: float, path: Path) -> None:
    """Plot learning curves at the best rate of each network, and final losses at all rates."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "ln_array_api", "svg.fonttype": "none", "font.size": 9})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for which, colour in ((False, "#c8553d"), (True, "#2a6f97")):
        rate = best_rate(curves, which, loss) or rates[0]
        runs = curves[which, rate]
        updates = EPOCH + np.arange(len(runs[0].losses))
        for curve in runs:
            left.plot(updates, curve.losses, color=colour, alpha=0.3, linewidth=0.8)
        label = f"{NAMES[which]}, rate {rate:g}"
        left.plot(updates, mean_losses(runs), color=colour, linewidth=2, label=label)
        ends = np.asarray([[curve.losses[-1] for curve in curves[which, each]] for each in rates])
        right.plot(rates, ends, "o", color=colour, alpha=0.35, markersize=4)
        right.plot(rates, ends.mean(axis=1), color=colour, linewidth=2, label=NAMES[which])
    left.axhline(loss, color="#888888", linewidth=0.8, linestyle=":")
    left.set(xlabel="updates", ylabel="training loss", title="Each at the rate that suits it best")
    right.set(xlabel="learning rate", xscale="log", title="After the last update, by rate")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a recurrent network to read digits, with and without layer norm, and "
        "compare how fast it learns.",
    )
    add = parser.add_argument
    add("--library", choices=LIBRARIES, default="numpy", help="array library (default: numpy)")
    add("--pixels", action="store_true", help="read 64 pixels one by one, not 8 rows: harder")
    add("--rates", type=float, nargs="+", default=[0.01, 0.02, 0.05, 0.1, 0.2, 0.5], metavar="R")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each kind (default: 3)")
    add("--epochs", type=int, default=20, metavar="N", help="of 30 updates (default: 20)")
    add("--loss", type=float, help="target loss (default: 0.1, or 0.6 with --pixels)")
    add("--hidden", type=int, default=64, metavar="N", help="size of the state (default: 64)")
    add("--clip", type=float, default=1.0, metavar="L", help="largest gradient norm (default: 1)")
    add("--gaussian", type=float, metavar="S", help="Gaussian recurrent weights of this scale")
    add("--plot", type=Path, metavar="FILE", help="draw the learning curves, as .svg or .png")
    options = parser.parse_args()
    positive = [options.seeds, options.epochs, options.hidden, options.clip, *options.rates]
    if min(positive) <= 0 or (options.gaussian or 1) <= 0:
        parser.error("all numbers must be positive")
    if options.loss is None:
        options.loss = 0.6 if options.pixels else 0.1
    return options


def main() -> None:
    options = parse_arguments()
    try:
        module = importlib.import_module(LIBRARIES[options.library])
        xp = array_namespace(module.zeros(1))
        data = digits(xp, 64 if options.pixels else 8)
    except ModuleNotFoundError as error:
        sys.exit(f"{error}; pip install {options.library} scikit-learn")
    update = importlib.import_module("jax").jit(step) if options.library == "jax" else step
    settings = {"epochs": options.epochs, "clip": options.clip, "update": update}
    steps, features = data.x.shape[0], data.x.shape[-1]
    print(
        f"{IMAGES} digits, read in {steps} steps; a state of {options.hidden}; {options.seeds} "
        f"runs of each kind, {options.epochs} epochs; arrays of {options.library}.\n",
        flush=True,
    )
    start = time.perf_counter()
    curves: Curves = {}
    np.seterr(over="ignore", invalid="ignore")  # in networks that diverge
    for which in NAMES:
        for rate in options.rates:
            nets = (
                network(which, features, options.hidden, seed, options.gaussian)
                for seed in range(options.seeds)
            )
            curves[which, rate] = [
                train(xp, data, net, rate, seed=seed, **settings) for seed, net in enumerate(nets)
            ]
    print(report(curves, options.rates, options.loss))
    print(f"\n{time.perf_counter() - start:.0f} s for {len(curves) * options.seeds} networks.")
    if options.plot is not None:
        plot(curves, options.rates, options.loss, options.plot)


if __name__ == "__main__":
    main()
