// What both passes share: how rows are read and written, and how their sums are taken.
//
// A row belongs to a team of warps. Thread t of a team of n threads has chunks t, t + n, ... of
// the row, each of 16 bytes of x, wherever the row lies in memory: alignment decides how a chunk is
// loaded, never whose it is. So no sum depends on where an array begins.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using Index = long long;

template <class T>
struct Accumulation {
    using type = float;
};
template <>
struct Accumulation<double> {
    using type = double;
};
template <class T>
using Accumulator = typename Accumulation<T>::type;

// Below the least, the mean of squares may have lost digits by underflow of its larger terms.
template <class A>
struct Limits;
template <>
struct Limits<float> {
    static constexpr float least = 0x1p-100f, most = 0x1.fffffep127f;
    static constexpr float smallest_normal = 0x1p-126f;
    static constexpr float least_rstd = 0x1p-64f;  // below it, sums of deviations may overflow
    static constexpr int reach = 103;  // of exponents that a row may be scaled by
};
template <>
struct Limits<double> {
    static constexpr double least = 0x1p-900;
    static constexpr double most = 0x1.fffffffffffffp1023;
    static constexpr double smallest_normal = 0x1p-1022;
    static constexpr double least_rstd = 0x1p-512;
    static constexpr int reach = 999;
};

// The power of two by which deviations from a mean are multiplied before they are summed: it rounds
// nothing, and the sum does not overflow.
template <class A>
__device__ A range_scale(A rstd) {
    return rstd < Limits<A>::least_rstd ? Limits<A>::least_rstd : A(1);
}

// To half an ulp, and to one; the quotient of root and 1 takes a call for its special cases.
__device__ inline float inverse_root(float x) { return __frsqrt_rn(x); }
__device__ inline double inverse_root(double x) { return rsqrt(x); }

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int CHUNK_BYTES = 16;

// Blocks that a multiprocessor must have registers for. Without a number, the compiler aims at more
// of the smaller blocks, and spills a register or two for it.
template <int THREADS>
constexpr int AT_LEAST = THREADS < 512 ? 512 / THREADS : 1;

template <class T>
constexpr int CHUNK = CHUNK_BYTES / int(sizeof(T));

template <class T, int V>
struct alignas(CHUNK_BYTES) Pack {
    T elements[V];
};

template <class T>
__device__ bool is_aligned(const T* place) {
    return reinterpret_cast<size_t>(place) % CHUNK_BYTES == 0;
}

// The first `count` elements from `place` on, and zeros.
template <class T, class A, int V>
__device__ void load(const T* place, bool aligned, int count, A (&values)[V]) {
    if (aligned && count == V) {
        const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(place);
#pragma unroll
        for (int j = 0; j < V; ++j) values[j] = static_cast<A>(pack.elements[j]);
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) values[j] = j < count ? static_cast<A>(place[j]) : A(0);
    }
}

template <class T, class A, int V>
__device__ void store(T* place, bool aligned, int count, const A (&values)[V]) {
    constexpr int WORDS = V * int(sizeof(T)) / CHUNK_BYTES;
    if (WORDS > 0 && aligned && count == V) {
        union {
            Pack<T, V> pack;
            uint4 words[WORDS > 0 ? WORDS : 1];
        } both = {};
#pragma unroll
        for (int j = 0; j < V; ++j) both.pack.elements[j] = static_cast<T>(values[j]);
        // By name, since the compiler splits an assignment where it cannot follow the address.
#pragma unroll
        for (int i = 0; i < WORDS; ++i) __stcg(reinterpret_cast<uint4*>(place) + i, both.words[i]);
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j)
            if (j < count) place[j] = static_cast<T>(values[j]);
    }
}

// How many elements of a row share a parameter: one, any number, or whole chunks.
enum Repeat { ONE, ANY, CHUNKS_OF };

