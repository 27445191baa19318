// A fake of TensorRT and CUDA without a GPU: all work runs immediately, on the CPU.
//
// It checks rules whose violation leads to wrong maps on a GPU. A graph refers to addresses and a context, and neither
// may change during its lifetime. The first enqueue after a change of shape or memory initialises the context, and must
// not be captured. Only copies and enqueues may be captured.
#include "fake_tensorrt.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include <NvInfer.h>

using namespace nvinfer1;

struct CUgraph_st {
    std::vector<std::function<void()>> steps;
};
struct CUgraphExec_st {
    std::vector<std::function<void()>> steps;
};

namespace {

FakeTensorRt state;
std::map<const char *, std::size_t> memory; // size in bytes, by address
CUgraph_st *capturing = nullptr;
ILogger *logger = nullptr;

std::map<cudaEvent_t, cudaStream_t> recorded; // the stream on which an event was recorded last
std::uintptr_t last_event = 0x100;

std::string number(cudaStream_t stream) { return std::to_string(reinterpret_cast<std::uintptr_t>(stream)); }

void violation(const char *rule) { state.violations += std::string(rule) + "; "; }

void forbid_capture(const char *function) {
    if (capturing != nullptr) violation(function);
}

void expect_memory(const void *address, std::size_t bytes) {
    const char *begin = static_cast<const char *>(address);
    auto found = memory.upper_bound(begin);
    if (found == memory.begin() || begin + bytes > (--found)->first + found->second) {
        violation("access outside of allocated memory");
    }
}

void run_or_capture(std::function<void()> step) {
    if (capturing != nullptr) {
        capturing->steps.push_back(std::move(step));
    } else {
        step();
    }
}

cudaError_t allocate(void **address, std::size_t bytes) {
    forbid_capture("allocation in a capture");
    if (bytes > state.largest) return cudaErrorMemoryAllocation;
    *address = std::malloc(bytes);
    memory[static_cast<char *>(*address)] = bytes;
    ++state.allocations, ++state.allocations_made;
    return cudaSuccess;
}

cudaError_t release(void *address) {
    memory.erase(static_cast<char *>(address));
    std::free(address);
    --state.allocations;
    return cudaSuccess;
}

// The settings of a context. It computes depth as red + 1, normals as (0, 0, 1) and alpha as green / 255.
struct Settings {
    std::vector<std::int64_t> shape;
    std::map<std::string, void *> outputs;
    const void *input = nullptr;
    void *scratch = nullptr;
    std::int64_t scratch_bytes = 0;

    bool operator==(const Settings &other) const {
        return shape == other.shape && outputs == other.outputs && input == other.input && scratch == other.scratch &&
               scratch_bytes == other.scratch_bytes;
    }
    std::size_t pixels() const { return static_cast<std::size_t>(shape[0] * shape[1] * shape[2]); }
    void compute() const {
        const std::size_t count = pixels();
        expect_memory(input, 3 * count);
        expect_memory(scratch, 8 * count);
        std::memset(scratch, 0xee, 8 * count);
        const auto *rgb = static_cast<const unsigned char *>(input);
        for (const auto &[name, address] : outputs) {
            auto *map = static_cast<float *>(address);
            expect_memory(map, (name == "normals" ? 3 : 1) * count * sizeof(float));
            for (std::size_t i = 0; i < count; ++i) {
                if (name == "depth") map[i] = static_cast<float>(rgb[3 * i] + 1);
                if (name == "alpha") map[i] = static_cast<float>(rgb[3 * i + 1]) / 255;
                if (name == "normals") map[3 * i] = map[3 * i + 1] = 0, map[3 * i + 2] = 1;
            }
        }
    }
};

struct Context : IExecutionContext {
    std::shared_ptr<Settings> settings = std::make_shared<Settings>();
    std::vector<std::int64_t> last_shape; // of the last enqueue
    void *last_scratch = nullptr;

