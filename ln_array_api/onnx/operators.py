"""ONNX's normalization operators, in terms of this library's functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._arrays import ACCUMULATION, Array, dtype_name, library_of, native_dtype, on_device_of
from .._dispatch import checks
from ..batch_norm import batch_norm, batch_norm_forward
from ..group_norm import group_norm
from ..instance_norm import instance_norm
from ..layer_norm import layer_norm, layer_norm_forward
from ..rms_norm import rms_norm
from .node import ParsedNode, parse_node

if TYPE_CHECKING:
    from onnx import NodeProto

#: The dtypes that `stash_type` may name, by their numbers in ONNX's TensorProto.
_STASH = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}


def run_node(
    node: NodeProto, inputs: Sequence[Array], /, *, opset_version: int | None = None
) -> tuple[Array | None, ...]:
    """Run a node of a model in ONNX's format on arrays of any library.

    Knows the operators LayerNormalization, RMSNormalization, GroupNormalization,
    InstanceNormalization and BatchNormalization, in each of their versions.

    Parameters
    ----------
    node : onnx.NodeProto
        The operator, its attributes, and the names of its inputs and outputs, empty for an omitted
        one.
    inputs : sequence of array
        One for each name in ``node.input`` that is not empty, all of one library and device, with
        shapes and dtypes that ONNX allows.
    opset_version : int, optional
        The opset of the node's model; by default the newest that the package onnx knows.

    Returns
    -------
    tuple of array or None
        One for each name in ``node.output``, None where that is empty, of the inputs' library and
        device.

    Raises
    ------
    ModuleNotFoundError
        If the package onnx is not installed.
    TypeError
        For dtypes that ONNX does not allow in the operator or together, an array library without
        the dtype named by `stash_type`, or arrays of different libraries.
    ValueError
        For an operator that is not supported or not in the opset; for attributes, shapes or numbers
        of inputs and outputs that ONNX does not allow.
    DeviceMismatchError
        If the arrays are not on one device.

    Notes
    -----
    ONNX defines the operators [1]_. The normalised axes are `axis` and all after it.
    GroupNormalization has a scale for each group before opset 21, and for each channel since.
    BatchNormalization computes its statistics from X where ``training_mode`` is 1, which needs more
    than one value per channel, and returns running statistics with the biased variance. That
    attribute exists since opset 14; before it, only given statistics are supported.

    `stash_type` names the dtype in which statistics are computed and elements are normalised; its
    default is float32, also for float64. Scale and bias are then applied in the dtype of X. Where
    it is the dtype in which this library accumulates X, everything is computed in it and rounded
    once: 16-bit results are then more accurate than ONNX requires.

    References
    ----------
    .. [1] https://onnx.ai/onnx/operators/

    Examples
    --------
    >>> import numpy as np
    >>> import onnx
    >>> from ln_array_api.onnx import run_node
    >>> node = onnx.helper.make_node("RMSNormalization", ["x", "scale"], ["y"], axis=0)
    >>> x = np.asarray([[3.0, -3.0], [3.0, 3.0]], np.float32)
    >>> (y,) = run_node(node, [x, np.asarray([2.0], np.float32)])
    >>> y.round(3)
    array([[ 2., -2.],
           [ 2.,  2.]], dtype=float32)
    """
    parsed = parse_node(node, inputs, opset_version, _OPERATORS)
    with on_device_of(parsed.inputs[0]):
        results = _OPERATORS[parsed.operator](parsed, *parsed.inputs)
    return tuple(
        result if wanted else None for result, wanted in zip(results, parsed.outputs, strict=False)
    )


def _layer_normalization(
    parsed: ParsedNode, x: Array, scale: Array, bias: Array | None = None
) -> tuple[Array, ...]:
    axes = _trailing_axes(parsed, x)
    options: dict[str, Any] = {"axis": axes, "epsilon": parsed.attributes["epsilon"]}
    parameters = [_broadcast_param(parsed, "Scale", scale, x, axes)]
    if bias is not None:
        parameters.append(_broadcast_param(parsed, "B", bias, x, axes))
    if not any(parsed.outputs[1:]):  # torch and JAX differentiate the plain function
        return (_normalise_then_affine(parsed, partial(layer_norm, **options), x, *parameters),)
    statistics: list[Array] = []

    def normalise(*arrays: Array) -> Array:
        y, *statistics[:] = layer_norm_forward(*arrays, **options)
        return y

    y = _normalise_then_affine(parsed, normalise, x, *parameters)
    stash = _stash_dtype(parsed, x)
    return y, *(_astype(each, stash) for each in statistics)


def _rms_normalization(parsed: ParsedNode, x: Array, scale: Array) -> tuple[Array, ...]:
    axes = _trailing_axes(parsed, x)
    normalise = partial(rms_norm, axis=axes, epsilon=parsed.attributes["epsilon"])
    parameter = _broadcast_param(parsed, "scale", scale, x, axes)
    return (_normalise_then_affine(parsed, normalise, x, parameter),)


def _group_normalization(
    parsed: ParsedNode, x: Array, scale: Array, bias: Array
) -> tuple[Array, ...]:
    groups, epsilon = parsed.attributes["num_groups"], parsed.attributes["epsilon"]
    normalise = partial(group_norm, num_groups=groups, epsilon=epsilon)
    channels = int(x.shape[checks.channel_axis(parsed.operator, 1, tuple(x.shape))])
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{parsed.operator}: num_groups={groups} does not divide the {channels} channels"
        )
    named = {"scale": scale, "bias": bias}.items()
    if parsed.version < 21:
        return (
            normalise(x, *(_for_each_group(parsed, *each, groups, channels) for each in named)),
        )
    parameters = (_for_each_channel(parsed, *each, x, channels) for each in named)
    return (_normalise_then_affine(parsed, normalise, x, *parameters),)


def _batch_normalization(
    parsed: ParsedNode, x: Array, scale: Array, bias: Array, mean: Array, var: Array
) -> tuple[Array, ...]:
    settings, epsilon = parsed.attributes, parsed.attributes["epsilon"]
    if parsed.version < 14:
        training = settings.get("is_test") == 0 or any(parsed.outputs[1:])
        if training:
            raise ValueError(
                f"{parsed.operator}: training is supported from opset 14 on; before it ONNX does "
                "not say whether the running variance is biased, nor what saved_var is"
            )
    else:
        training = bool(settings["training_mode"])
        if not training and any(parsed.outputs[1:]):
            raise ValueError(f"{parsed.operator}: only training_mode=1 gives running statistics")
    xp, shape = library_of(x).xp, tuple(x.shape)
    if len(shape) == 1:  # ONNX: one channel
        x = xp.reshape(x, (-1, 1))
    elif settings.get("spatial") == 0:  # a channel for each element of a sample
        x = xp.reshape(x, (shape[0], -1))
        scale, bias, mean, var = (
            _flat(parsed, each, shape[1:]) for each in (scale, bias, mean, var)
        )
    # ONNX allows dtypes that are narrower than that of X.
    scale, bias, wide_mean, wide_var = (_widen(each, x) for each in (scale, bias, mean, var))
    if not training:
        y = batch_norm(x, wide_mean, wide_var, scale, bias, epsilon=epsilon)
        return (xp.reshape(y, shape),)
    # The variance of a batch that enters the running one is unbiased in this library, not in ONNX.
    n = x.shape[0] * math.prod(x.shape[2:])
    unbiased = n / max(n - 1, 1)
    running = wide_mean, wide_var * unbiased
    momentum = 1 - settings["momentum"]
    result = batch_norm_forward(x, scale, bias, *running, epsilon=epsilon, momentum=momentum)
    return (
        xp.reshape(result.y, shape),
        _astype(result.running_mean, native_dtype(mean)),
        _astype(result.running_var / unbiased, native_dtype(var)),
    )


def _instance_normalization(
    parsed: ParsedNode, x: Array, scale: Array, bias: Array
) -> tuple[Array, ...]:
    return (instance_norm(x, scale, bias, epsilon=parsed.attributes["epsilon"]),)


#: Functions of a parsed node and its inputs, which return at least the wanted outputs.
_OPERATORS: dict[str, Callable[..., tuple[Array, ...]]] = {
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "BatchNormalization": _batch_normalization,
}

# --- Scale and bias ------------------------------------------------------------------------------


class _Parameter(NamedTuple):
    """A scale or a bias."""

    broadcast: Array
    """In a shape that broadcasts with x."""
    fused: Array | None
    """As this library's function takes it, or None if it cannot."""


