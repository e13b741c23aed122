"""Faults in the kernels of the NumPy backend for rows, and in what these are made of."""

from __future__ import annotations

from fault import NUMPY, Fault, suite, unit

FORWARD, BACKWARD = f"{NUMPY}/rows_forward.py", f"{NUMPY}/rows_backward.py"
ROW_PASSES, MOMENTS = f"{NUMPY}/row_passes.py", f"{NUMPY}/moments.py"
ROW_GRADIENTS = f"{NUMPY}/row_gradients.py"
SIMD, DOUBLES, VECTOR_MEMORY = (
    f"{NUMPY}/{name}.py" for name in ("simd", "doubles", "vector_memory")
)
SUMS = f"{NUMPY}/gradient_sums.py"


def rows(names: str) -> tuple[str, ...]:
    """Tests of the conformance suite, of few dtypes at most, since each has to be compiled."""
    return suite(names, backend="numpy")


OF_FORWARD = (
    Fault(
        "the last row is not written where results leave the cache",
        FORWARD,
        "            count = finish_row(start_row(n, pending_row), n, pending_row)\n",
        "            count = 0\n",
        rows("test_large and test_rows and 13 and not ragged"),
    ),
    Fault(
        "what is left of the last row is not written where results leave the cache",
        FORWARD,
        "store_masked(out.y, x_offset + n - count, load(row_tail, 0, ones_vec), count)",
        "store_masked(out.y, x_offset + n - count, load(row_tail, 0, ones_vec), 0)",
        unit("backends/numpy/test_rows_forward.py", "stores_nor_on_alignment", "beside_y"),
    ),
    Fault(
        "a row that begins within a vector overwrites what the row before has left",
        ROW_PASSES,
        "store_masked(row_tail, tail_count, values, count)",
        "store_masked(row_tail, 0, values, count)",
        unit("backends/numpy/test_rows_forward.py", "stores_nor_on_alignment", "beside_y"),
    ),
    Fault(
        "the first row of a part takes what another row has left",
        ROW_PASSES,
        "        if is_first:\n",
        "        if False:\n",
        unit("backends/numpy/test_rows_forward.py", "stores_nor_on_alignment", "beside_y"),
    ),
    Fault(
        "rows after the last whole block are left out",
        FORWARD,
        "for begin in range(start, stop, rows_per_block):",
        "for begin in range(start, max(stop - rows_per_block + 1, start + 1), rows_per_block):",
        rows("test_large and test_rows and 1000"),
    ),
    Fault(
        "sums about a rough mean are always good enough",
        FORWARD,
        "        if good:\n",
        "        if good or count > 0:\n",
        rows("test_forward_values and float32 and 1e-30"),
    ),
    Fault(
        "all groups have the parameters of the first",
        FORWARD,
        "param_offset = (row % affine.groups) * segments + segment",
        "param_offset = segment",
        rows("test_family_accuracy and test_cases and group_norm and float32"),
    ),
    Fault(
        "the second of two rows has the constants of the first",
        FORWARD,
        "load_row_constants(scratch, out.mean, k + 1, ones_vec)",
        "load_row_constants(scratch, out.mean, k + 0, ones_vec)",
        rows("test_accuracy and test_forward_lengths and float32 and 384"),
    ),
    Fault(
        "rows at the end of an odd block are left out",
        FORWARD,
        "    while k < count:\n        constants = load_row_constants(",
        "    while k + 1 < count:\n        constants = load_row_constants(",
        rows("test_accuracy and test_forward_lengths and float32 and 384"),
    ),
)

