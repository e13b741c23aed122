"""Every operation runs on the device of its arrays, whichever device is current."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cupy
import cupy_on_cpu
import numpy as np
import pytest
from cupy._util import PerformanceWarning
from ln_array_api_conformance import operation_calls as calls
from ln_array_api_conformance.libraries import CuPy
from ln_array_api_conformance.operation_spec import OperationSpec, gradient_of_y, make_inputs
from ln_array_api_conformance.operations import OPERATIONS
from ln_array_api_conformance.row_view import row_inputs
from test_stages import LAUNCHES
from test_stages import calls as stage_calls

import ln_array_api as ln
from ln_array_api import backend, caffe2
from ln_array_api._dispatch import cache
from ln_array_api._support import PLACES, backend_of

LIBRARY = CuPy()
Device = cupy.cuda.Device
#: Creates the arrays of a call on the current device, and returns the call.
Scenario = Callable[[], Callable[[], Any]]


def rows_in_columns(values: np.ndarray, axis: int) -> Any:
    """Return an array whose given axis has the largest stride."""
    return cupy.moveaxis(cupy.asarray(np.moveaxis(values, axis, 0).copy()), 0, axis)


#: Memory layouts by name.
LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "contiguous": cupy.asarray,
    "sliced": lambda a: cupy.asarray(np.concatenate([a, a], axis=-1))[..., : a.shape[-1]],
    "transposed": lambda a: rows_in_columns(a, -1),
    "channels last": lambda a: cupy.moveaxis(
        cupy.asarray(np.moveaxis(a, 1, -1).copy()), -1, 1
    ),
    "broadcast": lambda a: cupy.broadcast_to(cupy.asarray(a[:1]), a.shape),
}  # fmt: skip
#: The layouts of x and of dy.
PAIRS = [
    ("contiguous", "contiguous"),
    ("contiguous", "transposed"),
    ("sliced", "sliced"),
    ("transposed", "transposed"),
    ("channels last", "broadcast"),
]


def arrays_in(result: Any) -> list[Any]:
    """Return the arrays of a result, including those in named tuples and moments."""
    if isinstance(result, ln.Moments):
        result = (result.mean, result.m2, result.missed)
    if isinstance(result, list | tuple):
        return [array for each in result for array in arrays_in(each)]
    return [] if result is None else [result]


def contents(results: list[Any]) -> list[tuple[Any, ...]]:
    return [(each.dtype, each.shape, each.strides, each.get().tobytes()) for each in results]


def check(scenario: Scenario, device: int, current: int) -> None:
    """Run a call on the arrays of one device while another is current, then while its own is."""
    with Device(device):
        call = scenario()
    backend.plans.clear()
    with Device(current):
        for _ in range(2):  # makes a plan, then finds it
            costs, elsewhere = cupy_on_cpu.counts(), cupy_on_cpu.allocations_on(current)
            results = arrays_in(call())
            after = cupy_on_cpu.counts()
            assert cupy.cuda.runtime.getDevice() == current
            assert cupy_on_cpu.allocations_on(current) == elsewhere
            for each in ("synchronisations", "copies_to_host", "copies_between_devices"):
                assert after[each] == costs[each], each
            for each in results:
                assert each.device.id == device
                if each.size:
                    assert cupy_on_cpu.memory_device(each.data.ptr) == device
    assert results
    actual = contents(results)
    with Device(device):
        assert actual == contents(arrays_in(call()))


def of_rows(operation: OperationSpec, x: str, dy: str) -> Scenario:
    """Run both passes of layer norm or RMS norm, over the last axis and the first."""

    def scenario() -> Callable[[], Any]:
        rng = np.random.default_rng(0)
        draw = [rng.standard_normal((5, 6)).astype(np.float32) for _ in range(2)]
        data, gradient = LAYOUTS[x](draw[0]), LAYOUTS[dy](draw[1])
        _, *given = calls.arrays(LIBRARY, row_inputs(operation, draw[0], "float32")).values()
        last = dict(zip(operation.inputs, (data, *given), strict=True))
        first = {name: each if name == "x" else each[:5] for name, each in last.items()}
        outs = [cupy.empty((5, 6), np.float32), cupy.empty((5, 12), np.float32)[:, ::2]]
        outs = outs if operation.has_out else []
        return lambda: [
            operation.function(*last.values()),
            *(operation.function(*last.values(), out=out) for out in outs),
            *(operation.forward(*first.values(), axis=0, out=out) for out in outs[1:]),
            calls.forward_backward(operation, LIBRARY, gradient, last),
            calls.forward_backward(operation, LIBRARY, gradient, first, axis=0),
        ]

    return scenario


def of_main_case(operation: OperationSpec, x: str, dy: str) -> Scenario:
    """Run both passes of an operation outside of rows."""

    def scenario() -> Callable[[], Any]:
        case = operation.main_case
        plain = make_inputs(operation, case, "normal", "float32")
        given = calls.arrays(LIBRARY, plain)
        given[operation.x] = LAYOUTS[x](plain[operation.x])
        gradient = LAYOUTS[dy](gradient_of_y(operation, case, "float32"))
        return lambda: [
            calls.y(operation, LIBRARY, given, **case.options),
            calls.forward_backward(operation, LIBRARY, gradient, given, **case.options),
        ]

    return scenario


def of_moments(x: str, dy: str) -> Scenario:
    """Compute statistics of two arrays, and merge them."""

    def scenario() -> Callable[[], Any]:
        values = np.random.default_rng(0).standard_normal((5, 4, 6)).astype(np.float32)
        one, two = LAYOUTS[x](values), LAYOUTS[dy](values + 1)

        def call() -> Any:
            moments = [ln.Moments.of(each, axis=(0, 2)) for each in (one, two)]
            merged = moments[0].merge(moments[1])
            return [*moments, merged, merged.var, merged.unbiased_var]

        return call

    return scenario


def of_caffe2(x: str, dy: str) -> Scenario:
    """Run operators of Caffe2."""

    def scenario() -> Callable[[], Any]:
        rng = np.random.default_rng(0)
        draw = [rng.standard_normal((5, 6)).astype(np.float16) for _ in range(2)]
        data, gradient = LAYOUTS[x](draw[0]), LAYOUTS[dy](draw[1])
        gamma, beta = cupy.asarray(draw[0][0]), cupy.asarray(draw[1][0])
        outputs = ["y", "mean", "stddev"]
        definition = caffe2.create_operator(
            "LayerNorm", ["x", "gamma", "beta"], outputs, elementwise_affine=True
        )
        (backward,), _ = caffe2.get_gradient_defs(definition, ["dy", None, None])
        add = caffe2.create_operator("Sum", ["x", "dy"], ["sum"])

        def call() -> Any:
            result = caffe2.LayerNormOp(definition).run_on_device(data, gamma, beta)
            saved = (gradient, *result, data, gamma)
            return [
                result,
                caffe2.LayerNormGradientOp(backward).run_on_device(*saved),
                caffe2.SumOp(add).run_on_device(data, gradient),
            ]

        return call

    return scenario


SCENARIOS: dict[str, Callable[[str, str], Scenario]] = {
    **{
        name: partial(of_rows if each.over_rows else of_main_case, each)
        for name, each in OPERATIONS.items()
    },
    "Moments": of_moments,
    "caffe2": of_caffe2,
}
PLANNED = [name for name in SCENARIOS if name != "Moments"]
#: The device of the arrays and the current one.
DIRECTIONS = [(1, 0), (0, 1)]


@pytest.fixture(params=["cupy", "generic"])
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with ln.use_backend(request.param):
        yield


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize(("device", "current"), DIRECTIONS)
@pytest.mark.parametrize(("x", "dy"), PAIRS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_operations(name: str, x: str, dy: str, device: int, current: int) -> None:
    check(SCENARIOS[name](x, dy), device, current)


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize(("device", "current"), DIRECTIONS)
@pytest.mark.parametrize("stage", LAUNCHES)
def test_stages(stage: str, device: int, current: int) -> None:
    check(lambda: stage_calls("float32", 7, 5)[stage], device, current)


@pytest.fixture
def _peer_access() -> Iterator[None]:
    """Let devices access each other's memory, which hides a kernel on the wrong device."""
    cupy_on_cpu.driver.fake_cuda_set_peer_access(1)
    with warnings.catch_warnings(action="ignore", category=PerformanceWarning):
        yield
    cupy_on_cpu.driver.fake_cuda_set_peer_access(0)


