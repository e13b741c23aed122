// The forward pass over rows; see ln_array_api.kernels.rows for the mathematics.
//
// Rows that fit into a block's registers are read once, by `rows_forward`, unless their squares are
// out of range. Longer rows are split, by their length alone. `segment_moments` has a block for
// each segment of a row. `segments_forward` has a block for each tile, which is as much of a row as
// a block keeps in registers; each block merges all moments of its row.

// A thread's chunks of a row, or of a tile of it, in registers: as many bytes as in memory, since
// each visit converts them.
template <class T, int THREADS, int CHUNKS>
struct RowTile {
    using A = Accumulator<T>;
    static constexpr int VEC = FULL_VEC<T>;
    // They do not suffice for gamma and beta at a time.
    static constexpr bool HAS_FEW_REGISTERS = THREADS == MAX_THREADS;
    const T* ptr;
    int n, thread;
    RawChunk<T, VEC> chunks[CHUNKS];

    __device__ RowTile(const T* row, int n, int thread) : ptr(row), n(n), thread(thread) { load(); }

    __device__ void load() { load_chunks<THREADS>(ptr, n, thread, chunks); }

    // Call `visit` with the values of each chunk, their number, and the index of the first. The
    // number is a Constant where the chunk is whole, if the arrays that it goes to are `aligned`.
    template <class Visit>
    __device__ void for_each_chunk(Visit visit, bool aligned = true) const {
        // Each visit computes the indices of chunks anew, since to keep them takes registers. Where
        // these are few, the assembler must not know them either: it knows no result of a shuffle.
        int begin = thread * VEC;
        if (HAS_FEW_REGISTERS) begin = __shfl_xor_sync(ALL_LANES, begin, 0);
        int remaining = n - begin;
        forget(remaining);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = begin + i * THREADS * VEC, count = remaining - i * THREADS * VEC;
            if (count <= 0) continue;
            A values[VEC];
            chunks[i].convert(values);
            if (aligned && count >= VEC)
                visit(values, Constant<VEC>(), c);
            else
                visit(values, min(count, VEC), c);
        }
    }

    // The same with the chunks read again, and converted one after the other.
    template <class Visit>
    __device__ void for_each_chunk_again(Visit visit) const {
#pragma unroll 1
        for (int c = thread * VEC; c < n; c += THREADS * VEC) {
            const int count = min(VEC, n - c);
            A values[VEC];
#pragma unroll
            for (int j = 0; j < VEC; ++j) values[j] = j < count ? static_cast<A>(ptr[c + j]) : A(0);
            visit(values, count, c);
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

// The moments of a row times `scale`. `for_each_chunk` visits the chunks of each thread.
// `first` is any element of the row, and `inv_count` is 1 over their number.
template <bool CENTER, int VEC, class ForEachChunk, class Group, class A>
__device__ Moments<A> moments_with_scale(ForEachChunk for_each_chunk, Group& thread_group, A first,
                                         A inv_count, A scale, A exponent) {
    A approx_mean = 0;
    if (CENTER) {
        CompensatedSum<A> sum;
        for_each_chunk([&](const A(&x)[VEC], auto count, int) {
            A chunk_sum = 0;
#pragma unroll
            for (int j = 0; j < VEC; ++j)
                if (j < count) chunk_sum += x[j] * scale - first * scale;
            sum.add(chunk_sum);
        });
        A total[1] = {sum.total()};
        thread_group.reduce_add(total);
        approx_mean = fma(total[0], inv_count, first * scale);
    }
    CompensatedSum<A> sum_d, sum_d2;
    for_each_chunk([&](const A(&x)[VEC], auto count, int) {
        A chunk_d = 0, chunk_d2 = 0;
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
            if (j < count) {
                const A d = x[j] * scale - approx_mean;
                if (CENTER) chunk_d += d;
                chunk_d2 = fma(d, d, chunk_d2);
            }
        }
        if (CENTER) sum_d.add(chunk_d);
        sum_d2.add(chunk_d2);
    });
    A totals[2] = {sum_d2.total(), sum_d.total()};
    if (CENTER) {
        thread_group.reduce_add(totals);
    } else {
        A total_d2[1] = {totals[0]};
        thread_group.reduce_add(total_d2);
        totals[0] = total_d2[0];
    }
    const A mean_residual = totals[1] * inv_count;
    const A variance = fma(totals[0], inv_count, -mean_residual * mean_residual);
    return {approx_mean, mean_residual, variance, exponent};
}

// The moments of a row; each thread of a group has a tile of it. Where squares are out of range,
// the row is read again and scaled; and again for what follows, so that it takes no registers here.
template <bool CENTER, class Tile, class Group, class A = typename Tile::A>
__device__ Moments<A> moments(Tile& row, Group& thread_group, A first, A inv_count,
                              double epsilon) {
    constexpr int VEC = Tile::VEC;
    const Moments<A> unscaled = moments_with_scale<CENTER, VEC>(
        [&](auto visit) { row.for_each_chunk(visit); }, thread_group, first, inv_count, A(1), A(0));
    const A variance_plus_epsilon = unscaled.variance + A(epsilon);
    const bool is_in_range = variance_plus_epsilon >= Limits<A>::min_mean_square &&
                             variance_plus_epsilon <= Limits<A>::max_finite;
    if (thread_group.holds_in_warp(is_in_range)) return unscaled;
    A max_abs = 0;
    row.for_each_chunk_again([&](const A(&x)[VEC], int, int) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) max_abs = max(max_abs, abs(x[j]));
    });
    const int target =
        min(target_exponent(thread_group.reduce_max(max_abs)), target_exponent_of_square(epsilon));
    const Moments<A> scaled = moments_with_scale<CENTER, VEC>(
        [&](auto visit) { row.for_each_chunk_again(visit); }, thread_group, first, inv_count,
        scalbn(A(1), target), A(target));
    row.load();
    return is_in_range ? unscaled : scaled;
}

