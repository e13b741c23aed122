"""Statistics that merge: count, mean and squared deviations of data that comes in parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ._arrays import Array, on_device_of
from ._dispatch import checks
from .kernels.moments import moments, two_sum


@dataclass(frozen=True, eq=False, slots=True)  # whether arrays are equal is no yes or no
class Moments:
    """Count, mean and sum of squared deviations; those of parts merge into those of the whole.

    `Moments.of` takes them of an array and `merge` makes those of two arrays into those of both,
    wherever the parts are: chunks, batches that come one after another, shards on other machines.
    What `batch_norm` needs of a large batch can be had in this way.

    Parameters
    ----------
    count : int
        How many values each mean is the mean of.
    mean : array
        Their mean, in float32 for 16-bit values, else in their dtype. NaN of no values.
    m2 : array
        The sum of their squared deviations from the mean, of the same shape and dtype. 0 of no
        values.
    missed : array, optional
        The rounding error of `mean`: mean + missed holds the mean to about twice the precision.
        Without it, results of `merge` inherit the rounding error of the means.

    Notes
    -----
    Merged by the formulas of Chan, Golub and LeVeque, "Algorithms for computing the sample
    variance", 1983, equations (2.1). The difference of two means is what these depend on, and
    rounded means of a million times the standard deviation have no correct digit of it in float32.
    That is why the rest of each mean is kept. Statistics of more than two parts may be merged in
    any order; the results differ only in rounding.

    Examples
    --------
    Two shards of a batch of two channels give the statistics of the batch:

    >>> import numpy as np
    >>> import ln_array_api as ln
    >>> x = np.asarray([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]])
    >>> first, second = ln.Moments.of(x[:2], axis=0), ln.Moments.of(x[2:], axis=0)
    >>> merged = first.merge(second)
    >>> merged.count, merged.mean, merged.m2
    (3, array([ 4., 20.]), array([ 26., 200.]))
    >>> whole = ln.Moments.of(x, axis=0)
    >>> whole.mean, whole.m2
    (array([ 4., 20.]), array([ 26., 200.]))

    Each shard is then normalised by them, as batch norm normalises the whole:

    >>> ln.batch_norm(x[:2], merged.mean, merged.var).round(3)
    array([[-1.019, -1.225],
           [-0.34 ,  1.225]])
    >>> ln.batch_norm_forward(x).y[:2].round(3)
    array([[-1.019, -1.225],
           [-0.34 ,  1.225]])

    and running statistics are kept by ``0.9 * running_mean + 0.1 * merged.mean`` and
    ``0.9 * running_var + 0.1 * merged.unbiased_var``.
    """

    count: int
    mean: Array
    m2: Array
    missed: Array | float = 0.0

    @classmethod
    def of(cls, x: Array, /, *, axis: int | tuple[int, ...]) -> Moments:
        """Take the moments of x over some of its axes.

        Parameters
        ----------
        x : array
            Of any array library that follows the Python array API standard, of any layout, with
            dtype float16, bfloat16, float32 or float64.
        axis : int or tuple of ints
            The axes to take them over, as of a mean: for those of channels, all other axes.

        Returns
        -------
        Moments
            Of arrays without those axes. On Dask arrays the result is lazy.

        Raises
        ------
        TypeError
            If x is no array, or of an unsupported dtype.
        ValueError
            If an axis is out of range or named twice, or its length is not known yet.

        Examples
        --------
        >>> import numpy as np
        >>> import ln_array_api as ln
        >>> images = np.ones((8, 3, 5, 5), np.float32)
        >>> moments = ln.Moments.of(images, axis=(0, 2, 3))
        >>> moments.count, moments.mean, moments.var
        (200, array([1., 1., 1.], dtype=float32), array([0., 0., 0.], dtype=float32))
        """
        library = checks.array("Moments.of", "x", x)
        given = checks.canonical_axis("Moments.of", axis)
        axes = checks.axes("Moments.of", given, tuple(x.shape))
        count, squeeze = math.prod(x.shape[each] for each in axes), library.xp.squeeze
        with on_device_of(x):
            return cls(count, *(squeeze(each, axis=axes) for each in moments(x, axes=axes)))

    def merge(self, other: Moments) -> Moments:
        """Give the moments of the values of both.

        Parameters
        ----------
        other : Moments
            Of arrays of the same library, device, shape and dtype.

        Returns
        -------
        Moments
            Those of the other where one has no values.

        Raises
        ------
        TypeError, ValueError, DeviceMismatchError
            If the arrays do not go together.

        Examples
        --------
        >>> import numpy as np
        >>> import ln_array_api as ln
        >>> one, two = (ln.Moments.of(np.asarray(each), axis=0) for each in ([1.0, 3.0], [5.0]))
        >>> merged = one.merge(two)
        >>> merged.count, float(merged.mean), float(merged.m2)
        (3, 3.0, 8.0)
        """
        for name, values in (("other.mean", other.mean), ("other.m2", other.m2)):
            shape, shape_text = tuple(self.mean.shape), "as here"
            checks.operand(
                "Moments.merge", name, values, self.mean, shape, shape_text, x_name="mean"
            )
        if self.count < other.count:  # from the larger, a mean has the shorter way
            return other.merge(self)
        if other.count == 0:
            return self
        count = self.count + other.count
        weight = other.count / count
        with on_device_of(self.mean), np.errstate(all="ignore"):
            mean_difference = (other.mean - self.mean) + (other.missed - self.missed)
            mean, missed = two_sum(self.mean, self.missed + mean_difference * weight)
            m2 = self.m2 + other.m2 + mean_difference * mean_difference * (weight * self.count)
        return Moments(count, mean, m2, missed)

    @property
    def var(self) -> Array:
        """The biased variance, m2 / count, which normalises; NaN of no values."""
        with on_device_of(self.m2):
            return self.m2 / (self.count or math.nan)

    @property
    def unbiased_var(self) -> Array:
        """The unbiased variance, m2 / (count - 1), for running statistics; NaN of one value."""
        with on_device_of(self.m2):
            return self.m2 / (self.count - 1 if self.count > 1 else math.nan)
