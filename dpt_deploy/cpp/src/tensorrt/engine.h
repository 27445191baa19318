// A TensorRT or TensorRT-RTX engine of a frame graph, with its memory, stream and CUDA graphs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include <NvInfer.h>

#include "../backend.h"
#include "cuda.h"
#include "tensorrt_library.h"

namespace dpt_impl {

class Engine {
public:
    // Throws Error: DPT_MISSING_LIBRARY; DPT_BACKEND_ERROR; DPT_CONTRACT_ERROR if the tensors do not match the heads.
    explicit Engine(const dpt_engine_desc &desc);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    // Frames of any format in host memory.
    void run(const dpt_frames &frames, const dpt_maps &maps);
    void run_device(const dpt_frames &frames, const dpt_maps &maps, cudaStream_t stream);
    // A sentence: whether CUDA graphs are in use and, if not, why.
    const std::string &cuda_graph_status() const { return cuda_graph_status_; }

private:
    using Context = std::unique_ptr<nvinfer1::IExecutionContext>;
    // An output of the frame graph. Its index in heads_ is the position of its DPT_HAS_* bit.
    struct Head {
        const char *name;
        int channels;
        bool present;
        Buffer device{false}, host{true};
    };
    // The CUDA graph for one shape of host frames and one set of maps.
    struct CachedGraph {
        std::array<std::int64_t, 4> key{}; // batch, height, width, DPT_HAS_* bits of the maps
        Context context;                   // not shared, because changing a context invalidates its graph
        cudaGraphExec_t graph = nullptr;   // null until captured
        bool warmed_up = false;            // the context has run this shape with the current memory: ready to capture
    };
    using Pointers = std::array<float *, 3>;

    void create_context();
    void check_tensors();
    CachedGraph *find_or_add_graph(const dpt_frames &frames, const Pointers &maps);
    void reserve_host(const dpt_frames &frames, const Pointers &maps);
    void prepare(nvinfer1::IExecutionContext &context, const dpt_frames &frames, const void *input,
                 const Pointers &outputs);
    void enqueue(nvinfer1::IExecutionContext &context, const dpt_frames &frames, const Pointers &maps);
    void launch(const dpt_frames &frames, const Pointers &maps);
    void capture(CachedGraph &cached, const dpt_frames &frames, const Pointers &maps);
    void disable_graphs(const std::string &cause);
    void destroy_graph(CachedGraph &cached) noexcept;
    void *reserve(Buffer &buffer, std::size_t bytes);
    void save_cache() noexcept;
    void release() noexcept;
    [[noreturn]] void fail_with_log(const std::string &what);

    std::string file_, cache_file_, cuda_graph_status_;
    int device_;
    bool use_graphs_; // capture CUDA graphs; false with TensorRT-RTX, which captures them itself
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#if defined(TRT_MAJOR_RTX)
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
    std::vector<char> cache_content_; // of the file when it was read
#endif
    Context context_; // for device memory, and for host memory without CUDA graphs
    cudaStream_t stream_ = nullptr;
    cudaEvent_t done_ = nullptr;  // recorded after the work of each call
    cudaEvent_t ready_ = nullptr; // recorded on a default stream of the caller when its pixels are ready
    std::array<Head, 3> heads_;
    Buffer input_{false}, staging_{true}, scratch_{false};
    std::deque<CachedGraph> cached_; // most recently used first
};

} // namespace dpt_impl
