// As much of CUDA's driver and runtime as CuPy needs, over host memory.
//
// What is not here is found missing when it is called. A "cubin" is the word below and the path
// of a shared library, with a function launch__NAME for each kernel.
#include <cuda.h>
#undef cuModuleGetGlobal
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

extern "C" const char* simulator_failure();

namespace {

constexpr char CUBIN[] = "CUDA on CPU:";
constexpr int VERSION = 13020, MULTIPROCESSORS = 132, ARCHITECTURE = 90;
constexpr size_t MEMORY = size_t(8) << 30, ALIGNMENT = 512, SHARED = 48 << 10;
constexpr int POISON = 0xff;

using Work = std::function<int()>;
using Graph = std::vector<Work>;
using Launch = int(void** arguments, const unsigned* dimensions, size_t dynamic_shared,
                   Work* recorded);

std::mutex memory_lock, launch_lock;
std::map<uintptr_t, size_t> allocations;
size_t used;
std::atomic<long> launches, synchronisations, allocated, copies_to_host;
std::atomic<bool> capturing, idle;
Graph captured;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

cudaError_t synchronise() {
    if (capturing) return result(cudaErrorStreamCaptureUnsupported);
    ++synchronisations;
    return cudaSuccess;
}

cudaError_t allocate(void** place, size_t size) {
    if (capturing) return result(cudaErrorStreamCaptureUnsupported);
    const std::lock_guard<std::mutex> guard(memory_lock);
    if (used + size > MEMORY || posix_memalign(place, ALIGNMENT, size ? size : 1))
        return result(cudaErrorMemoryAllocation);
    memset(*place, POISON, size);
    allocations[uintptr_t(*place)] = size;
    used += size;
    ++allocated;
    return cudaSuccess;
}

cudaError_t release(void* place) {
    if (!place) return cudaSuccess;
    const std::lock_guard<std::mutex> guard(memory_lock);
    const auto found = allocations.find(uintptr_t(place));
    if (found == allocations.end()) return result(cudaErrorInvalidValue);
    used -= found->second;
    allocations.erase(found);
    free(place);
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

bool on_device(const void* place) {
    const std::lock_guard<std::mutex> guard(memory_lock);
    auto next = allocations.upper_bound(uintptr_t(place));
    if (next == allocations.begin()) return false;
    --next;
    return uintptr_t(place) <= next->first + next->second;
}

}  // namespace

extern "C" {

long fake_cuda_launches() { return launches; }
long fake_cuda_synchronisations() { return synchronisations; }
long fake_cuda_allocations() { return allocated; }
long fake_cuda_copies_to_host() { return copies_to_host; }
// Whether launches are counted only, so that what remains is what a call costs the host.
void fake_cuda_set_idle(int value) { idle = value; }

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) {
    *version = VERSION;
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char** name) {
    *name = error == CUDA_ERROR_LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR";
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_LAUNCH_FAILED ? simulator_failure() : "error of the fake driver";
    return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = CUcontext(1);
    return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
    *device = 0;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    if (strncmp(static_cast<const char*>(image), CUBIN, strlen(CUBIN)))
        return CUDA_ERROR_INVALID_IMAGE;
    void* library = dlopen(static_cast<const char*>(image) + strlen(CUBIN), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return CUDA_ERROR_INVALID_IMAGE;
    }
    *module = CUmodule(library);
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    *function = CUfunction(dlsym(module, (std::string("launch__") + name).c_str()));
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int threads, size_t) {
    *blocks = 2048 / threads;
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        CUstream, void** arguments, void**) {
    const unsigned dimensions[] = {grid_x, grid_y, grid_z, block_x, block_y, block_z};
    for (unsigned each : dimensions)
        if (!each) return CUDA_ERROR_INVALID_VALUE;
    if (size_t(block_x) * block_y * block_z > 1024 || grid_x > 0x7fffffff || grid_y > 65535 ||
        grid_z > 65535 || shared > SHARED)
        return CUDA_ERROR_INVALID_VALUE;
    if (idle) {
        ++launches;
        return CUDA_SUCCESS;
    }
    const std::lock_guard<std::mutex> guard(launch_lock);
    Work* const recorded = capturing ? &captured.emplace_back() : nullptr;
    launches += !recorded;
    return CUresult(reinterpret_cast<Launch*>(function)(arguments, dimensions, shared, recorded));
}

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
        default: return "cudaError";
    }
}
const char* cudaGetErrorString(cudaError_t) { return "error of the fake runtime"; }
cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    return device ? result(cudaErrorInvalidDevice) : cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
        case cudaDevAttrMaxBlockDimX:
        case cudaDevAttrMaxBlockDimY: *value = 1024; break;
        case cudaDevAttrMaxBlockDimZ: *value = 64; break;
        case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = MULTIPROCESSORS; break;
        case cudaDevAttrComputeCapabilityMajor: *value = ARCHITECTURE / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = ARCHITECTURE % 10; break;
        default: *value = 0;
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = {};
    strcpy(properties->name, "the CPU");
    properties->totalGlobalMem = MEMORY;
    properties->l2CacheSize = 1 << 20;
    properties->multiProcessorCount = MULTIPROCESSORS;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return synchronise(); }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** place, size_t size) { return allocate(place, size); }
cudaError_t cudaMallocAsync(void** place, size_t size, cudaStream_t) {
    return allocate(place, size);
}
cudaError_t cudaFree(void* place) { return release(place); }
cudaError_t cudaFreeAsync(void* place, cudaStream_t) { return release(place); }
cudaError_t cudaHostAlloc(void** place, size_t size, unsigned) {
    return posix_memalign(place, ALIGNMENT, size ? size : 1) ? result(cudaErrorMemoryAllocation)
                                                             : cudaSuccess;
}
cudaError_t cudaFreeHost(void* place) {
    free(place);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
    *left = MEMORY - used;
    *total = MEMORY;
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t) {
    if (kind == cudaMemcpyDeviceToHost) ++copies_to_host;
    return later_if_captured([=] { memmove(to, from, size); });
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
    const cudaError_t error = synchronise();
    return error ? error : cudaMemcpyAsync(to, from, size, kind, nullptr);
}
cudaError_t cudaMemset(void* place, int value, size_t size) {
    return later_if_captured([=] { memset(place, value, size); });
}
cudaError_t cudaMemsetAsync(void* place, int value, size_t size, cudaStream_t) {
    return cudaMemset(place, value, size);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* place) {
    *attributes = {};
    attributes->type = on_device(place) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    attributes->devicePointer = const_cast<void*>(place);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = cudaStream_t(malloc(1));
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return synchronise(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    captured.clear();
    capturing = true;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    capturing = false;
    *graph = cudaGraph_t(new Graph(std::move(captured)));
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    *made = cudaGraphExec_t(new Graph(*reinterpret_cast<Graph*>(graph)));
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    const std::lock_guard<std::mutex> guard(launch_lock);
    ++launches;
    for (Work& each : *reinterpret_cast<Graph*>(graph))
        if (each()) return result(cudaErrorLaunchFailure);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete reinterpret_cast<Graph*>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Graph*>(graph);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = cudaEvent_t(calloc(1, sizeof(timespec)));
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    clock_gettime(CLOCK_MONOTONIC, reinterpret_cast<timespec*>(event));
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    const timespec &a = *reinterpret_cast<timespec*>(from), &b = *reinterpret_cast<timespec*>(to);
    *milliseconds = float(b.tv_sec - a.tv_sec) * 1e3f + float(b.tv_nsec - a.tv_nsec) * 1e-6f;
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return synchronise(); }

}  // extern "C"
