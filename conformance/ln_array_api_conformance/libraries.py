"""How to make and read arrays of each library, and what the library promises of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}

Array = Any
Layout = Callable[[np.ndarray], Array]


class Library:
    """NumPy, and what other libraries have in common with it unless they say otherwise."""

    name = "numpy"
    module = "numpy"
    extra = ""
    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "bfloat16")
    writable = True
    """Whether arrays can be written in place."""
    can_alias = True
    """Whether two arrays can share memory, so that `out` may overlap."""
    second_device_has_values = True
    """Whether arrays on another device have values."""
    random_calls = 60
    """How many random calls are tried if nobody says."""

    def __init__(self) -> None:
        self.xp = importlib.import_module(self.module)

    def array(self, values: np.ndarray) -> Array:
        """An array of this library, with the dtype and values of a NumPy array."""
        return values.copy()

    def numpy(self, x: Array) -> np.ndarray:
        """The values of an array of this library, in its own dtype."""
        return np.asarray(x)

    def is_array(self, x: Array) -> bool:
        """Whether x is a plain array of this library."""
        return type(x) is np.ndarray

    def forbid_compute(self) -> AbstractContextManager[None]:
        """Return a context in which computing is an error, where the library is lazy."""
        return nullcontext()

    def bound(self, values: np.ndarray) -> Array:
        """As `array`, and not to be moved to another device."""
        return self.array(values)

    def on_second_device(self, values: np.ndarray) -> Array | None:
        """Return an array on another device, or None where the library has only one device."""
        return None

    @cached_property
    def has_second_device(self) -> bool:
        """Whether `on_second_device` gives an array."""
        return self.on_second_device(np.zeros(1, np.float32)) is not None

    def transforms(self) -> dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        """Ways to trace a function before running it."""
        return {}

    def vjp(
        self, function: Callable[..., Array], inputs: tuple[Array, ...], dy: Array
    ) -> tuple[Array, ...]:
        """The library's own gradients of sum(dy * function(*inputs)), which can nest."""
        raise NotImplementedError(f"{self.name} does not differentiate")

    def layouts(self) -> dict[str, Layout]:
        """Ways to lay the same values out in memory, all of which must give the same results."""
        return {
            "transposed": lambda a: self._permute(self.array(np.moveaxis(a, -1, 0).copy()), a.ndim),
            "every second": lambda a: self.array(np.repeat(a, 2, axis=-1))[..., ::2],
            "part of rows": lambda a: self.array(np.concatenate([a, a], axis=-1))[
                ..., : a.shape[-1]
            ],
        }

    def _permute(self, x: Array, ndim: int) -> Array:
        return self.xp.permute_dims(x, (*range(1, ndim), 0))

    def broadcast(self, row: np.ndarray, rows: int) -> Array:
        """A row repeated without a copy."""
        return self.xp.broadcast_to(self.array(row), (rows, *row.shape))


class NumPy(Library):
    """NumPy, with all that can be odd about the memory of its arrays."""

    def layouts(self) -> dict[str, Layout]:
        def unaligned(a: np.ndarray) -> np.ndarray:
            memory = np.empty(a.nbytes + 1, np.uint8)[1:]
            x = memory.view(a.dtype).reshape(a.shape)
            x[...] = a
            return x

        def read_only(a: np.ndarray) -> np.ndarray:
            x = a.copy()
            x.flags.writeable = False
            return x

        def subclass(a: np.ndarray) -> np.ndarray:
            class Subclass(np.ndarray):
                pass

            return a.copy().view(Subclass)

        return super().layouts() | {
            "backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
            "Fortran order": np.asfortranarray,
            "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
            "unaligned": unaligned,
            "read-only": read_only,
            "subclass": subclass,
        }


class Strict(Library):
    """array-api-strict: NumPy without whatever the standard does not have."""

    name, module, extra = "strict", "array_api_strict", "test"
    dtypes = ("float32", "float64")

    def array(self, values: np.ndarray) -> Array:
        return self.xp.asarray(values, copy=True)

    def numpy(self, x: Array) -> np.ndarray:
        return np.asarray(x.to_device(self.xp.Device("CPU_DEVICE")))

    def is_array(self, x: Array) -> bool:
        return type(x) is type(self.xp.asarray(0.0))

    def on_second_device(self, values: np.ndarray) -> Array | None:
        return self.xp.asarray(values, device=self.xp.Device("device1"))


