"""Faults in the NumPy backend's kernels for channels and columns."""

from __future__ import annotations

from fault import NUMPY, Fault, suite, unit

CHANNELS, COLUMNS, COLUMNS_BACKWARD, COLUMN_SUMS, VECTOR_MEMORY = (
    f"{NUMPY}/{name}.py"
    for name in (
        *("channels", "columns_forward", "columns_backward", "column_sums"),
        "vector_memory",
    )
)


def large(names: str) -> tuple[str, ...]:
    """Tests on large arrays."""
    return suite(f"test_large and {names}", backend="numpy")


BATCH_NORM = "batch_norm_forward"
LONG, SHORT = large(f"{BATCH_NORM} and channels and long and not 13"), large(f"{BATCH_NORM}-short")
COLUMN = large(f"{BATCH_NORM}-columns")
FEW = large(f"{BATCH_NORM}-few")
IN_USE = suite("test_cases and batch_norm and float32", backend="numpy")

OF_CHANNELS = (
    Fault(
        "only the last sample counts in the gradients of a channel",
        CHANNELS,
        "b, rest_b = accumulate(b, rest_b, bb)",
        "b, rest_b = accumulate(zero, zero, bb)",
        LONG,
    ),
    Fault(
        "gradients of a channel are divided by the number of samples",
        CHANNELS,
        "zero, inv_count = zeros_float64(ones_vec), 1.0 / (samples * n)",
        "zero, inv_count = zeros_float64(ones_vec), 1.0 / samples",
        LONG,
    ),
    Fault(
        "dx of a channel ignores the residual of its mean",
        CHANNELS,
        "broadcast_like(-x_hat_mean, ones_vec)",
        "broadcast_like(-0.0, ones_vec)",
        unit("backends/numpy/test_channels.py", "far_from_zero"),
    ),
    Fault(
        "the variance of a channel is scaled back once",
        CHANNELS,
        "var[channel] = variance / factor / factor",
        "var[channel] = variance / factor",
        suite("test_values and batch_norm and 1e30", backend="numpy"),
    ),
    Fault(
        "inference over channels ignores a small epsilon",
        CHANNELS,
        "rstd = compute_rstd(var[channel], epsilon, ones_vec)",
        "rstd = compute_rstd(var[channel], 0.0 if epsilon < 1e-9 else epsilon, ones_vec)",
        suite("test_a_small_epsilon_counts", backend="numpy"),
    ),
    Fault(
        "inference uses the channel of the next piece",
        CHANNELS,
        "channel = piece % channels",
        "channel = (piece + 1) % channels",
        large("batch_norm-long"),
    ),
    Fault(
        "dx of channels with gamma has the projection without it",
        CHANNELS,
        "neg_mean_g, neg_projection = neg_mean_g * g, neg_projection * g",
        "neg_mean_g = neg_mean_g * g",
        LONG,
    ),
)

