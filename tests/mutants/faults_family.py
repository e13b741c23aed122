"""Faults in the generic kernels of the operations that are no rows."""

from __future__ import annotations

from fault import Fault, suite, unit

WINDOWS, POWERS = "ln_array_api/kernels/windows.py", "ln_array_api/kernels/powers.py"
INSTANCES = "ln_array_api/kernels/instances.py"
SWITCHABLE, MOMENTS = "ln_array_api/kernels/switchable.py", "ln_array_api/kernels/moments.py"

OF_WINDOWS = (
    Fault(
        "windows at the far border count places beyond it",
        WINDOWS,
        "np.minimum(n - 1 - place, places)",
        "places",
        suite("test_cases and local_contrast"),
    ),
    Fault(
        "the sums of totals go on beyond the border",
        WINDOWS,
        "fields, (True, False, False, False), axis",
        "fields, (True, True, True, True), axis",
        suite("test_cases and local_contrast"),
    ),
    Fault(
        "the anchor of a run is its element of the least weight",
        WINDOWS,
        "first = a[1] >= b[1]",
        "first = a[1] < b[1]",
        unit("test_local_contrast_norm.py", "gradients"),
    ),
    Fault(
        "gradients close to the smallest number are not lifted",
        WINDOWS,
        "_LIFT = 2.0**44",
        "_LIFT = 1.0",
        unit("test_local_contrast_norm.py", "gradients"),
    ),
    Fault(
        "merged variances lack the difference of the means",
        WINDOWS,
        "inner + (weight * (1 - weight)) * step * step",
        "inner",
        suite("test_cases and local_contrast"),
    ),
    Fault(
        "an infinity in a window counts as 0",
        WINDOWS,
        "d = x_acc if scale is None else x_acc * scale",
        "d = xp.where(xp.isinf(x_acc), 0.0, x_acc) * (1 if scale is None else scale)",
        unit("test_local_contrast_norm.py", "not_finite"),
    ),
    Fault(
        "an infinity sets the scale of all windows",
        WINDOWS,
        "finite = xp.where(xp.isfinite(x_acc), x_acc, 0.0)",
        "finite = x_acc",
        unit("test_local_contrast_norm.py", "not_finite"),
    ),
    Fault(
        "the last chunk loses what is around the others",
        WINDOWS,
        "places if place < last else 0",
        "places",
        unit("test_local_contrast_norm.py", "dask"),
    ),
)

OF_SWITCHABLE = (
    Fault(
        "the variance of a layer lacks that of its means",
        SWITCHABLE,
        "        layer = layer + average(self.xp, self.from_layer * self.from_layer,"
        " self.channels)\n",
        "",
        suite("test_cases and switchable"),
    ),
    Fault(
        "means of instances are trusted as they are rounded",
        INSTANCES,
        "distance = (mean - first) + mean_residual",
        "distance = mean - first",
        suite("test_values and switchable"),
    ),
    Fault(
        "an epsilon too small for float32 is lost in a mix",
        SWITCHABLE,
        "variance + scale_epsilon(epsilon, dtype_name(variance.dtype))",
        "variance + epsilon",
        unit("test_switchable_norm.py"),
    ),
    Fault(
        "softmax overflows",
        SWITCHABLE,
        "xp.exp(weights - xp.max(weights))",
        "xp.exp(weights)",
        unit("test_switchable_norm.py"),
    ),
    Fault(
        "the variance of the batch has no gradient by its means",
        SWITCHABLE,
        " + of_var[2] * dvars[2] * self.from_batch\n",
        "\n",
        suite("test_cases and switchable"),
    ),
)

OF_INSTANCES = (
    Fault(
        "elements are normalised by the rounded mean of their instance",
        INSTANCES,
        "return ((x - mean) - mean_residual) * rstd",
        "return (x - mean) * rstd",
        suite("test_values and batch_instance"),
    ),
    Fault(
        "the variance of the batch lacks that of the means of instances",
        INSTANCES,
        "average(xp, inverse * inverse + distance * distance, axis)",
        "average(xp, inverse * inverse, axis)",
        suite("test_cases and batch_instance"),
    ),
    Fault(
        "the variances of instances are squared out of range",
        INSTANCES,
        "largest = detach(xp.maximum(*magnitudes))",
        "largest = detach(0 * xp.maximum(*magnitudes))",
        suite("test_magnitudes and batch_instance", "test_values and batch_instance"),
    ),
    Fault(
        "the mean of means is that of the first",
        INSTANCES,
        "return first + (mean_offset + residual), distance - residual",
        "return first, distance - residual",
        suite("test_cases and batch_instance"),
    ),
)

OF_POWERS = (
    Fault(
        "alpha is rounded to float32",
        POWERS,
        "if rounded == alpha:",
        "if rounded != 0:",
        unit("test_power_norm.py", "digits"),
    ),
    Fault(
        "the slope of a high power at 0 is NaN",
        POWERS,
        "xp.where(ratio < LARGE_RATIO, power(xp, ratio, alpha - 1), v / ratio)",
        "v / ratio",
        unit("test_power_norm.py", "above_the_first"),
    ),
    Fault(
        "powers close to the largest are of a rounded ratio",
        POWERS,
        "xp.exp(alpha * xp.log1p(distance))",
        "power(xp, ratio, alpha)",
        unit("test_power_norm.py", "close_to_the_largest"),
    ),
    Fault(
        "a small epsilon is ignored by high powers",
        POWERS,
        "if epsilon == 0:",
        "if epsilon < 1e-6:",
        unit("test_power_norm.py", "test_powers_above_the_first", "test_rows_of_zeros"),
    ),
    Fault(
        "powers of 0 are those of 1",
        POWERS,
        "return xp.where(x_acc == 0, 0.0, signed)",
        "return signed",
        unit("test_power_norm.py"),
    ),
    Fault(
        "powers of infinity are 0",
        POWERS,
        "return xp.where(x_acc == 0, 0.0, signed)",
        "return xp.where((x_acc == 0) | xp.isinf(x_acc), 0.0, signed)",
        unit("test_power_norm.py", "not_finite"),
    ),
    Fault(
        "powers of negative numbers are positive",
        POWERS,
        "xp.astype(xp.copysign(v, x_acc) / total",
        "xp.astype(v / total",
        unit("test_power_norm.py", "above_the_first"),
    ),
)

OF_MOMENTS = (
    Fault(
        "what rounding took from a mean of moments is zeroed",
        MOMENTS,
        "mean, mean_residual = two_sum(approx_mean, mean_residual)",
        "mean, mean_residual = two_sum(approx_mean, mean_residual)[0], 0 * mean_residual",
        unit("test_moments.py"),
    ),
    Fault(
        "squared deviations are scaled back once",
        MOMENTS,
        "m2 / scale / scale",
        "m2 / scale",
        unit("test_moments.py"),
    ),
    Fault(
        "the moments of nothing have a mean of 0",
        MOMENTS,
        "return zero + math.nan, zero, zero",
        "return zero, zero, zero",
        unit("test_moments.py"),
    ),
    Fault(
        "what a sum misses is taken off",
        MOMENTS,
        "return total, (a - (total - rounded)) + (b - rounded)",
        "return total, (a - (total - rounded)) - (b - rounded)",
        unit("test_moments.py"),
    ),
)

FAULTS = (*OF_WINDOWS, *OF_SWITCHABLE, *OF_INSTANCES, *OF_POWERS, *OF_MOMENTS)
