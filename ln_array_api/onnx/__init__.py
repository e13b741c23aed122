"""ONNX's normalization operators, on whichever array library their inputs come from.

`run_node` runs a node of a model, as backends in the manner of ``onnx.backend`` do, with ONNX's
meaning of every attribute: here too, `axis` means all axes from that one to the end. It needs the
package onnx, which ``pip install 'ln-array-api[onnx]'`` brings.

>>> import numpy as np
>>> import onnx
>>> from ln_array_api.onnx import run_node
>>> node = onnx.helper.make_node("LayerNormalization", ["x", "scale"], ["y", "", "rstd"], axis=1)
>>> x, scale = np.asarray([[1.0, 3.0], [5.0, 9.0]], np.float32), np.ones(2, np.float32)
>>> y, _, rstd = run_node(node, [x, scale])
>>> y.round(3)
array([[-1.,  1.],
       [-1.,  1.]], dtype=float32)
>>> rstd.round(3)
array([[1. ],
       [0.5]], dtype=float32)
"""

from .operators import run_node

__all__ = ["run_node"]
