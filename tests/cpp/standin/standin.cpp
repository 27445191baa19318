// TensorRT and CUDA without a GPU: everything runs at once, on the CPU. The rules that a GPU punishes with wrong maps
// are checked: a graph holds addresses and a context, so neither may change while it lives; the first enqueue after a
// change of shape or memory sets the context up, and cannot be captured; nor can anything but copies and an enqueue.
#include "standin.h"

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
    std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
    std::vector<std::function<void()>> work;
};

namespace {

Standin told;
std::map<const char *, std::size_t> memory; // begin, bytes
CUgraph_st *capturing = nullptr;
ILogger *logger = nullptr;

std::map<cudaEvent_t, cudaStream_t> recorded;
std::uintptr_t events = 0x100;

std::string number(cudaStream_t stream) { return std::to_string(reinterpret_cast<std::uintptr_t>(stream)); }

void broken(const char *rule) { told.broken += std::string(rule) + "; "; }

void not_captured(const char *function) {
    if (capturing != nullptr) broken(function);
}

void expect_memory(const void *address, std::size_t bytes) {
    const char *begin = static_cast<const char *>(address);
    auto found = memory.upper_bound(begin);
    if (found == memory.begin() || begin + bytes > (--found)->first + found->second) broken("memory that is not there");
}

void work(std::function<void()> step) {
    if (capturing != nullptr) {
        capturing->work.push_back(std::move(step));
    } else {
        step();
    }
}

cudaError_t allocate(void **address, std::size_t bytes) {
    not_captured("allocation in a capture");
    *address = std::malloc(bytes);
    memory[static_cast<char *>(*address)] = bytes;
    ++told.memory;
    return cudaSuccess;
}

cudaError_t give_back(void *address) {
    memory.erase(static_cast<char *>(address));
    std::free(address);
    --told.memory;
    return cudaSuccess;
}

// Everything a context was told. Depth is the red channel plus one, normals point at the viewer, alpha is green / 255.
struct State {
    std::vector<std::int64_t> shape;
    std::map<std::string, void *> outputs;
    const void *input = nullptr;
    void *scratch = nullptr;
    std::int64_t scratch_bytes = 0;

    bool operator==(const State &other) const {
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
    std::shared_ptr<State> now = std::make_shared<State>(); // dies with the context
    std::vector<std::int64_t> ran;
    void *ran_with = nullptr;

    Context() { ++told.contexts; }
    ~Context() override { --told.contexts; }
    bool setInputShape(const char *, const Dims4 &shape) override {
        not_captured("setInputShape in a capture");
        now->shape.assign(shape.d, shape.d + 4);
        return true;
    }
    bool setInputTensorAddress(const char *, const void *address) override {
        now->input = address;
        return true;
    }
    bool setTensorAddress(const char *name, void *address) override {
        now->outputs[name] = address;
        return true;
    }
    std::size_t updateDeviceMemorySizeForShapes() override {
        not_captured("updateDeviceMemorySizeForShapes in a capture");
        return now->pixels() * 8;
    }
    void setDeviceMemoryV2(void *memory, std::int64_t bytes) override {
        not_captured("setDeviceMemoryV2 in a capture");
        now->scratch = memory;
        now->scratch_bytes = bytes;
    }
    bool enqueueV3(cudaStream_t stream) override {
        told.order += "runs on " + number(stream) + "; ";
        ++told.enqueued;
        if (capturing != nullptr && (ran != now->shape || ran_with != now->scratch)) broken("a first enqueue captured");
        ran = now->shape;
        ran_with = now->scratch;
        if (capturing != nullptr && told.refuse_capture) {
            logger->log(ILogger::Severity::kERROR, "not while capturing");
            return false;
        }
        work([then = *now, context = std::weak_ptr<State>(now)] {
            const auto alive = context.lock();
            if (!alive || !(*alive == then)) broken("a graph replayed whose context changed");
            then.compute();
        });
        return true;
    }
};

struct Kept : IHostMemory {
    void *data() const override { return told.compiled.data(); }
    std::size_t size() const override { return told.compiled.size(); }
};

struct Cache : IRuntimeCache {
    IHostMemory *serialize() const override { return new Kept; }
    bool deserialize(const void *data, std::size_t bytes) override {
        told.compiled.assign(static_cast<const char *>(data), bytes);
        return true;
    }
};

struct Config : IRuntimeConfig {
    void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy) override {}
    bool setCudaGraphStrategy(CudaGraphStrategy) override {
        if (told.refuse_capture) logger->log(ILogger::Severity::kERROR, "no graphs here");
        return !told.refuse_capture;
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
        // More than a message has room for: the last ones tell.
        for (int i = 0; i < 80; ++i) logger->log(ILogger::Severity::kERROR, ("line " + std::to_string(i)).c_str());
        return std::getenv("STANDIN_REFUSES") != nullptr ? nullptr : new Plan;
    }
};

} // namespace

extern "C" {

Standin *standin(void) { return &told; }

void *createInferRuntime_INTERNAL(void *given, std::int32_t) {
    logger = static_cast<ILogger *>(given);
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
cudaError_t cudaFree(void *address) { return give_back(address); }
cudaError_t cudaFreeHost(void *address) { return give_back(address); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    work([=] {
        expect_memory(to, bytes);
        expect_memory(from, bytes);
        std::memcpy(to, from, bytes);
    });
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    return *stream = reinterpret_cast<cudaStream_t>(0x7), cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    not_captured("cudaStreamSynchronize in a capture");
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const auto found = recorded.find(event);
    if (found != recorded.end()) told.order += number(stream) + " waits for " + number(found->second) + "; ";
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    capturing = new CUgraph_st;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    *graph = capturing;
    capturing = nullptr;
    ++told.captured;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    return *event = reinterpret_cast<cudaEvent_t>(++events), cudaSuccess;
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
    not_captured("cudaEventSynchronize in a capture");
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{graph->work};
    ++told.graphs;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    ++told.replayed;
    for (const auto &step : exec->work) step();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    --told.graphs;
    return cudaSuccess;
}

} // extern "C"
