// CUDA C++ for a host compiler: each CUDA thread is a fiber, of which one runs at a time.
//
// Included ahead of a kernel's unmodified source. What it cannot express it leaves undefined, so
// that a kernel that needs it does not compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __CUDACC_VER_MAJOR__ 13  // as under NVRTC, for the headers of CUDA
#define __CUDACC_VER_MINOR__ 0
#include <vector_functions.h>
#include <vector_types.h>
#undef __constant__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __host__
#undef __launch_bounds__
#undef __shared__
#define __constant__ static
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __global__
#define __host__
#define __launch_bounds__(...)
#ifdef SIMULATOR_POISON  // a section of their own lets static shared arrays be found and filled
#define __shared__ static __attribute__((section("simulator_shared")))
#else
#define __shared__ static
#endif

namespace simulator {

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Fiber {
    void* stack_pointer;
    char* stack;
    State state;
    bool started;
    uint3 thread;
    unsigned index;      // in the block
    int line;            // of the barrier that it waits at
    unsigned exchanges;  // so far; two buffers alternate, so a fast lane cannot overwrite an unread one
    void* fake_stack;    // AddressSanitizer's
};

struct alignas(16) Slot {
    char bytes[16];
};

struct Machine {
    Fiber* current;
    uint3 block_index;
    dim3 block, grid;
    void* dynamic_shared;
};

extern Machine machine;

void block_barrier(int line);
void warp_barrier(unsigned mask, int line, bool orders_memory = true);
// Leaves a value for the other lanes of `mask`, waits for theirs, and gives all 32 slots. As on a
// GPU, nothing is said about other memory.
const Slot* exchange(unsigned mask, Slot value, int line);
void fail(const char* format, int a = 0, int b = 0, int c = 0, int d = 0);
// Runs every thread of every block; 0 or CUDA_ERROR_LAUNCH_FAILED.
int run(void (*thread)(void*), void* argument, const unsigned* dimensions, size_t dynamic_shared,
        char* static_shared, size_t static_shared_size);

inline unsigned lane() { return machine.current->index & 31; }

template <class T>
Slot slot(T value) {
    static_assert(sizeof(T) <= sizeof(Slot));
    Slot slot{};
    __builtin_memcpy(slot.bytes, &value, sizeof value);
    return slot;
}

template <class T>
T shuffle(unsigned mask, T value, int source, int line) {
    const Slot* slots = exchange(mask, slot(value), line);
    if (!(mask >> source & 1)) fail("line %d: shuffle from lane %d, which takes no part", line, source);
    __builtin_memcpy(&value, slots[source].bytes, sizeof value);
    return value;
}

template <class T, class From>
T& aligned(From* place, int line = __builtin_LINE()) {
    if (uintptr_t(place) % alignof(T)) {
        fail("line %d: a vector that is not aligned to %d bytes", line, int(alignof(T)));
        static std::remove_const_t<T> instead;  // UndefinedBehaviorSanitizer would end the process
        return instead;
    }
    return *reinterpret_cast<T*>(place);
}

inline unsigned ballot(unsigned mask, bool vote, int line) {
    const Slot* slots = exchange(mask, slot(vote), line);
    unsigned votes = 0;
    for (int each = 0; each < 32; ++each)
        if (mask >> each & 1) votes |= unsigned(slots[each].bytes[0] != 0) << each;
    return votes;
}

}  // namespace simulator

#define threadIdx (simulator::machine.current->thread)
#define blockIdx (simulator::machine.block_index)
#define blockDim (simulator::machine.block)
#define gridDim (simulator::machine.grid)
#define warpSize 32

#define SIMULATOR_LINE int line = __builtin_LINE()

