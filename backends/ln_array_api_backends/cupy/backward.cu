// The backward pass over rows; see ln_array_api.kernels.rows for the mathematics.
//
// Gradients of parameters are sums over rows. Blocks take rows in turn, `slots` blocks for each row
// modulo `groups`, and each leaves its part at partial[slot][row mod groups][element of the row].
// A last kernel adds these up. Where whole chunks share a parameter, a part has one sum for each
// chunk, not for each element. Whatever is not wanted, or absent, has a null pointer.
//
// Rows that are too long for a block are cut by their length alone: `segment_sums` has a block for
// each segment of a row, `segments_backward` one for each tile, which merges the sums of its rows.

// What dx needs of a row. With g = dy * gamma, dx = (g - mean_g - x_hat * projection) * rstd.
template <class A, bool CENTER>
struct RowGradient {
    A mean, rstd, missed, mean_g, projection;

    __device__ RowGradient(const A* means, const A* rstds, Index r)
        : mean(CENTER ? means[r] : A(0)), rstd(rstds[r]) {}

    __device__ A deviation(A x) const { return CENTER ? x - mean : x; }
    // What the rounded mean has missed, in units of x_hat, is no part of that.
    __device__ A x_hat(A deviation) const {
        return CENTER ? fma(deviation, rstd, -missed) : deviation * rstd;
    }
    __device__ A dx(A x_hat, A g) const {
        return ((CENTER ? g - mean_g : g) - x_hat * projection) * rstd;
    }

    // From sums over the row: of g * d * rstd, of d * range_scale and of g, where d is a deviation.
    __device__ void finish(const A (&sums)[3], A share) {
        missed = sums[1] * share * (rstd / range_scale(rstd));
        mean_g = sums[2] * share;
        projection = sums[0] * share;
        if (CENTER) projection -= missed * mean_g;
    }
};

template <class Gammas, class A, int V>
__device__ void multiply(const Gammas& gammas, int c, int count, A (&values)[V]) {
    if (!gammas.place) return;
    A parameters[V];
    gammas.load(c, count, parameters);
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] *= parameters[j];
}

template <bool CENTER, class Team, class A>
__device__ void sum_of_row(Team& team, A (&sums)[3]) {
    if (CENTER) {
        team.sum(sums);
    } else {
        A projection[1] = {sums[0]};
        team.sum(projection);
        sums[0] = projection[0];
    }
}

// A row of x and of dy, or a tile of them, by the chunks of a thread. They are kept in registers,
// or where KEPT is false read again by the second sweep.
template <class T, class Dy, int THREADS, int CHUNKS, bool KEPT>
struct RowPair {
    using A = Accumulator<T>;
    static constexpr int V = CHUNK<T>;
    const T* x;
    const Dy* dy;
    bool x_aligned, dy_aligned;
    int n, thread;
    A deviation[KEPT ? CHUNKS : 1][V], d[KEPT ? CHUNKS : 1][V];

    __device__ RowPair(const T* x, const Dy* dy, int n, int thread)
        : x(x), dy(dy), x_aligned(is_aligned(x)), dy_aligned(is_aligned(dy)), n(n), thread(thread) {}

    __device__ int place(int i) const { return (i * THREADS + thread) * V; }

    // Both of chunk i from memory, the first as of_row.deviation.
    template <class OfRow>
    __device__ void read(int i, const OfRow& of_row) {
        const int c = place(i), count = min(V, n - c), kept = KEPT ? i : 0;
        load(x + c, x_aligned, count, deviation[kept]);
        load(dy + c, dy_aligned, count, d[kept]);
#pragma unroll
        for (int j = 0; j < V; ++j)
            deviation[kept][j] = j < count ? of_row.deviation(deviation[kept][j]) : A(0);
    }

