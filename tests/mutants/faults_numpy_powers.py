"""Faults in the NumPy backend's kernels for power norm."""

from __future__ import annotations

from fault import NUMPY, Fault, unit

ROOTS, POWERS, ROW_PASSES = (f"{NUMPY}/{name}.py" for name in ("roots", "powers", "row_passes"))
ELEMENTARY, DISPATCH = f"{NUMPY}/elementary.py", f"{NUMPY}/powers_dispatch.py"
TESTS = "backends/numpy/test_powers.py"
ELEMENTARY_TESTS = "backends/numpy/test_elementary.py"

FAULTS = (
    Fault(
        "sums of roots beyond float64 are not scaled",
        ROOTS,
        "reduce_add(load(sums, k * lanes64, zero)) + epsilon == math.inf:",
        "reduce_add(load(sums, k * lanes64, zero)) + epsilon < 0:",
        unit(TESTS, "beyond_float64"),
    ),
    Fault(
        "the compensation of a sum of magnitudes is dropped",
        ROW_PASSES,
        "sum_, rest = accumulate(sum_, rest, terms_at(row, j, None))",
        "sum_, _ = accumulate(sum_, rest, terms_at(row, j, None))",
        unit(TESTS, "test_right", "outlier"),
    ),
    Fault(
        "the root of -0 is -0",
        ROOTS,
        "x + zeros(x))",
        "x)",
        unit(TESTS, "test_zeros"),
    ),
    Fault(
        "zeros of a tiny epsilon are infinity times 0",
        ROOTS,
        "inv_norm = at_most(inv_norm, broadcast(max_number)) + (inv_norm - inv_norm)",
        "inv_norm = inv_norm + (inv_norm - inv_norm)",
        unit(TESTS, "test_zeros"),
    ),
    Fault(
        "inverses of the norm and of a root are always multiplied first",
        ROOTS,
        "first = infinite if is_small else ones_vec",
        "first = infinite",
        unit(TESTS, "small_beside_large", "every_magnitude"),
    ),
    Fault(
        "the inverse of a norm and a gradient are always multiplied first",
        ROOTS,
        "first = infinite if is_small else ones_vec",
        "first = ones_vec",
        unit(TESTS, "small_beside_large"),
    ),
    Fault(
        "gradients of the elements after the last whole vector count twice",
        ROW_PASSES,
        "accumulate(sum_, rest, terms_at(row, j, n - j))",
        "accumulate(sum_, rest, terms_at(row, j, n - j) + terms_at(row, j, n - j))",
        unit(TESTS, "test_right"),
    ),
    Fault(
        "the norm of a row depends on its neighbours",
        ROOTS,
        "Row(x_ptr, None, (begin + k) * n, (ones_vec, None)",
        "Row(x_ptr, None, begin * n, (ones_vec, None)",
        unit(TESTS, "company"),
    ),
    Fault(
        "high powers are not shifted",
        POWERS,
        "    if exponent > MAX_UNSHIFTED_EXPONENT:",
        "    if exponent < 0:",
        unit(TESTS, "every_magnitude", "test_right"),
    ),
    Fault(
        "a norm out of range is used",
        POWERS,
        "if given < min_normal or given == math.inf:",
        "if given < 0:",
        unit(TESTS, "out_of_range"),
    ),
    Fault(
        "zeros of a row without a norm are 0",
        POWERS,
        "broadcast(log - log), zero",
        "broadcast(0.0), zero",
        unit(TESTS, "test_zeros"),
    ),
    Fault(
        "a coefficient of the logarithm is off in the eighth digit",
        ELEMENTARY,
        "    -0.7213475204230224,",
        "    -0.72134755,",
        unit(ELEMENTARY_TESTS, "logarithms"),
    ),
    Fault(
        "powers of 2 are half as large",
        ELEMENTARY,
        "_ROUNDER = 1.5 * 2.0**52",
        "_ROUNDER = 1.5 * 2.0**52 - 1",
        unit(ELEMENTARY_TESTS, "logarithms"),
    ),
    Fault(
        "logarithms have digits enough for float64",
        DISPATCH,
        'spec.dtype != "float64" and spec.exponent',
        "spec.exponent",
        unit("test_power_norm.py", "derivative_above"),
    ),
    Fault(
        "the first power has the epsilon of a mean",
        DISPATCH,
        "epsilon=spec.epsilon / spec.shape[1]",
        "epsilon=spec.epsilon",
        unit(TESTS, "test_zeros"),
    ),
)
