// The forward pass over rows; see ln_array_api.kernels.rows for the mathematics.
//
// Rows that fit into a block's registers are read once, by `rows_forward`. Longer rows are split,
// by their length alone. `segment_moments` has a block for each segment of a row.
// `segments_forward` has a block for each tile, which is as much of a row as a block keeps in
// registers; each block merges all moments of its row.

// A thread's chunks of a row, or of a tile of it, in registers.
template <class T, int THREADS, int CHUNKS>
struct RowTile {
    using A = Accumulator<T>;
    static constexpr int VEC = FULL_VEC<T>;
    A values[CHUNKS][VEC];
    int n, thread;

    __device__ RowTile(const T* row, int n, int thread) : n(n), thread(thread) {
        const bool aligned = is_aligned<VEC>(row);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = (i * THREADS + thread) * VEC;
            load(row + c, aligned, min(VEC, n - c), values[i]);
        }
    }

    // Call `visit` with the values of each chunk, their number, and the index of the first.
    template <class Visit>
    __device__ void for_each_chunk(Visit visit) const {
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = (i * THREADS + thread) * VEC;
            if (c < n) visit(values[i], min(VEC, n - c), c);
        }
    }
};

// The exponent of the power of two that brings a magnitude close to 1, within the limit of the
// dtype. For 0 it is that limit, since no scale is too large.
template <class A>
__device__ int target_exponent(A magnitude) {
    if (!(magnitude > 0)) return Limits<A>::max_exponent;
    if (!(magnitude <= Limits<A>::max_finite)) return 0;
    return min(max(-1 - ilogb(magnitude), -Limits<A>::max_exponent), Limits<A>::max_exponent);
}
template <class A>
__device__ int target_exponent_of_square(A square) {
    if (!(square > 0)) return Limits<A>::max_exponent;
    return square <= Limits<A>::max_finite ? -1 - ilogb(square) / 2 : 0;
}

// Moments of x times 2 ** exponent. The mean is approx_mean + mean_residual.
template <class A>
struct alignas(16) Moments {
    A approx_mean, mean_residual, variance, exponent;

    __device__ int target_exponent() const {
        const int exponent_delta =
            min(::target_exponent(abs(approx_mean)), target_exponent_of_square(variance));
        return min(max(int(exponent) + exponent_delta, -Limits<A>::max_exponent),
                   Limits<A>::max_exponent);
    }
    __device__ void rescale(int new_exponent) {
        const int exponent_delta = new_exponent - int(exponent);
        approx_mean = scalbn(approx_mean, exponent_delta);
        mean_residual = scalbn(mean_residual, exponent_delta);
        variance = scalbn(variance, 2 * exponent_delta);
        exponent = A(new_exponent);
    }
    // Merge the moments of other elements; `weight` is their share of all elements. Chan, Golub and
    // LeVeque, "Algorithms for computing the sample variance", 1983, equation (2.1).
    __device__ void merge(Moments other, A weight) {
        const int common = min(target_exponent(), other.target_exponent());
        rescale(common);
        other.rescale(common);
        merge_unscaled(other, weight);
    }
    // The same where both have the same exponent.
    __device__ void merge_unscaled(const Moments& other, A weight) {
        const A delta = (other.approx_mean - approx_mean) + (other.mean_residual - mean_residual);
        const A step = mean_residual + delta * weight, before = approx_mean;
        approx_mean = before + step;
        mean_residual = (before - approx_mean) + step;
        variance += weight * ((other.variance - variance) + delta * delta * (1 - weight));
    }
};

