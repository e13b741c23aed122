// The backward pass over channels; see ln_array_api.kernels.channels for the mathematics.

// Sums that the backward pass takes of each channel, as RowGradient::finish does, without gamma; that
// over dy alone, unless they are OF_X.
enum { PRODUCT, DEVIATION, DY, SUMS_OF_CHANNEL };

template <class T, class Dy, int W, int CHUNKS, int WARPS, bool OF_X>
__global__ void __launch_bounds__(WARPS* WARP, AT_LEAST<WARPS * WARP>)
    plane_sums(const Dy* __restrict__ dy, const T* __restrict__ x,
               const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
               Accumulator<T>* __restrict__ of_parts, unsigned channels, Index spatial, Index words,
               Index length) {
    using A = Accumulator<T>;
    constexpr int THREADS = WARPS * WARP;
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const unsigned channel = blockIdx.x % channels;
    const Index begin = blockIdx.x / channels * length, end = min(begin + length, words);
    const RowGradient<A, true> of_channel(mean, rstd, channel);
    const A scale = range_scale(of_channel.rstd);
    PlaneWalk<W, THREADS> walk(begin + team.thread(), channel, channels, spatial);
    A sums[SUMS_OF_CHANNEL] = {};
    const auto add = [&](auto aligned, auto chunks) {
        constexpr bool ALIGNED = decltype(aligned)::value;
        A here[SUMS_OF_CHANNEL] = {};
#pragma unroll
        for (int i = 0; i < decltype(chunks)::value; ++i, walk.next()) {
            A d[W], values[W];
            load_word<ALIGNED>(dy + walk.place * W, d);
            if (OF_X) load_word<ALIGNED>(x + walk.place * W, values);
#pragma unroll
            for (int j = 0; j < W; ++j) {
                here[DY] += d[j];
                if (OF_X) {
                    const A deviation = of_channel.deviation(values[j]);
                    here[PRODUCT] += d[j] * (deviation * of_channel.rstd);
                    here[DEVIATION] += deviation * scale;
                }
            }
        }
#pragma unroll
        for (int k = 0; k < SUMS_OF_CHANNEL; ++k) sums[k] += here[k];
    };
    with_alignment(has_aligned_words<W>(x) && has_aligned_words<W>(dy), [&](auto aligned) {
        Index word = begin + team.thread();
        for (; word + (CHUNKS - 1) * THREADS < end; word += CHUNKS * THREADS)
            add(aligned, Count<CHUNKS>());
        for (; word < end; word += THREADS) add(aligned, Count<1>());
    });
    team.sum(sums);
    if (team.thread() > 0) return;
#pragma unroll
    for (int k = 0; k < SUMS_OF_CHANNEL; ++k) of_parts[Index(k) * gridDim.x + blockIdx.x] = sums[k];
}

