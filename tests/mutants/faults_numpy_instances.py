"""Faults in the NumPy backend's kernels for instances."""

from __future__ import annotations

from fault import NUMPY, Fault, unit

INSTANCES = f"{NUMPY}/instances.py"
RIGHT = unit("backends/numpy/test_instances.py", "right")
TEST = "backends/numpy/test_instances.py"

FAULTS = (
    Fault(
        "the residual of the mean of an instance is dropped",
        INSTANCES,
        "mean[row, 0], mean_residual[row, 0] = rounded_mean / factor, residual / factor",
        "mean[row, 0], mean_residual[row, 0] = rounded_mean / factor, zero",
        RIGHT,
    ),
    Fault(
        "rstd follows from the scaled instance",
        INSTANCES,
        "rstd[row, 0] = scaled_rstd * factor",
        "rstd[row, 0] = scaled_rstd",
        RIGHT,
    ),
    Fault(
        "deviations of an instance overflow",
        INSTANCES,
        "range_factor, unscale = range_scale(rstd_vec)\n        constants",
        "range_factor, unscale = ones_vec, ones_vec\n        constants",
        unit(TEST, "largest"),
    ),
    Fault(
        "the sum of dy * x̂ ignores the residual of the mean",
        INSTANCES,
        "reduce_add_wide(c, ones_vec) - d_mean * first_lane(rstd_vec * unscale) * row_sum",
        "reduce_add_wide(c, ones_vec)",
        RIGHT,
    ),
    Fault(
        "the gradient of an instance ignores the residual of the mean",
        INSTANCES,
        "zeros(ones_vec) - load_broadcast(mean_residual_ptr, row, ones_vec) * rstd_vec,\n"
        "            load_broadcast(shift_ptr",
        "zeros(ones_vec),\n            load_broadcast(shift_ptr",
        RIGHT,
    ),
)
