// The forward pass over channels; see ln_array_api.kernels.channels for the mathematics.

// What `moments` takes for a row: words in memory, which a thread has to itself.
template <class T, int W, class Walk>
struct InMemory {
    using A = Accumulator<T>;
    static constexpr int V = W;
    const T* x;
    Walk walk;
    int words;
    bool aligned;

    template <class Visit>
    __device__ void chunks(Visit visit) const {
        Walk at = walk;
        for (int i = 0; i < words; ++i, at.next()) {
            A values[W];
            with_alignment(aligned, [&](auto aligned) {
                load_word<decltype(aligned)::value>(x + at.place * W, values);
            });
            visit(values, W, 0);
        }
    }
    __device__ A first() const { return static_cast<A>(x[walk.place * W]); }
};

struct Alone {
    template <class A, int K>
    __device__ void sum(A (&)[K]) {}
    template <class A>
    __device__ A largest(A value) {
        return value;
    }
};

// Those of a thread's elements, read again: for when their squares may have left the range.
template <class T, int W, class Walk, class A = Accumulator<T>>
__device__ Moments<A> moments_of(const InMemory<T, W, Walk>& words, A epsilon) {
    Alone alone;
    return moments<true>(words, alone, words.first(), 1 / A(words.words * W), epsilon);
}

template <class A>
__device__ bool is_in_range(A spread) {
    return spread >= Limits<A>::least && spread <= Limits<A>::most;
}

// The moments of some values, without regard to their range.
template <class A, int N>
__device__ Moments<A> moments_of(const A (&values)[N]) {
    A sum = 0, part = 0, square = 0;
#pragma unroll
    for (int j = 1; j < N; ++j) sum += values[j] - values[0];
    const A rough = values[0] + sum * A(1. / N);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const A d = values[j] - rough;
        part += d;
        square += d * d;
    }
    const A missed = part * A(1. / N);
    return {rough, missed, square * A(1. / N) - missed * missed, 0};
}

// As Moments::merge, of moments that are not scaled.
template <class A>
__device__ void merge_unscaled(Moments<A>& all, const Moments<A>& other, A share) {
    const A difference = (other.rough - all.rough) + (other.missed - all.missed);
    const A step = all.missed + difference * share, before = all.rough;
    all.rough = before + step;
    all.missed = (before - all.rough) + step;
    all.variance +=
        share * ((other.variance - all.variance) + difference * difference * (1 - share));
}

// What a thread adds up, from the first value on.
template <class A, int W>
struct Running {
    Moments<A> moments[W] = {};
    int count = 0;

    // N values for each of W moments.
    template <int N>
    __device__ void add(const A (&values)[W][N]) {
        if (count == 0) {
#pragma unroll
            for (int j = 0; j < W; ++j) moments[j].rough = values[j][0];
        }
        count += N;
        const A share = A(N) / A(count);
#pragma unroll
        for (int j = 0; j < W; ++j) merge_unscaled(moments[j], moments_of(values[j]), share);
    }
};

// Most moments need no scale, and looking for one takes as long as adding up many elements.
template <class A>
__device__ void merge(Moments<A>& all, const Moments<A>& other, A share, A epsilon) {
    if (all.exponent == 0 && other.exponent == 0) {
        Moments<A> both = all;
        merge_unscaled(both, other, share);
        if (is_in_range(both.variance + epsilon)) {
            all = both;
            return;
        }
    }
    all.merge(other, share);
}

// The same from each thread of a team, which has such a share of all elements. The first has some.
template <class Team, class A>
__device__ Moments<A> merge_threads(Team& team, Moments<A> mine, A share, A epsilon) {
    int to = scaling_of_square(epsilon);
    if (share > 0) to = min(to, mine.scaling());
    to = Limits<A>::reach - int(team.largest(A(Limits<A>::reach - to)));
    mine.rescale(to);
    A first[1] = {team.thread() == 0 ? mine.rough : A(0)};
    team.sum(first);
    A total[1] = {share * (mine.rough - first[0] + mine.missed)};
    team.sum(total);
    const A rough = first[0] + total[0];
    const A d = mine.rough - rough + mine.missed;
    A totals[2] = {share * (mine.variance + d * d), share * d};
    team.sum(totals);
    return {rough, totals[1], totals[0] - totals[1] * totals[1], A(to)};
}

