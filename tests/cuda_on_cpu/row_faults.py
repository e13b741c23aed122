"""Faults in the kernels over rows."""

from __future__ import annotations

from planted_faults import ADDRESS, RESULT, SIMULATOR, THREAD, UNDEFINED, faults
from test_long_rows import two_tile_segments

BARRIER = "        __syncthreads();\n"
EXCHANGED = "#pragma unroll\n        for (int k = 0; k < K; ++k) values[k] = warp_values"
SHUFFLE = "value += __shfl_xor_sync(ALL_LANES, value, flip);"
STORED_SUMS = "values[i][j];\n            __syncthreads();\n"
REDUCED_SUMS = "block_partials[c] = sum;\n            }\n"
STORED_COLUMNS = "shared_sums[thread_row][column] = sum.total();\n"
WHOLE_CHUNK = "if (aligned && count >= VEC)\n                visit(values, Constant"
SUM_G_X_HAT = "sums[0] += g[j] * (deviation[j] * row_grad.rstd);"
BLOCK, WARP, ODD, LONG = ("float32", 1600), ("float32", 40), ("float32", 41), ("float32", 40001)

FAULTS = (
    *faults(
        *BLOCK,
        {
            "no barrier for the sums of warps": (BARRIER + EXCHANGED, EXCHANGED),
            "the sums of warps in one buffer": ("buffer ^= 1;", ""),
        },
        by=(RESULT, THREAD),
    ),
    *faults(
        *BLOCK,
        {
            "a barrier that only first lanes reach": (
                "        }\n" + BARRIER + EXCHANGED,
                BARRIER + "        }\n" + EXCHANGED,
            ),
        },
        by=(SIMULATOR,),
    ),
    *faults(
        *BLOCK,
        {
            "sums of two warps only": ("lane % WARPS]", "lane % 2]"),
            "partial sums stored at the wrong stride": (
                "partials + blockIdx.x * sums_per_row",
                "partials + blockIdx.x * 9",
            ),
            "a partial sum left out": ("step < rows) sum", "step < rows - 1) sum"),
        },
    ),
    *faults(
        *("float32", 100),
        {"half of a warp's sum": ("int flip = LANES / 2; flip", "int flip = LANES / 4; flip")},
    ),
    *faults(
        *WARP,
        {"a shuffle that one lane misses": (SHUFFLE, f"if (threadIdx.x % WARP) {SHUFFLE}")},
        by=(SIMULATOR,),
    ),
    *faults(
        *WARP,
        {
            "mean residual not subtracted": ("-mean_residual * scaled_rstd", "A(0)"),
            "mean of x_hat not subtracted": (
                "CENTER ? fma(deviation, rstd, -x_hat_mean) : deviation * rstd",
                "deviation * rstd",
            ),
        },
        mean=1e4,
    ),
    *faults(
        *WARP,
        {
            "warp groups share a buffer": ("shared_sums[row_of_block][", "shared_sums[0]["),
            "a mean not written": ("if (CENTER) mean[r] = row_stats.mean();", ""),
        },
    ),
    *faults(
        *WARP,
        {
            "no barrier before the sums of warp groups are reduced": (
                STORED_SUMS,
                STORED_SUMS.replace("__syncthreads();", ""),
            ),
            "no barrier before the next gradient": (
                REDUCED_SUMS + "            __syncthreads();",
                REDUCED_SUMS,
            ),
            "no barrier before columns are reduced": (
                STORED_COLUMNS + "    __syncthreads();",
                STORED_COLUMNS,
            ),
        },
        by=(RESULT, THREAD),
        rows=40,
    ),
    *faults(
        *("float32", 48),
        {"rows of other groups": ("group_index + groups * (Index(partial)", "(Index(partial)")},
        by=(SIMULATOR,),
        groups=3,
    ),
    *faults(
        *("float32", 48),
        {"parameters of the first group": ("ptr += group_index * n", "ptr += 0 * n")},
        groups=3,
    ),
    *faults(
        *("float32", 48),
        {
            "parameters not repeated": ("if (++uses == repeat)", "if (true)"),
            "a parameter that begins anew": (
                "uses = (repeat_offset + c) % repeat",
                "uses = 0",
            ),
        },
        repeat=3,
    ),
    *faults(
        *("float32", 48),
        {
            "parameters of chunks not repeated": (
                "ptr[(repeat_offset + c) / repeat]",
                "ptr[(repeat_offset + c) % repeat]",
            )
        },
        repeat=4,
    ),
    *faults(
        *("float32", 40000),
        {"a tile that begins with a parameter": ("unsigned(begin % repeat)", "0")},
        repeat=20,
    ),
    *faults(
        *("float32", 12000),
        {"the first chunk loaded in place of all": (".load(x + c, x_al", ".load(x, x_al")},
    ),
    *faults(
        *LONG,
        {
            "segments that overlap": (
                "blockIdx.x % segments * length,",
                "blockIdx.x % segments * (length - 4),",
            ),
            "moments of the first row": (
                "segment_moments + Index(r) * segments",
                "segment_moments",
            ),
            "a short segment with the weight of others": (
                "A(min(length, n - thread * length))",
                "A(length)",
            ),
            "no variance between segments": (
                "weight * (local.variance + d * d)",
                "weight * local.variance",
            ),
            "a segment left out": ("thread < segments) sums", "thread + 1 < segments) sums"),
            "sums of segments stored at the wrong stride": (
                "(r * 3 + k) * seg",
                "(r * 2 + k) * seg",
            ),
            "the last tile left out": (
                "min(Index(TILE), n - begin)",
                "n - begin < TILE ? 0 : TILE",
            ),
            "parameters of the first tile": ("n, repeat, begin);", "n, repeat);"),
            "partial sums of the first tile": (
                "(partial_group * n + begin) / (VEC / S)",
                "partial_group * n / (VEC / S)",
            ),
        },
    ),
    *faults(
        *LONG,
        {"a tile of the wrong weight": ("A(count) / A(tile + count - begin)", "A(0.25)")},
        split=two_tile_segments,
    ),
    *faults(
        *LONG,
        {
            "mean residual of a tile lost": (
                "mean_residual = (before - approx_mean) + step;",
                "mean_residual = 0;",
            )
        },
        split=two_tile_segments,
        mean=1e6,
    ),
    *faults(
        *("bfloat16", 40),
        {
            "16 bits rounded twice": (
                "fma(result[j], scales[j], shifts[j]);",
                "static_cast<A>(static_cast<T>(result[j] * scales[j])) + shifts[j];",
            )
        },
    ),
    *faults(
        *("float16", 3000),
        {
            "sums in 16 bits": (
                SUM_G_X_HAT,
                f"{SUM_G_X_HAT} sums[0] = A(static_cast<T>(sums[0]));",
            )
        },
    ),
    *faults(
        *("float16", 40),
        {"sums in float16": (SHUFFLE, f"{{ {SHUFFLE} value = A(__half(float(value))); }}")},
    ),
    *faults(
        *ODD,
        {
            "no tail": ("if (j < count) elements[j]", "if (false) elements[j]"),
            "no tail of parameters": ("j < count ? static_cast<A>(ptr[j])", "false ? A(ptr[j])"),
            "a tail that counts twice": ("if (j >= count) deviation[j] = 0", "deviation[j] *= 2"),
        },
    ),
    *faults(
        *ODD,
        {
            "rows out of range not read again": ("c < n; c += THREADS * VEC", "false; c = n"),
            "a tail not read again": ("const int count = min(VEC, n - c);", "const int count = 1;"),
        },
        magnitude=1e30,
    ),
    *faults(
        *BLOCK,
        {
            "the same row loaded twice": (
                "next_row.load(x + (r + step) * n",
                "next_row.load(x + r * n",
            ),
            "statistics of the row before": (
                "next_grad = {mean, rstd, r + step}",
                "next_grad = {mean, rstd, r}",
            ),
        },
        rows=1100,
    ),
    *faults(
        *ODD,
        {
            "rows of a warp that diverge": (
                "thread_group.holds_in_warp(is_in_range)",
                "is_in_range",
            ),
            "rows of a warp that end apart": (
                "const Index end = m + groups * Index(row_of_block % ROWS_OF_WARP);",
                "const Index end = m;",
            ),
        },
        by=(SIMULATOR,),
        magnitude=1e30,
        rows=10,
    ),
    *faults(
        *ODD,
        {"a row beyond the last": ("row.n = exists ? int(n) : 0;", "row.n = int(n);")},
        by=(ADDRESS,),
        rows=10,
    ),
    *faults(
        *ODD,
        {
            "an element too many": ("if (j < count) elements[j]", "if (true) elements[j]"),
            "a parameter too many": ("j < count ? static_cast<A>(ptr", "true ? A(ptr"),
            "a chunk that is not whole": ("if (aligned && n - c >= VEC)", "if (aligned && n > c)"),
            "a chunk of y that is not whole": (
                WHOLE_CHUNK,
                WHOLE_CHUNK.replace(" && count >= VEC", ""),
            ),
            "a result too many": ("if (j < count) ptr[j]", "if (true) ptr[j]"),
            "a row too many": ("const bool exists = r < m;", "const bool exists = r <= m;"),
        },
        by=(ADDRESS,),
    ),
    *faults(
        *ODD,
        {"a column too many": ("if (c < width)", "if (c <= width)")},
        by=(ADDRESS,),
        rows=40,
    ),
    *faults(*BLOCK, {"too little shared memory": ("2 * 3 * WARPS;", "2 * WARPS;")}, by=(ADDRESS,)),
    *faults(
        *WARP,
        {
            "parameters that are not aligned": (
                "INDEXING != PER_ELEMENT || ::is_aligned<FULL_VEC<P>>(ptr)",
                "true",
            ),
            "a result that is not aligned": (WHOLE_CHUNK, WHOLE_CHUNK.replace("aligned && ", "")),
            "a chunk that is not aligned": (
                "const bool aligned = is_aligned<VEC>(ptr)",
                "const bool aligned = true",
            ),
        },
        by=(SIMULATOR,),
        offset=1,
    ),
    *faults(
        *WARP,
        {
            "a thread number that overflows": (
                "WARPS == 1 ? threadIdx.x % LANES",
                "WARPS == 1 ? int(threadIdx.x % LANES) + 0x7fffffff - 0x7fffffff",
            )
        },
        by=(UNDEFINED,),
    ),
    *faults(
        *LONG,
        {
            "a tile beyond the row": ("int(min(Index(TILE), n - begin))", "TILE"),
            "a segment too many": ("thread < segments) {", "thread <= segments) {"),
        },
        by=(ADDRESS,),
    ),
)
