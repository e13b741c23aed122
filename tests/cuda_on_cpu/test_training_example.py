"""The training step of the examples, on the simulated device, without cuBLAS and cuRAND."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "cupy_training.py"


class Draws:
    """The part of CuPy's RandomState that the example needs, on the host."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def standard_normal(self, size: tuple[int, ...], dtype: str) -> Any:
        return cupy.asarray(self.rng.standard_normal(size).astype(dtype))


def matmul(a: Any, b: Any) -> Any:
    return (a[:, :, None] * b[None, :, :]).sum(axis=1)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("cupy_training", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "matmul", matmul)
    monkeypatch.setattr(cupy.random, "RandomState", Draws)
    return module


def test_it_learns_and_a_graph_does_the_same(example: Any, capsys: Any) -> None:
    plain, captured = example.main(["--steps=21", "--rows=24", "--features=6", "--hidden=40"])
    assert len(plain) == 3
    assert plain[-1] < 0.5 * plain[0]
    assert plain == captured
    printed = capsys.readouterr().out
    assert "backend    cupy" in printed
    assert printed.count("µs a step") == 2


def test_a_captured_step_is_one_launch(example: Any) -> None:
    x = example.network(4, 8, seed=0)
    target, loss = cupy.zeros((4, 1), "float32"), cupy.zeros((), "float32")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        launch = example.captured(
            stream, lambda: example.train(x, x.first[:, :4], target, loss, rate=0.1)
        )
        before = cupy_on_cpu.counts()
        launch()
        assert cupy_on_cpu.counts() == {**before, "launches": before["launches"] + 1}


def test_gradients_are_those_of_the_loss(example: Any) -> None:
    """A step along the gradient lowers the loss by rate * |gradient|², for a small rate."""
    rng = np.random.default_rng(0)
    x = cupy.asarray(rng.standard_normal((16, 5)).astype("float32"))
    target, loss = example.predict(example.network(5, 12, seed=1), x), cupy.zeros((), "float32")
    net = example.network(5, 12, seed=2)
    start = [parameter.get() for parameter in net]
    rate = 1e-3
    example.train(net, x, target, loss, rate)
    first = float(loss)
    moved = sum(float(((a - b.get()) ** 2).sum()) for a, b in zip(start, net, strict=True))
    example.train(net, x, target, loss, rate=0)
    assert first - float(loss) == pytest.approx(moved / rate, rel=0.05)
