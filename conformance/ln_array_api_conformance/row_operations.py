"""Operations that normalise over the axes given by `axis`. Add a new one here."""

from __future__ import annotations

from typing import Any

import numpy as np

from .inputs import generator
from .operation_spec import AXIS, Case, NumpyInputs, operation, row_case, row_operation
from .reference import RefValues, affine, axes_of, inside, real, square_root, standardise, tanh


def _masked_and_broadcast_cases(parameters: tuple[str, ...]) -> dict[str, Case]:
    """Return calls with parameters of the rank of x, with a mask, and with an offset of gamma."""

    def ranked(shape: tuple[int, ...], *shapes: tuple[int, ...], **options: Any) -> Case:
        given = dict(zip(parameters, (*shapes, *shapes), strict=False))
        return Case({"x": shape, **given}, options)

    some = generator("where").random((3, 4, 33)) < 0.6
    some[0, 0], some[1, 1], some[2, 2] = False, True, np.arange(33) == 7
    lengths = np.asarray([0, 1, 33, 5])
    return {
        "parameters of a sample": ranked((3, 4, 33), (3, 1, 33)),
        "parameters of a head": ranked((2, 3, 4, 8), (1, 1, 4, 8)),
        "parameters of a head before the sequence": ranked((2, 4, 3, 8), (1, 4, 1, 8)),
        "parameters of samples and heads": ranked((2, 3, 4, 8), (2, 1, 4, 8)),
        "parameters of rows": ranked((3, 4, 7), (3, 4, 1), (1, 4, 1)),
        "parameters of elements": ranked((3, 4, 7), (3, 4, 7), (7,)),
        "one parameter": ranked((3, 4, 7), (1, 1, 1)),
        "unlike parameters": ranked((3, 4, 7), (7,), (3, 4, 1)),
        "parameters along another axis": ranked((3, 4, 5), (3, 4, 1), (1, 4, 5), axis=1),
        "parameters of inner elements": ranked((3, 4, 5), (1, 1, 5), axis=(1, 2)),
        "many samples": ranked((5, 70, 16), (5, 1, 16)),
        "a mask": ranked((3, 4, 33), (33,), where=some),
        "a mask along another axis": ranked((3, 4, 33), (4,), where=some, axis=1),
        "a mask of some columns": ranked((3, 4, 5), (5,), where=np.arange(5) % 2 == 1),
        "a mask and parameters of a sample": ranked((3, 4, 33), (3, 1, 33), where=some),
        "ragged rows": ranked((4, 33), (33,), where=np.arange(33) < lengths[:, None]),
        "an offset of gamma": ranked((3, 4, 5), (5,), gamma_offset=1.0),
        "an offset and a mask": ranked((3, 4, 33), (33,), gamma_offset=-2.0, where=some),
    }


@row_operation(
    ("gamma", "beta"),
    statistics=("mean", "rstd"),
    saved=("x", "mean", "rstd", "gamma", "beta"),
    has_out=True,
    more_cases=_masked_and_broadcast_cases(("gamma", "beta")),
)
def layer_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Normalise to zero mean and unit variance."""
    axis = options.get("axis", -1)
    x_hat, mean, rstd = standardise(inputs["x"], axis, options["epsilon"], options.get("where"))
    return {"y": affine(x_hat, inputs, axis, options), "mean": mean, "rstd": rstd}


@row_operation(
    ("gamma",),
    statistics=("rstd",),
    epsilon=1e-6,
    has_out=True,
    more_cases=_masked_and_broadcast_cases(("gamma",)),
)
def rms_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Scale to a mean square of 1."""
    x, axis = inside(inputs["x"], options), options.get("axis", -1)
    counted = np.broadcast_to(options.get("where", True), x.shape)
    count = np.sum(counted, axis=axes_of(axis, x.ndim), keepdims=True)
    squares = np.sum(x * x, axis=axis, keepdims=True)
    rstd = 1 / square_root(squares / np.maximum(count, 1) + options["epsilon"])
    rstd = np.where(count == 0, 0, rstd)
    return {"y": affine(x * rstd, inputs, axis, options), "rstd": rstd}


