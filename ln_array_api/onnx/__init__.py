"""ONNX's normalization operators, for the arrays of any library.

`run_node` runs a node of a model, as ``onnx.backend`` does, with ONNX's meaning of every attribute:
in this package, `axis` means all axes from that one to the end. It needs the package onnx:
``pip install 'ln-array-api[onnx]'``.

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