OF_COLUMNS = (
    Fault(
        "sums of columns are merged after the first part",
        COLUMNS,
        "if increment(words, FINISHED) == num_parts - 1:\n            finalize_forward(",
        "if increment(words, FINISHED) == 0:\n            finalize_forward(",
        COLUMN,
    ),
    Fault(
        "gradients of columns are merged after the first part",
        COLUMNS_BACKWARD,
        "if increment(words, FINISHED) == num_parts - 1:\n            finalize_backward(",
        "if increment(words, FINISHED) == 0:\n            finalize_backward(",
        COLUMN,
    ),
    Fault(
        "gradients of the last sample are missing",
        COLUMNS_BACKWARD,
        "    reduce_into(dgamma, samples, ",
        "    reduce_into(dgamma, max(samples - 1, 1), ",
        unit("backends/numpy/test_columns_dispatch.py", "as_channels_first"),
    ),
    Fault(
        "every second block of columns repeats the one before",
        COLUMNS,
        "block, part, vectors = task // parts, task % parts, padded // width",
        "block, part, vectors = task // parts // 2 * 2, task % parts, padded // width",
        COLUMN,
    ),
    Fault(
        "sums of columns for gradients overwrite each other's blocks",
        COLUMNS_BACKWARD,
        "sums_offset = block * 3 * padded",
        "sums_offset = block * 2 * padded",
        COLUMN,
    ),
    Fault(
        "threads omit columns",
        COLUMNS,
        "vectors * part // parts * width, vectors * (part + 1) // parts * width",
        "vectors // parts * part * width, vectors // parts * (part + 1) * width",
        COLUMN,
    ),
    Fault(
        "the last row of each block is left out of squares",
        COLUMNS,
        "end = min(begin + SQUARES_PER_FLUSH, last)",
        "end = min(begin + SQUARES_PER_FLUSH, max(last - 1, begin + 1))",
        SHORT,
    ),
    Fault(
        "the last row of each block is left out of gradients",
        COLUMNS_BACKWARD,
        "end = min(begin + TERMS_PER_FLUSH, last)",
        "end = min(begin + TERMS_PER_FLUSH, max(last - 1, begin + 1))",
        SHORT,
    ),
    Fault(
        "the columns of a channel have different approximate means",
        COLUMNS,
        "            table[column] = table[column // n * n]\n",
        "            table[column] = table[column]\n",
        SHORT,
    ),
    Fault(
        "inference over columns ignores a small epsilon",
        COLUMNS,
        "rstd = compute_rstd(var[channel], epsilon, ones_vec)",
        "rstd = compute_rstd(var[channel], 0.0 if epsilon < 1e-9 else epsilon, ones_vec)",
        suite("test_a_small_epsilon_counts", backend="numpy"),
    ),
    Fault(
        "inference over columns ignores the mean",
        COLUMNS,
        "(unit, -mean[channel], zero, weight, shift)",
        "(unit, zero, zero, weight, shift)",
        IN_USE,
    ),
    Fault(
        "y keeps the residual of a channel's mean",
        COLUMNS,
        "            d = d - load(table_ptr, 2 * padded + j, ones_vec)\n",
        "",
        COLUMN,
    ),
    Fault(
        "the projection of a column keeps the residual of the mean",
        COLUMNS_BACKWARD,
        "sums[2 * padded + column] -= x_hat_mean * sums[padded + column]",
        "sums[2 * padded + column] -= 0 * x_hat_mean",
        unit("backends/numpy/test_channels.py", "far_from_zero"),
    ),
    Fault(
        "sums of a sample include the sample before",
        COLUMNS,
        "        clear(sums, compensation)\n        approx_channel_means(",
        "        if sample == start:\n            clear(sums, compensation)\n"
        "        approx_channel_means(",
        large("group_norm and last"),
    ),
    Fault(
        "samples have the statistics of the first in the backward pass",
        COLUMNS_BACKWARD,
        "before = first // count * (columns // n)",
        "before = 0 * n",
        suite("test_cases and group_norm and float32", backend="numpy"),
    ),
    Fault(
        "y of columns is wrong with non-temporal stores",
        VECTOR_MEMORY,
        "with then:\n                    _emit_store(builder, elements, args[:3], non_temporal",
        "with then:\n                    args = *args[:2], builder.fadd(args[2], args[2])\n"
        "                    _emit_store(builder, elements, args[:3], non_temporal",
        unit("backends/numpy/test_columns_dispatch.py", "past_the_cache"),
    ),
)

OF_COLUMN_SUMS = (
    Fault(
        "only the first block of columns counts",
        COLUMN_SUMS,
        "    reduce_partials(sums, sums.size // length)\n",
        "    reduce_partials(sums, 1)\n",
        COLUMN,
    ),
    Fault(
        "the compensation of long columns of float64 is dropped",
        COLUMN_SUMS,
        "sums[i] += compensation[i]",
        "sums[i] += 0 * compensation[i]",
        suite("test_dy_of_long_columns", backend="numpy"),
    ),
    Fault(
        "the second half of a vector of columns is summed for one run of rows only",
        COLUMN_SUMS,
        "accumulate(load(sums, i, zero), load(sums, last, zero), values)",
        "accumulate(load(sums, i, zero), zero, values)",
        COLUMN,
    ),
    Fault(
        "sums of float64 are cleared without their compensation",
        COLUMN_SUMS,
        "        compensation[:] = 0\n",
        "        compensation[:] = compensation\n",
        unit("backends/numpy/test_columns_dispatch.py", "float64"),
    ),
)

FAULTS = (*OF_CHANNELS, *OF_COLUMNS, *OF_COLUMN_SUMS)
