// As much of CUDA's driver and runtime as CuPy needs, over host memory.
//
// What is not here is found missing when it is called. A "cubin" is the word below and the path
// of a shared library, with a function launch__NAME for each kernel.
//
// There are CUDA_ON_CPU_DEVICES devices, two by default. Each thread has a current device, first 0.
// Memory, streams, events and modules belong to the device that is current when they are made. A
// kernel runs on the device of its module, which must be current, as must that of its stream; it
// reaches the memory of that device only, unless peer access is enabled.
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
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <vector>

extern "C" const char* simulator_failure();

namespace {

constexpr char CUBIN[] = "CUDA on CPU:";
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

struct Function {
    Launch* launch;
    int device;
};

struct Module {
    void* library;
    int device;
    std::list<Function> functions;
};

struct Stream {
    int device;
};

struct Event {
    timespec time;
    int device;
};

std::mutex memory_lock, launch_lock;
std::map<uintptr_t, Allocation> allocations;
size_t used[MAX_DEVICES];
std::atomic<long> allocated[MAX_DEVICES];
std::atomic<long> launches, synchronisations, copies_to_host, copies_between_devices;
std::atomic<bool> capturing, idle, can_access_peers;
std::atomic<bool> peer_access[MAX_DEVICES][MAX_DEVICES];  // by a device, to the memory of another
Graph captured;
char illegal_address[80];
thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device;

int device_count() {
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

bool exists(int device) { return device >= 0 && device < device_count(); }

// The device of a stream. The default streams, numbers up to 2, are those of the current device.
int device_of(const void* stream) {
    return uintptr_t(stream) <= 2 ? current_device : static_cast<const Stream*>(stream)->device;
}

cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

cudaError_t synchronise() {
    if (capturing) return result(cudaErrorStreamCaptureUnsupported);
    ++synchronisations;
    return cudaSuccess;
}

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

// The device whose memory a pointer is to; -1 if that is no device's.
int memory_device(const void* ptr) {
    const std::lock_guard<std::mutex> guard(memory_lock);
    auto next = allocations.upper_bound(uintptr_t(ptr));
    if (next == allocations.begin()) return -1;
    --next;
    const Allocation& memory = next->second;
    return uintptr_t(ptr) <= next->first + memory.size ? memory.device : -1;
}

}  // namespace

extern "C" {

long fake_cuda_launches() { return launches; }
long fake_cuda_synchronisations() { return synchronisations; }
long fake_cuda_allocations() {
    long sum = 0;
    for (const auto& each : allocated) sum += each;
    return sum;
}
long fake_cuda_allocations_on(int device) { return allocated[device]; }
long fake_cuda_copies_to_host() { return copies_to_host; }
long fake_cuda_copies_between_devices() { return copies_between_devices; }
int fake_cuda_memory_device(const void* ptr) { return memory_device(ptr); }
// Whether launches are counted only, so that what remains is what a call costs the host.
void fake_cuda_set_idle(int value) { idle = value; }
// Whether devices can be given access to each other's memory; it is taken away from those that have.
void fake_cuda_set_peer_access(int value) {
    can_access_peers = value;
    for (auto& device : peer_access)
        for (auto& each : device) each = false;
}

// Whether a kernel on the current device can follow a pointer; if not, that is why it fails.
bool simulator_can_access(const void* ptr) {
    const int device = memory_device(ptr);
    if (device < 0 || device == current_device || peer_access[current_device][device]) return true;
    snprintf(illegal_address, sizeof illegal_address,
             "a kernel on device %d got a pointer to memory of device %d", current_device, device);
    return false;
}

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
// NVRTC asks for a table and does without one; it would call this even if it were not here.
CUresult cuGetExportTable(const void** table, const CUuuid*) {
    *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}
CUresult cuDriverGetVersion(int* version) {
    *version = VERSION;
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char** name) {
    switch (error) {
        case CUDA_ERROR_LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        case CUDA_ERROR_ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        case CUDA_ERROR_INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
        default: *name = "CUDA_ERROR";
    }
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
    switch (error) {
        case CUDA_ERROR_LAUNCH_FAILED: *text = simulator_failure(); break;
        case CUDA_ERROR_ILLEGAL_ADDRESS: *text = illegal_address; break;
        default: *text = "error of the fake driver";
    }
    return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = CUcontext(uintptr_t(current_device) + 1);
    return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
    *device = current_device;
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
    *module = CUmodule(new Module{library, current_device, {}});
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) {
    delete reinterpret_cast<Module*>(module);
    return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule from, const char* name) {
    Module& module = *reinterpret_cast<Module*>(from);
    void* const launch = dlsym(module.library, (std::string("launch__") + name).c_str());
    if (!launch) return CUDA_ERROR_NOT_FOUND;
    module.functions.push_back({reinterpret_cast<Launch*>(launch), module.device});
    *function = CUfunction(&module.functions.back());
    return CUDA_SUCCESS;
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
CUresult cuLaunchKernel(CUfunction kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        CUstream stream, void** arguments, void**) {
    const Function& function = *reinterpret_cast<Function*>(kernel);
    if (function.device != current_device || device_of(stream) != current_device)
        return CUDA_ERROR_INVALID_HANDLE;
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
    return CUresult(function.launch(arguments, dimensions, shared, recorded));
}

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
        case cudaErrorPeerAccessAlreadyEnabled: return "cudaErrorPeerAccessAlreadyEnabled";
        case cudaErrorPeerAccessUnsupported: return "cudaErrorPeerAccessUnsupported";
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
    *device = current_device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (!exists(device)) return result(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = device_count();
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (!exists(device)) return result(cudaErrorInvalidDevice);
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
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (!exists(device)) return result(cudaErrorInvalidDevice);
    *properties = {};
    strcpy(properties->name, "the CPU");
    properties->totalGlobalMem = MEMORY;
    properties->l2CacheSize = 1 << 20;
    properties->multiProcessorCount = MULTIPROCESSORS;
    properties->warpSize = 32;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* name, int size, int device) {
    snprintf(name, size, "0000:%02X:00.0", device);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return synchronise(); }
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
    if (!exists(device) || !exists(peer)) return result(cudaErrorInvalidDevice);
    *can = can_access_peers && device != peer;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
    if (!exists(peer) || peer == current_device) return result(cudaErrorInvalidDevice);
    if (!can_access_peers) return result(cudaErrorPeerAccessUnsupported);
    const bool had_access = peer_access[current_device][peer].exchange(true);
    return had_access ? result(cudaErrorPeerAccessAlreadyEnabled) : cudaSuccess;
}

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

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = cudaStream_t(new Stream{current_device});
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete reinterpret_cast<Stream*>(stream);
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
    *event = cudaEvent_t(new Event{{}, current_device});
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete reinterpret_cast<Event*>(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Event& recorded = *reinterpret_cast<Event*>(event);
    if (recorded.device != device_of(stream)) return result(cudaErrorInvalidResourceHandle);
    clock_gettime(CLOCK_MONOTONIC, &recorded.time);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    const Event &a = *reinterpret_cast<Event*>(from), &b = *reinterpret_cast<Event*>(to);
    if (a.device != b.device) return result(cudaErrorInvalidResourceHandle);
    *milliseconds = float(b.time.tv_sec - a.time.tv_sec) * 1e3f +
                    float(b.time.tv_nsec - a.time.tv_nsec) * 1e-6f;
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return synchronise(); }

}  // extern "C"