    template <class OfRow>
    __device__ void read(const OfRow& of_row) {
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) read(i, of_row);
    }

    // Reads all chunks, and adds up what `finish` takes.
    template <class OfRow, class Gammas>
    __device__ void sum(const OfRow& of_row, const Gammas& gammas, A (&sums)[3]) {
        const A scale = range_scale(of_row.rstd);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = place(i), count = min(V, n - c), kept = KEPT ? i : 0;
            if (count <= 0) continue;
            read(i, of_row);
            A g[V];
#pragma unroll
            for (int j = 0; j < V; ++j) g[j] = d[kept][j];
            multiply(gammas, c, count, g);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                sums[0] += g[j] * (deviation[kept][j] * of_row.rstd);
                sums[1] += deviation[kept][j] * scale;
                sums[2] += g[j];
            }
        }
    }

    // dx, if it is wanted, and what the row adds to the gradients of parameters.
    template <class OfRow, class Gammas, int S>
    __device__ void differentiate(const OfRow& of_row, const Gammas& gammas, T* dx,
                                  A (&by_gamma)[CHUNKS][S], A (&by_beta)[CHUNKS][S]) {
        const bool dx_aligned = is_aligned(dx);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = place(i), count = min(V, n - c), kept = KEPT ? i : 0;
            if (count <= 0) continue;
            if (!KEPT) read(i, of_row);
            A x_hat[V], g[V];
#pragma unroll
            for (int j = 0; j < V; ++j) {
                x_hat[j] = of_row.x_hat(deviation[kept][j]);
                g[j] = d[kept][j];
                by_gamma[i][j % S] += g[j] * x_hat[j];
                by_beta[i][j % S] += g[j];
            }
            if (!dx) continue;
            multiply(gammas, c, count, g);
#pragma unroll
            for (int j = 0; j < V; ++j) g[j] = of_row.dx(x_hat[j], g[j]);
            store(dx + c, dx_aligned, count, g);
        }
    }
};

// How many sums of a gradient a chunk of elements has.
template <class T, Repeat REPEAT>
constexpr int SUMS = REPEAT == CHUNKS_OF ? 1 : CHUNK<T>;

// A block's part of a gradient, of n sums, which the threads of a team have.
template <int THREADS, int CHUNKS, class A, int S>
__device__ void leave(const A (&values)[CHUNKS][S], A* part, int n, int thread) {
    const bool aligned = S * sizeof(A) % CHUNK_BYTES == 0 && is_aligned(part);
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int c = (i * THREADS + thread) * S;
        if (c < n) store(part + c, aligned, min(S, n - c), values[i]);
    }
}

// Rows in registers, as in the forward pass; each thread sums the gradients of its own elements.
template <class T, class Dy, class Gamma, int WARPS, int ROWS, int CHUNKS, bool KEPT, bool CENTER,
          Repeat REPEAT>
__global__ void __launch_bounds__(WARPS* ROWS* WARP, AT_LEAST<WARPS * ROWS * WARP>)
    rows_backward(const Dy* __restrict__ dy, const T* __restrict__ x,
                  const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
                  const Gamma* __restrict__ gamma, T* __restrict__ dx,
                  Accumulator<T>* __restrict__ dgamma, Accumulator<T>* __restrict__ dbeta, Index m,
                  Index n, unsigned groups, Index repeat, double share, Index slots) {
    using A = Accumulator<T>;
    constexpr int S = SUMS<T, REPEAT>, THREADS = WARPS * WARP;
    static_assert(WARPS == 1 || ROWS == 1);
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const int thread = team.thread(), team_of_block = ROWS == 1 ? 0 : threadIdx.x / WARP;
    const unsigned slot = blockIdx.x / groups, residue = blockIdx.x % groups;
    const Parameter<Gamma, REPEAT> gammas(gamma, residue, n, repeat);
    A by_gamma[CHUNKS][S] = {}, by_beta[CHUNKS][S] = {};
    for (Index r = residue + groups * (Index(slot) * ROWS + team_of_block); r < m;
         r += groups * slots * ROWS) {
        RowGradient<A, CENTER> of_row(mean, rstd, r);
        RowPair<T, Dy, THREADS, CHUNKS, KEPT> row(x + r * n, dy + r * n, int(n), thread);
        A sums[3] = {};
        row.sum(of_row, gammas, sums);
        sum_of_row<CENTER>(team, sums);
        of_row.finish(sums, A(share));
        row.differentiate(of_row, gammas, dx ? dx + r * n : dx, by_gamma, by_beta);
    }
    // A word is left out after each WARP, so that threads S elements apart use different banks.
    constexpr auto place = [](int c) { return c + c / WARP; };
    __shared__ A of_teams[ROWS][ROWS == 1 ? 1 : place(CHUNKS * S * WARP)];
    const Index length = n / (CHUNK<T> / S);
#pragma unroll
    for (int which = 0; which < 2; ++which) {
        A* const partial = which == 0 ? dgamma : dbeta;
        if (!partial) continue;
        auto& values = which == 0 ? by_gamma : by_beta;
        A* const part = partial + blockIdx.x * length;
        if constexpr (ROWS == 1) {
            leave<THREADS>(values, part, int(length), thread);
        } else {
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
                for (int j = 0; j < S; ++j)
                    of_teams[team_of_block][place((i * THREADS + thread) * S + j)] = values[i][j];
            __syncthreads();
            for (int c = threadIdx.x; c < length; c += ROWS * WARP) {
                A sum = 0;
#pragma unroll
                for (int each = 0; each < ROWS; ++each) sum += of_teams[each][place(c)];
                part[c] = sum;
            }
            __syncthreads();
        }
    }
}