inline void __syncthreads(SIMULATOR_LINE) { simulator::block_barrier(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMULATOR_LINE) {
    simulator::warp_barrier(mask, line);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMULATOR_LINE) {
    const int lane = simulator::lane();
    return simulator::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, SIMULATOR_LINE) {
    const int lane = simulator::lane(), source = lane ^ flip;
    const bool within = (source & ~(width - 1)) <= (lane & ~(width - 1));
    return simulator::shuffle(mask, value, within ? source : lane, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int distance, int width = 32, SIMULATOR_LINE) {
    const int lane = simulator::lane();
    const bool within = (lane & (width - 1)) + distance < width;
    return simulator::shuffle(mask, value, within ? lane + distance : lane, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance, int width = 32, SIMULATOR_LINE) {
    const int lane = simulator::lane();
    const bool within = (lane & (width - 1)) >= distance;
    return simulator::shuffle(mask, value, within ? lane - distance : lane, line);
}
inline unsigned __ballot_sync(unsigned mask, int vote, SIMULATOR_LINE) {
    return simulator::ballot(mask, vote != 0, line);
}
inline int __any_sync(unsigned mask, int vote, SIMULATOR_LINE) {
    return simulator::ballot(mask, vote != 0, line) != 0;
}
inline int __all_sync(unsigned mask, int vote, SIMULATOR_LINE) {
    return simulator::ballot(mask, vote != 0, line) == mask;
}

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

using std::abs;
using std::ilogb;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;
using std::scalbn;
using std::signbit;
using std::sqrt;

// Only one fiber runs at a time, so every access is atomic.
template <class T>
T atomicAdd(T* place, std::common_type_t<T> value) {
    const T old = *place;
    *place = old + value;
    return old;
}
template <class T>
T atomicExch(T* place, std::common_type_t<T> value) {
    return std::exchange(*place, value);
}
template <class T>
T atomicMax(T* place, std::common_type_t<T> value) {
    return std::exchange(*place, std::max(*place, value));
}
template <class T>
T atomicMin(T* place, std::common_type_t<T> value) {
    return std::exchange(*place, std::min(*place, value));
}
template <class T>
T atomicCAS(T* place, std::common_type_t<T> expected, std::common_type_t<T> value) {
    const T old = *place;
    if (old == expected) *place = value;
    return old;
}

template <class T>
void __stcg(T* place, T value) {
    std::memcpy(place, &value, sizeof value);
}
template <class T>
T __ldg(const T* place) {
    return *place;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return float(1 / std::sqrt(double(x))); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <class To, class From>
To simulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float x) { return simulator_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return simulator_bits<unsigned>(x); }
inline float __int_as_float(int x) { return simulator_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return simulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return simulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return simulator_bits<double>(x); }

namespace simulator {

extern "C" char __start_simulator_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_simulator_shared[] __attribute__((weak, visibility("hidden")));

extern "C" bool simulator_can_access(const void* ptr);

// Whether the current device can access what an argument points to. CuPy passes an array by value,
// as a struct that begins with the pointer.
template <class T>
bool can_access(const void* argument) {
    if constexpr (std::is_pointer_v<T> || (std::is_class_v<T> && sizeof(T) >= sizeof(void*))) {
        const void* ptr;
        __builtin_memcpy(&ptr, argument, sizeof ptr);
        return simulator_can_access(ptr);
    }
    return true;
}

template <class... Parameters, size_t... Places>
int launch(void (*kernel)(Parameters...), void** arguments, const unsigned* dimensions,
           size_t dynamic_shared, std::index_sequence<Places...>) {
    struct Call {
        void (*kernel)(Parameters...);
        void** arguments;
    } call{kernel, arguments};
    const auto thread = [](void* each) {
        const Call& call = *static_cast<Call*>(each);
        call.kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<Parameters>>*>(
            call.arguments[Places])...);
    };
    return run(thread, &call, dimensions, dynamic_shared, __start_simulator_shared,
               size_t(__stop_simulator_shared - __start_simulator_shared));
}

// What will launch a kernel with these arguments, which do not live as long.
template <class... Parameters, size_t... Places>
std::function<int()> later(void (*kernel)(Parameters...), void** arguments,
                           const unsigned* dimensions, size_t dynamic_shared,
                           std::index_sequence<Places...> places) {
    std::array<unsigned, 6> shape;
    std::copy(dimensions, dimensions + shape.size(), shape.begin());
    std::tuple<std::remove_cv_t<Parameters>...> values(
        *static_cast<std::remove_cv_t<Parameters>*>(arguments[Places])...);
    return [=]() mutable {
        void* kept[] = {&std::get<Places>(values)..., nullptr};
        return launch(kernel, kept, shape.data(), dynamic_shared, places);
    };
}

template <class... Parameters, size_t... Places>
bool can_access_all(void (*)(Parameters...), void** arguments, std::index_sequence<Places...>) {
    return (... && can_access<std::remove_cv_t<Parameters>>(arguments[Places]));
}

// Launches a kernel, or where a graph is captured, leaves in `recorded` what will.
template <class... Parameters>
int launch(void (*kernel)(Parameters...), void** arguments, const unsigned* dimensions,
           size_t dynamic_shared, std::function<int()>* recorded) {
    const auto places = std::index_sequence_for<Parameters...>{};
    if (!can_access_all(kernel, arguments, places)) return 700;  // CUDA_ERROR_ILLEGAL_ADDRESS
    if (!recorded) return launch(kernel, arguments, dimensions, dynamic_shared, places);
    *recorded = later(kernel, arguments, dimensions, dynamic_shared, places);
    return 0;
}

}  // namespace simulator
