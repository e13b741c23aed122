// Shared by both passes over channels of x (batch, channels, spatial).
//
// A channel extent is a run of `spatial` elements that share a channel. A thread reads vectors: as
// many elements, up to 16 bytes, as divide a channel extent or a row of columns. Elements of a
// channel are added up in one of two ways, in parts that depend only on the shape:
//
// * by planes, where extents are long: a block has a part of the vectors of one channel;
// * by columns, where they are short: x is seen as rows of `row_length` elements, the last of which
//   may be shorter, of `last_row_length` elements. Each column is added up by itself, and a channel
//   has several of them. A block has a part of the rows of several columns.
//
// Both write the partial results of a part contiguously. A second kernel reduces them, with one
// warp group for each channel. A third processes x row by row, starting at the end, which the first
// kernel read last and which is still in the cache.

template <bool VALUE>
struct BoolConstant {
    static constexpr bool value = VALUE;
};

// Load a vector, and convert it when all of it is there: the compiler would load the words of a
// vector of bfloat16 one by one.
template <bool ALIGNED, class T, class A, int VEC>
__device__ void load_whole_vec(const T* ptr, A (&values)[VEC]) {
    if constexpr (ALIGNED && VEC == FULL_VEC<T>) {
        RawChunk<T, VEC> chunk;
        chunk.load(ptr);
        chunk.convert(values);
    } else {
        load_vec<ALIGNED>(ptr, values);
    }
}

// Compile a loop twice, once for arrays that are aligned, in which no load waits for a branch.
template <class Loop>
__device__ void dispatch_aligned(bool aligned, Loop loop) {
    if (aligned)
        loop(BoolConstant<true>());
    else
        loop(BoolConstant<false>());
}

// Divide numbers that are not negative. Division is much faster in 32 bits.
__device__ inline Index fast_div(Index a, Index b) {
    return (a | b) >> 32 ? a / b : unsigned(a) / unsigned(b);
}

// Every STEPth vector of a channel; `offset` counts vectors of x.
template <int VEC, int STEP>
struct PlaneIterator {
    Index offset, inner, channel_extent, inner_step, step, wrap_step;

    __device__ PlaneIterator(Index vec, Index channel, Index channels, Index spatial)
        : channel_extent(spatial / VEC) {
        const Index batch = fast_div(vec, channel_extent);
        const Index whole_extents = fast_div(STEP, channel_extent);
        inner = vec - batch * channel_extent;
        offset = (batch * channels + channel) * channel_extent + inner;
        inner_step = STEP - whole_extents * channel_extent;
        step = whole_extents * channels * channel_extent + inner_step;
        wrap_step = (channels - 1) * channel_extent;
    }
    __device__ void next() {
        offset += step;
        inner += inner_step;
        if (inner >= channel_extent) {
            inner -= channel_extent;
            offset += wrap_step;
        }
    }
};

struct ColumnIterator {
    Index offset, step;

    __device__ void next() { offset += step; }
};

constexpr int COLUMN_THREADS = 256;

// A block's threads over columns and rows of x: `thread_cols` vectors of a row, in each of
// `thread_rows` rows at a time.
template <int VEC>
struct ColumnTile {
    int thread_cols, thread_rows, thread_col, thread_row;
    Index begin, end, column;

    __device__ ColumnTile(Index tile, Index part, int thread_cols, Index row_length, Index rows,
                          Index last_row_length, Index length)
        : thread_cols(thread_cols),
          thread_rows(COLUMN_THREADS / thread_cols),
          thread_col(int(threadIdx.x) % thread_cols),
          thread_row(int(threadIdx.x) / thread_cols),
          begin(part * length),
          column((tile * thread_cols + thread_col) * VEC) {
        end = column < row_length ? min(begin + length, rows - (column >= last_row_length)) : begin;
    }