@row_operation(statistics=("rstd",), epsilon=1e-12)
def unit_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Divide x by its Euclidean norm."""
    x = inputs["x"]
    squares = np.sum(x * x, axis=options.get("axis", -1), keepdims=True)
    norm = square_root(squares + options["epsilon"])
    rstd = square_root(x.size // squares.size * np.ones_like(norm)) / norm
    return {"y": x / norm, "norm": norm, "rstd": rstd}


@row_operation(
    statistics=("norm",),
    epsilon=1e-12,
    scales_rows=False,
    cases={
        "last axis": row_case((4, 2, 9), ()),
        "two axes": row_case((3, 4, 5), (), axis=(2, 1)),
        "axis between": row_case((3, 4, 5), (), axis=1),
        "another power": row_case((3, 4, 5), (), alpha=0.3),
        "squares": row_case((3, 4, 5), (), alpha=2),
        "cubes of two axes": row_case((3, 4, 5), (), alpha=3.0, axis=(0, 2)),
        "tenth powers": row_case((3, 4, 5), (), alpha=10, epsilon=0.0),
        "a large epsilon": row_case((3, 4, 5), (), epsilon=1.0),
        "no power": row_case((3, 4, 5), (), alpha=1),
    },
    bad_options={
        **AXIS,
        "alpha is negative": (ValueError, "alpha must be finite and more than 0", {"alpha": -0.5}),
        "alpha is 0": (ValueError, "alpha must be finite and more than 0", {"alpha": 0}),
        "alpha is infinite": (ValueError, "alpha must be finite", {"alpha": float("inf")}),
        "alpha is NaN": (ValueError, "alpha must be finite", {"alpha": float("nan")}),
        "alpha is a bool": (ValueError, "alpha must be finite", {"alpha": True}),
        "alpha is a string": (TypeError, "alpha must be a real number", {"alpha": "1"}),
    },
)
def power_norm(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Divide a power of the magnitude, with the sign, by the Euclidean norm of all of them."""
    x = inputs["x"]
    sign = np.where(real(x) < 0, -1, 1)
    z = sign * (sign * x) ** options.get("alpha", 0.5)
    squares = np.sum(z * z, axis=options.get("axis", -1), keepdims=True)
    norm = square_root(squares + options["epsilon"])
    return {"y": z / norm, "norm": norm}


def _steepness(np_inputs: NumpyInputs) -> np.ndarray:
    """Return the condition: the slope of tanh is about exp(-2 * abs(alpha * x))."""
    inner = np_inputs["alpha"].astype(np.float64) * np_inputs["x"].astype(np.float64)
    return np.asarray(1 + 2 * abs(inner))


def _with_alpha(shape: tuple[int, ...], **options: Any) -> Case:
    """Return a call with gamma and beta of the axes' shape, and with a scalar alpha."""
    case = row_case(shape, ("gamma", "beta"), **options)
    return case._replace(shapes={"x": shape, "alpha": (), **case.shapes})


@operation(
    epsilon=None,
    saved=("x", "alpha", "gamma"),
    cases={
        "last axis": _with_alpha((3, 4, 6)),
        "two axes": _with_alpha((3, 4, 5), axis=(2, 0)),
        "axis between": _with_alpha((3, 4, 5), axis=1),
    },
    group_max=lambda values, options: values,
    bad_options=AXIS,
    condition=_steepness,
)
def dynamic_tanh(inputs: RefValues, options: dict[str, Any]) -> RefValues:
    """Take the hyperbolic tangent of alpha times x."""
    y = tanh(inputs["alpha"] * inputs["x"])
    return {"y": affine(y, inputs, options.get("axis", -1), options)}