// The moments of a row of which each thread of a group has a tile. `first` is any element of the
// row, and `inv_count` is 1 over their number.
template <bool CENTER, class Tile, class Group, class A = typename Tile::A>
__device__ Moments<A> moments(const Tile& row, Group& warp_group, A first, A inv_count,
                              double epsilon) {
    constexpr int VEC = Tile::VEC;
    A scale = 1, exponent = 0;
    for (bool scaled = false;; scaled = true) {
        A approx_mean = 0;
        if (CENTER) {
            CompensatedSum<A> sum;
            row.for_each_chunk([&](const A(&x)[VEC], int count, int) {
                A chunk_sum = 0;
#pragma unroll
                for (int j = 0; j < VEC; ++j)
                    if (j < count) chunk_sum += x[j] * scale - first * scale;
                sum.add(chunk_sum);
            });
            A total[1] = {sum.total()};
            warp_group.reduce_add(total);
            approx_mean = first * scale + total[0] * inv_count;
        }
        CompensatedSum<A> sum_d, sum_d2;
        row.for_each_chunk([&](const A(&x)[VEC], int count, int) {
            A chunk_d = 0, chunk_d2 = 0;
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                if (j < count) {
                    const A d = x[j] * scale - approx_mean;
                    if (CENTER) chunk_d += d;
                    chunk_d2 += d * d;
                }
            }
            if (CENTER) sum_d.add(chunk_d);
            sum_d2.add(chunk_d2);
        });
        A totals[2] = {sum_d2.total(), sum_d.total()};
        if (CENTER) {
            warp_group.reduce_add(totals);
        } else {
            A total_d2[1] = {totals[0]};
            warp_group.reduce_add(total_d2);
            totals[0] = total_d2[0];
        }
        const A mean_residual = totals[1] * inv_count;
        const A variance = totals[0] * inv_count - mean_residual * mean_residual;
        const A variance_plus_epsilon = variance + A(epsilon);
        if (scaled || (variance_plus_epsilon >= Limits<A>::min_mean_square &&
                       variance_plus_epsilon <= Limits<A>::max_finite))
            return {approx_mean, mean_residual, variance, exponent};
        A max_abs = 0;
        row.for_each_chunk([&](const A(&x)[VEC], int count, int) {
#pragma unroll
            for (int j = 0; j < VEC; ++j)
                if (j < count) max_abs = max(max_abs, abs(x[j]));
        });
        const int target = min(target_exponent(warp_group.reduce_max(max_abs)),
                               target_exponent_of_square(epsilon));
        exponent = A(target);
        scale = scalbn(A(1), target);
    }
}

// What normalises an element of a row: (x * scale - approx_mean - mean_residual) * scaled_rstd.
template <class A>
struct Statistics {
    A scale, approx_mean, mean_residual;
    A scaled_rstd;  // 1 / sqrt(variance + epsilon) of the scaled row
    int exponent;

    // Where the variance is 0, only epsilon is left, which would underflow if it were scaled down.
    // It is scaled in double: an epsilon that float does not hold can matter to a row of tiny
    // values.
    __device__ Statistics(Moments<A> row, double epsilon) {
        if (row.variance == 0 && row.exponent < 0) row.rescale(0);
        exponent = int(row.exponent);
        scale = scalbn(A(1), exponent);
        approx_mean = row.approx_mean;
        mean_residual = row.mean_residual;
        const A min_epsilon = epsilon > 0 ? Limits<A>::min_normal : A(0);
        scaled_rstd = reciprocal_sqrt(row.variance + max(A(epsilon * scale * scale), min_epsilon));
    }

    __device__ A rstd() const { return scaled_rstd * scale; }
    __device__ A mean() const { return scalbn(approx_mean + mean_residual, -exponent); }
};

