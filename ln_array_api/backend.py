"""Backends: the protocol, the registry, and the choice of one for a call.

A backend accelerates some of the primitives for the arrays of one library. Built-in backends are
listed in a static table; others are found by the entry-point group ``ln_array_api.backends``, under
the name ``<library>.<backend>``, so that the library of a backend is known without importing it.
Calls that no backend accepts run on the generic kernels, in the library and on the device of the
arrays.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Protocol

from . import _forks
from ._arrays import Array, device_of, dtype_name, dtype_name_or_none, library_of
from ._dispatch.specs import ChannelsSpec as ChannelsSpec
from ._dispatch.specs import FamilyPrimitive as FamilyPrimitive
from ._dispatch.specs import FamilySpec as FamilySpec
from ._dispatch.specs import Layout as Layout
from ._dispatch.specs import Primitive as Primitive
from ._dispatch.specs import RowsSpec as RowsSpec
from ._dispatch.specs import Spec as Spec
from .errors import BackendError, BackendWarning
from .kernels import channels, rows

ENTRY_POINT_GROUP = "ln_array_api.backends"

#: The generic kernels by the names of their primitives.
GENERIC: dict[str, Callable[..., Any]] = {
    "rows_forward": rows.rows_forward,
    "rows_backward": rows.rows_backward,
    "channels_forward": channels.channels_forward,
    "channels_inference": channels.channels_inference,
    "channels_backward": channels.channels_backward,
}


class Backend(Protocol):
    """Accelerated primitives for the arrays of one library.

    Besides `can_run`, a backend has a method for each primitive that it accelerates:
    ``rows_forward`` and ``rows_backward``, with the parameters, results and meaning of the
    functions of those names in ``ln_array_api.kernels.rows``, and ``channels_forward``,
    ``channels_inference`` and ``channels_backward``, likewise. Arrays are checked and in C order, x
    is (M, N) or (B, C, S), and the device of x is the current one, in libraries that have a current
    device. `out`, which only ``rows_forward`` has, may be x.

    These attributes are optional:

    ``prepare(primitive, spec)``
        Return the kernel for a kind of call, which is called with the arrays only, and with `out`,
        in place of the method. Called once for each kind. For ``rows_forward`` the kernel may have
        an attribute ``without_statistics``, with the same parameters, which returns y in a tuple.
    ``describe(primitive, spec)``
        Return a line for `explain`.
    ``ascontiguous(x)``
        Return a contiguous copy of x for a kernel of the backend.
    ``prepare_strided(primitive, spec, layout)``
        Return a kernel for arrays of any strides, with all their axes, and a line for `explain`; or
        None. A layout has no strides where the arrays are not contiguous (NumPy, torch) or have
        none (JAX). The kernel gets statistics and parameters that broadcast with x, and `out` of
        any layout; gradients of parameters may have any shape of their elements in order.
    ``whole_call(function)``
        Return a function to call in place of `function`, which does everything that a call with
        such a strided kernel does with its arrays.
    ``prepare_family(primitive, spec)``
        Return a kernel for a primitive of `FamilySpec`, and a line for `explain`; or None.
    ``family``
        The names of the primitives that ``prepare_family`` knows.
    ``takes_where``
        True if kernels over rows take a mask, by the keyword `where`. A backend without it is not
        asked for such calls.
    ``caffe2_stages``
        Functions that replace stages of ``ln_array_api.caffe2`` of the same names, for arrays that
        are checked and not empty.
    """

    def can_run(self, primitive: Primitive, spec: Spec) -> bool:
        """Whether this backend accepts a call. It must depend on the spec only."""
        ...


class _PreparedBackend(ABC):
    """A backend that needs `prepare` only."""

    @abstractmethod
    def prepare(self, primitive: Primitive, spec: Any) -> Callable[..., Any]:
        """Return the kernel for a kind of call, which is called with the arrays only."""

    def _kernel(
        self,
        primitive: Primitive,
        kind: type[RowsSpec | ChannelsSpec],
        x: Array,
        gamma: Array | None,
        beta: Array | None = None,
        dy: Array | None = None,
        **options: Any,
    ) -> Callable[..., Any]:
        dtypes = [dtype_name_or_none(each) for each in (gamma, beta, dy)]
        options |= dict(zip(("gamma", "beta", "dy"), dtypes, strict=True))
        spec = kind(library_of(x).name, str(device_of(x)), x.shape, dtype_name(x.dtype), **options)
        return self.prepare(primitive, spec)


class RowsBackend(_PreparedBackend):
    """A backend for both rows primitives that needs `prepare` only."""

    def rows_forward(
        self, x: Array, *parameters: Array | None, out: Any = None, **options: Any
    ) -> Any:
        kernel = self._kernel("rows_forward", RowsSpec, x, *parameters, **options)
        return kernel(x, *parameters, out=out)

    def rows_backward(self, dy: Array, x: Array, *others: Array | None, **options: Any) -> Any:
        kernel = self._kernel("rows_backward", RowsSpec, x, others[-1], dy=dy, **options)
        return kernel(dy, x, *others)


class ChannelsBackend(_PreparedBackend):
    """A backend for all channels primitives that needs `prepare` only."""

    def channels_forward(self, x: Array, *parameters: Array | None, **options: Any) -> Any:
        return self._kernel("channels_forward", ChannelsSpec, x, *parameters, **options)(
            x, *parameters
        )

    def channels_inference(self, x: Array, *others: Array | None, **options: Any) -> Any:
        kernel = self._kernel("channels_inference", ChannelsSpec, x, *others[2:], **options)
        return kernel(x, *others)

    def channels_backward(self, dy: Array, x: Array, *others: Array | None, **options: Any) -> Any:
        kernel = self._kernel("channels_backward", ChannelsSpec, x, others[-1], dy=dy, **options)
        return kernel(dy, x, *others)


class Entry:
    """A backend that is known by name, loaded when an array of its library first needs it."""

    def __init__(
        self,
        name: str,
        library: str,
        load: Callable[[], Backend],
        *,
        requires: tuple[str, ...] = (),
        extra: str = "",
        may_have_stages: bool = True,
    ) -> None:
        self.name, self.library, self.extra = name, library, extra
        self.may_have_stages = may_have_stages  # of Caffe2's; if not, it is not loaded for these
        self._load, self._requires = load, requires
        self._backend: Backend | None = None
        self._failure = ""

    def missing_requirements(self) -> str:
        """Return what has to be installed for this backend, with the command, or nothing."""
        absent = [each for each in self._requires if importlib.util.find_spec(each) is None]
        if not absent:
            return ""
        extras = " or ".join(f"'ln-array-api[{each}]'" for each in self.extra.split(" or "))
        return f"needs {', '.join(absent)}: pip install {extras}"

    def unavailable_reason(self) -> str:
        """Return why this backend is not available, or an empty string."""
        return self.missing_requirements() or self._failure

    def backend(self) -> Backend | None:
        """The backend, or None where it cannot be had. One that breaks is reported once."""
        with _forks.importing:
            if self._backend is None and not self.unavailable_reason():
                try:
                    self._backend = self._load()
                except BackendError as error:  # what it needs is not here
                    self._failure = str(error)
                except Exception as error:  # whatever it is, the call can run without it
                    self._failure = f"broke while loading: {type(error).__name__}: {error}"
                    warnings.warn(
                        f"backend {self.name!r} for {self.library} {self._failure}; calls run on "
                        "the generic kernels instead",
                        BackendWarning,
                        stacklevel=2,
                    )
            return self._backend


def _built_in(
    name: str,
    library: str,
    module: str,
    *,
    requires: tuple[str, ...],
    extra: str,
    may_have_stages: bool = False,
) -> Entry:
    def load() -> Backend:
        return importlib.import_module(module).backend  # type: ignore[no-any-return]

    return Entry(
        name, library, load, requires=requires, extra=extra, may_have_stages=may_have_stages
    )


BUILT_IN = (
    _built_in("numpy", "numpy", "ln_array_api_backends.numpy", requires=("numba",), extra="cpu"),
    _built_in(
        "cupy",
        "cupy",
        "ln_array_api_backends.cupy",
        requires=("cupy",),
        extra="cuda13 or cuda12",  # whichever the driver has
        may_have_stages=True,
    ),
    _built_in(
        "torch", "torch", "ln_array_api_backends.torch", requires=("torch", "numba"), extra="torch"
    ),
    _built_in("jax", "jax", "ln_array_api_backends.jax", requires=("jax",), extra="jax"),
)

_entries: dict[str, Entry] = {}


def entries() -> dict[str, Entry]:
    """All known backends by name: first those of other packages, then the built-in ones."""
    if not _entries:
        with _forks.importing:
            if not _entries:
                _entries.update({entry.name: entry for entry in (*_installed(), *BUILT_IN)})
    return _entries


def _installed() -> Iterator[Entry]:
    from importlib.metadata import entry_points  # takes its time, so not at import

    for point in sorted(entry_points(group=ENTRY_POINT_GROUP)):
        library, _, name = point.name.partition(".")
        yield Entry(name or library, library, point.load)


class Choice(NamedTuple):
    """Which kernel runs a call, and why."""

    kernel: Callable[..., Any]
    """The primitive with the options of the spec, to be called with the arrays."""
    backend: str
    reason: str
    ascontiguous: Callable[[Any], Any] | None = None
    """The backend's own function for contiguous copies, if it has one."""
    keeps_axes: bool = False
    """Whether the kernel takes arrays as they are, and not as rows."""
    whole_call: Callable[[Any], Any] | None = None
    """The backend's wrapper for everything that a call does with its arrays, if it has one."""


