"""Faults in the NumPy backend's kernels for windows."""

from __future__ import annotations

from fault import NUMPY, Fault, unit

RUNS, WINDOWS = f"{NUMPY}/window_runs.py", f"{NUMPY}/windows_forward.py"
GRADIENTS, DISPATCH = f"{NUMPY}/windows_backward.py", f"{NUMPY}/windows_dispatch.py"
TEST = "backends/numpy/test_windows.py"
ALL, CUT = unit(TEST, "all_results"), unit(TEST, "tiles")

FAULTS = (
    Fault(
        "merged runs lack the variance between them",
        RUNS,
        "return fma(between, step, fma(weight, second_variance, (ones_vec - weight) * variance))",
        "return fma(weight, second_variance, (ones_vec - weight) * variance)",
        ALL,
    ),
    Fault(
        "rows after the last keep values of another tile",
        RUNS,
        "if i < before or i > last:",
        "if i < before:",
        ALL,
    ),
    Fault(
        "runs at the border count positions beyond it",
        DISPATCH,
        "first, last = (np.clip(begin + each, 0, length) for each in (after, after + n))",
        "first, last = begin + after, begin + after + n",
        ALL,
    ),
    Fault(
        "all tiles of a row have the tables of the first",
        DISPATCH,
        "numbers.append(known[kind])",
        "numbers.append(0)",
        CUT,
    ),
    Fault(
        "a tile reads as many columns as it has",
        WINDOWS,
        "left, wide = column - radius_across, num_columns + 2 * radius_across",
        "left, wide = column - radius_across, num_columns + radius_across",
        ALL,
    ),
    Fault(
        "an infinity determines the scale of a tile",
        WINDOWS,
        "absolute(values) + (values - values))",
        "absolute(values))",
        unit(TEST, "outside"),
    ),
    Fault(
        "windows of very small elements are not scaled",
        WINDOWS,
        "if max(max_abs, sqrt_epsilon) < 2.0**-16:",
        "if max(max_abs, sqrt_epsilon) < 0:",
        unit(TEST, "magnitude"),
    ),
    Fault(
        "rstd of constant windows follows from the scaled values",
        WINDOWS,
        "where_at_least(zeros(ones_vec), square, epsilon_rstd, rstd_vec * scale)",
        "rstd_vec * scale",
        unit(TEST, "constant"),
    ),
    Fault(
        "the anchor of a run is the element of smaller weight",
        GRADIENTS,
        "anchor = where_at_least(weight_a, weight_b, a, b)",
        "anchor = where_at_least(weight_b, weight_a, a, b)",
        unit(TEST, "edge"),
    ),
    Fault(
        "gradients of very large elements are not scaled up",
        GRADIENTS,
        "LIFT = 2.0**44",
        "LIFT = 1.0",
        unit("test_local_contrast_norm.py", "gradients"),
    ),
    Fault(
        "windows after the last column keep values of another tile",
        GRADIENTS,
        "store_zeros(fields, singles, q + inside[1], columns - before[1] - inside[1], ones_vec)",
        "store_zeros(fields, singles, q + inside[1], 0, ones_vec)",
        ALL,
    ),
    Fault(
        "sums down columns count runs of rows as single positions",
        GRADIENTS,
        "target = first if radius[1] == 0 else second",
        "target = first",
        ALL,
    ),
)
