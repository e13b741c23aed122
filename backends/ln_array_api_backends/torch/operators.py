"""The compiled kernels as operators of torch, for programs that its compiler makes.

An operator is one node of such a program, which the compiler does not look into. It could fuse the
operations of the generic kernels, but what it makes of them is slower.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ln_array_api.backend import ChannelsSpec, RowsSpec

from . import rows
from .arrays import OnArrays, of_channels

_NAMES: dict[Any, Any] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    None: None,
}
_OPTIONS = "bool center, SymInt groups, SymInt repeat"
_NEED = "bool dx, bool dgamma, bool dbeta"
_SCHEMAS = (
    f"rows_forward(Tensor x, Tensor? gamma, Tensor? beta, float epsilon, {_OPTIONS})",
    f"rows_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? gamma, {_OPTIONS}, "
    f"{_NEED})",
    "channels_forward(Tensor x, Tensor? gamma, Tensor? beta, float epsilon)",
    f"channels_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? gamma, {_NEED})",
)
_library = torch.library.Library("ln_array_api", "DEF")
for _schema in _SCHEMAS:
    _count = 4 if _schema.startswith("channels_forward") else 3
    _library.define(f"{_schema} -> ({', '.join(['Tensor'] * _count)})")


def _dtype(x: Tensor | None) -> torch.dtype | None:
    return None if x is None else x.dtype


def _single(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _in_order(x: Tensor | None) -> Any:
    return None if x is None else x.contiguous()


@cache
def _rows(shape: Any, dtype: Any, gamma: Any, beta: Any, *options: Any) -> rows.Forward:
    epsilon, center, groups, repeat = options
    names = _NAMES[dtype], _NAMES[gamma], _NAMES[beta]
    return rows.Forward(RowsSpec("torch", "cpu", shape, *names, center, epsilon, groups, repeat))


@cache
def _rows_backward(
    shape: Any, dtype: Any, gamma: Any, dy: Any, need: Any, *options: Any
) -> rows.Backward:
    center, groups, repeat = options
    spec = RowsSpec("torch", "cpu", shape, _NAMES[dtype], _NAMES[gamma], None, center)
    return rows.Backward(spec._replace(groups=groups, repeat=repeat, dy=_NAMES[dy], need=need))


@cache
def _channels(shape: Any, dtype: Any, gamma: Any, beta: Any, epsilon: float) -> OnArrays:
    names = _NAMES[dtype], _NAMES[gamma], _NAMES[beta]
    return of_channels("channels_forward", ChannelsSpec("torch", "cpu", shape, *names, epsilon))


@cache
def _channels_backward(shape: Any, dtype: Any, gamma: Any, dy: Any, need: Any) -> OnArrays:
    spec = ChannelsSpec("torch", "cpu", shape, _NAMES[dtype], _NAMES[gamma], None)
    return of_channels("channels_backward", spec._replace(dy=_NAMES[dy], need=need))


def _there(like: Tensor, *results: Tensor | None) -> tuple[Tensor, ...]:
    """Results of an operator, which are empty where a kernel's are absent."""
    return tuple(like.new_empty(0) if each is None else each for each in results)


def _rows_forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float, *options: Any
) -> tuple[Tensor, ...]:
    dtypes = x.dtype, _dtype(gamma), _dtype(beta)
    kernel = _rows(tuple(x.shape), *dtypes, epsilon, *options)
    y, mean, rstd = kernel.results(*map(_in_order, (x, gamma, beta)))
    return _there(rstd, y, mean, rstd)


