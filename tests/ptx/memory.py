"""Global memory: arrays of the host at their own addresses, with unmapped memory around each."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from parse import PTXError

Array = np.ndarray[Any, Any]

#: CuPy's alignment of allocations.
ALIGNMENT = 512
#: Larger allocations are zeros instead of NaN: pages of zeros are not mapped until accessed.
POISONED_BYTES = 1 << 28


class DeviceArray(np.ndarray[Any, Any]):
    """An array with the part of CuPy's interface that gives its address."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)


class Allocation:
    """A piece of memory, and which pairs of its bytes have been read and written."""

    def __init__(self, name: str, size: int, poison: bool) -> None:
        guarded = np.zeros(size + 2 * ALIGNMENT, "u1")
        if poison and size <= POISONED_BYTES:
            guarded[:] = 0xFF  # NaN in every dtype
        begin = -guarded.ctypes.data % ALIGNMENT
        self.name = name
        self.bytes = guarded[begin : begin + size]
        self.begin: int = self.bytes.ctypes.data
        self.end = self.begin + size


class Memory:
    """Allocations, and accesses to them by address."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []

    def empty(self, shape: tuple[int, ...], dtype: Any, name: str = "") -> DeviceArray:
        return self._allocate(shape, dtype, name, poison=True)

    def zeros(self, shape: tuple[int, ...], dtype: Any, name: str) -> DeviceArray:
        return self._allocate(shape, dtype, name, poison=False)

    def _allocate(self, shape: tuple[int, ...], dtype: Any, name: str, poison: bool) -> DeviceArray:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        allocation = Allocation(name or f"allocation {len(self.allocations)}", size, poison)
        self.allocations.append(allocation)
        return allocation.bytes.view(dtype).reshape(shape).view(DeviceArray)

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Return an array in allocated memory."""
        size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        for each in self.allocations:
            if each.begin <= address and address + size <= each.end:
                begin = address - each.begin
                return each.bytes[begin : begin + size].view(dtype).reshape(shape).view(DeviceArray)
        raise ValueError(f"no allocation has {size} bytes from {address:#x} on")

    def array(self, values: Array, name: str = "", offset: int = 0) -> DeviceArray:
        """Return a copy that begins some elements after an aligned address."""
        whole = self.empty((values.size + offset,), values.dtype, name)
        array = whole[offset:].reshape(values.shape)
        array[...] = values
        return array

    def allocations_at(
        self, addresses: Array, width: int
    ) -> Iterator[tuple[Allocation, Array | slice]]:
        """Yield the allocations that contain addresses, and a mask of these addresses."""
        if np.any(addresses % width):
            wrong = addresses[addresses % width != 0][0]
            raise PTXError(f"an access of {width} bytes to {wrong:#x}, which is not aligned")
        found = 0
        for each in self.allocations:
            inside = (addresses >= each.begin) & (addresses < each.end)
            count = np.count_nonzero(inside)
            if count == 0:
                continue
            beyond = int(addresses[inside].max()) + width - each.end
            if beyond > 0:
                raise PTXError(f"an access {beyond} bytes beyond {each.name}")
            yield each, slice(None) if count == addresses.size else inside
            found += count
            if found == addresses.size:
                return
        raise PTXError(f"an access where nothing is, of addresses from {addresses.min():#x} on")

    def load(self, allocation: Allocation, addresses: Array, size: int, count: int) -> Array:
        """Load elements of `size` bytes from each address on: (addresses, count)."""
        values = allocation.bytes[: allocation.bytes.size // size * size].view(f"u{size}")
        return values[self._places(allocation, addresses, size, count)]

    def store(self, allocation: Allocation, addresses: Array, values: Array) -> None:
        size, count = values.itemsize, values.shape[1]
        whole = allocation.bytes[: allocation.bytes.size // size * size].view(f"u{size}")
        whole[self._places(allocation, addresses, size, count)] = values

    def _places(self, allocation: Allocation, addresses: Array, size: int, count: int) -> Array:
        first = (addresses - np.uint64(allocation.begin)).astype("i8") // size
        return first[:, None] + np.arange(count)
