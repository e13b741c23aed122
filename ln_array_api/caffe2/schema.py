"""Definitions of operators, and schemas of valid definitions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]

DEVICES = ("cpu", "cuda")
AT_LEAST_ONE = range(1, sys.maxsize)


@dataclass(frozen=True)
class OperatorDef:
    """One operator of a net: its type, the blobs that it reads and writes, its arguments.

    `create_operator` makes one and checks it against its type's schema.

    Parameters
    ----------
    type : str
        For example ``"LayerNorm"``.
    inputs, outputs : sequence of str
        Names of blobs; kept as tuples. No output may be named twice.
    arg : dict, optional
        The given arguments; the others have their defaults.
    device_option : {"cpu", "cuda"}, optional
        The device of the inputs; None allows any.
    name : str, optional
        Shown in error messages.

    Raises
    ------
    ValueError
        For a name that is empty or not a string, an output named twice, or an unknown device.

    Examples
    --------
    >>> from ln_array_api.caffe2 import OperatorDef
    >>> OperatorDef("Sum", ["a", "b"], ["c"]).inputs
    ('a', 'b')
    """

    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arg: dict[str, Any] = field(default_factory=dict)
    device_option: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for kind in ("inputs", "outputs"):
            object.__setattr__(self, kind, self._names(kind))
        object.__setattr__(self, "arg", dict(self.arg))
        twice = sorted({each for each in self.outputs if self.outputs.count(each) > 1})
        if twice:
            raise ValueError(
                f"{self.label}: outputs name {', '.join(twice)} more than once; each output needs "
                "a name of its own"
            )
        if self.device_option not in (None, *DEVICES):
            raise ValueError(
                f"{self.label}: device_option is {self.device_option!r}, but must be one of "
                f"{DEVICES} or None"
            )

    def _names(self, kind: str) -> tuple[str, ...]:
        names = getattr(self, kind)
        if isinstance(names, str):
            raise ValueError(f"{self.label}: {kind} is {names!r}, but must be a list of names")
        for each in names:
            if not isinstance(each, str) or not each:
                raise ValueError(
                    f"{self.label}: {kind} has {each!r}, but a blob's name must be a string that "
                    "is not empty"
                )
        return tuple(names)

    @property
    def label(self) -> str:
        """The name of this operator in error messages."""
        return f"{self.type} {self.name!r}" if self.name else str(self.type)


@dataclass(frozen=True)
class OperatorSchema:
    """The valid definitions of one type of operator.

    Parameters
    ----------
    type : str
        The type's name.
    num_inputs, num_outputs : tuple of int or range
        The allowed numbers of inputs and outputs.
    arguments : mapping
        The names of the arguments, each with its default. If that is a bool, an int or a float,
        the argument must have that type.
    doc : str
        A description of the operator.
    inputs, outputs : tuple of str, optional
        The names of its inputs and outputs, for the largest number of them.
    verify : callable, optional
        ``verify(op_def, arguments)`` raises ValueError for a definition that is invalid otherwise.
        `arguments` include the defaults.
    infer_shapes : callable, optional
        ``infer_shapes(op_def, arguments, input_shapes)`` returns the shapes of the outputs.

    Examples
    --------
    >>> from ln_array_api.caffe2 import operator_schema
    >>> schema = operator_schema("LayerNorm")
    >>> schema.num_inputs, schema.num_outputs
    ((1, 3), (3,))
    >>> dict(schema.arguments)
    {'axis': 1, 'epsilon': 1e-05, 'elementwise_affine': False}
    """

    type: str
    num_inputs: tuple[int, ...] | range
    num_outputs: tuple[int, ...] | range
    arguments: Mapping[str, Any]
    doc: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    verify: Callable[[OperatorDef, Mapping[str, Any]], None] | None = None
    infer_shapes: (
        Callable[[OperatorDef, Mapping[str, Any], Sequence[Shape]], list[Shape]] | None
    ) = None

    def check(self, op_def: OperatorDef) -> dict[str, Any]:
        """Return all arguments of a definition, with defaults for those not given.

        Raises
        ------
        ValueError
            If this schema does not allow the definition.
        """
        for kind, names, allowed in (
            ("input", op_def.inputs, self.num_inputs),
            ("output", op_def.outputs, self.num_outputs),
        ):
            if len(names) not in allowed:
                raise ValueError(
                    f"{op_def.label}: {pluralize(len(names), kind)} given ({', '.join(names)}), "
                    f"but the number of {kind}s must be {_numbers(allowed)}"
                )
        arguments = dict(self.arguments)
        for name, value in op_def.arg.items():
            if name not in arguments:
                allowed_names = ", ".join(arguments) or "none"
                raise ValueError(
                    f"{op_def.label}: there is no argument {name!r}; allowed are: {allowed_names}"
                )
            arguments[name] = _argument(op_def, name, value, self.arguments[name])
        if self.verify is not None:
            self.verify(op_def, arguments)
        return arguments


#: For each type of default, its name and the types that are allowed. A bool is an int in Python,
#: but axis=True is a mistake.
_KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("a bool", (bool, np.bool_)),
    int: ("an int", (Integral,)),
    float: ("a real number", (Real,)),
}


def _argument(op_def: OperatorDef, name: str, value: Any, default: Any) -> Any:
    wanted, kinds = _KINDS.get(type(default), ("", (object,)))
    misplaced = isinstance(value, bool) and not isinstance(default, bool)
    if wanted and (misplaced or not isinstance(value, kinds)):
        raise ValueError(f"{op_def.label}: {name} is {value!r}, but must be {wanted}")
    return type(default)(value) if wanted else value


def pluralize(n: int, what: str) -> str:
    """Return a count with its noun: ``1 input``, ``3 inputs``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def _numbers(allowed: tuple[int, ...] | range) -> str:
    if isinstance(allowed, range):
        last = allowed.stop - 1
        return f"{allowed.start} " + ("or more" if last >= sys.maxsize - 1 else f"to {last}")
    return " or ".join(map(str, allowed))
