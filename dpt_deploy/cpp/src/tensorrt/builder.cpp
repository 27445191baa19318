// The builder's library: TensorRT or TensorRT-RTX, as the headers say that this file is compiled with.
#include <algorithm>

#include "engine.h"

namespace dpt_impl {
namespace {

#if defined(TRT_MAJOR_RTX)
constexpr const char *kName = "TensorRT-RTX", *kFile = "libtensorrt_rtx.so.", *kVariable = "DPT_TENSORRT_RTX_LIBRARY";
#else
constexpr const char *kName = "TensorRT", *kFile = "libnvinfer.so.", *kVariable = "DPT_TENSORRT_LIBRARY";
#endif

constexpr std::size_t kWordsKept = 50;

std::vector<std::string> names() {
    const std::string named = option_or_environment(nullptr, kVariable);
    if (!named.empty()) return {named};
    return {text(kFile, NV_TENSORRT_MAJOR)};
}

} // namespace

void Logger::log(Severity severity, nvinfer1::AsciiChar const *message) noexcept {
    if (severity > Severity::kERROR) return;
    try {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string words = message;
        std::replace(words.begin(), words.end(), '\n', ' ');
        const bool known = std::find(words_.begin(), words_.end(), words) != words_.end();
        if (known) return;
        words_.push_back(std::move(words));
        if (words_.size() > kWordsKept) words_.pop_front();
    } catch (...) { // no memory for words: the status tells
    }
}

std::string Logger::said() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string said;
    for (const std::string &words : words_) said += (said.empty() ? "" : "; ") + words;
    words_.clear();
    return said.empty() ? "without giving a reason" : said;
}

Builder::Builder()
    : library_(names(), text(kName, " is needed to run its engines"),
               text("Install ", kName, " ", NV_TENSORRT_MAJOR, ", or name its library in the environment variable ",
                    kVariable, ".")) {
    const int major = library_.function<std::int32_t()>("getInferLibMajorVersion")();
    if (major != NV_TENSORRT_MAJOR) {
        fail(DPT_MISSING_LIBRARY, library_.name(), " is version ", version(), ", and this module was built for ",
             NV_TENSORRT_MAJOR, ". Install ", kName, " ", NV_TENSORRT_MAJOR, ", or build the module again.");
    }
}

const Builder &Builder::get() {
    static const Builder loaded;
    return loaded;
}

std::string Builder::version() const {
    const auto number = [this](const char *symbol) { return library_.function<std::int32_t()>(symbol)(); };
    return text(number("getInferLibMajorVersion"), ".", number("getInferLibMinorVersion"), ".",
                number("getInferLibPatchVersion"), ".", number("getInferLibBuildVersion"));
}

nvinfer1::IRuntime *Builder::create_runtime(Logger &logger) const {
    // What createInferRuntime() of NvInferRuntime.h does, without linking to the library.
    auto *create = library_.function<void *(void *, std::int32_t)>("createInferRuntime_INTERNAL");
    return static_cast<nvinfer1::IRuntime *>(create(static_cast<nvinfer1::ILogger *>(&logger), NV_TENSORRT_VERSION));
}

} // namespace dpt_impl