OF_ROW_PASSES = (
    Fault(
        "lanes beyond a row are summed",
        ROW_PASSES,
        "zero_tail(fma(load_vector(x, x_offset + j, n - j, scale), scale, offset), n - j)",
        "fma(load_vector(x, x_offset + j, n - j, scale), scale, offset)",
        rows("test_accuracy and test_forward_lengths and float32"),
    ),
    Fault(
        "the end of a row has the first parameters",
        ROW_PASSES,
        "row.param_offset + j, count)",
        "row.param_offset + (j if count is None else 0), count)",
        rows("test_accuracy and test_forward_lengths and float32"),
    ),
    Fault(
        "a whole vector before the end of a row is not summed",
        ROW_PASSES,
        "    while j + width <= n:\n        d = fma(",
        "    while j + 2 * width <= n:\n        d = fma(",
        rows("test_accuracy and test_forward_lengths and float32"),
    ),
    Fault(
        "sums of long rows are not in float64",
        FORWARD,
        "if n <= 4 * width:",
        "if n <= 4000 * width:",
        rows("test_large and test_one_outlier"),
    ),
    Fault(
        "many squares are added up before their sum is put aside",
        ROW_PASSES,
        "SQUARES_PER_FLUSH = 8",
        "SQUARES_PER_FLUSH = 1 << 20",
        rows(
            "test_large and test_one_outlier",
        ),
    ),
    Fault(
        "what a sum of sums loses is dropped",
        ROW_PASSES,
        "return new, compensation + ((sum_ - (new - added)) + (values - added))",
        "return new, compensation",
        unit("backends/numpy/test_rows_dispatch.py", "alike_along_a_row"),
    ),
    Fault(
        "y that is stored past the cache has the first parameters",
        ROW_PASSES,
        "store_non_temporal(y, y_offset + j, vector_at(row, j, None))",
        "store_non_temporal(y, y_offset + j, vector_at(row, 0, None))",
        rows("test_large and test_rows and 13 and ragged"),
    ),
    Fault(
        "a row is not written up to where its memory is aligned",
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
        rows("test_accuracy and test_forward_lengths and float32"),
    ),
)

OF_MOMENTS = (
    Fault(
        "a rough mean is never judged",
        MOMENTS,
        "mean_residual * mean_residual > 0.5 * variance:",
        "mean_residual * mean_residual > 1e300 * variance:",
        unit("backends/numpy/test_channels.py", "mislead"),
    ),
    Fault(
        "rough means of several rows are never judged",
        MOMENTS,
        "all_at_most(mean_residual * mean_residual, broadcast(0.5) * variance, count)",
        "all_at_most(mean_residual * mean_residual, broadcast(1e300) * variance, count)",
        unit("backends/numpy/test_rows_accuracy.py", "mislead", "outlier"),
    ),
    Fault(
        "the variance is about the rough mean",
        MOMENTS,
        "square * inv_count - mean_residual * mean_residual",
        "square * inv_count",
        rows("test_accuracy and test_forward_lengths and float32"),
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
        "the last piece of a channel is left out",
        MOMENTS,
        "for piece in range(1, num_pieces):",
        "for piece in range(1, max(num_pieces - 1, 1)):",
        rows("test_large and batch_norm"),
    ),
    Fault(
        "the second half of the rows that are judged together is not",
        MOMENTS,
        "        good = good and more_good\n",
        "",
        unit("backends/numpy/test_rows_accuracy.py", "any_magnitude"),
    ),
    Fault(
        "statistics of no range are accepted",
        MOMENTS,
        "if not min_mean_square <= variance + epsilon <= max_mean_square:",
        "if not 0 <= variance + epsilon <= max_mean_square:",
        unit("backends/numpy/test_channels.py", "any_magnitude"),
    ),
)

