#include "engine.h"

#include <algorithm>
#include <cstring>

#include "../frames.h"
#include "cache.h"

namespace dpt_impl {
namespace {

constexpr std::size_t kMaxCachedGraphs = 4; // as in the Python runtime

std::size_t map_bytes(const dpt_frames &frames, int channels) {
    return count_pixels(frames) * static_cast<std::size_t>(channels) * sizeof(float);
}

// Scratch memory is allocated here: TensorRT would allocate as much as the largest shape of the profile needs.
constexpr auto kUserManaged = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;

// The maps that are not null, as DPT_HAS_* bits.
std::int64_t bits_of(const std::array<float *, 3> &maps) {
    return (maps[0] != nullptr ? 1 : 0) | (maps[1] != nullptr ? 2 : 0) | (maps[2] != nullptr ? 4 : 0);
}

} // namespace

Engine::Engine(const dpt_engine_desc &desc)
    : file_(desc.file), cache_file_(desc.cache), device_(desc.device), use_graphs_(desc.no_cuda_graph == 0),
      heads_{{{"depth", 1, (desc.heads & DPT_HAS_DEPTH) != 0}, {"normals", 3, (desc.heads & DPT_HAS_NORMALS) != 0},
              {"alpha", 1, (desc.heads & DPT_HAS_ALPHA) != 0}}} {
    const Cuda &cuda = Cuda::get();
    const DeviceGuard current(device_);
    try {
        runtime_.reset(TensorRtLibrary::get().create_runtime(logger_));
        if (!runtime_) fail_with_log("could not be loaded");
        if (desc.allow_host_code != 0) runtime_->setEngineHostCodeAllowed(true);
        engine_.reset(runtime_->deserializeCudaEngine(desc.plan, desc.bytes));
        if (!engine_) fail_with_log("could not be loaded");
        check_tensors();
        create_context();
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
        const DeviceGuard current(device_);
        save_cache();
        release();
    } catch (...) { // the device is lost, and its memory with it
    }
}

void Engine::release() noexcept {
    const Cuda &cuda = Cuda::get();
    if (done_ != nullptr) static_cast<void>(cuda.cudaEventSynchronize(done_));
    for (CachedGraph &cached : cached_) destroy_graph(cached);
    cached_.clear(); // contexts, then the engine, then the runtime that they belong to
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

void Engine::create_context() {
    cuda_graph_status_ = use_graphs_ ? "CUDA graphs: used for host memory, from the second call of each size on."
                                     : "No CUDA graphs: disabled by no_cuda_graph.";
#if defined(TRT_MAJOR_RTX)
    const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (!config) fail_with_log("could not create a runtime configuration");
    config->setExecutionContextAllocationStrategy(kUserManaged);
    // TensorRT-RTX replaces kernels by specialised ones while it runs, so it captures CUDA graphs itself.
    if (use_graphs_) {
        cuda_graph_status_ = "CUDA graphs: captured by TensorRT-RTX.";
        if (!config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)) {
            cuda_graph_status_ =
                concat("No CUDA graphs: TensorRT-RTX cannot capture them: ", logger_.take_errors(), ".");
        }
    }
    use_graphs_ = false;
    // Kernels are compiled when a shape first occurs. The Python runtime uses the same cache file.
    cache_.reset(config->createRuntimeCache());
    if (cache_) {
        cache_content_ = read_cache(cache_file_);
        // Fails for a cache of another GPU or version, and then starts with an empty cache.
        if (!cache_content_.empty()) {
            static_cast<void>(cache_->deserialize(cache_content_.data(), cache_content_.size()));
        }
        static_cast<void>(config->setRuntimeCache(*cache_));
        static_cast<void>(logger_.take_errors());
    }
    context_.reset(engine_->createExecutionContext(config.get()));
#else
    context_.reset(engine_->createExecutionContext(kUserManaged));
#endif
    if (!context_) fail_with_log("could not create an execution context");
}

// Writes the kernels that TensorRT-RTX compiled, if they differ from those that were read.
void Engine::save_cache() noexcept {
#if defined(TRT_MAJOR_RTX)
    if (!cache_) return;
    const std::unique_ptr<nvinfer1::IHostMemory> content(cache_->serialize());
    if (!content || content->size() == 0) return;
    const char *data = static_cast<const char *>(content->data());
    if (std::equal(data, data + content->size(), cache_content_.begin(), cache_content_.end())) return;
    replace_cache(cache_file_, data, content->size());
#endif
}

void Engine::check_tensors() {
    using nvinfer1::DataType;
    std::string found;
    std::size_t expected = 1;
    bool fits = engine_->getTensorDataType("frame") == DataType::kUINT8;
    for (const Head &head : heads_) {
        if (!head.present) continue;
        ++expected;
        fits = fits && engine_->getTensorDataType(head.name) == DataType::kFLOAT;
    }
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
        found += (i > 0 ? ", " : "") + std::string(engine_->getIOTensorName(i));
    }
    static_cast<void>(logger_.take_errors()); // about missing names
    if (!fits || static_cast<std::size_t>(engine_->getNbIOTensors()) != expected) {
        fail(DPT_CONTRACT_ERROR, file_, ": expected a uint8 tensor frame and a float32 tensor per head, found ", found,
             ".");
    }
}

