"""The contenders: this library, a copy of the same bytes, torch, and others that are installed.

All of them get the same memory. The authors of this library have run only it and the copy, neither
of them on a GPU yet; the calls of the others follow their documentation. So each contender may
fail, and is compared with this library's results before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import cupy

import ln_array_api as ln

from .cases import EPSILON, Case, Inputs, minimum_bytes

Call = Callable[[], Any]
Norm = Callable[[Any, Any, Any], Any]  # of x, gamma and beta, which is None for RMS norm

#: Rows of results, or elements of gamma's gradient, that are compared.
FIRST = 64
OURS, COPY = "ln_array_api", "copy"


class Contender(NamedTuple):
    """A library or function that can run a case."""

    prepare: Callable[[Case], Callable[[Inputs], Call]]
    """What makes the calls of a case, one for each set of inputs. It may compile."""
    uses_torch: bool = True
    computes: bool = True
    """Whether a call gives y, or the gradients, to be compared with this library's."""


def _ours(case: Case) -> Callable[[Inputs], Call]:
    def call_of(a: Inputs) -> Call:
        if case.operation == "layer_norm":
            if case.which == "forward":
                return lambda: ln.layer_norm_forward(a.x, a.gamma, a.beta, epsilon=EPSILON)
            return lambda: ln.layer_norm_backward(a.dy, a.x, a.mean, a.rstd, a.gamma)
        if case.which == "forward":
            return lambda: ln.rms_norm_forward(a.x, a.gamma, epsilon=EPSILON)
        return lambda: ln.rms_norm_backward(a.dy, a.x, a.rstd, a.gamma)

    return call_of


def _copy(case: Case) -> Callable[[Inputs], Call]:
    """Read and write as many bytes as the case must."""
    half = minimum_bytes(case) // 2

    def call_of(inputs: Inputs) -> Call:
        source, target = cupy.zeros(half, "uint8"), cupy.empty(half, "uint8")
        return lambda: target.data.copy_from_device_async(source.data, half)

    return call_of


def as_tensor(x: Any) -> Any:
    """Return a torch tensor of the same memory as a CuPy array."""
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_dlpack(x.view("int16")).view(torch.bfloat16)
    return torch.from_dlpack(x)


def as_array(result: Any) -> Any:
    """Return y, dx or dgamma of any contender as a float32 CuPy array, or its first rows."""
    if not isinstance(result, cupy.ndarray):
        result = cupy.from_dlpack(result.detach()[:FIRST].float().contiguous())
    return result[:FIRST].astype("float32")


def by_autograd(norm_of: Callable[[Case], Norm]) -> Contender:
    """Return a contender that is a differentiable function of torch tensors."""

    def prepare(case: Case) -> Callable[[Inputs], Call]:
        import torch

        norm = norm_of(case)

        def call_of(inputs: Inputs) -> Call:
            x, gamma = as_tensor(inputs.x), as_tensor(inputs.gamma)
            beta = None if inputs.beta is None else as_tensor(inputs.beta)
            if case.which == "forward":
                return lambda: norm(x, gamma, beta)
            leaves = [each.requires_grad_() for each in (x, gamma, beta) if each is not None]
            y, dy = norm(x, gamma, beta), as_tensor(inputs.dy)
            return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

        return call_of

    return Contender(prepare)


def torch_norm(case: Case) -> Norm:
    """Return the function of `torch.nn.functional`."""
    from torch.nn import functional

    shape = case.shape[1:]
    if case.operation == "layer_norm":
        return lambda x, gamma, beta: functional.layer_norm(x, shape, gamma, beta, EPSILON)
    return lambda x, gamma, beta: functional.rms_norm(x, shape, gamma, EPSILON)


def compiled_torch_norm(case: Case) -> Norm:
    """Return the same, compiled only for this case."""
    import torch
    import torch._functorch.config

    torch._dynamo.reset()
    # Gradients are taken again and again from one forward pass, which donated buffers do not allow.
    torch._functorch.config.donated_buffer = False
    norm: Norm = torch.compile(torch_norm(case), dynamic=False)
    return norm


