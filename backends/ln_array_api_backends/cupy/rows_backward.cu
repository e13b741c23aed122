// The backward pass over rows; see ln_array_api.kernels.rows for the mathematics.
//
// Gradients of parameters are sums over rows. For each row number modulo `groups` there are
// `num_partials` blocks, which take such rows in turn; each stores its sums at
// partials[partial][row mod groups][element of the row], and a last kernel adds these up. Where
// whole chunks share a parameter, a block has one sum for each chunk instead of each element. The
// pointer of an array that is absent, or not needed, is null.
//
// Rows that are too long for a block are split, by their length alone. `segment_sums` has a block
// for each segment of a row. `segments_backward` has one for each tile; each block adds up the sums
// of the segments of its rows.

// What dx needs of a row. With g = dy * gamma, dx = (g - mean_g - x_hat * projection) * rstd.
template <class A, bool CENTER>
struct RowGradient {
    A mean, rstd;
    A x_hat_mean;  // the mean of x_hat if it is computed with the rounded mean
    A mean_g, projection;

    __device__ RowGradient() {}
    __device__ RowGradient(const A* means, const A* rstds, Index r)
        : mean(CENTER ? means[r] : A(0)), rstd(rstds[r]) {}

    __device__ A deviation(A x) const { return CENTER ? x - mean : x; }
    __device__ A x_hat(A deviation) const {
        return CENTER ? fma(deviation, rstd, -x_hat_mean) : deviation * rstd;
    }
    __device__ A dx(A x_hat, A g) const {
        return ((CENTER ? g - mean_g : g) - x_hat * projection) * rstd;
    }

    // From sums over the row: of g * d * rstd, of d * range_scale and of g, where d is a deviation.
    __device__ void finish(const A (&sums)[3], A inv_count) {
        x_hat_mean = sums[1] * inv_count * (rstd / range_scale(rstd));
        mean_g = sums[2] * inv_count;
        projection = sums[0] * inv_count;
        if (CENTER) projection -= x_hat_mean * mean_g;
    }
};

template <class Gammas, class Count, class A, int VEC>
__device__ void multiply(const Gammas& gammas, int c, Count count, A (&values)[VEC]) {
    if (!gammas.ptr) return;
    A parameters[VEC];
    gammas.load(c, count, parameters);
#pragma unroll
    for (int j = 0; j < VEC; ++j) values[j] *= parameters[j];
}

template <bool CENTER, class Group, class A>
__device__ void reduce_row(Group& thread_group, A (&sums)[3]) {
    if (CENTER) {
        thread_group.reduce_add(sums);
    } else {
        A projection[1] = {sums[0]};
        thread_group.reduce_add(projection);
        sums[0] = projection[0];
    }
}

// A thread's chunks of a row of x and of dy, or of a tile of it. They stay in registers, or unless
// IN_REGISTERS are loaded by each visit, AHEAD chunks before their turn.
template <class T, class Dy, int THREADS, int CHUNKS, bool IN_REGISTERS>
struct RowPairTile {
    using A = Accumulator<T>;
    static constexpr int VEC = FULL_VEC<T>;
    // Chunks that are loaded before their turn, where registers suffice.
    static constexpr int AHEAD = sizeof(T) < sizeof(A) ? 0 : 1;
    const T* x;
    const Dy* dy;
    int n, thread;
    static constexpr int KEPT = IN_REGISTERS ? CHUNKS : AHEAD + 1;
    // Warps that have a row each hide the latency of each other's loads.
    static constexpr bool LOADS_NEXT_ROW = IN_REGISTERS && THREADS > WARP;
    RawChunk<T, VEC> x_chunks[KEPT];
    RawChunk<Dy, VEC> dy_chunks[KEPT];

    __device__ RowPairTile(int n, int thread) : n(n), thread(thread) {}

    __device__ void load(const T* x_row, const Dy* dy_row) {
        x = x_row;
        dy = dy_row;
        if (!IN_REGISTERS) return;
        load_chunks<THREADS>(x, n, thread, x_chunks);
        load_chunks<THREADS>(dy, n, thread, dy_chunks);
    }

