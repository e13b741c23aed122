"""Compare the error of layer norm at large means with that of other implementations.

Prints a table in Markdown: the largest error, in ulp of the largest result in its row (of the
largest term, for dx), over random float32 rows of 1024 with the given ratio of mean to standard
deviation, against the definition in float64. Run it as ``python benchmarks/accuracy.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import torch

import ln_array_api as ln

M, N, EPSILON = 256, 1024, np.float32(1e-5)
RATIOS = (0, 1e2, 1e4, 1e6)

Rows = np.ndarray
Contender = Callable[[Rows, Rows], tuple[Rows, Rows | None]]
"""Functions from dy and x to y and dx; None where there is none."""


def this_library(dy: Rows, x: Rows) -> tuple[Rows, Rows | None]:
    y, *statistics = ln.layer_norm_forward(x)
    return y, ln.layer_norm_backward(dy, x, *statistics).dx


def with_torch(dy: Rows, x: Rows) -> tuple[Rows, Rows | None]:
    given = torch.from_numpy(x).requires_grad_()
    y = torch.nn.functional.layer_norm(given, (N,), eps=float(EPSILON))
    y.backward(torch.from_numpy(dy))
    assert given.grad is not None
    return y.detach().numpy(), given.grad.numpy()


def with_jax(dy: Rows, x: Rows) -> tuple[Rows, Rows | None]:
    @jax.jit
    def layer_norm(x: jax.Array) -> jax.Array:
        mean, var = jnp.mean(x, axis=-1, keepdims=True), jnp.var(x, axis=-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + EPSILON)

    y, pull_back = jax.vjp(layer_norm, x)
    return np.asarray(y), np.asarray(pull_back(dy)[0])


def with_numpy(dy: Rows, x: Rows) -> tuple[Rows, Rows | None]:
    mean, var = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt(var + EPSILON)
    y = (x - mean) * rstd
    projection = (dy * y).mean(axis=-1, keepdims=True)
    return y, rstd * (dy - dy.mean(axis=-1, keepdims=True) - y * projection)


def with_onnxruntime(dy: Rows, x: Rows) -> tuple[Rows, Rows | None]:
    node = onnx.helper.make_node("LayerNormalization", ["x", "scale"], ["y"], epsilon=1e-5)
    x_type, scale_type = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [M, N]), ("scale", [N]))
    )
    y_type = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [M, N])
    graph = onnx.helper.make_graph([node], "layer_norm", [x_type, scale_type], [y_type])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x, "scale": np.ones(N, np.float32)})[0], None


CONTENDERS: dict[str, Contender] = {
    "this library": this_library,
    "onnxruntime": with_onnxruntime,
    "JAX": with_jax,
    "NumPy": with_numpy,
    "torch": with_torch,
}


def exactly(dy: Rows, x: Rows) -> tuple[Rows, Rows, Rows]:
    """Return y, dx and the largest term of dx, in float64."""
    dy, x = dy.astype(np.float64), x.astype(np.float64)
    d = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((d * d).mean(axis=-1, keepdims=True) + 1e-5)
    y = d * rstd
    projection = (dy * y).mean(axis=-1, keepdims=True)
    dx = rstd * (dy - dy.mean(axis=-1, keepdims=True) - y * projection)
    return y, dx, rstd * np.max(abs(dy), axis=-1, keepdims=True)


def ulp_off(actual: Rows, exact: Rows, scale: Rows) -> float:
    """Return the largest error, in float32 ulp of the largest `scale` in each row."""
    ulp = np.spacing(np.max(abs(scale), axis=-1, keepdims=True).astype(np.float32))
    return float(np.max(abs(actual - exact) / ulp))


def errors(contender: Contender) -> Iterator[str]:
    """Return a cell for y and one for dx at each ratio."""
    rng = np.random.default_rng(0)
    for ratio in RATIOS:
        x = (ratio + rng.standard_normal((M, N))).astype(np.float32)
        dy = rng.standard_normal((M, N)).astype(np.float32)
        exact_y, exact_dx, dx_scale = exactly(dy, x)
        y, dx = contender(dy, x)
        yield f"{ulp_off(y, exact_y, exact_y):,.1f}"
        yield "-" if dx is None else f"{ulp_off(dx, exact_dx, dx_scale):,.1f}"


def main() -> None:
    names = [f"{what}, {ratio:g} sigma" for ratio in RATIOS for what in ("y", "dx")]
    print(f"| mean = | {' | '.join(names)} |\n|---{'|---:' * len(names)}|")
    for name, contender in CONTENDERS.items():
        print(f"| {name} | {' | '.join(errors(contender))} |", flush=True)


if __name__ == "__main__":
    main()
