// Shared by both passes over rows, and by those over channels: how rows are read and written, and
// how a block reduces values.
//
// A row belongs to a group of warps. Its chunks are vectors of 16 bytes of x. Thread t of a group
// of n threads has chunks t, t + n, ... of the row. The address of the row decides only how a chunk
// is loaded, never which thread has it, so that no sum depends on where an array begins.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Correct to half an ulp, and to one: a quotient of 1 and a square root calls a function for its
// special cases.
__device__ inline float reciprocal_sqrt(float x) { return __frsqrt_rn(x); }
__device__ inline double reciprocal_sqrt(double x) { return rsqrt(x); }

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int VEC_BYTES = 16;
// Threads of the largest block. Each has 64 registers.
constexpr int MAX_THREADS = 1024;

// Blocks that a multiprocessor must have registers for. Without a number, the compiler aims at more
// of the smaller blocks, and spills a register or two for it.
template <int THREADS>
constexpr int MIN_BLOCKS_PER_SM = THREADS < 512 ? 512 / THREADS : 1;

// Elements of a vector of 16 bytes.
template <class T>
constexpr int FULL_VEC = VEC_BYTES / int(sizeof(T));

template <class T, int VEC>
constexpr int VEC_ALIGNMENT = VEC * int(sizeof(T)) < VEC_BYTES ? VEC * int(sizeof(T)) : VEC_BYTES;

template <class T, int VEC>
struct alignas(VEC_ALIGNMENT<T, VEC>) Vec {
    T elements[VEC];
};

// An integer type that one instruction stores.
template <int BYTES>
struct RawVec;
template <>
struct RawVec<2> {
    using type = unsigned short;
};
template <>
struct RawVec<4> {
    using type = unsigned;
};
template <>
struct RawVec<8> {
    using type = uint2;
};
template <>
struct RawVec<16> {
    using type = uint4;
};

template <int VEC, class T>
__device__ bool is_aligned(const T* ptr) {
    return VEC == 1 || reinterpret_cast<size_t>(ptr) % VEC_ALIGNMENT<T, VEC> == 0;
}

// Convert the elements of 16 bytes.
template <class T, class A>
__device__ void convert_vec(T, const uint4& vec, A* values) {
    const union {
        uint4 raw;
        T elements[FULL_VEC<T>];
    } both = {vec};
#pragma unroll
    for (int j = 0; j < FULL_VEC<T>; ++j) values[j] = static_cast<A>(both.elements[j]);
}
// A bfloat16 is the upper half of a float.
__device__ inline void convert_vec(__nv_bfloat16, const uint4& vec, float* values) {
    const unsigned words[] = {vec.x, vec.y, vec.z, vec.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        values[2 * k] = __uint_as_float(words[k] << 16);
        values[2 * k + 1] = __uint_as_float(words[k] & 0xffff0000u);
    }
}

template <bool ALIGNED, class T, class A, int VEC>
__device__ void load_vec(const T* ptr, A (&values)[VEC]) {
    constexpr int FULL = FULL_VEC<T>;
    if constexpr (ALIGNED && VEC % FULL == 0) {
#pragma unroll
        for (int j = 0; j < VEC; j += FULL)
            convert_vec(T(), *reinterpret_cast<const uint4*>(ptr + j), values + j);
    } else if constexpr (ALIGNED) {
        const Vec<T, VEC> vec = *reinterpret_cast<const Vec<T, VEC>*>(ptr);
#pragma unroll
        for (int j = 0; j < VEC; ++j) values[j] = static_cast<A>(vec.elements[j]);
    } else {
#pragma unroll
        for (int j = 0; j < VEC; ++j) values[j] = static_cast<A>(ptr[j]);
    }
}

template <class T>
struct Pair {
    T first, second;
};
template <class T, class A>
__device__ Pair<T> round_pair(T, A first, A second) {
    return {static_cast<T>(first), static_cast<T>(second)};
}
// One instruction rounds both, and puts them into a word.
__device__ inline __half2 round_pair(__half, float first, float second) {
    return __floats2half2_rn(first, second);
}
__device__ inline __nv_bfloat162 round_pair(__nv_bfloat16, float first, float second) {
    return __floats2bfloat162_rn(first, second);
}