def choose(primitive: Primitive, spec: Spec, layout: Layout | None = None) -> Choice:
    """Return the kernel of the first backend that accepts a call, else the generic one."""
    wanted = _requested.get()
    if wanted == "generic":
        return _generic(primitive, spec, "asked for by use_backend('generic')")
    refusals = []
    for entry in _candidates(spec.library):
        backend = entry.backend()
        kernel = getattr(backend, primitive, None)
        if backend is None:
            refusals.append(f"{entry.name}: {entry.unavailable_reason()}")
        elif kernel is None:
            refusals.append(f"{entry.name}: does not accelerate {primitive}")
        elif getattr(spec, "where", False) and not getattr(backend, "takes_where", False):
            refusals.append(f"{entry.name}: takes no mask")
        elif not backend.can_run(primitive, spec):
            refusals.append(f"{entry.name}: does not take such a call")
        else:
            strided = getattr(backend, "prepare_strided", None)
            found = strided(primitive, spec, layout) if strided and layout else None
            if found is not None:
                whole = getattr(backend, "whole_call", None)
                return Choice(found[0], entry.name, found[1], keeps_axes=True, whole_call=whole)
            prepare, describe = (getattr(backend, each, None) for each in ("prepare", "describe"))
            prepared = prepare(primitive, spec) if prepare else _bound(kernel, primitive, spec)
            reason = describe(primitive, spec) if describe else ""
            return Choice(prepared, entry.name, reason, getattr(backend, "ascontiguous", None))
    nobody = f"no backend is known for {spec.library}"
    return _generic(primitive, spec, "; ".join(refusals) or nobody)