// Write y of a row, or of a tile of it, to where it begins.
template <class Tile, class T, class Gammas, class Betas, class A = typename Tile::A>
__device__ void normalise(const Tile& row, const Statistics<A>& row_stats, const Gammas& gammas,
                          const Betas& betas, T* y) {
    constexpr int VEC = Tile::VEC;
    const bool aligned = is_aligned<VEC>(y);
    row.for_each_chunk([&](const A(&values)[VEC], int count, int c) {
        A result[VEC], parameters[VEC];
#pragma unroll
        for (int j = 0; j < VEC; ++j)
            result[j] =
                (values[j] * row_stats.scale - row_stats.approx_mean - row_stats.mean_residual) *
                row_stats.scaled_rstd;
        if (gammas.ptr) {
            gammas.load(c, count, parameters);
#pragma unroll
            for (int j = 0; j < VEC; ++j) result[j] *= parameters[j];
        }
        if (betas.ptr) {
            betas.load(c, count, parameters);
#pragma unroll
            for (int j = 0; j < VEC; ++j) result[j] += parameters[j];
        }
        store(y + c, aligned, count, result);
    });
}

// A block has ROWS rows, each for a group of WARPS warps. y may be x. mean is null where CENTER is
// false, and gamma and beta are null where they are absent.
template <class T, class Gamma, class Beta, int WARPS, int ROWS, int CHUNKS, bool CENTER,
          ParamIndexing INDEXING>
__global__ void __launch_bounds__(WARPS* ROWS* WARP, MIN_BLOCKS_PER_SM<WARPS * ROWS * WARP>)
    rows_forward(const T* x, const Gamma* gamma, const Beta* beta, T* y, Accumulator<T>* mean,
                 Accumulator<T>* rstd, Index m, Index n, unsigned groups, Index repeat,
                 double inv_count, double epsilon) {
    using A = Accumulator<T>;
    static_assert(WARPS == 1 || ROWS == 1);
    __shared__ A shared[WarpGroup<A, WARPS>::SHARED];
    WarpGroup<A, WARPS> warp_group(shared);
    const Index r = Index(blockIdx.x) * ROWS + warp_group.index();
    if (r >= m) return;
    const T* const x_row = x + r * n;
    const A first = static_cast<A>(x_row[0]);
    const RowTile<T, WARPS * WARP, CHUNKS> row(x_row, int(n), warp_group.thread());
    const Statistics<A> row_stats(moments<CENTER>(row, warp_group, first, A(inv_count), epsilon),
                                  epsilon);
    if (warp_group.thread() == 0) {
        rstd[r] = row_stats.rstd();
        if (CENTER) mean[r] = row_stats.mean();
    }
    const unsigned group_index = (blockIdx.x % groups * ROWS + unsigned(r % ROWS)) % groups;
    const ParamView<Gamma, INDEXING> gammas(gamma, group_index, n, repeat);
    const ParamView<Beta, INDEXING> betas(beta, group_index, n, repeat);
    normalise(row, row_stats, gammas, betas, y + r * n);
}

// The moments of the `segments` segments of each row. All but the last have `length` elements. A
// block goes through its segment tile by tile, since registers hold one tile.
template <class T, int WARPS, int CHUNKS, bool CENTER>
__global__ void __launch_bounds__(WARPS* WARP, MIN_BLOCKS_PER_SM<WARPS * WARP>)
    segment_moments(const T* x, Moments<Accumulator<T>>* results, Index n, unsigned segments,
                    Index length, double epsilon) {
    using A = Accumulator<T>;
    constexpr int TILE = WARPS * WARP * CHUNKS * FULL_VEC<T>;
    __shared__ A shared[WarpGroup<A, WARPS>::SHARED];
    WarpGroup<A, WARPS> warp_group(shared);
    const T* const x_row = x + Index(blockIdx.x / segments) * n;
    const Index begin = blockIdx.x % segments * length, end = min(begin + length, n);
    Moments<A> segment = {};
    for (Index tile = begin; tile < end; tile += TILE) {
        const int count = int(min(Index(TILE), end - tile));
        const T* const x_tile = x_row + tile;
        const RowTile<T, WARPS * WARP, CHUNKS> row(x_tile, count, warp_group.thread());
        const Moments<A> tile_moments =
            moments<CENTER>(row, warp_group, static_cast<A>(*x_tile), 1 / A(count), epsilon);
        if (tile == begin)
            segment = tile_moments;
        else
            segment.merge(tile_moments, A(count) / A(tile + count - begin));
    }
    if (warp_group.thread() == 0) results[blockIdx.x] = segment;
}