template <bool ALIGNED, class T, class A, int VEC>
__device__ void store_vec(T* ptr, const A (&values)[VEC]) {
    if constexpr (ALIGNED && VEC > 1) {
        constexpr int BYTES = VEC_ALIGNMENT<T, VEC>, STORES = VEC * int(sizeof(T)) / BYTES;
        using Raw = typename RawVec<BYTES>::type;
        union {
            decltype(round_pair(T(), A(), A())) pairs[VEC / 2];
            Raw raw[STORES];
        } both = {};
#pragma unroll
        for (int j = 0; j < VEC; j += 2)
            both.pairs[j / 2] = round_pair(T(), values[j], values[j + 1]);
        // By this function: the compiler splits an assignment where it cannot follow the address.
#pragma unroll
        for (int i = 0; i < STORES; ++i) __stcg(reinterpret_cast<Raw*>(ptr) + i, both.raw[i]);
    } else {
#pragma unroll
        for (int j = 0; j < VEC; ++j) ptr[j] = static_cast<T>(values[j]);
    }
}

// A number that is known at compile time, in place of one that is not.
template <int VALUE>
struct Constant {
    static constexpr int value = VALUE;
    __device__ constexpr operator int() const { return VALUE; }
};

// Load a chunk: all of it where its length is known at compile time, from an aligned address; else
// the first `count` elements, and zeros for the others.
template <class T, class A, int VEC>
__device__ void load(const T* ptr, Constant<VEC>, A (&values)[VEC]) {
    load_vec<true>(ptr, values);
}
template <class T, class A, int VEC>
__device__ void load(const T* ptr, int count, A (&values)[VEC]) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) values[j] = j < count ? static_cast<A>(ptr[j]) : A(0);
}

// Store a chunk likewise.
template <class T, class A, int VEC>
__device__ void store(T* ptr, Constant<VEC>, const A (&values)[VEC]) {
    store_vec<true>(ptr, values);
}
template <class T, class A, int VEC>
__device__ void store(T* ptr, int count, const A (&values)[VEC]) {
#pragma unroll
    for (int j = 0; j < VEC; ++j)
        if (j < count) ptr[j] = static_cast<T>(values[j]);
}

// Make the compiler forget the value of a variable, so that what depends on it is computed when it
// is needed, and not kept in registers.
template <class Word>
__device__ void forget(Word& word) {
    asm volatile("" : "+r"(word));
}

// The VEC elements of a chunk in their own dtype. In that of accumulation they would take more
// registers, so each use converts them.
template <class T, int VEC>
struct RawChunk {
    static constexpr int VECTORS = VEC * int(sizeof(T)) / VEC_BYTES;
    union {
        uint4 vectors[VECTORS];
        T elements[VEC];
    };

    // Load all of a chunk from an aligned address.
    __device__ void load(const T* ptr) {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i)
            vectors[i] = *reinterpret_cast<const uint4*>(ptr + i * FULL_VEC<T>);
    }
    // Load the first `count` elements, and zeros for the others.
    __device__ void load(const T* ptr, int count) {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) vectors[i] = {};
#pragma unroll
        for (int j = 0; j < VEC; ++j)
            if (j < count) elements[j] = ptr[j];
    }
    __device__ void load(const T* ptr, bool aligned, int count) {
        if (aligned && count >= VEC)
            load(ptr);
        else
            load(ptr, count);
    }
    // Give the elements in their accumulation dtype.
    template <class A>
    __device__ void convert(A (&values)[VEC]) const {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            uint4 words = vectors[i];
            forget(words.x), forget(words.y), forget(words.z), forget(words.w);
            convert_vec(T(), words, values + i * FULL_VEC<T>);
        }
    }
};

// Load a thread's chunks of the n elements from `ptr` on, all before any is used.
template <int THREADS, class T, int VEC, int CHUNKS>
__device__ void load_chunks(const T* ptr, int n, int thread, RawChunk<T, VEC> (&chunks)[CHUNKS]) {
    const bool aligned = is_aligned<VEC>(ptr);
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int c = (i * THREADS + thread) * VEC;
        if (aligned && n - c >= VEC) chunks[i].load(ptr + c);
    }
    if (aligned && n % VEC == 0) return;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int c = (i * THREADS + thread) * VEC;
        if (!aligned || n - c < VEC) chunks[i].load(ptr + c, n - c);
    }
}

// How many elements of a row share a parameter: one, any number, or whole chunks.
enum ParamIndexing { PER_ELEMENT, REPEATED, PER_CHUNK };

// A view of gamma or beta: element c of a row has element c / repeat of the parameters of its
// group, `group_index`, which is the row's number modulo groups. Elements are counted from `begin`,
// so that 32 bits hold their number, in which division is much faster.
template <class P, ParamIndexing INDEXING>
struct ParamView {
    const P* ptr;
    unsigned repeat, repeat_offset;