// What normalises an element of a row: (x * scale - approx_mean - mean_residual) * scaled_rstd. The
// residual is multiplied first, so that the difference is rounded once.
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

    __device__ A x_hat(A x) const {
        return fma(x * scale - approx_mean, scaled_rstd, -mean_residual * scaled_rstd);
    }
    __device__ A rstd() const { return scaled_rstd * scale; }
    __device__ A mean() const { return scalbn(approx_mean + mean_residual, -exponent); }
};

// Write y of a row, or of a tile of it, to where it begins.
template <class Tile, class T, class Params, class A = typename Tile::A>
__device__ void normalise(const Tile& row, const Statistics<A>& row_stats, const Params& gammas,
                          const Params& betas, T* y) {
    constexpr int VEC = Tile::VEC;
    const bool aligned = is_aligned<VEC>(y) && gammas.is_aligned() && betas.is_aligned();
    const auto write = [&](const A(&values)[VEC], auto count, int c) {
        A result[VEC], scales[VEC];
#pragma unroll
        for (int j = 0; j < VEC; ++j) result[j] = row_stats.x_hat(values[j]);
        if constexpr (Tile::HAS_FEW_REGISTERS) {
            if (gammas.ptr) {
                gammas.load(c, count, scales);
#pragma unroll
                for (int j = 0; j < VEC; ++j) result[j] *= scales[j];
            }
            if (betas.ptr) {
                betas.load(c, count, scales);
#pragma unroll
                for (int j = 0; j < VEC; ++j) result[j] += scales[j];
            }
        } else {
            A shifts[VEC];
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                scales[j] = 1;
                shifts[j] = A(-0.);  // adds nothing, also to a -0
            }
            if (gammas.ptr) gammas.load(c, count, scales);
            if (betas.ptr) betas.load(c, count, shifts);
#pragma unroll
            for (int j = 0; j < VEC; ++j) result[j] = fma(result[j], scales[j], shifts[j]);
        }
        store(y + c, count, result);
    };
    row.for_each_chunk(write, aligned);
}

// A block has ROWS rows, each for a group of THREADS threads. y may be x. mean is null where CENTER
// is false, and gamma and beta are null where they are absent.
template <class T, class Param, int THREADS, int ROWS, int CHUNKS, bool CENTER,
          ParamIndexing INDEXING>
__global__ void __launch_bounds__(THREADS* ROWS, MIN_BLOCKS_PER_SM<THREADS * ROWS>)
    rows_forward(const T* x, const Param* gamma, const Param* beta, T* y, Accumulator<T>* mean,
                 Accumulator<T>* rstd, Index m, Index n, unsigned groups, Index repeat,
                 double inv_count, double epsilon) {
    using A = Accumulator<T>;
    static_assert(THREADS <= WARP || ROWS == 1);
    __shared__ A shared[ThreadGroup<A, THREADS>::SHARED];
    ThreadGroup<A, THREADS> thread_group(shared);
    const Index r = Index(blockIdx.x) * ROWS + thread_group.index();
    const bool exists = r < m;  // other rows of a warp do without elements
    if (THREADS >= WARP && !exists) return;
    const T* const x_row = x + min(r, m - 1) * n;
    const T first_element = x_row[0];  // used only when all loads have been issued
    RowTile<T, THREADS, CHUNKS> row(x_row, exists ? int(n) : 0, thread_group.thread());
    const A first = static_cast<A>(first_element);
    const Statistics<A> row_stats(moments<CENTER>(row, thread_group, first, A(inv_count), epsilon),
                                  epsilon);
    if (exists && thread_group.thread() == 0) {
        rstd[r] = row_stats.rstd();
        if (CENTER) mean[r] = row_stats.mean();
    }
    const unsigned group_index = (blockIdx.x % groups * ROWS + unsigned(r % ROWS)) % groups;
    const ParamView<Param, INDEXING> gammas(gamma, group_index, n, repeat);
    const ParamView<Param, INDEXING> betas(beta, group_index, n, repeat);
    normalise(row, row_stats, gammas, betas, y + r * n);
}

