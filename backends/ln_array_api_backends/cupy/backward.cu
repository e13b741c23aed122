// The backward pass over rows; see ln_array_api.kernels.rows for the mathematics.
//
// Gradients of parameters are sums over rows. Blocks take rows in turn, `slots` blocks for each row
// modulo `groups`, and each leaves its part at partial[slot][row mod groups][element of the row].
// A last kernel adds these up. Whatever is not wanted, or absent, has a null pointer.

// What dx needs of a row. With g = dy * gamma, dx = (g - mean_g - x_hat * projection) * rstd.
template <class A, bool CENTER>
struct RowGradient {
    A mean, rstd, missed, mean_g, projection;

    __device__ RowGradient(const A* means, const A* rstds, Index r)
        : mean(CENTER ? means[r] : A(0)), rstd(rstds[r]) {}

    // x_hat, but for what the rounded mean has missed.
    __device__ A rough(A x) const { return (x - mean) * rstd; }
    __device__ A x_hat(A rough) const { return CENTER ? rough - missed : rough; }
    __device__ A dx(A x_hat, A g) const {
        return ((CENTER ? g - mean_g : g) - x_hat * projection) * rstd;
    }

    // From sums of g * rough, of rough and of g over the row.
    __device__ void finish(const A (&sums)[3], A share) {
        missed = sums[1] * share;
        mean_g = sums[2] * share;
        projection = sums[0] * share;
        if (CENTER) projection -= missed * mean_g;
    }
};

template <class P, bool REPEATED, class C, class A, int V>
__device__ void multiply(const Parameter<P, REPEATED>& gammas, C c, int count, A (&values)[V]) {
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

// Rows in registers, as in the forward pass; each thread sums the gradients of its own elements.
template <class T, class Dy, class Gamma, int WARPS, int ROWS, int CHUNKS, bool CENTER,
          bool REPEATED>
__global__ void __launch_bounds__(WARPS* ROWS* WARP, AT_LEAST<WARPS * ROWS * WARP>)
    rows_backward(const Dy* __restrict__ dy, const T* __restrict__ x,
                  const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
                  const Gamma* __restrict__ gamma, T* __restrict__ dx,
                  Accumulator<T>* __restrict__ dgamma, Accumulator<T>* __restrict__ dbeta, Index m,
                  Index n, unsigned groups, Index repeat, double share, Index slots) {
    using A = Accumulator<T>;
    constexpr int V = CHUNK<T>, THREADS = WARPS * WARP;
    static_assert(WARPS == 1 || ROWS == 1);
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const int thread = team.thread(), team_of_block = ROWS == 1 ? 0 : threadIdx.x / WARP;
    const int length = int(n);
    const unsigned slot = blockIdx.x / groups, residue = blockIdx.x % groups;
    const Parameter<Gamma, REPEATED> gammas(gamma, residue, n, repeat);
    A by_gamma[CHUNKS][V] = {}, by_beta[CHUNKS][V] = {};
    for (Index r = residue + groups * (Index(slot) * ROWS + team_of_block); r < m;
         r += groups * slots * ROWS) {
        const T* const x_row = x + r * n;
        const Dy* const dy_row = dy + r * n;
        const bool x_aligned = is_aligned(x_row), dy_aligned = is_aligned(dy_row);
        RowGradient<A, CENTER> of_row(mean, rstd, r);
        A d[CHUNKS][V], h[CHUNKS][V], sums[3] = {};
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = (i * THREADS + thread) * V, count = min(V, length - c);
            if (count <= 0) continue;
            load(x_row + c, x_aligned, count, h[i]);
            load(dy_row + c, dy_aligned, count, d[i]);
            A g[V];
#pragma unroll
            for (int j = 0; j < V; ++j) g[j] = d[i][j];
            multiply(gammas, c, count, g);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                h[i][j] = j < count ? of_row.rough(h[i][j]) : A(0);
                sums[0] += g[j] * h[i][j];
                sums[1] += h[i][j];
                sums[2] += g[j];
            }
        }
        sum_of_row<CENTER>(team, sums);
        of_row.finish(sums, A(share));
        T* const dx_row = dx ? dx + r * n : nullptr;
        const bool dx_aligned = is_aligned(dx_row);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = (i * THREADS + thread) * V, count = min(V, length - c);
            if (count <= 0) continue;
#pragma unroll
            for (int j = 0; j < V; ++j) {
                h[i][j] = of_row.x_hat(h[i][j]);
                by_gamma[i][j] += d[i][j] * h[i][j];
                by_beta[i][j] += d[i][j];
            }
            if (!dx) continue;
            multiply(gammas, c, count, d[i]);
#pragma unroll
            for (int j = 0; j < V; ++j) h[i][j] = of_row.dx(h[i][j], d[i][j]);
            store(dx_row + c, dx_aligned, count, h[i]);
        }
    }
    __shared__ A of_teams[ROWS][ROWS == 1 ? 1 : CHUNKS * V * WARP];
