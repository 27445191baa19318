#include "engine.h"

#include <algorithm>
#include <cstring>

#include "../frames.h"
#include "cache.h"

namespace dpt_impl {
namespace {

constexpr std::size_t kShapesKept = 4; // as in lane.py

std::size_t map_bytes(const dpt_frames &frames, int channels) {
    return count_pixels(frames) * static_cast<std::size_t>(channels) * sizeof(float);
}

// The scratch memory is ours: TensorRT itself would take as much as the profile's largest shape needs.
constexpr auto kOurs = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;

// Which maps are wanted, as DPT_HAS_* bits.
std::int64_t bits_of(const std::array<float *, 3> &wanted) {
    return (wanted[0] != nullptr ? 1 : 0) | (wanted[1] != nullptr ? 2 : 0) | (wanted[2] != nullptr ? 4 : 0);
}

} // namespace

Engine::Engine(const dpt_engine_order &order)
    : file_(order.file), cache_file_(order.cache), device_(order.device), graphs_(order.no_cuda_graph == 0),
      heads_{{{"depth", 1, (order.heads & DPT_HAS_DEPTH) != 0}, {"normals", 3, (order.heads & DPT_HAS_NORMALS) != 0},
              {"alpha", 1, (order.heads & DPT_HAS_ALPHA) != 0}}} {
    const Cuda &cuda = Cuda::get();
    const OnDevice current(device_);
    try {
        runtime_.reset(Builder::get().create_runtime(logger_));
        if (!runtime_) fail_with_words("cannot be loaded here");
        if (order.host_code != 0) runtime_->setEngineHostCodeAllowed(true);
        engine_.reset(runtime_->deserializeCudaEngine(order.plan, order.bytes));
        if (!engine_) fail_with_words("cannot be loaded here");
        check_tensors();
        create_context(graphs_);
        cuda.check(cuda.cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        cuda.check(cuda.cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
        cuda.check(cuda.cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    } catch (...) {
        release();
        throw;
    }
}

Engine::~Engine() {
    try {
        const OnDevice current(device_);
        keep_cache();
        release();
    } catch (...) { // the device is gone, and its memory with it
    }
}

void Engine::release() noexcept {
    const Cuda &cuda = Cuda::get();
    if (done_ != nullptr) static_cast<void>(cuda.cudaEventSynchronize(done_));
    for (Recorded &recorded : recorded_) forget_graph(recorded);
    recorded_.clear(); // in this order: each lives in the next
    context_.reset();
#if defined(TRT_MAJOR_RTX)
    cache_.reset();
#endif
    engine_.reset();
    runtime_.reset();
    for (Head &head : heads_) head.device.free(), head.host.free();
    input_.free(), staging_.free(), scratch_.free();
    if (done_ != nullptr) static_cast<void>(cuda.cudaEventDestroy(done_));
    if (ready_ != nullptr) static_cast<void>(cuda.cudaEventDestroy(ready_));
    if (stream_ != nullptr) static_cast<void>(cuda.cudaStreamDestroy(stream_));
    done_ = ready_ = nullptr;
    stream_ = nullptr;
}

void Engine::create_context(bool with_graphs) {
    note_ = with_graphs ? "Frames in host memory replay a CUDA graph from the second call of a size on."
                        : "No CUDA graph: turned off by no_cuda_graph.";
#if defined(TRT_MAJOR_RTX)
    const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (!config) fail_with_words("gives no runtime configuration");
    config->setExecutionContextAllocationStrategy(kOurs);
    // TensorRT-RTX swaps in specialised kernels while it runs, so it captures CUDA graphs itself.
    if (with_graphs) {
        note_ = "TensorRT-RTX captures CUDA graphs itself.";
        if (!config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)) {
            note_ = text("No CUDA graph: TensorRT-RTX refuses to capture one, ", logger_.said(), ".");
        }
    }
    graphs_ = false;
    // It compiles kernels for shapes as they come; the cache keeps them beside the engine. Python uses the same file.
    cache_.reset(config->createRuntimeCache());
    if (cache_) {
        cache_read_ = read_cache(cache_file_);
        // It refuses what another GPU or version wrote, and starts empty then.
        if (!cache_read_.empty()) static_cast<void>(cache_->deserialize(cache_read_.data(), cache_read_.size()));
        static_cast<void>(config->setRuntimeCache(*cache_));
        static_cast<void>(logger_.said());
    }
    context_.reset(engine_->createExecutionContext(config.get()));
#else
    context_.reset(engine_->createExecutionContext(kOurs));
#endif
    if (!context_) fail_with_words("gives no execution context");
}

// Writes what TensorRT-RTX compiled, where something is new.
void Engine::keep_cache() noexcept {
#if defined(TRT_MAJOR_RTX)
    if (!cache_) return;
    const std::unique_ptr<nvinfer1::IHostMemory> content(cache_->serialize());
    if (!content || content->size() == 0) return;
    const char *data = static_cast<const char *>(content->data());
    if (std::equal(data, data + content->size(), cache_read_.begin(), cache_read_.end())) return;
    replace_cache(cache_file_, data, content->size());
#endif
}

void Engine::check_tensors() {
    using nvinfer1::DataType;
    std::string found;
    std::size_t expected = 1;
    bool fits = engine_->getTensorDataType("frame") == DataType::kUINT8;
    for (const Head &head : heads_) {
        if (!head.there) continue;
        ++expected;
        fits = fits && engine_->getTensorDataType(head.name) == DataType::kFLOAT;
    }
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
        found += (i > 0 ? ", " : "") + std::string(engine_->getIOTensorName(i));
    }
    static_cast<void>(logger_.said()); // about names that are not there
    if (!fits || static_cast<std::size_t>(engine_->getNbIOTensors()) != expected) {
        fail(DPT_CONTRACT_ERROR, file_, ": expected the tensor frame in uint8 and a float32 map per head, found ", found,
             ".");
    }
}

void Engine::run(const dpt_frames &frames, const dpt_maps &maps) {
    const Cuda &cuda = Cuda::get();
    const OnDevice current(device_);
    // A call on a stream of the caller's may still use the same buffers.
    cuda.check(cuda.cudaStreamWaitEvent(stream_, done_, 0), "cudaStreamWaitEvent");
    const Pointers wanted = {maps.depth, maps.normals, maps.alpha};
    reserve_host(frames, wanted);
    pack_rgb(frames, static_cast<std::uint8_t *>(staging_.data()));
    try {
        launch(frames, wanted);
        cuda.check(cuda.cudaEventRecord(done_, stream_), "cudaEventRecord");
        cuda.check(cuda.cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    } catch (...) {
        static_cast<void>(cuda.cudaStreamSynchronize(stream_)); // the pinned buffers are the next call's
        throw;
    }
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        if (wanted[i] == nullptr) continue;
        std::memcpy(wanted[i], heads_[i].host.data(), map_bytes(frames, heads_[i].channels));
    }
}

void Engine::run_device(const dpt_frames &frames, const dpt_maps &maps, cudaStream_t stream) {
    const Cuda &cuda = Cuda::get();
    const OnDevice current(device_);
    // Around CUDA's default streams TensorRT would have the host wait: the work goes to our own, with waits both ways.
    const bool standard = stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
    const cudaStream_t lane = standard ? stream_ : stream;
    if (standard) {
        cuda.check(cuda.cudaEventRecord(ready_, stream), "cudaEventRecord");
        cuda.check(cuda.cudaStreamWaitEvent(lane, ready_, 0), "cudaStreamWaitEvent");
    }
    cuda.check(cuda.cudaStreamWaitEvent(lane, done_, 0), "cudaStreamWaitEvent");
    prepare(*context_, frames, frames.data, {maps.depth, maps.normals, maps.alpha});
    if (!context_->enqueueV3(lane)) fail_with_words("could not run");
    cuda.check(cuda.cudaEventRecord(done_, lane), "cudaEventRecord");
    if (standard) cuda.check(cuda.cudaStreamWaitEvent(stream, done_, 0), "cudaStreamWaitEvent");
}

// Everything that a call in host memory needs but scratch memory.
void Engine::reserve_host(const dpt_frames &frames, const Pointers &wanted) {
    reserve(staging_, count_pixels(frames) * 3);
    reserve(input_, count_pixels(frames) * 3);
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        if (wanted[i] != nullptr) reserve(heads_[i].host, map_bytes(frames, heads_[i].channels));
    }
}

// Sets shapes, addresses and scratch memory. A map without an address of the caller's goes to a buffer of ours.
void Engine::prepare(nvinfer1::IExecutionContext &context, const dpt_frames &frames, const void *input,
                     const Pointers &outputs) {
    const nvinfer1::Dims4 shape(frames.batch, frames.height, frames.width, 3);
    if (!context.setInputShape("frame", shape)) {
        fail_with_words(text("refuses frames of shape [", frames.batch, ", ", frames.height, ", ", frames.width,
                             ", 3]"));
    }
    if (!context.setInputTensorAddress("frame", input)) fail_with_words("refuses memory for frame");
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        Head &head = heads_[i];
        if (!head.there) continue;
        void *address = outputs[i];
        if (address == nullptr) address = reserve(head.device, map_bytes(frames, head.channels));
        if (!context.setTensorAddress(head.name, address)) fail_with_words(text("refuses memory for ", head.name));
    }
    void *memory = reserve(scratch_, context.updateDeviceMemorySizeForShapes());
    context.setDeviceMemoryV2(memory, static_cast<std::int64_t>(scratch_.bytes()));
}

