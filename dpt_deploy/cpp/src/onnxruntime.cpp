#include "onnxruntime.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <vector>

#include <onnxruntime_c_api.h>

#include "cuda_driver.h"
#include "error.h"
#include "frames.h"
#include "library.h"

namespace dpt_impl {
namespace {

// The requested version of the C API, which does not depend on the headers, so that the library may be older than they
// are. Graphs of opset 23 need ONNX Runtime 1.23.
constexpr std::uint32_t kApiVersion = 20;
static_assert(ORT_API_VERSION >= kApiVersion, "needs the headers of ONNX Runtime 1.20 or newer");

constexpr const char *kCuda = "CUDAExecutionProvider";
constexpr const char *kInstall =
    "Install ONNX Runtime 1.23 or newer, and set dpt_options.onnxruntime_library or the environment variable "
    "DPT_ONNXRUNTIME_LIBRARY to its libonnxruntime.so.";

std::string first_line(std::string message) {
    message = message.substr(0, message.find('\n'));
    while (!message.empty() && (message.back() == '.' || message.back() == ' ')) message.pop_back();
    return message;
}

// A loaded libonnxruntime and its environment. Never destroyed, because its threads may live until the process ends.
class Ort {
public:
    explicit Ort(const std::string &path)
        : library_(path.empty() ? std::vector<std::string>{"libonnxruntime.so.1", own_folder() + "/libonnxruntime.so.1"}
                                : std::vector<std::string>{path},
                   "ONNX Runtime is needed to run ONNX graphs", kInstall) {
        const OrtApiBase *base = library_.function<const OrtApiBase *()>("OrtGetApiBase")();
        version_ = base->GetVersionString();
        api_ = base->GetApi(kApiVersion);
        if (api_ == nullptr) {
            fail(DPT_MISSING_LIBRARY, library_.name(), " is ONNX Runtime ", version_, ", which is too old. ", kInstall);
        }
        check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "dpt_runtime", &environment_));
    }

    static Ort &get(const std::string &path) {
        static std::mutex mutex;
        static auto &instances = *new std::map<std::string, Ort *>();
        const std::lock_guard<std::mutex> lock(mutex);
        Ort *&entry = instances[path];
        if (entry == nullptr) entry = new Ort(path);
        return *entry;
    }

    const OrtApi *operator->() const { return api_; }
    const OrtEnv *environment() const { return environment_; }
    const std::string &version() const { return version_; }

    // The error message of `status`, or nullopt if it is a success. Releases `status`.
    std::optional<std::string> take_error(OrtStatus *status) const {
        if (status == nullptr) return std::nullopt;
        std::string error = first_line(api_->GetErrorMessage(status));
        api_->ReleaseStatus(status);
        return error.empty() ? "no error message" : error;
    }

    void check(OrtStatus *status) const {
        const auto error = take_error(status);
        if (error) fail(DPT_BACKEND_ERROR, "ONNX Runtime ", version_, ": ", *error, ".");
    }

private:
    Library library_;
    std::string version_;
    const OrtApi *api_ = nullptr;
    OrtEnv *environment_ = nullptr;
};

// Owns an object of ONNX Runtime and releases it with a function of the API table.
template <typename T>
class Owned {
public:
    using Release = void (*)(T *);
    explicit Owned(Release release) : release_(release) {}
    ~Owned() {
        if (pointer_ != nullptr) release_(pointer_);
    }
    Owned(const Owned &) = delete;
    Owned &operator=(const Owned &) = delete;
    operator T *() const { return pointer_; }
    T **out() { return &pointer_; }

private:
    Release release_;
    T *pointer_ = nullptr;
};