void Engine::run(const dpt_frames &frames, const dpt_maps &maps) {
    const Cuda &cuda = Cuda::get();
    const DeviceGuard current(device_);
    // A call on a stream of the caller may still use the same buffers.
    cuda.check(cuda.cudaStreamWaitEvent(stream_, done_, 0), "cudaStreamWaitEvent");
    const Pointers outputs = {maps.depth, maps.normals, maps.alpha};
    reserve_host(frames, outputs);
    pack_rgb(frames, static_cast<std::uint8_t *>(staging_.data()));
    try {
        launch(frames, outputs);
        cuda.check(cuda.cudaEventRecord(done_, stream_), "cudaEventRecord");
        cuda.check(cuda.cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    } catch (...) {
        static_cast<void>(cuda.cudaStreamSynchronize(stream_)); // before the next call uses the pinned buffers
        throw;
    }
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        if (outputs[i] == nullptr) continue;
        std::memcpy(outputs[i], heads_[i].host.data(), map_bytes(frames, heads_[i].channels));
    }
}

void Engine::run_device(const dpt_frames &frames, const dpt_maps &maps, cudaStream_t stream) {
    const Cuda &cuda = Cuda::get();
    const DeviceGuard current(device_);
    // On CUDA's default streams TensorRT would synchronise the device, so the work runs on our stream, with events.
    const bool is_default = stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
    const cudaStream_t work_stream = is_default ? stream_ : stream;
    if (is_default) {
        cuda.check(cuda.cudaEventRecord(ready_, stream), "cudaEventRecord");
        cuda.check(cuda.cudaStreamWaitEvent(work_stream, ready_, 0), "cudaStreamWaitEvent");
    }
    cuda.check(cuda.cudaStreamWaitEvent(work_stream, done_, 0), "cudaStreamWaitEvent");
    prepare(*context_, frames, frames.data, {maps.depth, maps.normals, maps.alpha});
    if (!context_->enqueueV3(work_stream)) fail_with_log("could not run");
    cuda.check(cuda.cudaEventRecord(done_, work_stream), "cudaEventRecord");
    if (is_default) cuda.check(cuda.cudaStreamWaitEvent(stream, done_, 0), "cudaStreamWaitEvent");
}

// Allocates what a call with host memory needs, except scratch memory.
void Engine::reserve_host(const dpt_frames &frames, const Pointers &maps) {
    reserve(staging_, count_pixels(frames) * 3);
    reserve(input_, count_pixels(frames) * 3);
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        if (maps[i] != nullptr) reserve(heads_[i].host, map_bytes(frames, heads_[i].channels));
    }
}

// Sets shapes, addresses and scratch memory. Maps whose address is null are written to our own buffers.
void Engine::prepare(nvinfer1::IExecutionContext &context, const dpt_frames &frames, const void *input,
                     const Pointers &outputs) {
    const nvinfer1::Dims4 shape(frames.batch, frames.height, frames.width, 3);
    if (!context.setInputShape("frame", shape)) {
        fail_with_log(concat("rejected the shape [", frames.batch, ", ", frames.height, ", ", frames.width, ", 3]"));
    }
    if (!context.setInputTensorAddress("frame", input)) fail_with_log("rejected the address of frame");
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        Head &head = heads_[i];
        if (!head.present) continue;
        void *address = outputs[i];
        if (address == nullptr) address = reserve(head.device, map_bytes(frames, head.channels));
        if (!context.setTensorAddress(head.name, address)) fail_with_log(concat("rejected the address of ", head.name));
    }
    void *memory = reserve(scratch_, context.updateDeviceMemorySizeForShapes());
    context.setDeviceMemoryV2(memory, static_cast<std::int64_t>(scratch_.bytes()));
}

// Enqueues what a CUDA graph consists of, and nothing else: copy from pinned memory to the device, engine, copy of the
// maps to pinned memory.
void Engine::enqueue(nvinfer1::IExecutionContext &context, const dpt_frames &frames, const Pointers &maps) {
    const Cuda &cuda = Cuda::get();
    cuda.check(cuda.cudaMemcpyAsync(input_.data(), staging_.data(), count_pixels(frames) * 3, cudaMemcpyHostToDevice,
                                    stream_),
               "cudaMemcpyAsync");
    if (!context.enqueueV3(stream_)) fail_with_log("could not run");
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        if (maps[i] == nullptr) continue;
        cuda.check(cuda.cudaMemcpyAsync(heads_[i].host.data(), heads_[i].device.data(),
                                        map_bytes(frames, heads_[i].channels), cudaMemcpyDeviceToHost, stream_),
                   "cudaMemcpyAsync");
    }
}

