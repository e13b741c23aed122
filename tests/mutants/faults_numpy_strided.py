"""Faults in the NumPy backend's kernels for rows along an axis that others follow."""

from __future__ import annotations

from fault import NUMPY, Fault, suite, unit

STRIDED, CALLS = f"{NUMPY}/strided.py", f"{NUMPY}/strided_calls.py"
ODD = unit("backends/numpy/test_strided.py", "odd_rows")
ALIKE = unit("backends/numpy/test_strided.py", "alike")
PLACE = unit("backends/numpy/test_strided.py", "anywhere", "anyhow")
COLUMNS = suite("test_columns and layer_norm and float32", "test_columns", backend="numpy")

FAULTS = (
    Fault(
        "four vectors begin with what is NaN in the first",
        STRIDED,
        "zero = zeros(r0)",
        "zero = r0 - r0",
        ODD,
    ),
    Fault(
        "the last vector of a tile is read in full",
        STRIDED,
        "d = some(x, i + k * inner, count, rough) - rough",
        "d = load(x, i + k * inner, rough) - rough",
        unit("backends/numpy/test_strided.py", "behind"),
    ),
    Fault(
        "sums of squares are not put aside",
        STRIDED,
        "for begin in range(0, n, RUN_OF_SQUARES):\n        end = min(begin + RUN_OF_SQUARES, n)",
        "for begin in range(0, n, n):\n        end = n",
        COLUMNS,
    ),
    Fault(
        "a tile keeps the sums of the one before",
        STRIDED,
        "    clear(sums, lost)\n    for begin in range(0, n, RUN_OF_SQUARES):",
        "    for begin in range(0, n, RUN_OF_SQUARES):",
        COLUMNS,
    ),
    Fault(
        "the rough means of a tile are always good enough",
        STRIDED,
        "        if good:",
        "        if good or count > 0:",
        ODD,
    ),
    Fault(
        "a row that is rescaled keeps the rstd of what it was scaled to",
        STRIDED,
        "rstd[row + k] = root * factor",
        "rstd[row + k] = root",
        ODD,
    ),
    Fault(
        "tiles of a sample begin at its first row",
        STRIDED,
        "return sample * n * inner + left, sample * inner + left, min",
        "return sample * n * inner + left, sample * inner, min",
        COLUMNS,
    ),
    Fault(
        "what the mean has missed is a part of the projection of a column",
        STRIDED,
        "negative(projection - missed * mean_g)",
        "negative(projection)",
        COLUMNS,
    ),
    Fault(
        "the last element of a row of odd length has no gradient",
        STRIDED,
        "    if n % 2:",
        "    if n < 0:",
        COLUMNS,
    ),
    Fault(
        "sums of dgamma and dbeta take each other's places",
        STRIDED,
        "reduce_add4(of_dgamma_0, of_dgamma_1, of_dbeta_0, of_dbeta_1)",
        "reduce_add4(of_dbeta_0, of_dgamma_1, of_dgamma_0, of_dbeta_1)",
        COLUMNS,
    ),
    Fault(
        "the first block of tiles alone counts",
        STRIDED,
        "gather(sums, lost, sums.size // blocks)",
        "gather(sums, lost, sums.size)",
        COLUMNS,
    ),
    Fault(
        "the sums of a block of tiles are those of its last",
        STRIDED,
        "            add_of_tile(dbeta, dbeta_lost, q, of_dbeta, rstd)",
        "            clear_from(dbeta, q, padded)\n"
        "            add_of_tile(dbeta, dbeta_lost, q, of_dbeta, rstd)",
        ALIKE,
    ),
    Fault(
        "the last tile reaches into the next sample",
        STRIDED,
        "min(width, inner - left)",
        "width",
        unit("backends/numpy/test_strided.py", "behind"),
    ),
    Fault(
        "statistics are read as if they lay in order",
        CALLS,
        "saved = contiguous(mean), contiguous(rstd), contiguous(gamma)",
        "saved = mean, rstd, gamma",
        PLACE,
    ),
    Fault(
        "out is written as if it lay in order",
        CALLS,
        "is_place = out is not None and is_in_order(out)",
        "is_place = out is not None",
        PLACE,
    ),
    Fault(
        "dy that lies otherwise is read as if it did not",
        CALLS,
        "if not layout.strides or (is_backward and layout.dy is None):",
        "if not layout.strides:",
        PLACE,
    ),
)
