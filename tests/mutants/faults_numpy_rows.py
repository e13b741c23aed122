"""Faults in the NumPy backend's kernels for rows."""

from __future__ import annotations

from fault import NUMPY, Fault, suite, unit

FORWARD, BACKWARD = f"{NUMPY}/rows_forward.py", f"{NUMPY}/rows_backward.py"
ROW_PASSES, MOMENTS = f"{NUMPY}/row_passes.py", f"{NUMPY}/moments.py"
ROW_GRADIENTS, ROWS_WHERE = f"{NUMPY}/row_gradients.py", f"{NUMPY}/rows_where.py"
SUMS = f"{NUMPY}/gradient_sums.py"


def rows(names: str) -> tuple[str, ...]:
    """Tests of the conformance suite, of few dtypes at most, since each has to be compiled."""
    return suite(names, backend="numpy")


OF_FORWARD = (
    Fault(
        "the last row is not written with non-temporal stores",
        FORWARD,
        "            count = finish_row(start_row(n, pending_row), n, pending_row)\n",
        "            count = 0\n",
        rows("test_large and test_rows and 13 and not ragged"),
    ),
    Fault(
        "the end of the last row is not written with non-temporal stores",
        FORWARD,
        "store_masked(out.y, x_offset + n - count, load(row_tail, 0, ones_vec), count)",
        "store_masked(out.y, x_offset + n - count, load(row_tail, 0, ones_vec), 0)",
        unit("backends/numpy/test_rows_forward.py", "stores_nor_on_alignment", "beside_y"),
    ),
    Fault(
        "a row that begins within a vector overwrites the end of the row before",
        ROW_PASSES,
        "store_masked(row_tail, tail_count, values, count)",
        "store_masked(row_tail, 0, values, count)",
        unit("backends/numpy/test_rows_forward.py", "stores_nor_on_alignment", "beside_y"),
    ),
    Fault(
        "the first row of a part takes the end of another row",
        ROW_PASSES,
        "        if is_first:\n",
        "        if False:\n",
        unit("backends/numpy/test_rows_forward.py", "stores_nor_on_alignment", "beside_y"),
    ),
    Fault(
        "rows after the last whole block are omitted",
        FORWARD,
        "for begin in range(start, stop, rows_per_block):",
        "for begin in range(start, max(stop - rows_per_block + 1, start + 1), rows_per_block):",
        rows("test_large and test_rows and 1000"),
    ),
    Fault(
        "sums about an approximate mean always count as accurate",
        FORWARD,
        "        if good:\n",
        "        if good or count > 0:\n",
        rows("test_forward_values and float32 and 1e-30"),
    ),
    Fault(
        "rows of a span have the parameters of the next ones",
        ROW_PASSES,
        "return row // affine.span % affine.groups",
        "return (row + 1) // affine.span % affine.groups",
        rows("test_cases and sample and float32"),
    ),
    Fault(
        "all groups have the parameters of the first",
        FORWARD,
        "param_offset = param_row(affine, row) * segments + segment",
        "param_offset = segment",
        rows("test_cases and group_norm and float32"),
    ),
    Fault(
        "the second of two rows has the constants of the first",
        FORWARD,
        "load_row_constants(scratch, out.mean, k + 1, ones_vec)",
        "load_row_constants(scratch, out.mean, k + 0, ones_vec)",
        rows("test_row_accuracy and test_forward_lengths and float32 and 384"),
    ),
    Fault(
        "rows at the end of an odd block are omitted",
        FORWARD,
        "    while k < count:\n        row = begin + k\n",
        "    while k + 1 < count:\n        row = begin + k\n",
        rows("test_row_accuracy and test_forward_lengths and float32 and 384"),
    ),
)

