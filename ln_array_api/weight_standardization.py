"""Weight standardization: zero mean and unit variance for the weights of each output channel."""

from __future__ import annotations

from typing import NamedTuple

from ._arrays import Array
from ._dispatch.rows import Names, RowsOperation, backward_plan, forward_plan
from ._dispatch.views import KeptAxis, interned
from .layer_norm import EPSILON, Forward, make_namedtuple


class WeightGradients(NamedTuple):
    """What `weight_standardization_backward` gives. None where it was not asked for."""

    dw: Array | None


_OPERATION = RowsOperation(center=True, gradients=("dx",), names=Names(x="w", dx="dw"))


def weight_standardization(w: Array, /, *, axis: int = 0, epsilon: float = EPSILON) -> Array:
    """Normalise each slice of a weight array along an axis to zero mean and unit variance.

    Parameters
    ----------
    w : array
        Weights of two axes or more, otherwise as x of `layer_norm`, as are the errors.
    axis : int, default: 0
        The axis that is kept, of output channels: statistics are over all others.
    epsilon : float, default: 1e-5
        As for `layer_norm`.

    Returns
    -------
    array
        The standardized weights, of w's library, device, shape and dtype.

    Raises
    ------
    ValueError
        Also if w has one axis only.

    Notes
    -----
    After Qiao, Wang, Liu, Shen and Yuille, "Micro-Batch Training with Batch-Channel Normalization
    and Weight Standardization", arXiv:1903.10520. A slice is a row of layer norm.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.weight_standardization(np.asarray([[1.0, 3.0], [10.0, 30.0]])).round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    over = interned(KeptAxis, axis)
    plan = forward_plan("weight_standardization", _OPERATION, w, None, None, over, epsilon)
    return plan.y(w, None, None)


def weight_standardization_forward(
    w: Array, /, *, axis: int = 0, epsilon: float = EPSILON
) -> Forward:
    """Weight standardization, with the statistics that its gradient needs.

    Parameters
    ----------
    w, axis, epsilon
        As for `weight_standardization`, as are the errors.

    Returns
    -------
    y, mean, rstd : array
        As from `layer_norm_forward`; mean and rstd of each slice, of shape (w.shape[axis],).

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> y, mean, rstd = ln.weight_standardization_forward(np.asarray([[1.0, 3.0], [10.0, 30.0]]))
    >>> mean, rstd.round(3)
    (array([ 2., 20.]), array([1. , 0.1]))
    """
    name, over = "weight_standardization_forward", interned(KeptAxis, axis)
    plan = forward_plan(name, _OPERATION, w, None, None, over, epsilon)
    return make_namedtuple(Forward, plan.forward(w, None, None))


def weight_standardization_backward(
    dy: Array,
    w: Array,
    mean: Array,
    rstd: Array,
    /,
    *,
    axis: int = 0,
    need: tuple[str, ...] = WeightGradients._fields,
) -> WeightGradients:
    """Gradient of weight standardization with respect to w.

    Parameters
    ----------
    dy, need
        As for `layer_norm_backward`, as are the errors; dw is the only gradient.
    mean, rstd : array
        From `weight_standardization_forward`.
    w, axis
        As in the forward pass.

    Returns
    -------
    dw : array or None
        The gradient, like w.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> w = np.asarray([[1.0, 2.0, 6.0]])
    >>> y, mean, rstd = ln.weight_standardization_forward(w)
    >>> ln.weight_standardization_backward(np.asarray([[1.0, 0.0, 0.0]]), w, mean, rstd).dw.round(4)
    array([[ 0.1763, -0.2204,  0.0441]])
    """
    name, over = "weight_standardization_backward", interned(KeptAxis, axis)
    plan = backward_plan(name, _OPERATION, dy, w, mean, rstd, None, None, over, need)
    return WeightGradients(plan.backward(dy, w, mean, rstd, None)[0])
