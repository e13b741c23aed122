"""Caffe2's LayerNorm operator, for the arrays of any library.

As in Caffe2, an operator has a definition, a schema and a gradient, a registry accepts further
operators, and nets run on the named arrays of a workspace. In this package and in
`ln_array_api.onnx`, `axis` means all axes from that one to the end.

>>> import numpy as np
>>> from ln_array_api import caffe2
>>> workspace = caffe2.Workspace()
>>> workspace.feed_blob("X", np.asarray([[1.0, 3.0], [5.0, 9.0]]))
>>> workspace.run_operator_once(
...     caffe2.create_operator("LayerNorm", ["X"], ["Y", "mean", "stddev"], axis=1, epsilon=0.0)
... )
>>> workspace.fetch_blob("Y")
array([[-1.,  1.],
       [-1.,  1.]])
>>> workspace.fetch_blob("stddev")
array([[1.],
       [2.]])
"""

from .definitions import create_operator, tensor_inference_function
from .gradients import get_gradient_defs
from .operators import LayerNormGradientOp, LayerNormOp, SumOp
from .registry import (
    operator_schema,
    register_cpu_operator,
    register_cuda_operator,
    register_gradient,
    register_schema,
)
from .schema import OperatorDef, OperatorSchema
from .stages import (
    compute_fused_params,
    compute_internal_gradients,
    compute_sigma_and_fused_params,
    gamma_beta_backward,
    layer_norm_backward,
    layer_norm_forward,
)
from .workspace import Workspace

__all__ = [
    "LayerNormGradientOp",
    "LayerNormOp",
    "OperatorDef",
    "OperatorSchema",
    "SumOp",
    "Workspace",
    "compute_fused_params",
    "compute_internal_gradients",
    "compute_sigma_and_fused_params",
    "create_operator",
    "gamma_beta_backward",
    "get_gradient_defs",
    "layer_norm_backward",
    "layer_norm_forward",
    "operator_schema",
    "register_cpu_operator",
    "register_cuda_operator",
    "register_gradient",
    "register_schema",
    "tensor_inference_function",
]