def _trailing_axes(parsed: ParsedNode, x: Array) -> tuple[int, ...]:
    first, ndim = parsed.attributes["axis"], len(x.shape)
    checks.axes(parsed.operator, first, tuple(x.shape), name="X")
    return tuple(range(first % ndim, ndim))


def _broadcast_param(
    parsed: ParsedNode, name: str, parameter: Array, x: Array, axes: tuple[int, ...]
) -> _Parameter:
    """Return a parameter that is broadcast to x, and so may vary along any of its axes."""
    shape, xp = tuple(parameter.shape), library_of(x).xp
    backwards = zip(reversed(shape), reversed(x.shape), strict=False)
    if len(shape) > len(x.shape) or not all(n in (1, length) for n, length in backwards):
        raise ValueError(
            f"{parsed.operator}: {name} has shape {shape}, which cannot be broadcast to X of shape "
            f"{tuple(x.shape)}"
        )
    outer, inner = shape[: -len(axes)], shape[-len(axes) :]
    if any(n != 1 for n in outer) or dtype_name(parameter.dtype) != dtype_name(x.dtype):
        return _Parameter(parameter, None)
    fused = xp.broadcast_to(xp.reshape(parameter, inner), tuple(x.shape[k] for k in axes))
    return _Parameter(parameter, fused)