class Torch(Library):
    """PyTorch on the CPU."""

    name, module, extra = "torch", "torch", "torch"
    second_device_has_values = False

    def __init__(self) -> None:
        super().__init__()
        # torch cuts its work by the number of threads, so what it is expected to do needs one.
        self.xp.set_num_threads(2)

    def array(self, values: np.ndarray) -> Array:
        if values.dtype == ml_dtypes.bfloat16:
            return self.xp.from_numpy(values.copy().view(np.int16)).view(self.xp.bfloat16)
        return self.xp.from_numpy(values.copy())

    def numpy(self, x: Array) -> np.ndarray:
        x = x.detach()
        if x.dtype == self.xp.bfloat16:
            bits = x.contiguous().view(self.xp.int16).numpy()
            return np.asarray(bits.view(ml_dtypes.bfloat16))
        return np.asarray(x.numpy())

    def is_array(self, x: Array) -> bool:
        return type(x) is self.xp.Tensor

    def on_second_device(self, values: np.ndarray) -> Array | None:
        return self.array(values).to("meta")

    def vjp(
        self, function: Callable[..., Array], inputs: tuple[Array, ...], dy: Array
    ) -> tuple[Array, ...]:
        inputs = tuple(
            each if each.requires_grad else each.detach().requires_grad_() for each in inputs
        )
        gradients = self.xp.autograd.grad(function(*inputs), inputs, dy, create_graph=True)
        return tuple(gradients)

    def _permute(self, x: Array, ndim: int) -> Array:
        return x.permute((*range(1, ndim), 0))


class JAX(Library):
    """JAX on the CPU, with 64-bit numbers."""

    name, module, extra = "jax", "jax.numpy", "jax"
    writable = can_alias = False
    random_calls = 12  # each is a program to compile

    def __init__(self) -> None:
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_enable_x64", True)
        # Two devices on one processor, to find out what happens between devices.
        self.jax.config.update("jax_num_cpu_devices", 2)
        super().__init__()

    def array(self, values: np.ndarray) -> Array:
        return self.xp.asarray(values)

    def is_array(self, x: Array) -> bool:
        return isinstance(x, self.jax.Array)

    def bound(self, values: np.ndarray) -> Array:
        return self.jax.device_put(values, self.jax.devices("cpu")[0])

    def on_second_device(self, values: np.ndarray) -> Array | None:
        return self.jax.device_put(values, self.jax.devices("cpu")[1])

    def transforms(self) -> dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        return {"jit": self.jax.jit}

    def vjp(
        self, function: Callable[..., Array], inputs: tuple[Array, ...], dy: Array
    ) -> tuple[Array, ...]:
        return tuple(self.jax.vjp(function, *inputs)[1](dy))


class Dask(Library):
    """Dask arrays of NumPy arrays, in several chunks along every axis."""

    name, module, extra = "dask", "dask.array", "dask"
    writable = can_alias = False

    def __init__(self) -> None:
        super().__init__()
        self.config = importlib.import_module("dask").config

    def array(self, values: np.ndarray) -> Array:
        chunks = tuple(max(1, -(-length // 2)) for length in values.shape)
        return self.xp.from_array(values.copy(), chunks=chunks)

    def numpy(self, x: Array) -> np.ndarray:
        # NumPy's warnings about infinities are Dask's affair once the library's call is over.
        with np.errstate(all="ignore"):
            return np.asarray(x.compute(scheduler="synchronous"))

    def is_array(self, x: Array) -> bool:
        return type(x) is self.xp.Array

    @contextmanager
    def forbid_compute(self) -> Iterator[None]:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("something was computed before it was asked for")

        with self.config.set(scheduler=refuse):
            yield

    def _permute(self, x: Array, ndim: int) -> Array:
        return self.xp.transpose(x, (*range(1, ndim), 0))


class CuPy(Library):
    """CuPy on the current device, and on the next one where there are several."""

    name, module, extra = "cupy", "cupy", "cuda13"

    def array(self, values: np.ndarray) -> Array:
        return self.xp.array(values, copy=True)

    def numpy(self, x: Array) -> np.ndarray:
        return np.asarray(self.xp.asnumpy(x))

    def is_array(self, x: Array) -> bool:
        return type(x) is self.xp.ndarray

    def on_second_device(self, values: np.ndarray) -> Array | None:
        runtime = self.xp.cuda.runtime
        if runtime.getDeviceCount() == 1:
            return None
        with self.xp.cuda.Device((runtime.getDevice() + 1) % runtime.getDeviceCount()):
            return self.array(values)

    def _permute(self, x: Array, ndim: int) -> Array:
        return self.xp.transpose(x, (*range(1, ndim), 0))


LIBRARIES: dict[str, type[Library]] = {
    each.name: each for each in (NumPy, Torch, JAX, Strict, Dask, CuPy)
}