    __device__ ParamView(const P* parameters, unsigned group_index, Index n, Index repeat,
                         Index begin = 0)
        : ptr(parameters), repeat(unsigned(repeat)), repeat_offset(0) {
        if constexpr (INDEXING == PER_ELEMENT) {
            if (ptr) ptr += group_index * n + begin;
        } else {
            if (ptr) ptr += group_index * (n / repeat) + begin / repeat;
            repeat_offset = unsigned(begin % repeat);
        }
    }

    // Whether whole chunks can be loaded as vectors.
    __device__ bool is_aligned() const {
        return INDEXING != PER_ELEMENT || ::is_aligned<FULL_VEC<P>>(ptr);
    }

    template <class Count, class A, int VEC>
    __device__ void load(int c, Count count, A (&values)[VEC]) const {
        if constexpr (INDEXING == PER_ELEMENT) {
            ::load(ptr + c, count, values);
        } else if constexpr (INDEXING == REPEATED) {
            unsigned index = (repeat_offset + c) / repeat, uses = (repeat_offset + c) % repeat;
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                values[j] = j < count ? static_cast<A>(ptr[index]) : A(0);
                if (++uses == repeat) {
                    uses = 0;
                    ++index;
                }
            }
        } else {
            const A value = static_cast<A>(ptr[(repeat_offset + c) / repeat]);
#pragma unroll
            for (int j = 0; j < VEC; ++j) values[j] = value;
        }
    }
};

// Add up the values of each LANES lanes of a warp.
template <int LANES = WARP, class A>
__device__ A warp_reduce_add(A value) {
#pragma unroll
    for (int flip = LANES / 2; flip > 0; flip /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, flip);
    return value;
}

template <int LANES = WARP, class A>
__device__ A warp_reduce_max(A value) {
#pragma unroll
    for (int flip = LANES / 2; flip > 0; flip /= 2)
        value = max(value, __shfl_xor_sync(ALL_LANES, value, flip));
    return value;
}

// The threads that share a row: lanes of a warp, or whole warps. A block has several groups, unless
// a group has several warps.
template <class A, int THREADS>
struct ThreadGroup {
    static constexpr int LANES = THREADS < WARP ? THREADS : WARP;
    static constexpr int WARPS = THREADS / LANES;
    static constexpr int SHARED = WARPS == 1 ? 1 : 2 * 3 * WARPS;

    // Two buffers are used in turn, so that each reduction needs only one barrier.
    A* shared;
    int buffer = 0;

    __device__ explicit ThreadGroup(A* shared) : shared(shared) {}

    __device__ static int thread() { return WARPS == 1 ? threadIdx.x % LANES : threadIdx.x; }
    // The number of the group in its block.
    __device__ static unsigned index() { return WARPS == 1 ? threadIdx.x / LANES : 0; }

    // Whether a condition, which is that of a group, holds for all groups of the warp: all lanes of
    // a warp take part in each shuffle.
    __device__ static bool holds_in_warp(bool condition) {
        return LANES == WARP ? condition : __all_sync(ALL_LANES, condition);
    }

    // Gives the same bits in every thread.
    template <int K>
    __device__ void reduce_add(A (&values)[K]) {
        static_assert(K <= 3);
#pragma unroll
        for (int k = 0; k < K; ++k) values[k] = warp_reduce_add<LANES>(values[k]);
        if constexpr (WARPS > 1) {
            exchange(values);
#pragma unroll
            for (int k = 0; k < K; ++k) values[k] = warp_reduce_add<WARPS>(values[k]);
        }
    }

    // Of values that are not negative.
    __device__ A reduce_max(A value) {
        A values[1] = {warp_reduce_max<LANES>(value)};
        if constexpr (WARPS > 1) {
            exchange(values);
            values[0] = warp_reduce_max<WARPS>(values[0]);
        }
        return values[0];
    }

  private:
    // Give lane w of each WARPS lanes the values of warp w, which are those of its first lane.
    template <int K>
    __device__ void exchange(A (&values)[K]) {
        const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        A* warp_values = shared + buffer * 3 * WARPS;
        buffer ^= 1;
        if (lane == 0) {
#pragma unroll
            for (int k = 0; k < K; ++k) warp_values[k * WARPS + warp] = values[k];
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < K; ++k) values[k] = warp_values[k * WARPS + lane % WARPS];
    }
};