class OnnxRuntimeSession : public Session {
public:
    OnnxRuntimeSession(const Bundle &bundle, const Artifact &artifact, const std::string &library, int threads,
                       std::optional<int> device)
        : ort_(Ort::get(library)), device_(device), host_(ort_->ReleaseMemoryInfo), gpu_(ort_->ReleaseMemoryInfo),
          session_(ort_->ReleaseSession) {
        if (device_) check_provider();
        const std::string path = bundle.path(artifact);
        Owned<OrtSessionOptions> options(ort_->ReleaseSessionOptions);
        ort_.check(ort_->CreateSessionOptions(options.out()));
        ort_.check(ort_->SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL)); // errors are thrown
        if (threads > 0) ort_.check(ort_->SetIntraOpNumThreads(options, threads));
        if (artifact.precision == "fp8") {
            // 1.31.1 replaces FP8 layers by INT8 kernels, or gives wrong maps if only that is turned off.
            ort_.check(ort_->AddSessionConfigEntry(options, "session.disable_quant_qdq", "1"));
            ort_.check(ort_->SetSessionGraphOptimizationLevel(options, ORT_ENABLE_BASIC));
        } else if (artifact.precision == "int8") {
            // FP32 products where only the weights are quantized. By default their activations would be, too.
            ort_.check(ort_->AddSessionConfigEntry(options, "session.qdq_matmulnbits_accuracy_level", "1"));
        }
        ort_.check(ort_->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, host_.out()));
        if (device_) {
            append_cuda(options);
            ort_.check(ort_->CreateMemoryInfo("Cuda", OrtDeviceAllocator, *device_, OrtMemTypeDefault, gpu_.out()));
        }
        if (const auto error =
                ort_.take_error(ort_->CreateSession(ort_.environment(), path.c_str(), options, session_.out()))) {
            if (error->find("is till opset ") != std::string::npos) {
                fail(DPT_BACKEND_ERROR, name(), " could not load ", path, ": this ONNX Runtime is older than the graph's "
                     "opset. ", kInstall, " Or export again with --opset 20.");
            }
            fail(DPT_BACKEND_ERROR, name(), " could not load ", path, ": ", *error,
                 ". Choose another precision or backend.");
        }
        check_names(bundle.contract(), path);
    }

    void run(const dpt_frames &frames, const dpt_maps &maps) override {
        const PackedFrames packed(frames);
        run_on(host_, packed.data(), frames, maps);
    }

    void run_device(const dpt_frames &frames, const dpt_maps &maps, void *stream) override {
        if (!device_) {
            fail(DPT_CONTRACT_ERROR, "dpt_infer_device: ", name(),
                 " does not run on a GPU. Call dpt_infer with host memory, or load another backend.");
        }
        synchronize(stream, *device_); // because ONNX Runtime computes on its own stream
        run_on(gpu_, frames.data, frames, maps);
    }

