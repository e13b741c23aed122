// What both passes over channels of x (batch, channels, spatial) share.
//
// Words are what a thread reads at once: as many elements, up to 16 bytes, as divide a run of the
// elements that share a channel, or a line of them. Elements of a channel are added up in one of two
// ways, in parts that depend on the shape alone:
//
// * by planes, where runs are long: a block has a part of the words of one channel;
// * by columns, where they are short: x is rows of a `line` each, and each column of it, of which a
//   channel has some, is added up by itself, a block having a part of the rows of several columns.
//   Of the last row there may be no more than `ragged` columns.
//
// Both leave what they have of each part in one line. A second kernel puts these together, with a team
// for each channel, and a third goes through x as rows of a line. That begins at the end, which the
// first has read last and left in the cache.

template <class T, int W>
constexpr int WORD_ALIGNMENT = W * int(sizeof(T)) < CHUNK_BYTES ? W * int(sizeof(T)) : CHUNK_BYTES;

template <class T, int W>
struct alignas(WORD_ALIGNMENT<T, W>) Word {
    T elements[W];
};

template <int W, class T>
__device__ bool has_aligned_words(const T* place) {
    return W == 1 || reinterpret_cast<size_t>(place) % WORD_ALIGNMENT<T, W> == 0;
}

template <bool IS>
struct Aligned {
    static constexpr bool value = IS;
};

template <int N>
struct Count {
    static constexpr int value = N;
};

// A loop with a copy for arrays that are aligned, in which no load waits for a branch to be taken.
template <class Loop>
__device__ void with_alignment(bool aligned, Loop loop) {
    if (aligned)
        loop(Aligned<true>());
    else
        loop(Aligned<false>());
}

template <bool ALIGNED, class T, class A, int W>
__device__ void load_word(const T* place, A (&values)[W]) {
    if constexpr (ALIGNED) {
        const Word<T, W> word = *reinterpret_cast<const Word<T, W>*>(place);
#pragma unroll
        for (int j = 0; j < W; ++j) values[j] = static_cast<A>(word.elements[j]);
    } else {
#pragma unroll
        for (int j = 0; j < W; ++j) values[j] = static_cast<A>(place[j]);
    }
}

template <int BYTES>
struct Raw;
template <>
struct Raw<2> {
    using type = unsigned short;
};
template <>
struct Raw<4> {
    using type = unsigned;
};
template <>
struct Raw<8> {
    using type = uint2;
};
template <>
struct Raw<16> {
    using type = uint4;
};

template <bool ALIGNED, class T, class A, int W>
__device__ void store_word(T* place, const A (&values)[W]) {
    if constexpr (ALIGNED) {
        using R = typename Raw<W * int(sizeof(T))>::type;
        union {
            Word<T, W> word;
            R raw;
        } both = {};
#pragma unroll
        for (int j = 0; j < W; ++j) both.word.elements[j] = static_cast<T>(values[j]);
        __stcg(reinterpret_cast<R*>(place), both.raw);
    } else {
#pragma unroll
        for (int j = 0; j < W; ++j) place[j] = static_cast<T>(values[j]);
    }
}

// Of numbers that are not negative. Division is much faster in 32 bits.
__device__ inline Index quotient(Index a, Index b) {
    return (a | b) >> 32 ? a / b : unsigned(a) / unsigned(b);
}

// Every STEPth word of a channel; `place` counts words of x.
template <int W, int STEP>
struct PlaneWalk {
    Index place, in_run, run, ahead, advance, wrap;

    __device__ PlaneWalk(Index word, Index channel, Index channels, Index spatial)
        : run(spatial / W) {
        const Index batch = quotient(word, run), turns = quotient(STEP, run);
        in_run = word - batch * run;
        place = (batch * channels + channel) * run + in_run;
        ahead = STEP - turns * run;
        advance = turns * channels * run + ahead;
        wrap = (channels - 1) * run;
    }
    __device__ void next() {
        place += advance;
        in_run += ahead;
        if (in_run >= run) {
            in_run -= run;
            place += wrap;
        }
    }
};

struct ColumnWalk {
    Index place, step;

    __device__ void next() { place += step; }
};

constexpr int COLUMN_THREADS = 256;

// Threads of a block over the columns and rows of x: `lanes` words side by side, in each of as many
// rows as there are teams of lanes.
template <int W>
struct Columns {
    int lanes, teams, lane, team;
    Index begin, end, column;

    __device__ Columns(Index tile, Index part, int lanes, Index line, Index rows, Index ragged,
                       Index length)
        : lanes(lanes),
          teams(COLUMN_THREADS / lanes),
          lane(int(threadIdx.x) % lanes),
          team(int(threadIdx.x) / lanes),
          begin(part * length),
          column((tile * lanes + lane) * W) {
        end = column < line ? min(begin + length, rows - (column >= ragged)) : begin;
    }
};

// Where each thread leaves something for each of its columns, to be added up over teams. A few places
// are left out, so that neither threads nor columns that are neighbours use the same banks.
template <class E, int W>
struct OfTeams {
    static constexpr int SKIPPED = 128 / int(sizeof(E)) / W;
    static constexpr int SIZE = W * (COLUMN_THREADS + SKIPPED);
    E elements[SIZE];

    __device__ E& at(int thread, int j) { return elements[j * (COLUMN_THREADS + SKIPPED) + thread]; }
};

// Where the parts of a channel are: in each line of parts, `folds` times `spatial` columns.
struct Parts {
    Index per_line, entries, spatial, fold, first, line, rows, ragged, length;

    __device__ Parts(Index channel, Index channels, Index spatial, Index line, Index rows,
                     Index ragged, Index length, Index parts)
        : per_line(quotient(line, channels)),
          entries(parts * per_line),
          spatial(spatial),
          fold(channels * spatial),
          first(channel * spatial),
          line(line),
          rows(rows),
          ragged(ragged),
          length(length) {}

    // The place of an entry, and of how many rows it is, which may be none.
    __device__ Index place(Index entry, Index& count) const {
        const Index part = quotient(entry, per_line), in_line = entry - part * per_line;
        const Index turns = quotient(in_line, spatial);
        const Index column = turns * fold + first + in_line - turns * spatial;
        count = min(length, rows - (column >= ragged) - part * length);
        return part * line + column;
    }
};

// What belongs to the channels of a word: to the one that it has, or to that of each element.
template <int W, bool ONE>
struct OfWord {
    static constexpr int N = ONE ? 1 : W;
    Index channel, past, spatial;
    bool side_by_side;

    __device__ OfWord(Index column, Index channels, Index spatial)
        : spatial(spatial), side_by_side(spatial == 1) {
        const Index run = quotient(column, spatial);
        past = column - run * spatial;
        channel = run - quotient(run, channels) * channels;
    }

    template <class P, class A>
    __device__ void load(const P* place, A (&values)[N]) const {
        if (ONE) {
            values[0] = static_cast<A>(place[channel]);
        } else if (side_by_side) {
            with_alignment(has_aligned_words<N>(place + channel), [&](auto aligned) {
                load_word<decltype(aligned)::value>(place + channel, values);
            });
        } else {
            const P* at = place + channel;
            Index left = spatial - past;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                values[j] = static_cast<A>(*at);
                if (--left == 0 && j + 1 < N) {
                    ++at;
                    left = spatial;
                }
            }
        }
    }
    template <class P, class A>
    __device__ void load(const P* place, A (&values)[N], A otherwise) const {
        if (place) {
            load(place, values);
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) values[j] = otherwise;
        }
    }
};
