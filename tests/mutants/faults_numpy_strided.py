"""Faults in the NumPy backend's kernels for rows along an axis that others follow."""

from __future__ import annotations

from fault import NUMPY, Fault, suite, unit

FORWARD, BACKWARD = f"{NUMPY}/strided_forward.py", f"{NUMPY}/strided_backward.py"
DISPATCH = f"{NUMPY}/strided_dispatch.py"
ODD = unit("backends/numpy/test_strided.py", "odd_rows")
ALIKE = unit("backends/numpy/test_strided.py", "alike")
PLACE = unit("backends/numpy/test_strided.py", "anywhere", "anyhow")
COLUMNS = suite("test_columns and layer_norm and float32", "test_columns", backend="numpy")

FAULTS = (
    Fault(
        "a NaN in the first vector spreads to four vectors",
        FORWARD,
        "zero = zeros(r0)",
        "zero = r0 - r0",
        ODD,
    ),
    Fault(
        "the last vector of a tile is read in full",
        FORWARD,
        "d = load_partial(x, i + k * inner, count, approx_mean) - approx_mean",
        "d = load(x, i + k * inner, approx_mean) - approx_mean",
        unit("backends/numpy/test_strided.py", "behind"),
    ),
    Fault(
        "sums of squares are not flushed",
        FORWARD,
        "for begin in range(0, n, SQUARES_PER_FLUSH):\n"
        "        end = min(begin + SQUARES_PER_FLUSH, n)",
        "for begin in range(0, n, n):\n        end = n",
        COLUMNS,
    ),
    Fault(
        "a tile keeps the sums of the one before",
        FORWARD,
        "    clear(sums, compensation)\n    for begin in range(0, n, SQUARES_PER_FLUSH):",
        "    for begin in range(0, n, SQUARES_PER_FLUSH):",
        COLUMNS,
    ),
    Fault(
        "the approximate means of a tile always count as accurate",
        FORWARD,
        "        if good:",
        "        if good or count > 0:",
        ODD,
    ),
    Fault(
        "a rescaled row keeps the rstd of the scaled values",
        FORWARD,
        "rstd[row + k] = scaled_rstd * factor",
        "rstd[row + k] = scaled_rstd",
        ODD,
    ),
    Fault(
        "tiles of a sample begin at its first row",
        FORWARD,
        "offset, row = sample * n * inner + left, sample * inner + left",
        "offset, row = sample * n * inner + left, sample * inner",
        COLUMNS,
    ),
    Fault(
        "the projection of a column keeps the residual of its mean",
        BACKWARD,
        "negative(projection - x_hat_mean * mean_g)",
        "negative(projection)",
        COLUMNS,
    ),
    Fault(
        "the last element of a row of odd length has no gradient",
        BACKWARD,
        "    if n % 2:",
        "    if n < 0:",
        COLUMNS,
    ),
    Fault(
        "sums of dgamma and dbeta are exchanged",
        BACKWARD,
        "reduce_add4(dgamma_acc0, dgamma_acc1, dbeta_acc0, dbeta_acc1)",
        "reduce_add4(dbeta_acc0, dgamma_acc1, dgamma_acc0, dbeta_acc1)",
        COLUMNS,
    ),
    Fault(
        "only the first block of tiles counts",
        BACKWARD,
        "reduce_blocks(sums, compensation, sums.size // blocks)",
        "reduce_blocks(sums, compensation, sums.size)",
        COLUMNS,
    ),
    Fault(
        "a block of tiles keeps only the sums of its last tile",
        BACKWARD,
        "            flush_param_sums(dbeta, dbeta_comp, sums_offset, tile_dbeta, rstd)",
        "            clear_from(dbeta, sums_offset, padded)\n"
        "            flush_param_sums(dbeta, dbeta_comp, sums_offset, tile_dbeta, rstd)",
        ALIKE,
    ),
    Fault(
        "the last tile reaches into the next sample",
        FORWARD,
        "min(width, inner - left)",
        "width",
        unit("backends/numpy/test_strided.py", "behind"),
    ),
    Fault(
        "statistics are read as if they were contiguous",
        DISPATCH,
        "saved = contiguous(mean), contiguous(rstd), contiguous(gamma)",
        "saved = mean, rstd, gamma",
        PLACE,
    ),
    Fault(
        "out is written as if it were contiguous",
        DISPATCH,
        "is_place = out is not None and is_in_order(out)",
        "is_place = out is not None",
        PLACE,
    ),
    Fault(
        "dy of another layout is read with the strides of x",
        DISPATCH,
        "if not layout.strides or (is_backward and layout.dy is None):",
        "if not layout.strides:",
        PLACE,
    ),
)