private:
    const char *name() const { return device_ ? "onnxruntime-cuda" : "onnxruntime-cpu"; }

    void run_on(const OrtMemoryInfo *memory, const std::uint8_t *pixels, const dpt_frames &frames,
                const dpt_maps &maps) {
        const std::array<std::int64_t, 4> shape = {frames.batch, frames.height, frames.width, 3};
        const std::size_t pixel_count = count_pixels(frames);
        Owned<OrtValue> input(ort_->ReleaseValue), depth(ort_->ReleaseValue), normals(ort_->ReleaseValue),
            alpha(ort_->ReleaseValue);
        // The API takes a mutable pointer, but ONNX Runtime does not write to inputs.
        ort_.check(ort_->CreateTensorWithDataAsOrtValue(memory, const_cast<std::uint8_t *>(pixels), pixel_count * 3,
                                                        shape.data(), 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                                        input.out()));
        std::vector<const char *> output_names;
        std::vector<OrtValue *> outputs;
        const auto add_output = [&](const char *head, float *buffer, std::size_t channels,
                              Owned<OrtValue> &value) {
            if (buffer == nullptr) return;
            ort_.check(ort_->CreateTensorWithDataAsOrtValue(memory, buffer, pixel_count * channels * sizeof(float),
                                                            shape.data(), channels == 1 ? 3 : 4,
                                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, value.out()));
            output_names.push_back(head);
            outputs.push_back(value);
        };
        add_output("depth", maps.depth, 1, depth);
        add_output("normals", maps.normals, 3, normals);
        add_output("alpha", maps.alpha, 1, alpha);
        const char *const input_name = "frame";
        const OrtValue *const inputs[] = {input};
        if (const auto error = ort_.take_error(ort_->Run(session_, nullptr, &input_name, inputs, 1, output_names.data(),
                                                   output_names.size(), outputs.data()))) {
            fail(DPT_BACKEND_ERROR, name(), " could not run frame [", join(shape), "]: ", *error, ".");
        }
    }

    void check_provider() const {
        char **providers = nullptr;
        int count = 0;
        ort_.check(ort_->GetAvailableProviders(&providers, &count));
        const bool available = std::any_of(providers, providers + count,
                                       [](const char *provider) { return std::string(provider) == kCuda; });
        ort_.check(ort_->ReleaseAvailableProviders(providers, count));
        if (!available) {
            fail(DPT_BACKEND_ERROR, "onnxruntime-cuda: ONNX Runtime ", ort_.version(),
                 " was built without CUDA. Set dpt_options.onnxruntime_library or the environment variable "
                 "DPT_ONNXRUNTIME_LIBRARY to a build with CUDA.");
        }
    }

    void append_cuda(OrtSessionOptions *options) const {
        Owned<OrtCUDAProviderOptionsV2> cuda(ort_->ReleaseCUDAProviderOptions);
        ort_.check(ort_->CreateCUDAProviderOptions(cuda.out()));
        const std::string number = concat(*device_);
        const char *const keys[] = {"device_id", "use_tf32"};
        const char *const values[] = {number.c_str(), "0"}; // TF32, the default, is less precise than FP32
        ort_.check(ort_->UpdateCUDAProviderOptions(cuda, keys, values, 2));
        if (const auto error = ort_.take_error(ort_->SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda))) {
            fail(DPT_BACKEND_ERROR, "onnxruntime-cuda: ONNX Runtime ", ort_.version(), " could not start ", kCuda, ": ",
                 *error,
                 ". Check that nvidia-smi lists a GPU, and that the CUDA and cuDNN versions are those it requires.");
        }
    }

    void check_names(const Contract &contract, const std::string &path) const {
        std::vector<std::string> expected = {"frame"}, found;
        expected.insert(expected.end(), contract.heads.begin(), contract.heads.end());
        std::size_t inputs = 0, outputs = 0;
        ort_.check(ort_->SessionGetInputCount(session_, &inputs));
        ort_.check(ort_->SessionGetOutputCount(session_, &outputs));
        OrtAllocator *allocator = nullptr;
        ort_.check(ort_->GetAllocatorWithDefaultOptions(&allocator));
        for (std::size_t i = 0; i < inputs + outputs; ++i) {
            char *tensor = nullptr;
            ort_.check(i < inputs ? ort_->SessionGetInputName(session_, i, allocator, &tensor)
                                  : ort_->SessionGetOutputName(session_, i - inputs, allocator, &tensor));
            found.emplace_back(tensor);
            ort_.check(ort_->AllocatorFree(allocator, tensor));
        }
        if (found != expected) {
            fail(DPT_CONTRACT_ERROR, path, ": expected inputs and outputs ", join(expected), ", found ",
                 join(found), ". Export the checkpoint again.");
        }
    }

    const Ort &ort_;
    std::optional<int> device_;
    Owned<OrtMemoryInfo> host_, gpu_;
    Owned<OrtSession> session_;
};

} // namespace

std::unique_ptr<Session> open_onnxruntime(const Bundle &bundle, const Artifact &artifact, const std::string &library,
                                          int threads, std::optional<int> device) {
    return std::make_unique<OnnxRuntimeSession>(bundle, artifact, library, threads, device);
}

} // namespace dpt_impl
