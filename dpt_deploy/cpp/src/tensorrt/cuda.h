// The CUDA runtime library, opened at run time, so that a module also loads on a machine without CUDA and reports a
// readable error.
#pragma once

#include <cstddef>
#include <string>

#include <cuda_runtime_api.h>

#include "../error.h"
#include "../library.h"

namespace dpt_impl {

class Cuda {
public:
    // Throws Error(DPT_MISSING_LIBRARY) if libcudart of the major version of these headers is not found.
    static const Cuda &get();

    void check(cudaError_t status, const char *function) const {
        if (status != cudaSuccess) {
            fail(DPT_BACKEND_ERROR, "CUDA: ", function, " failed (", static_cast<int>(status),
                 "): ", cudaGetErrorString(status), ".");
        }
    }

#define DPT_CUDA(function) decltype(&::function) function
    DPT_CUDA(cudaGetErrorString);
    DPT_CUDA(cudaGetLastError);
    DPT_CUDA(cudaGetDevice);
    DPT_CUDA(cudaSetDevice);
    cudaError_t (*cudaMalloc)(void **, std::size_t); // decltype would be ambiguous: C++ overloads these two
    cudaError_t (*cudaMallocHost)(void **, std::size_t);
    DPT_CUDA(cudaFree);
    DPT_CUDA(cudaFreeHost);
    DPT_CUDA(cudaMemcpyAsync);
    DPT_CUDA(cudaStreamCreateWithFlags);
    DPT_CUDA(cudaStreamDestroy);
    DPT_CUDA(cudaStreamSynchronize);
    DPT_CUDA(cudaStreamWaitEvent);
    DPT_CUDA(cudaStreamBeginCapture);
    DPT_CUDA(cudaStreamEndCapture);
    cudaError_t (*cudaEventCreateWithFlags)(cudaEvent_t *, unsigned);
    DPT_CUDA(cudaEventDestroy);
    DPT_CUDA(cudaEventRecord);
    DPT_CUDA(cudaEventSynchronize);
    cudaError_t (*cudaGraphInstantiate)(cudaGraphExec_t *, cudaGraph_t, unsigned long long);
    DPT_CUDA(cudaGraphLaunch);
    DPT_CUDA(cudaGraphDestroy);
    DPT_CUDA(cudaGraphExecDestroy);
#undef DPT_CUDA

private:
    Cuda();
};

// Makes a device current for this thread during its lifetime.
class DeviceGuard {
public:
    explicit DeviceGuard(int device);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard &) = delete;
    DeviceGuard &operator=(const DeviceGuard &) = delete;

private:
    int previous_ = 0;
    bool changed_ = false;
};

// Memory on the device, or pinned memory on the host, which grows to the largest requested size. It grows by half its size
// or more if there is memory for that, so that rising sizes cause few allocations. The owner ensures that nothing uses it
// while it grows.
class Buffer {
public:
    explicit Buffer(bool pinned) : pinned_(pinned) {}
    ~Buffer() { free(); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    // Returns at least `bytes` bytes. The content is lost if the buffer grows.
    void *reserve(std::size_t bytes);
    void free() noexcept;
    void *data() const { return data_; }
    std::size_t bytes() const { return bytes_; }

private:
    bool pinned_;
    void *data_ = nullptr;
    std::size_t bytes_ = 0;
};

} // namespace dpt_impl
