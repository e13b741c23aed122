"""The compiled kernels as operators of torch, for programs made by its compiler.

An operator is one node of a program, opaque to the compiler. The compiler could fuse the operations
of the generic kernels instead, but the result is slower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ln_array_api.backend import ChannelsSpec, Primitive, RowsSpec

from .kernel import compiled

_NAMES: dict[Any, Any] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    None: None,
}
#: By the first part of an operator's name: the type of its specs, and which options it has.
_SPECS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "rows": (RowsSpec, ("center", "groups", "repeat", "span")),
    "channels": (ChannelsSpec, ()),
}
_OPTIONS = "bool center, SymInt groups, SymInt repeat, SymInt span"
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


def _acc_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _contiguous(x: Tensor | None) -> Any:
    return None if x is None else x.contiguous()


@cache
def _kernel(
    primitive: Primitive, shape: Any, dtypes: tuple[Any, ...], options: tuple[Any, ...]
) -> Any:
    """Return the compiled kernel for a kind of call; `dtypes` are of x, gamma, beta and dy."""
    kind, direction = primitive.split("_")
    spec_type, names = _SPECS[kind]
    names = ("epsilon", *names) if direction == "forward" else (*names, "need")
    x, gamma, beta, dy = (_NAMES[each] for each in dtypes)
    named = dict(zip(names, options, strict=True))
    return compiled(primitive, spec_type("torch", "cpu", shape, x, gamma, beta, dy=dy, **named))


def _forward(
    primitive: Primitive, x: Tensor, gamma: Tensor | None, beta: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    """Run a forward operator; its options are epsilon and those of `_SPECS`."""
    dtypes = x.dtype, _dtype(gamma), _dtype(beta), None
    kernel = _kernel(primitive, tuple(x.shape), dtypes, options)
    results = kernel.results(*map(_contiguous, (x, gamma, beta)))
    return _fill_absent(results[-1], *results)


def _backward(
    primitive: Primitive,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    *options: Any,
) -> tuple[Tensor, ...]:
    """Run a backward operator; its options are those of `_SPECS` and which gradients to give."""
    dtypes = x.dtype, _dtype(gamma), None, dy.dtype
    kernel = _kernel(primitive, tuple(x.shape), dtypes, (*options[:-3], options[-3:]))
    return _fill_absent(rstd, *kernel.results(*map(_contiguous, (dy, x, mean, rstd, gamma))))


def _fill_absent(like: Tensor, *results: Tensor | None) -> tuple[Tensor, ...]:
    """Replace absent results by empty tensors, since an operator has to return tensors."""
    return tuple(like.new_empty(0) if each is None else each for each in results)


# --- Results without values, for the compiler ----------------------------------------------------


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rows_forward_shapes(
    x: Tensor, gamma: Any, beta: Any, epsilon: float, center: bool, *param_index: Any
) -> tuple[Tensor, ...]:
    m, acc_dtype = x.shape[0], _acc_dtype(x)
    mean = x.new_empty((m, 1) if center else (0,), dtype=acc_dtype)
    return _like(x), mean, x.new_empty((m, 1), dtype=acc_dtype)


def _channels_forward_shapes(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    statistics = (x.new_empty((x.shape[1],), dtype=_acc_dtype(x)) for _ in range(3))
    return _like(x), *statistics


def _backward_shapes(
    dy: Any, x: Tensor, mean: Any, rstd: Tensor, gamma: Any, *options: Any
) -> tuple[Tensor, ...]:
    *rows, dx, dgamma, dbeta = options
    _, groups, repeat, _ = rows or (None, 1, 1, 1)
    length = groups * x.shape[1] // repeat
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
    """Return the gradient of x from those of statistics over axes of x."""
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


_OPERATORS: dict[Primitive, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "rows_forward": (_forward, _rows_forward_shapes),
    "rows_backward": (_backward, _backward_shapes),
    "channels_forward": (_forward, _channels_forward_shapes),
    "channels_backward": (_backward, _backward_shapes),
}
for _name, (_run, _shapes) in _OPERATORS.items():
    _library.impl(_name, partial(_run, _name), "CPU")
    torch.library.register_fake(f"ln_array_api::{_name}", _shapes, lib=_library)