// Host to device, the engine, device to host, from and to the pinned buffers, on our stream. Nothing else: this is
// what a CUDA graph holds.
void Engine::enqueue(nvinfer1::IExecutionContext &context, const dpt_frames &frames, const Pointers &wanted) {
    const Cuda &cuda = Cuda::get();
    cuda.check(cuda.cudaMemcpyAsync(input_.data(), staging_.data(), count_pixels(frames) * 3, cudaMemcpyHostToDevice,
                                    stream_),
               "cudaMemcpyAsync");
    if (!context.enqueueV3(stream_)) fail_with_words("could not run");
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        if (wanted[i] == nullptr) continue;
        cuda.check(cuda.cudaMemcpyAsync(heads_[i].host.data(), heads_[i].device.data(),
                                        map_bytes(frames, heads_[i].channels), cudaMemcpyDeviceToHost, stream_),
                   "cudaMemcpyAsync");
    }
}

// Replays the CUDA graph of this shape and choice of maps. The first call of a shape runs without one, because TensorRT
// sets itself up then; the second is captured.
void Engine::launch(const dpt_frames &frames, const Pointers &wanted) {
    const Cuda &cuda = Cuda::get();
    Recorded *recorded = graphs_ ? find_recorded(frames, wanted) : nullptr;
    if (recorded != nullptr && recorded->ready && recorded->graph == nullptr) capture(*recorded, frames, wanted);
    if (!graphs_) recorded = nullptr; // refused just now
    if (recorded != nullptr && recorded->graph != nullptr) {
        cuda.check(cuda.cudaGraphLaunch(recorded->graph, stream_), "cudaGraphLaunch");
        return;
    }
    nvinfer1::IExecutionContext &context = recorded != nullptr ? *recorded->context : *context_;
    prepare(context, frames, input_.data(), {});
    enqueue(context, frames, wanted);
    if (recorded != nullptr) recorded->ready = true;
}