// Of a part of the `words` of a channel: parts of `length` words, all but the last.
template <class T, int W, int CHUNKS, int WARPS>
__global__ void __launch_bounds__(WARPS* WARP, AT_LEAST<WARPS * WARP>)
    plane_moments(const T* __restrict__ x, Moments<Accumulator<T>>* __restrict__ of_parts,
                  unsigned channels, Index spatial, Index words, Index length, double epsilon) {
    using A = Accumulator<T>;
    constexpr int THREADS = WARPS * WARP;
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const Index begin = blockIdx.x / channels * length, end = min(begin + length, words);
    const bool is_aligned = has_aligned_words<W>(x);
    const PlaneWalk<W, THREADS> start(begin + team.thread(), blockIdx.x % channels, channels, spatial);
    PlaneWalk<W, THREADS> walk = start;
    Running<A, 1> running;
    const auto add = [&](auto aligned, auto chunks) {
        constexpr int N = decltype(chunks)::value;
        A values[1][N * W];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            A word[W];
            load_word<decltype(aligned)::value>(x + walk.place * W, word);
            walk.next();
#pragma unroll
            for (int j = 0; j < W; ++j) values[0][i * W + j] = word[j];
        }
        running.add(values);
    };
    with_alignment(is_aligned, [&](auto aligned) {
        Index word = begin + team.thread();
        for (; word + (CHUNKS - 1) * THREADS < end; word += CHUNKS * THREADS)
            add(aligned, Count<CHUNKS>());
        for (; word < end; word += THREADS) add(aligned, Count<1>());
    });
    const int count = running.count;
    Moments<A> mine = running.moments[0];
    if (count > 0 && !is_in_range(mine.variance + A(epsilon)))
        mine = moments_of(InMemory<T, W, PlaneWalk<W, THREADS>>{x, start, count / W, is_aligned},
                          A(epsilon));
    const A share = A(count) / A((end - begin) * W);
    const Moments<A> of_part = merge_threads(team, mine, share, A(epsilon));
    if (team.thread() == 0) of_parts[blockIdx.x] = of_part;
}

// An exponent takes less room than a number, so that two blocks fit into 64 KiB.
template <class A, int W>
struct MomentsOfTeams {
    OfTeams<A, W> rough, missed, variance;
    OfTeams<short, W> exponent;

    __device__ void set(int thread, int j, const Moments<A>& moments) {
        rough.at(thread, j) = moments.rough;
        missed.at(thread, j) = moments.missed;
        variance.at(thread, j) = moments.variance;
        exponent.at(thread, j) = short(moments.exponent);
    }
    __device__ Moments<A> get(int thread, int j) {
        return {rough.at(thread, j), missed.at(thread, j), variance.at(thread, j),
                A(exponent.at(thread, j))};
    }
};

