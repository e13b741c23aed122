// The backward pass over channels; see ln_array_api.kernels.channels for the mathematics.

// The sums over a channel that RowGradient::finish takes, without gamma. Unless NEEDS_X, only the
// sum over dy is computed.
enum { SUM_DY_X_HAT, SUM_DEVIATION, SUM_DY, NUM_SUMS };

template <class T, class Dy, int VEC, int CHUNKS, int WARPS, bool NEEDS_X>
__global__ void __launch_bounds__(WARPS* WARP, MIN_BLOCKS_PER_SM<WARPS * WARP>)
    plane_sums(const Dy* __restrict__ dy, const T* __restrict__ x,
               const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
               Accumulator<T>* __restrict__ part_sums, unsigned channels, Index spatial, Index vecs,
               Index length) {
    using A = Accumulator<T>;
    constexpr int THREADS = WARPS * WARP;
    __shared__ A shared[ThreadGroup<A, WARPS * WARP>::SHARED];
    ThreadGroup<A, WARPS * WARP> thread_group(shared);
    const unsigned channel = blockIdx.x % channels;
    const Index begin = blockIdx.x / channels * length, end = min(begin + length, vecs);
    const RowGradient<A, true> channel_grad(mean, rstd, channel);
    const A scale = range_scale(channel_grad.rstd);
    const Index first = begin + thread_group.thread();
    PlaneIterator<VEC, THREADS> it(first, channel, channels, spatial);
    A sums[NUM_SUMS] = {};
    dispatch_aligned(is_aligned<VEC>(x) && is_aligned<VEC>(dy), [&](auto aligned) {
        constexpr bool ALIGNED = decltype(aligned)::value;
        for_each_vec<THREADS, CHUNKS>(first, end, [&](auto chunks) {
            A chunk_sums[NUM_SUMS] = {};
#pragma unroll
            for (int i = 0; i < decltype(chunks)::value; ++i, it.next()) {
                A d[VEC], values[VEC];
                load_vec<ALIGNED>(dy + it.offset * VEC, d);
                if (NEEDS_X) load_vec<ALIGNED>(x + it.offset * VEC, values);
#pragma unroll
                for (int j = 0; j < VEC; ++j) {
                    chunk_sums[SUM_DY] += d[j];
                    if (NEEDS_X) {
                        const A deviation = channel_grad.deviation(values[j]);
                        chunk_sums[SUM_DY_X_HAT] += d[j] * (deviation * channel_grad.rstd);
                        chunk_sums[SUM_DEVIATION] += deviation * scale;
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < NUM_SUMS; ++k) sums[k] += chunk_sums[k];
        });
    });
    thread_group.reduce_add(sums);
    if (thread_group.thread() > 0) return;
#pragma unroll
    for (int k = 0; k < NUM_SUMS; ++k) part_sums[Index(k) * gridDim.x + blockIdx.x] = sums[k];
}

template <class T, class Dy, int VEC, int ROWS, bool NEEDS_X>
__global__ void __launch_bounds__(COLUMN_THREADS, MIN_BLOCKS_PER_SM<COLUMN_THREADS>)
    column_sums(const Dy* __restrict__ dy, const T* __restrict__ x,
                const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
                Accumulator<T>* __restrict__ part_sums, Index channels, Index spatial,
                Index row_length, Index rows, Index last_row_length, Index length, unsigned tiles,
                int thread_cols) {
    using A = Accumulator<T>;
    __shared__ PaddedShared<A, VEC> shared_sums[NUM_SUMS];
    const unsigned tile_index = blockIdx.x % tiles, part = blockIdx.x / tiles;
    const unsigned parts = gridDim.x / tiles;
    const ColumnTile<VEC> tile(tile_index, part, thread_cols, row_length, rows, last_row_length,
                               length);
    A sums[NUM_SUMS][VEC] = {};
    if (!tile.is_empty()) {
        const ChannelValues<VEC, false> channel_values(tile.column, channels, spatial);
        A means[VEC], rstds[VEC];
        channel_values.load(mean, means);
        channel_values.load(rstd, rstds);
        Index offset = tile.first_offset(row_length);
        dispatch_aligned(is_aligned<VEC>(x) && is_aligned<VEC>(dy), [&](auto aligned) {
            constexpr bool ALIGNED = decltype(aligned)::value;
            tile.template for_each_row<ROWS>([&](auto rows) {
                A chunk_sums[NUM_SUMS][VEC] = {};
#pragma unroll
                for (int i = 0; i < decltype(rows)::value; ++i) {
                    A d[VEC], values[VEC];
                    load_whole_vec<ALIGNED>(dy + offset, d);
                    if (NEEDS_X) load_whole_vec<ALIGNED>(x + offset, values);
#pragma unroll
                    for (int j = 0; j < VEC; ++j) {
                        chunk_sums[SUM_DY][j] += d[j];
                        if (NEEDS_X) {
                            const A deviation = values[j] - means[j];
                            chunk_sums[SUM_DY_X_HAT][j] += d[j] * (deviation * rstds[j]);
                            chunk_sums[SUM_DEVIATION][j] += deviation * range_scale(rstds[j]);
                        }
                    }
                    offset += tile.thread_rows * row_length;
                }
#pragma unroll
                for (int k = 0; k < NUM_SUMS; ++k)
#pragma unroll
                    for (int j = 0; j < VEC; ++j) sums[k][j] += chunk_sums[k][j];
            });
        });
    }
#pragma unroll
    for (int k = 0; k < NUM_SUMS; ++k)
#pragma unroll
        for (int j = 0; j < VEC; ++j) shared_sums[k].at(threadIdx.x, j) = sums[k][j];
    __syncthreads();
    for (int c = threadIdx.x; c < thread_cols * VEC; c += COLUMN_THREADS) {
        const Index column = Index(tile_index) * thread_cols * VEC + c;
        if (column >= row_length) continue;
#pragma unroll
        for (int k = 0; k < NUM_SUMS; ++k) {
            A sum = 0;
            for (int row = 0; row < tile.thread_rows; ++row)
                sum += shared_sums[k].at(row * thread_cols + c / VEC, c % VEC);
            part_sums[(Index(k) * parts + part) * row_length + column] = sum;
        }
    }
}

// The rows of channel_constants, which have an element for each channel.
enum { X_HAT_MEAN, MEAN_DY, PROJECTION };

// Add up the sums of parts. `inv_count` is 1 over the number of elements of a channel.
template <class A, class Result, int WARPS, int CHANNELS>
__global__ void __launch_bounds__(WARPS* CHANNELS* WARP, MIN_BLOCKS_PER_SM<WARPS * CHANNELS * WARP>)
    channel_gradients(const A* __restrict__ part_sums, const A* __restrict__ mean,
                      const A* __restrict__ rstd, A* __restrict__ channel_constants,
                      Result* __restrict__ dgamma, Result* __restrict__ dbeta, Index channels,
                      Index spatial, Index row_length, Index rows, Index last_row_length,
                      Index length, Index parts, double inv_count) {
    __shared__ A shared[ThreadGroup<A, WARPS * WARP>::SHARED];
    ThreadGroup<A, WARPS * WARP> thread_group(shared);
    const Index channel = Index(blockIdx.x) * CHANNELS + thread_group.index();
    if (channel >= channels) return;
    const PartialsLayout layout(channel, channels, spatial, row_length, rows, last_row_length,
                                length, parts);
    CompensatedSum<A> thread_sums[NUM_SUMS];
    for (Index entry = thread_group.thread(); entry < layout.entries; entry += WARPS * WARP) {
        Index entry_rows;
        const Index offset = layout.offset(entry, entry_rows);
#pragma unroll
        for (int k = 0; k < NUM_SUMS; ++k)
            thread_sums[k].add(part_sums[k * parts * row_length + offset]);
    }
    A sums[NUM_SUMS] = {thread_sums[SUM_DY_X_HAT].total(), thread_sums[SUM_DEVIATION].total(),
                        thread_sums[SUM_DY].total()};
    thread_group.reduce_add(sums);
    if (thread_group.thread() > 0) return;
    RowGradient<A, true> channel_grad(mean, rstd, channel);
    channel_grad.finish(sums, A(inv_count));
    channel_constants[X_HAT_MEAN * channels + channel] = channel_grad.x_hat_mean;
    channel_constants[MEAN_DY * channels + channel] = channel_grad.mean_g;
    channel_constants[PROJECTION * channels + channel] = channel_grad.projection;
    if (dgamma)
        dgamma[channel] =
            static_cast<Result>(sums[SUM_DY_X_HAT] - channel_grad.x_hat_mean * sums[SUM_DY]);
    if (dbeta) dbeta[channel] = static_cast<Result>(sums[SUM_DY]);
}

template <class T, class Dy, class Gamma, int VEC, bool ONE_CHANNEL>
__global__ void __launch_bounds__(COLUMN_THREADS, MIN_BLOCKS_PER_SM<COLUMN_THREADS>)
    channels_dx(const Dy* __restrict__ dy, const T* __restrict__ x,
                const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
                const Accumulator<T>* __restrict__ channel_constants,
                const Gamma* __restrict__ gamma, T* __restrict__ dx, Index channels, Index spatial,
                Index row_length, Index rows, Index last_row_length, Index length, unsigned tiles,
                int thread_cols) {
    using A = Accumulator<T>;
    constexpr int N = ChannelValues<VEC, ONE_CHANNEL>::N;
    const unsigned block = gridDim.x - 1 - blockIdx.x;
    const ColumnTile<VEC> tile(block % tiles, block / tiles, thread_cols, row_length, rows,
                               last_row_length, length);
    if (tile.is_empty()) return;
    const ChannelValues<VEC, ONE_CHANNEL> channel_values(tile.column, channels, spatial);
    A means[N], rstds[N], x_hat_mean[N], mean_dy[N], projection[N], gammas[N];
    channel_values.load(mean, means);
    channel_values.load(rstd, rstds);
    channel_values.load(channel_constants + X_HAT_MEAN * channels, x_hat_mean);
    channel_values.load(channel_constants + MEAN_DY * channels, mean_dy);
    channel_values.load(channel_constants + PROJECTION * channels, projection);
    channel_values.load(gamma, gammas, A(1));
    Index offset = tile.first_offset(row_length);
    const bool all_aligned = is_aligned<VEC>(x) && is_aligned<VEC>(dy) && is_aligned<VEC>(dx);
    dispatch_aligned(all_aligned, [&](auto aligned) {
        constexpr bool ALIGNED = decltype(aligned)::value;
#pragma unroll 2
        for (Index r = tile.begin + tile.thread_row; r < tile.end; r += tile.thread_rows) {
            A values[VEC], d[VEC];
            load_vec<ALIGNED>(x + offset, values);
            load_vec<ALIGNED>(dy + offset, d);
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                const int c = ONE_CHANNEL ? 0 : j;
                const A x_hat = fma(values[j] - means[c], rstds[c], -x_hat_mean[c]);
                values[j] = (d[j] - mean_dy[c] - x_hat * projection[c]) * gammas[c] * rstds[c];
            }
            store_vec<ALIGNED>(dx + offset, values);
            offset += tile.thread_rows * row_length;
        }
    });
}
