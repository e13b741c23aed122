"""The device of the inputs of an operator, and whether the operator may run there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._arrays import Array, device_of, library_of
from ..errors import DeviceMismatchError
from .schema import OperatorDef, pluralize


def device_kind(x: Array) -> str | None:
    """Return ``"cpu"``, ``"cuda"`` or its library's name of the device; None if traced by JAX."""
    library = library_of(x).name
    if library == "dask":
        return device_kind(x._meta)
    if library == "cupy":
        return "cuda"
    device: Any = device_of(x)
    if library == "torch":
        return str(device.type)
    if library == "jax":
        if device is None:
            return None
        platform = str(next(iter(device)).platform)
        return "cuda" if platform == "gpu" else platform
    return "cpu"


def run_device(op_def: OperatorDef, inputs: Sequence[Array]) -> str | None:
    """Return the kind of device on which an operator runs with these inputs; None if unknown.

    Raises
    ------
    ValueError
        For a wrong number of inputs, or a device that contradicts the definition.
    DeviceMismatchError
        For inputs on different kinds of devices.
    TypeError
        For an input that is not an array.
    """
    if len(inputs) != len(op_def.inputs):
        raise ValueError(
            f"{op_def.label}: {pluralize(len(inputs), 'array')} given, but it has "
            f"{pluralize(len(op_def.inputs), 'input')} ({', '.join(op_def.inputs)})"
        )
    kinds: dict[str, str] = {}
    for blob, x in zip(op_def.inputs, inputs, strict=True):
        try:
            kind = device_kind(x)
        except TypeError as error:
            raise TypeError(f"{op_def.label}: {blob}: {error}") from None
        if kind is not None:
            kinds.setdefault(kind, blob)
    wanted = op_def.device_option
    for kind, blob in kinds.items():
        if wanted is not None and kind != wanted:
            raise ValueError(
                f"{op_def.label}: device_option is {wanted!r}, but {blob} is on {kind}; an "
                "operator runs on the device of its inputs, so move them, or omit device_option"
            )
    if len(kinds) > 1:
        places = " and ".join(f"{blob} on {kind}" for kind, blob in kinds.items())
        raise DeviceMismatchError(
            f"{op_def.label}: {places}; move them to one device; arrays are never moved implicitly"
        )
    return next(iter(kinds), wanted)