// Of a part of the rows of each column: parts of `length` rows, all but the last. A thread has ROWS of
// them at once.
template <class T, int W, int ROWS>
__global__ void __launch_bounds__(COLUMN_THREADS, AT_LEAST<COLUMN_THREADS>)
    column_moments(const T* __restrict__ x, Moments<Accumulator<T>>* __restrict__ of_parts,
                   Index line, Index rows, Index ragged, Index length, unsigned tiles, int lanes,
                   double epsilon) {
    using A = Accumulator<T>;
    __shared__ MomentsOfTeams<A, W> of_teams;
    const unsigned tile = blockIdx.x % tiles, part = blockIdx.x / tiles;
    const Columns<W> own(tile, part, lanes, line, rows, ragged, length);
    const Index step = own.teams * line, start = (own.begin + own.team) * line + own.column;
    const T* place = x + start;
    Running<A, W> running;
    const auto add = [&](auto aligned, auto rows) {
        constexpr int N = decltype(rows)::value;
        A values[W][N];
#pragma unroll
        for (int i = 0; i < N; ++i, place += step) {
            A word[W];
            load_word<decltype(aligned)::value>(place, word);
#pragma unroll
            for (int j = 0; j < W; ++j) values[j][i] = word[j];
        }
        running.add(values);
    };
    with_alignment(has_aligned_words<W>(x), [&](auto aligned) {
        Index r = own.begin + own.team;
        for (; r + (ROWS - 1) * own.teams < own.end; r += ROWS * own.teams)
            add(aligned, Count<ROWS>());
        for (; r < own.end; r += own.teams) add(aligned, Count<1>());
    });
    const int count = running.count;
#pragma unroll
    for (int j = 0; j < W; ++j) of_teams.set(threadIdx.x, j, running.moments[j]);
    if (count > 0) {
#pragma unroll 1
        for (int j = 0; j < W; ++j) {
            if (is_in_range(of_teams.variance.at(threadIdx.x, j) + A(epsilon))) continue;
            const InMemory<T, 1, ColumnWalk> column{x, ColumnWalk{start + j, step}, count, true};
            of_teams.set(threadIdx.x, j, moments_of(column, A(epsilon)));
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < lanes * W; c += COLUMN_THREADS) {
        const Index column = Index(tile) * lanes * W + c;
        if (column >= line) continue;
        const int height = int(min(own.begin + length, rows - (column >= ragged)) - own.begin);
        Moments<A> all = {};
        int before = 0;
        for (int team = 0; team < own.teams && team < height; ++team) {
            const int here = (height - team + own.teams - 1) / own.teams;
            const Moments<A> some = of_teams.get(team * lanes + c / W, c % W);
            before += here;
            if (team == 0)
                all = some;
            else
                merge(all, some, A(here) / A(before), A(epsilon));
        }
        of_parts[part * line + column] = all;
    }
}

// What channels_normalise takes: lines of a number for each channel.
enum { SCALE, ROUGH, MISSED, ROOT };

// Statistics of a channel from the moments of its parts, of `count` rows in all.
template <class A, int WARPS, int TEAMS>
__global__ void __launch_bounds__(WARPS* TEAMS* WARP, AT_LEAST<WARPS * TEAMS * WARP>)
    channel_statistics(const Moments<A>* __restrict__ of_parts, A* __restrict__ of_channels,
                       A* __restrict__ mean, A* __restrict__ var, A* __restrict__ rstd,
                       Index channels, Index spatial, Index line, Index rows, Index ragged,
                       Index length, Index parts, Index count, double epsilon) {
    static_assert(WARPS == 1 || TEAMS == 1);
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const Index channel = Index(blockIdx.x) * TEAMS + (TEAMS == 1 ? 0 : threadIdx.x / WARP);
    if (channel >= channels) return;
    const Parts at(channel, channels, spatial, line, rows, ragged, length, parts);
    Moments<A> mine = {};
    Index before = 0;
    for (Index entry = team.thread(); entry < at.entries; entry += WARPS * WARP) {
        Index here;
        const Index place = at.place(entry, here);
        if (here <= 0) continue;
        before += here;
        if (before == here)
            mine = of_parts[place];
        else
            merge(mine, of_parts[place], A(here) / A(before), A(epsilon));
    }
    const Moments<A> all = merge_threads(team, mine, A(before) / A(count), A(epsilon));
    if (team.thread() > 0) return;
    const Statistics<A> statistics(all, A(epsilon));
    of_channels[SCALE * channels + channel] = statistics.scale;
    of_channels[ROUGH * channels + channel] = statistics.rough;
    of_channels[MISSED * channels + channel] = statistics.missed;
    of_channels[ROOT * channels + channel] = statistics.root;
    mean[channel] = statistics.mean();
    var[channel] = scalbn(all.variance, -2 * statistics.exponent);
    rstd[channel] = statistics.rstd();
}

// y from what channel_statistics has left, or where that is null, from a mean and variance that are
// given.
template <class T, class Gamma, class Beta, int W, bool ONE>
__global__ void __launch_bounds__(COLUMN_THREADS, AT_LEAST<COLUMN_THREADS>)
    channels_normalise(const T* __restrict__ x, const Accumulator<T>* __restrict__ of_channels,
                       const Accumulator<T>* __restrict__ mean,
                       const Accumulator<T>* __restrict__ var, const Gamma* __restrict__ gamma,
                       const Beta* __restrict__ beta, T* __restrict__ y, Index channels,
                       Index spatial, Index line, Index rows, Index ragged, Index length,
                       unsigned tiles, int lanes, double epsilon) {
    using A = Accumulator<T>;
    using Of = OfWord<W, ONE>;
    constexpr int N = Of::N;
    const unsigned block = gridDim.x - 1 - blockIdx.x;
    const Columns<W> own(block % tiles, block / tiles, lanes, line, rows, ragged, length);
    if (own.begin + own.team >= own.end) return;
    const Of of(own.column, channels, spatial);
    A scale[N], rough[N], missed[N], root[N], gammas[N], betas[N];
    if (of_channels) {
        of.load(of_channels + SCALE * channels, scale);
        of.load(of_channels + ROUGH * channels, rough);
        of.load(of_channels + MISSED * channels, missed);
        of.load(of_channels + ROOT * channels, root);
    } else {
        of.load(mean, rough);
        of.load(var, root);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            scale[j] = 1;
            missed[j] = 0;
            root[j] = inverse_root(root[j] + A(epsilon));
        }
    }
    of.load(gamma, gammas, A(1));
    of.load(beta, betas, A(0));
    Index place = (own.begin + own.team) * line + own.column;
    const auto normalise = [&](auto aligned) {
        constexpr bool ALIGNED = decltype(aligned)::value;
#pragma unroll 4
        for (Index r = own.begin + own.team; r < own.end; r += own.teams) {
            A values[W];
            load_word<ALIGNED>(x + place, values);
#pragma unroll
            for (int j = 0; j < W; ++j) {
                const int c = ONE ? 0 : j;
                const A x_hat = (values[j] * scale[c] - rough[c] - missed[c]) * root[c];
                values[j] = x_hat * gammas[c] + betas[c];
            }
            store_word<ALIGNED>(y + place, values);
            place += own.teams * line;
        }
    };
    with_alignment(has_aligned_words<W>(x) && has_aligned_words<W>(y), normalise);
}
