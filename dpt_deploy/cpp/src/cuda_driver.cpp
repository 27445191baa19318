#include "cuda_driver.h"

#include <dlfcn.h>

#include "error.h"

namespace dpt_impl {
namespace {

// Functions of the driver's stable C ABI, declared here so that cuda.h is not needed to compile.
struct Driver {
    int (*cuInit)(unsigned) = nullptr;
    int (*cuDeviceGet)(int *, int) = nullptr;
    int (*cuDeviceGetAttribute)(int *, int, int) = nullptr;
    int (*cuDevicePrimaryCtxRetain)(void **, int) = nullptr;
    int (*cuDevicePrimaryCtxRelease)(int) = nullptr;
    int (*cuCtxPushCurrent)(void *) = nullptr;
    int (*cuCtxPopCurrent)(void **) = nullptr;
    int (*cuStreamSynchronize)(void *) = nullptr;
    bool usable = false;

    Driver() {
        void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) return;
        bool complete = true;
        const auto find = [&](auto &function, const char *symbol) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, symbol));
            complete = complete && function != nullptr;
        };
        find(cuInit, "cuInit");
        find(cuDeviceGet, "cuDeviceGet");
        find(cuDeviceGetAttribute, "cuDeviceGetAttribute");
        find(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
        find(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2");
        find(cuCtxPushCurrent, "cuCtxPushCurrent_v2");
        find(cuCtxPopCurrent, "cuCtxPopCurrent_v2");
        find(cuStreamSynchronize, "cuStreamSynchronize");
        usable = complete && cuInit(0) == 0;
    }
};

const Driver &driver() {
    static const Driver instance;
    return instance;
}

constexpr int kMajor = 75, kMinor = 76; // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR

} // namespace

std::optional<std::string> compute_capability(int device) {
    const Driver &cuda = driver();
    int handle = 0, major = 0, minor = 0;
    if (!cuda.usable || cuda.cuDeviceGet(&handle, device) != 0 ||
        cuda.cuDeviceGetAttribute(&major, kMajor, handle) != 0 ||
        cuda.cuDeviceGetAttribute(&minor, kMinor, handle) != 0) {
        return std::nullopt;
    }
    return concat(major, ".", minor);
}

void synchronize(void *stream, int device) {
    const Driver &cuda = driver();
    int handle = 0;
    void *context = nullptr;
    if (!cuda.usable || cuda.cuDeviceGet(&handle, device) != 0) fail(DPT_BACKEND_ERROR, "CUDA: no GPU is visible.");
    int status = cuda.cuDevicePrimaryCtxRetain(&context, handle);
    if (status == 0) {
        status = cuda.cuCtxPushCurrent(context);
        if (status == 0) {
            status = cuda.cuStreamSynchronize(stream);
            cuda.cuCtxPopCurrent(&context);
        }
        cuda.cuDevicePrimaryCtxRelease(handle);
    }
    if (status != 0) fail(DPT_BACKEND_ERROR, "CUDA: cuStreamSynchronize failed with error ", status, ".");
}

} // namespace dpt_impl
