"""The operators LayerNorm, LayerNormGradient and Sum, on the library's own kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import ClassVar

import numpy as np

from .._arrays import (
    ACCUMULATION,
    Array,
    dtype_name,
    library_of,
    native_dtype,
    on_device_of,
    to_acc_dtype,
)
from .._dispatch import checks
from ..layer_norm import layer_norm_backward, layer_norm_forward
from .devices import run_device
from .operator_schemas import LAYER_NORM, LAYER_NORM_GRADIENT, SUM, Shapes
from .registry import register_cpu_operator, register_cuda_operator
from .schema import OperatorDef, OperatorSchema


class _LayerNormOperator:
    """What LayerNorm and its gradient share."""

    schema: ClassVar[OperatorSchema]
    data: ClassVar[str]
    """The name of the input that is normalised."""

    def __init__(self, op_def: OperatorDef) -> None:
        self.op_def = op_def
        self.arguments = self.schema.check(op_def)

    def _checked(self, inputs: Sequence[Array]) -> tuple[dict[str, Array], Shapes]:
        """Return the inputs by name and their shapes; check everything except their values."""
        label = self.op_def.label
        run_device(self.op_def, inputs)
        arrays = dict(zip(self.schema.inputs, inputs, strict=False))
        x = arrays[self.data]
        checks.array(label, self.data, x)
        shapes = Shapes.of(label, self.data, tuple(x.shape), self.arguments["axis"])
        for name, array in arrays.items():
            if name != self.data:
                is_statistic = name in ("mean", "stddev")
                dtype = ACCUMULATION[dtype_name(x.dtype)] if is_statistic else None
                checks.operand(label, name, array, x, *shapes.operands[name], dtype)
        return arrays, shapes


@register_cpu_operator("LayerNorm")
@register_cuda_operator("LayerNorm")
class LayerNormOp(_LayerNormOperator):
    """Caffe2's LayerNorm: normalise from an axis to the end, then optionally scale and shift.

    It runs the library's own kernel, so y is as accurate as that of `ln_array_api.layer_norm`.

    Parameters
    ----------
    op_def : OperatorDef
        Of 1 input, or 3 with ``elementwise_affine=True``, and the 3 outputs y, mean and stddev.
        Arguments: ``axis`` (1; a negative one counts from the end), ``epsilon`` (1e-5; Caffe2's
        documentation says 0.001, but its code does not) and ``elementwise_affine`` (False).

    Raises
    ------
    ValueError
        For another number of inputs or outputs, or a wrong argument.

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> outputs = ["Y", "mean", "stddev"]
    >>> op = caffe2.LayerNormOp(caffe2.create_operator("LayerNorm", ["X"], outputs, epsilon=0.0))
    >>> Y, mean, stddev = op.run_on_device(np.asarray([[1.0, 3.0], [5.0, 9.0]]))
    >>> Y
    array([[-1.,  1.],
           [-1.,  1.]])
    >>> mean, stddev
    (array([[2.],
           [7.]]), array([[1.],
           [2.]]))
    """

    schema = LAYER_NORM
    data = "input"

    def run_on_device(self, *inputs: Array) -> tuple[Array, ...]:
        """Normalise an array.

        Parameters
        ----------
        X : array
            Of at least 2 dimensions; float16, bfloat16, float32 or float64.
        gamma, beta : array of shape X.shape[axis:]
            With elementwise_affine, both, in X's dtype or a wider one.

        Returns
        -------
        y : array of X's shape and dtype
        mean, stddev : array of shape X.shape[:axis] + (1,)
            stddev is sqrt(variance + epsilon). In float32 for 16-bit X, else in X's dtype.

        Raises
        ------
        TypeError
            For dtypes that are not supported, or arrays of different libraries.
        ValueError
            For a wrong number of arrays, a wrong axis or shape, arrays on different devices, or on
            another one than device_option says.
        """
        arrays, shapes = self._checked(inputs)
        x, axes, epsilon = arrays["input"], shapes.axes, self.arguments["epsilon"]
        checks.epsilon(self.op_def.label, epsilon, x.dtype)
        y, mean, rstd = layer_norm_forward(
            x, arrays.get("gamma"), arrays.get("beta"), axis=axes, epsilon=epsilon
        )
        with on_device_of(x), np.errstate(all="ignore"):
            stddev = 1 / rstd  # a constant row with epsilon=0 has stddev 0
        squeeze, spare = library_of(x).xp.squeeze, axes[1:]
        return y, squeeze(mean, axis=spare), squeeze(stddev, axis=spare)


@register_cpu_operator("LayerNormGradient")
@register_cuda_operator("LayerNormGradient")
class LayerNormGradientOp(_LayerNormOperator):
    """Caffe2's LayerNormGradient: from the gradient of LayerNorm's output to those of its inputs.

    Parameters
    ----------
    op_def : OperatorDef
        Of the inputs dY, Y, mean, stddev and X, and the output dX; with
        ``elementwise_affine=True`` also of the input gamma, and the outputs dgamma and dbeta.
        Arguments: ``axis`` (1) and ``elementwise_affine`` (False), as for LayerNorm. Errors are
        those of `LayerNormOp`.

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> X = np.asarray([[1.0, 2.0, 6.0]])
    >>> forward = caffe2.create_operator("LayerNorm", ["X"], ["Y", "mean", "stddev"])
    >>> outputs = caffe2.LayerNormOp(forward).run_on_device(X)
    >>> (backward,), _ = caffe2.get_gradient_defs(forward, ["dY", None, None])
    >>> dY = np.asarray([[1.0, 0.0, 0.0]])
    >>> (dX,) = caffe2.LayerNormGradientOp(backward).run_on_device(dY, *outputs, X)
    >>> dX.round(4)
    array([[ 0.1763, -0.2204,  0.0441]])
    """

    schema = LAYER_NORM_GRADIENT
    data = "X"

    def run_on_device(self, *inputs: Array) -> tuple[Array, ...]:
        """Compute the gradients.

        Parameters
        ----------
        dY : array of X's shape
            Gradient of the loss with respect to Y.
        Y, mean, stddev : array
            The outputs of LayerNorm. Y is checked, but its values are not used.
        X : array
            The input of LayerNorm.
        gamma : array of shape X.shape[axis:]
            Given with elementwise_affine.

        Returns
        -------
        dX : array of X's shape and dtype
        dgamma, dbeta : array of gamma's shape and dtype
            With elementwise_affine; zeros where X is empty.

        Raises
        ------
        TypeError, ValueError
            As for LayerNorm.
        """
        arrays, shapes = self._checked(inputs)
        gamma, axes = arrays.get("gamma"), shapes.axes
        expand_index = (..., *(None for _ in axes[1:]))
        with on_device_of(arrays["X"]), np.errstate(all="ignore"):
            rstd = 1 / arrays["stddev"]
        gradients = layer_norm_backward(
            arrays["dY"],
            arrays["X"],
            arrays["mean"][expand_index],
            rstd[expand_index],
            gamma,
            axis=axes,
            need=("dx",) if gamma is None else ("dx", "dgamma", "dbeta"),
        )
        return tuple(gradients[: len(self.op_def.outputs)])


@register_cpu_operator("Sum")
@register_cuda_operator("Sum")
class SumOp:
    """Caffe2's Sum: the elementwise sum of its inputs, from the first to the last.

    Parameters
    ----------
    op_def : OperatorDef
        Of at least 1 input, and 1 output; without arguments.

    Raises
    ------
    ValueError
        For another number of inputs or outputs, or an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> op = caffe2.SumOp(caffe2.create_operator("Sum", ["a", "b"], ["c"]))
    >>> op.run_on_device(np.asarray([1.0, 2.0]), np.asarray([3.0, 4.0]))
    (array([4., 6.]),)
    """

    schema = SUM

    def __init__(self, op_def: OperatorDef) -> None:
        self.op_def = op_def
        self.schema.check(op_def)

    def run_on_device(self, *inputs: Array) -> tuple[Array, ...]:
        """Add arrays.

        Parameters
        ----------
        *inputs : array
            Of one shape and one dtype: float16, bfloat16, float32 or float64.

        Returns
        -------
        sum : array
            Of that shape and dtype. 16-bit arrays are added in float32 and rounded once. The sum
            of one array is that array itself.

        Raises
        ------
        TypeError
            For dtypes that are not supported or differ, or arrays of different libraries.
        ValueError
            For a wrong number of arrays, different shapes or devices, or a device that
            device_option does not allow.
        """
        run_device(self.op_def, inputs)
        label, blobs, first = self.op_def.label, self.op_def.inputs, inputs[0]
        checks.array(label, blobs[0], first)
        for blob, x in zip(blobs[1:], inputs[1:], strict=True):
            checks.array(label, blob, x)
            if dtype_name(x.dtype) != dtype_name(first.dtype):
                raise TypeError(
                    f"{label}: {blob} has dtype {dtype_name(x.dtype)}, but must have that of "
                    f"{blobs[0]}, {dtype_name(first.dtype)}; cast one of them"
                )
            checks.operand(label, blob, x, first, tuple(first.shape), f"the shape of {blobs[0]}")
        if len(inputs) == 1:
            return (first,)
        xp = library_of(first).xp
        with on_device_of(first), np.errstate(all="ignore"):  # overflow gives inf, silently
            total = reduce(lambda a, b: a + b, (to_acc_dtype(xp, x) for x in inputs))
            return (xp.astype(total, native_dtype(first), copy=False),)
