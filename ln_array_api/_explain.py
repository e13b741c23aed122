"""What a person may ask of the library: which kernel a call runs, and what is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ._arrays import on_device_of
from ._dispatch.cache import plan_made_by
from ._dispatch.specs import FAMILY
from ._operations import function_names
from .backend import GENERIC, accelerates, entries


class Explanation(NamedTuple):
    """How a call would run. Printing it shows a line for each field."""

    function: str
    library: str
    primitive: str
    shape: tuple[int, ...]
    """Of x as the primitive gets it: rows (M, N), or (B, C, S) with channels C."""
    dtype: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return "\n".join(f"{name:<10} {value}" for name, value in self._asdict().items() if value)


def explain(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Explanation:
    """Which kernel would run for a call, and why. Nothing is computed.

    Parameters
    ----------
    function : callable
        A function of this library, such as `layer_norm`.
    *args, **kwargs
        What it would be called with. A call that it would refuse raises as it would.

    Returns
    -------
    Explanation
        A named tuple of function, library, primitive, shape (of x as rows (M, N), or with
        channels as (B, C, S)), dtype, backend and reason, which prints as a list.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> with ln.use_backend("generic"):
    ...     print(ln.explain(ln.layer_norm, np.ones((8, 32, 64), dtype=np.float32)))
    function   layer_norm
    library    numpy
    primitive  rows_forward
    shape      (256, 64)
    dtype      float32
    backend    generic
    reason     asked for by use_backend('generic')
    """
    import ln_array_api  # whose last import this module is not

    names = function_names()
    if all(getattr(ln_array_api, name) is not function for name in names):
        raise ValueError(f"explain: {function!r} is not one of {', '.join(sorted(names))}")
    with on_device_of(args[0] if args else None):
        plan = plan_made_by(function, *args, **kwargs)
    spec, choice = plan.spec, plan.choice
    return Explanation(
        function.__name__,
        spec.library,
        plan.primitive,
        spec.shape,
        spec.dtype,
        choice.backend,
        choice.reason,
    )


class BackendInfo(NamedTuple):
    """One line of `backends`."""

    library: str
    version: str
    """Of the installed array library, or nothing."""
    backend: str
    accelerates: tuple[str, ...]
    """The primitives that do not run on the generic kernels."""
    note: str
    """Why the backend cannot be had, or nothing."""


class BackendTable(tuple[BackendInfo, ...]):
    """A tuple of `BackendInfo` that prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        lines = [("library", "version", "backend", "accelerates", "note")]
        lines += [
            (
                info.library,
                info.version or "-",
                info.backend,
                ", ".join(info.accelerates) or "-",
                info.note,
            )
            for info in self
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


#: The array libraries that the suite is run on: module, and the distributions that may hold it.
_LIBRARIES = {
    "numpy": ("numpy", ("numpy",)),
    "torch": ("torch", ("torch",)),
    "jax": ("jax", ("jax",)),
    "dask": ("dask.array", ("dask",)),
    "cupy": ("cupy", ("cupy-cuda13x", "cupy-cuda12x", "cupy")),
    "array_api_strict": ("array_api_strict", ("array-api-strict",)),
}


def backends() -> BackendTable:
    """What is installed, what it accelerates, and where it does not, why not.

    Backends are loaded for this, array libraries among them where a backend needs its own.

    Returns
    -------
    BackendTable
        A tuple of named tuples (library, version, backend, accelerates, note), which prints as a
        table. Every installed library has the backend "generic", which runs everything.

    Examples
    --------
    >>> import ln_array_api as ln
    >>> {info.library for info in ln.backends()} >= {"numpy", "torch", "jax", "dask", "cupy"}
    True
    """
    return BackendTable(_table())


def _table() -> Iterator[BackendInfo]:
    known = list(entries().values())
    others = {entry.library: (entry.library, (entry.library,)) for entry in known}
    for library, (module, distributions) in {**others, **_LIBRARIES}.items():
        version = _version(module, distributions)
        for entry in known:
            if entry.library == library:
                backend = entry.backend()
                known_to = (each for each in (*GENERIC, *FAMILY) if accelerates(backend, each))
                yield BackendInfo(
                    library, version, entry.name, tuple(known_to), entry.unavailable_reason()
                )
        note = "" if version else f"{library} is not installed"
        yield BackendInfo(library, version, "generic", (), note)


def _version(module: str, distributions: tuple[str, ...]) -> str:
    from importlib.metadata import PackageNotFoundError, version  # takes its time

    try:
        if importlib.util.find_spec(module) is None:
            return ""
    except ModuleNotFoundError:  # of the package that the module is in
        return ""
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"
