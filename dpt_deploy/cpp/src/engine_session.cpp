#include "engine.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <sstream>

#include "backend.h"
#include "error.h"
#include "frames.h"
#include "library.h"
#include "machine.h"

namespace dpt_impl {
namespace {

struct Words {
    char text[DPT_BACKEND_WORDS] = "";
};

std::string module_file(const std::string &backend) {
    return backend == "tensorrt" ? "libdpt_backend_tensorrt.so" : "libdpt_backend_tensorrt_rtx.so";
}

// Whether a dotted version is the other or a later one.
bool not_older(const std::string &version, const std::string &than) {
    const auto numbers = [](const std::string &dotted) {
        std::vector<long> parts;
        std::istringstream stream(dotted);
        for (std::string part; std::getline(stream, part, '.');) parts.push_back(std::strtol(part.c_str(), nullptr, 10));
        return parts;
    };
    return !than.empty() && numbers(version) >= numbers(than);
}

class EngineSession : public Session {
public:
    EngineSession(const Bundle &bundle, const Artifact &artifact, const std::string &backend,
                  const std::string &folder, int device, bool no_cuda_graph)
        : backend_(backend), file_(artifact.file), rebuild_(bundle.rebuild_command()), details_(artifact.engine),
          library_({folder + "/" + module_file(backend)}, text(module_file(backend), " is needed to run ", file_),
                   "Build libdpt_runtime on a machine with NVIDIA's SDK for it, and keep the module beside the "
                   "library or name its folder in dpt_options.backend_folder.") {
        api_ = library_.function<const dpt_backend_api *()>("dpt_backend_table")();
        if (api_->abi != DPT_BACKEND_ABI) {
            fail(DPT_MISSING_LIBRARY, library_.name(), " is of another build: expected interface ", DPT_BACKEND_ABI,
                 ", received ", api_->abi, ". Install both from one build.");
        }
        Words words;
        char version[64] = "";
        check(api_->version(version, words.text), words);
        check_fit(bundle, artifact, version, device);
        const std::vector<char> plan = bundle.read(artifact);
        const std::string cache = bundle.folder() + "/" + file_ + ".cache";
        const dpt_engine_order order = {plan.data(), plan.size(), file_.c_str(), cache.c_str(),
                                        bundle.contract().head_bits(), device, no_cuda_graph ? 1 : 0,
                                        details_.version_compatible ? 1 : 0};
        const std::int32_t status = api_->open(&order, &session_, words.text);
        if (status == DPT_CONTRACT_ERROR) fail(DPT_CONTRACT_ERROR, words.text, " Build it again: ", rebuild_);
        if (status != DPT_OK) refuse(device, words.text);
    }

    ~EngineSession() override {
        if (session_ != nullptr) api_->close(session_);
    }
    EngineSession(const EngineSession &) = delete;
    EngineSession &operator=(const EngineSession &) = delete;

    void run(const dpt_frames &frames, const dpt_maps &maps) override {
        check_profile(frames);
        Words words;
        const std::lock_guard<std::mutex> lock(mutex_);
        check(api_->run(session_, &frames, &maps, words.text), words);
    }

    void run_device(const dpt_frames &frames, const dpt_maps &maps, void *stream) override {
        check_profile(frames);
        Words words;
        const std::lock_guard<std::mutex> lock(mutex_);
        check(api_->run_device(session_, &frames, &maps, stream, words.text), words);
    }

    std::string note() const override {
        Words words;
        const std::lock_guard<std::mutex> lock(mutex_);
        api_->note(session_, words.text);
        return words.text;
    }

    std::optional<std::int32_t> largest_batch(std::int32_t height, std::int32_t width) const override {
        std::optional<std::int64_t> smallest;
        const auto at_most = [&smallest](std::int64_t batch) {
            smallest = std::max<std::int64_t>(1, smallest ? std::min(*smallest, batch) : batch);
        };
        for (const auto &[input, range] : details_.profile) {
            if (!range.max.empty()) at_most(range.max[0]);
        }
        if (details_.max_pixels.value_or(0) > 0) at_most(*details_.max_pixels / (std::int64_t{height} * width));
        if (!smallest) return std::nullopt;
        return static_cast<std::int32_t>(std::min<std::int64_t>(*smallest, std::numeric_limits<std::int32_t>::max()));
    }

private:
    void check(std::int32_t status, const Words &words) const {
        if (status != DPT_OK) fail(static_cast<dpt_status>(status), backend_, ": ", words.text);
    }

