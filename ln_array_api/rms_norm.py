"""RMS normalisation: layer norm without the mean."""

from __future__ import annotations

from typing import NamedTuple

from ._arrays import Array, Axis
from ._dispatch.rows import RMS, backward_plan, forward_plan

EPSILON = 1e-6


class RMSForward(NamedTuple):
    """What `rms_norm_forward` gives."""

    y: Array
    rstd: Array


class RMSGradients(NamedTuple):
    """What `rms_norm_backward` gives; None stands for what was not asked for."""

    dx: Array | None
    dgamma: Array | None


def rms_norm(
    x: Array,
    gamma: Array | None = None,
    /,
    *,
    axis: Axis = -1,
    epsilon: float = EPSILON,
    out: Array | None = None,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> Array:
    """Divide x by its root mean square over some of its axes.

    Computes ``x / sqrt(mean(x²) + epsilon) * gamma``.

    Parameters
    ----------
    x, gamma, axis, out, where, gamma_offset
        As for `layer_norm`, as are the errors.
    epsilon : float, default: 1e-6
        Added to the mean square, inside the root. Finite and at least 0; with 0 a row of zeros
        gives NaN.

    Returns
    -------
    y : array
        Of x's shape, dtype, library and device; `out` itself where that is given.

    Notes
    -----
    From Zhang and Sennrich, "Root Mean Square Layer Normalization" [1]_. 16-bit inputs are
    computed in float32, with one rounding at the end. There is no beta in the paper, nor here.

    References
    ----------
    .. [1] https://arxiv.org/abs/1910.07467

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> ln.rms_norm(np.asarray([[3.0, 3.0, 3.0], [1.0, 2.0, 2.0]])).round(4)
    array([[1.    , 1.    , 1.    ],
           [0.5774, 1.1547, 1.1547]])
    """
    plan = forward_plan("rms_norm", RMS, x, gamma, None, axis, epsilon, out, where, gamma_offset)
    return plan.y(x, gamma, None, out, where)


def rms_norm_forward(
    x: Array,
    gamma: Array | None = None,
    /,
    *,
    axis: Axis = -1,
    epsilon: float = EPSILON,
    out: Array | None = None,
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> RMSForward:
    """RMS norm, with the statistic that its gradient needs.

    Parameters
    ----------
    x, gamma, axis, epsilon, out, where, gamma_offset
        As for `rms_norm`, as are the errors.

    Returns
    -------
    y, rstd : array
        As from `layer_norm_forward`, with rstd = 1 / sqrt(mean(x²) + epsilon).

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> y, rstd = ln.rms_norm_forward(np.asarray([[2.0, 2.0], [4.0, -4.0]]), epsilon=0)
    >>> y
    array([[ 1.,  1.],
           [ 1., -1.]])
    >>> rstd
    array([[0.5 ],
           [0.25]])
    """
    plan = forward_plan(
        "rms_norm_forward", RMS, x, gamma, None, axis, epsilon, out, where, gamma_offset
    )
    y, _, rstd = plan.forward(x, gamma, None, out, where)
    return RMSForward(y, rstd)


def rms_norm_backward(
    dy: Array,
    x: Array,
    rstd: Array,
    gamma: Array | None = None,
    /,
    *,
    axis: Axis = -1,
    need: tuple[str, ...] = ("dx", "dgamma"),
    where: Array | None = None,
    gamma_offset: float = 0.0,
) -> RMSGradients:
    """Gradients of RMS norm with respect to x and gamma.

    Parameters
    ----------
    dy, x, gamma, axis, need, where, gamma_offset
        As for `layer_norm_backward`, as are the errors; the gradients are dx and dgamma.
    rstd : array
        From `rms_norm_forward`.

    Returns
    -------
    dx, dgamma : array or None
        As from `layer_norm_backward`.

    Notes
    -----
    With x̂ = x * rstd and g = dy * gamma, the gradients are
    ``dx = rstd * (g - x̂ * mean(g * x̂))`` and ``dgamma = sum(dy * x̂)``.

    Examples
    --------
    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[3.0, 4.0]])
    >>> y, rstd = ln.rms_norm_forward(x)
    >>> ln.rms_norm_backward(np.asarray([[1.0, 0.0]]), x, rstd).dx.round(4)
    array([[ 0.181 , -0.1358]])
    """
    arrays = dy, x, None, rstd, gamma, None
    plan = backward_plan("rms_norm_backward", RMS, *arrays, axis, need, where, gamma_offset)
    dx, dgamma, _ = plan.backward(*arrays, where)
    return RMSGradients(dx, dgamma)
