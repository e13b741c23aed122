"""Faults in the kernels over channels."""

from __future__ import annotations

from planted_faults import ADDRESS, RESULT, SIMULATOR, THREAD, UNDEFINED, faults

#: By planes of one part, and of several; by columns, of one channel each, and folded.
PLANE, PARTS = ("float32", (3, 2, 100)), ("float32", (5, 3, 3001))
COLUMN, FOLDED = ("float32", (70, 12, 3)), ("float32", (1300, 3, 1))
SHORT_EXTENTS, CONTIGUOUS = ("float32", (9, 2, 100)), ("float32", (70, 36, 1))
STORED_MOMENTS = "scaled_moments(column, A(epsilon)));\n        }\n    }\n"
STORED_SUMS = "shared_sums[k].at(threadIdx.x, j) = sums[k][j];\n"
BARRIER = "    __syncthreads();\n"
SUM_DY_X_HAT = "chunk_sums[SUM_DY_X_HAT][j] += d[j] * (deviation * rstds[j]);"
LAST_ROWS = "r < tile.end; r += tile.thread_rows) {\n            A values[VEC];"

FAULTS = (
    *faults(
        *COLUMN,
        {
            "no barrier before moments of columns are merged": (
                STORED_MOMENTS + BARRIER,
                STORED_MOMENTS,
            ),
            "no barrier before sums of columns are reduced": (STORED_SUMS + BARRIER, STORED_SUMS),
        },
        by=(RESULT, THREAD),
    ),
    *faults(
        *("float32", (3, 12, 3)),
        {
            "a barrier that only threads with rows reach": (
                "if (count > 0) {\n#pragma unroll 1",
                "if (count > 0) {\n__syncthreads();\n#pragma unroll 1",
            ),
        },
        by=(SIMULATOR,),
    ),
    *faults(
        *SHORT_EXTENTS,
        {
            "an extent that does not end": ("offset += wrap_step;", ""),
            "a stride that is too short": ("offset += step;\n", "offset += inner_step;\n"),
        },
    ),
    *faults(
        *PARTS,
        {
            "parts that overlap": (
                "blockIdx.x / channels * length",
                "blockIdx.x / channels * (length - 1)",
            ),
            "no variance between means": (
                "((other.variance - variance) + delta * delta * (1 - weight))",
                "(other.variance - variance)",
            ),
            "no variance between threads": (
                "weight * (local.variance + d * d)",
                "weight * local.variance",
            ),
        },
    ),
    *faults(
        *PARTS,
        {
            "mean residual of merged moments lost": (
                "mean_residual = (before - approx_mean) + step;",
                "mean_residual = 0;",
            ),
        },
        mean=1e6,
    ),
    *faults(
        *PLANE,
        {
            "no tail of a plane": ("for (; vec < end; vec += THREADS)", "if (false)"),
            "elements of the next channel": (
                "(batch * channels + channel) * channel_extent",
                "(batch * channels + (channel + 1) % channels) * channel_extent",
            ),
            "parameters of the first channel": (
                "channel = extent - fast_div(extent, channels) * channels",
                "channel = 0",
            ),
            "sums stored at the wrong stride": (
                "part_sums[k * parts * row_length + offset]",
                "part_sums[offset]",
            ),
            "a variance not written": ("var[channel] = scalbn", "if (false) var[0] = scalbn"),
        },
    ),
    *faults(
        *PLANE,
        {
            "mean residual not subtracted": (
                "- approx_mean[c] - mean_residual[c]",
                "- approx_mean[c]",
            ),
            "mean of x_hat not subtracted": ("rstds[c], -x_hat_mean[c]", "rstds[c], A(0)"),
        },
        mean=1e4,
    ),
    *faults(
        *PLANE,
        {
            "mean of x_hat not subtracted in dgamma": (
                "sums[SUM_DY_X_HAT] - channel_grad.x_hat_mean * sums[SUM_DY]",
                "sums[SUM_DY_X_HAT]",
            ),
        },
        mean=1e5,
    ),
    *faults(
        *COLUMN,
        {
            "no tail of a column": ("for (; r < end; r += thread_rows)", "if (false)"),
            "parameters of the previous channel": ("left = spatial - in_extent", "left = spatial"),
            "columns of the next channel": (
                "first_column(channel * spatial)",
                "first_column(channel)",
            ),
            "a thread row left out": (
                "row < tile.thread_rows; ++row)\n",
                "row < tile.thread_rows - 1; ++row)\n",
            ),
            "the last rows not normalised": (
                LAST_ROWS,
                LAST_ROWS.replace("tile.end", "tile.end - 1"),
            ),
        },
    ),
    *faults(
        *FOLDED,
        {
            "a fold left out": ("entries(parts * entries_per_row)", "entries(parts * spatial)"),
            "a short part with the weight of others": (
                "count = min(length, rows - (column >= last_row_length) - part * length)",
                "count = length",
            ),
        },
    ),
    *faults(
        *CONTIGUOUS,
        {
            "a thread row with the weight of others": (
                "(height - row + tile.thread_rows - 1) / tile.thread_rows",
                "(height + tile.thread_rows - 1) / tile.thread_rows",
            ),
        },
    ),
    *faults(
        *("float16", (5, 3, 3001)),
        {
            "moments in float16": (
                "sum_d2 += d * d;",
                "sum_d2 = A(__half(float(sum_d2 + d * d)));",
            ),
        },
    ),
    *faults(
        *("float16", (70, 12, 3)),
        {
            "sums in float16": (
                SUM_DY_X_HAT,
                SUM_DY_X_HAT.replace(
                    "+= ", "= A(__half(float(chunk_sums[SUM_DY_X_HAT][j] + "
                ).replace(";", ")));"),
            ),
        },
    ),
    *faults(
        *("bfloat16", (70, 12, 3)),
        {
            "16 bits rounded twice": (
                "values[j] = x_hat * gammas[c] + betas[c];",
                "values[j] = A(T(x_hat * gammas[c])) + betas[c];",
            ),
        },
    ),
    *faults(
        *FOLDED,
        {
            "columns that do not exist": (
                "rows - (column >= last_row_length)) : begin",
                "rows) : begin",
            )
        },
        by=(ADDRESS,),
    ),
    *faults(
        *COLUMN, {"a row too long": ("column < row_length ? min", "true ? min")}, by=(ADDRESS,)
    ),
    *faults(
        *PLANE,
        {"out-of-bounds vector": ("for (; vec < end; vec", "for (; vec <= end; vec")},
        by=(ADDRESS,),
    ),
    *faults(
        *PLANE,
        {"a channel too many": ("if (channel >= channels)", "if (channel > channels)")},
        by=(UNDEFINED,),
    ),
    *faults(
        *PLANE,
        {
            "a vector that is not aligned": (
                "reinterpret_cast<size_t>(ptr) % VEC_ALIGNMENT<T, VEC> == 0",
                "true",
            ),
        },
        by=(SIMULATOR,),
        offset=True,
    ),
)
