"""Three primitives of JAX, and how it transforms them.

`forward_p` and `backward_p` are run by kernels. `tangents_p` maps tangents forward. It is linear in
them, and its transpose is `backward_p`, so reverse mode runs on the kernels, and forward mode is
supported. All other derivatives are those of the formulas, traced.

Arrays keep their axes. Parameters and statistics have x's rank. `given` says which arguments of its
formula a primitive gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ln_array_api.kernels.reductions import wide_sum

from . import formulas
from .calls import kernel_of

Given = tuple[bool, ...]
Axes = tuple[int, ...]


def filled(given: Given, arrays: Iterable[Any]) -> list[Any]:
    """Return the arrays at the indices where one is given, and None at the others."""
    rest = iter(arrays)
    return [next(rest) if each else None for each in given]


def bind(primitive: Any, *arrays: Any, **options: Any) -> list[Any]:
    """Return the results of a primitive for its arguments; some are None.

    Where a sharding is part of an array's type, the formula runs instead: JAX derives the sharding
    of results from its operations.
    """
    some = formulas.present(arrays)
    if any(place is not None for each in some for place in jax.typeof(each).sharding.spec):
        return _FORMULAS[primitive](*arrays, **options)
    axes = frozenset[Any]().union(*map(_varying, some))  # along which all of them have to vary
    missing = [tuple(axes - _varying(each)) for each in some]
    some = [
        jax.lax.pcast(each, names, to="varying") if names else each
        for each, names in zip(some, missing, strict=True)
    ]
    given = tuple(each is not None for each in arrays)
    return primitive.bind(*some, given=given, **options)  # type: ignore[no-any-return]


def _varying(array: Any) -> frozenset[Any]:
    """Return the axes of the mesh of a shard_map along which an array varies."""
    kind = jax.typeof(array)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying  # type: ignore[no-any-return]
    return kind.vma  # type: ignore[no-any-return] # as it was called before JAX 0.10


def _is_zero(tangent: Any) -> bool:
    return type(tangent) is ad.Zero


def _or_none(tangent: Any) -> Any:
    return None if _is_zero(tangent) else tangent


def _jvp(
    primitive: Any, formula: Callable[..., Any], primals: Any, moved: Any, **options: Any
) -> Any:
    """Trace the derivative of the formula along the tangents that are not zero."""
    places = [place for place, each in enumerate(moved) if not _is_zero(each)]

    def along(*some: Any) -> Any:
        given = dict(zip(places, some, strict=True))
        return formula(*(given.get(i, each) for i, each in enumerate(primals)), **options)

    at, by = [primals[i] for i in places], [moved[i] for i in places]
    return primitive.bind(*primals, **options), jax.jvp(along, at, by)[1]


def _new(name: str, formula: Callable[..., list[Any]], results: Callable[..., list[Any]]) -> Any:
    """Create a primitive from its formula and a function that returns its results' avals."""
    primitive = Primitive(f"ln_array_api_{name}")
    primitive.multiple_results = True

    def by_formula(*arrays: Any, given: Given, **options: Any) -> list[Any]:
        return formula(*filled(given, arrays), **options)

    def run(*arrays: Any, **options: Any) -> list[Any]:
        with jax.disable_jit(False):  # prevents endless recursion
            return jax.jit(partial(primitive.bind, **options))(*arrays)  # type: ignore[no-any-return]

    def lower(context: Any, *operands: Any, given: Given, **options: Any) -> Any:
        kernel = kernel_of(name, context, filled(given, context.avals_in), **options)
        if kernel is None:
            kernel = partial(by_formula, given=given, **options)
        return mlir.lower_fun(kernel, multiple_results=True)(context, *operands)

    def shapes(*avals: Any, given: Given, **options: Any) -> list[Any]:
        return formulas.present(results(*filled(given, avals), **options))

    primitive.def_impl(run)
    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, lower)
    ad.primitive_jvps[primitive] = partial(_jvp, primitive, by_formula)
    return primitive


# Avals of the results.