// Element c of a row has element c / repeat of its parameters, which are those of its residue, that
// is its number modulo groups. Elements are counted from `begin`, so that 32 bits hold their number:
// division is much faster in these.
template <class P, Repeat REPEAT>
struct Parameter {
    const P* place;
    bool aligned;
    unsigned repeat, past;

    __device__ Parameter(const P* parameters, unsigned residue, Index n, Index repeat,
                         Index begin = 0)
        : place(parameters), repeat(unsigned(repeat)), past(0) {
        if constexpr (REPEAT == ONE) {
            if (place) place += residue * n + begin;
        } else {
            if (place) place += residue * (n / repeat) + begin / repeat;
            past = unsigned(begin % repeat);
        }
        aligned = is_aligned(place);
    }

    template <class A, int V>
    __device__ void load(int c, int count, A (&values)[V]) const {
        if constexpr (REPEAT == ONE) {
            ::load(place + c, aligned, count, values);
        } else if constexpr (REPEAT == ANY) {
#pragma unroll
            for (int j = 0; j < V; ++j)
                values[j] = j < count ? static_cast<A>(place[(past + c + j) / repeat]) : A(0);
        } else {
            const A value = static_cast<A>(place[(past + c) / repeat]);
#pragma unroll
            for (int j = 0; j < V; ++j) values[j] = value;
        }
    }
};

// A sum, and what its rounding has lost: Knuth, The Art of Computer Programming 2, 4.2.2, theorem B.
template <class A>
struct Sum {
    A sum = 0, lost = 0;

    __device__ void add(A value) {
        const A with = sum + value;
        const A added = with - sum;
        lost += (sum - (with - added)) + (value - added);
        sum = with;
    }
    // Beside an infinity, what was lost is NaN.
    __device__ A total() const { return lost == lost ? sum + lost : sum; }
};

template <class A>
__device__ A sum_of_warp(A value) {
#pragma unroll
    for (int flip = WARP / 2; flip > 0; flip /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, flip);
    return value;
}

template <class A>
__device__ A largest_of_warp(A value) {
#pragma unroll
    for (int flip = WARP / 2; flip > 0; flip /= 2)
        value = max(value, __shfl_xor_sync(ALL_LANES, value, flip));
    return value;
}

// The warps that share a row; where that is one, a block has several teams.
template <class A, int WARPS>
struct Team {
    static constexpr int THREADS = WARPS * WARP;
    static constexpr int SHARED = WARPS == 1 ? 1 : 2 * 3 * WARPS;

    // Two buffers take turns, so one barrier for each reduction is enough.
    A* shared;
    int turn = 0;

    __device__ explicit Team(A* shared) : shared(shared) {}

    __device__ static int thread() { return WARPS == 1 ? threadIdx.x % WARP : threadIdx.x; }

    // The same bits in every thread.
    template <int K>
    __device__ void sum(A (&values)[K]) {
        static_assert(K <= 3);
#pragma unroll
        for (int k = 0; k < K; ++k) values[k] = sum_of_warp(values[k]);
        if constexpr (WARPS > 1) {
            exchange(values);
#pragma unroll
            for (int k = 0; k < K; ++k) values[k] = sum_of_warp(values[k]);
        }
    }

    // Of values that are not negative.
    __device__ A largest(A value) {
        A values[1] = {largest_of_warp(value)};
        if constexpr (WARPS > 1) {
            exchange(values);
            values[0] = largest_of_warp(values[0]);
        }
        return values[0];
    }

  private:
    // From the values of each warp in its first lane, to one of them in each of the first lanes.
    template <int K>
    __device__ void exchange(A (&values)[K]) {
        const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        A* slots = shared + turn * 3 * WARPS;
        turn ^= 1;
        if (lane == 0) {
#pragma unroll
            for (int k = 0; k < K; ++k) slots[k * WARPS + warp] = values[k];
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < K; ++k) values[k] = lane < WARPS ? slots[k * WARPS + lane] : A(0);
    }
};
