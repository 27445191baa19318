#include "engine.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>

#include "../frames.h"
#include "cache.h"

namespace dpt_impl {
namespace {

constexpr std::size_t kSlotsKept = 8; // as in the Python runtime
constexpr std::size_t kKindsRemembered = 64;

std::size_t map_bytes(const dpt_frames &frames, int channels) {
    return count_pixels(frames) * static_cast<std::size_t>(channels) * sizeof(float);
}

// Scratch memory is allocated here: TensorRT would allocate as much as the largest shape of the profile needs.
constexpr auto kUserManaged = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;

// Whether TensorRT-RTX can capture the work of a context that has run. Unknown if its headers hide the function, which
// depends on their version.
template <typename Context>
auto is_capturable(Context &context, cudaStream_t stream, int)
    -> decltype(std::optional<bool>(context.isStreamCapturable(stream))) {
    return context.isStreamCapturable(stream);
}
template <typename Context> std::optional<bool> is_capturable(Context &, cudaStream_t, long) { return std::nullopt; }

// The maps that are not null, as DPT_HAS_* bits.
std::int64_t bits_of(const std::array<float *, 3> &maps) {
    return (maps[0] != nullptr ? 1 : 0) | (maps[1] != nullptr ? 2 : 0) | (maps[2] != nullptr ? 4 : 0);
}

} // namespace

Engine::Engine(const dpt_engine_desc &desc)
    : file_(desc.file), cache_file_(desc.cache), device_(desc.device), use_graphs_(desc.no_cuda_graph == 0),
      heads_{{{"depth", 1, (desc.heads & DPT_HAS_DEPTH) != 0}, {"normals", 3, (desc.heads & DPT_HAS_NORMALS) != 0},
              {"alpha", 1, (desc.heads & DPT_HAS_ALPHA) != 0}}},
      slots_kept_(kSlotsKept) {
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
    for (Slot &slot : slots_) destroy_graph(slot);
    slots_.clear(); // contexts, then the engine, then the runtime that they belong to
    shared_.context.reset();
#if defined(TRT_MAJOR_RTX)
    cache_.reset();
#endif
    engine_.reset();
    runtime_.reset();
    for (MapBuffers &map : shared_.maps) map.device.free(), map.host.free();
    shared_.input.free(), shared_.staging.free(), scratch_.free();
    if (done_ != nullptr) static_cast<void>(cuda.cudaEventDestroy(done_));
    if (ready_ != nullptr) static_cast<void>(cuda.cudaEventDestroy(ready_));
    if (stream_ != nullptr) static_cast<void>(cuda.cudaStreamDestroy(stream_));
    done_ = ready_ = nullptr;
    stream_ = nullptr;
}

void Engine::create_context() {
    cuda_graph_status_ = use_graphs_ ? "CUDA graphs: used for host memory, from the third call of each size on."
                                     : "No CUDA graphs: disabled by no_cuda_graph.";
#if defined(TRT_MAJOR_RTX)
    const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (!config) fail_with_log("could not create a runtime configuration");
    config->setExecutionContextAllocationStrategy(kUserManaged);
    // TensorRT-RTX replaces kernels by specialised ones while it runs, so it captures CUDA graphs itself.
    if (use_graphs_) {
        captures_internally_ = true;
        cuda_graph_status_ = "CUDA graphs: captured by TensorRT-RTX if it can capture the first call.";
        if (!config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)) {
            captures_internally_ = false;
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
    shared_.context.reset(engine_->createExecutionContext(config.get()));
#else
    shared_.context.reset(engine_->createExecutionContext(kUserManaged));
#endif
    if (!shared_.context) fail_with_log("could not create an execution context");
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
    const Key key = {frames.batch, frames.height, frames.width, bits_of(outputs)};
    Slot &slot = slot_for(key, frames, outputs);
    pack_rgb(frames, static_cast<std::uint8_t *>(slot.staging.data()));
    try {
        launch(slot, frames, outputs);
        cuda.check(cuda.cudaEventRecord(done_, stream_), "cudaEventRecord");
        cuda.check(cuda.cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    } catch (...) {
        static_cast<void>(cuda.cudaStreamSynchronize(stream_)); // before the next call uses the pinned buffers
        throw;
    }
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        if (outputs[i] == nullptr) continue;
        std::memcpy(outputs[i], slot.maps[i].host.data(), map_bytes(frames, heads_[i].channels));
    }
    remember_call(key);
    if (captures_internally_) {
        if (const auto capturable = is_capturable(*slot.context, stream_, 0)) {
            cuda_graph_status_ = *capturable ? "CUDA graphs: captured by TensorRT-RTX."
                                             : "No CUDA graphs: TensorRT-RTX cannot capture this engine's work.";
        }
    }
    // Only now, because TensorRT sets up its state in the first run of a shape.
    if (&slot != &shared_ && slot.graph == nullptr) capture(slot, frames, outputs);
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
    prepare(shared_, frames, frames.data, {maps.depth, maps.normals, maps.alpha});
    if (!shared_.context->enqueueV3(work_stream)) fail_with_log("could not run");
    cuda.check(cuda.cudaEventRecord(done_, work_stream), "cudaEventRecord");
    if (is_default) cuda.check(cuda.cudaStreamWaitEvent(stream, done_, 0), "cudaStreamWaitEvent");
}

// When a kind of call was made last, as a count of calls. 0 if that is unknown.
std::uint64_t Engine::last_call(const Key &key) const {
    for (const auto &[kind, time] : last_calls_) {
        if (kind == key) return time;
    }
    return 0;
}

void Engine::remember_call(const Key &key) {
    const auto found = std::find_if(last_calls_.begin(), last_calls_.end(),
                                    [&](const auto &entry) { return entry.first == key; });
    if (found != last_calls_.end()) {
        last_calls_.erase(found);
    } else if (last_calls_.size() == kKindsRemembered) {
        last_calls_.pop_back();
    }
    last_calls_.emplace_front(key, ++calls_);
}

// Whether this is the second call of its kind or a later one, and a slot is free or was used last before the previous
// call of this kind. More kinds in turn than there are slots therefore do not evict each other.
bool Engine::deserves_slot(const Key &key) const {
    const std::uint64_t previous = last_call(key);
    if (!use_graphs_ || previous == 0 || slots_kept_ == 0) return false;
    return slots_.size() < slots_kept_ || previous > last_call(slots_.back().key);
}

// Returns the slot for a call with host memory. It has the memory that the call needs.
Engine::Slot &Engine::slot_for(const Key &key, const dpt_frames &frames, const Pointers &maps) {
    const auto find = [&] {
        return std::find_if(slots_.begin(), slots_.end(), [&](const Slot &slot) { return slot.key == key; });
    };
    auto found = find();
    if (found == slots_.end() && deserves_slot(key)) {
        add_slot(key, frames, maps);
        found = find();
    }
    if (found == slots_.end()) {
        reserve_host_call(shared_, frames, maps);
        return shared_;
    }
    slots_.splice(slots_.begin(), slots_, found);
    return slots_.front();
}

// Gives a kind of call a slot: a new one, or the least recently used one with its context and memory. Once memory is
// short, no more slots are added.
void Engine::add_slot(const Key &key, const dpt_frames &frames, const Pointers &maps) {
    if (slots_.size() < slots_kept_) {
        slots_.emplace_front();
    } else {
        slots_.splice(slots_.begin(), slots_, std::prev(slots_.end()));
    }
    Slot &slot = slots_.front();
    destroy_graph(slot);
    slot.key = key;
    try {
        if (!slot.context) slot.context.reset(engine_->createExecutionContext(kUserManaged));
        if (!slot.context) fail_with_log("could not create an execution context");
        reserve_host_call(slot, frames, maps);
    } catch (const std::exception &error) {
        slots_.pop_front();
        slots_kept_ = slots_.size();
        if (slots_.empty()) disable_graphs(error.what());
    }
}

// Allocates what a call with host memory needs, except scratch memory.
void Engine::reserve_host_call(Slot &slot, const dpt_frames &frames, const Pointers &maps) {
    reserve(slot.staging, count_pixels(frames) * 3);
    reserve(slot.input, count_pixels(frames) * 3);
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        const std::size_t bytes = map_bytes(frames, heads_[i].channels);
        if (heads_[i].present) reserve(slot.maps[i].device, bytes);
        if (maps[i] != nullptr) reserve(slot.maps[i].host, bytes);
    }
}

// Sets shapes, addresses and scratch memory. Maps whose address is null are written to the slot's buffers. If the scratch
// memory has to move, the graphs that contain its address are destroyed.
void Engine::prepare(Slot &slot, const dpt_frames &frames, const void *input, const Pointers &outputs) {
    nvinfer1::IExecutionContext &context = *slot.context;
    const nvinfer1::Dims4 shape(frames.batch, frames.height, frames.width, 3);
    if (!context.setInputShape("frame", shape)) {
        fail_with_log(concat("rejected the shape [", frames.batch, ", ", frames.height, ", ", frames.width, ", 3]"));
    }
    if (!context.setInputTensorAddress("frame", input)) fail_with_log("rejected the address of frame");
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        const Head &head = heads_[i];
        if (!head.present) continue;
        void *address = outputs[i];
        if (address == nullptr) address = reserve(slot.maps[i].device, map_bytes(frames, head.channels));
        if (!context.setTensorAddress(head.name, address)) fail_with_log(concat("rejected the address of ", head.name));
    }
    const std::size_t bytes = context.updateDeviceMemorySizeForShapes();
    if (bytes == 0) fail_with_log("could not compute the size of its scratch memory");
    if (bytes > scratch_.bytes()) {
        for (Slot &other : slots_) destroy_graph(other);
    }
    void *memory = reserve(scratch_, bytes);
    context.setDeviceMemoryV2(memory, static_cast<std::int64_t>(scratch_.bytes()));
}