OF_ROW_PASSES = (
    Fault(
        "lanes beyond a row are summed",
        ROW_PASSES,
        "zero_tail(fma(load_vector(x, x_offset + j, n - j, scale), scale, offset), n - j)",
        "fma(load_vector(x, x_offset + j, n - j, scale), scale, offset)",
        rows("test_row_accuracy and test_forward_lengths and float32"),
    ),
    Fault(
        "the end of a row has the first parameters",
        ROW_PASSES,
        "row.param_offset + j, count)",
        "row.param_offset + (j if count is None else 0), count)",
        rows("test_row_accuracy and test_forward_lengths and float32"),
    ),
    Fault(
        "a whole vector before the end of a row is not summed",
        ROW_PASSES,
        "    while j + width <= n:\n        d = fma(",
        "    while j + 2 * width <= n:\n        d = fma(",
        rows("test_row_accuracy and test_forward_lengths and float32"),
    ),
    Fault(
        "sums of long rows are not in float64",
        FORWARD,
        "if n <= 4 * width:",
        "if n <= 4000 * width:",
        rows("test_large and test_one_outlier"),
    ),
    Fault(
        "too many squares are added before their sum is flushed",
        ROW_PASSES,
        "SQUARES_PER_FLUSH = 8",
        "SQUARES_PER_FLUSH = 1 << 20",
        rows(
            "test_large and test_one_outlier",
        ),
    ),
    Fault(
        "the compensation of a sum of sums is dropped",
        ROW_PASSES,
        "return new, compensation + ((sum_ - (new - added)) + (values - added))",
        "return new, compensation",
        unit("backends/numpy/test_rows_dispatch.py", "alike_along_a_row"),
    ),
    Fault(
        "y has the first parameters with non-temporal stores",
        ROW_PASSES,
        "store_non_temporal(y, y_offset + j, vector_at(row, j, None))",
        "store_non_temporal(y, y_offset + j, vector_at(row, 0, None))",
        rows("test_large and test_rows and 13 and ragged"),
    ),
    Fault(
        "a row is not written before its first aligned address",
        ROW_PASSES,
        "            store_masked(y, row.x_offset, values, count)\n        else",
        "            pass\n        else",
        unit("backends/numpy/test_rows_forward.py", "stores_nor_on_alignment"),
    ),
    Fault(
        "the second of two rows is written without its end",
        ROW_PASSES,
        "        store_masked(y, second.x_offset + j, b, count)\n",
        "",
        rows("test_row_accuracy and test_forward_lengths and float32"),
    ),
)

OF_MOMENTS = (
    Fault(
        "an approximate mean always counts as accurate",
        MOMENTS,
        "mean_residual * mean_residual > 0.5 * variance:",
        "mean_residual * mean_residual > 1e300 * variance:",
        unit("backends/numpy/test_channels.py", "mislead"),
    ),
    Fault(
        "approximate means of several rows always count as accurate",
        MOMENTS,
        "all_at_most(mean_residual * mean_residual, broadcast(0.5) * variance, count)",
        "all_at_most(mean_residual * mean_residual, broadcast(1e300) * variance, count)",
        unit("backends/numpy/test_rows_accuracy.py", "mislead", "outlier"),
    ),
    Fault(
        "the variance is about the approximate mean",
        MOMENTS,
        "square * inv_count - mean_residual * mean_residual",
        "square * inv_count",
        rows("test_row_accuracy and test_forward_lengths and float32"),
    ),
    Fault(
        "the mean of scaled rows is not scaled back",
        MOMENTS,
        "approx_mean + mean_residual if factor == 1 else (approx_mean + mean_residual) / factor",
        "approx_mean + mean_residual",
        rows("test_forward_values and float32 and 1e-30"),
    ),
    Fault(
        "epsilon is not scaled with a row",
        MOMENTS,
        "compute_rstd(variance, epsilon * factor * factor, ones_vec)",
        "compute_rstd(variance, epsilon, ones_vec)",
        rows("test_forward_values and float32"),
    ),
    Fault(
        "epsilon of constant rows is scaled",
        MOMENTS,
        "if variance == 0 and epsilon > 0:",
        "if variance == 0 and epsilon < 0:",
        unit("backends/numpy/test_rows_dispatch.py", "epsilon_alone"),
    ),
    Fault(
        "the last piece of a channel is omitted",
        MOMENTS,
        "for piece in range(1, num_pieces):",
        "for piece in range(1, max(num_pieces - 1, 1)):",
        rows("test_large and batch_norm"),
    ),
    Fault(
        "the second half of a block of rows is not checked for accuracy",
        MOMENTS,
        "        good = good and more_good\n",
        "",
        unit("backends/numpy/test_rows_accuracy.py", "any_magnitude"),
    ),
    Fault(
        "statistics out of range are accepted",
        MOMENTS,
        "if not min_mean_square <= variance + epsilon <= max_mean_square:",
        "if not 0 <= variance + epsilon <= max_mean_square:",
        unit("backends/numpy/test_channels.py", "any_magnitude"),
    ),
)