OF_VECTORS = (
    Fault(
        "both halves of a vector of float32 are the first",
        DOUBLES,
        "pair = builder.fadd(total, first), builder.fadd(more, last)",
        "pair = builder.fadd(total, first), builder.fadd(more, first)",
        rows("test_accuracy and test_forward_lengths and float32"),
    ),
    Fault(
        "float64 loses what its sums round off",
        DOUBLES,
        "pair = new, builder.fadd(more, compensation)",
        "pair = new, more",
        unit("backends/numpy/test_doubles.py"),
    ),
    Fault(
        "a sum with an infinity is NaN",
        DOUBLES,
        "return builder.select(known, compensation, ir.Constant(compensation.type, None))",
        "return lost",
        unit("backends/numpy/test_doubles.py"),
    ),
    Fault(
        "NaN is at most any number",
        SIMD,
        'above = builder.fcmp_unordered(">", *args[:2])',
        'above = builder.fcmp_ordered(">", *args[:2])',
        unit("backends/numpy/test_simd.py", "at_most"),
    ),
    Fault(
        "lanes beyond the first ones are kept",
        SIMD,
        "return builder.select(prefix_mask(builder, args[1], vector.lanes), args[0], zero)",
        "return args[0]",
        rows("test_accuracy and test_backward_lengths and float32"),
    ),
    Fault(
        "an fma is rounded twice",
        SIMD,
        'return call_lanewise(builder, "fma", a, b, c)',
        "return builder.fadd(builder.fmul(a, b), c)",
        unit("backends/numpy/test_simd.py", "arithmetic"),
    ),
    Fault(
        "bfloat16 rounds halves away from zero",
        VECTOR_MEMORY,
        "constant(0x7FFF)",
        "constant(0x8000)",
        unit("backends/numpy/test_vector_memory.py", "nearest_even"),
    ),
    Fault(
        "bfloat16 is cut off",
        VECTOR_MEMORY,
        "rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)",
        "rounded = bits",
        rows("test_forward_lengths and bfloat16 and layer_norm and 384"),
    ),
)

OF_BACKWARD = (
    Fault(
        "the sums of the last block of rows are left out",
        BACKWARD,
        "        reduce_into(dgamma, blocks, ",
        "        reduce_into(dgamma, max(blocks - 1, 1), ",
        rows("test_many_rows and layer_norm"),
    ),
    Fault(
        "what the mean has missed is a part of the projection",
        BACKWARD,
        "neg_projection = fma(x_hat_correction, neg_mean_g, neg_projection)",
        "pass",
        rows("test_backward_values and float32 and layer_norm"),
    ),
    Fault(
        "deviations are added up whatever their magnitude",
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
        "grad_offset = block * parameters",
        "grad_offset = block // 2 * parameters",
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
        "dx that is stored past the cache is without gamma",
        ROW_GRADIENTS,
        "add_dx_vector(source, j, None, constants, gradients, True)",
        "add_dx_vector(Source(*source[:3], None, 0), j, None, constants, gradients, True)",
        rows("test_large and test_rows and ragged and layer_norm"),
    ),
    Fault(
        "the end of a row counts in its segment twice",
        ROW_GRADIENTS,
        "dgamma_acc + zero_tail(d * x_hat, n - j), dbeta_acc + d",
        "dgamma_acc + d * x_hat + d * x_hat, dbeta_acc + d",
        rows("test_cases and group_norm and float32"),
    ),
)

OF_GRADIENT_SUMS = (
    Fault(
        "the fourth vector of sums is the third",
        SUMS,
        "store(sums, j + 3 * width, sum_in_dtype(d, rest_d, ones_vec))",
        "store(sums, j + 3 * width, sum_in_dtype(c, rest_c, ones_vec))",
        rows("test_large and test_rows and vectors and layer_norm"),
    ),
    Fault(
        "the second of two rows is left out of dbeta",
        SUMS,
        "load(dbeta, grad_offset, d0) + (d0 + d1)",
        "load(dbeta, grad_offset, d0) + (d0 + d0)",
        rows("test_backward_lengths and float32 and layer_norm and 384"),
    ),
    Fault(
        "the first block of rows is added up for all",
        SUMS,
        "load_vector(sums, i, count, ones_vec)",
        "load_vector(sums, j, count, ones_vec)",
        rows("test_many_rows and layer_norm"),
    ),
)

FAULTS = (
    *OF_FORWARD,
    *OF_ROW_PASSES,
    *OF_MOMENTS,
    *OF_VECTORS,
    *OF_BACKWARD,
    *OF_GRADIENT_SUMS,
)
