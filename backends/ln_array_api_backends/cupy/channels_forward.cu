// The forward pass over channels; see ln_array_api.kernels.channels for the mathematics.

// A thread's vectors, which are read from memory again. It has the members that `moments` uses of a
// RowTile.
template <class T, int VEC_, class Iterator>
struct MemoryTile {
    using A = Accumulator<T>;
    static constexpr int VEC = VEC_;
    const T* x;
    Iterator start;
    int vecs;
    bool aligned;

    template <class Visit>
    __device__ void for_each_chunk(Visit visit) const {
        Iterator it = start;
        for (int i = 0; i < vecs; ++i, it.next()) {
            A values[VEC];
            dispatch_aligned(aligned, [&](auto aligned) {
                load_vec<decltype(aligned)::value>(x + it.offset * VEC, values);
            });
            visit(values, VEC, 0);
        }
    }
    template <class Visit>
    __device__ void for_each_chunk_again(Visit visit) const {
        for_each_chunk(visit);
    }
    __device__ void load() const {}  // since nothing is kept
    __device__ A first() const { return static_cast<A>(x[start.offset * VEC]); }
};

// A group of one thread, in place of a ThreadGroup.
struct SingleThread {
    template <class A, int K>
    __device__ void reduce_add(A (&)[K]) {}
    template <class A>
    __device__ A reduce_max(A value) {
        return value;
    }
    __device__ static bool holds_in_warp(bool condition) { return condition; }
};

// Moments of a thread's elements, which are read again because their squares may be out of range.
template <class T, int VEC, class Iterator, class A = Accumulator<T>>
__device__ Moments<A> scaled_moments(const MemoryTile<T, VEC, Iterator>& tile, A epsilon) {
    SingleThread group;
    return moments<true>(tile, group, tile.first(), 1 / A(tile.vecs * VEC), epsilon);
}

template <class A>
__device__ bool is_in_range(A variance_plus_epsilon) {
    return variance_plus_epsilon >= Limits<A>::min_mean_square &&
           variance_plus_epsilon <= Limits<A>::max_finite;
}

// The moments of some values, without regard to their range.
template <class A, int N>
__device__ Moments<A> unscaled_moments(const A (&values)[N]) {
    A sum = 0, sum_d = 0, sum_d2 = 0;
#pragma unroll
    for (int j = 1; j < N; ++j) sum += values[j] - values[0];
    const A approx_mean = values[0] + sum * A(1. / N);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const A d = values[j] - approx_mean;
        sum_d += d;
        sum_d2 += d * d;
    }
    const A mean_residual = sum_d * A(1. / N);
    return {approx_mean, mean_residual, sum_d2 * A(1. / N) - mean_residual * mean_residual, 0};
}

// Moments that a thread accumulates, beginning at the first value.
template <class A, int VEC>
struct RunningMoments {
    Moments<A> moments[VEC] = {};
    int count = 0;

    // Add N values to each of VEC moments.
    template <int N>
    __device__ void add(const A (&values)[VEC][N]) {
        if (count == 0) {
#pragma unroll
            for (int j = 0; j < VEC; ++j) moments[j].approx_mean = values[j][0];
        }
        count += N;
        const A weight = A(N) / A(count);
#pragma unroll
        for (int j = 0; j < VEC; ++j)
            moments[j].merge_unscaled(unscaled_moments(values[j]), weight);
    }
};

// Merge moments. Most need no scale, and finding one takes as long as adding up many elements.
template <class A>
__device__ void merge(Moments<A>& all, const Moments<A>& other, A weight, A epsilon) {
    if (all.exponent == 0 && other.exponent == 0) {
        Moments<A> both = all;
        both.merge_unscaled(other, weight);
        if (is_in_range(both.variance + epsilon)) {
            all = both;
            return;
        }
    }
    all.merge(other, weight);
}

