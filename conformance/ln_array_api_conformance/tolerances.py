"""How right is right enough, and why: every tolerance of the suite.

An ulp here is the spacing of the accumulation dtype at a given magnitude: float32 for 16-bit
inputs, else the inputs' own. The magnitudes are those of the largest term that enters a result,
because rounding such a term cannot be undone by what is added to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .libraries import DTYPES

#: y, in ulp of the largest of abs(gamma * x_hat) and abs(beta) in the row. A correctly rounded
#: x_hat, times gamma, plus beta is 1.5; rstd, a root and a quotient of a sum, is another 1.5; the
#: rest is for the sums.
Y = 4.0

#: dx, in ulp of the largest term: two row sums more than y, and the product by the rounded rstd.
DX = 8.0

#: dgamma and dbeta, in ulp of the sum of the magnitudes of what they sum: sums in blocks of k
#: rows are off by sqrt(k) / 8 or so.
PARAMETER_GRADIENT = 8.0

#: The least magnitude that x_hat counts with in that sum, where a mean has been subtracted: 8 ulp
#: of it are one ulp of 1, the root mean square of x_hat. An x_hat of almost 0 is the difference of
#: two numbers, and no sum in the same dtype knows the mean better than to one ulp of sigma.
MIN_X_HAT = 1 / 8

#: rstd, in eps, relative.
RSTD = 8.0

#: The variance, in eps, relative: rstd is its root, which halves a relative error.
VARIANCE = 16.0

#: mean, in ulp of the largest magnitude in the row.
MEAN = 4.0

ACCUMULATION = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "float64": "float64",
}


def ulp(magnitude: Any, dtype: str) -> np.ndarray:
    """The spacing of a dtype at a magnitude, at least that of its smallest normal number."""
    info = np.finfo(DTYPES[dtype]) if dtype != "bfloat16" else _Bfloat16
    size = np.maximum(np.asarray(magnitude, dtype=np.float64), float(info.smallest_normal))
    return np.asarray(np.ldexp(float(info.eps), np.frexp(size)[1] - 1))


class _Bfloat16:
    eps = 2.0**-7
    smallest_normal = 2.0**-126


def absolute_tolerance(ulps: float, scale: Any, values: Any, dtype: str) -> np.ndarray:
    """Return the tolerance for results of a dtype: some ulp of a scale, plus one final rounding.

    16-bit results are those of float32, rounded once, so half an ulp of the 16-bit dtype at the
    magnitude of the result is added to the tolerance of float32.
    """
    tolerance = ulps * ulp(scale, ACCUMULATION[dtype])
    if ACCUMULATION[dtype] != dtype:
        magnitude = abs(np.asarray(values, dtype=np.float64)) + tolerance
        tolerance = tolerance + 0.5 * ulp(magnitude, dtype)
    return tolerance


def assert_close(
    what: str, actual: np.ndarray, expected: Any, ulps: float, scale: Any, dtype: str
) -> None:
    """Assert that every element is within `ulps` ulp of `scale`; the message names the worst."""
    expected = np.broadcast_to(expected, actual.shape)
    # Subtracted in the arithmetic of the reference, whose object arrays hold more than float64.
    actual64 = actual.astype(np.float64)
    error = abs(np.asarray(actual64 - expected, dtype=np.float64))
    tolerance = np.broadcast_to(absolute_tolerance(ulps, scale, expected, dtype), actual.shape)
    wrong = ~(error <= tolerance)
    if wrong.any():
        ratio = np.where(wrong, error / tolerance, 0.0)
        ratio[np.isnan(ratio)] = np.inf
        worst = np.unravel_index(np.argmax(ratio), actual.shape)
        raise AssertionError(
            f"{what}: {wrong.sum()} of {actual.size} elements are further off than {ulps} ulp "
            f"allow; the worst, at {tuple(map(int, worst))}, is {actual64[worst]!r} instead of "
            f"{float(expected[worst])!r}, {ratio[worst]:.3g} times the tolerance"
        )
