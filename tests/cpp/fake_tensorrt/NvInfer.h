// The part of NVIDIA's NvInfer.h that the backend module uses, as interfaces that fake_tensorrt.cpp implements. With
// FAKE_TENSORRT_RTX, the part of TensorRT-RTX's header.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#define NV_TENSORRT_MAJOR 11
#define NV_TENSORRT_VERSION 110400
#if defined(FAKE_TENSORRT_RTX)
#define TRT_MAJOR_RTX 1
#endif

namespace nvinfer1 {

using AsciiChar = char;

class ILogger {
public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual void log(Severity severity, AsciiChar const *message) noexcept = 0;
    virtual ~ILogger() = default;
};

enum class DataType : std::int32_t { kFLOAT, kUINT8 };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC, kON_PROFILE_CHANGE, kUSER_MANAGED };
enum class CudaGraphStrategy : std::int32_t { kDISABLED, kWHOLE_GRAPH_CAPTURE };

struct Dims4 {
    Dims4(std::int64_t n, std::int64_t h, std::int64_t w, std::int64_t c) : d{n, h, w, c} {}
    std::int64_t d[4];
};

struct IHostMemory {
    virtual ~IHostMemory() = default;
    virtual void *data() const = 0;
    virtual std::size_t size() const = 0;
};

struct IExecutionContext {
    virtual ~IExecutionContext() = default;
    virtual bool setInputShape(const char *name, const Dims4 &shape) = 0;
    virtual bool setInputTensorAddress(const char *name, const void *address) = 0;
    virtual bool setTensorAddress(const char *name, void *address) = 0;
    virtual std::size_t updateDeviceMemorySizeForShapes() = 0;
    virtual void setDeviceMemoryV2(void *memory, std::int64_t bytes) = 0;
    virtual bool enqueueV3(cudaStream_t stream) = 0;
#if defined(FAKE_TENSORRT_RTX)
    virtual bool isStreamCapturable(cudaStream_t stream) const = 0;
#endif
};

struct IRuntimeCache {
    virtual ~IRuntimeCache() = default;
    virtual IHostMemory *serialize() const = 0;
    virtual bool deserialize(const void *data, std::size_t bytes) = 0;
};

struct IRuntimeConfig {
    virtual ~IRuntimeConfig() = default;
    virtual void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy strategy) = 0;
    virtual bool setCudaGraphStrategy(CudaGraphStrategy strategy) = 0;
    virtual IRuntimeCache *createRuntimeCache() const = 0;
    virtual bool setRuntimeCache(const IRuntimeCache &cache) = 0;
};

struct ICudaEngine {
    virtual ~ICudaEngine() = default;
    virtual DataType getTensorDataType(const char *name) const = 0;
    virtual std::int32_t getNbIOTensors() const = 0;
    virtual const char *getIOTensorName(std::int32_t index) const = 0;
    virtual IExecutionContext *createExecutionContext(ExecutionContextAllocationStrategy strategy) = 0;
    virtual IExecutionContext *createExecutionContext(IRuntimeConfig *config) = 0;
    virtual IRuntimeConfig *createRuntimeConfig() = 0;
};

struct IRuntime {
    virtual ~IRuntime() = default;
    virtual void setEngineHostCodeAllowed(bool allowed) = 0;
    virtual ICudaEngine *deserializeCudaEngine(const void *plan, std::size_t bytes) = 0;
};

} // namespace nvinfer1
