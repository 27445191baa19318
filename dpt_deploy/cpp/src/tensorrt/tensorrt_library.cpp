#include "tensorrt_library.h"

#include <algorithm>
#include <vector>

#include "../error.h"

namespace dpt_impl {
namespace {

#if defined(TRT_MAJOR_RTX)
constexpr const char *kName = "TensorRT-RTX", *kFile = "libtensorrt_rtx.so.", *kVariable = "DPT_TENSORRT_RTX_LIBRARY";
#else
constexpr const char *kName = "TensorRT", *kFile = "libnvinfer.so.", *kVariable = "DPT_TENSORRT_LIBRARY";
#endif

constexpr std::size_t kMaxErrors = 50;

std::vector<std::string> names() {
    const std::string named = option_or_environment(nullptr, kVariable);
    if (!named.empty()) return {named};
    return {concat(kFile, NV_TENSORRT_MAJOR)};
}

} // namespace

void Logger::log(Severity severity, nvinfer1::AsciiChar const *message) noexcept {
    if (severity > Severity::kERROR) return;
    try {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string error = message;
        std::replace(error.begin(), error.end(), '\n', ' ');
        const bool repeated = std::find(errors_.begin(), errors_.end(), error) != errors_.end();
        if (repeated) return;
        errors_.push_back(std::move(error));
        if (errors_.size() > kMaxErrors) errors_.pop_front();
    } catch (...) { // out of memory for the message; the status is enough
    }
}

std::string Logger::take_errors() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string joined;
    for (const std::string &error : errors_) joined += (joined.empty() ? "" : "; ") + error;
    errors_.clear();
    return joined.empty() ? "no error message" : joined;
}

TensorRtLibrary::TensorRtLibrary()
    : library_(names(), concat(kName, " is needed to run its engines"),
               concat("Install ", kName, " ", NV_TENSORRT_MAJOR, ", or set the environment variable ", kVariable,
                      " to its library.")) {
    const int major = library_.function<std::int32_t()>("getInferLibMajorVersion")();
    if (major != NV_TENSORRT_MAJOR) {
        fail(DPT_MISSING_LIBRARY, library_.name(), " is version ", version(),
             ", but this module was built for version ", NV_TENSORRT_MAJOR, ". Install ", kName, " ", NV_TENSORRT_MAJOR,
             ", or build the module again.");
    }
}

const TensorRtLibrary &TensorRtLibrary::get() {
    static const TensorRtLibrary instance;
    return instance;
}

std::string TensorRtLibrary::version() const {
    const auto number = [this](const char *symbol) { return library_.function<std::int32_t()>(symbol)(); };
    return concat(number("getInferLibMajorVersion"), ".", number("getInferLibMinorVersion"), ".",
                  number("getInferLibPatchVersion"), ".", number("getInferLibBuildVersion"));
}

nvinfer1::IRuntime *TensorRtLibrary::create_runtime(Logger &logger) const {
    // Does what createInferRuntime() of NvInferRuntime.h does, without linking to the library.
    auto *create = library_.function<void *(void *, std::int32_t)>("createInferRuntime_INTERNAL");
    return static_cast<nvinfer1::IRuntime *>(create(static_cast<nvinfer1::ILogger *>(&logger), NV_TENSORRT_VERSION));
}

} // namespace dpt_impl
