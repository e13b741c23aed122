"""Kernels run on the current device, which need not be that of the arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import cupy


def on_its_device(call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs on the device of its first argument."""

    @wraps(call)
    def there(*arrays: Any, **options: Any) -> Any:
        with arrays[0].device:
            return call(*arrays, **options)

    return there


def if_there_are_several(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but for what it costs where there is one device only."""
    return call if cupy.cuda.runtime.getDeviceCount() == 1 else on_its_device(call)
