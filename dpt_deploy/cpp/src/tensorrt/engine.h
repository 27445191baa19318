// A TensorRT or TensorRT-RTX engine of a frame graph, with its memory, stream and CUDA graphs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
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
    std::deque<std::string> words_; // the last ones
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

    // Frames of any format in host memory.
    void run(const dpt_frames &frames, const dpt_maps &maps);
    void run_device(const dpt_frames &frames, const dpt_maps &maps, cudaStream_t stream);
    // How CUDA graphs stand, as a sentence.
    const std::string &note() const { return note_; }

private:
    using Context = std::unique_ptr<nvinfer1::IExecutionContext>;
    // One output of the frame graph, at the place of its DPT_HAS_* bit.
    struct Head {
        const char *name;
        int channels;
        bool there;
        Buffer device{false}, host{true};
    };
    // A shape of host frames and choice of maps, with the CUDA graph that replays it.
    struct Recorded {
        std::array<std::int64_t, 4> key{}; // batch, height, width, maps wanted
        Context context;                   // of its own, because a graph is good only as long as its context stays as it is
        cudaGraphExec_t graph = nullptr;
        bool ready = false; // the context has run this shape with the memory that is there now: it can be captured
    };
    using Pointers = std::array<float *, 3>;

    void create_context(bool with_graphs);
    void check_tensors();
    Recorded *find_recorded(const dpt_frames &frames, const Pointers &wanted);
    void reserve_host(const dpt_frames &frames, const Pointers &wanted);
    void prepare(nvinfer1::IExecutionContext &context, const dpt_frames &frames, const void *input,
                 const Pointers &outputs);
    void enqueue(nvinfer1::IExecutionContext &context, const dpt_frames &frames, const Pointers &wanted);
    void launch(const dpt_frames &frames, const Pointers &wanted);
    void capture(Recorded &recorded, const dpt_frames &frames, const Pointers &wanted);
    void go_without_graphs(const std::string &why);
    void forget_graph(Recorded &recorded) noexcept;
    void *reserve(Buffer &buffer, std::size_t bytes);
    void keep_cache() noexcept;
    void release() noexcept;
    [[noreturn]] void fail_with_words(const std::string &what);

    std::string file_, cache_file_, note_;
    int device_;
    bool graphs_;
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#if defined(TRT_MAJOR_RTX)
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
    std::vector<char> cache_read_; // what the file held
#endif
    Context context_; // of device memory, and of host memory where there are no graphs
    cudaStream_t stream_ = nullptr;
    cudaEvent_t done_ = nullptr;  // the last call's work
    cudaEvent_t ready_ = nullptr; // the pixels, on a default stream of the caller's
    std::array<Head, 3> heads_;
    Buffer input_{false}, staging_{true}, scratch_{false};
    std::deque<Recorded> recorded_; // the most recently used first
};

} // namespace dpt_impl
