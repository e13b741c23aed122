// The fake driver: modules, kernels and their launches.
#include "fake_cuda.h"

#include <dlfcn.h>
#include <string>

extern "C" const char* simulator_failure();

using namespace fake_cuda;

namespace {

struct Function {
    Launch* launch;
    int device;
};

struct Module {
    void* library;
    int device;
    std::list<Function> functions;
};

}  // namespace

extern "C" {

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

}  // extern "C"
