"""Instance normalisation: each channel of each sample by itself."""

from __future__ import annotations

from ._arrays import Array
from ._dispatch.channels_last import keeps_channels_last
from ._dispatch.plans import GRADIENTS
from ._dispatch.rows import LAYER, backward_plan, forward_plan
from ._dispatch.views import ChannelGroups, interned
from .layer_norm import EPSILON, Forward, Gradients, make_namedtuple


@keeps_channels_last
def instance_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Array:
    """Normalise each channel of each sample over all spatial axes.

    Parameters
    ----------
    x, gamma, beta, channel_axis
        As for `group_norm`, as are the errors.
    epsilon : float, default: 1e-5
        As for `group_norm`.
    where, gamma_offset
        As for `layer_norm`.

    Returns
    -------
    array
        Like x: each channel of each sample normalised.

    Notes
    -----
    After Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", arXiv:1607.08022. The same as `group_norm` with one channel in each group. Without
    spatial axes a channel of a sample is a single element, so y is beta.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[[1.0, 3.0], [10.0, 30.0]]])  # one sample of two channels
    >>> ln.instance_norm(x).round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    over = interned(ChannelGroups, None, channel_axis)
    options = over, epsilon, None, where, gamma_offset
    plan = forward_plan("instance_norm", LAYER, x, gamma, beta, *options)
    return plan.y(x, gamma, beta, None, where)


@keeps_channels_last
def instance_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Forward:
    """Instance norm, with the statistics that its gradient needs.

    Parameters
    ----------
    x, gamma, beta, channel_axis, epsilon, where, gamma_offset
        As for `instance_norm`, as are the errors.

    Returns
    -------
    y, mean, rstd : array
        As from `layer_norm_forward`; mean and rstd of each instance, of shape (B, C).

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> y, mean, rstd = ln.instance_norm_forward(np.asarray([[[1.0, 3.0], [10.0, 30.0]]]))
    >>> mean, rstd.round(3)
    (array([[ 2., 20.]]), array([[1. , 0.1]]))
    """
    over = interned(ChannelGroups, None, channel_axis)
    options = over, epsilon, None, where, gamma_offset
    plan = forward_plan("instance_norm_forward", LAYER, x, gamma, beta, *options)
    return make_namedtuple(Forward, plan.forward(x, gamma, beta, None, where))


@keeps_channels_last
def instance_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    channel_axis: int = 1,
    need: tuple[str, ...] = GRADIENTS,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Gradients:
    """Gradients of instance norm with respect to x, gamma and beta.

    Parameters
    ----------
    dy, x, mean, rstd, gamma, beta, channel_axis, need, where, gamma_offset
        As for `group_norm_backward`, as are the errors; mean and rstd from `instance_norm_forward`.

    Returns
    -------
    dx, dgamma, dbeta : array or None
        As from `group_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[[1.0, 2.0, 6.0], [0.0, 1.0, 5.0]]])
    >>> y, mean, rstd = ln.instance_norm_forward(x)
    >>> dy = np.asarray([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    >>> dx, _, dbeta = ln.instance_norm_backward(dy, x, mean, rstd)
    >>> dx.round(4)
    array([[[ 0.1763, -0.2204,  0.0441],
            [ 0.    ,  0.    ,  0.    ]]])
    >>> dbeta
    array([1., 0.])
    """
    over = interned(ChannelGroups, None, channel_axis)
    arrays = dy, x, mean, rstd, gamma, beta
    plan = backward_plan("instance_norm_backward", LAYER, *arrays, over, need, where, gamma_offset)
    return make_namedtuple(Gradients, plan.backward(*arrays, where))