    Context() { ++state.contexts, ++state.contexts_made; }
    ~Context() override { --state.contexts; }
    bool setInputShape(const char *, const Dims4 &shape) override {
        forbid_capture("setInputShape in a capture");
        settings->shape.assign(shape.d, shape.d + 4);
        return true;
    }
    bool setInputTensorAddress(const char *, const void *address) override {
        settings->input = address;
        return true;
    }
    bool setTensorAddress(const char *name, void *address) override {
        settings->outputs[name] = address;
        return true;
    }
    std::size_t updateDeviceMemorySizeForShapes() override {
        forbid_capture("updateDeviceMemorySizeForShapes in a capture");
        if (state.fail_scratch) {
            logger->log(ILogger::Severity::kERROR, "no partition");
            return 0;
        }
        return settings->pixels() * 8;
    }
    void setDeviceMemoryV2(void *memory, std::int64_t bytes) override {
        forbid_capture("setDeviceMemoryV2 in a capture");
        settings->scratch = memory;
        settings->scratch_bytes = bytes;
    }
#if defined(FAKE_TENSORRT_RTX)
    bool isStreamCapturable(cudaStream_t) const override {
        if (last_shape.empty()) violation("isStreamCapturable before the first call");
        return state.capturable;
    }
#endif
    bool enqueueV3(cudaStream_t stream) override {
        state.stream_log += "runs on " + number(stream) + "; ";
        ++state.enqueued;
        const bool initialised = last_shape == settings->shape && last_scratch == settings->scratch;
        if (capturing != nullptr && !initialised) violation("first enqueue captured");
        last_shape = settings->shape;
        last_scratch = settings->scratch;
        if (capturing != nullptr && state.fail_capture) {
            logger->log(ILogger::Severity::kERROR, "not while capturing");
            return false;
        }
        run_or_capture([captured = *settings, current = std::weak_ptr<Settings>(settings)] {
            const auto context = current.lock();
            if (!context || !(*context == captured)) violation("replayed graph of a changed context");
            captured.compute();
        });
        return true;
    }
};

struct CacheContent : IHostMemory {
    void *data() const override { return state.cache.data(); }
    std::size_t size() const override { return state.cache.size(); }
};

struct Cache : IRuntimeCache {
    IHostMemory *serialize() const override { return new CacheContent; }
    bool deserialize(const void *data, std::size_t bytes) override {
        state.cache.assign(static_cast<const char *>(data), bytes);
        return true;
    }
};

struct Config : IRuntimeConfig {
    void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy) override {}
    bool setCudaGraphStrategy(CudaGraphStrategy) override {
        if (state.fail_capture) logger->log(ILogger::Severity::kERROR, "graphs are not supported");
        return !state.fail_capture;
    }
    IRuntimeCache *createRuntimeCache() const override { return new Cache; }
    bool setRuntimeCache(const IRuntimeCache &) override { return true; }
};

constexpr const char *kTensors[] = {"frame", "depth", "normals", "alpha"};

struct Plan : ICudaEngine {
    DataType getTensorDataType(const char *name) const override {
        return std::strcmp(name, "frame") == 0 ? DataType::kUINT8 : DataType::kFLOAT;
    }
    std::int32_t getNbIOTensors() const override { return 4; }
    const char *getIOTensorName(std::int32_t index) const override { return kTensors[index]; }
    IExecutionContext *createExecutionContext(ExecutionContextAllocationStrategy) override { return new Context; }
    IExecutionContext *createExecutionContext(IRuntimeConfig *) override { return new Context; }
    IRuntimeConfig *createRuntimeConfig() override { return new Config; }
};

struct Runtime : IRuntime {
    void setEngineHostCodeAllowed(bool) override {}
    ICudaEngine *deserializeCudaEngine(const void *, std::size_t) override {
        // More errors than the logger keeps.
        for (int i = 0; i < 80; ++i) logger->log(ILogger::Severity::kERROR, ("line " + std::to_string(i)).c_str());
        return std::getenv("FAKE_DESERIALIZE_FAILS") != nullptr ? nullptr : new Plan;
    }
};

} // namespace

extern "C" {

FakeTensorRt *fake_tensorrt(void) { return &state; }

void *createInferRuntime_INTERNAL(void *runtime_logger, std::int32_t) {
    logger = static_cast<ILogger *>(runtime_logger);
    return static_cast<IRuntime *>(new Runtime);
}
std::int32_t getInferLibMajorVersion() { return NV_TENSORRT_MAJOR; }
std::int32_t getInferLibMinorVersion() { return 4; }
std::int32_t getInferLibPatchVersion() { return 0; }
std::int32_t getInferLibBuildVersion() { return 23; }

const char *cudaGetErrorString(cudaError_t) { return "an error"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaMalloc(void **address, size_t bytes) { return allocate(address, bytes); }
cudaError_t cudaMallocHost(void **address, size_t bytes) { return allocate(address, bytes); }
cudaError_t cudaFree(void *address) { return release(address); }
cudaError_t cudaFreeHost(void *address) { return release(address); }
cudaError_t cudaMemcpyAsync(void *destination, const void *source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    run_or_capture([=] {
        expect_memory(destination, bytes);
        expect_memory(source, bytes);
        std::memcpy(destination, source, bytes);
    });
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    return *stream = reinterpret_cast<cudaStream_t>(0x7), cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    forbid_capture("cudaStreamSynchronize in a capture");
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const auto found = recorded.find(event);
    if (found != recorded.end()) state.stream_log += number(stream) + " waits for " + number(found->second) + "; ";
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    capturing = new CUgraph_st;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    *graph = capturing;
    capturing = nullptr;
    ++state.captured;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    return *event = reinterpret_cast<cudaEvent_t>(++last_event), cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    recorded.erase(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    recorded[event] = stream;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    forbid_capture("cudaEventSynchronize in a capture");
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{graph->steps};
    ++state.graphs;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    ++state.replayed;
    for (const auto &step : exec->steps) step();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    --state.graphs;
    return cudaSuccess;
}

} // extern "C"
