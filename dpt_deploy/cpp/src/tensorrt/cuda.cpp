#include "cuda.h"

#include <algorithm>

namespace dpt_impl {

#if CUDART_VERSION < 12000
#error "needs CUDA 12 or newer"
#endif

Cuda::Cuda() {
    const std::string named = option_or_environment(nullptr, "DPT_CUDART_LIBRARY");
    const std::string standard = concat("libcudart.so.", CUDART_VERSION / 1000);
    const Library library(named.empty() ? std::vector<std::string>{standard} : std::vector<std::string>{named},
                          "The CUDA runtime is needed to use the GPU",
                          concat("Install CUDA ", CUDART_VERSION / 1000,
                                 ", or set the environment variable DPT_CUDART_LIBRARY to its libcudart."));
    const auto find = [&library](auto &function, const char *symbol) {
        function = library.function<std::remove_pointer_t<std::remove_reference_t<decltype(function)>>>(symbol);
    };
#define DPT_FIND(function) find(function, #function)
    DPT_FIND(cudaGetErrorString);
    DPT_FIND(cudaGetLastError);
    DPT_FIND(cudaGetDevice);
    DPT_FIND(cudaSetDevice);
    DPT_FIND(cudaMalloc);
    DPT_FIND(cudaMallocHost);
    DPT_FIND(cudaFree);
    DPT_FIND(cudaFreeHost);
    DPT_FIND(cudaMemcpyAsync);
    DPT_FIND(cudaStreamCreateWithFlags);
    DPT_FIND(cudaStreamDestroy);
    DPT_FIND(cudaStreamSynchronize);
    DPT_FIND(cudaStreamWaitEvent);
    DPT_FIND(cudaStreamBeginCapture);
    DPT_FIND(cudaStreamEndCapture);
    DPT_FIND(cudaEventCreateWithFlags);
    DPT_FIND(cudaEventDestroy);
    DPT_FIND(cudaEventRecord);
    DPT_FIND(cudaEventSynchronize);
    DPT_FIND(cudaGraphInstantiate);
    DPT_FIND(cudaGraphLaunch);
    DPT_FIND(cudaGraphDestroy);
    DPT_FIND(cudaGraphExecDestroy);
#undef DPT_FIND
}

const Cuda &Cuda::get() {
    static const Cuda instance;
    return instance;
}

DeviceGuard::DeviceGuard(int device) {
    const Cuda &cuda = Cuda::get();
    cuda.check(cuda.cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ == device) return;
    cuda.check(cuda.cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
}

DeviceGuard::~DeviceGuard() {
    if (changed_) static_cast<void>(Cuda::get().cudaSetDevice(previous_));
}

void *Buffer::reserve(std::size_t bytes) {
    if (bytes <= bytes_) return data_;
    const Cuda &cuda = Cuda::get();
    const std::size_t ample = std::max(bytes, bytes_ + bytes_ / 2);
    free();
    const auto allocate = [&](std::size_t size) {
        const cudaError_t status = pinned_ ? cuda.cudaMallocHost(&data_, size) : cuda.cudaMalloc(&data_, size);
        bytes_ = status == cudaSuccess ? size : 0;
        if (status == cudaSuccess) return status;
        data_ = nullptr;
        static_cast<void>(cuda.cudaGetLastError()); // otherwise the application would see this error
        return status;
    };
    cudaError_t status = allocate(ample);
    if (status != cudaSuccess && ample > bytes) status = allocate(bytes);
    cuda.check(status, pinned_ ? "cudaMallocHost" : "cudaMalloc");
    return data_;
}

void Buffer::free() noexcept {
    if (data_ == nullptr) return;
    static_cast<void>(pinned_ ? Cuda::get().cudaFreeHost(data_) : Cuda::get().cudaFree(data_));
    data_ = nullptr;
    bytes_ = 0;
}

} // namespace dpt_impl
