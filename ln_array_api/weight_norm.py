"""Weight normalisation: the direction and the length of weights as parameters of their own."""

from __future__ import annotations

from typing import NamedTuple

from ._arrays import Array
from ._dispatch.rows import Names, RowsOperation, backward_plan, forward_plan
from ._dispatch.views import KeptAxis, interned


class WeightNormForward(NamedTuple):
    """What `weight_norm_forward` gives."""

    w: Array
    norm: Array


class WeightNormGradients(NamedTuple):
    """What `weight_norm_backward` gives; None stands for what was not asked for."""

    dv: Array | None
    dg: Array | None


_OPERATION = RowsOperation(
    by_norm=True,
    saves_norm=True,
    gradients=("dx", "dgamma"),
    needs_gamma=True,
    names=Names(x="v", dy="dw", rstd="norm", gamma="g", dx="dv", dgamma="dg"),
)


def weight_norm(v: Array, g: Array, /, *, axis: int = 0) -> Array:
    """Give each slice of a weight array along an axis the direction of v and the length g.

    Computes ``g * v / norm``, where norm is the root of the sum of squares over all other axes.

    Parameters
    ----------
    v : array
        Weights of two axes or more, otherwise as x of `layer_norm`, as are the errors.
    g : array
        Of shape (v.shape[axis],), in v's dtype or a wider one.
    axis : int, default: 0
        The axis that is kept, of output channels: norms are over all others.

    Returns
    -------
    array
        Of v's library, device, shape and dtype. NaN in a slice of zeros, which has no direction.

    Raises
    ------
    ValueError
        Also if v has one axis only.

    Notes
    -----
    After Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
    Training of Deep Neural Networks", arXiv:1602.07868. Squares neither overflow nor underflow.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.weight_norm(np.asarray([[3.0, 4.0], [0.0, 0.1]]), np.asarray([10.0, 2.0])).round(3)
    array([[6., 8.],
           [0., 2.]])
    """
    over = interned(KeptAxis, axis, True)
    plan = forward_plan("weight_norm", _OPERATION, v, g, None, over, 0.0)
    return plan.y(v, g, None)


def weight_norm_forward(v: Array, g: Array, /, *, axis: int = 0) -> WeightNormForward:
    """Weight norm, with the norms that its gradient needs.

    Parameters
    ----------
    v, g, axis
        As for `weight_norm`, as are the errors.

    Returns
    -------
    w, norm : array
        As y and rstd from `layer_norm_forward`; norm of each slice of v, of shape
        (v.shape[axis],).

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> v, g = np.asarray([[3.0, 4.0], [0.0, 0.1]]), np.ones(2)
    >>> ln.weight_norm_forward(v, g).norm.round(3)
    array([5. , 0.1])
    """
    over = interned(KeptAxis, axis, True)
    plan = forward_plan("weight_norm_forward", _OPERATION, v, g, None, over, 0.0)
    w, _, norm = plan.forward(v, g, None)
    return WeightNormForward(w, norm)


def weight_norm_backward(
    dw: Array,
    v: Array,
    norm: Array,
    g: Array,
    /,
    *,
    axis: int = 0,
    need: tuple[str, ...] = WeightNormGradients._fields,
) -> WeightNormGradients:
    """Gradients of weight norm with respect to v and g.

    Parameters
    ----------
    dw, need
        As dy and need of `layer_norm_backward`, as are the errors; the gradients are dv and dg.
    norm : array
        From `weight_norm_forward`.
    v, g, axis
        As in the forward pass.

    Returns
    -------
    dv : array or None
        Of v's shape and dtype.
    dg : array or None
        Of g's shape and dtype.

    Notes
    -----
    With u = v / norm and all sums over a slice, the gradients are
    ``dv = g / norm * (dw - u * sum(dw * u))`` and ``dg = sum(dw * u)``.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> v, g = np.asarray([[3.0, 4.0]]), np.asarray([10.0])
    >>> w, norm = ln.weight_norm_forward(v, g)
    >>> dv, dg = ln.weight_norm_backward(np.asarray([[1.0, 0.0]]), v, norm, g)
    >>> dv.round(3), dg.round(3)
    (array([[ 1.28, -0.96]]), array([0.6]))
    """
    over = interned(KeptAxis, axis, True)
    plan = backward_plan("weight_norm_backward", _OPERATION, dw, v, None, norm, g, None, over, need)
    dv, dg, _ = plan.backward(dw, v, None, norm, g)
    return WeightNormGradients(dv, dg)