def _for_each_channel(
    parsed: ParsedNode, name: str, parameter: Array, x: Array, channels: int
) -> _Parameter:
    checks.same_shape(parsed.operator, name, parameter, (channels,), "one for each channel")
    shape = (channels, *(1 for _ in x.shape[2:]))
    return _Parameter(library_of(x).xp.reshape(parameter, shape), parameter)


def _for_each_group(
    parsed: ParsedNode, name: str, parameter: Array, groups: int, channels: int
) -> Array:
    """Repeat the values of groups for each channel."""
    checks.same_shape(parsed.operator, name, parameter, (groups,), "one for each group")
    xp = library_of(parameter).xp
    per_channel = xp.broadcast_to(xp.reshape(parameter, (groups, 1)), (groups, channels // groups))
    return xp.reshape(per_channel, (channels,))


def _flat(parsed: ParsedNode, parameter: Array, shape: tuple[int, ...]) -> Array:
    checks.same_shape(parsed.operator, "a parameter", parameter, shape, "that of a sample")
    return library_of(parameter).xp.reshape(parameter, (-1,))


# --- Dtypes --------------------------------------------------------------------------------------


def _normalise_then_affine(
    parsed: ParsedNode, normalise: Callable[..., Array], x: Array, *parameters: _Parameter
) -> Array:
    """Normalise x in the dtype of `stash_type`, then apply scale and bias in that of scale."""
    fused = [each.fused for each in parameters if each.fused is not None]
    if _stash(parsed) == ACCUMULATION[dtype_name(x.dtype)] and len(fused) == len(parameters):
        return normalise(x, *fused)
    normalised = _astype(normalise(_astype(x, _stash_dtype(parsed, x))), native_dtype(x))
    scale, *bias = (each.broadcast for each in parameters)
    y = _astype(normalised, scale.dtype) * scale
    return y + bias[0] if bias else y


def _stash(parsed: ParsedNode) -> str:
    number = parsed.attributes["stash_type"]
    if number not in _STASH:
        allowed = ", ".join(f"{key} ({name})" for key, name in _STASH.items())
        raise ValueError(f"{parsed.operator}: stash_type={number} is none of {allowed}")
    return _STASH[number]


def _stash_dtype(parsed: ParsedNode, x: Array) -> Any:
    """Return the dtype that `stash_type` names, in the library of x."""
    name, library = _stash(parsed), library_of(x)
    if hasattr(library.xp, name):
        return getattr(library.xp, name)
    if isinstance(x.dtype, np.dtype):  # the library shares NumPy's dtypes
        return np.dtype(getattr(np if hasattr(np, name) else import_module("ml_dtypes"), name))
    raise TypeError(f"{parsed.operator}: {library.name} has no {name}, which stash_type names")


def _widen(parameter: Array, x: Array) -> Array:
    """Return the parameter in float32, or in float64 where it or x has that dtype."""
    dtype = "float64" if "float64" in map(dtype_name, (parameter.dtype, x.dtype)) else "float32"
    return _astype(parameter, getattr(library_of(x).xp, dtype))


def _astype(x: Array, dtype: Any) -> Array:
    return library_of(x).xp.astype(x, dtype, copy=False)
