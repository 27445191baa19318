// A TensorRT or TensorRT-RTX engine of a frame graph, with its memory, stream and CUDA graphs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <NvInfer.h>

#include "../backend.h"
#include "cuda.h"
#include "tensorrt_library.h"

namespace dpt_impl {

// Calls with host memory are told apart by shape and maps. The first call of a kind runs in a context and in buffers that
// all kinds share. The second one gets a slot of its own, with a CUDA graph that later calls replay.
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
    using Key = std::array<std::int64_t, 4>; // a kind of call: batch, height, width, DPT_HAS_* bits of the maps
    // An output of the frame graph. Its index in heads_ is the position of its DPT_HAS_* bit.
    struct Head {
        const char *name;
        int channels;
        bool present;
    };
    struct MapBuffers {
        Buffer device{false}, host{true};
    };
    // An execution context and the memory of its tensors. Neither may change while a CUDA graph of them exists.
    struct Slot {
        Key key{};
        Context context;
        Buffer input{false}, staging{true};
        std::array<MapBuffers, 3> maps;
        cudaGraphExec_t graph = nullptr; // null until captured
    };
    using Pointers = std::array<float *, 3>;

    void create_context();
    void check_tensors();
    std::uint64_t last_call(const Key &key) const;
    void remember_call(const Key &key);
    bool deserves_slot(const Key &key) const;
    Slot &slot_for(const Key &key, const dpt_frames &frames, const Pointers &maps);
    void add_slot(const Key &key, const dpt_frames &frames, const Pointers &maps);
    void reserve_host_call(Slot &slot, const dpt_frames &frames, const Pointers &maps);
    void prepare(Slot &slot, const dpt_frames &frames, const void *input, const Pointers &outputs);
    void enqueue(Slot &slot, const dpt_frames &frames, const Pointers &maps);
    void launch(Slot &slot, const dpt_frames &frames, const Pointers &maps);
    void capture(Slot &slot, const dpt_frames &frames, const Pointers &maps);
    void disable_graphs(const std::string &cause);
    void destroy_graph(Slot &slot) noexcept;
    void *reserve(Buffer &buffer, std::size_t bytes);
    void save_cache() noexcept;
    void release() noexcept;
    [[noreturn]] void fail_with_log(const std::string &what);

    std::string file_, cache_file_, cuda_graph_status_;
    int device_;
    bool use_graphs_; // capture CUDA graphs; false with TensorRT-RTX, which captures them itself
    bool captures_internally_ = false; // TensorRT-RTX was asked to capture them
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#if defined(TRT_MAJOR_RTX)
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
    std::vector<char> cache_content_; // of the file when it was read
#endif
    Slot shared_; // for device memory, and for host memory of kinds without a slot; every call sets it up anew
    cudaStream_t stream_ = nullptr;
    cudaEvent_t done_ = nullptr;  // recorded after the work of each call
    cudaEvent_t ready_ = nullptr; // recorded on a default stream of the caller when its pixels are ready
    std::array<Head, 3> heads_;
    Buffer scratch_{false}; // of all contexts
    std::list<Slot> slots_; // most recently used first
    std::size_t slots_kept_;
    std::uint64_t calls_ = 0;
    std::deque<std::pair<Key, std::uint64_t>> last_calls_; // when a kind was called, as a count of calls; latest first
};

} // namespace dpt_impl
