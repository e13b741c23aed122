// The state of the fake driver and runtime, and what its parts share.
//
// These are the parts of CUDA's driver and runtime that CuPy needs, over host memory. A missing
// function is reported when it is called. A "cubin" is the word below and the path of a shared
// library, with a function launch__NAME for each kernel.
//
// There are CUDA_ON_CPU_DEVICES devices, two by default. Each thread has a current device, at first
// 0. Memory, streams, events and modules belong to the device that is current when they are created.
// A kernel runs on the device of its module, which must be current, as must that of its stream. It
// can access only the memory of that device, unless peer access is enabled.
#pragma once

#include <cuda.h>
#undef cuModuleGetGlobal
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <vector>

namespace fake_cuda {


inline constexpr char CUBIN[] = "CUDA on CPU:";
constexpr int VERSION = 13020, MULTIPROCESSORS = 132, ARCHITECTURE = 90;
constexpr size_t MEMORY = size_t(8) << 30, ALIGNMENT = 512, SHARED = 48 << 10;
constexpr int POISON = 0xff, MAX_DEVICES = 8;

using Work = std::function<int()>;
using Graph = std::vector<Work>;
using Launch = int(void** arguments, const unsigned* dimensions, size_t dynamic_shared,
                   Work* recorded);

struct Allocation {
    size_t size;
    int device;
};

struct Stream {
    int device;
};

inline std::mutex memory_lock, launch_lock;
inline std::map<uintptr_t, Allocation> allocations;
inline size_t used[MAX_DEVICES];
inline std::atomic<long> allocated[MAX_DEVICES];
inline std::atomic<long> launches, synchronisations, copies_to_host, copies_between_devices;
inline std::atomic<bool> capturing, idle, can_access_peers;
// Whether a device (first index) can access the memory of another (second index).
inline std::atomic<bool> peer_access[MAX_DEVICES][MAX_DEVICES];
inline Graph captured;
inline char illegal_address[80];
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local int current_device;

inline int device_count() {
    static const int count = [] {
        const char* const given = getenv("CUDA_ON_CPU_DEVICES");
        const int number = given ? atoi(given) : 2;
        if (number < 1 || number > MAX_DEVICES) {
            fprintf(stderr, "CUDA_ON_CPU_DEVICES must be from 1 to %d\n", MAX_DEVICES);
            abort();
        }
        return number;
    }();
    return count;
}

inline bool exists(int device) { return device >= 0 && device < device_count(); }

// The device of a stream. The default streams, numbers up to 2, are those of the current device.
inline int device_of(const void* stream) {
    return uintptr_t(stream) <= 2 ? current_device : static_cast<const Stream*>(stream)->device;
}

inline cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

inline cudaError_t synchronise() {
    if (capturing) return result(cudaErrorStreamCaptureUnsupported);
    ++synchronisations;
    return cudaSuccess;
}

// The device whose memory a pointer is to, or -1.
inline int memory_device(const void* ptr) {
    const std::lock_guard<std::mutex> guard(memory_lock);
    auto next = allocations.upper_bound(uintptr_t(ptr));
    if (next == allocations.begin()) return -1;
    --next;
    const Allocation& memory = next->second;
    return uintptr_t(ptr) <= next->first + memory.size ? memory.device : -1;
}

}  // namespace fake_cuda
