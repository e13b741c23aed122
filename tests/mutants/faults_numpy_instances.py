"""Faults in the NumPy backend's kernels for instances."""

from __future__ import annotations

from fault import NUMPY, Fault, unit

INSTANCES = f"{NUMPY}/instances.py"
RIGHT = unit("backends/numpy/test_instances.py", "right")
TEST = "backends/numpy/test_instances.py"

FAULTS = (
    Fault(
        "what rounding took from the mean of an instance is lost",
        INSTANCES,
        "mean[row, 0], missed[row, 0] = rounded_mean / factor, rest / factor",
        "mean[row, 0], missed[row, 0] = rounded_mean / factor, zero",
        RIGHT,
    ),
    Fault(
        "rstd is that of a scaled instance",
        INSTANCES,
        "rstd[row, 0] = root * factor",
        "rstd[row, 0] = root",
        RIGHT,
    ),
    Fault(
        "deviations of an instance leave the range",
        INSTANCES,
        "in_range, unscale = range_scale(root)\n        normalise(",
        "in_range, unscale = one, one\n        normalise(",
        unit(TEST, "largest"),
    ),
    Fault(
        "the sum of dy * x̂ trusts the rounded mean",
        INSTANCES,
        "total_in_double(c, one) - rest * first_lane(root * unscale) * of_row",
        "total_in_double(c, one)",
        RIGHT,
    ),
    Fault(
        "the gradient of an instance trusts the rounded mean",
        INSTANCES,
        "            (one - one) - load_broadcast(missed_, row, one) * root,\n"
        "            load_broadcast(shift_",
        "            one - one,\n            load_broadcast(shift_",
        RIGHT,
    ),
)