    // Load chunk i, unless the row has fewer.
    __device__ void load_chunk(int i, bool x_aligned, bool dy_aligned) {
        const int c = (i * THREADS + thread) * VEC;
        if (c >= n) return;
        x_chunks[i % KEPT].load(x + c, x_aligned, n - c);
        dy_chunks[i % KEPT].load(dy + c, dy_aligned, n - c);
    }

    // Call `visit` with the number of each chunk, its deviations and values of dy, both 0 beyond
    // the row, their number, and the index of the first. The number is a Constant where the chunk
    // is whole, if the arrays that it goes to are `aligned`.
    template <class Gradient, class Visit>
    __device__ void for_each_chunk(const Gradient& row_grad, bool aligned, Visit visit) {
        const bool x_aligned = is_aligned<VEC>(x), dy_aligned = is_aligned<VEC>(dy);
        int begin = thread * VEC;
        forget(begin);  // as in the forward pass
        if (!IN_REGISTERS && AHEAD > 0) load_chunk(0, x_aligned, dy_aligned);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            if (!IN_REGISTERS && i + AHEAD < CHUNKS) load_chunk(i + AHEAD, x_aligned, dy_aligned);
            const int c = begin + i * THREADS * VEC, count = n - c;
            if (count <= 0) continue;
            A deviation[VEC], d[VEC];
            x_chunks[i % KEPT].convert(deviation);
            dy_chunks[i % KEPT].convert(d);
#pragma unroll
            for (int j = 0; j < VEC; ++j) deviation[j] = row_grad.deviation(deviation[j]);
            if (aligned && count >= VEC) {
                visit(i, deviation, d, Constant<VEC>(), c);
            } else {
#pragma unroll
                for (int j = 0; j < VEC; ++j)
                    if (j >= count) deviation[j] = 0;
                visit(i, deviation, d, min(count, VEC), c);
            }
        }
    }

    // Add up the sums that RowGradient::finish takes.
    template <class Gradient, class Gammas>
    __device__ void add_to(A (&sums)[3], const Gradient& row_grad, const Gammas& gammas) {
        const A scale = range_scale(row_grad.rstd);
        for_each_chunk(row_grad, gammas.is_aligned(), [&](int, const A(&deviation)[VEC],
                                                          A(&g)[VEC], auto count, int c) {
            multiply(gammas, c, count, g);
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                sums[0] += g[j] * (deviation[j] * row_grad.rstd);
                sums[1] += deviation[j] * scale;
                sums[2] += g[j];
            }
        });
    }

    // Write dx, unless it is null, and add the row to the gradients of parameters.
    template <class Gradient, class Gammas, int S>
    __device__ void write_dx(const Gradient& row_grad, const Gammas& gammas, T* dx,
                             A (&dgamma_acc)[CHUNKS][S], A (&dbeta_acc)[CHUNKS][S]) {
        const bool aligned = is_aligned<VEC>(dx) && gammas.is_aligned();
        for_each_chunk(row_grad, aligned, [&](int i, const A(&deviation)[VEC], A(&g)[VEC],
                                              auto count, int c) {
            A x_hat[VEC];
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                x_hat[j] = row_grad.x_hat(deviation[j]);
                dgamma_acc[i][j % S] += g[j] * x_hat[j];
                dbeta_acc[i][j % S] += g[j];
            }
            if (!dx) return;
            multiply(gammas, c, count, g);
#pragma unroll
            for (int j = 0; j < VEC; ++j) g[j] = row_grad.dx(x_hat[j], g[j]);
            if (!IN_REGISTERS) forget(c);  // so that no register holds the address before
            store(dx + c, count, g);
        });
    }
};

// How many sums of a gradient a chunk of elements has.
template <class T, ParamIndexing INDEXING>
constexpr int SUMS_PER_CHUNK = INDEXING == PER_CHUNK ? 1 : FULL_VEC<T>;

// Store the n partial sums of a gradient that the threads of a group have.
template <int THREADS, int CHUNKS, class A, int S>
__device__ void store_partials(const A (&values)[CHUNKS][S], A* partials, int n, int thread) {
    const bool aligned = S * sizeof(A) % VEC_BYTES == 0 && is_aligned<S>(partials);
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int c = (i * THREADS + thread) * S;
        if (aligned && n - c >= S)
            store(partials + c, Constant<S>(), values[i]);
        else
            store(partials + c, n - c, values[i]);
    }
}

