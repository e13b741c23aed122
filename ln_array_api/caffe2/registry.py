"""The registry of operators: their classes by device, their gradients and their schemas.

Other packages can register operators in the same way as this one does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar, overload

from .._arrays import Array
from .schema import OperatorDef, OperatorSchema


class Operator(Protocol):
    """The interface of a class of operators."""

    def __init__(self, op_def: OperatorDef) -> None: ...

    def run_on_device(self, *inputs: Array) -> tuple[Array, ...]:
        """Compute the outputs, in the library and on the device of the inputs."""
        ...


GradientMaker: TypeAlias = Callable[
    [OperatorDef, list[str | None]], tuple[list[OperatorDef], list[str | None]]
]

_operators: dict[tuple[str, str], type[Operator]] = {}
_makers: dict[str, GradientMaker] = {}
_schemas: dict[str, OperatorSchema] = {}

OperatorClass = TypeVar("OperatorClass", bound=type[Operator])
Maker = TypeVar("Maker", bound=GradientMaker)


def _register(table: dict[Any, Any], key: Any, value: Any, function: str, what: str) -> Any:
    """Add a value to a table, or return a decorator that does, where the value is None."""

    def add(value: Any) -> Any:
        if key in table:
            raise ValueError(f"{function}: {what} already; register it under another name")
        table[key] = value
        return value

    return add if value is None else add(value)


@overload
def register_cpu_operator(name: str) -> Callable[[OperatorClass], OperatorClass]: ...
@overload
def register_cpu_operator(name: str, cls: OperatorClass) -> OperatorClass: ...
def register_cpu_operator(name: str, cls: Any = None) -> Any:
    """Register a class of operators for arrays on CPUs, and on all devices except CUDA's.

    Parameters
    ----------
    name : str
        The type of operator.
    cls : class, optional
        With ``__init__(op_def)`` and ``run_on_device(*inputs)``, which returns a tuple of outputs
        in the order of ``op_def.outputs``. Omit it to use this function as a decorator.

    Returns
    -------
    cls : class
        As given; or a decorator, where it was omitted.

    Raises
    ------
    ValueError
        If there is an operator of this name on CPUs already.

    See Also
    --------
    register_schema : without one, any number of inputs, outputs and arguments is allowed.

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> @caffe2.register_cpu_operator("Negative")
    ... class NegativeOp:
    ...     def __init__(self, op_def):
    ...         pass
    ...
    ...     def run_on_device(self, X):
    ...         return (-X,)
    >>> workspace = caffe2.Workspace()
    >>> workspace.feed_blob("X", np.asarray([1.0, 2.0]))
    >>> workspace.run_operator_once(caffe2.create_operator("Negative", ["X"], ["Y"]))
    >>> workspace.fetch_blob("Y")
    array([-1., -2.])
    """
    what = f"{name!r} is registered on cpu"
    return _register(_operators, (name, "cpu"), cls, "register_cpu_operator", what)


@overload
def register_cuda_operator(name: str) -> Callable[[OperatorClass], OperatorClass]: ...
@overload
def register_cuda_operator(name: str, cls: OperatorClass) -> OperatorClass: ...
def register_cuda_operator(name: str, cls: Any = None) -> Any:
    """Register a class of operators for arrays on CUDA devices.

    Parameters
    ----------
    name, cls
        As for `register_cpu_operator`, as are the result and the errors.

    Examples
    --------
    >>> from ln_array_api import caffe2
    >>> class ZeroOp:
    ...     def __init__(self, op_def):
    ...         pass
    ...
    ...     def run_on_device(self, X):
    ...         return (0 * X,)
    >>> caffe2.register_cuda_operator("Zero", ZeroOp) is ZeroOp
    True
    """
    what = f"{name!r} is registered on cuda"
    return _register(_operators, (name, "cuda"), cls, "register_cuda_operator", what)


@overload
def register_gradient(name: str) -> Callable[[Maker], Maker]: ...
@overload
def register_gradient(name: str, maker: Maker) -> Maker: ...
def register_gradient(name: str, maker: Any = None) -> Any:
    """Register how a type of operator is differentiated.

    Parameters
    ----------
    name : str
        The type of operator.
    maker : callable, optional
        ``maker(op_def, grad_outputs)`` takes the names of the outputs' gradients, None where there
        is none; at least one is a name. It returns a list of OperatorDefs that compute the inputs'
        gradients, and a list of their names, None for an input without gradient. The gradient of a
        blob should be called ``<blob>_grad``. Omit it to use this function as a decorator.

    Returns
    -------
    maker : callable
        As given; or a decorator, where it was omitted.

    Raises
    ------
    ValueError
        If the type has a gradient already.

    Examples
    --------
    >>> from ln_array_api import caffe2
    >>> @caffe2.register_gradient("Copy")
    ... def copy_gradient(op_def, grad_outputs):
    ...     return [], grad_outputs
    >>> caffe2.get_gradient_defs(caffe2.OperatorDef("Copy", ["X"], ["Y"]), ["Y_grad"])
    ([], ['Y_grad'])
    """
    return _register(_makers, name, maker, "register_gradient", f"{name!r} has a gradient")


def register_schema(schema: OperatorSchema) -> OperatorSchema:
    """Register which definitions of ``schema.type`` are valid.

    Parameters
    ----------
    schema : OperatorSchema
        Without one, definitions of a registered type may have any number of inputs and outputs and
        any arguments, and `tensor_inference_function` cannot infer the shapes of their outputs.

    Returns
    -------
    schema : OperatorSchema
        As given.

    Raises
    ------
    ValueError
        If the type has a schema already.

    Examples
    --------
    >>> from ln_array_api import caffe2
    >>> schema = caffe2.OperatorSchema("Halve", (1,), (1,), {}, "Divides by two.")
    >>> caffe2.register_schema(schema) is caffe2.operator_schema("Halve")
    True
    """
    what = f"{schema.type!r} has a schema"
    _register(_schemas, schema.type, schema, "register_schema", what)
    return schema


def operator_schema(name: str) -> OperatorSchema:
    """Return the schema of a type of operator.

    Parameters
    ----------
    name : str
        The type of operator.

    Returns
    -------
    schema : OperatorSchema
        Allowed numbers of inputs and outputs, arguments with their defaults, documentation.

    Raises
    ------
    ValueError
        If the type has no schema.

    Examples
    --------
    >>> from ln_array_api import caffe2
    >>> caffe2.operator_schema("Sum").doc
    'The elementwise sum of one or more arrays of one shape and dtype.'
    """
    if name not in _schemas:
        raise ValueError(
            f"operator_schema: there is no schema of {name!r}; there are schemas of: "
            f"{', '.join(sorted(_schemas))}"
        )
    return _schemas[name]


def schema_of(op_def: OperatorDef) -> OperatorSchema | None:
    """Return the schema of a definition, or None; raise for an unknown type."""
    known = {name for name, _ in _operators} | set(_schemas) | set(_makers)
    if op_def.type not in known:
        raise ValueError(
            f"{op_def.label}: there is no such operator; known are: {', '.join(sorted(known))}"
        )
    return _schemas.get(op_def.type)


def operator_class(op_def: OperatorDef, device: str | None) -> type[Operator]:
    """Return the class that runs a definition on a device, which is None if unknown."""
    registered = "cuda" if device == "cuda" else "cpu"
    if (op_def.type, registered) not in _operators:
        devices = [device for name, device in _operators if name == op_def.type]
        raise ValueError(
            f"{op_def.label}: is not registered on {registered}; it is registered on: "
            f"{', '.join(devices) or 'none'}"
        )
    return _operators[op_def.type, registered]


def gradient_maker(op_def: OperatorDef) -> GradientMaker:
    """Return the function that makes the gradient of a definition; raise if it has none."""
    if op_def.type not in _makers:
        raise ValueError(
            f"{op_def.label}: has no gradient; there are gradients of: "
            f"{', '.join(sorted(_makers))}; add it with register_gradient"
        )
    return _makers[op_def.type]