template <class T, class Dy, int W, int ROWS, bool OF_X>
__global__ void __launch_bounds__(COLUMN_THREADS, AT_LEAST<COLUMN_THREADS>)
    column_sums(const Dy* __restrict__ dy, const T* __restrict__ x,
                const Accumulator<T>* __restrict__ mean, const Accumulator<T>* __restrict__ rstd,
                Accumulator<T>* __restrict__ of_parts, Index channels, Index spatial, Index line,
                Index rows, Index ragged, Index length, unsigned tiles, int lanes) {
    using A = Accumulator<T>;
    __shared__ OfTeams<A, W> of_teams[SUMS_OF_CHANNEL];
    const unsigned tile = blockIdx.x % tiles, part = blockIdx.x / tiles, parts = gridDim.x / tiles;
    const Columns<W> own(tile, part, lanes, line, rows, ragged, length);
    A sums[SUMS_OF_CHANNEL][W] = {};
    if (own.begin + own.team < own.end) {
        const OfWord<W, false> of(own.column, channels, spatial);
        A means[W], rstds[W];
        of.load(mean, means);
        of.load(rstd, rstds);
        Index place = (own.begin + own.team) * line + own.column;
        const auto add = [&](auto aligned, auto rows) {
            constexpr bool ALIGNED = decltype(aligned)::value;
            A here[SUMS_OF_CHANNEL][W] = {};
#pragma unroll
            for (int i = 0; i < decltype(rows)::value; ++i, place += own.teams * line) {
                A d[W], values[W];
                load_word<ALIGNED>(dy + place, d);
                if (OF_X) load_word<ALIGNED>(x + place, values);
#pragma unroll
                for (int j = 0; j < W; ++j) {
                    here[DY][j] += d[j];
                    if (OF_X) {
                        const A deviation = values[j] - means[j];
                        here[PRODUCT][j] += d[j] * (deviation * rstds[j]);
                        here[DEVIATION][j] += deviation * range_scale(rstds[j]);
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < SUMS_OF_CHANNEL; ++k)
#pragma unroll
                for (int j = 0; j < W; ++j) sums[k][j] += here[k][j];
        };
        with_alignment(has_aligned_words<W>(x) && has_aligned_words<W>(dy), [&](auto aligned) {
            Index r = own.begin + own.team;
            for (; r + (ROWS - 1) * own.teams < own.end; r += ROWS * own.teams)
                add(aligned, Count<ROWS>());
            for (; r < own.end; r += own.teams) add(aligned, Count<1>());
        });
    }
#pragma unroll
    for (int k = 0; k < SUMS_OF_CHANNEL; ++k)
#pragma unroll
        for (int j = 0; j < W; ++j) of_teams[k].at(threadIdx.x, j) = sums[k][j];
    __syncthreads();
    for (int c = threadIdx.x; c < lanes * W; c += COLUMN_THREADS) {
        const Index column = Index(tile) * lanes * W + c;
        if (column >= line) continue;
#pragma unroll
        for (int k = 0; k < SUMS_OF_CHANNEL; ++k) {
            A sum = 0;
            for (int team = 0; team < own.teams; ++team)
                sum += of_teams[k].at(team * lanes + c / W, c % W);
            of_parts[(Index(k) * parts + part) * line + column] = sum;
        }
    }
}

// What channels_differentiate takes: lines of a number for each channel.
enum { MISSED_BY_MEAN, MEAN_DY, PROJECTION };

// The sums of parts put together; `share` is one over the elements of a channel.
template <class A, class Result, int WARPS, int TEAMS>
__global__ void __launch_bounds__(WARPS* TEAMS* WARP, AT_LEAST<WARPS * TEAMS * WARP>)
    channel_gradients(const A* __restrict__ of_parts, const A* __restrict__ mean,
                      const A* __restrict__ rstd, A* __restrict__ of_channels,
                      Result* __restrict__ dgamma, Result* __restrict__ dbeta, Index channels,
                      Index spatial, Index line, Index rows, Index ragged, Index length,
                      Index parts, double share) {
    static_assert(WARPS == 1 || TEAMS == 1);
    __shared__ A shared[Team<A, WARPS>::SHARED];
    Team<A, WARPS> team(shared);
    const Index channel = Index(blockIdx.x) * TEAMS + (TEAMS == 1 ? 0 : threadIdx.x / WARP);
    if (channel >= channels) return;
    const Parts at(channel, channels, spatial, line, rows, ragged, length, parts);
    Sum<A> of_thread[SUMS_OF_CHANNEL];
    for (Index entry = team.thread(); entry < at.entries; entry += WARPS * WARP) {
        Index here;
        const Index place = at.place(entry, here);
#pragma unroll
        for (int k = 0; k < SUMS_OF_CHANNEL; ++k) of_thread[k].add(of_parts[k * parts * line + place]);
    }
    A sums[SUMS_OF_CHANNEL] = {of_thread[PRODUCT].total(), of_thread[DEVIATION].total(), of_thread[DY].total()};
    team.sum(sums);
    if (team.thread() > 0) return;
    RowGradient<A, true> of_channel(mean, rstd, channel);
    of_channel.finish(sums, A(share));
    of_channels[MISSED_BY_MEAN * channels + channel] = of_channel.missed;
    of_channels[MEAN_DY * channels + channel] = of_channel.mean_g;
    of_channels[PROJECTION * channels + channel] = of_channel.projection;
    if (dgamma)
        dgamma[channel] = static_cast<Result>(sums[PRODUCT] - of_channel.missed * sums[DY]);
    if (dbeta) dbeta[channel] = static_cast<Result>(sums[DY]);
}

template <class T, class Dy, class Gamma, int W, bool ONE>
__global__ void __launch_bounds__(COLUMN_THREADS, AT_LEAST<COLUMN_THREADS>)
    channels_differentiate(const Dy* __restrict__ dy, const T* __restrict__ x,
                           const Accumulator<T>* __restrict__ mean,
                           const Accumulator<T>* __restrict__ rstd,
                           const Accumulator<T>* __restrict__ of_channels,
                           const Gamma* __restrict__ gamma, T* __restrict__ dx, Index channels,
                           Index spatial, Index line, Index rows, Index ragged, Index length,
                           unsigned tiles, int lanes) {
    using A = Accumulator<T>;
    using Of = OfWord<W, ONE>;
    constexpr int N = Of::N;
    const unsigned block = gridDim.x - 1 - blockIdx.x;
    const Columns<W> own(block % tiles, block / tiles, lanes, line, rows, ragged, length);
    if (own.begin + own.team >= own.end) return;
    const Of of(own.column, channels, spatial);
    A means[N], rstds[N], missed[N], mean_dy[N], projection[N], gammas[N];
    of.load(mean, means);
    of.load(rstd, rstds);
    of.load(of_channels + MISSED_BY_MEAN * channels, missed);
    of.load(of_channels + MEAN_DY * channels, mean_dy);
    of.load(of_channels + PROJECTION * channels, projection);
    of.load(gamma, gammas, A(1));
    Index place = (own.begin + own.team) * line + own.column;
    const auto differentiate = [&](auto aligned) {
        constexpr bool ALIGNED = decltype(aligned)::value;
#pragma unroll 2
        for (Index r = own.begin + own.team; r < own.end; r += own.teams) {
            A values[W], d[W];
            load_word<ALIGNED>(x + place, values);
            load_word<ALIGNED>(dy + place, d);
#pragma unroll
            for (int j = 0; j < W; ++j) {
                const int c = ONE ? 0 : j;
                const A x_hat = fma(values[j] - means[c], rstds[c], -missed[c]);
                values[j] = (d[j] - mean_dy[c] - x_hat * projection[c]) * gammas[c] * rstds[c];
            }
            store_word<ALIGNED>(dx + place, values);
            place += own.teams * line;
        }
    };
    with_alignment(
        has_aligned_words<W>(x) && has_aligned_words<W>(dy) && has_aligned_words<W>(dx),
        differentiate);
}
