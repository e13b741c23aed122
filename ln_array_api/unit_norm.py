"""Unit normalisation: rows of length 1."""

from __future__ import annotations

from ._arrays import Array, Axis
from ._dispatch.rows import RowsOperation, backward_plan, forward_plan
from .power_norm import EPSILON, NormGradients
from .rms_norm import RMSForward

_OPERATION = RowsOperation(by_norm=True, gradients=("dx",))


def unit_norm(x: Array, /, *, axis: Axis = -1, epsilon: float = EPSILON) -> Array:
    """Divide x by its Euclidean norm over some of its axes.

    Computes ``x / sqrt(sum(x²) + epsilon)``.

    Parameters
    ----------
    x, axis
        As for `layer_norm`, as are the errors.
    epsilon : float, default: 1e-12
        Added to the sum of squares, inside the root. Finite and at least 0; with 0 a row of zeros
        gives NaN.

    Returns
    -------
    array
        The rows at length 1, of x's library, device, shape and dtype.

    See Also
    --------
    power_norm : the same after a power of each element.
    weight_norm : the same of each slice of weights, times a length that is learned.

    Notes
    -----
    Networks that keep their hidden states and weights on a hypersphere apply this after each step,
    such as Loshchilov, Hsieh, Sun and Ginsburg, "nGPT: Normalized Transformer with Representation
    Learning on the Hypersphere", arXiv:2410.01131. A row is one of RMS norm with epsilon / n,
    divided by the root of n, its number of elements; accuracy and special values are as there, so
    squares neither overflow nor underflow.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.unit_norm(np.asarray([[3.0, 4.0], [0.0, -0.1]])).round(3)
    array([[ 0.6,  0.8],
           [ 0. , -1. ]])
    """
    return forward_plan("unit_norm", _OPERATION, x, None, None, axis, epsilon).y(x, None, None)


def unit_norm_forward(x: Array, /, *, axis: Axis = -1, epsilon: float = EPSILON) -> RMSForward:
    """Unit norm, with the statistic that its gradient needs.

    Parameters
    ----------
    x, axis, epsilon
        As for `unit_norm`, as are the errors.

    Returns
    -------
    y, rstd : array
        As from `rms_norm_forward`, with rstd = 1 / sqrt((sum(x²) + epsilon) / n) for n elements in
        a row. The norm is sqrt(n) / rstd; by it, rounded, the gradient would be less accurate.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> y, rstd = ln.unit_norm_forward(np.asarray([[3.0, 4.0], [0.0, -0.1]]))
    >>> (np.sqrt(2) / rstd).round(3)
    array([[5. ],
           [0.1]])
    """
    plan = forward_plan("unit_norm_forward", _OPERATION, x, None, None, axis, epsilon)
    y, _, rstd = plan.forward(x, None, None)
    return RMSForward(y, rstd)


def unit_norm_backward(
    dy: Array, x: Array, rstd: Array, /, *, axis: Axis = -1, need: tuple[str, ...] = ("dx",)
) -> NormGradients:
    """Gradient of unit norm with respect to x.

    Parameters
    ----------
    dy, x, axis, need
        As for `layer_norm_backward`, as are the errors; dx is the only gradient.
    rstd : array
        From `unit_norm_forward`.

    Returns
    -------
    dx : array or None
        The gradient, of x's shape and dtype.

    Notes
    -----
    With y = x / norm, the gradient is ``dx = (dy - y * sum(dy * y)) / norm``.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[3.0, 4.0]])
    >>> y, rstd = ln.unit_norm_forward(x)
    >>> ln.unit_norm_backward(np.asarray([[1.0, 0.0]]), x, rstd).dx.round(3)
    array([[ 0.128, -0.096]])
    """
    arrays = dy, x, None, rstd, None
    plan = backward_plan("unit_norm_backward", _OPERATION, *arrays, None, axis, need)
    return NormGradients(plan.backward(*arrays)[0])