def accelerates(backend: Backend | None, primitive: str) -> bool:
    """Whether a backend has kernels for a primitive."""
    return hasattr(backend, primitive) or primitive in getattr(backend, "family", ())


def choose_family(primitive: FamilyPrimitive, spec: FamilySpec) -> Choice | str:
    """Return a backend's kernel for a call of the family, or why there is none."""
    if _requested.get() == "generic":
        return "asked for by use_backend('generic')"
    refusals = []
    for entry in _candidates(spec.library):
        backend = entry.backend()
        if backend is None:
            refusals.append(f"{entry.name}: {entry.unavailable_reason()}")
        elif not accelerates(backend, primitive):
            refusals.append(f"{entry.name}: does not accelerate {primitive}")
        else:
            found = backend.prepare_family(primitive, spec)  # type: ignore[attr-defined]
            if found is not None:
                order = getattr(backend, "ascontiguous", None)
                return Choice(found[0], entry.name, found[1], order)
            refusals.append(f"{entry.name}: does not take such a call")
    return "; ".join(refusals) or f"no backend is known for {spec.library}"


def accelerated_stage(library: str, name: str) -> Callable[..., Any] | None:
    """Return a backend's function for a stage of ``ln_array_api.caffe2``, or None."""
    if _requested.get() != "generic":
        for entry in _candidates(library):
            backend = entry.backend() if entry.may_have_stages else None
            stages = getattr(backend, "caffe2_stages", None)
            if hasattr(stages, name):
                return getattr(stages, name)  # type: ignore[no-any-return]
    return None


def _candidates(library: str) -> list[Entry]:
    """The backends for arrays of a library; only the one asked for, if that is among them."""
    known = [each for each in entries().values() if each.library == library]
    wanted = _requested.get()
    return [entry for entry in known if entry.name == wanted] or known


def _generic(primitive: Primitive, spec: Spec, reason: str) -> Choice:
    return Choice(_bound(GENERIC[primitive], primitive, spec), "generic", reason)


def _bound(kernel: Callable[..., Any], primitive: Primitive, spec: Spec) -> Callable[..., Any]:
    return partial(kernel, **spec.options(primitive))


_requested: ContextVar[str | None] = ContextVar("ln_array_api_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Ask for a backend by name within a ``with`` block, in this thread or task.

    Parameters
    ----------
    name : str
        ``"generic"``, or the name of a backend that `backends` shows as available. Arrays of
        another library than the backend's, and calls that it does not take, run as without it.

    Raises
    ------
    BackendError
        On entry, if there is no such backend or it cannot be had, with the reason and the command
        that installs it.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> with ln.use_backend("generic"):
    ...     y = ln.layer_norm(np.asarray([1.0, 3.0]), epsilon=0)
    >>> y
    array([-1.,  1.])
    """
    if name != "generic":
        entry = entries().get(name)
        if entry is None:
            known = ", ".join(["generic", *entries()])
            raise BackendError(f"there is no backend {name!r}; known are: {known}")
        if entry.backend() is None:
            raise BackendError(f"backend {name!r} cannot be had: {entry.unavailable_reason()}")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


#: Return the backend asked for in this thread or task, or None: a part of each plan's key.
requested_backend = _requested.get
#: The plans of calls, by their keys: see ``_dispatch.cache``.
plans: dict[Hashable, Any] = {}