#pragma unroll
    for (int which = 0; which < 2; ++which) {
        A* const partial = which == 0 ? dgamma : dbeta;
        if (!partial) continue;
        auto& values = which == 0 ? by_gamma : by_beta;
        A* const part = partial + blockIdx.x * n;
        if constexpr (ROWS == 1) {
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i) {
                const int c = (i * THREADS + thread) * V;
#pragma unroll
                for (int j = 0; j < V; ++j)
                    if (c + j < length) part[c + j] = values[i][j];
            }
        } else {
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
                for (int j = 0; j < V; ++j)
                    of_teams[team_of_block][(i * THREADS + thread) * V + j] = values[i][j];
            __syncthreads();
            for (int c = threadIdx.x; c < length; c += ROWS * WARP) {
                A sum = 0;
#pragma unroll
                for (int each = 0; each < ROWS; ++each) sum += of_teams[each][c];
                part[c] = sum;
            }
            __syncthreads();
        }
    }
}

// dx of rows of any length, each read twice, and for `parameter_gradients` what the means missed.
template <class T, class Dy, class Gamma, int WARPS, bool CENTER, bool REPEATED>
__global__ void __launch_bounds__(WARPS* WARP, AT_LEAST<WARPS * WARP>)
    long_rows_backward(const Dy* __restrict__ dy, const T* __restrict__ x,
                       const Accumulator<T>* __restrict__ mean,
                       const Accumulator<T>* __restrict__ rstd, const Gamma* __restrict__ gamma,
                       T* __restrict__ dx, Accumulator<T>* __restrict__ missed, Index n,
                       unsigned groups, Index repeat, double share) {
    using A = Accumulator<T>;
    constexpr int V = CHUNK<T>;
    constexpr Index STEP = Index(WARPS) * WARP * V;
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const Index r = blockIdx.x;
    const T* const x_row = x + r * n;
    const Dy* const dy_row = dy + r * n;
    const bool x_aligned = is_aligned(x_row), dy_aligned = is_aligned(dy_row);
    const Parameter<Gamma, REPEATED> gammas(gamma, blockIdx.x % groups, n, repeat);
    RowGradient<A, CENTER> of_row(mean, rstd, r);
    Sum<A> of_product, of_h, of_g;
    for (Index c = Index(team.thread()) * V; c < n; c += STEP) {
        const int count = int(min(Index(V), n - c));
        A h[V], g[V], parts[3] = {};
        load(x_row + c, x_aligned, count, h);
        load(dy_row + c, dy_aligned, count, g);
        multiply(gammas, c, count, g);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            h[j] = j < count ? of_row.rough(h[j]) : A(0);
            parts[0] += g[j] * h[j];
            parts[1] += h[j];
            parts[2] += g[j];
        }
        of_product.add(parts[0]);
        of_h.add(parts[1]);
        of_g.add(parts[2]);
    }
    A sums[3] = {of_product.total(), of_h.total(), of_g.total()};
    sum_of_row<CENTER>(team, sums);
    of_row.finish(sums, A(share));
    if (missed && team.thread() == 0) missed[r] = of_row.missed;
    if (!dx) return;
    T* const dx_row = dx + r * n;
    const bool dx_aligned = is_aligned(dx_row);
    for (Index c = Index(team.thread()) * V; c < n; c += STEP) {
        const int count = int(min(Index(V), n - c));
        A h[V], g[V];
        load(x_row + c, x_aligned, count, h);
        load(dy_row + c, dy_aligned, count, g);
        multiply(gammas, c, count, g);
#pragma unroll
        for (int j = 0; j < V; ++j) h[j] = of_row.dx(of_row.x_hat(of_row.rough(h[j])), g[j]);
        store(dx_row + c, dx_aligned, count, h);
    }
}

