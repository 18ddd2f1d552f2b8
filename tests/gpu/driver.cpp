// As much of libcuda as the package calls, over the emulation: a test of what kernels/driver.py says to a driver.
#include <dlfcn.h>
#include <string.h>

#include "emulate.cpp"

static int depth = 0, loaded = 0;
static const char CONTEXT = 0, MODULE = 0, STREAM = 0;

extern "C" {
int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal + 70, ordinal ? 101 : 0; }
int cuDevicePrimaryCtxRetain(const void** context, int device) { return *context = &CONTEXT, device == 70 ? 0 : 1; }
int cuCtxPushCurrent_v2(const void* context) { return depth++, context == &CONTEXT ? 0 : 201; }
int cuCtxPopCurrent_v2(const void** context) { return *context = &CONTEXT, depth-- == 1 ? 0 : 201; }
// An image that begins with 'x' has no code for this GPU.
int cuModuleLoadData(const void** module, const char* image) {
    *module = &MODULE;
    return depth != 1 ? 201 : *image == 'x' ? 209 : 0;
}
int cuModuleGetFunction(void** function, const void* module, const char* name) {
    *function = dlsym(RTLD_DEFAULT, name);
    return module != &MODULE ? 400 : *function == nullptr ? 500 : 0;
}
int cuFuncLoad(void* function) { return loaded++, function == nullptr; }
int cuGetErrorName(int code, const char** name) { return *name = code == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_OTHER", 0; }
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, const void* stream, void** arguments, void** extra) {
    if (depth != 1 || stream != &STREAM || extra != nullptr || shared) return 1;
    if (!x || y != 1 || z != 1 || !threads || threads_y != 1 || threads_z != 1) return 1;
    return emulate(reinterpret_cast<void (*)(const Call&)>(function), x, threads, static_cast<const Call*>(arguments[0]), 0);
}
const void* stream() { return &STREAM; }
int left() { return depth; }
}