@pytest.mark.usefixtures("_backend", "_peer_access")
@pytest.mark.parametrize("name", SCENARIOS)
def test_operations_with_peer_access(name: str) -> None:
    check(SCENARIOS[name]("sliced", "transposed"), 1, 0)


@pytest.mark.usefixtures("_backend", "_peer_access")
@pytest.mark.parametrize("stage", LAUNCHES)
def test_stages_with_peer_access(stage: str) -> None:
    check(lambda: stage_calls("float32", 7, 5)[stage], 1, 0)


#: Errors of a call on the wrong device: of a check, of the driver, or of a kernel.
NOTICED = (AssertionError, ValueError, cupy.cuda.driver.CUDADriverError)


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("peer_access", [False, True])
@pytest.mark.parametrize("name", PLANNED)
def test_plans_that_do_not_enter_a_device_are_noticed(
    name: str, peer_access: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if peer_access:
        request.getfixturevalue("_peer_access")
    monkeypatch.setattr(cache, "bound_to_device", lambda device, current_device, call: call)
    with pytest.raises(NOTICED):
        check(SCENARIOS[name]("sliced", "transposed"), 1, 0)


def test_every_public_operation_is_here() -> None:
    tested = {ln.Moments, ln.backends, ln.explain, ln.use_backend}
    for each in OPERATIONS.values():
        tested |= {each.function, each.forward}
        tested |= {each.backward} if each.has_backward else set()
    public = {getattr(ln, name) for name in ln.__all__}
    classes = {each for each in public if isinstance(each, type)} - {ln.Moments}
    assert all(issubclass(each, Exception | tuple) for each in classes)
    assert public - classes == tested
    stages = {name for name in caffe2.__all__ if inspect.isfunction(vars(caffe2.stages).get(name))}
    assert len(stages) == len(LAUNCHES)
    operators = {name for name in caffe2.__all__ if name.endswith("Op")}
    assert operators == {"LayerNormOp", "LayerNormGradientOp", "SumOp"}


def test_arrays_of_one_kind_on_either_device() -> None:
    """A plan for one device serves neither the other nor arrays on both."""
    arrays = []
    for number in (0, 1):
        with Device(number):
            arrays.append((cupy.ones((4, 3), np.float32), cupy.ones(3, np.float32)))
    for device in (0, 1, 0, 1):
        x, gamma = arrays[device]
        elsewhere = cupy_on_cpu.allocations_on(1 - device)
        for results in (ln.layer_norm_forward(x, gamma), ln.batch_norm_forward(x, gamma)):
            assert {each.device.id for each in arrays_in(results)} == {device}
        assert cupy_on_cpu.allocations_on(1 - device) == elsewhere
        for function in (ln.layer_norm_forward, ln.batch_norm_forward):
            with pytest.raises(ln.DeviceMismatchError):
                function(x, arrays[1 - device][1])


@pytest.mark.parametrize("name", [name for name in OPERATIONS if not OPERATIONS[name].over_rows])
def test_explain(name: str) -> None:
    """The layout and dtypes are determined on the device of x, too."""
    operation = OPERATIONS[name]
    with Device(1):
        _, given = calls.right_call(operation, LIBRARY)
    before = cupy_on_cpu.allocations_on(0)
    explanation = ln.explain(operation.forward, *given.values(), **operation.main_case.options)
    (place,) = (each for each in PLACES if each.library == "cupy")
    assert explanation.backend == backend_of(name, place)
    assert cupy_on_cpu.allocations_on(0) == before


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("device", [0, 1])
def test_arrays_on_different_devices(device: int, current: int) -> None:
    with Device(device):
        x, one, three = cupy.ones((4, 3), np.float32), cupy.ones((), np.float32), cupy.ones(3)
        moments, mean = ln.Moments.of(x, axis=0), x[:, 0]
    with Device(1 - device):
        gamma, alpha, others = cupy.ones(3), cupy.ones((), np.float32), cupy.ones(4, np.float32)
        other = ln.Moments.of(cupy.ones((9, 3), np.float32), axis=0)
        y = cupy.ones((4, 3), np.float32)
    add = caffe2.SumOp(caffe2.create_operator("Sum", ["a", "b"], ["c"]))
    for function, *arrays in (
        (ln.layer_norm, x, gamma),
        (ln.layer_norm, x[:, ::2], gamma[::2]),
        (ln.batch_norm_forward, x, None, None, gamma),
        (ln.weight_norm, x, others),
        (ln.dynamic_tanh, x, alpha),
        (ln.dynamic_tanh, x, one, gamma),
        (ln.batch_instance_norm, x[..., None], three, gamma),
        (moments.merge, other),
        (caffe2.compute_sigma_and_fused_params, mean, others, 1e-5),
        (add.run_on_device, x, y),
    ):
        with Device(current):
            before = cupy_on_cpu.counts()
            with pytest.raises(ln.DeviceMismatchError):
                function(*arrays)
            assert cupy.cuda.runtime.getDevice() == current
            assert cupy_on_cpu.counts() == before


def test_with_one_device_calls_do_not_check_it() -> None:
    code = """
import cupy_on_cpu, cupy
import ln_array_api as ln
from ln_array_api import _arrays, backend
from ln_array_api_conformance.libraries import CuPy
x = cupy.ones((3, 4))
_arrays.library_of(x)
ln.layer_norm(x)
(plan,) = backend.plans.values()
print(_arrays.library_of(x).current_device, "run" in vars(plan), CuPy().has_second_device)
"""
    environment = {**os.environ, "CUDA_ON_CPU_DEVICES": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.split() == ["None", "False", "False"]
