"""Group normalisation: layer norm of each sample over groups of its channels."""

from __future__ import annotations

from ._arrays import Array
from ._dispatch.channels_last import keeps_channels_last
from ._dispatch.plans import GRADIENTS
from ._dispatch.rows import LAYER, backward_plan, forward_plan
from ._dispatch.views import ChannelGroups, interned
from .layer_norm import EPSILON, Forward, Gradients, make_namedtuple


@keeps_channels_last
def group_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    num_groups: int,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Array:
    """Normalise each sample over groups of consecutive channels and all spatial axes.

    Parameters
    ----------
    x : array
        Of shape (B, C, ...), or with the channels on any other axis but the first; of any array
        library that follows the Python array API standard, of any layout, with dtype float16,
        bfloat16, float32 or float64.
    gamma, beta : array, optional
        Scale and shift of shape (C,), or of x's rank with each length 1 or x's, in x's dtype or a
        wider one. Either may be absent.
    num_groups : int
        Into how many groups the channels are cut. It must divide C. With 1 a sample's statistics
        are those of layer norm, with C those of `instance_norm`.
    channel_axis : int, default: 1
        The axis of the channels: 1 for channels first, -1 for channels last. Not the first axis,
        which is the batch.
    epsilon : float, default: 1e-5
        Added to the variance, inside the root. Finite and at least 0; with 0 a constant group
        gives NaN.
    where, gamma_offset
        As for `layer_norm`.

    Returns
    -------
    array
        Of x's library, device, shape and dtype.

    Raises
    ------
    TypeError, ValueError, DeviceMismatchError
        As for `layer_norm`; ValueError also if num_groups does not divide C, or channel_axis is out
        of range or the batch axis.

    Notes
    -----
    After Wu and He, "Group Normalization", arXiv:1803.08494. A group is a row of layer norm, so
    accuracy, special values and determinism are as there, and the statistics do not depend on the
    other samples of the batch.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[1.0, 3.0, 10.0, 30.0]])  # one sample of four channels
    >>> ln.group_norm(x, num_groups=2).round(3)
    array([[-1.,  1., -1.,  1.]])
    >>> ln.group_norm(x, num_groups=1).round(3)
    array([[-0.872, -0.698, -0.087,  1.657]])
    """
    over = interned(ChannelGroups, num_groups, channel_axis)
    options = over, epsilon, None, where, gamma_offset
    plan = forward_plan("group_norm", LAYER, x, gamma, beta, *options)
    return plan.y(x, gamma, beta, None, where)


@keeps_channels_last
def group_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    num_groups: int,
    channel_axis: int = 1,
    epsilon: float = EPSILON,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Forward:
    """Group norm, with the statistics that its gradient needs.

    Parameters
    ----------
    x, gamma, beta, num_groups, channel_axis, epsilon, where, gamma_offset
        As for `group_norm`, as are the errors.

    Returns
    -------
    y, mean, rstd : array
        As from `layer_norm_forward`; mean and rstd of each group, of shape (B, num_groups).

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> y, mean, rstd = ln.group_norm_forward(np.asarray([[1.0, 3.0, 10.0, 30.0]]), num_groups=2)
    >>> mean, rstd.round(3)
    (array([[ 2., 20.]]), array([[1. , 0.1]]))
    """
    over = interned(ChannelGroups, num_groups, channel_axis)
    options = over, epsilon, None, where, gamma_offset
    plan = forward_plan("group_norm_forward", LAYER, x, gamma, beta, *options)
    return make_namedtuple(Forward, plan.forward(x, gamma, beta, None, where))


@keeps_channels_last
def group_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    /,
    *,
    num_groups: int,
    channel_axis: int = 1,
    need: tuple[str, ...] = GRADIENTS,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Gradients:
    """Gradients of group norm with respect to x, gamma and beta.

    Parameters
    ----------
    dy, x, gamma, beta, need, where, gamma_offset
        As for `layer_norm_backward`, as are the errors; gamma and beta as for `group_norm`.
    mean, rstd : array
        From `group_norm_forward`.
    num_groups, channel_axis
        As in the forward pass.

    Returns
    -------
    dx, dgamma, dbeta : array or None
        As from `layer_norm_backward`; without gamma and beta, dbeta has shape (C,).

    Notes
    -----
    As for `layer_norm_backward`, with dgamma and dbeta summed over the batch and the spatial axes,
    in a fixed order.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[1.0, 2.0, 6.0, 0.0, 1.0, 5.0]])
    >>> y, mean, rstd = ln.group_norm_forward(x, num_groups=2)
    >>> dy = np.asarray([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    >>> dx, _, dbeta = ln.group_norm_backward(dy, x, mean, rstd, num_groups=2)
    >>> dx.round(4)
    array([[ 0.1763, -0.2204,  0.0441,  0.    ,  0.    ,  0.    ]])
    >>> dbeta
    array([1., 0., 0., 0., 0., 0.])
    """
    over = interned(ChannelGroups, num_groups, channel_axis)
    arrays = dy, x, mean, rstd, gamma, beta
    plan = backward_plan("group_norm_backward", LAYER, *arrays, over, need, where, gamma_offset)
    return make_namedtuple(Gradients, plan.backward(*arrays, where))
