"""The others: layer norm by torch, onnxruntime, JAX and NumPy, on the same memory; and a copy.

Each function prepares all that can be prepared, and gives what is then to be timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

EPSILON = 1e-5
Call = Callable[[], Any]


def _torch(*values: np.ndarray) -> tuple[Any, ...]:
    import torch

    return tuple(
        torch.from_numpy(each.view(np.int16)).view(torch.bfloat16)
        if each.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(each)
        for each in values
    )


def torch_forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> Call:
    import torch

    x, gamma, beta = _torch(x, gamma, beta)
    return lambda: torch.native_layer_norm(x, gamma.shape, gamma, beta, EPSILON)


def torch_backward(*given: np.ndarray) -> Call:
    import torch

    dy, x, mean, rstd, gamma, beta = _torch(*given)
    backward = torch.ops.aten.native_layer_norm_backward
    return lambda: backward(dy, x, gamma.shape, mean, rstd, gamma, beta, [True] * 3)


def torch_rms_norm(x: np.ndarray, gamma: np.ndarray) -> Call:
    import torch

    x, gamma = _torch(x, gamma)
    return lambda: torch.nn.functional.rms_norm(x, gamma.shape, gamma, 1e-6)


def onnxruntime_forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, threads: int) -> Call:
    """Return a call bound to the inputs and to outputs that it overwrites."""
    import onnx
    import onnxruntime

    names = ("y", "mean", "rstd")
    node = onnx.helper.make_node(
        "LayerNormalization", ["x", "gamma", "beta"], names, epsilon=EPSILON
    )
    kind, value = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    inputs = {"x": x, "gamma": gamma, "beta": beta}
    graph = onnx.helper.make_graph(
        [node],
        "layer_norm",
        [value(name, kind, array.shape) for name, array in inputs.items()],
        [value(name, kind, None) for name in names],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = np.zeros_like(x), *(np.zeros((len(x), 1), np.float32) for _ in names[1:])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name, array in zip(names, outputs, strict=True):
        binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def call(keep_alive: Any = (inputs, outputs)) -> None:
        session.run_with_iobinding(binding)

    return call


def jax_forward(*given: np.ndarray) -> Call:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def layer_norm(x: Any, gamma: Any, beta: Any) -> Any:
        mean, var = jnp.mean(x, axis=-1, keepdims=True), jnp.var(x, axis=-1, keepdims=True)
        rstd = jax.lax.rsqrt(var + EPSILON)
        return (x - mean) * rstd * gamma + beta, mean, rstd

    arrays = tuple(map(jnp.asarray, given))
    return lambda: jax.block_until_ready(layer_norm(*arrays))


def jax_backward(*given: np.ndarray) -> Call:
    import jax
    import jax.numpy as jnp

    arrays = tuple(map(jnp.asarray, given))
    gradients = jax.jit(lambda *arrays: _gradients(jnp, *arrays))
    return lambda: jax.block_until_ready(gradients(*arrays))


def numpy_forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> Call:
    def layer_norm() -> Any:
        mean, var = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
        rstd = 1 / np.sqrt(var + np.float32(EPSILON))
        return (x - mean) * rstd * gamma + beta, mean, rstd

    return layer_norm


def numpy_backward(*given: np.ndarray) -> Call:
    return lambda: _gradients(np, *given)


def _gradients(xp: Any, dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any) -> Any:
    x_hat, g = (x - mean) * rstd, dy * gamma
    projection = xp.mean(g * x_hat, axis=-1, keepdims=True)
    dx = rstd * (g - xp.mean(g, axis=-1, keepdims=True) - x_hat * projection)
    return dx, xp.sum(dy * x_hat, axis=0), xp.sum(dy, axis=0)


def streaming_copy(x: np.ndarray, threads: int) -> Call:
    """Return a parallel copy with non-temporal stores, which reaches the memory bandwidth."""
    from ln_array_api_backends.numpy.memory import MemoryPool
    from ln_array_api_backends.numpy.simd import lanes, ones
    from ln_array_api_backends.numpy.vector_memory import (
        data_pointer,
        fence,
        load,
        store_non_temporal,
    )
    from numba import njit, prange

    @njit(parallel=True)
    def copy(x, y, parts):  # type: ignore[no-untyped-def]
        one, source, result = ones(x), data_pointer(x), data_pointer(y)
        vectors = x.size // lanes(one)
        for part in prange(parts):
            for k in range(vectors * part // parts, vectors * (part + 1) // parts):
                i = k * lanes(one)
                store_non_temporal(result, i, load(source, i, one))
            fence()

    target = MemoryPool(0).empty(x.shape, x.dtype)
    return lambda: copy(x, target, threads)
