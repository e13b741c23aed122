"""The recurrent network of the examples: its gradients and its training."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn, which has the images, is not installed")

PROGRAM = Path(__file__).parents[2] / "examples" / "layer_norm_rnn.py"


@pytest.fixture(scope="module")
def rnn(load_program):
    return load_program(PROGRAM)


def batch(steps, features):
    random = np.random.default_rng(3)
    x = random.normal(size=(steps, 5, features))
    return x, np.eye(10)[random.integers(0, 10, 5)]


def small(rnn, normalised):
    net = rnn.network(normalised, 3, 7, seed=1)
    random = np.random.default_rng(2)  # gamma and beta that are neither 1 nor 0
    return rnn.combined(lambda each: each + 0.3 * random.normal(size=each.shape), net)


@pytest.mark.parametrize("normalised", [False, True])
def test_gradients_are_those_of_finite_differences(rnn, normalised):
    net, (x, target) = small(rnn, normalised), batch(4, 3)
    _, gradients = rnn.loss_and_gradients(net, x, target)

    def loss(**changed):
        return rnn.loss_and_gradients(net._replace(**changed), x, target)[0]

    tried = [name for name in net._fields if getattr(net, name) is not None]
    assert len(tried) == 5 + normalised
    for name in tried:
        value, found = getattr(net, name), getattr(gradients, name)
        assert found.shape == value.shape
        for index in np.ndindex(value.shape):
            change = np.zeros_like(value)
            change[index] = 1e-5
            slope = (loss(**{name: value + change}) - loss(**{name: value - change})) / 2e-5
            assert found[index] == pytest.approx(slope, rel=1e-6, abs=1e-9), (name, index)


def test_the_normalised_network_does_not_see_the_scale_of_its_sums(rnn):
    net, (x, _) = small(rnn, True), batch(4, 3)
    scaled = net._replace(inward=1000 * net.inward, recurrent=1000 * net.recurrent)
    (logits, _), (again, _) = rnn.forward(net, x), rnn.forward(scaled, x)
    np.testing.assert_allclose(again, logits, rtol=1e-3)
    plain = small(rnn, False)
    scaled = plain._replace(inward=1000 * plain.inward, recurrent=1000 * plain.recurrent)
    assert abs(rnn.forward(plain, x)[0] - rnn.forward(scaled, x)[0]).max() > 0.1


def test_recurrent_matrices_are_orthogonal_or_of_a_given_scale(rnn):
    orthogonal = rnn.network(True, 8, 64, seed=0).recurrent
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(64), atol=1e-14)
    gaussian = rnn.network(True, 8, 64, seed=0, gaussian=1.5).recurrent
    state = np.random.default_rng(0).normal(size=(1000, 64))
    lengths = (np.linalg.norm(each) for each in (state @ gaussian, state))
    assert next(lengths) / next(lengths) == pytest.approx(1.5, rel=0.1)


def test_clipping_keeps_the_direction_and_short_gradients(rnn):
    _, gradients = rnn.loss_and_gradients(small(rnn, True), *batch(4, 3))
    length = np.sqrt(sum((each**2).sum() for each in gradients))
    short = rnn.clipped(gradients, largest=2 * length)
    half = rnn.clipped(gradients, largest=length / 2)
    for given, same, shorter in zip(gradients, short, half, strict=True):
        np.testing.assert_allclose(same, given, rtol=1e-14)
        np.testing.assert_allclose(shorter, given / 2, rtol=1e-14)
    endless = rnn.clipped(gradients, largest=np.inf)
    np.testing.assert_array_equal(endless.inward, gradients.inward)
    assert rnn.clipped(small(rnn, False), 1.0).gamma is None


def test_momentum_goes_on_in_the_direction_of_before(rnn):
    net, images = small(rnn, True), batch(4, 3)
    zero = rnn.combined(np.zeros_like, net)
    _, once, velocity = rnn.step(net, zero, *images, 0.1, 0.5)
    _, _, later = rnn.step(once, velocity, *images, 0.1, 0.5)
    _, gradients = rnn.loss_and_gradients(once, *images)
    expected = 0.9 * velocity.inward + rnn.clipped(gradients, 0.5).inward
    np.testing.assert_allclose(later.inward, expected, rtol=1e-12)
    np.testing.assert_allclose(once.inward, net.inward - 0.1 * velocity.inward, rtol=1e-12)


def test_the_images_are_read_row_by_row_and_none_is_in_both_sets(rnn):
    data = rnn.digits(np, 8)
    assert data.x.shape == (8, 1500, 8)
    assert data.test_x.shape == (8, 297, 8)
    images = np.concatenate([data.x, data.test_x], axis=1).transpose(1, 0, 2).reshape(1797, 64)
    from sklearn.datasets import load_digits

    expected, labels = load_digits(return_X_y=True)
    targets = np.concatenate([data.target, data.test_target])
    ours, theirs = (
        sorted(map(tuple, np.column_stack(each)))
        for each in ((16 * images, targets.argmax(axis=1)), (expected, labels))
    )
    assert ours == theirs


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_another_library_learns_the_same(rnn, library):
    module = pytest.importorskip(rnn.LIBRARIES[library], reason=f"{library} is not installed")
    xp, host = rnn.array_namespace(module.zeros(1)), np
    for normalised in (False, True):
        net = rnn.network(normalised, 8, 16, seed=0)
        curves = [
            rnn.train(each, rnn.digits(each, 8), net, 0.05, epochs=1, seed=0) for each in (xp, host)
        ]
        np.testing.assert_allclose(curves[0].losses, curves[1].losses, rtol=1e-3)


def curve(rnn, *losses, error=0.1):
    return [rnn.Curve(np.asarray(losses), error)]


def test_the_conclusion_follows_the_curves(rnn):
    curves = {
        (False, 0.1): curve(rnn, 2.0, 1.0, 0.5, 0.05),
        (False, 1.0): curve(rnn, 3.0, 3.0, 3.0, 3.0),
        (True, 0.1): curve(rnn, 2.0, 1.0, 0.09, 0.05),
        (True, 1.0): curve(rnn, 2.0, 0.1, 0.2, 0.3),
    }
    text = rnn.conclusion(curves, [0.1, 1.0], 0.1)
    assert "sooner at 2 of 2 learning rates" in text
    assert "plain up to 0.1, layer norm up to 1." in text
    assert "best without it: 32 updates instead of 33" in text
    assert "own best rate: 31 instead of 33" in text
    swapped = {(not which, rate): runs for (which, rate), runs in curves.items()}
    text = rnn.conclusion(swapped, [0.1, 1.0], 0.1)
    assert "sooner at 0 of 2" in text
    assert "plain up to 1, layer norm up to 0.1." in text
    assert "best without it: never updates instead of 31" in text
    assert "own best rate: 33 instead of 31" in text
    assert "plain none, layer norm none" in rnn.conclusion(curves, [0.1, 1.0], 0.01)


def test_the_program(tmp_path):
    command = [sys.executable, "-W", "error", PROGRAM, "--epochs", "6", "--seeds", "1"]
    command += ["--rates", "0.05", "--plot", tmp_path / "curves.svg"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    [row] = [line.split() for line in done.stdout.splitlines() if line.startswith("0.05")]
    assert all(float(row[column]) < 0.2 for column in (2, 5))  # losses, from 2.3
    assert all(float(row[column].rstrip("%")) < 15 for column in (3, 6))  # errors, from 90 %
    assert "layer norm, rate 0.05" in (tmp_path / "curves.svg").read_text(encoding="utf-8")


def test_the_table_has_what_the_program_prints():
    """Compare one learning rate of the six, up to differences by rounding."""
    page = PROGRAM.with_name("README.md").read_text(encoding="utf-8")
    table = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    [column] = [k for k, head in enumerate(table[-5]) if head.strip() == "0.05"]
    updates, normed_updates, errors, normed_errors = (
        float(row[column].strip(" *%")) for row in table[-4:]
    )
    command = [sys.executable, PROGRAM, "--rates", "0.05"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    [row] = [line.split() for line in done.stdout.splitlines() if line.startswith("0.05")]
    assert float(row[1]) == pytest.approx(updates, rel=0.1)
    assert float(row[4]) == pytest.approx(normed_updates, rel=0.1)
    assert float(row[3].rstrip("%")) == pytest.approx(errors, abs=1)
    assert float(row[6].rstrip("%")) == pytest.approx(normed_errors, abs=1)


def test_wrong_options(tmp_path):
    command = [sys.executable, PROGRAM, "--epochs", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "must be positive" in done.stderr