// Merge the moments of all threads of a group; `weight` is a thread's share of all elements, which
// is not 0 in the first.
template <class Group, class A>
__device__ Moments<A> merge_block(Group& thread_group, Moments<A> local, A weight, A epsilon) {
    int exponent = target_exponent_of_square(epsilon);
    if (weight > 0) exponent = min(exponent, local.target_exponent());
    exponent = common_exponent<A>(thread_group, exponent);
    local.rescale(exponent);
    A first[1] = {thread_group.thread() == 0 ? local.approx_mean : A(0)};
    thread_group.reduce_add(first);
    return merge_rescaled(thread_group, local, first[0], weight, exponent);
}

// The moments of each part of the `vecs` vectors of a channel. All parts but the last have `length`
// vectors.
template <class T, int VEC, int CHUNKS, int WARPS>
__global__ void __launch_bounds__(WARPS* WARP, MIN_BLOCKS_PER_SM<WARPS * WARP>)
    plane_moments(const T* __restrict__ x, Moments<Accumulator<T>>* __restrict__ part_moments,
                  unsigned channels, Index spatial, Index vecs, Index length, double epsilon) {
    using A = Accumulator<T>;
    constexpr int THREADS = WARPS * WARP;
    using Iterator = PlaneIterator<VEC, THREADS>;
    __shared__ A shared[ThreadGroup<A, WARPS * WARP>::SHARED];
    ThreadGroup<A, WARPS * WARP> thread_group(shared);
    const Index begin = blockIdx.x / channels * length, end = min(begin + length, vecs);
    const bool aligned = is_aligned<VEC>(x);
    const Iterator start(begin + thread_group.thread(), blockIdx.x % channels, channels, spatial);
    Iterator it = start;
    RunningMoments<A, 1> running;
    const auto add = [&](auto aligned, auto chunks) {
        constexpr int N = decltype(chunks)::value;
        A values[1][N * VEC];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            A vec[VEC];
            load_vec<decltype(aligned)::value>(x + it.offset * VEC, vec);
            it.next();
#pragma unroll
            for (int j = 0; j < VEC; ++j) values[0][i * VEC + j] = vec[j];
        }
        running.add(values);
    };
    dispatch_aligned(aligned, [&](auto aligned) {
        for_each_vec<THREADS, CHUNKS>(begin + thread_group.thread(), end,
                                      [&](auto chunks) { add(aligned, chunks); });
    });
    const int count = running.count;
    Moments<A> local = running.moments[0];
    if (count > 0 && !is_in_range(local.variance + A(epsilon)))
        local = scaled_moments(MemoryTile<T, VEC, Iterator>{x, start, count / VEC, aligned},
                               A(epsilon));
    const A weight = A(count) / A((end - begin) * VEC);
    const Moments<A> part = merge_block(thread_group, local, weight, A(epsilon));
    if (thread_group.thread() == 0) part_moments[blockIdx.x] = part;
}

// An exponent is stored in 16 bits, so that two blocks fit into 64 KiB.
template <class A, int VEC>
struct SharedMoments {
    PaddedShared<A, VEC> approx_mean, mean_residual, variance;
    PaddedShared<short, VEC> exponent;

    __device__ void set(int thread, int j, const Moments<A>& moments) {
        approx_mean.at(thread, j) = moments.approx_mean;
        mean_residual.at(thread, j) = moments.mean_residual;
        variance.at(thread, j) = moments.variance;
        exponent.at(thread, j) = short(moments.exponent);
    }
    __device__ Moments<A> get(int thread, int j) {
        return {approx_mean.at(thread, j), mean_residual.at(thread, j), variance.at(thread, j),
                A(exponent.at(thread, j))};
    }
};

