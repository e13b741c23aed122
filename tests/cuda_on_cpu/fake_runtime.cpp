// The fake runtime: counters, errors and devices.
#include "fake_cuda.h"

using namespace fake_cuda;

extern "C" {

long fake_cuda_launches() { return launches; }
long fake_cuda_synchronisations() { return synchronisations; }
long fake_cuda_copies_to_host() { return copies_to_host; }
long fake_cuda_copies_between_devices() { return copies_between_devices; }
int fake_cuda_memory_device(const void* ptr) { return memory_device(ptr); }
// Whether launches are only counted, which leaves the time that a call takes on the host.
void fake_cuda_set_idle(int value) { idle = value; }
// Whether access to the memory of other devices can be enabled; it is disabled everywhere.
void fake_cuda_set_peer_access(int value) {
    can_access_peers = value;
    for (auto& device : peer_access)
        for (auto& each : device) each = false;
}

// Whether a kernel on the current device can access a pointer; if not, the kernel fails.
bool simulator_can_access(const void* ptr) {
    const int device = memory_device(ptr);
    if (device < 0 || device == current_device || peer_access[current_device][device]) return true;
    snprintf(illegal_address, sizeof illegal_address,
             "a kernel on device %d got a pointer to memory of device %d", current_device, device);
    return false;
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

}  // extern "C"
