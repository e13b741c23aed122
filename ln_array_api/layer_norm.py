"""Layer normalisation: zero mean and unit variance over the axes that you name."""

from __future__ import annotations

from typing import NamedTuple

from ._arrays import Array, Axis
from ._dispatch.rows import LAYER, backward_plan, forward_plan

EPSILON = 1e-5

make_namedtuple = tuple.__new__  # a named tuple's own way of being made costs twice as much


class Forward(NamedTuple):
    """What `layer_norm_forward` gives."""

    y: Array
    mean: Array
    rstd: Array


class Gradients(NamedTuple):
    """What `layer_norm_backward` gives; None stands for what was not asked for."""

    dx: Array | None
    dgamma: Array | None
    dbeta: Array | None


def layer_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    axis: Axis = -1,
    epsilon: float = EPSILON,
    out: Array | None = None,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Array:
    """Normalise x to zero mean and unit variance over some of its axes.

    Computes ``(x - mean) / sqrt(var + epsilon) * gamma + beta``, where mean and var, the biased
    variance, are taken over `axis` for each place along the other axes.

    Parameters
    ----------
    x : array
        Of any array library that follows the Python array API standard, of any layout, with dtype
        float16, bfloat16, float32 or float64.
    gamma, beta : array, optional
        Scale and shift, each of the shape of the normalised axes in ascending order, or of x's
        rank with each length 1 or x's, in x's dtype or a wider one. Either may be absent.
    axis : int or tuple of ints, default: -1
        The axes to normalise over, in any place and order; an int for one.
    epsilon : float, default: 1e-5
        Added to the variance, inside the root. Finite and at least 0; with 0 a constant row gives
        NaN.
    out : array, optional
        Where to put the result, for libraries whose arrays can be written: of x's shape and
        dtype, in any layout and byte order. It may be x itself, but not overlap an input otherwise.
    where : array of bool, optional
        Which elements there are; it broadcasts with x. Where it is false, whatever x holds changes
        nothing, and y is 0. Rows without elements have a mean and an rstd of 0.
    gamma_offset : float, default: 0.0
        Added to gamma in the accumulation dtype: 1.0 for models that store gamma - 1.

    Returns
    -------
    y : array
        Of x's shape, dtype, library and device; `out` itself where that is given.

    Raises
    ------
    TypeError
        For dtypes that are not supported, arrays of different libraries, a MaskedArray or matrix,
        or `out` with a library without writing.
    ValueError
        For a wrong shape, axis or epsilon, or an `out` that overlaps an input, is read-only, or
        has another shape or dtype than x.
    DeviceMismatchError
        For arrays on different devices.

    See Also
    --------
    layer_norm_forward : gives the statistics as well, which `layer_norm_backward` needs.
    rms_norm : the same without the mean.

    Notes
    -----
    From Ba, Kiros and Hinton, "Layer Normalization" [1]_. 16-bit inputs are computed in float32,
    with one rounding at the end. The error does not grow with the mean: y is within 4 ulp of its
    row's largest value while ``abs(mean)`` is up to a million times the standard deviation.

    On torch tensors and JAX arrays the result can be differentiated by those frameworks.

    References
    ----------
    .. [1] https://arxiv.org/abs/1607.06450

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[1.0, 2.0, 3.0], [10.0, 10.0, 40.0]])
    >>> ln.layer_norm(x).round(4)
    array([[-1.2247,  0.    ,  1.2247],
           [-0.7071, -0.7071,  1.4142]])

    Over the first axis, with a scale:

    >>> ln.layer_norm(x, np.asarray([1.0, 2.0]), axis=0).round(4)
    array([[-1., -1., -1.],
           [ 2.,  2.,  2.]])
    """
    plan = forward_plan(
        "layer_norm", LAYER, x, gamma, beta, axis, epsilon, out, where, gamma_offset
    )
    return plan.y(x, gamma, beta, out, where)


def layer_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    axis: Axis = -1,
    epsilon: float = EPSILON,
    out: Array | None = None,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Forward:
    """Layer norm, with the statistics that its gradient needs.

    Parameters
    ----------
    x, gamma, beta, axis, epsilon, out, where, gamma_offset
        As for `layer_norm`, as are the errors.

    Returns
    -------
    y : array
        Of x's shape and dtype.
    mean, rstd : array
        Mean and 1 / sqrt(var + epsilon), of x's rank with length 1 in place of each normalised
        axis; in float32 for 16-bit x, else in x's dtype. NaN where the normalised axes are empty.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> y, mean, rstd = ln.layer_norm_forward(np.asarray([[1.0, 3.0], [5.0, 9.0]]), epsilon=0)
    >>> y
    array([[-1.,  1.],
           [-1.,  1.]])
    >>> mean, rstd
    (array([[2.],
           [7.]]), array([[1. ],
           [0.5]]))
    """
    plan = forward_plan(
        "layer_norm_forward", LAYER, x, gamma, beta, axis, epsilon, out, where, gamma_offset
    )
    return make_namedtuple(Forward, plan.forward(x, gamma, beta, out, where))


def layer_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    axis: Axis = -1,
    need: tuple[str, ...] = ("dx", "dgamma", "dbeta"),
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Gradients:
    """Gradients of layer norm with respect to x, gamma and beta.

    Parameters
    ----------
    dy : array
        Gradient of the loss with respect to y, of x's shape, in x's dtype or a wider one.
    x : array
        What y was computed from.
    mean, rstd : array
        From `layer_norm_forward`.
    gamma, beta : array, optional
        The scale and the shift, if there were any. Only the shape and dtype of beta matter.
    axis : int or tuple of ints, default: -1
        The normalised axes.
    need : tuple of str, default: all
        Which gradients to compute, out of "dx", "dgamma" and "dbeta". The others are None and
        cost nothing.
    where, gamma_offset
        As in the forward pass; dx is 0 where the mask is false.

    Returns
    -------
    dx : array or None
        Of x's shape and dtype.
    dgamma : array or None
        Of gamma's shape and dtype; None where gamma is absent.
    dbeta : array or None
        Of the shape and dtype of beta, or of gamma where beta is absent; where both are, of the
        shape of the normalised axes and x's dtype.

    Raises
    ------
    TypeError, ValueError, DeviceMismatchError
        As for `layer_norm`; ValueError also for a name in `need` that is no gradient.

    Notes
    -----
    With x̂ = (x - mean) * rstd and g = dy * gamma, the gradients are
    ``dx = rstd * (g - mean(g) - x̂ * mean(g * x̂))``, ``dgamma = sum(dy * x̂)`` and
    ``dbeta = sum(dy)``. The rounding error of the stored mean is made up for, as in the forward
    pass. The last two are summed in a fixed order, so that they are the same at every call.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x, gamma = np.asarray([[1.0, 2.0, 6.0]]), np.ones(3)
    >>> y, mean, rstd = ln.layer_norm_forward(x, gamma)
    >>> dy = np.asarray([[1.0, 0.0, 0.0]])
    >>> dx, dgamma, dbeta = ln.layer_norm_backward(dy, x, mean, rstd, gamma)
    >>> dx.round(4)
    array([[ 0.1763, -0.2204,  0.0441]])
    >>> dgamma.round(4), dbeta
    (array([-0.9258,  0.    ,  0.    ]), array([1., 0., 0.]))
    """
    arrays = dy, x, mean, rstd, gamma, beta
    plan = backward_plan("layer_norm_backward", LAYER, *arrays, axis, need, where, gamma_offset)
    return make_namedtuple(Gradients, plan.backward(*arrays, where))
