"""The stages of Caffe2's LayerNorm operator: one function for each of its kernels.

They reproduce Caffe2's computation. X is seen as rows: shape (M, N), where M is the product of
the lengths before `axis` and N of those from it on. Statistics have shape (M,), gamma and beta
(N,). All arrays of a call, and its results, belong to one library and one device. 16-bit
arrays are computed in float32; Y and dX have X's dtype, all other results float32 for 16-bit
arrays and else X's dtype.

The stages compute (X - mean) * rstd as X * scale + bias, which takes one multiply-add for each
element, but subtracts large numbers from each other where the mean is far larger than sigma. In
float32 and at mean 1e4, sigma 1, the result is off by thousands of ulp. `LayerNormOp` and
`LayerNormGradientOp` therefore run the library's own kernels, whose error does not grow with the
mean.

The formulas are those of Caffe2's ``layer_norm_op.cc``, which writes

    dX = rstd * (g - mean(g) - x̂ * mean(g * x̂)),  g = dY * gamma,  x̂ = (X - mean) * rstd

as dY * gamma * rstd + X * X_scale + bias.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np

from .._arrays import (
    ACCUMULATION,
    Array,
    F,
    dtype_name,
    native_dtype,
    on_device_of_x,
    to_acc_dtype,
)
from .._dispatch import checks
from ..backend import accelerated_stage
from ..kernels.rows import astype_like


def _stage(function: F) -> F:
    """Run a stage on the device of its first array, with floating-point warnings off."""
    return on_device_of_x(np.errstate(all="ignore")(function))


@_stage
def compute_sigma_and_fused_params(
    mean: Array, var: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """Return sigma, and the scale and bias that normalise a row in one multiply-add.

    Computes ``scale = 1 / sqrt(var + epsilon)``, ``sigma = scale * (var + epsilon)`` and
    ``bias = -scale * mean``.

    Parameters
    ----------
    mean, var : array of shape (M,)
        Mean and biased variance of each row.
    epsilon : float
        Finite and at least 0.

    Returns
    -------
    sigma, scale, bias : array of shape (M,)

    Raises
    ------
    TypeError
        For dtypes that are not supported, or arrays of different libraries.
    ValueError
        For a wrong shape or epsilon, or arrays on different devices.

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> caffe2.compute_sigma_and_fused_params(np.asarray([3.0]), np.asarray([3.0]), 1.0)
    (array([2.]), array([0.5]), array([-1.5]))
    """
    func_name = "compute_sigma_and_fused_params"
    xp, run = _check_operands(func_name, 1, mean=mean, var=var)
    epsilon = checks.epsilon(func_name, epsilon, mean.dtype)
    if run:
        return run(mean, var, epsilon)  # type: ignore[no-any-return]
    mean, var = _to_acc_dtype(xp, mean, var)
    shifted = var + epsilon
    scale = 1 / xp.sqrt(shifted)
    return scale * shifted, scale, -scale * mean


@_stage
def layer_norm_forward(
    X: Array, scale: Array, bias: Array, gamma: Array | None = None, beta: Array | None = None
) -> Array:
    """Normalise rows by their scale and bias, then apply gamma and beta.

    Computes ``Y = (X * scale + bias) * gamma + beta``.
    Errors are those of `compute_sigma_and_fused_params`.

    Parameters
    ----------
    X : array of shape (M, N)
    scale, bias : array of shape (M,)
        From `compute_sigma_and_fused_params`.
    gamma, beta : array of shape (N,), optional
        In X's dtype or a wider one. Either may be absent.

    Returns
    -------
    Y : array of X's shape and dtype

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> X, scale, bias = np.asarray([[1.0, 3.0]]), np.asarray([1.0]), np.asarray([-2.0])
    >>> caffe2.layer_norm_forward(X, scale, bias, np.asarray([1.0, 10.0]))
    array([[-1., 10.]])
    """
    xp, run = _check_operands(
        "layer_norm_forward", 2, X=X, scale=scale, bias=bias, gamma=gamma, beta=beta
    )
    if run:
        return run(X, scale, bias, gamma, beta)
    x, scale, bias, gamma, beta = _to_acc_dtype(xp, X, scale, bias, gamma, beta)
    y = x * scale[:, None] + bias[:, None]
    if gamma is not None:
        y = y * gamma
    if beta is not None:
        y = y + beta
    return xp.astype(y, native_dtype(X), copy=False)


@_stage
def compute_internal_gradients(
    dY: Array, X: Array, gamma: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return the gradients of a row's scale and bias.

    Computes ``dYxX = dY * X``, ``ds = sum(dYxX * gamma)`` and ``db = sum(dY * gamma)``, with the
    sums over each row and gamma 1 where it is absent.
    Errors are those of `compute_sigma_and_fused_params`.

    Parameters
    ----------
    dY : array of shape (M, N)
        Gradient of the loss with respect to Y, in X's dtype or a wider one.
    X : array of shape (M, N)
    gamma : array of shape (N,), optional

    Returns
    -------
    dYxX : array of shape (M, N)
    ds, db : array of shape (M,)

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> dY, X = np.asarray([[1.0, 2.0]]), np.asarray([[3.0, 4.0]])
    >>> caffe2.compute_internal_gradients(dY, X, np.asarray([1.0, 10.0]))
    (array([[3., 8.]]), array([83.]), array([21.]))
    """
    xp, run = _check_operands("compute_internal_gradients", 2, X=X, dY=dY, gamma=gamma)
    if run:
        return run(dY, X, gamma)  # type: ignore[no-any-return]
    x, g, gamma = _to_acc_dtype(xp, X, dY, gamma)
    dYxX = weighted = g * x
    if gamma is not None:
        g, weighted = g * gamma, dYxX * gamma
    return dYxX, xp.sum(weighted, axis=1), xp.sum(g, axis=1)


