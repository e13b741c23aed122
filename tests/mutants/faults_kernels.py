"""Faults in the generic kernels for rows and channels, and in their sums."""

from __future__ import annotations

from fault import Fault, suite, unit

ROWS, CHANNELS = "ln_array_api/kernels/rows.py", "ln_array_api/kernels/channels.py"
REDUCTIONS = "ln_array_api/kernels/reductions.py"

OF_ROWS = (
    Fault(
        "float32 rows below 2**-78 are not scaled far enough",
        ROWS,
        "(ScaleRule(2.0**-16, 2.0**62), ScaleRule(2.0**-78, 2.0**124))",
        "(ScaleRule(2.0**-16, 2.0**62),)",
        unit("kernels/test_rows.py"),
    ),
    Fault(
        "float32 rows above 2**108 are not scaled far enough",
        ROWS,
        "(ScaleRule(2.0**46, 2.0**-62), ScaleRule(2.0**108, 2.0**-124))",
        "(ScaleRule(2.0**46, 2.0**-62),)",
        suite("test_magnitudes_up_to_the_largest", "test_constant_rows_far_from_one"),
    ),
    Fault(
        "small float64 rows are not scaled",
        ROWS,
        '"float64": (ScaleRule(2.0**-420, 2.0**700),)',
        '"float64": ()',
        suite("test_forward_values"),
    ),
    Fault(
        "small rows are scaled only without epsilon",
        ROWS,
        "if math.sqrt(epsilon) < rule.threshold]",
        "if epsilon == 0]",
        suite("test_tiny_rows_beside_a_tiny_epsilon"),
    ),
    Fault(
        "epsilon is outside the root",
        ROWS,
        "std = xp.sqrt(var + elements.unless_empty(scaled_epsilon, 1.0))",
        "std = xp.sqrt(var) + scaled_epsilon",
        suite("test_epsilon_is_inside_the_root_and_not_rounded"),
    ),
    Fault(
        "epsilon is rounded to 16 bits",
        ROWS,
        "scale, scaled_epsilon = scaling(xp, x.dtype, d, axes, epsilon)",
        "scale, scaled_epsilon = scaling(xp, x.dtype, d, axes, float(np.float16(epsilon)))",
        suite("test_epsilon_is_inside_the_root_and_not_rounded"),
    ),
    Fault(
        "the residual of the mean is ignored in the forward pass",
        ROWS,
        "    d -= mean_residual\n",
        "",
        suite("test_forward_values"),
    ),
    Fault(
        "the residual of the mean is ignored in the backward pass",
        ROWS,
        "    d -= elements.mean(d)\n    return",
        "    return",
        suite("test_backward_values"),
    ),
    Fault(
        "squares are added up in the accumulation dtype",
        ROWS,
        "mean = elements.mean(squares, wide=True)",
        "mean = elements.mean(squares)",
        unit("kernels/test_rows.py", "squares_that_are_alike"),
    ),
    Fault(
        "the residual of a mean of float64 squares is dropped",
        ROWS,
        "mean + residual, mean)",
        "mean, mean)",
        unit("kernels/test_rows.py", "squares_that_are_alike"),
    ),
    Fault(
        "terms of dgamma are added up in the accumulation dtype",
        ROWS,
        "wide_sum(xp, dy * x_hat, reduced_axes)",
        "sum_over(xp, dy * x_hat, reduced_axes)",
        unit("kernels/test_rows.py", "rounded_once"),
    ),
    Fault(
        "terms of dbeta are added up in the accumulation dtype",
        ROWS,
        "wide_sum(xp, dy, reduced_axes)",
        "sum_over(xp, dy, reduced_axes)",
        unit("kernels/test_rows.py", "rounded_once"),
    ),
    Fault(
        "dx keeps the mean of g",
        ROWS,
        "dx -= elements.mean(g, fused=False)",
        "dx -= 0",
        suite("test_backward_values"),
    ),
    Fault(
        "rstd of constant rows follows from the scaled row",
        ROWS,
        "xp.where(var == 0, constant_rstd, rstd if scale is None else rstd * scale)",
        "rstd if scale is None else rstd * scale",
        suite("test_constant_rows_far_from_one"),
    ),
    Fault(
        "an epsilon below the smallest number is lost",
        ROWS,
        "max(epsilon * factor * factor, _SMALLEST_NORMAL[accumulation]) if epsilon > 0 else 0.0",
        "epsilon * factor * factor",
        suite("test_constant_rows_give_beta"),
    ),
    Fault(
        "rows whose parameters repeat are taken for plain rows",
        ROWS,
        "if groups == repeat == 1:",
        "if groups == 1:",
        unit("kernels/test_rows.py", "test_parameters_of_groups"),
    ),
    Fault(
        "bfloat16 is not scaled, as float16 is not",
        ROWS,
        'if dtype_name(dtype) == "float16":',
        'if dtype_name(dtype) in ("float16", "bfloat16"):',
        suite("test_forward_values"),
    ),
    Fault(
        "out is returned, but not written",
        ROWS,
        "    out[...] = y\n",
        "",
        suite("test_out"),
    ),
    Fault(
        "an infinity in a row counts as 0",
        ROWS,
        "    d = to_acc_dtype(xp, ascontiguous(x))\n    dtype = d.dtype\n",
        "    d = to_acc_dtype(xp, x)\n    d = xp.where(xp.isinf(d), 0.0, d)\n    dtype = d.dtype\n",
        suite("test_a_bad_row_spoils_itself_alone"),
    ),
    Fault(
        "an infinity counts as 0 in the backward pass",
        ROWS,
        "    d = elements.only(to_acc_dtype(xp, x))\n    if mean is None:\n",
        "    d = elements.only(to_acc_dtype(xp, x))\n"
        "    d = xp.where(xp.isinf(d), 0.0, d)\n"
        "    if mean is None:\n",
        suite("test_a_bad_row_spoils_itself_alone", "test_a_bad_element"),
    ),
    Fault(
        "a mean of no elements is 0",
        ROWS,
        "keepdims=True) + (math.nan if where is None else 0.0)",
        "keepdims=True)",
        suite("test_nothing_to_normalise"),
    ),
)