OF_MASKS = (
    Fault(
        "what a mask leaves out is summed",
        ROWS_WHERE,
        "d = where_true(mask, i, None, load_vector(x, i, None, offset) + offset)",
        "d = load_vector(x, i, None, offset) + offset",
        unit("test_where.py", "changes_no_bit"),
    ),
    Fault(
        "means are over all elements of a row",
        ROWS_WHERE,
        "    inv_count = 1.0 / count\n",
        "    inv_count = 1.0 / n\n",
        unit("test_where.py", "elements_alone"),
    ),
    Fault(
        "rows whose sums are not accurate are not packed",
        ROWS_WHERE,
        "        pack(x, mask, offset, n, packed, ones_vec)\n",
        "        pass\n",
        unit("test_where.py", "elements_alone"),
    ),
    Fault(
        "dx is not 0 outside of a mask",
        ROWS_WHERE,
        "    return where_true(mask, offset + j, count, values)\n\n\n@njit(**INLINE)\ndef store_",
        "    return values\n\n\n@njit(**INLINE)\ndef store_",
        unit("test_where.py", "changes_no_bit"),
    ),
)

OF_BACKWARD = (
    Fault(
        "blocks of a span have the parameters of the first group",
        BACKWARD,
        "return Block(start, min(begin + span, start + rows_per_block), 1, param_row)",
        "return Block(start, min(begin + span, start + rows_per_block), 1, 0)",
        rows("test_cases and sample and float32"),
    ),
    Fault(
        "a block reaches into the next span",
        BACKWARD,
        "return Block(start, min(begin + span, start + rows_per_block), 1, param_row)",
        "return Block(start, start + rows_per_block, 1, param_row)",
        rows("test_cases and sample and float32"),
    ),
    Fault(
        "the sums of the last block of rows are omitted",
        BACKWARD,
        "            reduce_into(sums, partials, into)",
        "            reduce_into(sums, max(partials - 1, 1), into)",
        rows("test_many_rows and layer_norm"),
    ),
    Fault(
        "the projection keeps the residual of the mean",
        ROW_GRADIENTS,
        "neg_projection = fma(x_hat_correction, neg_mean_g, neg_projection)",
        "pass",
        rows("test_backward_values and float32 and layer_norm"),
    ),
    Fault(
        "deviations of any magnitude are summed unscaled",
        ROW_GRADIENTS,
        "scale, _ = range_scale(rstd)",
        "scale = ones(rstd)",
        rows("test_gradients_of_rows_near_the_largest_number and float32"),
    ),
    Fault(
        "the last of four rows has the sums of the third",
        BACKWARD,
        "Source(dy, x, offset + 3 * n, gamma, param)",
        "Source(dy, x, offset + 2 * n, gamma, param)",
        rows("test_large and test_rows and vectors"),
    ),
    Fault(
        "blocks of rows overwrite each other",
        BACKWARD,
        "params_per_row, index * parameters",
        "params_per_row, index // 2 * parameters",
        rows("test_large and test_rows and short"),
    ),
    Fault(
        "dgamma of all runs but the first of a block is lost",
        BACKWARD,
        "            add_run(dgamma, grad_offset, run_dgamma, rstd)\n",
        "",
        rows("test_large and test_rows and short"),
    ),
    Fault(
        "runs of rows are as long as their block",
        "backends/ln_array_api_backends/numpy/rows_dispatch.py",
        "        return groups * TERMS_PER_FLUSH\n",
        "        return groups * 4 * TERMS_PER_FLUSH\n",
        rows("test_large and alike and 23"),
    ),
    Fault(
        "a segment overwrites dgamma of another sample",
        SUMS,
        "sums[grad_offset] += value",
        "sums[grad_offset] = value",
        rows("test_cases and group_norm and float32"),
    ),
    Fault(
        "sums of a long row keep the last run only",
        ROW_GRADIENTS,
        "sum_g, comp_g = compensated_add(sum_g, comp_g, aa + bb)",
        "sum_g, comp_g = aa + bb, comp_g",
        rows("test_large and test_rows and 1000 and layer_norm"),
    ),
    Fault(
        "dx lacks gamma with non-temporal stores",
        ROW_GRADIENTS,
        "add_dx_vector(source, j, None, constants, gradients, True)",
        "add_dx_vector(Source(*source[:3], None, 0), j, None, constants, gradients, True)",
        rows("test_large and test_rows and ragged and layer_norm"),
    ),
    Fault(
        "the end of a row counts twice in its segment",
        ROW_GRADIENTS,
        "dgamma_acc + zero_tail(d * x_hat, n - j), dbeta_acc + d",
        "dgamma_acc + d * x_hat + d * x_hat, dbeta_acc + d",
        rows("test_cases and group_norm and float32"),
    ),
)

FAULTS = (*OF_FORWARD, *OF_ROW_PASSES, *OF_MOMENTS, *OF_BACKWARD, *OF_MASKS)
