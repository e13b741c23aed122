"""The differences between array libraries: namespaces, dtypes, devices, views.

This is the only module that imports array_api_compat. Whatever differs between array libraries
and is not settled by the array API standard is decided here, once per array type.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import array_api_compat
import numpy as np

from . import _forks

Array: TypeAlias = Any  # any array of any library: the standard offers no static type for it yet
Axis: TypeAlias = int | tuple[int, ...]
F = TypeVar("F", bound=Callable[..., Any])

#: Supported dtypes, each with the dtype in which its rows are accumulated and stored as statistics.
ACCUMULATION = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "float64": "float64",
}

#: For each dtype of x, the dtypes that its parameters may have: its own or wider ones.
PARAMETER_DTYPES = {
    "float16": ("float16", "float32", "float64"),
    "bfloat16": ("bfloat16", "float32", "float64"),
    "float32": ("float32", "float64"),
    "float64": ("float64",),
}


class Library(NamedTuple):
    """What is known of an array library from the type of one of its arrays."""

    name: str
    xp: Any
    writable: bool
    """Whether its arrays can be written in place, so that `out` makes sense."""
    lazy: bool
    """Whether its arrays are chunked graphs, whose axes should not be reshaped."""
    signature: Callable[[Array], Hashable]
    """The properties of an array that a plan may depend on: dtype, shape, device, layout."""
    reshape: Callable[[Array, tuple[int, ...]], Array]
    """As in the standard, by the fastest way that the library has."""
    has_reshape: bool
    """Whether `reshape` is a method of the arrays."""
    is_contiguous: Callable[[Array], bool]
    """Whether an array is known to be aligned, C-contiguous and in native byte order."""
    ascontiguous: Callable[[Array], Array]
    """Return the array itself or a copy, for which `is_contiguous` holds; of no subclass."""
    may_overlap: Callable[[Array, Array], bool] | None
    """Whether two contiguous arrays may share memory: a fast test of their addresses only."""
    owns_memory: Callable[[Array], bool]
    """Whether no other array that owns its memory shares it; what a signature tells of an array."""
    current_device: Callable[[], int] | None
    """Give the number of the device on which the library computes, wherever its arrays are.

    None where it computes on the device of its arrays.
    """


_libraries: dict[type, Library] = {}

#: All of an array that a plan may depend on, by the array's type; and None for an absent one.
#: Looked up at every call, so without a function in between; see `signature`.
signatures: dict[type, Callable[[Array], Hashable]] = {type(None): lambda absent: None}


def library_of(x: Array) -> Library:
    """The library that x comes from, found once per type.

    Raises
    ------
    TypeError
        If x is no array, or of a subclass of numpy.ndarray that changes what operators mean or has
        units.
    """
    library = _libraries.get(type(x))
    if library is None:
        with _forks.importing:  # as NumPy does when it is asked for numpy.ma, and others
            library = _libraries.setdefault(type(x), _recognise(x))
        signatures[type(x)] = library.signature
    return library


def _recognise(x: Array) -> Library:
    if isinstance(x, np.ma.MaskedArray | np.matrix):
        raise TypeError(
            f"{type(x).__name__} is not supported, because its operators do not mean what those of "
            "an array mean; pass numpy.asarray(x), or x.filled(...) for a masked array"
        )
    if isinstance(x, np.ndarray) and (hasattr(type(x), "unit") or hasattr(type(x), "units")):
        raise TypeError(
            f"{type(x).__name__} has units, which results would not have; pass its values only, "
            "for example x.value"
        )
    try:
        xp = array_api_compat.array_namespace(x)
    except TypeError:
        raise TypeError(
            f"{type(x).__name__} is not an array of a library that follows the Python array API "
            "standard; convert it first, for example with numpy.asarray"
        ) from None
    name = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    signature, is_contiguous, ascontiguous = _LAYOUT.get(name, _STANDARD_LAYOUT)
    if type(x) is np.ndarray:
        signature = _ndarray_signature
    has_reshape = name != "dask" and hasattr(x, "reshape")  # which is not in the standard
    reshape = _reshape_method if has_reshape else xp.reshape
    return Library(
        name,
        xp,
        writable=name not in ("jax", "dask"),
        lazy=name == "dask",
        signature=signature,
        reshape=_reshape_chunks if name == "dask" else reshape,
        has_reshape=has_reshape,
        is_contiguous=is_contiguous,
        ascontiguous=ascontiguous,
        may_overlap=_MAY_OVERLAP.get(name) if type(x).__name__ in _PLAIN else None,
        owns_memory=_ndarray_owns_memory if type(x) is np.ndarray else lambda x: False,
        current_device=_cupy_current_device(xp) if name == "cupy" else None,
    )


def unsuitable(x: Array) -> str:
    """What is wrong with a tensor of torch whose memory is not strided, and the remedy, if any."""
    if x.is_nested:
        return "is nested; pass its parts one by one, or torch.nested.to_padded_tensor(x, 0.0)"
    layout = str(x.layout).removeprefix("torch.")
    if layout != "strided":
        return f"has the layout {layout}; pass x.to_dense()"
    if type(x).__name__ == "MaskedTensor":
        return "is masked, so that its operations do not mean what others do; pass x.to_tensor(0.0)"
    return ""


def _reshape_method(x: Array, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)


def _reshape_chunks(x: Array, shape: tuple[int, ...]) -> Array:
    # Dask cannot reshape some empty arrays of several chunks.
    return (x.rechunk(-1) if 0 in x.shape else x).reshape(shape)


_C_CONTIGUOUS_AND_ALIGNED = 0x101  # bits of ndarray.flags.num


#: Of an array of exactly this type, since it costs less than half of a function of our own.
_ndarray_signature = operator.attrgetter("dtype", "shape", "flags.num")


def _ndarray_owns_memory(x: Array) -> bool:
    return bool(x.flags.owndata)


def _numpy_signature(x: Array) -> Hashable:
    return type(x), _ndarray_signature(x)


def _numpy_is_contiguous(x: Array) -> bool:
    in_c_order = x.flags.num & _C_CONTIGUOUS_AND_ALIGNED == _C_CONTIGUOUS_AND_ALIGNED
    return type(x) is np.ndarray and in_c_order and x.dtype.isnative


def _numpy_ascontiguous(x: Array) -> Array:
    return np.require(x, x.dtype.newbyteorder("="), ("C", "A", "E"))


def _torch_signature(x: Array) -> Hashable:
    layout = x.layout, x.is_contiguous(), x.is_neg()
    return type(x), x.dtype, x.shape, x.device, layout


#: Strides tell more than a flag would, and cost half as much.
_cupy_signature = operator.attrgetter("__class__", "dtype", "shape", "strides", "data.device_id")


def _standard_signature(x: Array) -> Hashable:
    return type(x), x.dtype, x.shape, device_of(x)


def _jax_signature(x: Array) -> Hashable:
    device = device_of(x)
    return type(x), x.dtype, x.shape, device, device is not None and x.committed


_LAYOUT: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "numpy": (_numpy_signature, _numpy_is_contiguous, _numpy_ascontiguous),
    "torch": (
        _torch_signature,
        lambda x: x.is_contiguous() and not x.is_neg(),
        lambda x: x.contiguous().resolve_neg(),
    ),
    "cupy": (
        _cupy_signature,
        lambda x: x.flags.c_contiguous,
        lambda x: library_of(x).xp.ascontiguousarray(x),
    ),
    "jax": (_jax_signature, lambda x: True, lambda x: x),
}
# The standard has no layout. An array that may be strided is flattened and unflattened, which
# copies it wherever its elements are not evenly spaced in C order.
_STANDARD_LAYOUT = (_standard_signature, lambda x: False, lambda x: x)


def _tensors_may_overlap(a: Array, b: Array) -> bool:
    try:
        first, second = a.data_ptr(), b.data_ptr()
    except RuntimeError:  # while torch traces, there is no memory
        return True
    return bool(first < second + b.nbytes and second < first + a.nbytes)


#: Types of arrays whose memory is all of their state; subclasses may have more.
_PLAIN = "ndarray", "Tensor"
_MAY_OVERLAP: dict[str, Callable[[Any, Any], bool]] = {
    "numpy": np.may_share_memory,
    "torch": _tensors_may_overlap,
}


def _cupy_current_device(xp: Any) -> Callable[[], int] | None:
    runtime = xp.cuda.runtime
    # The only device is always the current one.
    return runtime.getDevice if runtime.getDeviceCount() > 1 else None


def on_device_of(x: Any) -> AbstractContextManager[Any]:
    """Give a context in which calls run on the device of x, whichever device is current."""
    try:
        depends = library_of(x).current_device is not None
    except TypeError:  # x is no array, which is for the checks of the function to say
        depends = False
    return x.device if depends else nullcontext()


def on_device_of_x(function: F) -> F:
    """Let a function run on the device of its first argument, an array."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with on_device_of(args[0] if args else None):
            return function(*args, **kwargs)

    return cast(F, run)