// The moments of the `segments` segments of each row. All but the last have `length` elements. A
// block goes through its segment tile by tile, since registers hold one tile.
template <class T, int THREADS, int CHUNKS, bool CENTER>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<THREADS>)
    segment_moments(const T* x, Moments<Accumulator<T>>* results, Index n, unsigned segments,
                    Index length, double epsilon) {
    using A = Accumulator<T>;
    constexpr int TILE = THREADS * CHUNKS * FULL_VEC<T>;
    __shared__ A shared[ThreadGroup<A, THREADS>::SHARED];
    ThreadGroup<A, THREADS> thread_group(shared);
    const T* const x_row = x + Index(blockIdx.x / segments) * n;
    const Index begin = blockIdx.x % segments * length, end = min(begin + length, n);
    Moments<A> segment = {};
    for (Index tile = begin; tile < end; tile += TILE) {
        const int count = int(min(Index(TILE), end - tile));
        const T* const x_tile = x_row + tile;
        const T first = *x_tile;
        RowTile<T, THREADS, CHUNKS> row(x_tile, count, thread_group.thread());
        const Moments<A> tile_moments =
            moments<CENTER>(row, thread_group, static_cast<A>(first), 1 / A(count), epsilon);
        if (tile == begin)
            segment = tile_moments;
        else
            segment.merge(tile_moments, A(count) / A(tile + count - begin));
    }
    if (thread_group.thread() == 0) results[blockIdx.x] = segment;
}

// Merge the moments of all threads of a group, as `moments` does with elements. All have the same
// exponent. `first` is one of their means, and `weight` is a thread's share of all elements.
template <class Group, class A>
__device__ Moments<A> merge_rescaled(Group& thread_group, const Moments<A>& local, A first,
                                     A weight, int exponent) {
    A total[1] = {weight * (local.approx_mean - first + local.mean_residual)};
    thread_group.reduce_add(total);
    const A approx_mean = first + total[0];
    const A d = local.approx_mean - approx_mean + local.mean_residual;
    A totals[2] = {weight * (local.variance + d * d), weight * d};
    thread_group.reduce_add(totals);
    return {approx_mean, totals[1], totals[0] - totals[1] * totals[1], A(exponent)};
}

// The exponent that suits the moments of all threads of a group.
template <class A, class Group>
__device__ int common_exponent(Group& thread_group, int exponent) {
    return Limits<A>::max_exponent -
           int(thread_group.reduce_max(A(Limits<A>::max_exponent - exponent)));
}

// The moments of a row from those of its segments; a thread has one segment.
template <class Group, class A>
__device__ Moments<A> merge_segments(const Moments<A>* segment_moments, unsigned segments, Index n,
                                     Index length, Group& thread_group, double epsilon) {
    const unsigned thread = thread_group.thread();
    Moments<A> first = segment_moments[0], local = {};
    A weight = 0;
    int exponent = min(target_exponent_of_square(epsilon), Limits<A>::max_exponent);
    if (thread < segments) {
        local = segment_moments[thread];
        weight = A(min(length, n - thread * length)) / A(n);
        exponent = min(exponent, local.target_exponent());
    }
    exponent = common_exponent<A>(thread_group, exponent);
    first.rescale(exponent);
    local.rescale(exponent);
    return merge_rescaled(thread_group, local, first.approx_mean, weight, exponent);
}

// Write y of one of the `tiles` tiles of a row. y may be x.
template <class T, class Param, int THREADS, int CHUNKS, bool CENTER,
          ParamIndexing INDEXING>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<THREADS>)
    segments_forward(const T* x, const Param* gamma, const Param* beta, T* y,
                     Accumulator<T>* mean, Accumulator<T>* rstd,
                     const Moments<Accumulator<T>>* segment_moments, Index n, unsigned groups,
                     Index repeat, unsigned segments, Index length, unsigned tiles,
                     double epsilon) {
    using A = Accumulator<T>;
    constexpr int TILE = THREADS * CHUNKS * FULL_VEC<T>;
    __shared__ A shared[ThreadGroup<A, THREADS>::SHARED];
    ThreadGroup<A, THREADS> thread_group(shared);
    const unsigned r = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const Index begin = Index(tile) * TILE, offset = r * n + begin;
    const int count = int(min(Index(TILE), n - begin));
    const RowTile<T, THREADS, CHUNKS> row(x + offset, count, thread_group.thread());
    const Moments<A> row_moments = merge_segments(segment_moments + Index(r) * segments, segments,
                                                  n, length, thread_group, epsilon);
    const Statistics<A> row_stats(row_moments, epsilon);
    if (tile == 0 && thread_group.thread() == 0) {
        rstd[r] = row_stats.rstd();
        if (CENTER) mean[r] = row_stats.mean();
    }
    const ParamView<Param, INDEXING> gammas(gamma, r % groups, n, repeat, begin);
    const ParamView<Param, INDEXING> betas(beta, r % groups, n, repeat, begin);
    normalise(row, row_stats, gammas, betas, y + offset);
}
