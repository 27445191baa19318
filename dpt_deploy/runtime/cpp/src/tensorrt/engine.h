// A TensorRT or TensorRT-RTX engine of a frame graph, with its memory, stream and CUDA graphs.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <NvInfer.h>

#include "../backend.h"
#include "cuda.h"

namespace dpt_impl {

// What the builder's library says, kept for messages. Its objects log from threads of their own.
class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, nvinfer1::AsciiChar const *message) noexcept override;
    // The errors since the last time, in one line.
    std::string said();

private:
    std::mutex mutex_;
    std::vector<std::string> words_;
};

// The builder's library, opened at run time.
class Builder {
public:
    // Throws Error(DPT_MISSING_LIBRARY).
    static const Builder &get();

    std::string version() const;
    nvinfer1::IRuntime *create_runtime(Logger &logger) const;

private:
    Builder();
    Library library_;
};

class Engine {
public:
    // Throws Error: DPT_BACKEND_ERROR, DPT_CONTRACT_ERROR for tensors that are not the contract's.
    explicit Engine(const dpt_engine_order &order);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    void run(const dpt_frames &frames, const dpt_maps &maps);
    void run_device(const dpt_frames &frames, const dpt_maps &maps, cudaStream_t stream);

private:
    // One output of the frame graph, at the place of its DPT_HAS_* bit.
    struct Head {
        const char *name;
        int channels;
        bool there;
        Buffer device{false}, host{true};
    };
    // A shape and choice of maps, with the CUDA graph that replays it.
    struct Recorded {
        std::array<std::int64_t, 4> key{}; // batch, height, width, maps wanted
        cudaGraphExec_t graph = nullptr;
        bool refused = false; // capturing failed once
    };
    using Pointers = std::array<float *, 3>;

    void create_context(bool whole_graph);
    void check_tensors();
    void prepare(const dpt_frames &frames, const void *input, const Pointers &outputs);
    void enqueue_all(const dpt_frames &frames, const Pointers &wanted, cudaStream_t stream);
    bool replay(const dpt_frames &frames, const Pointers &wanted);
    void forget_recorded() noexcept;
    void *reserve(Buffer &buffer, std::size_t bytes);
    void release() noexcept;
    [[noreturn]] void fail_with_words(const std::string &what);

    std::string file_;
    int device_;
    bool graphs_;
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cudaStream_t stream_ = nullptr;
    cudaEvent_t done_ = nullptr;
    std::array<Head, 3> heads_;
    Buffer input_{false}, staging_{true}, scratch_{false};
    Recorded recorded_;
};

} // namespace dpt_impl
