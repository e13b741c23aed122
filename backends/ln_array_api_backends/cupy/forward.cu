// The forward pass over rows; see ln_array_api.kernels.rows for the mathematics.

// A thread's chunks of a row, kept in registers. `chunks` calls back with the values of each chunk,
// how many there are, and where in the row they begin.
template <class T, int THREADS, int CHUNKS>
struct Row {
    using A = Accumulator<T>;
    static constexpr int V = CHUNK<T>;
    A values[CHUNKS][V];
    int n, thread;

    __device__ Row(const T* row, Index n, int thread) : n(int(n)), thread(thread) {
        const bool aligned = is_aligned(row);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = (i * THREADS + thread) * V;
            load(row + c, aligned, min(V, this->n - c), values[i]);
        }
    }

    template <class Visit>
    __device__ void chunks(Visit visit) const {
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = (i * THREADS + thread) * V;
            if (c < n) visit(values[i], min(V, n - c), c);
        }
    }
};

// The same for a row of any length, read again at each visit.
template <class T, int THREADS>
struct Row<T, THREADS, 0> {
    using A = Accumulator<T>;
    static constexpr int V = CHUNK<T>;
    const T* row;
    Index n;
    int thread;
    bool aligned;

    __device__ Row(const T* row, Index n, int thread)
        : row(row), n(n), thread(thread), aligned(is_aligned(row)) {}

    template <class Visit>
    __device__ void chunks(Visit visit) const {
        for (Index c = Index(thread) * V; c < n; c += Index(THREADS) * V) {
            A values[V];
            const int count = int(min(Index(V), n - c));
            load(row + c, aligned, count, values);
            visit(values, count, c);
        }
    }
};

template <class A>
struct Statistics {
    A scale;    // a power of two that x is multiplied by
    A unscale;  // one over that
    A rough;    // the mean of the product, rounded
    A missed;   // the mean of what remains when that is subtracted
    A root;     // one over the root of the variance of that, plus epsilon

    __device__ A rstd() const { return root * scale; }
    __device__ A mean() const { return (rough + missed) * unscale; }
};

// The exponent of what brings the larger of a row and the root of epsilon close to 1, as far as the
// dtype holds it.
template <class A>
__device__ int scaling(A peak, double root_of_epsilon) {
    const A size = max(peak, A(root_of_epsilon));
    if (!(size > 0 && size <= Limits<A>::most)) return 0;
    return min(max(-1 - ilogb(size), -Limits<A>::reach), Limits<A>::reach);
}

template <bool CENTER, class Row, class Team, class A = typename Row::A>
__device__ Statistics<A> statistics(const Row& row, Team& team, A first, A share, double epsilon,
                                    double root_of_epsilon) {
    constexpr int V = Row::V;
    A scale = 1, unscale = 1, scaled_epsilon = A(epsilon);
    for (bool scaled = false;; scaled = true) {
        A rough = 0;
        if (CENTER) {
            Sum<A> sum;
            row.chunks([&](const A(&x)[V], int count, auto) {
                A part = 0;
#pragma unroll
                for (int j = 0; j < V; ++j)
                    if (j < count) part += x[j] * scale - first * scale;
                sum.add(part);
            });
            A total[1] = {sum.total()};
            team.sum(total);
            rough = first * scale + total[0] * share;
        }
        Sum<A> of_d, of_square;
        row.chunks([&](const A(&x)[V], int count, auto) {
            A part = 0, square = 0;
#pragma unroll
            for (int j = 0; j < V; ++j) {
                if (j < count) {
                    const A d = x[j] * scale - rough;
                    if (CENTER) part += d;
                    square += d * d;
                }
            }
            if (CENTER) of_d.add(part);
            of_square.add(square);
        });
        A totals[2] = {of_square.total(), of_d.total()};
        if (CENTER) {
            team.sum(totals);
        } else {
            A square[1] = {totals[0]};
            team.sum(square);
            totals[0] = square[0];
        }
        const A missed = totals[1] * share;
        const A spread = totals[0] * share - missed * missed + scaled_epsilon;
        if (scaled || (spread >= Limits<A>::least && spread <= Limits<A>::most))
            return {scale, unscale, rough, missed, inverse_root(spread)};
        A peak = 0;
        row.chunks([&](const A(&x)[V], int count, auto) {
#pragma unroll
            for (int j = 0; j < V; ++j)
                if (j < count) peak = max(peak, abs(x[j]));
        });
        const int exponent = scaling(team.largest(peak), root_of_epsilon);
        scale = scalbn(A(1), exponent);
        unscale = scalbn(A(1), -exponent);
        // An epsilon that underflows is far below the variance, unless the row is constant: then
        // it is what keeps 0 / 0 away.
        const double floor = epsilon > 0 ? double(Limits<A>::smallest_normal) : 0;
        scaled_epsilon = A(max(epsilon * scale * scale, floor));
    }
}

// ROWS rows in a block, one for each WARPS warps; CHUNKS of 0 is for rows too long for registers.
// y may be x; mean is null where CENTER is false, gamma and beta are where they are absent.
template <class T, class Gamma, class Beta, int WARPS, int ROWS, int CHUNKS, bool CENTER,
          bool REPEATED>
__global__ void __launch_bounds__(WARPS* ROWS* WARP, AT_LEAST<WARPS * ROWS * WARP>)
    rows_forward(const T* x, const Gamma* gamma, const Beta* beta, T* y, Accumulator<T>* mean,
                 Accumulator<T>* rstd, Index m, Index n, unsigned groups, Index repeat,
                 double share, double epsilon, double root_of_epsilon) {
    using A = Accumulator<T>;
    constexpr int V = CHUNK<T>;
    static_assert(WARPS == 1 || ROWS == 1);
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const Index r = Index(blockIdx.x) * ROWS + (ROWS == 1 ? 0 : threadIdx.x / WARP);
    if (r >= m) return;
    const T* const x_row = x + r * n;
    T* const y_row = y + r * n;
    const A first = static_cast<A>(x_row[0]);
    const Row<T, WARPS * WARP, CHUNKS> row(x_row, n, team.thread());
    const Statistics<A> of_row =
        statistics<CENTER>(row, team, first, A(share), epsilon, root_of_epsilon);
    if (team.thread() == 0) {
        rstd[r] = of_row.rstd();
        if (CENTER) mean[r] = of_row.mean();
    }
    const unsigned residue = (blockIdx.x % groups * ROWS + unsigned(r % ROWS)) % groups;
    const Parameter<Gamma, REPEATED> gammas(gamma, residue, n, repeat);
    const Parameter<Beta, REPEATED> betas(beta, residue, n, repeat);
    const bool aligned = is_aligned(y_row);
    row.chunks([&](const A(&values)[V], int count, auto c) {
        A result[V], parameters[V];
#pragma unroll
        for (int j = 0; j < V; ++j)
            result[j] = (values[j] * of_row.scale - of_row.rough - of_row.missed) * of_row.root;
        if (gamma) {
            gammas.load(c, count, parameters);
#pragma unroll
            for (int j = 0; j < V; ++j) result[j] *= parameters[j];
        }
        if (beta) {
            betas.load(c, count, parameters);
#pragma unroll
            for (int j = 0; j < V; ++j) result[j] += parameters[j];
        }
        store(y_row + c, aligned, count, result);
    });
}