def _rows_backward_of(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    options, need = options[:3], options[3:]
    dtypes = x.dtype, _dtype(gamma), dy.dtype
    kernel = _rows_backward(tuple(x.shape), *dtypes, need, *options)
    return _there(rstd, *kernel.results(*map(_in_order, (dy, x, mean, rstd, gamma))))


def _channels_forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> tuple[Tensor, ...]:
    kernel = _channels(tuple(x.shape), x.dtype, _dtype(gamma), _dtype(beta), epsilon)
    return kernel.results(*map(_in_order, (x, gamma, beta)))  # type: ignore[no-any-return]


def _channels_backward_of(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, *need: bool
) -> tuple[Tensor, ...]:
    kernel = _channels_backward(tuple(x.shape), x.dtype, _dtype(gamma), dy.dtype, need)
    return _there(rstd, *kernel.results(*map(_in_order, (dy, x, mean, rstd, gamma))))


# --- Results without values, for the compiler ----------------------------------------------------


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rows_forward_shapes(
    x: Tensor, gamma: Any, beta: Any, epsilon: float, center: bool, groups: Any, repeat: Any
) -> tuple[Tensor, ...]:
    m, single = x.shape[0], _single(x)
    mean = x.new_empty((m, 1) if center else (0,), dtype=single)
    return _like(x), mean, x.new_empty((m, 1), dtype=single)


def _rows_backward_shapes(
    dy: Any, x: Tensor, mean: Any, rstd: Tensor, gamma: Any, center: bool, groups: Any, repeat: Any,
    dx: bool, dgamma: bool, dbeta: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _gradients(x, rstd, groups * x.shape[1] // repeat, dx, dgamma, dbeta)


def _channels_forward_shapes(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    statistics = (x.new_empty((x.shape[1],), dtype=_single(x)) for _ in range(3))
    return _like(x), *statistics


def _channels_backward_shapes(
    dy: Any, x: Tensor, mean: Any, rstd: Tensor, gamma: Any, *need: bool
) -> tuple[Tensor, ...]:
    return _gradients(x, rstd, x.shape[1], *need)


def _gradients(
    x: Tensor, rstd: Tensor, length: Any, dx: bool, dgamma: bool, dbeta: bool
) -> tuple[Tensor, ...]:
    parameters = (rstd.new_empty((length,) if each else (0,)) for each in (dgamma, dbeta))
    return _like(x) if dx else rstd.new_empty(0), *parameters


# --- Derivatives ---------------------------------------------------------------------------------


class Node(torch.autograd.Function):  # type: ignore[misc]
    """A forward operator in a graph; "rows" or "channels" is the first part of its name."""

    @staticmethod
    def forward(
        ctx: Any, kind: str, x: Tensor, gamma: Tensor | None, beta: Tensor | None, *options: Any
    ) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...]
        results = getattr(torch.ops.ln_array_api, f"{kind}_forward")(x, gamma, beta, *options)
        ctx.kind, ctx.options, ctx.beta_dtype = kind, options[1:], _dtype(beta)
        ctx.save_for_backward(x, gamma, results[1], results[-1])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dmean: Any, *others: Any) -> tuple[Any, ...]:
        *dvar, drstd = others
        x, gamma, mean, rstd = ctx.saved_tensors
        need = ctx.needs_input_grad[1:4]
        dx, dgamma, dbeta = None, None, None
        if dy is not None:
            operator = getattr(torch.ops.ln_array_api, f"{ctx.kind}_backward")
            results = operator(dy, x, mean, rstd, gamma, *ctx.options, *need)
            dx, dgamma, dbeta = (
                result if wanted else None for result, wanted in zip(results, need, strict=True)
            )
        if need[0] and any(each is not None for each in (dmean, *others)):
            axes = (1,) if ctx.kind == "rows" else (0, 2)
            share = _of_statistics(x, mean, rstd, axes, dmean, dvar[0] if dvar else None, drstd)
            dx = share if dx is None else dx + share
        dgamma = None if dgamma is None else dgamma.to(gamma.dtype)
        dbeta = None if dbeta is None else dbeta.to(ctx.beta_dtype)
        return None, dx, dgamma, dbeta, *[None] * (1 + len(ctx.options))


def _of_statistics(
    x: Tensor, mean: Tensor, rstd: Tensor, axes: tuple[int, ...], dmean: Any, dvar: Any, drstd: Any
) -> Tensor:
    """The gradient of x from those of statistics over axes of x."""
    shape = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    mean = mean.reshape(shape) if mean.numel() else torch.zeros_like(rstd).reshape(shape)
    rstd, d, n = rstd.reshape(shape), x.to(rstd.dtype) - mean, x.numel() / rstd.numel()
    share = torch.zeros_like(d)
    if dmean is not None and dmean.numel():
        share = share + dmean.reshape(shape)
    if dvar is not None:
        share = share + 2 * d * dvar.reshape(shape)
    if drstd is not None:
        share = share - rstd**3 * d * drstd.reshape(shape)
    return (share / n).to(x.dtype)


for _name, _kernel, _shapes in (
    ("rows_forward", _rows_forward, _rows_forward_shapes),
    ("rows_backward", _rows_backward_of, _rows_backward_shapes),
    ("channels_forward", _channels_forward, _channels_forward_shapes),
    ("channels_backward", _channels_backward_of, _channels_backward_shapes),
):
    _library.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"ln_array_api::{_name}", _shapes, lib=_library)
