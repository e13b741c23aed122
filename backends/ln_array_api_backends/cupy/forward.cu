// The forward pass over rows; see ln_array_api.kernels.rows for the mathematics.
//
// Rows that fit a block's registers are read once, by `rows_forward`. Longer ones are cut by their
// length alone: `segment_moments` has a block for each segment of a row, `segments_forward` one for
// each tile, which is as much of a row as a block keeps, and which merges all moments of its row.

// A thread's chunks of a row, or of a tile, kept in registers. `chunks` calls back with the values
// of each chunk, how many there are, and where they begin.
template <class T, int THREADS, int CHUNKS>
struct Row {
    using A = Accumulator<T>;
    static constexpr int V = CHUNK<T>;
    A values[CHUNKS][V];
    int n, thread;

    __device__ Row(const T* row, int n, int thread) : n(n), thread(thread) {
        const bool aligned = is_aligned(row);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = (i * THREADS + thread) * V;
            load(row + c, aligned, min(V, n - c), values[i]);
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

// The exponent of what brings a magnitude close to 1, as far as the dtype holds it; as large as
// can be for 0, which no scale is too large for.
template <class A>
__device__ int scaling(A magnitude) {
    if (!(magnitude > 0)) return Limits<A>::reach;
    if (!(magnitude <= Limits<A>::most)) return 0;
    return min(max(-1 - ilogb(magnitude), -Limits<A>::reach), Limits<A>::reach);
}
template <class A>
__device__ int scaling_of_square(A square) {
    if (!(square > 0)) return Limits<A>::reach;
    return square <= Limits<A>::most ? -1 - ilogb(square) / 2 : 0;
}

// Of x times a power of two.
template <class A>
struct alignas(16) Moments {
    A rough;     // the mean, rounded
    A missed;    // the mean of what remains when that is subtracted
    A variance;  // of what remains
    A exponent;  // of the power of two

    __device__ int scaling() const {
        const int change = min(::scaling(abs(rough)), scaling_of_square(variance));
        return min(max(int(exponent) + change, -Limits<A>::reach), Limits<A>::reach);
    }
    __device__ void rescale(int to) {
        const int change = to - int(exponent);
        rough = scalbn(rough, change);
        missed = scalbn(missed, change);
        variance = scalbn(variance, 2 * change);
        exponent = A(to);
    }
    // Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, equation (2.1),
    // with the moments of other elements, which are such a share of all.
    __device__ void merge(Moments other, A share) {
        const int to = min(scaling(), other.scaling());
        rescale(to);
        other.rescale(to);
        const A difference = (other.rough - rough) + (other.missed - missed);
        const A step = missed + difference * share, before = rough;
        rough = before + step;
        missed = (before - rough) + step;
        variance += share * ((other.variance - variance) + difference * difference * (1 - share));
    }
};

// `first` is any element of the row, and `share` is one over their number.
template <bool CENTER, class Row, class Team, class A = typename Row::A>
__device__ Moments<A> moments(const Row& row, Team& team, A first, A share, double epsilon) {
    constexpr int V = Row::V;
    A scale = 1, exponent = 0;
    for (bool scaled = false;; scaled = true) {
        A rough = 0;
        if (CENTER) {
            Sum<A> sum;
            row.chunks([&](const A(&x)[V], int count, int) {
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
        row.chunks([&](const A(&x)[V], int count, int) {
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
        const A variance = totals[0] * share - missed * missed;
        const A spread = variance + A(epsilon);
        if (scaled || (spread >= Limits<A>::least && spread <= Limits<A>::most))
            return {rough, missed, variance, exponent};
        A peak = 0;
        row.chunks([&](const A(&x)[V], int count, int) {
#pragma unroll
            for (int j = 0; j < V; ++j)
                if (j < count) peak = max(peak, abs(x[j]));
        });
        const int to = min(scaling(team.largest(peak)), scaling_of_square(epsilon));
        exponent = A(to);
        scale = scalbn(A(1), to);
    }
}

template <class A>
struct Statistics {
    A scale, rough, missed;
    A root;  // one over the root of the scaled variance plus epsilon
    int exponent;

    // Where the variance is 0, epsilon is all there is, and scaled down it would underflow. It is
    // scaled in double, in which one that float does not hold can count beside a row of tiny values.
    __device__ Statistics(Moments<A> of_row, double epsilon) {
        if (of_row.variance == 0 && of_row.exponent < 0) of_row.rescale(0);
        exponent = int(of_row.exponent);
        scale = scalbn(A(1), exponent);
        rough = of_row.rough;
        missed = of_row.missed;
        const A floor = epsilon > 0 ? Limits<A>::smallest_normal : A(0);
        root = inverse_root(of_row.variance + max(A(epsilon * scale * scale), floor));
    }

    __device__ A rstd() const { return root * scale; }
    __device__ A mean() const { return scalbn(rough + missed, -exponent); }
};

// Row or tile to y, of which place is where it begins.
template <class Row, class T, class Gammas, class Betas, class A = typename Row::A>
__device__ void normalise(const Row& row, const Statistics<A>& of_row, const Gammas& gammas,
                          const Betas& betas, T* place) {
    constexpr int V = Row::V;
    const bool aligned = is_aligned(place);
    row.chunks([&](const A(&values)[V], int count, int c) {
        A result[V], parameters[V];
#pragma unroll
        for (int j = 0; j < V; ++j)
            result[j] = (values[j] * of_row.scale - of_row.rough - of_row.missed) * of_row.root;
        if (gammas.place) {
            gammas.load(c, count, parameters);
#pragma unroll
            for (int j = 0; j < V; ++j) result[j] *= parameters[j];
        }
        if (betas.place) {
            betas.load(c, count, parameters);
#pragma unroll
            for (int j = 0; j < V; ++j) result[j] += parameters[j];
        }
        store(place + c, aligned, count, result);
    });
}

// ROWS rows in a block, one for each WARPS warps. y may be x; mean is null where CENTER is false,
// gamma and beta are where they are absent.
template <class T, class Gamma, class Beta, int WARPS, int ROWS, int CHUNKS, bool CENTER,
          Repeat REPEAT>
__global__ void __launch_bounds__(WARPS* ROWS* WARP, AT_LEAST<WARPS * ROWS * WARP>)
    rows_forward(const T* x, const Gamma* gamma, const Beta* beta, T* y, Accumulator<T>* mean,
                 Accumulator<T>* rstd, Index m, Index n, unsigned groups, Index repeat,
                 double share, double epsilon) {
    using A = Accumulator<T>;
    static_assert(WARPS == 1 || ROWS == 1);
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const Index r = Index(blockIdx.x) * ROWS + (ROWS == 1 ? 0 : threadIdx.x / WARP);
    if (r >= m) return;
    const T* const x_row = x + r * n;
    const A first = static_cast<A>(x_row[0]);
    const Row<T, WARPS * WARP, CHUNKS> row(x_row, int(n), team.thread());
    const Statistics<A> of_row(moments<CENTER>(row, team, first, A(share), epsilon), epsilon);
    if (team.thread() == 0) {
        rstd[r] = of_row.rstd();
        if (CENTER) mean[r] = of_row.mean();
    }
    const unsigned residue = (blockIdx.x % groups * ROWS + unsigned(r % ROWS)) % groups;
    const Parameter<Gamma, REPEAT> gammas(gamma, residue, n, repeat);
    const Parameter<Beta, REPEAT> betas(beta, residue, n, repeat);
    normalise(row, of_row, gammas, betas, y + r * n);
}

// The moments of `segments` parts of each row, of `length` elements but for the last: tile after
// tile, since a tile is what registers hold.
template <class T, int WARPS, int CHUNKS, bool CENTER>
__global__ void __launch_bounds__(WARPS* WARP, AT_LEAST<WARPS * WARP>)
    segment_moments(const T* x, Moments<Accumulator<T>>* of_segments, Index n, unsigned segments,
                    Index length, double epsilon) {
    using A = Accumulator<T>;
    constexpr int TILE = WARPS * WARP * CHUNKS * CHUNK<T>;
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const T* const x_row = x + Index(blockIdx.x / segments) * n;
    const Index begin = blockIdx.x % segments * length, end = min(begin + length, n);
    Moments<A> of_segment = {};
    for (Index tile = begin; tile < end; tile += TILE) {
        const int count = int(min(Index(TILE), end - tile));
        const T* const place = x_row + tile;
        const Row<T, WARPS * WARP, CHUNKS> row(place, count, team.thread());
        const Moments<A> of_tile =
            moments<CENTER>(row, team, static_cast<A>(*place), 1 / A(count), epsilon);
        if (tile == begin)
            of_segment = of_tile;
        else
            of_segment.merge(of_tile, A(count) / A(tile + count - begin));
    }
    if (team.thread() == 0) of_segments[blockIdx.x] = of_segment;
}

// The same two passes over means of segments as over elements of a row; a thread has one segment.
template <class Team, class A>
__device__ Moments<A> merged(const Moments<A>* of_segments, unsigned segments, Index n,
                             Index length, Team& team, double epsilon) {
    const unsigned thread = team.thread();
    Moments<A> first = of_segments[0], mine = {};
    A share = 0;
    int to = min(scaling_of_square(epsilon), Limits<A>::reach);
    if (thread < segments) {
        mine = of_segments[thread];
        share = A(min(length, n - thread * length)) / A(n);
        to = min(to, mine.scaling());
    }
    to = Limits<A>::reach - int(team.largest(A(Limits<A>::reach - to)));
    first.rescale(to);
    mine.rescale(to);
    A total[1] = {share * (mine.rough - first.rough + mine.missed)};
    team.sum(total);
    const A rough = first.rough + total[0];
    const A d = mine.rough - rough + mine.missed;
    A totals[2] = {share * (mine.variance + d * d), share * d};
    team.sum(totals);
    return {rough, totals[1], totals[0] - totals[1] * totals[1], A(to)};
}

// y of one of the `tiles` tiles of a row. y may be x.
template <class T, class Gamma, class Beta, int WARPS, int CHUNKS, bool CENTER, Repeat REPEAT>
__global__ void __launch_bounds__(WARPS* WARP, AT_LEAST<WARPS * WARP>)
    segments_forward(const T* x, const Gamma* gamma, const Beta* beta, T* y,
                     Accumulator<T>* mean, Accumulator<T>* rstd,
                     const Moments<Accumulator<T>>* of_segments, Index n, unsigned groups,
                     Index repeat, unsigned segments, Index length, unsigned tiles,
                     double epsilon) {
    using A = Accumulator<T>;
    constexpr int TILE = WARPS * WARP * CHUNKS * CHUNK<T>;
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const unsigned r = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const Index begin = Index(tile) * TILE, place = r * n + begin;
    const int count = int(min(Index(TILE), n - begin));
    const Row<T, WARPS * WARP, CHUNKS> row(x + place, count, team.thread());
    const Statistics<A> of_row(
        merged(of_segments + Index(r) * segments, segments, n, length, team, epsilon), epsilon);
    if (tile == 0 && team.thread() == 0) {
        rstd[r] = of_row.rstd();
        if (CENTER) mean[r] = of_row.mean();
    }
    const Parameter<Gamma, REPEAT> gammas(gamma, r % groups, n, repeat, begin);
    const Parameter<Beta, REPEAT> betas(beta, r % groups, n, repeat, begin);
    normalise(row, of_row, gammas, betas, y + place);
}