@_stage
def compute_fused_params(
    mean: Array, sigma: Array, ds: Array, db: Array, N: int
) -> tuple[Array, Array, Array, Array]:
    """Return the factors and offsets of rows in dX and dgamma.

    Computes ``rstd = 1 / sigma``, ``X_scale = (db * mean - ds) * rstd**3 / N``,
    ``bias = -X_scale * mean - db * rstd / N`` and ``g_scale = -rstd * mean``.
    Errors are those of `compute_sigma_and_fused_params`, and
    ValueError for an N that is not a length.

    Parameters
    ----------
    mean, sigma : array of shape (M,)
        Mean of each row, and sigma from `compute_sigma_and_fused_params`.
    ds, db : array of shape (M,)
        From `compute_internal_gradients`.
    N : int
        The length of a row.

    Returns
    -------
    rstd, X_scale, bias, g_scale : array of shape (M,)

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> mean, sigma, ds, db = (np.asarray([each]) for each in (3.0, 0.5, 1.0, 1.0))
    >>> caffe2.compute_fused_params(mean, sigma, ds, db, 2)
    (array([2.]), array([8.]), array([-25.]), array([-6.]))
    """
    func_name = "compute_fused_params"
    xp, run = _check_operands(func_name, 1, mean=mean, sigma=sigma, ds=ds, db=db)
    if not isinstance(N, Integral) or isinstance(N, bool) or N < 0:
        raise ValueError(f"{func_name}: N must be the length of a row, not {N!r}")
    n = max(int(N), 1)  # empty rows have nothing to scale
    if run:
        return run(mean, sigma, ds, db, n)
    mean, sigma, ds, db = _to_acc_dtype(xp, mean, sigma, ds, db)
    rstd = 1 / sigma
    X_scale = (db * mean - ds) * rstd * rstd * rstd / n
    return rstd, X_scale, -X_scale * mean - db * rstd / n, -rstd * mean