def bound_to_device(
    device: Any, current_device: Callable[[], int], call: Callable[..., Any]
) -> Callable[..., Any]:
    """Let a call run on a device: faster than `on_device_of_x`, for calls that are kept."""
    number = device.id

    def run(*arrays: Array, **masks: Array) -> Any:
        if current_device() == number:
            return call(*arrays, **masks)
        with device:
            return call(*arrays, **masks)

    return run


def dtype_name(dtype: Any) -> str:
    """The name of a dtype, the same in every library: ``float32``, ``bfloat16``."""
    if isinstance(dtype, np.dtype):
        return _numpy_dtype_name(dtype)
    name = getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]
    return str(name)


def dtype_name_or_none(x: Array | None) -> str | None:
    """The name of an array's dtype, None where the array is absent."""
    return None if x is None else dtype_name(x.dtype)


@lru_cache(64)
def _numpy_dtype_name(dtype: np.dtype[Any]) -> str:
    """Kept, since NumPy puts a name together anew each time, in 2 µs."""
    return str(dtype.name)


def native_dtype(x: Array) -> Any:
    """The dtype of x in native byte order: that of results, whatever byte order x has."""
    return x.dtype.newbyteorder("=") if isinstance(x.dtype, np.dtype) else x.dtype


def has_dtype(x: Array, name: str) -> bool:
    """Whether x has the dtype of that name, in native byte order."""
    return dtype_name(x.dtype) == name and getattr(x.dtype, "isnative", True)