// Rows in registers, as in the forward pass. Each thread sums the gradients of its own elements.
// While it processes a row, it loads the next.
template <class T, class Dy, class Gamma, int THREADS, int ROWS, int CHUNKS, bool IN_REGISTERS,
          bool CENTER, ParamIndexing INDEXING>
__global__ void __launch_bounds__(THREADS* ROWS, MIN_BLOCKS_PER_SM<THREADS * ROWS>)
    rows_backward(const Dy* __restrict__ dy, const T* __restrict__ x,
                  const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
                  const Gamma* __restrict__ gamma, T* __restrict__ dx,
                  Accumulator<T>* __restrict__ dgamma, Accumulator<T>* __restrict__ dbeta, Index m,
                  Index n, unsigned groups, Index repeat, double inv_count, Index num_partials) {
    using A = Accumulator<T>;
    constexpr int S = SUMS_PER_CHUNK<T, INDEXING>;
    static_assert(THREADS <= WARP || ROWS == 1);
    __shared__ A shared[ThreadGroup<A, THREADS>::SHARED];
    ThreadGroup<A, THREADS> thread_group(shared);
    const int thread = thread_group.thread(), row_of_block = thread_group.index();
    const unsigned partial = blockIdx.x / groups, group_index = blockIdx.x % groups;
    const ParamView<Gamma, INDEXING> gammas(gamma, group_index, n, repeat);
    A dgamma_acc[CHUNKS][S] = {}, dbeta_acc[CHUNKS][S] = {};
    using Tile = RowPairTile<T, Dy, THREADS, CHUNKS, IN_REGISTERS>;
    Tile row(int(n), thread), next_row(int(n), thread);
    RowGradient<A, CENTER> row_grad, next_grad;
    const Index step = groups * num_partials * ROWS;
    Index r = group_index + groups * (Index(partial) * ROWS + row_of_block);
    if (Tile::LOADS_NEXT_ROW && r < m) {
        next_grad = {mean, rstd, r};
        next_row.load(x + r * n, dy + r * n);
    }
    // All rows of a warp end together: those beyond the last do without elements.
    constexpr int ROWS_OF_WARP = THREADS < WARP ? WARP / THREADS : 1;
    const Index end = m + groups * Index(row_of_block % ROWS_OF_WARP);
    for (; r < end; r += step) {
        if (!Tile::LOADS_NEXT_ROW) {
            const bool exists = ROWS_OF_WARP == 1 || r < m;
            row.n = exists ? int(n) : 0;
            row_grad = {mean, rstd, exists ? r : 0};
            row.load(x + r * n, dy + r * n);
        } else {
            row_grad = next_grad;
            row = next_row;
            if (r + step < m) {
                next_grad = {mean, rstd, r + step};
                next_row.load(x + (r + step) * n, dy + (r + step) * n);
            }
        }
        A sums[3] = {};
        row.add_to(sums, row_grad, gammas);
        reduce_row<CENTER>(thread_group, sums);
        row_grad.finish(sums, A(inv_count));
        row.write_dx(row_grad, gammas, dx ? dx + r * n : dx, dgamma_acc, dbeta_acc);
    }
    // One element is left out after every 32, so that threads S elements apart use different banks.
    constexpr auto padded = [](int c) { return c + c / WARP; };
    __shared__ A shared_sums[ROWS][ROWS == 1 ? 1 : padded(CHUNKS * S * THREADS) | 1];
    const Index sums_per_row = n / (FULL_VEC<T> / S);
#pragma unroll
    for (int which = 0; which < 2; ++which) {
        A* const partials = which == 0 ? dgamma : dbeta;
        if (!partials) continue;
        auto& values = which == 0 ? dgamma_acc : dbeta_acc;
        A* const block_partials = partials + blockIdx.x * sums_per_row;
        if constexpr (ROWS == 1) {
            store_partials<THREADS>(values, block_partials, int(sums_per_row), thread);
        } else {
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
                for (int j = 0; j < S; ++j)
                    shared_sums[row_of_block][padded((i * THREADS + thread) * S + j)] =
                        values[i][j];
            __syncthreads();
            for (int c = threadIdx.x; c < sums_per_row; c += ROWS * THREADS) {
                A sum = 0;
#pragma unroll
                for (int row = 0; row < ROWS; ++row) sum += shared_sums[row][padded(c)];
                block_partials[c] = sum;
            }
            __syncthreads();
        }
    }
}

