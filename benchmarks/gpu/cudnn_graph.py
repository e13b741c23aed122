"""Layer and RMS norm as graphs of cuDNN's frontend."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from .cases import EPSILON, Case, Inputs


def call_of(case: Case, inputs: Inputs) -> Callable[[], Any]:
    """Build the graph of a case for some inputs, and return a function that runs it."""
    import torch

    from .contenders import as_tensor

    cudnn = import_module("cudnn")
    centered, forward = case.operation == "layer_norm", case.which == "forward"
    tensors = {"input": _rows(as_tensor(inputs.x)), "scale": _column(as_tensor(inputs.gamma))}
    if centered and forward:
        tensors["bias"] = _column(as_tensor(inputs.beta))
    if forward:
        tensors["epsilon"] = torch.full((1, 1, 1, 1), EPSILON)  # on the host, passed by value
    else:
        tensors["grad"] = _rows(as_tensor(inputs.dy))
        tensors["inv_variance"] = _rows(as_tensor(inputs.rstd))
        if centered:
            tensors["mean"] = _rows(as_tensor(inputs.mean))
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    single = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(intermediate_data_type=single, compute_data_type=single, handle=handle)
    nodes = {name: graph.tensor_like(tensor) for name, tensor in tensors.items()}
    name = ("layernorm" if centered else "rmsnorm") + ("" if forward else "_backward")
    options: dict[str, Any] = {}
    if forward:
        options["norm_forward_phase"] = cudnn.norm_forward_phase.TRAINING
    elif not centered:
        options["has_dbias"] = False
    outputs = getattr(graph, name)(name=name, **nodes, **options)
    outputs = [each for each in outputs if each is not None]
    x, gamma = tensors["input"], tensors["scale"]
    statistic = torch.empty((len(x), 1, 1, 1), dtype=torch.float32, device=x.device)
    kinds = (x, statistic, statistic) if forward else (x, gamma, gamma)
    results = [torch.empty_like(kind) for kind, _ in zip(kinds, outputs, strict=False)]
    for output, result in zip(outputs, results, strict=True):
        output.set_output(True).set_data_type(result.dtype)
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    memory = dict(zip(outputs, results, strict=True))
    memory |= {node: tensors[name] for name, node in nodes.items()}
    workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=x.device)

    def call() -> list[Any]:
        graph.execute(memory, workspace, handle=handle)
        return [each.flatten(1).squeeze(0) for each in results]

    return call


def _rows(tensor: Any) -> Any:
    """Describe rows as samples with channels."""
    return tensor.detach()[:, :, None, None]


def _column(tensor: Any) -> Any:
    """Describe a parameter as one sample with channels."""
    return tensor.detach()[None, :, None, None]
