"""Random calls of layer norm and RMS norm: all that a caller may vary, and how wrong ones shrink.

A call is data, so that a failure can be said in a line and run again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from . import calls, reference, tolerances
from .inputs import generator, parameters
from .libraries import DTYPES, Library
from .operations import OPERATIONS, Operation

BY_NAME = {each.name: each for each in OPERATIONS}
#: Beside which lengths lie, on either side.
POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
EPSILONS = (0.0, 1e-12, 1e-5, 1e-3, 1.0, 100.0)
#: How far the mean may be from 0, in sigma; float16 holds no more than the first of these.
MEANS = {"float16": 10.0, "bfloat16": 1e4, "float32": 1e6, "float64": 100.0}
#: Magnitudes whose squares float32 or float64 do not hold, as powers of ten.
REACH = {"float16": (-2, 2), "bfloat16": (-30, 30), "float32": (-30, 30), "float64": (-250, 250)}
VALUES = ("normal", "mean", "magnitude", "outlier", "two values", "zeros among them", "constant")


class Call(NamedTuple):
    """All of a call but the values, which follow from its seed."""

    operation: str = "layer_norm"
    seed: int = 0
    dtype: str = "float32"
    shape: tuple[int, ...] = (2, 3)
    axis: tuple[int, ...] = (-1,)
    values: str = "normal"
    bad: str = ""
    """"nan" or "inf" somewhere in the first row, or nothing."""
    epsilon: float = 1e-5
    parameters: str = "all"
    wider: bool = False
    """Whether gamma and beta are float64 beside float32, or float32 beside 16 bits."""
    layout: str = ""
    """How x lies, as `Library.layouts` names it, or in C order."""
    dy: str = "normal"
    dy_layout: str = ""
    need: tuple[str, ...] = ("dx", "dgamma", "dbeta")
    out: str = ""
    """"new", "strided", "x", or nothing."""

    def line(self) -> str:
        """What reproduces it, as an option of the suite."""
        changed = {
            name: value
            for name, value in self._asdict().items()
            if value != self._field_defaults[name]
        }
        return f"--fuzz-call '{json.dumps(changed)}'"


def parse(text: str) -> Call:
    """The call that `Call.line` has put into words."""
    args: dict[str, Any] = json.loads(text)
    for name, value in args.items():
        args[name] = tuple(value) if isinstance(value, list) else value
    return Call(**args)


def random_call(library: Library, seed: int) -> Call:
    """A call that depends on the seed alone."""
    rng = generator("fuzz", seed)

    def one_of(choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    operation = BY_NAME[one_of(sorted(BY_NAME))]
    dtype = one_of(library.dtypes)
    rank = int(rng.integers(1, 4))
    shape = tuple(max(1, one_of(POWERS[:5]) + int(rng.integers(-1, 2))) for _ in range(rank))
    over = tuple(sorted(int(each) for each in rng.permutation(rank)[: rng.integers(1, rank + 1)]))
    longest = one_of(POWERS if rank < 3 else POWERS[:7]) + int(rng.integers(-1, 2))
    grown = one_of(over) if rng.random() < 0.8 else int(rng.integers(rank))
    shape = tuple(max(1, longest) if k == grown else n for k, n in enumerate(shape))
    axis = tuple(k - rank if rng.random() < 0.5 else k for k in rng.permutation(over).tolist())
    layouts = [*library.layouts(), "", ""]
    values = one_of(VALUES)
    needs = [name for name in operation.gradients if rng.random() < 0.7]
    return Call(
        operation.name,
        seed,
        dtype,
        shape,
        axis,
        values,
        one_of(("", "", "", "nan", "inf")),
        one_of(EPSILONS[1:] if values == "constant" else EPSILONS),
        one_of(("all", "all", "gamma", "beta", "none")),
        bool(rng.random() < 0.2),
        one_of(layouts),
        one_of(("normal", "alike", "ones")),
        one_of(layouts),
        tuple(needs),
        one_of(("", "", "new", "strided", "x")) if library.writable else "",
    )


def _rows(call: Call, m: int, n: int) -> np.ndarray:
    """The values of x, a row for each place along the other axes."""
    rng = generator("x", call.seed, call.values)
    x = rng.standard_normal((m, n))
    if call.values == "mean":
        x += MEANS[call.dtype] * rng.choice([-1.0, 0.01, 1.0], (m, 1))
    elif call.values == "magnitude":
        low, high = REACH[call.dtype]
        x *= 10.0 ** rng.integers(low, high + 1)
    elif call.values == "outlier":
        most = 2.0 if call.dtype == "float16" else 4.0
        x[np.arange(m), rng.integers(0, n, m)] = 10 ** rng.uniform(1, most, m)
    elif call.values == "two values":
        x = np.where(x < 0.0, 1.0, 1.0 + 2.0**-7)
    elif call.values == "zeros among them":
        x = np.where(x < 0.5, rng.choice([0.0, -0.0], (m, n)), x)
    elif call.values == "constant":
        x = np.broadcast_to(x[:, :1], (m, n)).copy()
    if call.bad:
        x[0, n // 2] = float(call.bad)
    return x.astype(DTYPES[call.dtype])


def _dy(call: Call, m: int, n: int) -> np.ndarray:
    rng = generator("dy", call.seed, call.dy)
    if call.dy == "ones":
        dy = np.ones((m, n))
    elif call.dy == "alike":
        dy = np.broadcast_to(rng.uniform(0.001, 0.4, n), (m, n))
    else:
        dy = rng.standard_normal((m, n))
    return dy.astype(DTYPES[call.dtype])


class _Axes:
    """From rows to an array of a call's shape, and back."""

    def __init__(self, call: Call) -> None:
        rank = len(call.shape)
        self.over = sorted(axis % rank for axis in call.axis)
        kept = [axis for axis in range(rank) if axis not in self.over]
        self.order = [*kept, *self.over]
        self.split = [call.shape[axis] for axis in self.order]
        self.m = math.prod(call.shape[axis] for axis in kept)
        self.n = math.prod(call.shape[axis] for axis in self.over)

    def array(self, rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(rows.reshape(self.split).transpose(np.argsort(self.order)))

    def rows(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(array.transpose(self.order)).reshape(self.m, self.n)


def check(call: Call, library: Library) -> None:
    """Run a call and hold it to the contract; raises AssertionError where it breaks it."""
    operation, axes = BY_NAME[call.operation], _Axes(call)
    x, dy = _rows(call, axes.m, axes.n), _dy(call, axes.m, axes.n)
    good = np.ones(axes.m, bool)
    if call.bad:
        good[0] = False
    x64 = x.astype(np.float64)
    if call.epsilon == 0.0:  # a constant row, or for RMS norm one of zeros, has no y without one
        centred = "mean" in operation.statistics
        constant = x64.max(-1) == x64.min(-1) if centred else ~x64.any(-1)
        good &= ~constant
    np_params, args = _parameters(call, operation, library, axes)
    lie = library.layouts().get(call.layout, library.array)
    dy_lies = library.layouts().get(call.dy_layout, library.array)
    before = lie(axes.array(x))
    options: dict[str, Any] = {"axis": call.axis, "epsilon": call.epsilon}
    result, gradients = calls.forward_backward(
        operation, library, dy_lies(axes.array(dy)), before, args, need=call.need, **options
    )
    y = axes.rows(library.numpy(result.y))
    _check_out(call, operation, library, axes, before, args, options, library.numpy(result.y))
    if not good.any():
        return
    expected = reference.forward(operation.reference, x[good], *np_params, call.epsilon)
    tolerances.assert_close("y", y[good], expected.y, tolerances.Y, expected.scale, call.dtype)
    if call.bad == "nan":
        assert np.isnan(y[0].astype(np.float64)).all(), "a NaN does not spoil its row"
    _check_statistics(call, operation, library, result, x, good, expected)
    if good.all():
        _check_gradients(call, operation, library, axes, dy, x, np_params[0], gradients)


def _parameters(
    call: Call, operation: Operation, library: Library, axes: _Axes
) -> tuple[tuple[Any, Any], list[Any]]:
    """Gamma and beta as rows that the reference takes, and as arguments of the call."""
    dtype = call.dtype
    if call.wider:
        dtype = "float32" if dtype in ("float16", "bfloat16") else "float64"
    gamma, beta = parameters(dtype, axes.n)
    gamma_or_none = gamma if call.parameters in ("all", "gamma") else None
    with_beta = call.parameters in ("all", "beta") and "beta" in operation.parameters
    shape = [call.shape[axis] for axis in axes.over]
    np_params = gamma_or_none, beta if with_beta else None
    args = [None if each is None else library.array(each.reshape(shape)) for each in np_params]
    accumulation = DTYPES[tolerances.ACCUMULATION[call.dtype]]
    rounded = [None if each is None else each.astype(accumulation) for each in np_params]
    return (rounded[0], rounded[1]), args[: len(operation.parameters)]


def _check_out(
    call: Call,
    operation: Operation,
    library: Library,
    axes: _Axes,
    x: Any,
    args: list[Any],
    options: dict[str, Any],
    y: np.ndarray,
) -> None:
    """Y has the same bits in `out`, and alone."""
    alone = operation.function(x, *args, **options)
    assert calls.to_bytes(library.numpy(alone)) == calls.to_bytes(y), "y alone has other bits"
    if not call.out or call.layout in ("byte-swapped", "read-only", "subclass"):
        return
    zeros = np.zeros(call.shape, DTYPES[call.dtype])
    out = library.array(zeros)
    if call.out == "strided":
        out = library.array(np.stack([zeros, zeros], axis=-1))[..., 1]
    if call.out == "x":
        out = x = library.array(axes.array(_rows(call, axes.m, axes.n)))
        y = library.numpy(operation.function(x, *args, **options)).copy()  # of x in C order
    assert operation.function(x, *args, out=out, **options) is out
    assert calls.to_bytes(library.numpy(out)) == calls.to_bytes(y), f"out={call.out} has other bits"


def _check_statistics(
    call: Call,
    operation: Operation,
    library: Library,
    result: Any,
    x: np.ndarray,
    good: np.ndarray,
    expected: reference.Expected,
) -> None:
    accumulation = tolerances.ACCUMULATION[call.dtype]
    rstd = library.numpy(result.rstd).reshape(-1, 1)[good]
    assert rstd.dtype == DTYPES[accumulation]
    relative = tolerances.RSTD * float(np.finfo(DTYPES[accumulation]).eps)
    exact = np.asarray(expected.rstd, np.float64)
    np.testing.assert_allclose(rstd.astype(np.float64), exact, rtol=relative, err_msg="rstd")
    if "mean" in operation.statistics:
        max_abs = np.max(abs(x[good].astype(np.float64)), axis=-1, keepdims=True)
        mean = library.numpy(result.mean).reshape(-1, 1)[good]
        tolerances.assert_close("mean", mean, expected.mean, tolerances.MEAN, max_abs, accumulation)


def _check_gradients(
    call: Call,
    operation: Operation,
    library: Library,
    axes: _Axes,
    dy: np.ndarray,
    x: np.ndarray,
    gamma: Any,
    gradients: Any,
) -> None:
    columns = np.unique([0, axes.n // 2, axes.n - 1])
    exact = reference.gradients(operation.reference, dy, x, gamma, call.epsilon, columns)
    checks = (
        ("dx", exact.dx, tolerances.DX, exact.dx_scale),
        ("dgamma", exact.dgamma, tolerances.PARAMETER_GRADIENT, exact.dgamma_scale),
        ("dbeta", exact.dbeta, tolerances.PARAMETER_GRADIENT, exact.dbeta_scale),
    )
    for name, right, ulps, scale in checks:
        actual = getattr(gradients, name, None)
        if name not in call.need or (name == "dgamma" and gamma is None):
            assert actual is None, f"{name} is there, and was not asked for"
            continue
        values = library.numpy(actual)
        values = axes.rows(values)[:, columns] if name == "dx" else values.reshape(-1)
        most = float(ml_dtypes.finfo(DTYPES[call.dtype]).max)
        overflowing = abs(np.asarray(right, np.float64)) > 0.99 * most
        assert (abs(values[overflowing].astype(np.float64)) > 0.98 * most).all(), name
        values, scale = (
            values[~overflowing],
            np.broadcast_to(scale, overflowing.shape)[~overflowing],
        )
        tolerances.assert_close(name, values, right[~overflowing], ulps, scale, call.dtype)


def shrunk(call: Call, fails: Callable[[Call], bool]) -> Call:
    """A simpler call that fails as well: each part of it at its default, or shorter, if it may."""
    while True:
        for simpler in _simpler(call):
            if fails(simpler):
                call = simpler
                break
        else:
            return call


def _simpler(call: Call) -> Iterator[Call]:
    for name, default in Call._field_defaults.items():
        if name not in ("shape", "axis", "seed") and getattr(call, name) != default:
            if name == "need" and call.operation == "rms_norm":
                continue
            yield call._replace(**{name: default})
    for axis, length in enumerate(call.shape):
        for shorter in {1, length // 2, length - 1} - {0, length}:
            shape = tuple(shorter if k == axis else n for k, n in enumerate(call.shape))
            yield call._replace(shape=shape)