// Sums over each of the `segments` segments of a row. All but the last have `length` elements. They
// are stored at results[row][which sum][segment].
template <class T, class Dy, class Gamma, int THREADS, int CHUNKS, bool CENTER,
          ParamIndexing INDEXING>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<THREADS>)
    segment_sums(const Dy* __restrict__ dy, const T* __restrict__ x,
                 const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
                 const Gamma* __restrict__ gamma, Accumulator<T>* __restrict__ results, Index n,
                 unsigned groups, Index repeat, unsigned segments, Index length) {
    using A = Accumulator<T>;
    constexpr int TILE = THREADS * CHUNKS * FULL_VEC<T>;
    __shared__ A shared[ThreadGroup<A, THREADS>::SHARED];
    ThreadGroup<A, THREADS> thread_group(shared);
    const unsigned r = blockIdx.x / segments, segment = blockIdx.x % segments;
    const Index begin = segment * length, end = min(begin + length, n);
    const RowGradient<A, CENTER> row_grad(mean, rstd, r);
    CompensatedSum<A> thread_sums[3];
    for (Index tile = begin; tile < end; tile += TILE) {
        const Index offset = r * n + tile;
        const int count = int(min(Index(TILE), end - tile));
        const ParamView<Gamma, INDEXING> gammas(gamma, r % groups, n, repeat, tile);
        RowPairTile<T, Dy, THREADS, CHUNKS, true> row(count, thread_group.thread());
        row.load(x + offset, dy + offset);
        A sums[3] = {};
        row.add_to(sums, row_grad, gammas);
#pragma unroll
        for (int k = 0; k < 3; ++k) thread_sums[k].add(sums[k]);
    }
    A sums[3] = {thread_sums[0].total(), thread_sums[1].total(), thread_sums[2].total()};
    reduce_row<CENTER>(thread_group, sums);
    if (thread_group.thread() > 0) return;
#pragma unroll
    for (int k = 0; k < 3; ++k) results[(Index(r) * 3 + k) * segments + segment] = sums[k];
}

// As `rows_backward` for one of the `tiles` tiles of each row. A thread has the sums of one
// segment.
template <class T, class Dy, class Gamma, int THREADS, int CHUNKS, bool CENTER,
          ParamIndexing INDEXING>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<THREADS>)
    segments_backward(const Dy* __restrict__ dy, const T* __restrict__ x,
                      const Accumulator<T>* __restrict__ mean,
                      const Accumulator<T>* __restrict__ rstd, const Gamma* __restrict__ gamma,
                      T* __restrict__ dx, Accumulator<T>* __restrict__ dgamma,
                      Accumulator<T>* __restrict__ dbeta,
                      const Accumulator<T>* __restrict__ segment_sums, Index m, Index n,
                      unsigned groups, Index repeat, double inv_count, Index num_partials,
                      unsigned segments, unsigned tiles) {
    using A = Accumulator<T>;
    constexpr int VEC = FULL_VEC<T>, S = SUMS_PER_CHUNK<T, INDEXING>;
    constexpr int TILE = THREADS * CHUNKS * VEC;
    __shared__ A shared[ThreadGroup<A, THREADS>::SHARED];
    ThreadGroup<A, THREADS> thread_group(shared);
    const unsigned thread = thread_group.thread(), partial_group = blockIdx.x / tiles;
    const unsigned group_index = partial_group % groups, partial = partial_group / groups;
    const Index begin = Index(blockIdx.x % tiles) * TILE;
    const int count = int(min(Index(TILE), n - begin));
    const ParamView<Gamma, INDEXING> gammas(gamma, group_index, n, repeat, begin);
    A dgamma_acc[CHUNKS][S] = {}, dbeta_acc[CHUNKS][S] = {};
    for (Index r = group_index + Index(groups) * partial; r < m; r += groups * num_partials) {
        const Index offset = r * n + begin;
        RowGradient<A, CENTER> row_grad(mean, rstd, r);
        RowPairTile<T, Dy, THREADS, CHUNKS, true> row(count, thread);
        row.load(x + offset, dy + offset);
        A sums[3] = {};
#pragma unroll
        for (int k = 0; k < 3; ++k)
            if (thread < segments) sums[k] = segment_sums[(r * 3 + k) * segments + thread];
        reduce_row<CENTER>(thread_group, sums);
        row_grad.finish(sums, A(inv_count));
        row.write_dx(row_grad, gammas, dx ? dx + offset : dx, dgamma_acc, dbeta_acc);
    }
    const Index first = (partial_group * n + begin) / (VEC / S);
    if (dgamma) store_partials<THREADS>(dgamma_acc, dgamma + first, count / (VEC / S), thread);
    if (dbeta) store_partials<THREADS>(dbeta_acc, dbeta + first, count / (VEC / S), thread);
}