OF_CHANNELS = (
    Fault(
        "batch norm for inference ignores a small epsilon",
        CHANNELS,
        "var + scale_epsilon(epsilon, dtype_name(var.dtype))",
        "var + scale_epsilon(epsilon if epsilon > 1e-9 else 0.0, dtype_name(var.dtype))",
        suite("test_a_small_epsilon_counts"),
    ),
    Fault(
        "batch norm for inference loses an epsilon below the smallest number",
        CHANNELS,
        "var + scale_epsilon(epsilon, dtype_name(var.dtype))",
        "var + epsilon",
        unit("kernels/test_channels.py"),
    ),
    Fault(
        "batch norm for inference treats an infinity as 0",
        CHANNELS,
        "y = to_acc_dtype(xp, x) - _broadcast_channels(xp, x, axis, mean)",
        "y = xp.where(xp.isinf(x), 0.0, to_acc_dtype(xp, x)) - _broadcast_channels(xp,"
        " x, axis, mean)",
        suite("test_a_bad_element and batch_norm"),
    ),
    Fault(
        "beta of batch norm for inference is scaled",
        CHANNELS,
        "y = y + _broadcast_channels(xp, x, axis, astype_like(xp, beta, scale))",
        "y = y + _broadcast_channels(xp, x, axis, astype_like(xp, beta, scale) * scale)",
        suite("test_cases and batch_norm"),
    ),
    Fault(
        "a channel's gradients are divided by the number of samples",
        CHANNELS,
        "n = max(math.prod(x.shape[each] for each in axes), 1)",
        "n = max(x.shape[0], 1)",
        suite("test_cases and batch_norm"),
    ),
    Fault(
        "dx of batch norm is without gamma",
        CHANNELS,
        "scale = rstd * _broadcast_channels(xp, x, axis, astype_like(xp, gamma, rstd))",
        "scale = rstd",
        suite("test_cases and batch_norm"),
    ),
    Fault(
        "dx of batch norm without dgamma lacks a sum",
        CHANNELS,
        "if need_dx or need_dgamma:",
        "if need_dgamma:",
        suite("test_interface and test_need and batch_norm"),
    ),
    Fault(
        "dbeta of batch norm is added up in the accumulation dtype",
        CHANNELS,
        "wide_sum(xp, dy, axes, fused=False)",
        "xp.sum(dy, axis=axes, keepdims=True)",
        unit("kernels/test_channels.py", "rounded_once"),
    ),
)

OF_REDUCTIONS = (
    Fault(
        "rows after the last block are left out",
        REDUCTIONS,
        "            sums = xp.concat([sums, last])\n",
        "",
        suite("test_many_rows"),
    ),
    Fault(
        "the first row after the last block is left out",
        REDUCTIONS,
        "xp.sum(x[blocks * BLOCK :, :], axis=0",
        "xp.sum(x[blocks * BLOCK + 1 :, :], axis=0",
        suite("test_many_rows"),
    ),
    Fault(
        "the last block of more than eight is added twice",
        REDUCTIONS,
        "        sums = xp.sum(whole, axis=1, dtype=dtype)\n",
        "        sums = xp.sum(whole, axis=1, dtype=dtype)\n"
        "        sums = xp.concat([sums, sums[-1:, :]]) if blocks > BLOCK else sums\n",
        suite("test_many_rows"),
    ),
    Fault(
        "trailing axes are left out where one has length 1",
        REDUCTIONS,
        "if any(x.shape[axis] > 1 for axis in trailing):",
        "if all(x.shape[axis] > 1 for axis in trailing):",
        unit("kernels/test_reductions.py", "trailing_axes"),
    ),
    Fault(
        "axes between others are summed in the wrong place",
        REDUCTIONS,
        "// count), kept + axes)",
        "// count), axes + kept)",
        suite("test_cases"),
    ),
    Fault(
        "a long row of CuPy loses its rest",
        REDUCTIONS,
        "            sums = xp.concat([sums, last], axis=1)\n",
        "",
        unit("kernels/test_reductions.py", "test_long_rows_in_blocks"),
    ),
    Fault(
        "the largest magnitude is the largest number",
        REDUCTIONS,
        "return xp.maximum(largest, -smallest)",
        "return largest",
        unit("kernels/test_reductions.py", "test_largest_magnitude"),
    ),
    Fault(
        "only the first chunk of a reduction counts",
        REDUCTIONS,
        "        reduced = reduced.rechunk(dict.fromkeys(axes, -1))\n",
        "        reduced = reduced[tuple(slice(1) if a in axes else slice(None)"
        " for a in range(x.ndim))]\n",
        suite("test_axes", library="dask"),
    ),
)

FAULTS = (*OF_ROWS, *OF_CHANNELS, *OF_REDUCTIONS)