// Sums over each of `segments` parts of a row, of `length` elements but for the last, laid out as
// of_segments[row][which sum][segment].
template <class T, class Dy, class Gamma, int WARPS, int CHUNKS, bool CENTER, Repeat REPEAT>
__global__ void __launch_bounds__(WARPS* WARP, AT_LEAST<WARPS * WARP>)
    segment_sums(const Dy* __restrict__ dy, const T* __restrict__ x,
                 const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
                 const Gamma* __restrict__ gamma, Accumulator<T>* __restrict__ of_segments,
                 Index n, unsigned groups, Index repeat, unsigned segments, Index length) {
    using A = Accumulator<T>;
    constexpr int TILE = WARPS * WARP * CHUNKS * CHUNK<T>;
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const unsigned r = blockIdx.x / segments, segment = blockIdx.x % segments;
    const Index begin = segment * length, end = min(begin + length, n);
    const RowGradient<A, CENTER> of_row(mean, rstd, r);
    Sum<A> of_tiles[3];
    for (Index tile = begin; tile < end; tile += TILE) {
        const Index place = r * n + tile;
        const int count = int(min(Index(TILE), end - tile));
        const Parameter<Gamma, REPEAT> gammas(gamma, r % groups, n, repeat, tile);
        RowPair<T, Dy, WARPS * WARP, CHUNKS, false> row(x + place, dy + place, count, team.thread());
        A sums[3] = {};
        row.sum(of_row, gammas, sums);
#pragma unroll
        for (int k = 0; k < 3; ++k) of_tiles[k].add(sums[k]);
    }
    A sums[3] = {of_tiles[0].total(), of_tiles[1].total(), of_tiles[2].total()};
    sum_of_row<CENTER>(team, sums);
    if (team.thread() > 0) return;
#pragma unroll
    for (int k = 0; k < 3; ++k) of_segments[(Index(r) * 3 + k) * segments + segment] = sums[k];
}