// Enqueues what a CUDA graph consists of, and nothing else: copy from pinned memory to the device, engine, copy of the
// maps to pinned memory.
void Engine::enqueue(Slot &slot, const dpt_frames &frames, const Pointers &maps) {
    const Cuda &cuda = Cuda::get();
    cuda.check(cuda.cudaMemcpyAsync(slot.input.data(), slot.staging.data(), count_pixels(frames) * 3,
                                    cudaMemcpyHostToDevice, stream_),
               "cudaMemcpyAsync");
    if (!slot.context->enqueueV3(stream_)) fail_with_log("could not run");
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        if (maps[i] == nullptr) continue;
        cuda.check(cuda.cudaMemcpyAsync(slot.maps[i].host.data(), slot.maps[i].device.data(),
                                        map_bytes(frames, heads_[i].channels), cudaMemcpyDeviceToHost, stream_),
                   "cudaMemcpyAsync");
    }
}

// Replays the slot's CUDA graph or, if there is none, enqueues its work.
void Engine::launch(Slot &slot, const dpt_frames &frames, const Pointers &maps) {
    const Cuda &cuda = Cuda::get();
    if (slot.graph != nullptr) {
        cuda.check(cuda.cudaGraphLaunch(slot.graph, stream_), "cudaGraphLaunch");
        return;
    }
    prepare(slot, frames, slot.input.data(), {});
    enqueue(slot, frames, maps);
}

