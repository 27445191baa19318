#include "engine.h"

#include <cstring>

namespace dpt_impl {
namespace {

std::size_t pixels_of(const dpt_frames &frames) {
    return static_cast<std::size_t>(frames.batch) * static_cast<std::size_t>(frames.height) *
           static_cast<std::size_t>(frames.width);
}

// Which maps are wanted, as DPT_HAS_* bits.
std::int64_t bits_of(const std::array<float *, 3> &wanted) {
    return (wanted[0] != nullptr ? 1 : 0) | (wanted[1] != nullptr ? 2 : 0) | (wanted[2] != nullptr ? 4 : 0);
}

} // namespace

Engine::Engine(const dpt_engine_order &order)
    : file_(order.file), device_(order.device), graphs_(order.no_cuda_graph == 0),
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
    } catch (...) {
        release();
        throw;
    }
}

Engine::~Engine() {
    try {
        const OnDevice current(device_);
        release();
    } catch (...) { // the device is gone, and its memory with it
    }
}

void Engine::release() noexcept {
    const Cuda &cuda = Cuda::get();
    if (done_ != nullptr) static_cast<void>(cuda.cudaEventSynchronize(done_));
    forget_recorded();
    context_.reset(); // in this order: each lives in the next
    engine_.reset();
    runtime_.reset();
    for (Head &head : heads_) head.device.free(), head.host.free();
    input_.free(), staging_.free(), scratch_.free();
    if (done_ != nullptr) static_cast<void>(cuda.cudaEventDestroy(done_));
    if (stream_ != nullptr) static_cast<void>(cuda.cudaStreamDestroy(stream_));
    done_ = nullptr;
    stream_ = nullptr;
}

void Engine::create_context([[maybe_unused]] bool whole_graph) {
    // The scratch memory is ours: TensorRT itself would take as much as the profile's largest shape needs.
    constexpr auto ours = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
#if defined(TRT_MAJOR_RTX)
    // TensorRT-RTX swaps in specialised kernels while it runs, so it captures CUDA graphs itself.
    const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (!config) fail_with_words("gives no runtime configuration");
    config->setExecutionContextAllocationStrategy(ours);
    if (whole_graph && !config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)) {
        static_cast<void>(logger_.said()); // it runs without graphs
    }
    graphs_ = false;
    context_.reset(engine_->createExecutionContext(config.get()));
#else
    context_.reset(engine_->createExecutionContext(ours));
#endif
    if (!context_) fail_with_words("gives no execution context");
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
    const std::size_t pixels = pixels_of(frames);
    const Pointers wanted = {maps.depth, maps.normals, maps.alpha};
    std::memcpy(reserve(staging_, pixels * 3), frames.data, pixels * 3);
    if (!replay(frames, wanted)) enqueue_all(frames, wanted, stream_);
    cuda.check(cuda.cudaEventRecord(done_, stream_), "cudaEventRecord");
    cuda.check(cuda.cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        const Head &head = heads_[i];
        if (wanted[i] == nullptr) continue;
        std::memcpy(wanted[i], head.host.data(), pixels * static_cast<std::size_t>(head.channels) * sizeof(float));
    }
}

void Engine::run_device(const dpt_frames &frames, const dpt_maps &maps, cudaStream_t stream) {
    const Cuda &cuda = Cuda::get();
    const OnDevice current(device_);
    cuda.check(cuda.cudaStreamWaitEvent(stream, done_, 0), "cudaStreamWaitEvent");
    prepare(frames, frames.data, {maps.depth, maps.normals, maps.alpha});
    if (!context_->enqueueV3(stream)) fail_with_words("could not run");
    cuda.check(cuda.cudaEventRecord(done_, stream), "cudaEventRecord");
}

