"""Faults in the generic kernels of operations that are not over rows."""

from __future__ import annotations

from fault import Fault, suite, unit

WINDOWS, POWERS = "ln_array_api/kernels/windows.py", "ln_array_api/kernels/powers.py"
INSTANCES = "ln_array_api/kernels/instances.py"
SWITCHABLE, MOMENTS = "ln_array_api/kernels/switchable.py", "ln_array_api/kernels/moments.py"

OF_WINDOWS = (
    Fault(
        "windows at the far border count positions beyond it",
        WINDOWS,
        "np.minimum(n - 1 - place, places)",
        "places",
        suite("test_cases and local_contrast"),
    ),
    Fault(
        "sums of totals include positions beyond the border",
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
        "gradients close to the smallest number are not scaled up",
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
        unit("test_local_contrast_norm.py", "nan_and_infinity"),
    ),
    Fault(
        "an infinity determines the scale of all windows",
        WINDOWS,
        "finite = xp.where(xp.isfinite(x_acc), x_acc, 0.0)",
        "finite = x_acc",
        unit("test_local_contrast_norm.py", "nan_and_infinity"),
    ),
    Fault(
        "the last chunk keeps the elements of its neighbour",
        WINDOWS,
        "places if place < last else 0",
        "places",
        unit("test_local_contrast_norm.py", "dask"),
    ),
)

OF_SWITCHABLE = (
    Fault(
        "the variance of a layer lacks the variance of the means",
        SWITCHABLE,
        "        layer = layer + average(self.xp, self.from_layer * self.from_layer,"
        " self.channels)\n",
        "",
        suite("test_cases and switchable"),
    ),
    Fault(
        "the residuals of the means of instances are ignored",
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
        "the gradient lacks the variance of the means of the batch",
        SWITCHABLE,
        " + of_var[2] * dvars[2] * self.from_batch\n",
        "\n",
        suite("test_cases and switchable"),
    ),
)

OF_INSTANCES = (
    Fault(
        "the residual of the mean of an instance is ignored",
        INSTANCES,
        "return ((x - mean) - mean_residual) * rstd",
        "return (x - mean) * rstd",
        suite("test_values and batch_instance"),
    ),
    Fault(
        "the variance of the batch lacks the variance of the means",
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
        "powers close to the largest use a rounded ratio",
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
        "powers of 0 are 1",
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
        unit("test_power_norm.py", "nan_and_infinity"),
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
        "the rounding error of a mean of moments is dropped",
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
        "the mean of no values is 0",
        MOMENTS,
        "return zero + math.nan, zero, zero",
        "return zero, zero, zero",
        unit("test_moments.py"),
    ),
    Fault(
        "the rounding error of a sum has the wrong sign",
        MOMENTS,
        "return total, (a - (total - rounded)) + (b - rounded)",
        "return total, (a - (total - rounded)) - (b - rounded)",
        unit("test_moments.py"),
    ),
)

FAULTS = (*OF_WINDOWS, *OF_SWITCHABLE, *OF_INSTANCES, *OF_POWERS, *OF_MOMENTS)