// Captures the work of a slot that has run with its present shapes and memory. If that fails, CUDA graphs are disabled.
void Engine::capture(Slot &slot, const dpt_frames &frames, const Pointers &maps) {
    const Cuda &cuda = Cuda::get();
    cudaGraph_t graph = nullptr;
    std::string cause;
    cudaError_t status = cuda.cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
    if (status == cudaSuccess) {
        try {
            enqueue(slot, frames, maps);
        } catch (const std::exception &error) {
            cause = error.what();
        }
        status = cuda.cudaStreamEndCapture(stream_, &graph);
    }
    if (cause.empty() && status == cudaSuccess) status = cuda.cudaGraphInstantiate(&slot.graph, graph, 0);
    if (graph != nullptr) static_cast<void>(cuda.cudaGraphDestroy(graph));
    if (cause.empty() && status != cudaSuccess) cause = cuda.cudaGetErrorString(status);
    if (cause.empty()) return;
    slot.graph = nullptr;
    static_cast<void>(cuda.cudaGetLastError()); // otherwise the application would see this error
    static_cast<void>(logger_.take_errors());
    disable_graphs("capture failed: " + cause);
}

// Destroys all slots. Kernels are launched one by one from now on.
void Engine::disable_graphs(const std::string &cause) {
    for (Slot &slot : slots_) destroy_graph(slot);
    slots_.clear();
    use_graphs_ = false;
    cuda_graph_status_ = "No CUDA graphs: " + cause;
    if (cuda_graph_status_.back() != '.') cuda_graph_status_ += '.';
}

void Engine::destroy_graph(Slot &slot) noexcept {
    if (slot.graph != nullptr) static_cast<void>(Cuda::get().cudaGraphExecDestroy(slot.graph));
    slot.graph = nullptr;
}

// Reserves memory in a buffer that no CUDA graph refers to. If it grows, the work that may use it is waited for.
void *Engine::reserve(Buffer &buffer, std::size_t bytes) {
    const Cuda &cuda = Cuda::get();
    if (bytes > buffer.bytes()) cuda.check(cuda.cudaEventSynchronize(done_), "cudaEventSynchronize");
    return buffer.reserve(bytes);
}

void Engine::fail_with_log(const std::string &what) {
    fail(DPT_BACKEND_ERROR, file_, " ", what, ": ", logger_.take_errors(), ".");
}

} // namespace dpt_impl