    __device__ bool is_empty() const { return begin + thread_row >= end; }
    __device__ Index first_offset(Index row_length) const {
        return (begin + thread_row) * row_length + column;
    }
    // Call `visit` with the number of the thread's next rows: ROWS, and 1 for each that remains.
    template <int ROWS, class Visit>
    __device__ void for_each_row(Visit visit) const {
        Index r = begin + thread_row;
        for (; r + (ROWS - 1) * thread_rows < end; r += ROWS * thread_rows)
            visit(Constant<ROWS>());
        for (; r < end; r += thread_rows) visit(Constant<1>());
    }
};

// Call `visit` with the number of the thread's next vectors, which are every THREADSth one: CHUNKS,
// and 1 for each that remains.
template <int THREADS, int CHUNKS, class Visit>
__device__ void for_each_vec(Index vec, Index end, Visit visit) {
    for (; vec + (CHUNKS - 1) * THREADS < end; vec += CHUNKS * THREADS)
        visit(Constant<CHUNKS>());
    for (; vec < end; vec += THREADS) visit(Constant<1>());
}

// An element of each thread for each of its columns, in shared memory, to be reduced over thread
// rows. Padding ensures that neither neighbouring threads nor neighbouring columns use the same
// banks.
template <class E, int VEC>
struct PaddedShared {
    static constexpr int PADDING = 128 / int(sizeof(E)) / VEC;
    static constexpr int SIZE = VEC * (COLUMN_THREADS + PADDING);
    E elements[SIZE];

    __device__ E& at(int thread, int j) {
        return elements[j * (COLUMN_THREADS + PADDING) + thread];
    }
};

// Where the partial results of a channel are: each part has a row of them, in which `spatial`
// columns of the channel come in every fold_stride.
struct PartialsLayout {
    Index entries_per_row, entries, spatial, fold_stride, first_column;
    Index row_length, rows, last_row_length, length;

    __device__ PartialsLayout(Index channel, Index channels, Index spatial, Index row_length,
                              Index rows, Index last_row_length, Index length, Index parts)
        : entries_per_row(fast_div(row_length, channels)),
          entries(parts * entries_per_row),
          spatial(spatial),
          fold_stride(channels * spatial),
          first_column(channel * spatial),
          row_length(row_length),
          rows(rows),
          last_row_length(last_row_length),
          length(length) {}

    // The offset of an entry; `count` becomes the number of its rows, which may be 0.
    __device__ Index offset(Index entry, Index& count) const {
        const Index part = fast_div(entry, entries_per_row);
        const Index in_row = entry - part * entries_per_row;
        const Index fold_index = fast_div(in_row, spatial);
        const Index column =
            fold_index * fold_stride + first_column + in_row - fold_index * spatial;
        count = min(length, rows - (column >= last_row_length) - part * length);
        return part * row_length + column;
    }
};

// Values that belong to the channels of a vector: one if it lies in one channel, else one for each
// element.
template <int VEC, bool ONE_CHANNEL>
struct ChannelValues {
    static constexpr int N = ONE_CHANNEL ? 1 : VEC;
    Index channel, in_extent, spatial;
    bool are_contiguous;

    __device__ ChannelValues(Index column, Index channels, Index spatial)
        : spatial(spatial), are_contiguous(spatial == 1) {
        const Index extent = fast_div(column, spatial);
        in_extent = column - extent * spatial;
        channel = extent - fast_div(extent, channels) * channels;
    }

    template <class P, class A>
    __device__ void load(const P* ptr, A (&values)[N]) const {
        if (ONE_CHANNEL) {
            values[0] = static_cast<A>(ptr[channel]);
        } else if (are_contiguous) {
            dispatch_aligned(is_aligned<N>(ptr + channel), [&](auto aligned) {
                load_vec<decltype(aligned)::value>(ptr + channel, values);
            });
        } else {
            const P* value_ptr = ptr + channel;
            Index left = spatial - in_extent;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                values[j] = static_cast<A>(*value_ptr);
                if (--left == 0 && j + 1 < N) {
                    ++value_ptr;
                    left = spatial;
                }
            }
        }
    }
    template <class P, class A>
    __device__ void load(const P* ptr, A (&values)[N], A default_value) const {
        if (ptr) {
            load(ptr, values);
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) values[j] = default_value;
        }
    }
};
