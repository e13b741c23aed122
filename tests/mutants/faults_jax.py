"""Faults in the JAX backend: primitives, their transformations, and how XLA calls tasks."""

from __future__ import annotations

from functools import partial

from fault import Fault, suite, unit

JAX = "backends/ln_array_api_backends/jax"
PRIMITIVES, CALLS, HANDLERS = (f"{JAX}/{name}.py" for name in ("primitives", "calls", "handlers"))
FORMULAS = f"{JAX}/formulas.py"


kernels = partial(unit, "backends/jax/test_kernels.py")

FAULTS = (
    Fault(
        "every thread works on the first part",
        HANDLERS,
        "        call_task(words, part, job[_PARTS])\n",
        "        call_task(words, 0, job[_PARTS])\n",
        kernels("a_large_call"),
    ),
    Fault(
        "an unknown task is reported as run",
        HANDLERS,
        "    if task == 0:\n        return _error(call)",
        "    if task == 0:\n        return 0",
        kernels("another_process"),
    ),
    Fault(
        "programs for export call kernels",
        CALLS,
        "    if module.lowering_parameters.for_export:",
        "    if module.lowering_parameters.for_export and module is None:",
        kernels("exported"),
    ),
    Fault(
        "arrays on several devices go to kernels",
        CALLS,
        'return getattr(devices, "num_devices", 0) == 1',
        'return getattr(devices, "num_devices", 0) >= 1',
        kernels("several_devices"),
    ),
    Fault(
        "kept axes keep their order",
        CALLS,
        "kept = sorted((axis for axis in range(len(shape)) if axis not in axes), key=varies)",
        "kept = sorted(axis for axis in range(len(shape)) if axis not in axes)",
        kernels("test_batches"),
    ),
    Fault(
        "normalised axes keep their order",
        CALLS,
        "normalised = sorted(axes, key=lambda axis: not varies(axis))",
        "normalised = sorted(axes)",
        kernels("channels_last"),
    ),
    Fault(
        "partial sums are returned",
        CALLS,
        "outputs = [rows_dispatch.DX, *in_the_end, rows_dispatch.DGAMMA, rows_dispatch.DBETA]",
        "outputs = [rows_dispatch.DX, rows_dispatch.DGAMMA, rows_dispatch.DBETA, *in_the_end]",
        kernels("gradients_have"),
    ),
    Fault(
        "a batch of gradients of gamma is added up",
        PRIMITIVES,
        'options["parameter_axes"] = (0, *(axis + 1 for axis in options["parameter_axes"]))',
        'options["parameter_axes"] = tuple(axis + 1 for axis in options["parameter_axes"])',
        kernels("test_batches"),
    ),
    Fault(
        "tangents are not differentiated with respect to x",
        PRIMITIVES,
        "    if not all(map(_is_zero, moved[:fixed])):",
        "    if fixed < 0:",
        kernels("test_derivatives and forward"),
    ),
    Fault(
        "the gradients of statistics are dropped",
        PRIMITIVES,
        "    if wanted[0] and not (of_mean is None and of_rstd is None):",
        "    if wanted[0] and of_mean is not None and of_rstd is None:",
        kernels("of_statistics"),
    ),
    Fault(
        "gradients of parameters without elements have one",
        PRIMITIVES,
        "for axis, length in enumerate(shape) if length != 1}",
        "for axis, length in enumerate(shape) if length > 1}",
        suite("test_nothing_is_differentiated and layer_norm", backend="jax", library="jax"),
    ),
    Fault(
        "tangents of y lack those of the mean",
        FORMULAS,
        "            of_y = of_y - of_mean\n",
        "            pass\n",
        kernels("test_derivatives and forward"),
    ),
    Fault(
        "shardings in types are ignored",
        PRIMITIVES,
        "if any(place is not None for each in some for place in jax.typeof(each).sharding.spec):",
        "if any(place is not None for each in some[:0] for place in ()):",
        kernels("several_devices"),
    ),
    Fault(
        "arrays without a fixed device are not moved",
        "ln_array_api/_dispatch/checks.py",
        "    if is_movable(x) or is_movable(value):\n",
        "    if is_movable(x) and is_movable(value):\n",
        kernels("several_devices"),
    ),
)