def device_of(x: Array) -> Hashable:
    """The device of x, or None where it is not known yet (a traced JAX array)."""
    if array_api_compat.is_jax_array(x):
        try:
            return frozenset(x.devices())
        except Exception:  # what a tracer raises is private to JAX and has changed before
            return None
    return array_api_compat.device(x)  # type: ignore[no-any-return]


def is_movable(x: Array) -> bool:
    """Whether x is an array of JAX that goes where those are which it is computed with."""
    if not array_api_compat.is_jax_array(x):
        return False
    return device_of(x) is None or not x.committed


def creation_device(x: Array) -> Any:
    """Return the `device` argument for creating an array next to x."""
    # JAX moves what is created without a device to where it is needed, and tracers have none.
    return None if array_api_compat.is_jax_array(x) else array_api_compat.device(x)


def dask_overlap(x: Array, depth: dict[int, int]) -> Array:
    """Extend each chunk of a Dask array by `depth` elements of its neighbours along some axes."""
    from dask.array.overlap import overlap  # x is its array, so it is there

    return overlap(x, depth, "none")


def to_acc_dtype(xp: Any, x: Array) -> Array:
    """Cast x to its accumulation dtype; return x itself if it has that dtype."""
    acc_dtype = ACCUMULATION[dtype_name(x.dtype)]
    return x if has_dtype(x, acc_dtype) else xp.astype(x, getattr(xp, acc_dtype), copy=False)


def is_torch_array(x: Any) -> bool:
    """Whether x is a tensor of torch."""
    return bool(array_api_compat.is_torch_array(x))


def computes_in_float64(x: Array) -> bool:
    """Whether what is computed from x may be in float64.

    JAX has float64 only if it is enabled, and Metal, as a device of torch, does not have it.
    """
    if is_torch_array(x):
        return bool(x.device.type != "mps")
    return not array_api_compat.is_jax_array(x)


def detach(x: Array) -> Array:
    """Detach x from the graphs of torch and JAX: they do not differentiate through it."""
    if array_api_compat.is_jax_array(x):
        from jax.lax import stop_gradient  # x is its array, so it is there

        return stop_gradient(x)
    return x.detach() if is_torch_array(x) else x


def strides_of(x: Array) -> tuple[int, ...] | None:
    """The bytes from an element to the next on each axis, where a signature tells them."""
    library = library_of(x)
    if library.name == "cupy" or (library.name == "numpy" and _numpy_is_contiguous(x)):
        return x.strides  # type: ignore[no-any-return]
    if library.name == "torch" and not has_symbols(x) and library.is_contiguous(x):
        return tuple(step * x.itemsize for step in x.stride())
    return None


def is_unknown(length: Any) -> bool:
    """Whether a dimension's length is not known before computing (NaN in Dask, None elsewhere)."""
    return length is None or (isinstance(length, float) and math.isnan(length))


def has_symbols(x: Array) -> bool:
    """Whether lengths of x are symbols of torch or JAX, whose values must not be read."""
    return not all(isinstance(length, int | float) for length in x.shape)


def memory_format_of(x: Any) -> Any:
    """Return torch's channels-last memory format if x has it, else None."""
    try:
        if isinstance(x, np.ndarray) or library_of(x).name != "torch":
            return None
    except TypeError:  # x is no array, which is for the checks of the function to say
        return None
    import torch  # x is its array, so it is there

    if x.layout is not torch.strided or x.ndim not in (4, 5) or x.is_contiguous():
        return None
    channels_last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return channels_last if x.is_contiguous(memory_format=channels_last) else None