// The moments of each part of the rows of each column. All parts but the last have `length` rows. A
// thread reads ROWS rows at a time.
template <class T, int VEC, int ROWS>
__global__ void __launch_bounds__(COLUMN_THREADS, MIN_BLOCKS_PER_SM<COLUMN_THREADS>)
    column_moments(const T* __restrict__ x, Moments<Accumulator<T>>* __restrict__ part_moments,
                   Index row_length, Index rows, Index last_row_length, Index length,
                   unsigned tiles, int thread_cols, double epsilon) {
    using A = Accumulator<T>;
    __shared__ SharedMoments<A, VEC> shared_moments;
    const unsigned tile_index = blockIdx.x % tiles, part = blockIdx.x / tiles;
    const ColumnTile<VEC> tile(tile_index, part, thread_cols, row_length, rows, last_row_length,
                               length);
    const Index step = tile.thread_rows * row_length, start = tile.first_offset(row_length);
    const T* ptr = x + start;
    RunningMoments<A, VEC> running;
    dispatch_aligned(is_aligned<VEC>(x), [&](auto aligned) {
        tile.template for_each_row<ROWS>([&](auto rows) {
            constexpr int N = decltype(rows)::value;
            A values[VEC][N];
#pragma unroll
            for (int i = 0; i < N; ++i, ptr += step) {
                A vec[VEC];
                load_vec<decltype(aligned)::value>(ptr, vec);
#pragma unroll
                for (int j = 0; j < VEC; ++j) values[j][i] = vec[j];
            }
            running.add(values);
        });
    });
    const int count = running.count;
#pragma unroll
    for (int j = 0; j < VEC; ++j) shared_moments.set(threadIdx.x, j, running.moments[j]);
    if (count > 0) {
#pragma unroll 1
        for (int j = 0; j < VEC; ++j) {
            if (is_in_range(shared_moments.variance.at(threadIdx.x, j) + A(epsilon))) continue;
            const MemoryTile<T, 1, ColumnIterator> column{x, {start + j, step}, count, true};
            shared_moments.set(threadIdx.x, j, scaled_moments(column, A(epsilon)));
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < thread_cols * VEC; c += COLUMN_THREADS) {
        const Index column = Index(tile_index) * thread_cols * VEC + c;
        if (column >= row_length) continue;
        const int height =
            int(min(tile.begin + length, rows - (column >= last_row_length)) - tile.begin);
        Moments<A> all = {};
        int merged = 0;
        for (int row = 0; row < tile.thread_rows && row < height; ++row) {
            const int count = (height - row + tile.thread_rows - 1) / tile.thread_rows;
            const Moments<A> moments = shared_moments.get(row * thread_cols + c / VEC, c % VEC);
            merged += count;
            if (row == 0)
                all = moments;
            else
                merge(all, moments, A(count) / A(merged), A(epsilon));
        }
        part_moments[part * row_length + column] = all;
    }
}

// The rows of channel_constants, which have an element for each channel.
enum { SCALE, APPROX_MEAN, MEAN_RESIDUAL, SCALED_RSTD };

// Statistics of a channel, which has `count` elements, from the moments of its parts.
template <class A, int WARPS, int CHANNELS>
__global__ void __launch_bounds__(WARPS* CHANNELS* WARP, MIN_BLOCKS_PER_SM<WARPS * CHANNELS * WARP>)
    channel_statistics(const Moments<A>* __restrict__ part_moments,
                       A* __restrict__ channel_constants, A* __restrict__ mean,
                       A* __restrict__ var, A* __restrict__ rstd, Index channels, Index spatial,
                       Index row_length, Index rows, Index last_row_length, Index length,
                       Index parts, Index count, double epsilon) {
    __shared__ A shared[ThreadGroup<A, WARPS * WARP>::SHARED];
    ThreadGroup<A, WARPS * WARP> thread_group(shared);
    const Index channel = Index(blockIdx.x) * CHANNELS + thread_group.index();
    if (channel >= channels) return;
    const PartialsLayout layout(channel, channels, spatial, row_length, rows, last_row_length,
                                length, parts);
    Moments<A> local = {};
    Index merged = 0;
    for (Index entry = thread_group.thread(); entry < layout.entries; entry += WARPS * WARP) {
        Index entry_rows;
        const Index offset = layout.offset(entry, entry_rows);
        if (entry_rows <= 0) continue;
        merged += entry_rows;
        if (merged == entry_rows)
            local = part_moments[offset];
        else
            merge(local, part_moments[offset], A(entry_rows) / A(merged), A(epsilon));
    }
    const Moments<A> all = merge_block(thread_group, local, A(merged) / A(count), A(epsilon));
    if (thread_group.thread() > 0) return;
    const Statistics<A> statistics(all, A(epsilon));
    channel_constants[SCALE * channels + channel] = statistics.scale;
    channel_constants[APPROX_MEAN * channels + channel] = statistics.approx_mean;
    channel_constants[MEAN_RESIDUAL * channels + channel] = statistics.mean_residual;
    channel_constants[SCALED_RSTD * channels + channel] = statistics.scaled_rstd;
    mean[channel] = statistics.mean();
    var[channel] = scalbn(all.variance, -2 * statistics.exponent);
    rstd[channel] = statistics.rstd();
}

// Write y from the results of channel_statistics, or where these are null, from a mean and variance
// that are given.
template <class T, class Param, int VEC, bool ONE_CHANNEL>
__global__ void __launch_bounds__(COLUMN_THREADS, MIN_BLOCKS_PER_SM<COLUMN_THREADS>)
    channels_normalise(const T* __restrict__ x,
                       const Accumulator<T>* __restrict__ channel_constants,
                       const Accumulator<T>* __restrict__ mean,
                       const Accumulator<T>* __restrict__ var, const Param* __restrict__ gamma,
                       const Param* __restrict__ beta, T* __restrict__ y, Index channels,
                       Index spatial, Index row_length, Index rows, Index last_row_length,
                       Index length, unsigned tiles, int thread_cols, double epsilon) {
    using A = Accumulator<T>;
    constexpr int N = ChannelValues<VEC, ONE_CHANNEL>::N;
    const unsigned block = gridDim.x - 1 - blockIdx.x;
    const ColumnTile<VEC> tile(block % tiles, block / tiles, thread_cols, row_length, rows,
                               last_row_length, length);
    if (tile.is_empty()) return;
    const ChannelValues<VEC, ONE_CHANNEL> channel_values(tile.column, channels, spatial);
    A scale[N], approx_mean[N], mean_residual[N], scaled_rstd[N], gammas[N], betas[N];
    if (channel_constants) {
        channel_values.load(channel_constants + SCALE * channels, scale);
        channel_values.load(channel_constants + APPROX_MEAN * channels, approx_mean);
        channel_values.load(channel_constants + MEAN_RESIDUAL * channels, mean_residual);
        channel_values.load(channel_constants + SCALED_RSTD * channels, scaled_rstd);
    } else {
        channel_values.load(mean, approx_mean);
        channel_values.load(var, scaled_rstd);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            scale[j] = 1;
            mean_residual[j] = 0;
            scaled_rstd[j] = reciprocal_sqrt(scaled_rstd[j] + A(epsilon));
        }
    }
    channel_values.load(gamma, gammas, A(1));
    channel_values.load(beta, betas, A(0));
    Index offset = tile.first_offset(row_length);
    dispatch_aligned(is_aligned<VEC>(x) && is_aligned<VEC>(y), [&](auto aligned) {
        constexpr bool ALIGNED = decltype(aligned)::value;
#pragma unroll 4
        for (Index r = tile.begin + tile.thread_row; r < tile.end; r += tile.thread_rows) {
            A values[VEC];
            load_vec<ALIGNED>(x + offset, values);
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                const int c = ONE_CHANNEL ? 0 : j;
                const A x_hat =
                    (values[j] * scale[c] - approx_mean[c] - mean_residual[c]) * scaled_rstd[c];
                values[j] = x_hat * gammas[c] + betas[c];
            }
            store_vec<ALIGNED>(y + offset, values);
            offset += tile.thread_rows * row_length;
        }
    });
}