    // Throws Error(DPT_BACKEND_ERROR) unless the engine is of this graph, this builder's version and this GPU.
    void check_fit(const Bundle &bundle, const Artifact &artifact, const std::string &version, int device) const {
        if (details_.stripped) {
            refuse(device, text("holds no weights; put them back with: ", rebuild_, " --refit ", bundle.folder()));
        }
        if (details_.builder_version != version &&
            !(details_.version_compatible && not_older(version, details_.builder_version))) {
            refuse(device, text("was built by ", backend_, " ", details_.builder_version, ", and ", version,
                                " is installed here; engines run only on the version that built them"));
        }
        const auto here = compute_capability(device);
        if (details_.compute_capability && here && *details_.compute_capability != *here &&
            !(details_.hardware_compatible && not_older(*here, "8.0"))) {
            refuse(device, text("was built for a GPU of compute capability ", *details_.compute_capability,
                                ", and this one has ", *here));
        }
        const Artifact *graph = nullptr;
        bool current = false;
        for (const Artifact &other : bundle.artifacts()) {
            if (other.kind != "onnx" || other.graph != artifact.graph || other.precision != artifact.precision) continue;
            if (graph == nullptr) graph = &other;
            current = current || details_.made_from == other.sha256;
        }
        if (details_.made_from && !details_.made_from->empty() && graph != nullptr && !current) {
            refuse(device, text("was built from another graph than ", graph->file, ", which was exported since"));
        }
    }

    [[noreturn]] void refuse(int device, std::string why) const {
        while (!why.empty() && why.back() == '.') why.pop_back();
        const std::string elsewhere =
            compute_capability(device)
                ? ""
                : "No GPU is visible here: run it where one is, or use backend onnxruntime-cpu. ";
        fail(DPT_BACKEND_ERROR, backend_, ": ", file_, " ", why, ". ", elsewhere, "Build it again: ", rebuild_);
    }

    // Throws Error(DPT_CONTRACT_ERROR), naming the range and what was received, for shapes outside the profile.
    void check_profile(const dpt_frames &frames) const {
        const auto found = details_.profile.find("frame");
        if (found == details_.profile.end()) return;
        const std::vector<std::int64_t> shape = {frames.batch, frames.height, frames.width, 3};
        const auto &[low, high] = found->second;
        bool outside = low.size() != shape.size() || high.size() != shape.size();
        for (std::size_t i = 0; i < shape.size() && !outside; ++i) outside = shape[i] < low[i] || shape[i] > high[i];
        std::string limit = text("from [", joined(low), "] to [", joined(high), "]");
        if (details_.max_pixels.value_or(0) > 0) {
            limit += text(" with at most ", *details_.max_pixels, " pixels in a batch");
            outside = outside || count_pixels(frames) > static_cast<std::uint64_t>(*details_.max_pixels);
        }
        if (outside) {
            fail(DPT_CONTRACT_ERROR, "frame: ", file_, " takes shapes ", limit, ", received [", joined(shape),
                 "]. Resize or split it, build an engine with another profile (", rebuild_,
                 " --help), or use backend onnxruntime-cuda.");
        }
    }

    std::string backend_, file_, rebuild_;
    EngineDetails details_;
    Library library_;
    const dpt_backend_api *api_ = nullptr;
    mutable std::mutex mutex_;
    void *session_ = nullptr;
};

} // namespace

std::unique_ptr<Session> open_engine(const Bundle &bundle, const Artifact &artifact, const std::string &backend,
                                     const std::string &folder, int device, bool no_cuda_graph) {
    return std::make_unique<EngineSession>(bundle, artifact, backend, folder, device, no_cuda_graph);
}

} // namespace dpt_impl