@_stage
def layer_norm_backward(
    dY: Array, X: Array, gamma: Array | None, rstd: Array, X_scale: Array, bias: Array
) -> Array:
    """Return the gradient of X.

    Computes ``dX = dY * gamma * rstd + X * X_scale + bias``, with gamma 1 where it is None.
    Errors are those of `compute_sigma_and_fused_params`.

    Parameters
    ----------
    dY, X, gamma
        As in `compute_internal_gradients`.
    rstd, X_scale, bias : array of shape (M,)
        From `compute_fused_params`.

    Returns
    -------
    dX : array of shape (M, N)

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> dY, X = np.asarray([[1.0, 2.0]]), np.asarray([[3.0, 4.0]])
    >>> rstd, X_scale, bias = (np.asarray([each]) for each in (2.0, 8.0, -25.0))
    >>> caffe2.layer_norm_backward(dY, X, None, rstd, X_scale, bias)
    array([[ 1., 11.]])
    """
    xp, run = _check_operands(
        "layer_norm_backward", 2, X=X, dY=dY, gamma=gamma, rstd=rstd, X_scale=X_scale, bias=bias
    )
    if run:
        return run(dY, X, gamma, rstd, X_scale, bias)
    x, g, gamma, *columns = _to_acc_dtype(xp, X, dY, gamma, rstd, X_scale, bias)
    rstd, X_scale, bias = (each[:, None] for each in columns)
    if gamma is not None:
        g = g * gamma
    return xp.astype(g * rstd + x * X_scale + bias, native_dtype(X), copy=False)


@_stage
def gamma_beta_backward(dYxX: Array, dY: Array, rstd: Array, g_scale: Array) -> tuple[Array, Array]:
    """Return the gradients of gamma and beta.

    Computes ``dgamma = sum(dYxX * rstd + dY * g_scale)`` and ``dbeta = sum(dY)``, with the sums
    over the rows: zeros where there is no row.
    Errors are those of `compute_sigma_and_fused_params`.

    Parameters
    ----------
    dYxX : array of shape (M, N)
        From `compute_internal_gradients`.
    dY : array of shape (M, N)
        Gradient of the loss with respect to Y.
    rstd, g_scale : array of shape (M,)
        From `compute_fused_params`.

    Returns
    -------
    dgamma, dbeta : array of shape (N,)

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> dYxX, dY = np.asarray([[3.0], [8.0]]), np.asarray([[1.0], [2.0]])
    >>> caffe2.gamma_beta_backward(dYxX, dY, np.asarray([2.0, 1.0]), np.asarray([-6.0, 0.0]))
    (array([8.]), array([3.]))
    """
    xp, run = _check_operands(
        "gamma_beta_backward", 2, dY=dY, dYxX=dYxX, rstd=rstd, g_scale=g_scale
    )
    if run:
        return run(dYxX, dY, rstd, g_scale)  # type: ignore[no-any-return]
    g, dYxX, rstd, g_scale = _to_acc_dtype(xp, dY, dYxX, rstd, g_scale)
    terms = dYxX * rstd[:, None] + g * g_scale[:, None]
    return xp.sum(terms, axis=0), xp.sum(g, axis=0)


def _check_operands(
    func_name: str, ndim: int, **operands: Array
) -> tuple[Any, Callable[..., Any] | None]:
    """Check the arrays of a stage against the first one, a matrix (M, N) or a vector (M,).

    Return the namespace of the arrays, and a backend's function for this stage or None.
    """
    (x_name, x), *others = operands.items()
    library = checks.array(func_name, x_name, x)
    if x.ndim != ndim:
        expected = "(M, N)" if ndim == 2 else "(M,)"
        raise ValueError(
            f"{func_name}: {x_name} has shape {tuple(x.shape)}, but must have {expected}"
        )
    for name, values in others:
        dtype = None
        if name in ("gamma", "beta"):
            if values is None:
                continue
            shape, shape_text = (x.shape[1],), "one element for each column"
        elif ndim == 1 or name in ("dY", "dYxX"):
            shape, shape_text = tuple(x.shape), f"the shape of {x_name}"
        else:
            shape, shape_text = (x.shape[0],), "one element for each row"
            dtype = ACCUMULATION[dtype_name(x.dtype)]
        checks.operand(func_name, name, values, x, shape, shape_text, dtype)
    return library.xp, None if 0 in x.shape else accelerated_stage(library.name, func_name)


def _to_acc_dtype(xp: Any, x: Array, *others: Array | None) -> tuple[Any, ...]:
    """Cast the arrays to the accumulation dtype of x."""
    x = to_acc_dtype(xp, x)
    return x, *(None if each is None else astype_like(xp, each, x) for each in others)
