"""When kernels of the NumPy backend run a primitive, and as which tasks.

Kernels take rows. A program for several devices uses formulas, since XLA would gather the arrays of
a foreign call. So does an exported program, since the process that loads it may lack this library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ln_array_api.backend import RowsSpec
from ln_array_api.errors import BackendError

try:
    from ..numpy import rows_dispatch
    from ..numpy.config import ITEMSIZE
    from ..numpy.rows_backward import backward_task
    from ..numpy.rows_forward import forward_task
    from ..numpy.tasks import COUNT, Task
    from . import handlers
except (ImportError, BackendError) as error:  # without Numba, or where it compiles nothing
    missing = str(error)
else:
    missing = ""

#: A function of the arrays that are present, which is lowered.
Kernel = Callable[..., list[Any]]
#: Bytes of x from which several threads are used.
PARALLEL = 1 << 20
#: Most parts of a call: the number of threads is known only when the call runs.
PARTS = 256


def kernel_of(name: str, context: Any, avals: list[Any], **options: Any) -> Kernel | None:
    """Return the kernel for a primitive in the program of a context; None for its formula.

    `avals` has one entry for each argument, None for an absent one.
    """
    lengths = [length for aval in avals if aval is not None for length in aval.shape]
    is_known = all(isinstance(length, int) and length > 0 for length in lengths)
    if name not in _KERNELS or missing or not is_known or not _is_for_one_cpu(context):
        return None
    return _KERNELS[name](*avals, **options)


def _is_for_one_cpu(context: Any) -> bool:
    """Whether a program runs in this process, on a CPU, and its arrays are whole."""
    module = context.module_context
    if tuple(context.platforms or module.platforms) != ("cpu",):
        return False
    if module.lowering_parameters.for_export:
        return False
    devices = module.axis_context
    if hasattr(devices, "manual_axes"):  # in a shard_map a shard is whole, if all axes are manual
        return set(devices.manual_axes) == set(devices.mesh.axis_names)
    return getattr(devices, "num_devices", 0) == 1


class _Rows(NamedTuple):
    """Arrays of some axes as rows, and back."""

    shape: tuple[int, ...]
    statistic: tuple[int, ...]
    parameter: tuple[int, ...]
    order: tuple[int, ...]
    """Of axes, in which x is rows."""
    rows: tuple[int, int]
    groups: int
    repeat: int

    def spec(self, x: Any, gamma: Any, beta: Any, center: bool) -> RowsSpec:
        """Return the spec of a call, without the options that only one pass has."""
        of_arrays = x.dtype.name, _name(gamma), _name(beta), center
        return RowsSpec("jax", "cpu", self.rows, *of_arrays, groups=self.groups, repeat=self.repeat)

    def of_x(self, x: Any) -> Any:
        return jnp.transpose(x, self.order).reshape(self.rows)

    def of_statistic(self, values: Any) -> Any:
        return jnp.transpose(values, self.order).reshape(self.rows[0], 1)

    def of_parameter(self, values: Any) -> Any:
        return jnp.transpose(jnp.broadcast_to(values, self.parameter), self.order).reshape(-1)

    def back(self, values: Any, shape: tuple[int, ...]) -> Any:
        inverse = sorted(self.order, key=self.order.__getitem__)
        return jnp.transpose(values.reshape([shape[axis] for axis in self.order]), inverse)


def _rows(shape: tuple[int, ...], axes: tuple[int, ...], parameter_axes: set[int]) -> _Rows:
    """Return how arrays of a shape become rows.

    In kernels, parameters vary along the last kept axes and the first normalised ones, so the axes
    are put in that order.
    """
    varies = parameter_axes.__contains__
    kept = sorted((axis for axis in range(len(shape)) if axis not in axes), key=varies)
    normalised = sorted(axes, key=lambda axis: not varies(axis))
    return _Rows(
        shape,
        tuple(1 if axis in axes else length for axis, length in enumerate(shape)),
        tuple(length if varies(axis) else 1 for axis, length in enumerate(shape)),
        (*kept, *normalised),
        (math.prod(shape[axis] for axis in kept), math.prod(shape[axis] for axis in axes)),
        groups=math.prod(shape[axis] for axis in kept if varies(axis)),
        repeat=math.prod(shape[axis] for axis in axes if not varies(axis)),
    )


def _axes_of(*parameters: Any) -> set[int]:
    """Return the axes along which parameters vary."""
    shapes = [each.shape for each in parameters if each is not None]
    return {axis for shape in shapes for axis, length in enumerate(shape) if length > 1}


def _name(x: Any) -> str | None:
    return None if x is None else x.dtype.name


def _called(
    task: Any, arguments: Any, inputs: Sequence[int], outputs: Sequence[int], x: Any, spec: RowsSpec
) -> Kernel:
    """Return a function of the present inputs that runs a task and returns its outputs.

    `inputs` and `outputs` are indices of arguments.
    """
    given = [place for place in inputs if task.places[place] >= 0]
    wanted = [place for place in outputs if task.places[place] >= 0]
    m, n = spec.shape
    is_large = m * n * ITEMSIZE[spec.dtype] >= PARALLEL
    results = [_like(x, *arguments[place]) for place in wanted]
    places = [task.places[place] for place in given + wanted]
    parts = min(PARTS, task.words[COUNT]) if is_large else 1
    return handlers.call(task, places, results, parts)  # type: ignore[no-any-return]


def _like(x: Any, kind: Any, shape: tuple[int, ...]) -> Any:
    """Return the aval of a result: an unsharded array that varies in a shard_map as x does."""
    name = str(kind.dtype)
    whole = NamedSharding(x.sharding.mesh, PartitionSpec(*[None] * len(shape)))
    dtype = jnp.dtype(name) if name.startswith("float") else x.dtype  # 16 bits go as integers
    return x.update(shape=shape, dtype=dtype, weak_type=False, sharding=whole)


def _forward(
    x: Any, gamma: Any, beta: Any, *, axes: tuple[int, ...], epsilon: float, center: bool
) -> Kernel:
    rows = _rows(x.shape, axes, _axes_of(gamma, beta))
    spec = rows.spec(x, gamma, beta, center)._replace(epsilon=epsilon)
    arguments = rows_dispatch.forward_arguments(spec)
    task = Task(forward_task, arguments, rows_dispatch.task_count("rows_forward", spec))
    run = _called(
        task, arguments, rows_dispatch.FORWARD_INPUTS, rows_dispatch.FORWARD_OUTPUTS, x, spec
    )

    def kernel(x: Any, *parameters: Any) -> list[Any]:
        y, *statistics = run(rows.of_x(x), *map(rows.of_parameter, parameters))
        return [rows.back(y, rows.shape), *(rows.back(s, rows.statistic) for s in statistics)]

    return kernel


def _backward(
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    gamma: Any,
    *,
    axes: tuple[int, ...],
    parameter_axes: tuple[int, ...],
    need: tuple[bool, bool, bool],
) -> Kernel:
    varies = set(parameter_axes) if need[1] or need[2] else _axes_of(gamma)
    rows = _rows(x.shape, axes, varies)
    spec = rows.spec(x, gamma, None, mean is not None)._replace(need=need, dy=_name(dy))
    count = rows_dispatch.task_count("rows_backward", spec)
    arguments = rows_dispatch.backward_arguments(spec)
    task = Task(backward_task, arguments, count)
    # A single partial sum of each parameter is the result; several are dropped.
    partials = rows_dispatch.partial_count(spec)
    in_the_end = [rows_dispatch.DGAMMA_RESULT, rows_dispatch.DBETA_RESULT] if partials > 1 else []
    outputs = [rows_dispatch.DX, *in_the_end, rows_dispatch.DGAMMA, rows_dispatch.DBETA]
    run = _called(task, arguments, rows_dispatch.BACKWARD_INPUTS, outputs, x, spec)

    def kernel(dy: Any, x: Any, *others: Any) -> list[Any]:
        statistics, parameters = (
            (others[:2], others[2:]) if spec.center else (others[:1], others[1:])
        )
        results = run(
            *map(rows.of_x, (dy, x)),
            *map(rows.of_statistic, statistics),
            *map(rows.of_parameter, parameters),
        )
        shapes = (rows.shape, rows.parameter, rows.parameter)
        wanted = [shape for shape, is_wanted in zip(shapes, need, strict=True) if is_wanted]
        return [rows.back(each, shape) for each, shape in zip(results, wanted, strict=False)]

    return kernel


_KERNELS: dict[str, Callable[..., Kernel]] = {"forward": _forward, "backward": _backward}