// Sets shapes, addresses and scratch memory. A map without an address of the caller's goes to a buffer of ours.
void Engine::prepare(const dpt_frames &frames, const void *input, const Pointers &outputs) {
    const std::size_t pixels = pixels_of(frames);
    const nvinfer1::Dims4 shape(frames.batch, frames.height, frames.width, 3);
    if (!context_->setInputShape("frame", shape)) {
        fail_with_words(text("refuses frames of shape [", frames.batch, ", ", frames.height, ", ", frames.width,
                             ", 3]"));
    }
    if (!context_->setInputTensorAddress("frame", input)) fail_with_words("refuses memory for frame");
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        Head &head = heads_[i];
        if (!head.there) continue;
        void *address = outputs[i];
        if (address == nullptr) {
            address = reserve(head.device, pixels * static_cast<std::size_t>(head.channels) * sizeof(float));
        }
        if (!context_->setTensorAddress(head.name, address)) fail_with_words(text("refuses memory for ", head.name));
    }
    const std::size_t scratch = context_->updateDeviceMemorySizeForShapes();
    void *memory = reserve(scratch_, scratch);
    context_->setDeviceMemoryV2(memory, static_cast<std::int64_t>(scratch_.bytes()));
}

// Host to device, the engine, device to host, on `stream`, from and to the pinned buffers.
void Engine::enqueue_all(const dpt_frames &frames, const Pointers &wanted, cudaStream_t stream) {
    const Cuda &cuda = Cuda::get();
    const std::size_t pixels = pixels_of(frames);
    void *input = reserve(input_, pixels * 3);
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        const std::size_t bytes = pixels * static_cast<std::size_t>(heads_[i].channels) * sizeof(float);
        if (wanted[i] != nullptr) reserve(heads_[i].host, bytes);
    }
    prepare(frames, input, {});
    cuda.check(cuda.cudaMemcpyAsync(input, staging_.data(), pixels * 3, cudaMemcpyHostToDevice, stream),
               "cudaMemcpyAsync");
    if (!context_->enqueueV3(stream)) fail_with_words("could not run");
    for (std::size_t i = 0; i < heads_.size(); ++i) {
        if (wanted[i] == nullptr) continue;
        const std::size_t bytes = pixels * static_cast<std::size_t>(heads_[i].channels) * sizeof(float);
        cuda.check(cuda.cudaMemcpyAsync(heads_[i].host.data(), heads_[i].device.data(), bytes, cudaMemcpyDeviceToHost,
                                        stream),
                   "cudaMemcpyAsync");
    }
}

// Launches the CUDA graph of this shape and choice of maps. The first call of a shape runs without one, because
// TensorRT sets itself up then; the second is captured. False: nothing was launched.
bool Engine::replay(const dpt_frames &frames, const Pointers &wanted) {
    if (!graphs_) return false;
    const Cuda &cuda = Cuda::get();
    const std::array<std::int64_t, 4> key = {frames.batch, frames.height, frames.width, bits_of(wanted)};
    if (recorded_.key != key) {
        forget_recorded();
        recorded_.key = key;
        return false;
    }
    if (recorded_.refused) return false;
    if (recorded_.graph == nullptr) {
        cudaGraph_t graph = nullptr;
        bool captured = cuda.cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
        if (captured) {
            try {
                enqueue_all(frames, wanted, stream_);
            } catch (const Error &) {
                captured = false;
            }
            captured = cuda.cudaStreamEndCapture(stream_, &graph) == cudaSuccess && captured && graph != nullptr &&
                       cuda.cudaGraphInstantiate(&recorded_.graph, graph, 0) == cudaSuccess;
        }
        if (graph != nullptr) static_cast<void>(cuda.cudaGraphDestroy(graph));
        if (!captured) {
            recorded_.graph = nullptr;
            recorded_.refused = true;
            static_cast<void>(logger_.said());
            return false;
        }
    }
    cuda.check(cuda.cudaGraphLaunch(recorded_.graph, stream_), "cudaGraphLaunch");
    return true;
}

void Engine::forget_recorded() noexcept {
    if (recorded_.graph != nullptr) static_cast<void>(Cuda::get().cudaGraphExecDestroy(recorded_.graph));
    recorded_ = {};
}

// Grows a buffer after the work that uses it, and after any graph that knows its address is gone.
void *Engine::reserve(Buffer &buffer, std::size_t bytes) {
    if (bytes > buffer.bytes()) {
        const Cuda &cuda = Cuda::get();
        cuda.check(cuda.cudaEventSynchronize(done_), "cudaEventSynchronize");
        const auto key = recorded_.key;
        forget_recorded();
        recorded_.key = key;
    }
    return buffer.reserve(bytes);
}

void Engine::fail_with_words(const std::string &what) {
    fail(DPT_BACKEND_ERROR, file_, " ", what, ": ", logger_.said(), ".");
}

} // namespace dpt_impl