// The entry of this shape and choice of maps, new or in place of the least recently used one. Null: no context for it.
Engine::Recorded *Engine::find_recorded(const dpt_frames &frames, const Pointers &wanted) {
    const std::array<std::int64_t, 4> key = {frames.batch, frames.height, frames.width, bits_of(wanted)};
    auto found = std::find_if(recorded_.begin(), recorded_.end(), [&](const Recorded &one) { return one.key == key; });
    if (found == recorded_.end() && recorded_.size() < kShapesKept) {
        Context context(engine_->createExecutionContext(kOurs));
        if (!context) {
            go_without_graphs(text("no execution context for one: ", logger_.said()));
            return nullptr;
        }
        found = recorded_.emplace(recorded_.end());
        found->context = std::move(context);
    } else if (found == recorded_.end()) {
        --found;
        forget_graph(*found);
    }
    found->key = key;
    std::rotate(recorded_.begin(), found, found + 1);
    return &recorded_.front();
}

void Engine::capture(Recorded &recorded, const dpt_frames &frames, const Pointers &wanted) {
    const Cuda &cuda = Cuda::get();
    cudaGraph_t graph = nullptr;
    std::string why;
    cudaError_t status = cuda.cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
    if (status == cudaSuccess) {
        try {
            enqueue(*recorded.context, frames, wanted);
        } catch (const std::exception &error) {
            why = error.what();
        }
        status = cuda.cudaStreamEndCapture(stream_, &graph);
    }
    if (why.empty() && status == cudaSuccess) status = cuda.cudaGraphInstantiate(&recorded.graph, graph, 0);
    if (graph != nullptr) static_cast<void>(cuda.cudaGraphDestroy(graph));
    if (why.empty() && status != cudaSuccess) why = cuda.cudaGetErrorString(status);
    if (why.empty()) return;
    recorded.graph = nullptr;
    static_cast<void>(cuda.cudaGetLastError()); // or the program would find it after a call of its own
    static_cast<void>(logger_.said());
    go_without_graphs("capturing one failed: " + why);
}

// Runs kernel by kernel from now on.
void Engine::go_without_graphs(const std::string &why) {
    for (Recorded &recorded : recorded_) forget_graph(recorded);
    recorded_.clear();
    graphs_ = false;
    note_ = "No CUDA graph: " + why;
    if (note_.back() != '.') note_ += '.';
}

void Engine::forget_graph(Recorded &recorded) noexcept {
    if (recorded.graph != nullptr) static_cast<void>(Cuda::get().cudaGraphExecDestroy(recorded.graph));
    recorded.graph = nullptr;
    recorded.ready = false;
}

// Grows a buffer after the work that uses it, and after the graphs that know its address are gone.
void *Engine::reserve(Buffer &buffer, std::size_t bytes) {
    if (bytes > buffer.bytes()) {
        const Cuda &cuda = Cuda::get();
        cuda.check(cuda.cudaEventSynchronize(done_), "cudaEventSynchronize");
        for (Recorded &recorded : recorded_) forget_graph(recorded);
    }
    return buffer.reserve(bytes);
}

void Engine::fail_with_words(const std::string &what) {
    fail(DPT_BACKEND_ERROR, file_, " ", what, ": ", logger_.said(), ".");
}

} // namespace dpt_impl