// Merge the moments of all threads of a group, as `moments` does with elements. All have the same
// exponent. `first` is one of their means, and `weight` is a thread's share of all elements.
template <class Group, class A>
__device__ Moments<A> merge_rescaled(Group& warp_group, const Moments<A>& local, A first,
                                     A weight, int exponent) {
    A total[1] = {weight * (local.approx_mean - first + local.mean_residual)};
    warp_group.reduce_add(total);
    const A approx_mean = first + total[0];
    const A d = local.approx_mean - approx_mean + local.mean_residual;
    A totals[2] = {weight * (local.variance + d * d), weight * d};
    warp_group.reduce_add(totals);
    return {approx_mean, totals[1], totals[0] - totals[1] * totals[1], A(exponent)};
}

// The exponent that suits the moments of all threads of a group.
template <class A, class Group>
__device__ int common_exponent(Group& warp_group, int exponent) {
    return Limits<A>::max_exponent -
           int(warp_group.reduce_max(A(Limits<A>::max_exponent - exponent)));
}

// The moments of a row from those of its segments; a thread has one segment.
template <class Group, class A>
__device__ Moments<A> merge_segments(const Moments<A>* segment_moments, unsigned segments, Index n,
                                     Index length, Group& warp_group, double epsilon) {
    const unsigned thread = warp_group.thread();
    Moments<A> first = segment_moments[0], local = {};
    A weight = 0;
    int exponent = min(target_exponent_of_square(epsilon), Limits<A>::max_exponent);
    if (thread < segments) {
        local = segment_moments[thread];
        weight = A(min(length, n - thread * length)) / A(n);
        exponent = min(exponent, local.target_exponent());
    }
    exponent = common_exponent<A>(warp_group, exponent);
    first.rescale(exponent);
    local.rescale(exponent);
    return merge_rescaled(warp_group, local, first.approx_mean, weight, exponent);
}

// Write y of one of the `tiles` tiles of a row. y may be x.
template <class T, class Gamma, class Beta, int WARPS, int CHUNKS, bool CENTER,
          ParamIndexing INDEXING>
__global__ void __launch_bounds__(WARPS* WARP, MIN_BLOCKS_PER_SM<WARPS * WARP>)
    segments_forward(const T* x, const Gamma* gamma, const Beta* beta, T* y,
                     Accumulator<T>* mean, Accumulator<T>* rstd,
                     const Moments<Accumulator<T>>* segment_moments, Index n, unsigned groups,
                     Index repeat, unsigned segments, Index length, unsigned tiles,
                     double epsilon) {
    using A = Accumulator<T>;
    constexpr int TILE = WARPS * WARP * CHUNKS * FULL_VEC<T>;
    __shared__ A shared[WarpGroup<A, WARPS>::SHARED];
    WarpGroup<A, WARPS> warp_group(shared);
    const unsigned r = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const Index begin = Index(tile) * TILE, offset = r * n + begin;
    const int count = int(min(Index(TILE), n - begin));
    const RowTile<T, WARPS * WARP, CHUNKS> row(x + offset, count, warp_group.thread());
    const Moments<A> row_moments = merge_segments(segment_moments + Index(r) * segments, segments,
                                                  n, length, warp_group, epsilon);
    const Statistics<A> row_stats(row_moments, epsilon);
    if (tile == 0 && warp_group.thread() == 0) {
        rstd[r] = row_stats.rstd();
        if (CENTER) mean[r] = row_stats.mean();
    }
    const ParamView<Gamma, INDEXING> gammas(gamma, r % groups, n, repeat, begin);
    const ParamView<Beta, INDEXING> betas(beta, r % groups, n, repeat, begin);
    normalise(row, row_stats, gammas, betas, y + offset);
}
