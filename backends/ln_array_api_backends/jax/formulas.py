"""Layer norm and related operations as JAX's own operations, on arrays with all their axes.

An absent array is None among the arguments, and left out of the results. Parameters and statistics
have x's rank, with length 1 where they do not vary.
"""

from __future__ import annotations

from typing import Any

from ln_array_api._arrays import library_of, to_acc_dtype
from ln_array_api.kernels import rows


def present(values: Any) -> list[Any]:
    """Return the values that are not None."""
    return [each for each in values if each is not None]


def forward(x: Any, gamma: Any, beta: Any, **options: Any) -> list[Any]:
    """Return y, mean and rstd; the options are those of `rows.normalise`."""
    y, mean, _, rstd = rows.normalise(x, gamma, beta, **options)
    return present((y, mean, rstd))


def backward(dy: Any, x: Any, mean: Any, rstd: Any, gamma: Any, **options: Any) -> list[Any]:
    """Return those of dx, dgamma and dbeta that are needed; the latter two in rstd's dtype.

    The options are those of `rows.normalise_backward` except `center`.
    """
    center = mean is not None
    return present(rows.normalise_backward(dy, x, mean, rstd, gamma, center=center, **options))


def tangents(
    x: Any,
    mean: Any,
    rstd: Any,
    gamma: Any,
    of_x: Any,
    of_gamma: Any,
    of_beta: Any,
    *,
    axes: tuple[int, ...],
) -> list[Any]:
    """Return the tangents of y, mean and rstd, linear in those of x, gamma and beta."""
    xp = library_of(x).xp
    elements = rows.Elements(xp, x, axes)
    x_hat = rows.x_hat_from_stats(x, mean, rstd, elements)
    of_y = xp.zeros_like(x_hat)
    of_mean, of_rstd = None if mean is None else xp.zeros_like(mean), xp.zeros_like(rstd)
    if of_x is not None:
        moved = to_acc_dtype(xp, of_x)
        along = elements.mean(moved * x_hat, fused=False)
        of_y, of_rstd = moved - x_hat * along, -(rstd * rstd) * along
        if mean is not None:
            of_mean = elements.mean(moved, fused=False)
            of_y = of_y - of_mean
        of_y = of_y * rstd
        if gamma is not None:
            of_y = of_y * rows.astype_like(xp, gamma, of_y)
    if of_gamma is not None:
        of_y = of_y + x_hat * rows.astype_like(xp, of_gamma, of_y)
    if of_beta is not None:
        of_y = of_y + rows.astype_like(xp, of_beta, of_y)
    return present((xp.astype(of_y, x.dtype, copy=False), of_mean, of_rstd))


def along_statistics(
    x: Any, mean: Any, rstd: Any, of_mean: Any, of_rstd: Any, *, axes: tuple[int, ...]
) -> Any:
    """Return the cotangent of x from those of mean and rstd; one may be None."""
    xp = library_of(x).xp
    added = xp.zeros(x.shape, dtype=rstd.dtype)
    elements = rows.Elements(xp, added, axes)
    if of_mean is not None:
        added = added + of_mean / elements.count
    if of_rstd is not None:
        x_hat = rows.x_hat_from_stats(x, mean, rstd, elements)
        added = added - of_rstd * rstd * rstd * x_hat / elements.count
    return added