def _like(x: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return x.update(shape=shape, dtype=dtype, weak_type=False)


def _forward_results(
    x: Any, gamma: Any, beta: Any, *, axes: Axes, center: bool, **_: Any
) -> list[Any]:
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    statistic = _like(x, shape, jnp.promote_types(x.dtype, jnp.float32))
    return [_like(x, x.shape, x.dtype), statistic if center else None, statistic]


def _backward_results(
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    gamma: Any,
    *,
    parameter_axes: Axes,
    need: Given,
    **_: Any,
) -> list[Any]:
    shape = tuple(n if axis in parameter_axes else 1 for axis, n in enumerate(x.shape))
    parameter = _like(x, shape, rstd.dtype)
    results = (_like(x, x.shape, x.dtype), parameter, parameter)
    return [each if is_needed else None for each, is_needed in zip(results, need, strict=True)]


def _tangents_results(x: Any, mean: Any, rstd: Any, *others: Any, axes: Axes) -> list[Any]:
    return [
        None if each is None else _like(each, each.shape, each.dtype) for each in (x, mean, rstd)
    ]


forward_p = _new("forward", formulas.forward, _forward_results)
backward_p = _new("backward", formulas.backward, _backward_results)
tangents_p = _new("tangents", formulas.tangents, _tangents_results)
_FORMULAS: dict[Any, Callable[..., list[Any]]] = {
    forward_p: formulas.forward,
    backward_p: formulas.backward,
    tangents_p: formulas.tangents,
}

# Derivatives.


def _jvp_of_forward(primals: Any, moved: Any, *, given: Given, axes: Axes, **options: Any) -> Any:
    results = forward_p.bind(*primals, given=given, axes=axes, **options)
    mean, rstd = results[1:] if options["center"] else (None, results[1])
    x, gamma, _ = filled(given, primals)
    by = filled(given, map(_or_none, moved))
    return results, bind(tangents_p, x, mean, rstd, gamma, *by, axes=axes)


_jvp_of_formula_of_tangents = ad.primitive_jvps[tangents_p]


def _jvp_of_tangents(primals: Any, moved: Any, *, given: Given, axes: Axes) -> Any:
    fixed = sum(given[:4])
    options = {"given": given, "axes": axes}
    if not all(map(_is_zero, moved[:fixed])):
        return _jvp_of_formula_of_tangents(primals, moved, **options)
    along = map(ad.instantiate_zeros, moved[fixed:])  # in which it is linear
    results = tangents_p.bind(*primals, **options)
    return results, tangents_p.bind(*primals[:fixed], *along, **options)


def _summed_to(gradient: Any, parameter: Any) -> Any:
    """Sum a gradient over the axes along which its parameter does not vary, and others do."""
    if gradient is None:
        return None
    lengths = enumerate(parameter.aval.shape)
    axes = tuple(axis for axis, n in lengths if n == 1 and gradient.shape[axis] != 1)
    return wide_sum(jnp, gradient, axes)


def _transpose_of_tangents(cotangents: Any, *arrays: Any, given: Given, axes: Axes) -> list[Any]:
    x, mean, rstd, gamma, *moved = filled(given, arrays)
    wanted = tuple(each is not None and ad.is_undefined_primal(each) for each in moved)
    dy, of_mean, of_rstd = filled((True, mean is not None, True), map(_or_none, cotangents))
    gradients: list[Any] = [None, None, None]
    if dy is not None:
        shapes = [each.aval.shape for each in moved[1:] if each is not None]
        varying = {axis for shape in shapes for axis, length in enumerate(shape) if length != 1}
        options = {"axes": axes, "parameter_axes": tuple(sorted(varying)), "need": wanted}
        gradients = filled(wanted, bind(backward_p, dy, x, mean, rstd, gamma, **options))
        gradients[1:] = map(_summed_to, gradients[1:], moved[1:])
    if wanted[0] and not (of_mean is None and of_rstd is None):
        added = formulas.along_statistics(x, mean, rstd, of_mean, of_rstd, axes=axes)
        gradients[0] = added if gradients[0] is None else gradients[0] + added
    results = [
        ad.Zero(each.aval) if gradient is None else gradient.astype(each.aval.dtype)
        for gradient, each, is_wanted in zip(gradients, moved, wanted, strict=True)
        if is_wanted
    ]
    unknown = (each is not None and ad.is_undefined_primal(each) for each in arrays)
    return filled(tuple(unknown), results)


ad.primitive_jvps[forward_p] = _jvp_of_forward
ad.primitive_jvps[tangents_p] = _jvp_of_tangents
ad.primitive_transposes[tangents_p] = _transpose_of_tangents

# Batching adds a kept axis, the first, to arrays, parameters and their gradients.


def _batched(
    primitive: Any,
    parameters: tuple[int, ...],
    arrays: Any,
    places: Any,
    *,
    given: Given,
    axes: Axes,
    **options: Any,
) -> Any:
    batch = next(a.shape[i] for a, i in zip(arrays, places, strict=True) if i is not None)

    def moved(array: Any, place: int | None, position: int) -> Any:
        if place is not None:
            return jnp.moveaxis(array, place, 0)
        return jnp.broadcast_to(array, (1 if position in parameters else batch, *array.shape))

    positions = [position for position, is_given in enumerate(given) if is_given]
    arrays = map(moved, arrays, places, positions)
    if "parameter_axes" in options:
        options["parameter_axes"] = (0, *(axis + 1 for axis in options["parameter_axes"]))
    axes = tuple(axis + 1 for axis in axes)
    results = bind(primitive, *filled(given, arrays), axes=axes, **options)
    return results, [0] * len(results)


for _primitive, _parameters in ((forward_p, (1, 2)), (backward_p, (4,)), (tangents_p, (3, 5, 6))):
    batching.primitive_batchers[_primitive] = partial(_batched, _primitive, _parameters)
