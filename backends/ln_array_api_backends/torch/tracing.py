"""Whether torch has to see a call operation by operation.

Then kernels must not access memory directly: under a transformation of ``torch.func`` a tensor is
a wrapper, a traced program would keep values as constants, and a mode has to see every operation.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from ln_array_api.errors import BackendError

#: Types of plain tensors; a subclass may override operations.
PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer, type(None)})

_grad_is_enabled = torch.is_grad_enabled

try:
    _transforms_are_active = torch._C._are_functorch_transforms_active
    _modes = torch._C._len_torch_dispatch_stack
    _tracing_state = torch._C._get_tracing_state
    _is_included = torch._C._dispatch_tls_is_dispatch_key_included
    _BATCHES = torch._C._dispatch_key_parse("VmapMode")
    forward_ad._current_level  # noqa: B018
except AttributeError as error:  # these are not public, but there are no public equivalents
    raise BackendError(f"does not know torch {torch.__version__}: {error}") from error


def is_traced(*tensors: torch.Tensor | None) -> bool:
    """Whether torch has to trace a call with these tensors; each may be None."""
    for each in tensors:
        if type(each) not in PLAIN:
            return True
    return _modes() > 0 or is_transformed() or _tracing_state() is not None


def is_transformed() -> bool:
    """Whether a transformation of ``torch.func`` or forward mode is active."""
    return _transforms_are_active() or forward_ad._current_level >= 0  # type: ignore[no-any-return]


def is_batched() -> bool:
    """Whether gradients come in batches, by ``is_grads_batched=True``."""
    return _is_included(_BATCHES)  # type: ignore[no-any-return]


def is_differentiated(*tensors: torch.Tensor | None) -> bool:
    """Whether torch keeps a graph of a call with these tensors."""
    if _grad_is_enabled():
        for each in tensors:
            if each is not None and each.requires_grad:
                return True
    return False
