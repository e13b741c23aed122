// The fake runtime's memory: allocations, copies, and which device an address belongs to.
#include "fake_cuda.h"

using namespace fake_cuda;

namespace {

cudaError_t allocate(void** ptr, size_t size) {
    if (capturing) return result(cudaErrorStreamCaptureUnsupported);
    const std::lock_guard<std::mutex> guard(memory_lock);
    size_t& in_use = used[current_device];
    if (in_use + size > MEMORY || posix_memalign(ptr, ALIGNMENT, size ? size : 1))
        return result(cudaErrorMemoryAllocation);
    memset(*ptr, POISON, size);
    allocations[uintptr_t(*ptr)] = {size, current_device};
    in_use += size;
    ++allocated[current_device];
    return cudaSuccess;
}

cudaError_t release(void* ptr) {
    if (!ptr) return cudaSuccess;
    const std::lock_guard<std::mutex> guard(memory_lock);
    const auto found = allocations.find(uintptr_t(ptr));
    if (found == allocations.end()) return result(cudaErrorInvalidValue);
    used[found->second.device] -= found->second.size;
    allocations.erase(found);
    free(ptr);
    return cudaSuccess;
}

template <class Do>
cudaError_t later_if_captured(const Do& work) {
    if (!capturing)
        work();
    else
        captured.push_back([=] {
            work();
            return 0;
        });
    return cudaSuccess;
}

}  // namespace

extern "C" {

long fake_cuda_allocations() {
    long sum = 0;
    for (const auto& each : allocated) sum += each;
    return sum;
}
long fake_cuda_allocations_on(int device) { return allocated[device]; }

cudaError_t cudaMalloc(void** ptr, size_t size) { return allocate(ptr, size); }
cudaError_t cudaMallocAsync(void** ptr, size_t size, cudaStream_t) { return allocate(ptr, size); }
cudaError_t cudaFree(void* ptr) { return release(ptr); }
cudaError_t cudaFreeAsync(void* ptr, cudaStream_t) { return release(ptr); }
cudaError_t cudaHostAlloc(void** ptr, size_t size, unsigned) {
    return posix_memalign(ptr, ALIGNMENT, size ? size : 1) ? result(cudaErrorMemoryAllocation)
                                                           : cudaSuccess;
}
cudaError_t cudaFreeHost(void* ptr) {
    free(ptr);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
    *left = MEMORY - used[current_device];
    *total = MEMORY;
    return cudaSuccess;
}
// Between devices as well, and in a stream of any device.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t) {
    if (kind == cudaMemcpyDeviceToHost) ++copies_to_host;
    const int target = memory_device(to), source = memory_device(from);
    if (target >= 0 && source >= 0 && target != source) ++copies_between_devices;
    return later_if_captured([=] { memmove(to, from, size); });
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
    const cudaError_t error = synchronise();
    return error ? error : cudaMemcpyAsync(to, from, size, kind, nullptr);
}
cudaError_t cudaMemset(void* ptr, int value, size_t size) {
    return later_if_captured([=] { memset(ptr, value, size); });
}
cudaError_t cudaMemsetAsync(void* ptr, int value, size_t size, cudaStream_t) {
    return cudaMemset(ptr, value, size);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* ptr) {
    *attributes = {};
    const int device = memory_device(ptr);
    attributes->type = device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice;
    attributes->device = device < 0 ? cudaInvalidDeviceId : device;
    attributes->devicePointer = const_cast<void*>(ptr);
    return cudaSuccess;
}

}  // extern "C"