// As `rows_backward` for one of the `tiles` tiles of each row. A thread has the sums of one segment.
template <class T, class Dy, class Gamma, int WARPS, int CHUNKS, bool CENTER, Repeat REPEAT>
__global__ void __launch_bounds__(WARPS* WARP, AT_LEAST<WARPS * WARP>)
    segments_backward(const Dy* __restrict__ dy, const T* __restrict__ x,
                      const Accumulator<T>* __restrict__ mean,
                      const Accumulator<T>* __restrict__ rstd, const Gamma* __restrict__ gamma,
                      T* __restrict__ dx, Accumulator<T>* __restrict__ dgamma,
                      Accumulator<T>* __restrict__ dbeta,
                      const Accumulator<T>* __restrict__ of_segments, Index m, Index n,
                      unsigned groups, Index repeat, double share, Index slots, unsigned segments,
                      unsigned tiles) {
    using A = Accumulator<T>;
    constexpr int V = CHUNK<T>, S = SUMS<T, REPEAT>, THREADS = WARPS * WARP;
    constexpr int TILE = THREADS * CHUNKS * V;
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const unsigned thread = team.thread(), unit = blockIdx.x / tiles, residue = unit % groups;
    const Index begin = Index(blockIdx.x % tiles) * TILE;
    const int count = int(min(Index(TILE), n - begin));
    const Parameter<Gamma, REPEAT> gammas(gamma, residue, n, repeat, begin);
    A by_gamma[CHUNKS][S] = {}, by_beta[CHUNKS][S] = {};
    for (Index r = residue + Index(groups) * (unit / groups); r < m; r += groups * slots) {
        const Index place = r * n + begin;
        RowGradient<A, CENTER> of_row(mean, rstd, r);
        RowPair<T, Dy, THREADS, CHUNKS, true> row(x + place, dy + place, count, thread);
        row.read(of_row);
        A sums[3] = {};
#pragma unroll
        for (int k = 0; k < 3; ++k)
            if (thread < segments) sums[k] = of_segments[(r * 3 + k) * segments + thread];
        sum_of_row<CENTER>(team, sums);
        of_row.finish(sums, A(share));
        row.differentiate(of_row, gammas, dx ? dx + place : dx, by_gamma, by_beta);
    }
    const Index part = (unit * n + begin) / (V / S);
    if (dgamma) leave<THREADS>(by_gamma, dgamma + part, count / (V / S), thread);
    if (dbeta) leave<THREADS>(by_beta, dbeta + part, count / (V / S), thread);
}

// The sums of each column of `parts` rows, in `slots` parts of their own, where one is too few to
// fill a GPU; blocks of the second kind, in y, do the same for `second`.
template <class T, class A, class Result, int COLUMNS, int TEAMS>
__global__ void __launch_bounds__(COLUMNS* TEAMS)
    add_up(const T* __restrict__ first, const T* __restrict__ second,
           Result* __restrict__ first_sum, Result* __restrict__ second_sum, Index parts,
           Index width, unsigned slots) {
    __shared__ A of_teams[TEAMS][COLUMNS];
    const T* const terms = blockIdx.y == 0 ? first : second;
    const int column = threadIdx.x % COLUMNS, team = threadIdx.x / COLUMNS;
    const Index c = Index(blockIdx.x / slots) * COLUMNS + column, slot = blockIdx.x % slots;
    Sum<A> sum;
    if (c < width)
        for (Index part = slot * TEAMS + team; part < parts; part += Index(slots) * TEAMS)
            sum.add(static_cast<A>(terms[part * width + c]));
    of_teams[team][column] = sum.total();
    __syncthreads();
    if (team > 0 || c >= width) return;
    A total = 0;
#pragma unroll
    for (int each = 0; each < TEAMS; ++each) total += of_teams[each][column];
    (blockIdx.y == 0 ? first_sum : second_sum)[slot * width + c] = static_cast<Result>(total);
}

// The same where `repeat` sums of a row share a parameter, which has a warp for itself.
template <class A, class Result, int WARPS>
__global__ void __launch_bounds__(WARPS* WARP)
    add_up_repeated(const A* __restrict__ first, const A* __restrict__ second,
                    Result* __restrict__ first_sum, Result* __restrict__ second_sum, Index parts,
                    Index width, Index repeat) {
    const A* const partial = blockIdx.y == 0 ? first : second;
    const Index parameter = Index(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    if (parameter * repeat >= width) return;
    Sum<A> sum;
    for (Index part = 0; part < parts; ++part)
        for (Index c = lane; c < repeat; c += WARP)
            sum.add(partial[part * width + parameter * repeat + c]);
    const A total = sum_of_warp(sum.total());
    if (lane > 0) return;
    (blockIdx.y == 0 ? first_sum : second_sum)[parameter] = static_cast<Result>(total);
}
