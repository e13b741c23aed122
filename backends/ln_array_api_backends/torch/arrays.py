"""Call kernels that take NumPy arrays with views of the memory of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def as_array(x: Tensor | None) -> Any:
    """View a CPU tensor as an array; bfloat16, which NumPy lacks, as int16."""
    if x is None:
        return None
    x = x.detach()
    return x.view(torch.int16).numpy() if x.dtype is torch.bfloat16 else x.numpy()


def as_tensor(x: Any) -> Tensor | None:
    """View an array as a tensor."""
    return None if x is None else torch.from_numpy(x)


class OnArrays:
    """A primitive for a kind of call, run by a kernel that takes NumPy arrays."""

    def __init__(self, kernel: Callable[..., Any], dtype: str) -> None:
        self._kernel = kernel
        # The first result has x's dtype, the others have the accumulation dtype.
        self._is_bfloat16 = dtype == "bfloat16"

    def results(self, *tensors: Tensor | None) -> Any:
        """Return the results of the primitive."""
        results = self._kernel(*map(as_array, tensors))
        if type(results) is tuple:
            first, *others = results
            return self._first(first), *map(as_tensor, others)
        return self._first(results)

    def _first(self, values: Any) -> Tensor | None:
        result = as_tensor(values)
        return result.view(torch.bfloat16) if self._is_bfloat16 and result is not None else result