// Terms of a sum that a thread loads before it adds up any.
constexpr int LOADS = 8;

// Add up each column of `rows` rows of `first`, in `num_partials` partial sums, where one would be
// too few to fill a GPU. Blocks whose y is 1 do the same for `second`.
template <class T, class A, class Result, int COLUMNS, int THREAD_ROWS>
__global__ void __launch_bounds__(COLUMNS* THREAD_ROWS, 1)
    reduce_partials(const T* __restrict__ first, const T* __restrict__ second,
                    Result* __restrict__ first_sum, Result* __restrict__ second_sum, Index rows,
                    Index width, unsigned num_partials) {
    __shared__ A shared_sums[THREAD_ROWS][COLUMNS];
    const T* const terms = blockIdx.y == 0 ? first : second;
    const int column = threadIdx.x % COLUMNS, thread_row = threadIdx.x / COLUMNS;
    const Index c = Index(blockIdx.x / num_partials) * COLUMNS + column;
    const Index partial = blockIdx.x % num_partials;
    const Index step = Index(num_partials) * THREAD_ROWS;
    CompensatedSum<A> sum;
    if (c < width)
        for (Index r = partial * THREAD_ROWS + thread_row; r < rows; r += LOADS * step) {
            T loaded[LOADS];
#pragma unroll
            for (int k = 0; k < LOADS; ++k)
                if (r + k * step < rows) loaded[k] = terms[(r + k * step) * width + c];
#pragma unroll
            for (int k = 0; k < LOADS; ++k)
                if (r + k * step < rows) sum.add(static_cast<A>(loaded[k]));
        }
    shared_sums[thread_row][column] = sum.total();
    __syncthreads();
    if (thread_row > 0 || c >= width) return;
    CompensatedSum<A> all;
#pragma unroll 4
    for (int row = 0; row < THREAD_ROWS; ++row) all.add(shared_sums[row][column]);
    (blockIdx.y == 0 ? first_sum : second_sum)[partial * width + c] =
        static_cast<Result>(all.total());
}

// The same where `repeat` sums of a row share a parameter. A warp adds up those of one parameter.
template <class A, class Result, int WARPS>
__global__ void __launch_bounds__(WARPS* WARP)
    reduce_repeated_partials(const A* __restrict__ first, const A* __restrict__ second,
                             Result* __restrict__ first_sum, Result* __restrict__ second_sum,
                             Index rows, Index width, Index repeat) {
    const A* const terms = blockIdx.y == 0 ? first : second;
    const Index parameter = Index(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    if (parameter * repeat >= width) return;
    CompensatedSum<A> sum;
    for (Index r = 0; r < rows; ++r)
        for (Index c = lane; c < repeat; c += WARP)
            sum.add(terms[r * width + parameter * repeat + c]);
    const A total = warp_reduce_add(sum.total());
    if (lane > 0) return;
    (blockIdx.y == 0 ? first_sum : second_sum)[parameter] = static_cast<Result>(total);
}