// Replays the CUDA graph of this shape and set of maps. The first call runs without a graph, because TensorRT sets up
// its state then; the second call is captured.
void Engine::launch(const dpt_frames &frames, const Pointers &maps) {
    const Cuda &cuda = Cuda::get();
    CachedGraph *cached = use_graphs_ ? find_or_add_graph(frames, maps) : nullptr;
    if (cached != nullptr && cached->warmed_up && cached->graph == nullptr) capture(*cached, frames, maps);
    if (!use_graphs_) cached = nullptr; // capture() failed
    if (cached != nullptr && cached->graph != nullptr) {
        cuda.check(cuda.cudaGraphLaunch(cached->graph, stream_), "cudaGraphLaunch");
        return;
    }
    nvinfer1::IExecutionContext &context = cached != nullptr ? *cached->context : *context_;
    prepare(context, frames, input_.data(), {});
    enqueue(context, frames, maps);
    if (cached != nullptr) cached->warmed_up = true;
}

// Returns the entry of this shape and set of maps. A new entry may replace the least recently used one. Returns null if
// no context could be created.
Engine::CachedGraph *Engine::find_or_add_graph(const dpt_frames &frames, const Pointers &maps) {
    const std::array<std::int64_t, 4> key = {frames.batch, frames.height, frames.width, bits_of(maps)};
    auto found = std::find_if(cached_.begin(), cached_.end(),
                              [&](const CachedGraph &entry) { return entry.key == key; });
    if (found == cached_.end() && cached_.size() < kMaxCachedGraphs) {
        Context context(engine_->createExecutionContext(kUserManaged));
        if (!context) {
            disable_graphs(concat("could not create an execution context: ", logger_.take_errors()));
            return nullptr;
        }
        found = cached_.emplace(cached_.end());
        found->context = std::move(context);
    } else if (found == cached_.end()) {
        --found;
        destroy_graph(*found);
    }
    found->key = key;
    std::rotate(cached_.begin(), found, found + 1);
    return &cached_.front();
}

void Engine::capture(CachedGraph &cached, const dpt_frames &frames, const Pointers &maps) {
    const Cuda &cuda = Cuda::get();
    cudaGraph_t graph = nullptr;
    std::string cause;
    cudaError_t status = cuda.cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
    if (status == cudaSuccess) {
        try {
            enqueue(*cached.context, frames, maps);
        } catch (const std::exception &error) {
            cause = error.what();
        }
        status = cuda.cudaStreamEndCapture(stream_, &graph);
    }
    if (cause.empty() && status == cudaSuccess) status = cuda.cudaGraphInstantiate(&cached.graph, graph, 0);
    if (graph != nullptr) static_cast<void>(cuda.cudaGraphDestroy(graph));
    if (cause.empty() && status != cudaSuccess) cause = cuda.cudaGetErrorString(status);
    if (cause.empty()) return;
    cached.graph = nullptr;
    static_cast<void>(cuda.cudaGetLastError()); // otherwise the application would see this error
    static_cast<void>(logger_.take_errors());
    disable_graphs("capture failed: " + cause);
}

// Kernels are launched one by one from now on.
void Engine::disable_graphs(const std::string &cause) {
    for (CachedGraph &cached : cached_) destroy_graph(cached);
    cached_.clear();
    use_graphs_ = false;
    cuda_graph_status_ = "No CUDA graphs: " + cause;
    if (cuda_graph_status_.back() != '.') cuda_graph_status_ += '.';
}

void Engine::destroy_graph(CachedGraph &cached) noexcept {
    if (cached.graph != nullptr) static_cast<void>(Cuda::get().cudaGraphExecDestroy(cached.graph));
    cached.graph = nullptr;
    cached.warmed_up = false;
}

// Grows a buffer, after waiting for the work that uses it and destroying the graphs that contain its address.
void *Engine::reserve(Buffer &buffer, std::size_t bytes) {
    if (bytes > buffer.bytes()) {
        const Cuda &cuda = Cuda::get();
        cuda.check(cuda.cudaEventSynchronize(done_), "cudaEventSynchronize");
        for (CachedGraph &cached : cached_) destroy_graph(cached);
    }
    return buffer.reserve(bytes);
}

void Engine::fail_with_log(const std::string &what) {
    fail(DPT_BACKEND_ERROR, file_, " ", what, ": ", logger_.take_errors(), ".");
}

} // namespace dpt_impl
