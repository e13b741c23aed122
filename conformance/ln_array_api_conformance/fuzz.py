"""Random calls over rows: all that a caller may vary, and how wrong ones shrink.

A call is data, so that a failure can be said in a line and run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from . import operation_calls as calls
from .checks import check_results, check_row_gradients
from .inputs import generator
from .libraries import DTYPES, Library
from .operation_spec import OperationSpec
from .operations import OPERATIONS
from .row_view import RowView, row_inputs
from .tolerances import ACCUMULATION

ROW_OPERATIONS = sorted(k for k, each in OPERATIONS.items() if "scaled rows" in each.features)
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

    operation = OPERATIONS[one_of(ROW_OPERATIONS)]
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
    needs = ["d" + name for name in operation.gradients if rng.random() < 0.7]
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
        one_of(("", "", "new", "strided", "x")) if library.writable and operation.has_out else "",
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


def check(call: Call, library: Library) -> None:
    """Run a call and hold it to the contract; raises AssertionError where it breaks it."""
    operation, view = OPERATIONS[call.operation], RowView(call.shape, call.axis)
    x, dy = _rows(call, view.m, view.n), _dy(call, view.m, view.n)
    good = np.ones(view.m, bool)
    if call.bad:
        good[0] = False
    x64 = x.astype(np.float64)
    if call.epsilon == 0.0:  # a constant row, or without a mean one of zeros, has no y without one
        centred = "mean" in operation.statistics
        good &= ~(x64.max(-1) == x64.min(-1)) if centred else x64.any(-1)
    wider = "float32" if ACCUMULATION[call.dtype] != call.dtype else "float64"
    np_inputs = row_inputs(operation, x, wider if call.wider else call.dtype, call.parameters)
    layouts = library.layouts()
    lay_out, lay_out_dy = (layouts.get(k, library.array) for k in (call.layout, call.dy_layout))
    inputs = view.arrays(library, np_inputs, lay_out)
    need = tuple(name for name in call.need if name[1:] in operation.gradients)
    result, gradients = calls.forward_backward(
        *(operation, library, lay_out_dy(view.array(dy)), inputs),
        **(view.options | {"epsilon": call.epsilon, "need": need}),
    )
    results = view.results(library, result._asdict())
    _check_out(call, operation, library, view, inputs, library.numpy(result.y))
    if not good.any():
        return
    # The library computes with the parameters in the accumulation dtype.
    accumulation = DTYPES[ACCUMULATION[call.dtype]]
    known = {
        k: a if a is None or k == "x" else a.astype(accumulation) for k, a in np_inputs.items()
    }
    options, good_results = {"epsilon": call.epsilon}, {k: a[good] for k, a in results.items()}
    check_results(operation, {**known, "x": x[good]}, options, good_results, call.dtype)
    if call.bad == "nan":
        assert np.isnan(results["y"][0].astype(np.float64)).all(), "a NaN does not spoil its row"
    if good.all():
        row_gradients = view.results(library, gradients._asdict())
        for name, actual in row_gradients.items():
            wanted = name in need and (name == "dbeta" or np_inputs[name[1:]] is not None)
            assert wanted or actual is None, f"{name} is there, and was not asked for"
            assert actual is not None or not wanted, f"{name} was asked for, and is not there"
        present = {name: each for name, each in row_gradients.items() if each is not None}
        columns = np.unique([0, view.n // 2, view.n - 1])
        check_row_gradients(
            *(operation, dy, known, options, present, call.dtype, columns), may_overflow=True
        )


def _check_out(
    call: Call,
    operation: OperationSpec,
    library: Library,
    view: RowView,
    inputs: dict[str, Any],
    y: np.ndarray,
) -> None:
    """Y has the same bits in `out`, and alone."""
    options = {**view.options, "epsilon": call.epsilon}
    x, *args = inputs.values()
    alone = operation.function(x, *args, **options)
    assert calls.to_bytes(library.numpy(alone)) == calls.to_bytes(y), "y alone has other bits"
    if not call.out or call.layout in ("byte-swapped", "read-only", "subclass"):
        return
    zeros = np.zeros(call.shape, DTYPES[call.dtype])
    out = library.array(zeros)
    if call.out == "strided":
        out = library.array(np.stack([zeros, zeros], axis=-1))[..., 1]
    if call.out == "x":
        out = x = library.array(view.array(_rows(call, view.m, view.n)))
        y = library.numpy(operation.function(x, *args, **options)).copy()  # of x in C order
    assert operation.function(x, *args, out=out, **options) is out
    assert calls.to_bytes(library.numpy(out)) == calls.to_bytes(y), f"out={call.out} has other bits"


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
            yield call._replace(**{name: default})
    for axis, length in enumerate(call.shape):
        for shorter in {1, length // 2, length - 1} - {0, length}:
            shape = tuple(shorter if k == axis else n for k, n in enumerate(call.shape))
            yield call._replace(shape=shape)
