// The CUDA runtime, opened at run time: a module built with CUDA's headers still loads, and refuses with a sentence,
// on a machine without CUDA.
#pragma once

#include <cstddef>
#include <string>

#include <cuda_runtime_api.h>

#include "../error.h"
#include "../library.h"

namespace dpt_impl {

class Cuda {
public:
    // Throws Error(DPT_MISSING_LIBRARY) where libcudart of these headers' major version is not to be found.
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
    cudaError_t (*cudaMalloc)(void **, std::size_t); // C++ has overloads of these two
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

// Makes a device current for this thread while it lives.
class OnDevice {
public:
    explicit OnDevice(int device);
    ~OnDevice();
    OnDevice(const OnDevice &) = delete;
    OnDevice &operator=(const OnDevice &) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};

// Memory that grows to the largest size asked for: on the device, or pinned on the host. Its owner sees to it that
// nothing uses it when it grows.
class Buffer {
public:
    explicit Buffer(bool pinned) : pinned_(pinned) {}
    ~Buffer() { free(); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    // At least `bytes` bytes; the content is lost when the buffer grows.
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