// Parts of dgamma and dbeta, one thread for each element of a row; x is read for dgamma alone.
template <class T, class Dy, int THREADS, bool CENTER>
__global__ void __launch_bounds__(THREADS)
    parameter_gradients(const Dy* __restrict__ dy, const T* __restrict__ x,
                        const Accumulator<T>* __restrict__ mean,
                        const Accumulator<T>* __restrict__ rstd,
                        const Accumulator<T>* __restrict__ missed,
                        Accumulator<T>* __restrict__ dgamma, Accumulator<T>* __restrict__ dbeta,
                        Index m, Index n, Index groups, Index slots, Index tiles) {
    using A = Accumulator<T>;
    const Index c = blockIdx.x % tiles * THREADS + threadIdx.x, unit = blockIdx.x / tiles;
    if (c >= n) return;
    Sum<A> by_gamma, by_beta;
    for (Index r = unit % groups + groups * (unit / groups); r < m; r += groups * slots) {
        const A d = static_cast<A>(dy[r * n + c]);
        by_beta.add(d);
        if (!dgamma) continue;
        RowGradient<A, CENTER> of_row(mean, rstd, r);
        of_row.missed = CENTER ? missed[r] : A(0);
        by_gamma.add(d * of_row.x_hat(of_row.rough(static_cast<A>(x[r * n + c]))));
    }
    if (dgamma) dgamma[unit * n + c] = by_gamma.total();
    if (dbeta) dbeta[unit * n + c] = by_beta.total();
}

// The sums of each column of `parts` rows of partial gradients; blocks of the second kind, in y, do
// the second gradient.
template <class A, int COLUMNS, int TEAMS>
__global__ void __launch_bounds__(COLUMNS* TEAMS)
    add_up(const A* __restrict__ first, const A* __restrict__ second, A* __restrict__ first_sum,
           A* __restrict__ second_sum, Index parts, Index width) {
    __shared__ A of_teams[TEAMS][COLUMNS];
    const A* const partial = blockIdx.y == 0 ? first : second;
    const int column = threadIdx.x % COLUMNS, team = threadIdx.x / COLUMNS;
    const Index c = Index(blockIdx.x) * COLUMNS + column;
    Sum<A> sum;
    if (c < width)
        for (Index part = team; part < parts; part += TEAMS) sum.add(partial[part * width + c]);
    of_teams[team][column] = sum.total();
    __syncthreads();
    if (team > 0 || c >= width) return;
    A total = 0;
#pragma unroll
    for (int each = 0; each < TEAMS; ++each) total += of_teams[each][column];
    (blockIdx.y == 0 ? first_sum : second_sum)[c] = total;
}

// The same where `repeat` elements of a row share a parameter, which has a warp for itself.
template <class A, int WARPS>
__global__ void __launch_bounds__(WARPS* WARP)
    add_up_repeated(const A* __restrict__ first, const A* __restrict__ second,
                    A* __restrict__ first_sum, A* __restrict__ second_sum, Index parts, Index width,
                    Index repeat) {
    const A* const partial = blockIdx.y == 0 ? first : second;
    const Index parameter = Index(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    if (parameter * repeat >= width) return;
    Sum<A> sum;
    for (Index part = 0; part < parts; ++part)
        for (Index c = lane; c < repeat; c += WARP)
            sum.add(partial[part * width + parameter * repeat + c]);
    const A total = sum_of_warp(sum.total());
    if (lane == 0) (blockIdx.y == 0 ? first_sum : second_sum)[parameter] = total;
}