def quack_norm(case: Case) -> Norm:
    """Return QuACK's function: RMS norm in both passes, and layer norm forward."""
    quack = import_module("quack.rmsnorm")
    if case.operation == "rms_norm":
        return lambda x, gamma, beta: quack.rmsnorm(x, gamma, eps=EPSILON)
    if case.which == "backward":
        raise NotImplementedError("QuACK has no differentiable layer norm")
    return lambda x, gamma, beta: quack.layernorm_fwd(x, gamma.float(), beta.float(), eps=EPSILON)


def liger_norm(case: Case) -> Norm:
    """Return Liger-Kernel's function."""
    liger = import_module("liger_kernel.transformers.functional")
    if case.operation == "layer_norm":
        return lambda x, gamma, beta: liger.liger_layer_norm(x, gamma, beta, EPSILON)
    # In place, it would write its results over dy, which all contenders share.
    return lambda x, gamma, beta: liger.liger_rms_norm(x, gamma, EPSILON, in_place=False)


def apex_norm(case: Case) -> Norm:
    """Return Apex's function."""
    apex, shape = import_module("apex.normalization.fused_layer_norm"), case.shape[1:]
    if case.operation == "layer_norm":
        return lambda x, gamma, beta: apex.fused_layer_norm_affine(x, gamma, beta, shape, EPSILON)
    return lambda x, gamma, beta: apex.fused_rms_norm_affine(x, gamma, shape, EPSILON)


def transformer_engine_norm(case: Case) -> Norm:
    """Return Transformer Engine's function, whose parameters belong to a module."""
    engine = import_module("transformer_engine.pytorch")
    kind = engine.LayerNorm if case.operation == "layer_norm" else engine.RMSNorm
    module = kind(case.shape[1], eps=EPSILON)

    def norm(x: Any, gamma: Any, beta: Any) -> Any:
        from torch.func import functional_call

        parameters = {"weight": gamma} if beta is None else {"weight": gamma, "bias": beta}
        return functional_call(module, parameters, (x,))

    return norm


def _cudnn(case: Case) -> Callable[[Inputs], Call]:
    """Return a cuDNN graph for the case, whose outputs are overwritten by each call."""
    from .cudnn_graph import call_of

    return lambda inputs: call_of(case, inputs)


#: Contenders that need torch, by name, with the module that each needs besides.
WITH_TORCH = {
    "torch": (by_autograd(torch_norm), "torch"),
    "torch.compile": (by_autograd(compiled_torch_norm), "torch"),
    "QuACK": (by_autograd(quack_norm), "quack"),
    "Liger": (by_autograd(liger_norm), "liger_kernel"),
    "Apex": (by_autograd(apex_norm), "apex"),
    "Transformer Engine": (by_autograd(transformer_engine_norm), "transformer_engine"),
    "cuDNN": (Contender(_cudnn), "cudnn"),
}


def contenders() -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders available here, by name, and why others are not."""
    found = {OURS: Contender(_ours, uses_torch=False)}
    found[COPY] = Contender(_copy, uses_torch=False, computes=False)
    reason, absent = _why_no_torch(), {}
    for name, (contender, module) in WITH_TORCH.items():
        why = reason or ("" if find_spec(module) else f"{module} is not installed")
        if why:
            absent[name] = why
        else:
            found[name] = contender
    return found, absent


def _why_no_torch() -> str:
    """Return why no torch tensor can be on the GPU; empty if one can."""
    if find_spec("torch") is None:
        return "torch is not installed"
    try:
        import torch

        if torch.cuda.is_available():
            return ""
    except Exception as error:  # a broken installation must not end the comparison
        return f"torch cannot be imported: {type(error).__name__}: {error}"
    return f"torch {torch.__version__} finds no GPU"
