"""Normalise arrays, forward and backward, on whichever array library they come from.

Every function takes arrays of NumPy, CuPy, torch, JAX, Dask or any other library that follows the
Python array API standard, and gives arrays of the same library, on the same device.

>>> import numpy as np
>>> import ln_array_api as ln
>>> ln.layer_norm(np.asarray([[1.0, 2.0, 3.0]])).round(4)
array([[-1.2247,  0.    ,  1.2247]])
"""

from . import _torch
from ._explain import backends, explain
from .backend import use_backend
from .batch_instance_norm import (
    batch_instance_norm,
    batch_instance_norm_backward,
    batch_instance_norm_forward,
)
from .batch_norm import BatchForward, batch_norm, batch_norm_backward, batch_norm_forward
from .dynamic_tanh import dynamic_tanh, dynamic_tanh_backward, dynamic_tanh_forward
from .errors import BackendError, BackendWarning, DeviceMismatchError
from .group_norm import group_norm, group_norm_backward, group_norm_forward
from .instance_norm import instance_norm, instance_norm_backward, instance_norm_forward
from .layer_norm import Forward, Gradients, layer_norm, layer_norm_backward, layer_norm_forward
from .local_contrast_norm import (
    local_contrast_norm,
    local_contrast_norm_backward,
    local_contrast_norm_forward,
)
from .moments import Moments
from .power_norm import power_norm, power_norm_backward, power_norm_forward
from .rms_norm import RMSForward, RMSGradients, rms_norm, rms_norm_backward, rms_norm_forward
from .switchable_norm import switchable_norm, switchable_norm_backward, switchable_norm_forward
from .unit_norm import unit_norm, unit_norm_backward, unit_norm_forward
from .weight_norm import weight_norm, weight_norm_backward, weight_norm_forward
from .weight_standardization import (
    WeightGradients,
    weight_standardization,
    weight_standardization_backward,
    weight_standardization_forward,
)

__version__ = "0.1.0"

# fmt: off
__all__ = [
    "BackendError", "BackendWarning", "BatchForward", "DeviceMismatchError", "Forward",
    "Gradients", "Moments", "RMSForward", "RMSGradients", "WeightGradients", "backends",
    "batch_instance_norm", "batch_instance_norm_backward", "batch_instance_norm_forward",
    "batch_norm", "batch_norm_backward", "batch_norm_forward",
    "dynamic_tanh", "dynamic_tanh_backward", "dynamic_tanh_forward",
    "explain",
    "group_norm", "group_norm_backward", "group_norm_forward",
    "instance_norm", "instance_norm_backward", "instance_norm_forward",
    "layer_norm", "layer_norm_backward", "layer_norm_forward",
    "local_contrast_norm", "local_contrast_norm_backward", "local_contrast_norm_forward",
    "power_norm", "power_norm_backward", "power_norm_forward",
    "rms_norm", "rms_norm_backward", "rms_norm_forward",
    "switchable_norm", "switchable_norm_backward", "switchable_norm_forward",
    "unit_norm", "unit_norm_backward", "unit_norm_forward",
    "use_backend",
    "weight_norm", "weight_norm_backward", "weight_norm_forward",
    "weight_standardization", "weight_standardization_backward", "weight_standardization_forward",
]
# fmt: on

_ASKED_OUTSIDE_OF_GRAPHS = ("backends", "explain", "use_backend")
_torch.allow_in_graphs(
    globals()[name] for name in __all__ if name.islower() and name not in _ASKED_OUTSIDE_OF_GRAPHS
)
